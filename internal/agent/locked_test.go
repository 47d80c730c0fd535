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
	left          func() int
	early         bool // one was while a stream was left
}

func (d *fakeDesktop) owner(uint32) (string, string, bool, error) {
	return d.domain, d.login, d.connected, d.err
}
func (d *fakeDesktop) locked() ([]uint32, error) { return []uint32{7}, nil }
func (d *fakeDesktop) computer() (string, error) { return "WEB01", nil }
func (d *fakeDesktop) disconnect(id uint32) error {
	d.gone, d.early = append(d.gone, id), d.left() > 0
	return nil
}

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
			told := b.end
			b.end = func(id uint64, why string) {
				told(id, why)
				go b.closed(id, 0, 0, "ended: "+why)
			}
			d := tt.of
			d.left = func() int { _, n := b.count(); return n - 1 }
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
			if d.early {
				t.Error("it was disconnected before the client could be told")
			}
		})
	}
}

// A desktop that the end of its streams has disconnected is not disconnected
// again: its person may be on the way back.
func TestLockedDesktopThatIsLeft(t *testing.T) {
	b := newBench(t)
	n, _ := b.sign(b.ann, "s1")
	d := &fakeDesktop{domain: "WEB01", login: "ann", connected: true}
	b.end = func(uint64, string) {
		d.connected = false
		go b.closed(n, 0, 0, "ended: locked")
	}
	a := &Agent{sessions: b.sessions, log: b.log}
	if err := a.lockedDesktops(d); err != nil || len(d.gone) > 0 {
		t.Errorf("disconnected %v, %v", d.gone, err)
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
