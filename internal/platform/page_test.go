package platform_test

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sft"
	"sft/internal/api"
	"sft/internal/platform"
	"sft/internal/testenv"
)

var linkRE = regexp.MustCompile(`<(https://[^>]+)>; rel="(\w+)"`)

// turn gets a page, and where the pages around it are.
func turn(t *testing.T, e *testenv.Env, path string) (names []string, links map[string]string) {
	t.Helper()
	var l api.List[struct{ Name, Hostname string }]
	e.Do("GET", path, nil, &l)
	for _, v := range l.List {
		names = append(names, v.Name+v.Hostname)
	}
	_, header := raw(t, e, "GET", path, "")
	links = map[string]string{}
	for _, v := range header.Values("Link") {
		m := linkRE.FindStringSubmatch(v)
		if m == nil || !strings.HasPrefix(m[1], e.URL+base) {
			t.Fatalf("the Link is %q", v)
		}
		links[m[2]] = strings.TrimPrefix(m[1], e.URL+base)
	}
	return names, links
}

// Who follows the links to the end has seen all, in order, and comes back the
// same way.
func TestFollowingTheLinks(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		var want []string
		for i := range 23 {
			name := fmt.Sprintf("G%02d", (i*7)%23)
			e.Do("POST", "/groups", map[string]string{"name": name}, nil)
			want = append(want, name)
		}
		slices.Sort(want)
		for _, path := range []string{"/groups?contains=g&count=", "/groups?descending=true&contains=G&count="} {
			for count := 1; count < 25; count += 5 {
				var pages [][]string
				next, last := fmt.Sprint(path, count), ""
				for next != "" {
					last = next
					names, links := turn(t, e, next)
					if len(names) > count || (links["prev"] == "") != (len(pages) == 0) {
						t.Fatalf("%s has %q and %q", next, names, links)
					}
					pages, next = append(pages, names), links["next"]
				}
				all := slices.Concat(pages...)
				if slices.Sort(all); !slices.Equal(all, want) {
					t.Errorf("%s%d: the pages are %q", path, count, pages)
				}
				if first := pages[0][0]; (first == want[0]) == strings.Contains(path, "descending") {
					t.Errorf("%s%d begins with %s", path, count, first)
				}
				for prev := last; len(pages) > 0; pages = pages[:len(pages)-1] {
					names, links := turn(t, e, prev)
					// The last page began where it did, or is filled up from before.
					if got := pages[len(pages)-1]; !slices.Equal(names, got) {
						t.Errorf("%s: back on %q, want %q", prev, names, got)
					}
					prev = links["prev"]
				}
			}
		}
		for _, bad := range []string{"count=-1", "count=1001", "count=x", "descending=maybe", "prev=1", "prev=true"} {
			if status, _ := raw(t, e, "GET", "/groups?"+bad, ""); status != 400 {
				t.Errorf("%s: %d", bad, status)
			}
		}
		if names, links := turn(t, e, "/groups?offset=zzz"); len(names) != 0 || len(links) != 0 {
			t.Errorf("behind the end are %q and %q", names, links)
		}
		if names, _ := turn(t, e, "/groups?offset="+url.QueryEscape("G2\x00")); len(names) != 0 {
			t.Errorf("behind what no record has are %q", names)
		}
	})
}

