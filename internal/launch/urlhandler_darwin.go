package launch

import (
	"context"

	"sft"
)

// question asks by a script that is always the same; the text is an argument
// of it.
func question(ctx context.Context, text string) (bool, error) {
	return askBy(ctx, []string{"/usr/bin/osascript",
		"-e", "on run argv",
		"-e", `display dialog (item 1 of argv) with title "sft" buttons {"Cancel", "Connect"} default button "Cancel" cancel button "Cancel" with icon caution`,
		"-e", "end run", text})
}

// On macOS a link is given to an app, as an event, and not to a program.
var errNoApp = &sft.Error{Code: sft.Invalid, Msg: "links are not registered on macOS by this version of sft", Hint: "copy the link, and run: sft open-url -- 'LINK'"}

func registerLinks(string, func(string) string) error { return errNoApp }

func unregisterLinks(func(string) string) error { return errNoApp }
