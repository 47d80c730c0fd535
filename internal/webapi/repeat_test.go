package webapi_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sft/internal/testenv"
	"sft/internal/webapi"
)

// withKey sends a request with an Idempotency-Key.
func withKey(t *testing.T, e *testenv.Env, as caller, method, path, key string, body []byte) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, e.URL+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if r.Header.Set("Idempotency-Key", key); len(body) > 0 {
		r.Header.Set("Content-Type", "application/json")
	}
	r.Header.Set("Authorization", as(method, r.URL.RequestURI(), body))
	resp, err := e.HTTP().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	isDescribed(t, method, path, resp.StatusCode, resp.Header, b)
	return resp.StatusCode, string(b)
}

// Whatever makes something makes one of it, however often it is sent with the
// same Idempotency-Key, and answers as it did at first; a secret it shows once.
func TestSentAgainWithItsKey(t *testing.T) { testenv.Each(t, sentAgainWithItsKey) }

func sentAgainWithItsKey(t *testing.T, e *testenv.Env) {
	as, m := cast(t, e)
	secret := map[string]string{
		"POST /v1/teams/{team}/users":                                       "make another link",
		"POST /v1/teams/{team}/users/{user}/first_use":                      "make another link",
		"POST /v1/teams/{team}/service_users/{user}/keys":                   "delete it and make another",
		"POST /v1/teams/{team}/projects/{project}/server_enrollment_tokens": "delete it and make another",
	}
	made := 0
	for _, r := range webapi.Rows(e.Platform) {
		pattern := r.Method + " " + r.Path
		params, _ := described().operation(r.Method, r.Path)["parameters"].([]any)
		has := slices.ContainsFunc(params, func(p any) bool { return p.(object)["name"] == "Idempotency-Key" })
		if want := r.Method == "POST" && r.Access == "person" && matrix[pattern].want[admin] == 201; has != want {
			t.Errorf("%s takes an Idempotency-Key, by the document: %v, want %v", pattern, has, want)
		}
		if !has {
			continue
		}
		made++
		path, body, key := m.path(r.Path), m.body(matrix[pattern].body), "key-"+pattern[len(pattern)-10:]+fmt.Sprint(made)
		key = strings.ReplaceAll(key, " ", "_")
		events := len(e.Events())
		status, first := withKey(t, e, as[robot], r.Method, path, key, body)
		if status != 201 {
			t.Errorf("%s: %d %s", pattern, status, first)
			continue
		}
		some := len(e.Events())
		if some == events {
			t.Errorf("%s left no event", pattern)
		}
		status, again := withKey(t, e, as[robot], r.Method, path, key, body)
		if then := secret[pattern]; then != "" {
			var v struct {
				ID    string
				Error struct{ ID, Code, Message, Hint string }
			}
			if err := json.Unmarshal([]byte(first), &v); err != nil {
				t.Fatal(err)
			}
			id := v.ID
			if err := json.Unmarshal([]byte(again), &v); err != nil || status != 409 || v.Error.Code != "resource_already_exists" || v.Error.ID != id || id == "" ||
				!strings.Contains(v.Error.Message, id) || !strings.Contains(v.Error.Hint, "its secret was shown once: "+then) {
				t.Errorf("%s once more: %d %s, first it was %s", pattern, status, again, first)
			}
		} else if status != 201 || again != first {
			t.Errorf("%s once more: %d %s, first it was %s", pattern, status, again, first)
		}
		for what, got := range map[string]func() (int, string){
			"another body": func() (int, string) {
				return withKey(t, e, as[robot], r.Method, path, key, append(bytes.Clone(body), "\n"...))
			},
			"another route": func() (int, string) {
				return withKey(t, e, as[robot], "POST", base+"/groups", key, []byte(`{"name":"other"}`))
			},
		} {
			if status, got := got(); status != 422 || !strings.Contains(got, "idempotency_key_reused") || !strings.Contains(got, path) {
				t.Errorf("%s with the key and %s: %d %s", pattern, what, status, got)
			}
		}
		if got := len(e.Events()); got != some {
			t.Errorf("%s sent again left %d events", pattern, got-some)
		}
	}
	if made < 15 {
		t.Errorf("%d routes make something", made)
	}
}

// Ten at once make one.
func TestSentAtOnceWithItsKey(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		as, _ := cast(t, e)
		tokens := func() int {
			var l struct{ List []object }
			e.Do("GET", "/projects/prod/server_enrollment_tokens", nil, &l)
			return len(l.List)
		}
		before := tokens()
		var wg sync.WaitGroup
		var mu sync.Mutex
		got := map[int]int{}
		for range 10 {
			wg.Go(func() {
				status, _ := withKey(t, e, as[robot], "POST", base+"/projects/prod/server_enrollment_tokens", "one", []byte(`{"max_uses":1}`))
				mu.Lock()
				defer mu.Unlock()
				got[status]++
			})
		}
		wg.Wait()
		if n := tokens() - before; n != 1 || got[201] != 1 || got[409] != 9 {
			t.Errorf("%d tokens were made, with the answers %v", n, got)
		}
	})
}

