package accounts

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"sft"
)

// A Group is one local group that the platform wants on this host.
type Group struct {
	Name string `json:"name"`
	GID  int    `json:"gid"`
}

// Rights are what the accounts of ours have beyond being there: local groups
// that the platform wants too, and what sudo lets them run.
type Rights struct {
	Groups       []Group
	Entitlements []sft.SudoEntitlement
	Of           map[string]Held // by login, of every account that is wanted
	AllowSudo    bool            // the host's administrator allows entitlements
}

// Held is what one account has: groups and entitlements, by name.
type Held struct{ Groups, Sudo []string }

// A LocalGroup is one group as the operating system has it.
type LocalGroup struct {
	Group
	Members []string
}

// A Granter is a Backend whose host has local groups with numbers, and sudo.
// Its methods can be repeated, as those of a Backend.
type Granter interface {
	// ReadRights returns every local group, and the rule file of entitlements
	// as it stands; it is empty where there is none.
	ReadRights(ctx context.Context) (groups []LocalGroup, sudo string, err error)
	// MakeGroup makes a group that is not there.
	MakeGroup(ctx context.Context, g Group) error
	// DeleteGroup deletes g, which is ours and the first group of no account.
	DeleteGroup(ctx context.Context, g Group) error
	// SetMember puts login into g, or takes it out.
	SetMember(ctx context.Context, g Group, login string, in bool) error
	// SetSudo makes text the rule file; an empty text is none. One that sudo
	// would not read is refused, and then there is none.
	SetSudo(ctx context.Context, text string) error
}

// A GroupOutcome is what Grant did about one group.
type GroupOutcome struct {
	Name   string
	Change Change
	Err    error
}

// Granted is what Grant did.
type Granted struct {
	Groups []GroupOutcome
	Users  []string // logins whose groups or sudo entitlements are others now
	Sudo   error    // what of the entitlements is not in force, and why
	Failed bool     // something could not be done; the next Grant tries again
}

// Grant makes groups, memberships and sudo entitlements as r says: of the
// accounts of ours that are wanted, and of no other. What is taken away is
// taken first. A second run with the same rights changes nothing. The agent
// calls it before Reconcile, so that nobody keeps a right while somebody's
// processes are ended, and after it, for the accounts that were made.
//
// A group is ours if the record says so of its name and gid. Any other is
// reported and left alone, and so are members of our groups whose accounts are
// not ours.
func (m *Manager) Grant(ctx context.Context, r Rights) Granted {
	b, ok := m.b.(Granter)
	if !ok {
		return Granted{}
	}
	m.reconciling.Lock()
	defer m.reconciling.Unlock()
	p, err := m.planRights(ctx, b, r)
	if err != nil {
		return Granted{Sudo: err, Failed: true}
	}
	users := map[string]bool{}
	for _, s := range p.groups {
		for _, login := range s.drop {
			if s.fail(m.change(ctx, func() error { return b.SetMember(ctx, s.have, login, false) })) {
				users[login], s.moved = true, true
			}
		}
	}
	var done Granted
	done.Sudo = errors.Join(p.sudoErrs...)
	if p.sudo != p.sudoWas {
		err := m.change(ctx, func() error { return b.SetSudo(ctx, p.sudo) })
		if err != nil {
			done.Failed = true
			done.Sudo = errors.Join(done.Sudo, fmt.Errorf("give sudo entitlements: %w", err))
		}
		was, is := sudoOf(p.sudoWas), sudoOf(p.sudo)
		for login := range p.may {
			if was[login] != is[login] && err == nil {
				users[login] = true
			}
		}
	}
	for _, s := range p.groups {
		switch s.do {
		case remove:
			s.fail(m.change(ctx, func() error { return b.DeleteGroup(ctx, s.Group) }))
		case create:
			s.fail(m.change(ctx, func() error { return b.MakeGroup(ctx, s.Group) }))
		}
	}
	for _, s := range p.groups {
		if s.change == Failed {
			continue
		}
		for _, login := range s.add {
			if s.fail(m.change(ctx, func() error { return b.SetMember(ctx, s.Group, login, true) })) {
				users[login], s.moved = true, true
			}
		}
	}
	done.Groups = m.settleRights(p.groups)
	for _, o := range done.Groups {
		done.Failed = done.Failed || o.Change == Failed
	}
	done.Users = slices.Sorted(maps.Keys(users))
	return done
}

