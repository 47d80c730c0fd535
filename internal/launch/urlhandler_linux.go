package launch

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"sft"
	"sft/internal/conf"
)

// question asks by a program of the system, by its full path. The text is one
// argument, and never the beginning of one.
func question(ctx context.Context, text string) (bool, error) {
	argv := found([][]string{
		{"/usr/bin/zenity", "--question", "--title=sft", "--no-markup", "--default-cancel", "--text=" + text},
		{"/usr/bin/kdialog", "--title", "sft", "--warningyesno", text},
		{"/usr/bin/xmessage", "-center", "-title", "sft", "-buttons", "no:1,yes:0", "-default", "no", text},
	})
	if argv == nil {
		return false, ErrNobodyToAsk
	}
	return askBy(ctx, argv)
}

// inTerminal does nothing: the desktop's entry asks for a terminal.
func inTerminal([]string) (bool, error) { return false, nil }

// xdgHome returns a folder of the XDG Base Directory Specification.
func xdgHome(getenv func(string) string, variable, inHome string) (string, error) {
	if v := getenv(variable); filepath.IsAbs(v) {
		return v, nil
	}
	if home := getenv("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, inHome), nil
	}
	return "", &sft.Error{Code: sft.Invalid, Msg: "HOME is not set to a full path", Hint: "set it to the person's own folder"}
}

func linkFiles(getenv func(string) string) (entry, list string, err error) {
	data, err := xdgHome(getenv, "XDG_DATA_HOME", ".local/share")
	if err != nil {
		return "", "", err
	}
	config, err := xdgHome(getenv, "XDG_CONFIG_HOME", ".config")
	return filepath.Join(data, "applications", desktopFile), filepath.Join(config, "mimeapps.list"), err
}

func registerLinks(program string, getenv func(string) string) error {
	entry, list, err := linkFiles(getenv)
	if err != nil {
		return err
	}
	for _, dir := range []string{filepath.Dir(entry), filepath.Dir(list)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if err := conf.WriteFile(entry, desktopEntry(program), 0o644); err != nil {
		return err
	}
	return changeMimeApps(list, true)
}

func unregisterLinks(getenv func(string) string) error {
	entry, list, err := linkFiles(getenv)
	if err != nil {
		return err
	}
	if err := changeMimeApps(list, false); err != nil {
		return err
	}
	if err := os.Remove(entry); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// changeMimeApps edits the list, where it really is if it is a link.
func changeMimeApps(list string, on bool) error {
	if at, err := filepath.EvalSymlinks(list); err == nil {
		list = at
	}
	f, err := os.Open(list)
	var old []byte
	mode := fs.FileMode(0o644)
	if err == nil {
		defer f.Close()
		i, serr := f.Stat()
		if serr != nil {
			return serr
		}
		mode = i.Mode().Perm()
		old, err = io.ReadAll(io.LimitReader(f, maxMimeApps+1))
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return err
	}
	b, err := editMimeApps(old, on)
	if err != nil || string(b) == string(old) {
		return err
	}
	return conf.WriteFile(list, b, mode)
}
