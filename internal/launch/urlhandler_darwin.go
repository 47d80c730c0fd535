package launch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"sft"
	"sft/internal/conf"
)

// question asks by a script that is always the same; the text is an argument
// of it.
func question(ctx context.Context, text string) (bool, error) {
	return askBy(ctx, []string{"/usr/bin/osascript",
		"-e", "on run argv",
		"-e", `display dialog (item 1 of argv) with title "sft" buttons {"Cancel", "Connect"} default button "Cancel" cancel button "Cancel" with icon caution`,
		"-e", "end run", text})
}

// lsregister tells macOS of apps, and that they are gone.
const lsregister = "/System/Library/Frameworks/CoreServices.framework/Frameworks/LaunchServices.framework/Support/lsregister"

// appletPath is where the app is, or is to be.
func appletPath(getenv func(string) string) (string, error) {
	if home := getenv("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, "Applications", appletDir), nil
	}
	return "", &sft.Error{Code: sft.Invalid, Msg: "HOME is not set to a full path", Hint: "set it to the person's own folder"}
}

// tool runs a program of the system.
func tool(argv ...string) error {
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return &sft.Error{Code: sft.Unavailable, Msg: fmt.Sprintf("%s did not work: %v: %s", argv[0], err, sft.Quote(strings.TrimSpace(string(out)))), Err: err,
			Hint: "try again; without it, copy a link, and run: sft open-url -- 'LINK'"}
	}
	return nil
}

// registerLinks makes the app beside its place, and whole before it gets there.
func registerLinks(program string, getenv func(string) string) error {
	app, err := appletPath(getenv)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(app), 0o700); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(filepath.Dir(app), ".sft-url-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) // with the app from before, if there was one
	made, script := filepath.Join(dir, appletDir), filepath.Join(dir, "script.applescript")
	if err := os.WriteFile(script, appletScript(program), 0o600); err != nil {
		return err
	}
	if err := tool("/usr/bin/osacompile", "-o", made, script); err != nil {
		return err
	}
	if err := conf.WriteFile(filepath.Join(made, "Contents", "Info.plist"), appletPlist(), 0o644); err != nil {
		return err
	}
	// The signature that the program came with is of another Info.plist.
	if err := tool("/usr/bin/codesign", "--force", "--sign", "-", made); err != nil {
		return err
	}
	err = unix.RenamexNp(made, app, unix.RENAME_SWAP)
	if errors.Is(err, fs.ErrNotExist) { // there is none yet
		err = os.Rename(made, app)
	}
	if err != nil {
		return fmt.Errorf("put %s in place: %w", app, err)
	}
	return tool(lsregister, "-f", app)
}

func unregisterLinks(getenv func(string) string) error {
	app, err := appletPath(getenv)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(app); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := tool(lsregister, "-u", app); err != nil {
		return err
	}
	return os.RemoveAll(app)
}

// inTerminal has Terminal run argv, by a file that it takes as a script.
func inTerminal(argv []string) (bool, error) {
	f, err := os.CreateTemp("", "sft-*.command") // a folder of the person's own
	if err != nil {
		return false, err
	}
	_, err = f.Write(terminalScript(argv))
	err = errors.Join(err, f.Chmod(0o700), f.Close())
	if err == nil {
		err = tool("/usr/bin/open", "-b", "com.apple.Terminal", f.Name())
	}
	if err != nil {
		os.Remove(f.Name())
		return false, err
	}
	return true, nil
}