// A rightsPlan is what Grant is about to do.
type rightsPlan struct {
	groups        []*groupStep
	may           map[string]bool // the logins that may have rights
	sudo, sudoWas string
	sudoErrs      []error
}

// planRights decides, and records which groups are about to be ours.
func (m *Manager) planRights(ctx context.Context, b Granter, r Rights) (rightsPlan, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := rightsPlan{may: map[string]bool{}}
	h, err := m.b.Read(ctx, nil)
	if err != nil {
		return p, fmt.Errorf("read the accounts of this host: %w", err)
	}
	host, was, err := b.ReadRights(ctx)
	if err != nil {
		return p, fmt.Errorf("read the groups of this host: %w", err)
	}
	for login, e := range m.rec {
		a := h.find(login)
		if _, wanted := r.Of[login]; wanted && e.owns(a) && !e.Ended && !a.Expired && h.sharesID(a) == "" {
			p.may[login] = true
		}
	}
	p.sudoWas = was
	held := map[string][]string{}
	for login := range p.may {
		if l := r.Of[login].Sudo; len(l) > 0 {
			held[login] = l
		}
	}
	if len(held) > 0 && !r.AllowSudo {
		p.sudoErrs = []error{&sft.Error{Code: sft.Denied, Msg: "AllowAdmin in this host's sftd.yaml does not allow sudo entitlements", Hint: "set AllowAdmin there, or take the entitlements from the project's groups"}}
		held = nil
	}
	var errs []error
	p.sudo, errs = renderSudo(r.Entitlements, held)
	p.sudoErrs = append(p.sudoErrs, errs...)
	p.groups = decideGroups(host, m.groups, func(login string) bool { _, ok := m.rec[login]; return ok }, p.may, r)
	before := maps.Clone(m.groups)
	for _, s := range p.groups {
		if s.do == create {
			m.groups[s.Name] = s.GID
		}
	}
	if maps.Equal(before, m.groups) {
		return p, nil
	}
	if err := m.save(); err != nil { // nothing is made that a crash would leave without an owner
		m.groups = before
		for _, s := range p.groups {
			if s.do == create {
				s.do, s.add = refuse, nil
				s.fail(err)
			}
		}
	}
	return p, nil
}

// settleRights records what has been done with groups.
func (m *Manager) settleRights(steps []*groupStep) []GroupOutcome {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := maps.Clone(m.groups)
	var all []GroupOutcome
	for _, s := range steps {
		if (s.do == remove || s.do == forget) && s.change != Failed {
			delete(m.groups, s.Name)
		}
		if s.change == Kept && s.moved {
			s.change = Updated
		}
		if s.change != "" {
			all = append(all, GroupOutcome{s.Name, s.change, s.err})
		}
	}
	if !maps.Equal(before, m.groups) {
		if err := m.save(); err != nil && len(all) > 0 {
			all[0].Err = errors.Join(all[0].Err, err)
		}
	}
	return all
}

// A groupStep is what to do about one group.
type groupStep struct {
	Group
	have      Group  // as the host has it, if it is ours
	do        action // create, keep, remove, forget, refuse
	add, drop []string
	change    Change
	err       error
	moved     bool // a membership was changed
}

// fail notes that part of the step was not done, and reports whether it was.
func (s *groupStep) fail(err error) (done bool) {
	if err != nil {
		s.change = Failed
		s.err = errors.Join(s.err, err)
	}
	return err == nil
}

// CheckGroup reports whether name is one that we would give a local group.
func CheckGroup(name string) error {
	if !loginRE.MatchString(name) || slices.Contains(reserved, name) || strings.HasPrefix(name, "systemd-") || strings.HasPrefix(name, "sft-") {
		return &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("%.40q cannot be the name of a synced group", name),
			Hint: "choose another server_group_name: 1 to 32 small letters, digits, - and _ that begin with a letter, and no name of the system"}
	}
	return nil
}

