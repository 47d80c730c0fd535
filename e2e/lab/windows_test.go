//go:build linux

package lab

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// The accounts of Windows are the host's, from the file to /etc/shadow, and
// what is changed is confirmed after that.
func TestFollowAccounts(t *testing.T) {
	h := New(t, "").Host("win")
	h.Must("", "mkdir", "-p", WindowsAccounts+"/users")
	w := &Windows{Host: h}
	w.followAccounts()
	users := WindowsAccounts + "/users/"
	counter := 0
	set := func(flags, password string) {
		counter++
		text := fmt.Sprintf("name=ann\npassword=%s\nflags=%s\ncomment=\nfullname=Ann\nexpires=4294967295\nsid=S-1-5-21-1-2-3-1001\nset=1\nbad=0\ncounter=%d\n", password, flags, counter)
		h.Write(users+"ann.new", 0o644, []byte(text))
		h.Must("", "mv", users+"ann.new", users+"ann")
		poll(t, "the change is not confirmed", func() bool {
			b, err := os.ReadFile(w.shared(WindowsAccounts + "/ack-ann"))
			return err == nil && string(b) == fmt.Sprint(counter)
		})
	}
	field := func() string {
		out, _ := h.Run("", "getent", "shadow", "ann")
		return (out + ":::")[4:][:strings.IndexByte((out + ":::")[4:], ':')]
	}
	// One that nobody made through the calls of Windows is none of the host's.
	h.Write(users+"Planted", 0o644, []byte("name=Planted\nflags=513\ncounter=0\n"))
	set("66115", "first") // disabled
	if got := field(); got != "*" {
		t.Errorf("disabled, the host has %q", got)
	}
	set("66113", "second")
	if got := field(); !strings.HasPrefix(got, "$") {
		t.Errorf("open, the host has %q", got)
	}
	if a, ok := w.Account("ann"); !ok || a.Disabled() || a.FullName != "Ann" || a.Expires != 1<<32-1 || a.SID != "S-1-5-21-1-2-3-1001" {
		t.Errorf("the account is %v, %v", a, ok)
	}
	if _, ok := w.Account("bob"); ok {
		t.Error("there is an account bob")
	}
	h.Must("", "rm", users+"ann")
	poll(t, "a deleted account is open", func() bool { return field() == "*" })
	if _, err := h.account("Planted"); err == nil {
		t.Error("the planted account is the host's")
	}
}
