package store_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"sft"
	"sft/internal/api"
	"sft/internal/store"
)

// A paging is a list that is read page by page while it changes.
type paging struct {
	name   string
	add    func(*store.Tx) (id, key string, err error)
	remove func(*store.Tx, string) error
	page   func(*store.Tx, store.Page) ([]string, error)

	stay   map[string]bool // keys of what is there all the time
	come   []string        // ids of what comes and goes
	writes atomic.Int64
}

// Whatever others write at the same time, to this list and to all others: what
// was there all the time is on exactly one page, nothing is on two, and the
// order is kept.
func TestPagesWhileOthersWrite(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		list := pagings(s)
		for _, k := range list {
			k.stay = map[string]bool{}
			s.change(func(tx *store.Tx) error {
				for i := range 40 {
					id, key, err := k.add(tx)
					if err != nil {
						return fmt.Errorf("%s: %w", k.name, err)
					}
					if i%4 == 0 {
						k.come = append(k.come, id)
					} else {
						k.stay[key] = true
					}
				}
				return nil
			})
		}
		ctx, done := context.WithCancel(t.Context())
		var writers, readers sync.WaitGroup
		for _, k := range list {
			writers.Go(func() {
				for ctx.Err() == nil {
					i := rand.IntN(len(k.come))
					if err := s.try(func(tx *store.Tx) error {
						if err := k.remove(tx, k.come[i]); err != nil {
							return err
						}
						id, _, err := k.add(tx)
						k.come[i] = id
						return err
					}); err != nil {
						t.Errorf("%s: %v", k.name, err)
						return
					}
					k.writes.Add(1)
				}
			})
			readers.Go(func() {
				began := k.writes.Load()
				for round := 0; !t.Failed() && (round < 4 || k.writes.Load() < began+10); round++ {
					k.read(s, round%2 == 1)
				}
			})
		}
		readers.Wait()
		done()
		writers.Wait()
	})
}

// read goes through all pages.
func (k *paging) read(s *suite, descending bool) {
	p := store.Page{Descending: descending}
	var all []string
	for {
		p.Count = 1 + rand.IntN(9)
		var got []string
		if err := s.Read(context.Background(), func(tx *store.Tx) (err error) { got, err = k.page(tx, p); return err }); err != nil {
			s.Errorf("%s: %v", k.name, err)
			return
		}
		all = append(all, got...)
		if len(got) < p.Count {
			break
		}
		p.After = got[len(got)-1]
	}
	if descending {
		slices.Reverse(all)
	}
	seen := map[string]int{}
	for i, key := range all {
		if seen[key]++; i > 0 && key <= all[i-1] {
			s.Errorf("%s: %s comes after %s", k.name, key, all[i-1])
		}
	}
	for key := range k.stay {
		if seen[key] != 1 {
			s.Errorf("%s: %s was there all the time, and seen %d times", k.name, key, seen[key])
		}
	}
}

