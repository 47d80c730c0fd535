package platform_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/testenv"
)

func TestPreauthorizations(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Grant("lab", "dev", false, "ann")
		e.Project("other")
		s := e.Server("lab", testenv.SSHFacts(t, "lab01"))
		s2 := e.Server("lab", testenv.SSHFacts(t, "lab02"))
		ann := e.Client("ann")
		now := e.Clock.Now()
		pass := func(d time.Duration) {
			e.Clock.Advance(d)
			e.Service = e.Bearer(e.Init.Key.ID, e.Init.Key.Secret) // a token is good for an hour
		}
		const at = "/projects/lab/preauthorizations"
		make := func(body m) (v sft.Preauthorization) {
			t.Helper()
			e.Do("POST", at, body, &v)
			return v
		}
		list := func(query string) string {
			t.Helper()
			var l api.List[sft.Preauthorization]
			e.Do("GET", at+query, nil, &l)
			var s []string
			for _, v := range l.List {
				s = append(s, fmt.Sprint(v.User, " ", strings.Join(v.Projects, "+"), " ", v.ExpiresAt.Sub(now), " ", v.Disabled))
			}
			return strings.Join(s, "; ")
		}
		gets := func(what, target string, code sft.Code) {
			t.Helper()
			_, _, err := e.Connect(ann, target)
			wantCode(t, what, err, code)
		}

		gets("before it is required", "lab01", "")
		revision := e.State(s).Revision
		e.Do("PUT", "/projects/lab", m{"require_preauth_for_creds": true}, nil)
		if !e.Project("lab").RequirePreauth || e.Project("other").RequirePreauth {
			t.Error("the setting is not where it was set")
		}
		// Nothing is issued; accounts, lists and names are as before.
		events := since(e, func() { gets("without one", "lab01", sft.Denied) })
		if told(events) != "user_creds.issue refused" || events[0].Project != "lab" || events[0].Target != "lab01" || !strings.Contains(events[0].Detail["why"], "only with a preauthorization") {
			t.Errorf("it is told as %+v", events)
		}
		_, _, err := e.ConnectSSH(ann, "lab01")
		wantCode(t, "by SSH", err, sft.Denied)
		if st := e.State(s); haveAccounts(st) != "ann" || st.Revision == revision {
			t.Errorf("the accounts are %q at %d", haveAccounts(st), st.Revision)
		}
		var r api.ResolveReply
		if err := ann.Do(t.Context(), "GET", base+"/resolve?target=lab01", nil, &r); err != nil {
			t.Error(err)
		}

		var v sft.Preauthorization
		events = since(e, func() { v = make(m{"user_name": "ANN", "expires_at": now.Add(time.Hour)}) })
		if v.User != "ann" || v.CreatedBy != testenv.ServiceUser || !v.StartsAt.Equal(now) || !v.CreatedAt.Equal(now) || v.Disabled || fmt.Sprint(v.Projects) != "[lab]" || len(v.Servers) != 0 {
			t.Errorf("it is %+v", v)
		}
		if told(events) != "preauthorization.create success" || events[0].Target != "ann" || events[0].Detail["expires_at"] != "2026-03-01T10:00:00Z" || events[0].Detail["preauthorization"] != v.ID {
			t.Errorf("it is told as %+v", events)
		}
		events = since(e, func() { gets("with one", "lab01", "") })
		if len(events) != 1 || events[0].Detail["preauthorizations"] != s.ID+"="+v.ID {
			t.Errorf("the credentials are told as %+v", events)
		}
		live, _, err := e.Connect(ann, "lab01")
		if err != nil {
			t.Fatal(err)
		}

		// Its end ends what is issued, and no session.
		pass(time.Hour - time.Second)
		gets("a second before its end", "lab01", "")
		pass(time.Second)
		gets("at its end", "lab01", sft.Denied)
		key, _ := testenv.Key(t)
		_, err = connect(t, ann, api.ConnectRequest{Target: "lab01", Service: "rdp", CSR: testenv.CSR(t, key), SessionID: live.SessionID})
		wantCode(t, "going on with a session at its end", err, sft.Denied)
		if st := e.State(s); haveAccounts(st) != "ann" || len(st.EndedSessions) != 0 {
			t.Errorf("its end is told to the host: %+v", st)
		}
		if got := list(""); got != "" {
			t.Errorf("those that are not over: %s", got)
		}
		if got := list("?include_expired=true"); got != "ann lab 1h0m0s false" {
			t.Errorf("all of them: %s", got)
		}
		refused(t, e, "a word that is no flag", "GET", at+"?include_expired=maybe", nil, sft.Invalid, "include_expired is")

		// In pages, which the filter is in, too.
		e.Do("POST", "/projects", m{"name": "paged"}, nil)
		const paged = "/projects/paged/preauthorizations"
		var made []string
		for i := range 7 {
			var p sft.Preauthorization
			e.Do("POST", paged, m{"user_name": "ann", "expires_at": now.Add(2*time.Hour + time.Duration(i%2)*time.Hour)}, &p)
			made = append(made, p.ID)
		}
		follow := func(path string) (ids []string) {
			t.Helper()
			for path != "" {
				var l api.List[sft.Preauthorization]
				e.Do("GET", path, nil, &l)
				for _, v := range l.List {
					ids = append(ids, v.ID)
				}
				_, links := turn(t, e, path)
				path = links["next"]
			}
			return ids
		}
		if got := follow(paged + "?count=2"); !slices.Equal(got, made) {
			t.Errorf("the pages are %q, want %q", got, made)
		}
		back := slices.Clone(made)
		slices.Reverse(back)
		if got := follow(paged + "?count=3&descending=true"); !slices.Equal(got, back) {
			t.Errorf("backwards they are %q, want %q", got, back)
		}
		e.Do("PUT", paged+"/"+made[2], m{"starts_at": now.Add(-2 * time.Hour), "expires_at": now.Add(-time.Hour)}, nil)
		left := slices.Concat(made[:2], made[3:])
		if got := follow(paged + "?count=2"); !slices.Equal(got, left) {
			t.Errorf("without one that is over they are %q, want %q", got, left)
		}
		if got := follow(paged + "?count=2&include_expired=true"); !slices.Equal(got, made) {
			t.Errorf("with it they are %q, want %q", got, made)
		}

		// Changed: longer, disabled, for one server, for later.
		put := func(body m) {
			t.Helper()
			e.Do("PUT", at+"/"+v.ID, body, nil)
		}
		events = since(e, func() { put(m{"expires_at": now.Add(3 * time.Hour)}) })
		if told(events) != "preauthorization.update success" || events[0].Detail["expires_at"] != "2026-03-01T12:00:00Z" {
			t.Errorf("it is told as %+v", events)
		}
		gets("made longer", "lab01", "")
		put(m{"disabled": true})
		gets("disabled", "lab01", sft.Denied)
		put(m{"disabled": false, "servers": []string{s2.ID}})
		gets("for another server", "lab01", sft.Denied)
		gets("for this server", "lab02", "")
		put(m{"servers": []string{}, "starts_at": now.Add(2 * time.Hour)})
		gets("for later", "lab01", sft.Denied)
		pass(time.Hour)
		gets("begun", "lab01", "")
		put(m{"projects": []string{"lab", "other", "LAB"}})
		if got := list(""); got != "ann lab+other 3h0m0s false" {
			t.Errorf("of two projects: %s", got)
		}
		var one sft.Preauthorization
		e.Do("GET", "/projects/other/preauthorizations/"+v.ID, nil, &one)
		if one.ID != v.ID || one.User != "ann" {
			t.Errorf("of the other project: %+v", one)
		}
		e.Do("PUT", "/projects/other/preauthorizations/"+v.ID, m{"projects": []string{"other"}}, nil)
		gets("for another project", "lab01", sft.Denied)
		refused(t, e, "of the project that it was for", "PUT", at+"/"+v.ID, m{}, sft.NotFound, "no preauthorization")

		// One of a server that is elsewhere now can still be ended.
		e.Do("PUT", "/projects/other/preauthorizations/"+v.ID, m{"projects": []string{"lab", "other"}, "servers": []string{s2.ID}}, nil)
		put(m{"projects": []string{"lab"}})
		e.Do("PUT", "/projects/lab/servers/"+s2.ID, m{"project_name": "other"}, nil)
		put(m{"disabled": true})
		refused(t, e, "named anew", "PUT", at+"/"+v.ID, m{"servers": []string{s2.ID}}, sft.Invalid, "for which the preauthorization is not")
		e.Do("PUT", "/projects/other/servers/"+s2.ID, m{"project_name": "lab"}, nil)
		put(m{"projects": []string{"lab", "other"}, "servers": []string{}, "disabled": false})
		e.Do("PUT", "/projects/other/preauthorizations/"+v.ID, m{"projects": []string{"other"}}, nil)

		soon := e.Clock.Now().Add(time.Hour)
		for what, tt := range map[string]struct {
			body m
			code sft.Code
			says string
		}{
			"nobody":               {m{"user_name": "nobody", "expires_at": soon}, sft.NotFound, "no user"},
			"no end":               {m{"user_name": "ann"}, sft.Invalid, "without an end"},
			"an end that is over":  {m{"user_name": "ann", "starts_at": now, "expires_at": now.Add(time.Hour)}, sft.Invalid, "expires_at is over"},
			"an end before":        {m{"user_name": "ann", "starts_at": soon, "expires_at": soon}, sft.Invalid, "ends before it begins"},
			"a time long ago":      {m{"user_name": "ann", "starts_at": "0001-01-01T00:00:00Z", "expires_at": soon}, sft.Invalid, "cannot be used"},
			"no project":           {m{"user_name": "ann", "projects": []string{}, "expires_at": soon}, sft.Invalid, "for 0 projects"},
			"other projects alone": {m{"user_name": "ann", "projects": []string{"other"}, "expires_at": soon}, sft.Invalid, "would not be one of project"},
			"unknown projects":     {m{"user_name": "ann", "projects": []string{"lab", "x"}, "expires_at": soon}, sft.NotFound, "no project"},
			"unknown servers":      {m{"user_name": "ann", "servers": []string{"x"}, "expires_at": soon}, sft.NotFound, "no server"},
			"a server elsewhere":   {m{"user_name": "ann", "projects": []string{"lab"}, "servers": []string{e.Enroll("other", testenv.Facts("elsewhere")).ID}, "expires_at": soon}, sft.Invalid, "for which the preauthorization is not"},
		} {
			refused(t, e, what, "POST", at, tt.body, tt.code, tt.says)
		}
		refused(t, e, "another's", "PUT", "/projects/other/preauthorizations/"+v.ID, m{"user_name": "bob"}, sft.Invalid, "keeps its user")

		// Who may give them and is no administrator gives them to others.
		e.Do("POST", "/groups", m{"name": "desk", "roles": []string{"preauthorization"}}, nil)
		e.Do("POST", "/groups/desk/users", m{"name": "ann"}, nil)
		body := func(user string) m { return m{"user_name": user, "expires_at": soon} }
		e.User("bob")
		wantCode(t, "the desk for bob", ann.Do(t.Context(), "POST", base+at, body("bob"), &one), "")
		wantCode(t, "the desk for itself", ann.Do(t.Context(), "POST", base+at, body("ann"), nil), sft.Denied)
		wantCode(t, "the desk's list", ann.Do(t.Context(), "GET", base+at, nil, nil), "")
		wantCode(t, "the desk and a project's settings", ann.Do(t.Context(), "PUT", base+"/projects/lab", m{"require_preauth_for_creds": false}, nil), sft.Denied)
		mine := make(body("ann"))
		wantCode(t, "the desk's own, made longer", ann.Do(t.Context(), "PUT", base+at+"/"+mine.ID, m{"expires_at": soon.Add(time.Hour)}, nil), sft.Denied)
		gets("given by another", "lab01", "")
		wantCode(t, "bob, of another's preauthorizations", e.Client("bob").Do(t.Context(), "GET", base+at, nil, nil), sft.Denied)

		// A hop wants one like a target; one without an agent gets no credentials.
		e.Grant("far", "dev", false)
		far := testenv.SSHFacts(t, "far01")
		far.Bastion = "lab01"
		e.Server("far", far)
		goes := func(what string, code sft.Code, via ...string) {
			t.Helper()
			_, _, err := e.ConnectSSH(ann, "far01", via...)
			wantCode(t, what, err, code)
		}
		goes("through a server with one", "")
		e.Do("PUT", at+"/"+mine.ID, m{"disabled": true}, nil)
		goes("through a server without one", sft.Denied)
		unmanaged(t, e, "lab", m{"hostname": "jump"})
		goes("through a host without an agent", "", "jump")
	})
}
