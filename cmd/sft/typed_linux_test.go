package main

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sft"
)

// terminal returns a terminal that is read from, and the keys of its person.
func terminal(t *testing.T) (tty, keys *os.File) {
	t.Helper()
	keys, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("there are no terminals here: %v", err)
	}
	t.Cleanup(func() { keys.Close() })
	if err := unix.IoctlSetPointerInt(int(keys.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(keys.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	return tty, keys
}

// An Enter of before the question is no answer to it.
func TestEnterAtATerminal(t *testing.T) {
	tty, keys := terminal(t)
	waiting := func() int {
		n, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCINQ)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	press := func(s string) {
		if _, err := keys.WriteString(s); err != nil {
			t.Fatal(err)
		}
	}
	asked, runs := 0, 0
	v := &visit{p: &program{in: tty, voice: &voice{err: writerFunc(func([]byte) {
		asked++
		if n := waiting(); n != 0 {
			t.Errorf("as Enter is asked for, %d bytes of before are left", n)
		}
		press([]string{"", "\n", "\x04"}[asked]) // Enter, then Ctrl-D
	})}}}
	err := v.untilLeft(t.Context(), "web01", isTerminal(tty), func(context.Context) error { return nil }, func() error {
		runs++
		press("before\n")
		for end := time.Now().Add(10 * time.Second); waiting() == 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("what was typed did not arrive")
			}
		}
		return &sft.Error{Code: sft.Locked, Msg: "the desktop was locked"}
	})
	if err != nil || runs != 2 || asked != 2 {
		t.Errorf("%v after %d runs and %d questions", err, runs, asked)
	}
}

type writerFunc func([]byte)

func (f writerFunc) Write(b []byte) (int, error) { f(b); return len(b), nil }