// Each filter of the servers says what it says.
func TestServerFilters(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Project("lab")
		facts := func(host string, change func(*api.Facts)) api.Facts {
			f := testenv.Facts(host)
			if change != nil {
				change(&f)
			}
			return f
		}
		e.Server(testenv.Project, facts("old", nil))
		e.Clock.Advance(sft.ActiveFor)
		e.Service = e.Bearer(e.Init.Key.ID, e.Init.Key.Secret) // the token's hour is over
		e.Server(testenv.Project, facts("web01", func(f *api.Facts) { f.CanonicalName, f.AltNames = "www", []string{"intranet", "wiki.local"} }))
		e.Server("lab", facts("Web02", func(f *api.Facts) { f.Bastion = "jump" }))
		e.Do("POST", "/projects/lab/unmanaged_servers", map[string]any{"hostname": "jump"}, nil)
		for query, want := range map[string][]string{
			"":                                 {"old", "web01", "Web02", "jump"},
			"?state=ACTIVE":                    {"web01", "Web02", "jump"},
			"?state=INACTIVE":                  {"old"},
			"?project_name=LAB":                {"Web02", "jump"},
			"?hostname=WEB02":                  {"Web02"},
			"?hostname=web":                    nil,
			"?canonical_name=WWW":              {"web01"},
			"?bastion=Jump":                    {"Web02"},
			"?alt_names_contains=wiki":         {"web01"},
			"?alt_names_contains=wik":          nil,
			"?cloud_provider=aws":              nil,
			"?hostname=web01&project_name=lab": nil,
			"?state=ACTIVE&count=1":            {"web01"},
			"?bastion=jump&count=1":            {"Web02"},
		} {
			if got, _ := turn(t, e, "/servers"+query); !slices.Equal(got, want) {
				t.Errorf("%s: %q, want %q", query, got, want)
			}
		}
		for query, want := range map[string]int{"?state=DELETED": 400, "?state=x": 400, "?project_name=nothing": 404} {
			if status, _ := raw(t, e, "GET", "/servers"+query, ""); status != want {
				t.Errorf("%s: %d, want %d", query, status, want)
			}
		}
	})
}

func TestUserAndGroupFilters(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		for _, name := range []string{"zed", "ann", "annika", "bob"} {
			e.User(name)
		}
		e.Do("POST", "/groups", map[string]string{"name": "dev"}, nil)
		for _, name := range []string{"zed", "ann", "bob", testenv.ServiceUser} {
			e.Do("POST", "/groups/dev/users", map[string]string{"name": name}, nil)
		}
		e.Do("PUT", "/users/bob", map[string]string{"status": "DISABLED"}, nil)
		e.Do("PUT", "/users/annika", map[string]string{"status": "DELETED"}, nil)
		for path, want := range map[string][]string{
			"/users":                                                      {"ann", "annika", "bob", testenv.Owner, "zed"},
			"/users?starts_with=AN&status=ACTIVE":                         {"ann"},
			"/users?contains=o&status=DISABLED":                           {"bob"},
			"/users?user_type=service":                                    {"ann", "annika", "bob", testenv.Owner, "zed"},
			"/service_users":                                              {testenv.ServiceUser},
			"/groups/dev/users":                                           {testenv.ServiceUser, "zed", "ann", "bob"},
			"/groups/dev/users?user_type=human&status=ACTIVE":             {"zed", "ann"},
			"/groups/dev/users_not_in_group":                              {testenv.Owner},
			"/groups/owners/users_not_in_group":                           {"zed", "ann", "bob"},
			"/groups/owners/users_not_in_group?status=DISABLED":           {"bob"},
			"/groups/everyone/users_not_in_group":                         nil,
			"/groups/Everyone/users_not_in_group?include_service_users=1": nil,
			"/groups/everyone/users?user_type=human":                      {testenv.Owner, "zed", "ann", "bob"},
			"/groups/everyone/users?contains=n&user_type=human":           {"ann"},
			"/users/ann/groups":                                           {"dev", "everyone"},
			"/users/" + testenv.ServiceUser + "/groups":                   {"automation", "dev", "everyone"},
			"/groups?contains=WN":                                         {"owners"},
			"/groups/dev/users_not_in_group?user_type=service":            nil,
			"/users/" + testenv.ServiceUser + "/groups?offset=AUTOmation": {"dev", "everyone"},
		} {
			if got, _ := turn(t, e, path); !slices.Equal(got, want) {
				t.Errorf("%s: %q, want %q", path, got, want)
			}
		}
		for path, want := range map[string]int{"/users?status=x": 400, "/groups/dev/users?user_type=robot": 400, "/groups/everyone/users_not_in_group?include_service_users=x": 400, "/users/no/groups": 404} {
			if status, _ := raw(t, e, "GET", path, ""); status != want {
				t.Errorf("%s: %d, want %d", path, status, want)
			}
		}
		var s platform.TeamStats
		e.Do("GET", "/team_stats", nil, &s)
		if want := (platform.TeamStats{Groups: 4, HumanUsers: 4, Projects: 1, ServiceUsers: 1}); s != want {
			t.Errorf("the numbers are %+v, want %+v", s, want)
		}
	})
}
