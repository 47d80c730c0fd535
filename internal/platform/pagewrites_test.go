package platform_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"sft"
	"sft/internal/api"
	"sft/internal/testenv"
)

// Who follows the links while others write has seen what was there all the time,
// and nothing twice.
func TestFollowingTheLinksWhileOthersWrite(t *testing.T) {
	testenv.Each(t, followingTheLinksWhileOthersWrite)
}

func followingTheLinksWhileOthersWrite(t *testing.T, e *testenv.Env) {
	const tokens = "/projects/" + testenv.Project + "/server_enrollment_tokens"
	var n atomic.Int64
	name := func() string { return fmt.Sprintf("%c%x", 'a'+rand.IntN(26), n.Add(1)) }
	do := func(method, path string, in, out any) error {
		return e.Service.Do(t.Context(), method, base+path, in, out)
	}
	e.Do("POST", "/groups", map[string]string{"name": "in"}, nil)
	type list struct {
		path   string
		add    func() (id string, err error) // or the name, where that is the key
		remove func(id string) error
		stay   []string
		come   []string
		writes atomic.Int64
	}
	lists := []*list{
		{path: "/groups", add: func() (string, error) {
			g := name()
			return g, do("POST", "/groups", map[string]string{"name": g}, nil)
		}, remove: func(g string) error { return do("DELETE", "/groups/"+g, nil, nil) }},
		{path: tokens, add: func() (string, error) {
			var v sft.EnrollmentToken
			err := do("POST", tokens, map[string]string{"description": "x"}, &v)
			return v.ID, err
		}, remove: func(id string) error { return do("DELETE", tokens+"/"+id, nil, nil) }},
		{path: "/groups/in/users", add: func() (string, error) {
			u := name()
			return u, errors.Join(do("POST", "/users", map[string]string{"name": u}, nil), do("POST", "/groups/in/users", map[string]string{"name": u}, nil))
		}, remove: func(u string) error { return do("DELETE", "/groups/in/users/"+u, nil, nil) }},
	}
	for _, l := range lists {
		for i := range 24 {
			id, err := l.add()
			if err != nil {
				t.Fatal(err)
			}
			if i%4 == 0 {
				l.come = append(l.come, id)
			} else {
				l.stay = append(l.stay, id)
			}
		}
	}
	// follow returns what a list shows, from its first page on.
	follow := func(l *list, descending bool) (all []string, err error) {
		next := fmt.Sprintf("%s%s%s?count=%d&descending=%t", e.URL, base, l.path, 1+rand.IntN(9), descending)
		for next != "" {
			r, err := http.NewRequestWithContext(t.Context(), "GET", next, nil)
			if err != nil {
				return nil, err
			}
			r.Header.Set("Authorization", "Bearer "+e.Service.Token)
			resp, err := e.HTTP().Do(r)
			if err != nil {
				return nil, err
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			var page api.List[struct{ ID, Name string }]
			if err = errors.Join(err, json.Unmarshal(b, &page)); err != nil || resp.StatusCode != 200 {
				return nil, fmt.Errorf("%s: %s %s, %v", next, resp.Status, b, err)
			}
			for _, v := range page.List {
				if v.Name == "" {
					v.Name = v.ID
				}
				all = append(all, v.Name)
			}
			next = ""
			for _, h := range resp.Header.Values("Link") {
				if m := linkRE.FindStringSubmatch(h); m != nil && m[2] == "next" {
					next = m[1]
				}
			}
		}
		return all, nil
	}
	ctx, done := context.WithCancel(t.Context())
	var writers, readers sync.WaitGroup
	for _, l := range lists {
		writers.Go(func() {
			for ctx.Err() == nil {
				i := rand.IntN(len(l.come))
				err := l.remove(l.come[i])
				if err == nil {
					l.come[i], err = l.add()
				}
				if err != nil {
					t.Error(err)
					return
				}
				l.writes.Add(1)
			}
		})
		readers.Go(func() {
			began := l.writes.Load()
			for round := 0; !t.Failed() && (round < 3 || l.writes.Load() < began+5); round++ {
				all, err := follow(l, round%2 == 1)
				if err != nil {
					t.Error(err)
					return
				}
				seen := map[string]int{}
				for _, key := range all {
					if seen[key]++; seen[key] > 1 {
						t.Errorf("%s: %s was seen %d times", l.path, key, seen[key])
					}
				}
				if !slices.ContainsFunc(l.stay, func(key string) bool { return seen[key] != 1 }) {
					continue
				}
				t.Errorf("%s: not all that was there all the time was seen: %q of %q", l.path, all, l.stay)
			}
		})
	}
	readers.Wait()
	done()
	writers.Wait()
}
