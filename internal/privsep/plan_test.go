package privsep

import (
	"errors"
	"slices"
	"testing"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"
)

const session = "S-1-5-5-0-999" // a logon session

func TestNewPlan(t *testing.T) {
	from := tokenFacts{
		user: sidLocalService, integrity: "S-1-16-16384",
		groups: []group{
			{sid: "S-1-16-16384"}, {sid: sidEveryone}, {sid: sidUsers}, {sid: "S-1-5-6"}, {sid: sidAuthenticated},
			{sid: session}, {sid: sidAdministrators}, {sid: "S-1-2-0"}, {sid: sidAdministrators, denying: true},
		},
		privileges: []privilege{{23, "SeChangeNotifyPrivilege"}, {29, "SeImpersonatePrivilege"}},
	}
	got := newPlan(from)
	want := plan{
		account: "S-1-5-19", integrity: "S-1-16-4096",
		denied:      []string{"S-1-5-6", "S-1-5-32-544", "S-1-2-0"},
		privileges:  []uint64{23, 29},
		job:         jobLimits{flags: 0x2408, processes: 1, ui: 0xff},
		mitigations: 1<<32 | 1<<36 | 1<<48 | 1<<52 | 1<<56 | 1<<60,
		childless:   true,
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(plan{}, jobLimits{})); diff != "" {
		t.Errorf("newPlan (-want +got):\n%s", diff)
	}
}

// good is what is to be seen of a broker that is locked in.
func good() seen {
	return seen{
		token: tokenFacts{
			user: sidLocalService, integrity: sidLow,
			groups: []group{{sid: sidLow}, {sid: sidEveryone}, {sid: sidUsers}, {sid: sidAuthenticated}, {sid: session}, {sid: sidAdministrators, denying: true}, {sid: "S-1-5-6", denying: true}},
		},
		inJob:       true,
		job:         jobLimits{flags: 0x2408, processes: 1, ui: 0xff},
		mitigations: slices.Clone(wantMitigations),
	}
}

func TestJudge(t *testing.T) {
	tests := []struct {
		name   string
		change func(*seen)
		want   string // of the error
	}{
		{"a broker that is locked in", func(*seen) {}, ""},
		{"no mitigations, on an old system", func(s *seen) { s.mitigations = nil }, ""},
		{"more limits than were set", func(s *seen) { s.job.flags |= 0x100 }, ""},
		{"the system's account", func(s *seen) { s.token.user = sidSystem }, "account: it is S-1-5-18 instead of S-1-5-19"},
		{"another account", func(s *seen) { s.token.user = "S-1-5-20" }, "account: it is S-1-5-20 instead of S-1-5-19"},
		{"no account", func(s *seen) { s.token.user = "" }, "account: it is  instead of S-1-5-19"},
		{"the system among its groups", func(s *seen) { s.token.groups = append(s.token.groups, group{sid: sidSystem}) }, "groups: S-1-5-18, the system's own account, is among them"},
		{"the system among its groups, to deny", func(s *seen) { s.token.groups = append(s.token.groups, group{sid: sidSystem, denying: true}) }, "groups: S-1-5-18, the system's own account, is among them"},
		{"an administrator", func(s *seen) { s.token.groups = append(s.token.groups, group{sid: sidAdministrators}) }, "groups: S-1-5-32-544, Administrators, still gives it rights"},
		{"a service", func(s *seen) { s.token.groups = append(s.token.groups, group{sid: "S-1-5-6"}) }, "groups: S-1-5-6 still gives it rights"},
		{"a privilege", func(s *seen) { s.token.privileges = []privilege{{23, "SeChangeNotifyPrivilege"}} }, "privileges: SeChangeNotifyPrivilege is left, one of 1"},
		{"medium integrity", func(s *seen) { s.token.integrity = "S-1-16-8192" }, "integrity: it is S-1-16-8192 instead of S-1-16-4096"},
		{"the system's integrity", func(s *seen) { s.token.integrity = "S-1-16-16384" }, "integrity: it is S-1-16-16384 instead of S-1-16-4096"},
		{"another job", func(s *seen) { s.inJob = false }, "job: it is not in the one made for it"},
		{"a job that outlives the monitor", func(s *seen) { s.job.flags &^= jobKillOnClose }, "job limits: flags are 0x408 instead of 0x2408"},
		{"a job to break away from", func(s *seen) { s.job.flags |= jobSilentBreakaway }, "job limits: flags are 0x3408: it can break away"},
		{"two processes", func(s *seen) { s.job.processes = 2 }, "job limits: 2 processes may run instead of 1"},
		{"limits that cannot be read", func(s *seen) { s.noJob = errors.New("access is denied") }, "job limits: they cannot be read: access is denied"},
		{"a clipboard", func(s *seen) { s.job.ui &^= 2 }, "job limits: limits of the user interface are 0xfd instead of 0xff"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := good()
			tt.change(&s)
			layers, err := judge(newPlan(s.token), s, nil)
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != tt.want || (err == nil) != (layers != nil) {
				t.Errorf("judge = %v, %q, want %q", layers, got, tt.want)
			}
		})
	}
}

// What was excused is shown as it is, and nothing else is let through with it.
func TestJudgeLayers(t *testing.T) {
	s := good()
	s.token.integrity = "S-1-16-12288"
	s.mitigations = wantMitigations[:4]
	got, err := judge(newPlan(s.token), s, []string{"integrity"})
	if err != nil {
		t.Fatal(err)
	}
	want := []Layer{
		{"account", true, "LocalService"},
		{"groups", true, "Everyone, Authenticated Users, Users"},
		{"privileges", true, "none"},
		{"integrity", false, "it is S-1-16-12288 instead of S-1-16-4096"},
		{"job", true, "one of its own"},
		{"job limits", true, "ends with the monitor, one process, no user interface"},
		{"mitigations", false, "missing are no extension points; the other layers hold"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("judge (-want +got):\n%s", diff)
	}
	s.inJob = false
	if l, err := judge(newPlan(s.token), s, []string{"integrity"}); err == nil {
		t.Errorf("judge = %v: an excuse is good for more than it says", l)
	}
}

func TestEnvironmentBlock(t *testing.T) {
	tests := []struct {
		name string
		in   []string
		want string
		ok   bool
	}{
		{"in order, whatever the case", []string{"b=2", "SystemRoot=C:\\W", "A=1"}, "A=1\x00b=2\x00SystemRoot=C:\\W\x00\x00", true},
		{"none", nil, "\x00\x00", true},
		{"beyond 16 bits", []string{"A=\U0001F600"}, "A=\U0001F600\x00\x00", true},
		{"no name", []string{"=1"}, "", false},
		{"no value", []string{"A"}, "", false},
		{"a zero, and so a second one", []string{"A=1\x00B=2"}, "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b, err := environmentBlock(tt.in)
			if got := string(utf16.Decode(b)); got != tt.want || (err == nil) != tt.ok {
				t.Errorf("environmentBlock = %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}
