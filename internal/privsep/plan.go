package privsep

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"
)

// Who and what is who: Microsoft, "Well-known SIDs" and "Mandatory Integrity
// Control".
const (
	sidSystem         = "S-1-5-18"
	sidLocalService   = "S-1-5-19"
	sidEveryone       = "S-1-1-0"
	sidAuthenticated  = "S-1-5-11"
	sidUsers          = "S-1-5-32-545"
	sidAdministrators = "S-1-5-32-544"
	sidLogonSessions  = "S-1-5-5-" // and what names one
	sidLevels         = "S-1-16-"  // integrity levels stand among the groups
	sidLow            = "S-1-16-4096"
)

// A plan is how a broker is born on Windows. It is decided here; launch does
// as it says, and judge wants to see what it says.
type plan struct {
	account     string   // SID of the account
	denied      []string // SIDs of groups that deny from now on, and allow nothing
	privileges  []uint64 // LUIDs of privileges to delete
	integrity   string   // SID of the level
	job         jobLimits
	mitigations uint64 // PROCESS_CREATION_MITIGATION_POLICY_*
	childless   bool   // no process may be made by it
}

// jobLimits are the limits of a job object.
type jobLimits struct {
	flags     uint32 // JOB_OBJECT_LIMIT_*
	processes uint32 // ActiveProcessLimit
	ui        uint32 // JOB_OBJECT_UILIMIT_*
}

// Microsoft, JOBOBJECT_BASIC_LIMIT_INFORMATION.
const (
	jobActiveProcess   = 0x8
	jobDieOnException  = 0x400 // and so no report of it is written
	jobKillOnClose     = 0x2000
	jobBreakaway       = 0x800
	jobSilentBreakaway = 0x1000
	jobEveryUI         = 0xff // JOBOBJECT_BASIC_UI_RESTRICTIONS: all there are
)

// Microsoft, UpdateProcThreadAttribute: the always-on value of each policy.
const (
	noExtensionPoints = 1 << 32 // nothing is loaded into it because others asked for it
	noDynamicCode     = 1 << 36 // no memory becomes executable; Go needs none
	noFonts           = 1 << 48 // but the system's
	noRemoteImages    = 1 << 52 // no program code from a network
	noLowImages       = 1 << 56 // none that a low process wrote
	preferSystem      = 1 << 60 // libraries come from system32 first
)

// A tokenFacts is what there is in an access token.
type tokenFacts struct {
	user       string // SID
	integrity  string // SID
	groups     []group
	privileges []privilege
}

// A group is one in a token. Neither enabled nor denying, it does nothing, but
// the process may turn it on.
type group struct {
	sid     string
	denying bool // it denies only, for good
}

// A privilege is one in a token. One that is off can be turned on by the
// process: what counts is that it is not there.
type privilege struct {
	luid uint64
	name string
}

// newPlan decides how a broker is born from a token.
//
// What allows nothing any more is each group but those without which it does
// not run: Users may read the system's libraries, without which there are no
// sockets.
func newPlan(from tokenFacts) plan {
	p := plan{
		account:     sidLocalService,
		integrity:   sidLow,
		job:         jobLimits{flags: jobActiveProcess | jobDieOnException | jobKillOnClose, processes: 1, ui: jobEveryUI},
		mitigations: noExtensionPoints | noDynamicCode | noFonts | noRemoteImages | noLowImages | preferSystem,
		childless:   true,
	}
	for _, g := range from.groups {
		if !mayStay(g.sid) && !slices.Contains(p.denied, g.sid) {
			p.denied = append(p.denied, g.sid)
		}
	}
	for _, v := range from.privileges {
		p.privileges = append(p.privileges, v.luid)
	}
	return p
}

// mayStay reports whether a broker may make use of a group.
func mayStay(sid string) bool {
	switch sid {
	case sidEveryone, sidAuthenticated, sidUsers:
		return true
	}
	return strings.HasPrefix(sid, sidLogonSessions) || strings.HasPrefix(sid, sidLevels)
}

// A seen is what was read back from a broker, from outside.
type seen struct {
	token tokenFacts
	inJob bool // in the job that was made for it
	job   jobLimits
	noJob error // why the limits could not be read
	// What holds of the mitigations: names, as in wantMitigations.
	mitigations []string
}

// wantMitigations are what a broker can do without, where the release does not
// have them.
var wantMitigations = []string{"no child processes", "no dynamic code", "no remote images", "no low images", "no extension points"}

