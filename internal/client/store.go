package client

import (
	"encoding/json"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"sft"
	"sft/internal/conf"
)

// An Account is one enrolment of this machine: a person in a team, or, with
// the kind Service, a service user that this host's agent vouches for.
type Account struct {
	Kind     string `json:"kind,omitempty"` // Service, or empty
	Team     string `json:"team"`
	User     string `json:"user"`
	ClientID string `json:"client_id"`
	URL      string `json:"url"`          // what requests are sent to
	Audience string `json:"audience"`     // what they are signed for
	CA       []byte `json:"ca,omitempty"` // DER; empty trusts what the system trusts
	Default  bool   `json:"default,omitempty"`
	// SignedInUntil is what the platform last said. It is for people to
	// read; the platform decides.
	SignedInUntil time.Time `json:"signed_in_until"`
	// ClockOffset is what must be added to the machine's clock, in
	// milliseconds, as the platform last said.
	ClockOffset int64 `json:"clock_offset_ms,omitempty"`
	// InKeyring says that the device key is in the system's key store, not
	// in a file.
	InKeyring bool `json:"in_keyring,omitempty"`
}

// anew is what to do about an account that is no longer good.
func (a Account) anew() string {
	if a.Kind == Service {
		return "try again; if it stays so, ask an administrator of team " + a.Team + " whether the service user is still bound to this account"
	}
	return "run \"sft enroll --force --url " + a.URL + " --team " + a.Team + "\""
}

// state is the whole of state.json. There is no secret in it.
type state struct {
	Accounts []Account `json:"accounts"`
}

// A Store keeps the accounts of one person on one machine. Several processes
// may use it at once: it is read and written whole.
type Store struct {
	dir  string
	keys keys
}

// OpenStore opens the store in dir, which it makes. It refuses a folder that
// belongs to somebody else. getenv is os.Getenv.
func OpenStore(dir string, ring Ring, getenv func(string) string) (*Store, error) {
	switch ring {
	case AnyRing:
		if !ringLikely(getenv) {
			ring = FileRing
		}
	case FileRing, SystemRing:
	default:
		return nil, &sft.Error{Code: sft.Invalid, Msg: "SFT_KEYRING is " + sft.Quote(string(ring)), Hint: "set it to compat or system, or not at all"}
	}
	if err := conf.PrivateDir(dir); err != nil {
		return nil, err
	}
	return &Store{dir: dir, keys: keys{dir: dir, ring: ring}}, nil
}

func (s *Store) path() string { return filepath.Join(s.dir, "state.json") }

// Accounts returns the accounts, in the order of enrolment.
func (s *Store) Accounts() ([]Account, error) {
	st, err := s.read()
	return st.Accounts, err
}

func (s *Store) read() (state, error) {
	var st state
	b, err := conf.ReadPrivate(s.path())
	if errors.Is(err, fs.ErrNotExist) {
		return st, nil
	}
	if err != nil {
		return st, err
	}
	if err = json.Unmarshal(b, &st); err == nil {
		err = st.check()
	}
	if err != nil {
		return state{}, &sft.Error{Code: sft.Invalid, Msg: s.path() + " is not readable: " + err.Error(), Err: err,
			Hint: "move it away and enrol again"}
	}
	return st, nil
}

// check refuses what would be put into a path or shown as it is.
func (st state) check() error {
	for _, a := range st.Accounts {
		for _, n := range []struct{ kind, name string }{{"team", a.Team}, {"user", a.User}, {"client", a.ClientID}} {
			if err := sft.CheckName(n.kind, n.name); err != nil {
				return err
			}
		}
	}
	return nil
}

// update changes the accounts while no other process can.
func (s *Store) update(change func(*[]Account) error) error {
	l, err := conf.LockFile(filepath.Join(s.dir, "state.lock"))
	if err != nil {
		return err
	}
	defer l.Release()
	st, err := s.read()
	if err != nil {
		return err
	}
	if err := change(&st.Accounts); err != nil {
		return err
	}
	b, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		return err
	}
	return conf.WriteSecret(s.path(), append(b, '\n'))
}

// Find returns the person's account in team, or, if that is empty, the default
// one.
func (s *Store) Find(team string) (Account, error) {
	all, err := s.Accounts()
	if err != nil {
		return Account{}, err
	}
	all = people(all)
	for _, a := range all {
		if team == "" && (a.Default || len(all) == 1) || team != "" && (sft.Fold(a.Team) == sft.Fold(team) || a.ClientID == team) {
			return a, nil
		}
	}
	switch {
	case len(all) == 0:
		return Account{}, &sft.Error{Code: sft.SignIn, Msg: "this device is not enrolled",
			Hint: "run \"sft enroll --url URL\" with the line that your platform's administrator gave you"}
	case team == "":
		return Account{}, &sft.Error{Code: sft.SignIn, Msg: "this device is enrolled in several teams, and none is the default",
			Hint: "choose one with \"sft use TEAM\" or --team"}
	}
	return Account{}, &sft.Error{Code: sft.SignIn, Msg: "this device is not enrolled in team " + sft.Quote(team),
		Hint: "run \"sft list-accounts\" to see where it is, or \"sft enroll\""}
}

// Use makes the account in team the default one.
func (s *Store) Use(team string) (Account, error) {
	a, err := s.Find(team)
	if err != nil {
		return Account{}, err
	}
	a.Default = true
	return a, s.put(a)
}

// put stores a in place of the account with its client id, or as a new one. A
// default account ends the others' being it.
func (s *Store) put(a Account) error {
	return s.update(func(all *[]Account) error {
		i := slices.IndexFunc(*all, func(o Account) bool { return o.ClientID == a.ClientID })
		if i < 0 {
			*all = append(*all, a)
			i = len(*all) - 1
		}
		(*all)[i] = a
		if a.Default {
			for j := range *all {
				(*all)[j].Default = j == i
			}
		}
		return nil
	})
}

// remove forgets an account and its device key. If it was the default, the
// first of the others becomes it.
func (s *Store) remove(a Account) error {
	err := s.update(func(all *[]Account) error {
		*all = slices.DeleteFunc(*all, func(o Account) bool { return o.ClientID == a.ClientID })
		if i := slices.IndexFunc(*all, func(o Account) bool { return o.Kind != Service }); a.Default && i >= 0 && !slices.ContainsFunc(*all, func(o Account) bool { return o.Default }) {
			(*all)[i].Default = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.keys.remove(a)
}
