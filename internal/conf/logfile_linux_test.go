package conf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// With the disk full, lines are lost whole, and told when there is room again.
func TestLogFileOnAFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: a small file system is mounted by root alone")
	}
	dir := t.TempDir()
	done := make(chan bool)
	go func() {
		defer close(done)
		runtime.LockOSThread() // its own mounts end with it
		if err := errors.Join(syscall.Unshare(syscall.CLONE_NEWNS), syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""),
			syscall.Mount("none", dir, "tmpfs", 0, "size=64k")); err != nil {
			t.Log("NOT TESTED: mount a small file system:", err)
			return
		}
		l := &LogFile{Path: filepath.Join(dir, "x.log"), Size: 1 << 20, Keep: 3}
		defer l.Close()
		for i := range 1000 {
			fmt.Fprintf(l, "line %d %s\n", i, strings.Repeat("x", 100))
		}
		if err := syscall.Mount("none", dir, "", syscall.MS_REMOUNT, "size=1m"); err != nil {
			t.Error(err)
			return
		}
		fmt.Fprintf(l, "room again\n")
		lines := strings.SplitAfter(string(read(t, l.Path)), "\n")
		n := len(lines) - 3 // the note, the last line, and nothing
		for i, s := range lines[:n] {
			if s != fmt.Sprintf("line %d %s\n", i, strings.Repeat("x", 100)) {
				t.Errorf("line %d is %q", i, s)
			}
		}
		if want := fmt.Sprintf("lines=%d error=", 1000-n); n < 10 || !strings.HasPrefix(lines[n], "level=ERROR msg=") || !strings.Contains(lines[n], want) || lines[n+1] != "room again\n" {
			t.Errorf("%d lines were stored, then %q", n, lines[n:])
		}
	}()
	<-done
}