// A key is its caller's own, is used up by what was carried out alone, for a
// day, and opens nothing to who may no longer ask.
func TestWhatAnIdempotencyKeyIs(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		as, m := cast(t, e)
		const path = base + "/projects/prod/preauthorizations"
		body := m.body(`{"user_name":"$U","expires_at":"2027-01-01T00:00:00Z"}`)
		if status, got := withKey(t, e, as[robot], "POST", path, "k", []byte(`{"user_name":"nobody","expires_at":"2027-01-01T00:00:00Z"}`)); status != 404 {
			t.Errorf("for nobody: %d %s", status, got)
		}
		status, first := withKey(t, e, as[robot], "POST", path, "k", body)
		if status != 201 {
			t.Fatalf("after a refusal: %d %s", status, first)
		}
		if status, got := withKey(t, e, as[admin], "POST", path, "k", body); status != 201 || got == first {
			t.Errorf("by another caller: %d %s", status, got)
		}
		for _, key := range []string{"", "a b", "\xff", strings.Repeat("x", 256)} {
			if status, got := withKey(t, e, as[robot], "POST", path, key, body); status != 400 || !strings.Contains(got, "1 to 255 visible characters") {
				t.Errorf("with the key %q: %d %s", key, status, got)
			}
		}
		if status, got := withKey(t, e, as[robot], "PUT", base+"/settings", "k", []byte(`{"allow_device_code":true}`)); status != 204 {
			t.Errorf("a PUT with the key: %d %s", status, got)
		}
		e.Do("POST", "/groups", map[string]any{"name": "gate", "roles": []string{"preauthorization"}}, nil)
		e.Do("POST", "/groups/gate/users", map[string]string{"name": "plain"}, nil)
		if status, got := withKey(t, e, as[plain], "POST", path, "p", body); status != 201 {
			t.Errorf("by one with the role: %d %s", status, got)
		}
		e.Do("DELETE", "/groups/gate/users/plain", nil, nil)
		if status, got := withKey(t, e, as[plain], "POST", path, "p", body); status != 403 {
			t.Errorf("by one who has lost the role: %d %s", status, got)
		}
		e.Clock.Advance(25 * time.Hour)
		e.Platform.Housekeep(t.Context(), time.Minute)
		token := e.Bearer(e.Init.Key.ID, e.Init.Key.Secret)
		later := func(string, string, []byte) string { return "Bearer " + token.Token }
		if status, got := withKey(t, e, later, "POST", path, "k", body); status != 201 || got == first {
			t.Errorf("after a day: %d %s", status, got)
		}
	})
}

// What changed nothing, since it was so already, is not carried out later
// either: somebody else may have changed it meanwhile.
func TestSentAgainAfterItWasSo(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		as, _ := cast(t, e)
		const path = base + "/projects/prod/client_config_options"
		option := func(value string) []byte {
			return []byte(`{"config_key":"ssh.port_forward_method","config_value":"` + value + `"}`)
		}
		e.Do("POST", "/projects/prod/client_config_options", json.RawMessage(option("netcat")), nil)
		events := len(e.Events())
		first, got := withKey(t, e, as[robot], "POST", path, "k", option("netcat"))
		if first != 201 || len(e.Events()) != events {
			t.Fatalf("what is so already: %d %s, %d events", first, got, len(e.Events())-events)
		}
		e.Do("POST", "/projects/prod/client_config_options", json.RawMessage(option("native")), nil)
		if status, again := withKey(t, e, as[robot], "POST", path, "k", option("netcat")); status != 201 || again != got {
			t.Errorf("sent again: %d %s, first it was %s", status, again, got)
		}
		var now struct {
			Value string `json:"config_value"`
		}
		if e.Do("GET", "/projects/prod/client_config_options/ssh.port_forward_method", nil, &now); now.Value != "native" {
			t.Errorf("what was sent again has made %q of it", now.Value)
		}
		if status, got := withKey(t, e, as[robot], "POST", base+"/groups", "k", []byte(`{"name":"x"}`)); status != 422 {
			t.Errorf("the key with another route: %d %s", status, got)
		}
		// At once: the first that is kept is what all are answered with.
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if status, got := withKey(t, e, as[robot], "POST", path, "k2", option("native")); status != 201 {
					t.Errorf("at once with others: %d %s", status, got)
				}
			})
		}
		wg.Wait()
	})
}

// Whose name is taken is told the id of what has it.
func TestNamesThatAreTaken(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		as, m := cast(t, e)
		for pattern, field := range map[string]string{
			"/users": "id", "/service_users": "id", "/groups": "id", "/projects": "id", "/entitlements/sudo": "id", "/service_users/ci/bindings": "id",
			"/projects/prod/cloud_accounts": "id", "/projects/prod/unmanaged_servers": "id",
		} {
			route := "POST /v1/teams/{team}" + strings.NewReplacer("/prod/", "/{project}/", "/ci/", "/{user}/").Replace(pattern)
			body := m.body(matrix[route].body)
			_, _, first := answer(t, e, as[robot], "POST", base+pattern, "application/json", body)
			var made map[string]any
			if err := json.Unmarshal([]byte(first), &made); err != nil || made[field] == nil {
				t.Fatalf("%s: %s, %v", pattern, first, err)
			}
			status, _, again := answer(t, e, as[robot], "POST", base+pattern, "application/json", body)
			var v struct{ Error struct{ ID, Message string } }
			if err := json.Unmarshal([]byte(again), &v); err != nil || status != 409 || v.Error.ID != made[field] || !strings.Contains(v.Error.Message, v.Error.ID) {
				t.Errorf("%s again: %d %s, want the id of %s", pattern, status, again, first)
			}
		}
		// What another project has is not told of.
		e.Do("POST", "/projects", map[string]string{"name": "lab2"}, nil)
		body := m.body(`{"provider":"aws","account_id":"$A"}`)
		call(t, e, as[robot], "POST", base+"/projects/prod/cloud_accounts", "application/json", body)
		status, _, got := answer(t, e, as[robot], "POST", base+"/projects/lab2/cloud_accounts", "application/json", body)
		if status != 409 || strings.Contains(got, `"id"`) {
			t.Errorf("an account of another project: %d %s", status, got)
		}
	})
}
