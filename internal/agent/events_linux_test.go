package agent

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"sft"
)

// On a full disk nothing new is done, and nothing that was stored is lost,
// whatever comes after.
func TestSpoolOnAFullDisk(t *testing.T) {
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
		path := filepath.Join(dir, "buffer.db")
		s, err := openSpool(path, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Error(err)
			return
		}
		defer s.close()
		n := 0
		for ; n < 2000; n++ {
			if s.add(event(n+1)) != nil {
				break
			}
		}
		if n < 10 || n == 2000 {
			t.Errorf("%d events found room", n)
			return
		}
		_ = s.add(event(n + 2))
		if err := s.ready(); sft.CodeOf(err) != sft.Unavailable {
			t.Errorf("on a full disk a session may begin: %v", err)
		}
		if !strings.Contains(s.problem(), "make room in "+dir) {
			t.Errorf("the problem is %q", s.problem())
		}
		again, err := openSpool(path, s.log) // as after kill -9
		if err != nil {
			t.Error(err)
			return
		}
		if got := spooled(again); !slices.Equal(got, numbered(1, n)) {
			t.Errorf("%d events were stored, and %d are there after a crash", n, len(got))
		}
		again.close()
		if err := syscall.Mount("none", dir, "", syscall.MS_REMOUNT, "size=1m"); err != nil {
			t.Error(err)
			return
		}
		if err := s.ready(); err != nil {
			t.Errorf("with room again: %v", err)
		}
		if again, err = openSpool(path, s.log); err != nil {
			t.Error(err)
			return
		}
		defer again.close()
		if got := spooled(again); !slices.Equal(got, numbered(1, n+2)) {
			t.Errorf("with room again %d events are stored, want %d", len(got), n+2)
		}
	}()
	<-done
}

// Windows keeps a file that is open.
func TestSpoolFileRemovedByHand(t *testing.T) {
	path := filepath.Join(t.TempDir(), "buffer.db")
	s := openTestSpool(t, path)
	fill(t, s, 1, 3)
	if err := os.Remove(s.file()); err != nil {
		t.Fatal(err)
	}
	fill(t, s, 4, 4)
	s = openTestSpool(t, path)
	if got := spooled(s); !slices.Equal(got, numbered(1, 4)) {
		t.Errorf("removed under a running agent, it holds %q", got)
	}
}
