package launch

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
)

// question asks in a message box, whose default is no.
func question(_ context.Context, text string) (bool, error) {
	t, err := windows.UTF16PtrFromString(text)
	if err != nil {
		return false, err
	}
	title, err := windows.UTF16PtrFromString("sft")
	if err != nil {
		return false, err
	}
	const yes = 6 // IDYES
	answer, err := windows.MessageBox(0, t, title, windows.MB_YESNO|windows.MB_ICONWARNING|windows.MB_DEFBUTTON2|windows.MB_SETFOREGROUND|windows.MB_TOPMOST)
	if answer == 0 {
		return false, fmt.Errorf("ask in a window: %w", err)
	}
	return answer == yes, nil
}

// inTerminal does nothing: Windows gives a program a console.
func inTerminal([]string) (bool, error) { return false, nil }

// handlerClass is the class of both schemes' handler, by the name that it has
// with the product whose links these are.
const handlerClass = "ScaleFTProtocolHandler"

func classKeys() []string { return append([]string{handlerClass}, LinkSchemes...) }

const classes = `Software\Classes\`

// linkCommand is the command line. Windows puts the link in the place of %1 as
// it is: one with a quotation mark becomes several arguments, after "--", and
// open-url takes one.
func linkCommand(program string) string { return `"` + program + `" open-url -- "%1"` }

func registerLinks(program string, _ func(string) string) error {
	for _, class := range classKeys() {
		values := map[string]map[string]string{
			classes + class:                         {"": "URL:sft", "URL Protocol": ""},
			classes + class + `\shell\open\command`: {"": linkCommand(program)},
		}
		for path, set := range values {
			k, _, err := registry.CreateKey(registry.CURRENT_USER, path, registry.SET_VALUE)
			if err != nil {
				return fmt.Errorf("make the registry key HKCU\\%s: %w", path, err)
			}
			for name, v := range set {
				if err == nil {
					err = k.SetStringValue(name, v)
				}
			}
			k.Close()
			if err != nil {
				return fmt.Errorf("write the registry key HKCU\\%s: %w", path, err)
			}
		}
	}
	return nil
}

// unregisterLinks removes the classes, from their ends.
func unregisterLinks(func(string) string) error {
	for _, class := range classKeys() {
		for _, sub := range []string{`\shell\open\command`, `\shell\open`, `\shell`, ``} {
			path := classes + class + sub
			if err := registry.DeleteKey(registry.CURRENT_USER, path); err != nil && !errors.Is(err, registry.ErrNotExist) {
				return fmt.Errorf("remove the registry key HKCU\\%s: %w", path, err)
			}
		}
	}
	return nil
}
