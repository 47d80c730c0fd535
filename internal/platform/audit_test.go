package platform_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/store"
	"sft/internal/testenv"
)

// The audit is searched by type, user, target and time, and bad questions are
// refused.
func TestSearchingTheAudit(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		began := time.Now()
		sealAll(t, e.Platform) // and no key is made while it is read
		e.User("ann")
		e.Client("ann")
		search := func(q url.Values) ([]audit.Event, error) {
			var list api.List[audit.Event]
			err := e.Service.Do(t.Context(), "GET", base+"/auditsV2?"+q.Encode(), nil, &list)
			return list.List, err
		}
		all := e.Events()
		for _, tt := range []struct {
			name string
			q    url.Values
			want func(audit.Event) bool
		}{
			{"everything", url.Values{}, func(audit.Event) bool { return true }},
			{"a type", url.Values{"type": {"user.create"}}, func(v audit.Event) bool { return v.Kind == audit.UserCreate }},
			{"a user", url.Values{"user": {"ANN"}}, func(v audit.Event) bool { return v.Actor.Name == "ann" }},
			{"a target", url.Values{"target": {"Olive"}}, func(v audit.Event) bool { return v.Target == "olive" }},
			{"both", url.Values{"target": {"ann"}, "type": {"user.create"}}, func(v audit.Event) bool { return v.Target == "ann" && v.Kind == audit.UserCreate }},
			{"since then", url.Values{"from": {began.Add(-time.Hour).Format(time.RFC3339Nano)}, "to": {began.Add(time.Hour).Format(time.RFC3339)}}, func(audit.Event) bool { return true }},
			{"before that", url.Values{"to": {"2026-01-01T00:00:00+01:00"}}, func(audit.Event) bool { return false }},
			{"what cannot be", url.Values{"user": {"a\x00b"}}, func(audit.Event) bool { return false }},
		} {
			var want []string
			for _, v := range all {
				if tt.want(v) {
					want = append(want, v.ID)
				}
			}
			got, err := search(tt.q)
			if err != nil || len(got) != len(want) {
				t.Errorf("%s: %s, %v, want %d of %s", tt.name, told(got), err, len(want), told(all))
				continue
			}
			for i := range got {
				if got[i].ID != want[i] {
					t.Errorf("%s: the order is another", tt.name)
				}
			}
		}
		for _, q := range []url.Values{{"from": {"yesterday"}}, {"to": {"2026-01-01"}}, {"offset": {"17"}}, {"offset": {"' OR 1=1"}},
			{"descending": {"maybe"}}, {"type": {"group.crate"}}, {"type": {"Group.create"}}, {"prev": {"true"}}, {"from": {"2026-02-01T00:00:00Z"}, "to": {"2026-01-01T00:00:00Z"}}} {
			_, err := search(q)
			wantCode(t, q.Encode(), err, sft.Invalid)
		}
		for asked, near := range map[string]string{"group.crate": "group.create", "apikey.rotat": "apikey.rotate", "x": "ca.drop", "server.sshlogin": "server.ssh_login"} {
			_, err := search(url.Values{"type": {asked}})
			if want := "use one that there is, as " + near; err == nil || !strings.HasSuffix(sft.Explain(err), want) {
				t.Errorf("the type %s: %v, want the hint %s", asked, err, want)
			}
		}
		for _, yes := range []string{"1", "true", "T"} {
			got, err := search(url.Values{"descending": {yes}, "count": {"1"}})
			if newest := all[len(all)-1].ID; err != nil || len(got) != 1 || got[0].ID < newest {
				t.Errorf("descending=%s: %s, %v, want what is not before %s", yes, told(got), err, newest)
			}
		}
	})
}

// Whoever follows the events page by page is given each once, in whatever order
// they become visible, and at the end all of them.
func TestFollowingTheAuditMissesNothing(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		began := time.Now().Add(-time.Hour).Format(time.RFC3339)
		other := secondPlatform(t, e) // which stores, too, and seals
		run(t, other)
		done := make(chan struct{})
		follow := func(q url.Values) (ids []string, err error) {
			for ended := false; ; {
				var page api.List[audit.Event]
				if err := e.Service.Do(t.Context(), "GET", base+"/auditsV2?"+q.Encode(), nil, &page); err != nil {
					return ids, err
				}
				for _, v := range page.List {
					ids = append(ids, v.ID)
					q.Set("offset", v.ID)
				}
				if len(page.List) > 0 {
					continue
				}
				if ended {
					return ids, nil
				}
				select {
				case <-done:
					ended = true
				case <-time.After(time.Millisecond):
				}
			}
		}
		readers := []struct {
			q    url.Values
			want func(audit.Event) bool
			got  []string
		}{
			{q: url.Values{"count": {"3"}}, want: func(audit.Event) bool { return true }},
			{q: url.Values{"count": {"1000"}, "from": {began}}, want: func(audit.Event) bool { return true }},
			{q: url.Values{"count": {"2"}, "user": {"late"}}, want: func(v audit.Event) bool { return v.Actor.Name == "late" }},
			{q: url.Values{"type": {"user.update"}, "target": {"t1"}}, want: func(v audit.Event) bool { return v.Kind == audit.UserUpdate && v.Target == "t1" }},
		}
		var writing, reading sync.WaitGroup
		for i := range readers {
			reading.Go(func() {
				var err error
				if readers[i].got, err = follow(readers[i].q); err != nil {
					t.Error(err)
				}
			})
		}
		for w := range 6 {
			db := []*store.DB{e.DB, other.DB}[w%2]
			writing.Go(func() {
				for i := range 25 {
					v := someEvent()
					v.Actor.Name, v.Target = []string{"late", "ann"}[i%2], fmt.Sprint("t", i%3)
					time.Sleep(rand.N(4 * time.Millisecond)) // it has its id, and is stored later
					err := db.Add(context.Background(), func(tx *store.Tx) (audit.Event, error) {
						time.Sleep(rand.N(4 * time.Millisecond))
						return v, nil
					})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		writing.Wait()
		close(done)
		reading.Wait()
		all := e.Events()
		late := 0
		var order []audit.Record
		if err := e.DB.Read(t.Context(), func(tx *store.Tx) (err error) { order, err = tx.Records(1, int64(len(all))); return err }); err != nil {
			t.Fatal(err)
		}
		for i := range order[1:] {
			if order[i+1].ID < order[i].ID {
				late++
			}
		}
		if late == 0 {
			t.Error("no event became visible after a later one: nothing was tried")
		}
		for _, r := range readers {
			var want []string
			for _, v := range all {
				if r.want(v) {
					want = append(want, v.ID)
				}
			}
			got := slices.Sorted(slices.Values(r.got))
			if !slices.Equal(got, want) {
				t.Errorf("%v: of %d events %d came, %d of them different", r.q, len(want), len(got), len(slices.Compact(got)))
			}
			if !strings.Contains(r.q.Encode(), "type") && len(want) < 50 {
				t.Errorf("%v: there are %d events", r.q, len(want))
			}
		}
	})
}
