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
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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
	const project = "/projects/" + testenv.Project
	var n atomic.Int64
	name := func() string { return fmt.Sprintf("%c%x", 'a'+rand.IntN(26), n.Add(1)) }
	do := func(method, path string, in, out any) error {
		return e.Service.Do(t.Context(), method, base+path, in, out)
	}
	// made is the id of what a request makes.
	made := func(path string, in any) (string, error) {
		var v struct{ ID string }
		err := do("POST", path, in, &v)
		return v.ID, err
	}
	e.Do("POST", "/groups", map[string]string{"name": "in"}, nil)
	e.Do("POST", "/service_users", map[string]string{"name": "bot"}, nil)
	server := e.Server(testenv.Project, testenv.Facts("web01"))
	type list struct {
		path   string
		add    func() (id string, err error) // or the name, where things are removed by that
		byName bool
		stay   []string
		come   []string
		writes atomic.Int64
	}
	lists := []*list{
		{path: "/groups", byName: true, add: func() (string, error) {
			g := name()
			return g, do("POST", "/groups", map[string]string{"name": g}, nil)
		}},
		{path: "/groups/in/users", byName: true, add: func() (string, error) {
			u := name()
			return u, errors.Join(do("POST", "/users", map[string]string{"name": u}, nil), do("POST", "/groups/in/users", map[string]string{"name": u}, nil))
		}},
		{path: "/projects", byName: true, add: func() (string, error) {
			pr := name()
			return pr, do("POST", "/projects", map[string]string{"name": pr}, nil)
		}},
		{path: project + "/groups", byName: true, add: func() (string, error) {
			g := name()
			return g, errors.Join(do("POST", "/groups", map[string]string{"name": g}, nil), do("POST", project+"/groups", map[string]string{"name": g}, nil))
		}},
		{path: project + "/server_enrollment_tokens", add: func() (string, error) {
			return made(project+"/server_enrollment_tokens", map[string]string{"description": "x"})
		}},
		{path: project + "/cloud_accounts", add: func() (string, error) {
			return made(project+"/cloud_accounts", map[string]string{"provider": "aws", "account_id": fmt.Sprintf("%012d", n.Add(1))})
		}},
		{path: "/entitlements/sudo", add: func() (string, error) {
			return made("/entitlements/sudo", sft.SudoEntitlement{Name: name(), NoPasswd: true, Commands: []sft.SudoCommand{{Command: "/bin/ls", Type: sft.SudoExecutable}}})
		}},
		{path: "/service_users/bot/bindings", add: func() (string, error) {
			return made("/service_users/bot/bindings", map[string]string{"server": server.ID, "account": name()})
		}},
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
				if l.byName {
					v.ID = v.Name
				}
				all = append(all, v.ID)
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
	var all sync.WaitGroup
	for _, l := range lists {
		ctx, done := context.WithCancel(t.Context()) // each is written to as long as it is read
		all.Go(func() {
			for ctx.Err() == nil {
				i := rand.IntN(len(l.come))
				err := do("DELETE", l.path+"/"+l.come[i], nil, nil)
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
		all.Go(func() {
			defer done()
			began := l.writes.Load()
			for round := 0; !t.Failed() && (round < 3 || l.writes.Load() < began+5); round++ {
				all, err := follow(l, round%2 == 1)
				if err != nil && strings.Contains(err.Error(), "429 Too Many Requests") {
					time.Sleep(time.Second) // as the platform says
					continue
				}
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
	all.Wait()
}