// judge compares what was read back with what was meant. It returns the layers,
// and an error that names the first one that is not as meant and cannot be
// missed. excused names layers that may be missed.
func judge(want plan, s seen, excused []string) ([]Layer, error) {
	layers, err := judgeToken(want, s.token, excused)
	if err != nil {
		return nil, err
	}
	for _, look := range []struct {
		name   string
		detail string
		err    error
	}{
		{"job", "one of its own", wantJob(s.inJob)},
		{"job limits", "ends with the monitor, one process, no user interface", want.job.compare(s.job, s.noJob)},
	} {
		if layers, err = addLayer(layers, look.name, look.detail, look.err, excused); err != nil {
			return nil, err
		}
	}
	missing := []string{}
	for _, m := range wantMitigations {
		if !slices.Contains(s.mitigations, m) {
			missing = append(missing, m)
		}
	}
	l := Layer{Name: "mitigations", OK: len(missing) == 0, Detail: strings.Join(wantMitigations, ", ")}
	if !l.OK {
		l.Detail = "missing are " + strings.Join(missing, ", ") + "; the other layers hold"
	}
	return append(layers, l), nil
}

// judgeToken is judge for a token alone: what a broker can tell of itself.
func judgeToken(want plan, t tokenFacts, excused []string) (layers []Layer, err error) {
	for _, look := range []struct {
		name   string
		detail string
		err    error
	}{
		{"account", "LocalService", wantSID(t.user, want.account)},
		{"groups", "Everyone, Authenticated Users, Users", wantGroups(t.groups)},
		{"privileges", "none", wantNone(t.privileges)},
		{"integrity", "low", wantSID(t.integrity, want.integrity)},
	} {
		if layers, err = addLayer(layers, look.name, look.detail, look.err, excused); err != nil {
			return nil, err
		}
	}
	return layers, nil
}

// addLayer adds a layer that is as meant, or is excused.
func addLayer(layers []Layer, name, detail string, problem error, excused []string) ([]Layer, error) {
	switch {
	case problem == nil:
		return append(layers, Layer{Name: name, OK: true, Detail: detail}), nil
	case slices.Contains(excused, name):
		return append(layers, Layer{Name: name, Detail: problem.Error()}), nil
	}
	return nil, fmt.Errorf("%s: %w", name, problem)
}

func wantSID(got, want string) error {
	if got != want {
		return fmt.Errorf("it is %s instead of %s", got, want)
	}
	return nil
}

// wantGroups reports the first group that a broker must not make use of.
func wantGroups(groups []group) error {
	for _, g := range groups {
		switch {
		case g.sid == sidSystem:
			return fmt.Errorf("%s, the system's own account, is among them", g.sid)
		case g.denying || mayStay(g.sid):
		case g.sid == sidAdministrators:
			return fmt.Errorf("%s, Administrators, still gives it rights", g.sid)
		default:
			return fmt.Errorf("%s still gives it rights", g.sid)
		}
	}
	return nil
}

func wantNone(privileges []privilege) error {
	if len(privileges) > 0 {
		return fmt.Errorf("%s is left, one of %d", privileges[0].name, len(privileges))
	}
	return nil
}

func wantJob(in bool) error {
	if !in {
		return errors.New("it is not in the one made for it")
	}
	return nil
}

// compare reports how got is laxer than l. unread is why it is not known.
func (l jobLimits) compare(got jobLimits, unread error) error {
	switch {
	case unread != nil:
		return fmt.Errorf("they cannot be read: %w", unread)
	case got.flags&l.flags != l.flags:
		return fmt.Errorf("flags are %#x instead of %#x", got.flags, l.flags)
	case got.flags&(jobBreakaway|jobSilentBreakaway) != 0:
		return fmt.Errorf("flags are %#x: it can break away", got.flags)
	case got.processes != l.processes:
		return fmt.Errorf("%d processes may run instead of %d", got.processes, l.processes)
	case got.ui&l.ui != l.ui:
		return fmt.Errorf("limits of the user interface are %#x instead of %#x", got.ui, l.ui)
	}
	return nil
}

// environmentBlock lays out variables as CreateProcess takes them: in UTF-16,
// in order, each ended by a zero and all by another.
func environmentBlock(list []string) ([]uint16, error) {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b string) int { return strings.Compare(strings.ToUpper(a), strings.ToUpper(b)) })
	block := []uint16{}
	for _, v := range list {
		if strings.ContainsRune(v, 0) || strings.IndexByte(v, '=') < 1 {
			return nil, errors.New("a variable of the environment without a name, or with a zero in it")
		}
		block = append(block, utf16.Encode([]rune(v))...)
		block = append(block, 0)
	}
	if len(list) == 0 {
		block = append(block, 0)
	}
	return append(block, 0), nil
}
