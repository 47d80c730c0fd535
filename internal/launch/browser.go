package launch

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Browser opens url in the person's browser and does not wait for it. command
// is the value of $BROWSER: programs with arguments, of which the first that
// starts is used; "%s" stands for the URL, which is otherwise added at the
// end. Empty means the system's own way.
//
// No shell is involved, so that nothing in the URL can be more than an
// argument.
func Browser(command, url string) error {
	if command == "" {
		return detach(systemBrowser(url))
	}
	var errs []error
	for _, c := range filepath.SplitList(command) {
		argv, err := Words(c)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if len(argv) == 0 {
			continue
		}
		put := false
		for i := 1; i < len(argv); i++ {
			if strings.Contains(argv[i], "%s") {
				argv[i] = strings.ReplaceAll(argv[i], "%s", url)
				put = true
			}
		}
		if !put {
			argv = append(argv, url)
		}
		if err = detach(argv); err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return errors.New("BROWSER names no program")
	}
	return errors.Join(errs...)
}

// detach starts a program that goes on by itself. It gets none of our
// streams: standard output carries the answer alone.
func detach(argv []string) error {
	cmd := exec.Command(argv[0], argv[1:]...)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = null, null, null
	if err := cmd.Start(); err != nil {
		return err
	}
	go cmd.Wait() // no zombie while we live
	return nil
}
