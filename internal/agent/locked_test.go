package agent

import (
	"context"
	"errors"
	"slices"
	"testing"
)

// A fakeDesktop is the one session of a host named WEB01.
type fakeDesktop struct {
	domain, login string
	connected     bool
	err           error
	gone          []uint32 // sessions that were disconnected
}

func (d *fakeDesktop) owner(uint32) (string, string, bool, error) {
	return d.domain, d.login, d.connected, d.err
}
func (d *fakeDesktop) locked() ([]uint32, error)  { return []uint32{7}, nil }
func (d *fakeDesktop) computer() (string, error)  { return "WEB01", nil }
func (d *fakeDesktop) disconnect(id uint32) error { d.gone = append(d.gone, id); return nil }

// ann has two streams, and bob one.
func TestLockedDesktop(t *testing.T) {
	tests := []struct {
		name   string
		of     fakeDesktop
		ends   bool // both streams of ann
		failed bool
	}{
		{"ann's", fakeDesktop{domain: "WEB01", login: "ann", connected: true}, true, false},
		{"ann's, in other letters", fakeDesktop{domain: "web01", login: "Ann", connected: true}, true, false},
		{"ann's, whose client has left: she may be back by another", fakeDesktop{domain: "WEB01", login: "ann"}, false, false},
		{"of an ann of the domain", fakeDesktop{domain: "CORP", login: "ann", connected: true}, false, false},
		{"of somebody else", fakeDesktop{domain: "WEB01", login: "Administrator", connected: true}, false, false},
		{"of nobody", fakeDesktop{connected: true}, false, false},
		{"of somebody who has just left", fakeDesktop{err: errors.New("no such session")}, false, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			n1, _ := b.sign(b.ann, "s1")
			n2, _ := b.sign(b.ann, "s2")
			other, _ := b.sign(b.bob, "s3")
			a := &Agent{sessions: b.sessions, log: b.log}
			d := tt.of
			if err := a.lockedDesktops(&d); (err != nil) != tt.failed {
				t.Fatal(err)
			}
			want := ""
			if tt.ends {
				want = "locked"
			}
			if b.told[n1] != want || b.told[n2] != want || b.told[other] != "" {
				t.Errorf("the broker was told %v", b.told)
			}
			if got := slices.Equal(d.gone, []uint32{7}); got != tt.ends || !tt.ends && len(d.gone) > 0 {
				t.Errorf("these were disconnected: %v", d.gone)
			}
		})
	}
}

// Who comes back to a desktop that was locked joins the same session by a
// fresh sign-in; the event tells how it ended at last.
func TestBackToALockedDesktop(t *testing.T) {
	b := benchOf(t, true)
	n, pw := b.sign(b.ann, "s1")
	b.signIn("ann", pw)
	b.tick(context.Background())
	if !b.locked("ann") {
		t.Fatal("there are no streams")
	}
	b.closed(n, 1, 1, "ended: locked")
	b.pass(benchGrace - 1)
	n, pw = b.sign(b.ann, "s1")
	b.wantGood("ann", pw, true)
	if !b.locked("ann") {
		t.Fatal("there are no streams after the return")
	}
	b.closed(n, 1, 1, "ended: locked")
	if b.locked("ann") {
		t.Error("there are streams after the end")
	}
	b.pass(benchGrace)
	b.wantEvents("account.enabled s1", "session.start s1", "session.end s1: ended: locked", "account.disabled")
	if got := b.mem.Sessions("ann"); got == 0 {
		t.Error("the locked desktop was ended")
	}
}