// pagings are the lists, each with what changes it. Ids are in no order, so that
// what comes may be before or behind the page that somebody is on.
func pagings(s *suite) []*paging {
	var n atomic.Int64
	team, pr, owner, in := s.team.ID, s.project("prod"), s.user("owner"), s.group("in")
	key := func() []byte { return fmt.Appendf(nil, "key %d", n.Add(1)) }
	name := func() string { return fmt.Sprintf("%c%x_-Z", 'a'+rand.IntN(26), n.Add(1)) }
	user := func(tx *store.Tx) (u store.UserRecord, err error) {
		u = store.UserRecord{TeamID: team}
		u.ID, u.Name, u.Type, u.Status, u.CreateAt = uuid.NewString(), name(), sft.Human, sft.StatusActive, t0
		if u.UID, u.GID, err = tx.NextIDs(team); err != nil {
			return u, err
		}
		u.Login = sft.Fold(u.Name)
		u.WindowsLogin, u.WindowsUID, u.WindowsGID = u.Login, u.UID, u.GID
		return u, tx.AddUser(u)
	}
	noUser := func(tx *store.Tx, id string) error {
		u, err := tx.UserByID(id)
		if err != nil {
			return err
		}
		u.Status = sft.StatusDeleted
		return tx.SaveUser(u)
	}
	return []*paging{
		{name: "groups", add: func(tx *store.Tx) (id, key string, err error) {
			g := store.GroupRecord{TeamID: team, Group: sft.Group{ID: uuid.NewString(), Name: name(), CreatedAt: t0}}
			return g.ID, sft.Fold(g.Name), tx.AddGroup(g)
		}, remove: func(tx *store.Tx, id string) error { return tx.RemoveGroup(id) }, page: func(tx *store.Tx, p store.Page) ([]string, error) {
			l, err := tx.GroupsByName(team, "", p)
			return inOrder(l, func(g store.GroupRecord) string { return sft.Fold(g.Name) }), err
		}},
		{name: "servers", add: func(tx *store.Tx) (id, k string, err error) {
			v := store.ServerRecord{ID: uuid.NewString(), TeamID: team, ProjectID: pr.ID, DeviceKey: key(), Facts: api.Facts{Hostname: name()}, RegisteredAt: t0}
			return v.ID, v.ID, tx.AddServer(v)
		}, remove: func(tx *store.Tx, id string) error { return tx.RemoveServer(id, t0) }, page: func(tx *store.Tx, p store.Page) ([]string, error) {
			l, err := tx.ServersByID(team, store.ServerFilter{}, p)
			return inOrder(l, func(v store.ServerRecord) string { return v.ID }), err
		}},
		{name: "users", add: func(tx *store.Tx) (id, key string, err error) {
			u, err := user(tx)
			return u.ID, sft.Fold(u.Name), err
		}, remove: noUser, page: func(tx *store.Tx, p store.Page) ([]string, error) {
			l, err := tx.UsersByName(team, store.UserFilter{NotDeleted: true}, p)
			return inOrder(l, func(u store.UserRecord) string { return sft.Fold(u.Name) }), err
		}},
		{name: "members", add: func(tx *store.Tx) (id, key string, err error) {
			u, err := user(tx)
			if err == nil {
				_, err = tx.AddMember(in.ID, u.ID)
			}
			return u.ID, u.ID, err
		}, remove: func(tx *store.Tx, id string) error {
			if err := tx.RemoveMember(in.ID, id); err != nil {
				return err
			}
			return noUser(tx, id)
		}, page: func(tx *store.Tx, p store.Page) ([]string, error) {
			l, err := tx.UsersByID(team, store.UserFilter{MemberOf: in.ID}, p)
			return inOrder(l, func(u store.UserRecord) string { return u.ID }), err
		}},
		{name: "clients", add: func(tx *store.Tx) (id, k string, err error) {
			c := store.ClientRecord{TeamID: team, UserID: owner.ID, DeviceKey: key()}
			c.ID, c.State, c.EnrolledAt = uuid.NewString(), sft.StateActive, t0
			return c.ID, c.ID, tx.AddClient(c)
		}, remove: func(tx *store.Tx, id string) error { return tx.RemoveClient(id, t0) }, page: func(tx *store.Tx, p store.Page) ([]string, error) {
			l, err := tx.ClientsByID(team, "", "", p)
			return inOrder(l, func(c store.ClientRecord) string { return c.ID }), err
		}},
		{name: "tokens", add: func(tx *store.Tx) (id, k string, err error) {
			v := store.TokenRecord{ProjectID: pr.ID, SecretHash: key(), EnrollmentToken: sft.EnrollmentToken{ID: uuid.NewString(), IssuedAt: t0}}
			return v.ID, v.ID, tx.AddToken(v)
		}, remove: func(tx *store.Tx, id string) error { return tx.RemoveToken(pr.ID, id) }, page: func(tx *store.Tx, p store.Page) ([]string, error) {
			l, err := tx.TokensByID(pr.ID, p)
			return inOrder(l, func(v store.TokenRecord) string { return v.ID }), err
		}},
		{name: "keys", add: func(tx *store.Tx) (id, k string, err error) {
			v := store.KeyRecord{UserID: owner.ID, SecretHash: key(), ServiceKey: sft.ServiceKey{ID: uuid.NewString(), IssuedAt: t0}}
			return v.ID, v.ID, tx.AddKey(v)
		}, remove: func(tx *store.Tx, id string) error { return tx.RemoveKey(owner.ID, id) }, page: func(tx *store.Tx, p store.Page) ([]string, error) {
			l, err := tx.KeysByID(owner.ID, p)
			return inOrder(l, func(v store.KeyRecord) string { return v.ID }), err
		}},
		{name: "preauthorizations", add: func(tx *store.Tx) (id, key string, err error) {
			v := store.PreauthRecord{TeamID: team, UserID: owner.ID, ProjectIDs: []string{pr.ID}}
			v.ID, v.StartsAt, v.ExpiresAt, v.CreatedAt = uuid.NewString(), t0, t0.Add(time.Hour), t0
			return v.ID, v.ID, tx.AddPreauth(v)
		}, remove: func(tx *store.Tx, id string) error {
			v, err := tx.Preauth(pr.ID, id)
			if err != nil {
				return err
			}
			v.ExpiresAt = t0 // those that have ended are not asked for
			return tx.SavePreauth(v)
		}, page: func(tx *store.Tx, p store.Page) ([]string, error) {
			l, err := tx.PreauthsByID(pr.ID, t0, p)
			return inOrder(l, func(v store.PreauthRecord) string { return v.ID }), err
		}},
	}
}
