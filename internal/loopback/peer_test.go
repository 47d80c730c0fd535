package loopback

import (
	"fmt"
	"testing"
)

func TestProcess(t *testing.T) {
	ours := process{pid: 10, started: 1, session: 1, user: "S-1-5-21-1"}
	client := process{pid: 20, started: 5, session: 1, user: "S-1-5-21-1"}
	with := func(change func(*process)) process {
		p := client
		change(&p)
		return p
	}
	tests := []struct {
		name string
		p    process
		want string
	}{
		{"the very process", client, "<nil> <nil>"},
		{"another process of the person", with(func(p *process) { p.pid = 21 }), "<nil> it is of process 21, not of the RDP client that was started, 20"},
		{"a later process under its number", with(func(p *process) { p.started = 6 }), "<nil> its process 20 is another one than was started under this number"},
		{"another session", with(func(p *process) { p.session = 2 }), "its process 20 is in session 2, not 1 its process 20 is another one than was started under this number"},
		{"another user", with(func(p *process) { p.user = "S-1-5-18" }), "its process 20 belongs to S-1-5-18 its process 20 is another one than was started under this number"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := fmt.Sprint(tt.p.belongs(ours), tt.p.is(client)); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	if (process{}).belongs(process{}) == nil {
		t.Error("two processes of nobody belong together")
	}
}

func TestRandomAddr(t *testing.T) {
	seen := map[string]bool{}
	for range 2000 {
		a := randomAddr()
		b := a.As4()
		if !a.IsLoopback() || b[1] == 0 || b[1] == 255 || b[3] == 0 || b[3] == 255 {
			t.Fatalf("%v cannot be used", a)
		}
		seen[a.String()] = true
	}
	if len(seen) < 1900 {
		t.Errorf("%d different addresses of 2000", len(seen))
	}
}