// decideGroups compares the host's groups, the record and the wants, and
// returns what to do, in order of name. known tells whether an account is in
// the record, may whether it may have rights.
func decideGroups(host []LocalGroup, rec map[string]int, known func(string) bool, may map[string]bool, r Rights) []*groupStep {
	have, gids := map[string]LocalGroup{}, map[int]string{}
	for _, g := range host {
		if _, twice := have[g.Name]; !twice {
			have[g.Name] = g
		}
		if _, twice := gids[g.GID]; !twice {
			gids[g.GID] = g.Name
		}
	}
	ours := func(name string) bool {
		g, there := have[name]
		gid, noted := rec[name]
		return there && noted && g.GID == gid
	}
	wants := slices.Clone(r.Groups)
	slices.SortStableFunc(wants, func(a, b Group) int { // who is there goes first
		return cmp.Or(-cmp.Compare(btoi(ours(a.Name)), btoi(ours(b.Name))), cmp.Compare(a.Name, b.Name))
	})
	times := map[string]int{}
	for _, g := range wants {
		times[g.Name]++
	}
	var steps []*groupStep
	for _, g := range wants {
		if times[g.Name] == 0 {
			continue // named twice: told once
		}
		s := &groupStep{Group: g, do: keep, change: Kept}
		steps = append(steps, s)
		twice := times[g.Name] > 1
		times[g.Name] = 0
		there := have[g.Name]
		_, isLogin := r.Of[g.Name]
		conflict := func(c Clash, msg string) {
			s.do, s.change = refuse, Conflict
			s.err = &sft.Error{Code: sft.Conflict, Msg: msg, Err: c, Hint: "rename or remove it on this host, or choose another server_group_name or gid"}
		}
		invalid := func(err error) { s.do, s.change, s.err = refuse, Refused, err }
		other, taken := gids[g.GID]
		switch err := CheckGroup(g.Name); {
		case err != nil:
			invalid(err)
		case twice:
			invalid(&sft.Error{Code: sft.Invalid, Msg: "the platform wants group " + g.Name + " more than once", Hint: "give the groups of this project different names"})
		case isLogin || known(g.Name):
			invalid(&sft.Error{Code: sft.Invalid, Msg: "group " + g.Name + " has the name of an account", Hint: "choose another server_group_name"})
		case g.GID < minID || g.GID > maxID || nobody(g.GID):
			invalid(&sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("group %s cannot have gid %d", g.Name, g.GID), Hint: fmt.Sprintf("choose a gid of at least %d that the system does not use", minID)})
		case there.Name != "" && !ours(g.Name):
			conflict(ClashName, "group "+g.Name+" of this host was not made by sftd")
		case there.Name != "" && there.GID != g.GID:
			conflict(ClashGID, fmt.Sprintf("group %s has gid %d here, and the platform says %d", g.Name, there.GID, g.GID))
		case taken && other != g.Name:
			conflict(ClashGID, fmt.Sprintf("gid %d of group %s belongs to group %s here", g.GID, g.Name, other))
		case there.Name == "":
			s.do, s.change = create, Created
		}
		if s.do != refuse {
			gids[g.GID] = g.Name
		}
		s.members(there, ours(g.Name), known, may, r)
	}
	for name, gid := range rec {
		if _, wanted := times[name]; wanted {
			continue
		}
		s := &groupStep{Group: Group{name, gid}, do: forget}
		if ours(name) {
			s.do, s.change = remove, Removed
			s.members(have[name], true, known, nil, r)
			s.err = nil // who else is in it loses it with the group
		}
		steps = append(steps, s)
	}
	slices.SortStableFunc(steps, func(a, b *groupStep) int { return cmp.Compare(a.Name, b.Name) })
	return steps
}

// members decides who goes into the group and who leaves it. In one that is
// refused, nobody of ours stays.
func (s *groupStep) members(there LocalGroup, ours bool, known func(string) bool, may map[string]bool, r Rights) {
	want := map[string]bool{}
	for login := range may {
		if s.do != refuse && slices.Contains(r.Of[login].Groups, s.Name) {
			want[login] = true
		}
	}
	var foreign []string
	if ours {
		s.have = there.Group
		for _, login := range there.Members {
			switch {
			case want[login]:
				delete(want, login)
			case known(login):
				s.drop = append(s.drop, login)
			default:
				foreign = append(foreign, login)
			}
		}
	}
	s.add = slices.Sorted(maps.Keys(want))
	slices.Sort(s.drop)
	if len(foreign) > 0 && s.err == nil {
		s.err = &sft.Error{Code: sft.Conflict, Msg: fmt.Sprintf("group %s, which sftd made, has members whose accounts it did not make: %s", s.Name, strings.Join(foreign[:min(len(foreign), 5)], ", ")),
			Hint: "take them out of it on this host, or leave them in if that is meant"}
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
