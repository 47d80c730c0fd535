package platform_test

import (
	"crypto/ecdsa"
	"strings"
	"testing"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/testenv"
)

const (
	account  = "123456789012"
	instance = "i-0aaaabbbbccccdddd"
)

// A cloudHost enrols instances at a platform that trusts a cloud of the test's.
type cloudHost struct {
	t *testing.T
	e *testenv.Env
	c *testenv.Cloud
}

func newCloudHost(t *testing.T, e *testenv.Env) cloudHost {
	h := cloudHost{t, e, testenv.NewCloud(t)}
	e.Platform.AWS = h.c.AWS
	return h
}

// enroll enrols an instance with a key, started at a time.
func (h cloudHost) enroll(spki []byte, account, instance string, started time.Time) (api.EnrollServerReply, error) {
	doc := testenv.Document(account, instance, "eu-test-1", started)
	return h.send(spki, &api.CloudIdentity{Provider: "aws", Document: doc, Signature: h.c.Sign("eu-test-1", doc, nil)})
}

func (h cloudHost) send(spki []byte, id *api.CloudIdentity) (r api.EnrollServerReply, err error) {
	return r, h.e.Anonymous().Do(h.t.Context(), "POST", "/v1/servers/enroll", api.EnrollServerRequest{CloudIdentity: id, DeviceKey: spki, Facts: testenv.Facts("web01")}, &r)
}

func (h cloudHost) bind(project, account string) sft.CloudAccount {
	h.t.Helper()
	var c sft.CloudAccount
	h.e.Do("POST", "/projects/"+project+"/cloud_accounts", map[string]string{"provider": "aws", "account_id": account, "description": "ours"}, &c)
	return c
}

// live makes an enrolled server's record one that is in use.
func (h cloudHost) live(key *ecdsa.PrivateKey, id string) error {
	k, _ := testenv.Key(h.t)
	return h.e.Signed(key, "server:"+id).Do(h.t.Context(), "POST", "/v1/agent/report", api.ReportRequest{Facts: testenv.Facts("web01"), CSR: testenv.CSR(h.t, k)}, nil)
}

func TestCloudAccounts(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		h := newCloudHost(t, e)
		e.Project("lab")
		var c sft.CloudAccount
		events := since(e, func() { c = h.bind("prod", account) })
		if c.ID == "" || c.AccountID != account || c.Provider != "aws" || c.CreatedBy != testenv.ServiceUser || told(events) != "cloud_account.create success" || events[0].Target != "aws:"+account || events[0].Project != "prod" {
			t.Errorf("an account is made as %+v and told as %+v", c, events)
		}
		post := func(project, provider, account string) error {
			return e.Service.Do(t.Context(), "POST", base+"/projects/"+project+"/cloud_accounts", map[string]string{"provider": provider, "account_id": account}, nil)
		}
		wantCode(t, "an account in another project", post("lab", "aws", account), sft.Exists)
		wantCode(t, "an account twice in a project", post("prod", "aws", account), sft.Exists)
		wantCode(t, "another cloud", post("lab", "gce", account), sft.Invalid)
		for _, bad := range []string{"", "12345678901", "1234567890123", "12345678901a", account + "\n", "１２３４５６７８９０１２"} {
			wantCode(t, "the account "+bad, post("lab", "aws", bad), sft.Invalid)
		}
		var got sft.CloudAccount
		e.Do("GET", "/projects/prod/cloud_accounts/"+c.ID, nil, &got)
		var list api.List[sft.CloudAccount]
		e.Do("GET", "/projects/prod/cloud_accounts", nil, &list)
		if got != c || len(list.List) != 1 || list.List[0] != c {
			t.Errorf("the account is %+v, in the list %+v, want %+v", got, list, c)
		}
		del := func(project string) error {
			return e.Service.Do(t.Context(), "DELETE", base+"/projects/"+project+"/cloud_accounts/"+c.ID, nil, nil)
		}
		wantCode(t, "deleting it from another project", del("lab"), sft.NotFound)
		events = since(e, func() { wantCode(t, "deleting it", del("prod"), "") })
		if told(events) != "cloud_account.delete success" || events[0].Target != "aws:"+account {
			t.Errorf("deleting is told as %+v", events)
		}
		wantCode(t, "deleting it again", del("prod"), sft.NotFound)
		wantCode(t, "another project, then", post("lab", "aws", account), "")
	})
}

func TestEnrollByCloud(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		h := newCloudHost(t, e)
		start := e.Clock.Now().Add(-time.Hour)
		key, spki := testenv.Key(t)

		_, err := h.enroll(spki, account, instance, start)
		wantCode(t, "an account of no project", err, sft.Denied)
		if err == nil || err.Error() != "AWS account "+account+" is bound to no project" {
			t.Errorf("an account of no project: %v", err)
		}
		c := h.bind("prod", account)
		var first api.EnrollServerReply
		events := since(e, func() {
			if first, err = h.enroll(spki, account, instance, start); err != nil || first.Team != "main" || first.Project != "prod" || first.URL != e.URL || string(first.CA) != string(e.CA) {
				t.Fatalf("enrolling = %+v, %v", first, err)
			}
		})
		if told(events) != "server.enroll success" || events[0].Detail["instance"] != instance || events[0].Detail["account"] != "aws:"+account || events[0].Detail["server"] != first.ServerID {
			t.Errorf("enrolling is told as %+v", events)
		}
		server := func() (s sft.Server) { e.Do("GET", "/projects/prod/servers/"+first.ServerID, nil, &s); return s }
		want := sft.InstanceDetails{InstanceID: instance, AccountID: account, Region: "eu-test-1", Zone: "eu-test-1a", ImageID: "ami-0123456789abcdef0", Type: "t3.small", PendingTime: start}
		if s := server(); s.CloudProvider != "aws" || s.InstanceDetails == nil || *s.InstanceDetails != want {
			t.Errorf("the server is %+v with %+v, want %+v", s, s.InstanceDetails, want)
		}

		// The reply was lost.
		again, err := h.enroll(spki, account, instance, start)
		if err != nil || again.ServerID != first.ServerID {
			t.Errorf("asking again = %+v, %v", again, err)
		}
		_, err = h.enroll(spki, account, "i-0fffffffffffffff0", start)
		wantCode(t, "the same key on another instance", err, sft.Enrolled)
		wantCode(t, "a report", h.live(key, first.ServerID), "")

		// Another user of the instance, with a key of their own.
		key2, spki2 := testenv.Key(t)
		for range 2 {
			events = since(e, func() { _, err = h.enroll(spki2, account, instance, start) })
			wantCode(t, "the same document with another key", err, sft.Enrolled)
			if told(events) != "server.enroll refused" || events[0].Detail["instance"] != instance || events[0].Project != "prod" || !strings.Contains(events[0].Detail["why"], "with another device key") {
				t.Errorf("that is told as %+v", events)
			}
		}
		_, err = h.enroll(spki2, account, instance, start.Add(time.Minute))
		wantCode(t, "a later document with another key", err, sft.Enrolled)
		wantCode(t, "the first key still works", h.live(key, first.ServerID), "")

		// An administrator lets it take the record over: once.
		events = since(e, func() {
			e.Do("PUT", "/projects/prod/servers/"+first.ServerID, map[string]bool{"reenroll_allowed": true}, nil)
		})
		if told(events) != "server.update success" || events[0].Detail["reenroll_allowed"] != "true" || !server().ReenrollAllowed {
			t.Errorf("allowing it is told as %+v", events)
		}
		_, err = h.enroll(spki2, account, instance, start.Add(-time.Minute))
		wantCode(t, "a document from before the last start", err, sft.Denied)
		second, err := h.enroll(spki2, account, instance, start.Add(time.Minute))
		if err != nil || second.ServerID != first.ServerID || server().ReenrollAllowed {
			t.Errorf("taking the record over = %+v, %v", second, err)
		}
		wantCode(t, "the old key", h.live(key, first.ServerID), sft.SignIn)
		wantCode(t, "the new key", h.live(key2, first.ServerID), "")
		key3, spki3 := testenv.Key(t)
		_, err = h.enroll(spki3, account, instance, start.Add(time.Minute))
		wantCode(t, "a second time", err, sft.Enrolled)

		// Its record is deleted.
		e.Do("DELETE", "/projects/prod/servers/"+first.ServerID, nil, nil)
		_, err = h.enroll(spki3, account, instance, start)
		wantCode(t, "after deletion, a document from before the last start", err, sft.Denied)
		third, err := h.enroll(spki3, account, instance, start.Add(time.Minute))
		if err != nil || third.ServerID == first.ServerID {
			t.Errorf("after deletion = %+v, %v", third, err)
		}
		wantCode(t, "the key of the new record", h.live(key3, third.ServerID), "")

		e.Do("DELETE", "/projects/prod/cloud_accounts/"+c.ID, nil, nil)
		_, spki4 := testenv.Key(t)
		_, err = h.enroll(spki4, account, "i-0fffffffffffffff1", start)
		wantCode(t, "an account that was deleted", err, sft.Denied)
		wantCode(t, "a server of it", h.live(key3, third.ServerID), "")
	})
}

// An instance gets its record with a new key if the old one signs for it.
func TestEnrollByTheOldKey(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		h := newCloudHost(t, e)
		h.bind("prod", account)
		start := e.Clock.Now()
		const elsewhere = "i-0eeeeffff00001111"
		server := func(instance string) (*ecdsa.PrivateKey, []byte, string) {
			t.Helper()
			key, spki := testenv.Key(t)
			r, err := h.enroll(spki, account, instance, start)
			wantCode(t, "enrolling", err, "")
			wantCode(t, "a report", h.live(key, r.ServerID), "")
			return key, spki, r.ServerID
		}
		first, back, id := server(instance)
		other, _, otherID := server(elsewhere)
		key, spki := testenv.Key(t)
		_, stranger := testenv.Key(t)
		sign := func(k *ecdsa.PrivateKey, id, url string, spki []byte, at time.Time) string {
			t.Helper()
			s, err := api.SignKey(k, id, url, spki, at)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		try := func(instance string, spki []byte, proof string) (r api.EnrollServerReply, err error) {
			doc := testenv.Document(account, instance, "eu-test-1", start)
			return r, e.Anonymous().Do(t.Context(), "POST", api.EnrollPath, api.EnrollServerRequest{
				CloudIdentity: &api.CloudIdentity{Provider: "aws", Document: doc, Signature: h.c.Sign("eu-test-1", doc, nil)},
				DeviceKey:     spki, Facts: testenv.Facts("web01"), OldKeyProof: proof}, &r)
		}
		now := e.Clock.Now()
		good := sign(first, id, e.URL, spki, now)
		request, err := api.Sign(first, "server:"+id, e.URL, "POST", api.EnrollPath, spki, now)
		if err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct {
			name, instance string
			key            []byte
			proof          string
			want           sft.Code
		}{
			{"nothing", instance, spki, "", sft.Enrolled},
			{"noise", instance, spki, "noise", sft.Enrolled},
			{"too much", instance, spki, strings.Repeat("a", 20<<10), sft.Enrolled},
			{"for another key", instance, stranger, good, sft.Enrolled},
			{"another server's key", instance, spki, sign(other, otherID, e.URL, spki, now), sft.Enrolled},
			{"another server's key in this one's name", instance, spki, sign(other, id, e.URL, spki, now), sft.Enrolled},
			{"in another server's name", instance, spki, sign(first, otherID, e.URL, spki, now), sft.Enrolled},
			{"for another instance", elsewhere, spki, good, sft.Enrolled},
			{"the new key's own", instance, spki, sign(key, id, e.URL, spki, now), sft.Enrolled},
			{"for another platform", instance, spki, sign(first, id, "https://other.example", spki, now), sft.Enrolled},
			{"expired", instance, spki, sign(first, id, e.URL, spki, now.Add(-2*time.Minute)), sft.ClockSkew},
			{"of tomorrow", instance, spki, sign(first, id, e.URL, spki, now.Add(24*time.Hour)), sft.ClockSkew},
			{"a signed request", instance, spki, strings.TrimPrefix(request, "Bearer "), sft.Enrolled},
		} {
			_, err := try(tt.instance, tt.key, tt.proof)
			wantCode(t, tt.name, err, tt.want)
		}
		err = e.Anonymous().Do(t.Context(), "POST", api.EnrollPath, api.EnrollServerRequest{Token: e.Token("prod"), DeviceKey: spki, Facts: testenv.Facts("web01"), OldKeyProof: good}, nil)
		wantCode(t, "with a token", err, sft.Invalid)
		wantCode(t, "the old key still works", h.live(first, id), "")

		events := since(e, func() {
			r, err := try(instance, spki, good)
			if err != nil || r.ServerID != id {
				t.Errorf("with the old key's word = %+v, %v", r, err)
			}
		})
		if told(events) != "server.enroll success" || events[0].Detail["how"] != "took its record over, by its old key" || events[0].Detail["server"] != id {
			t.Errorf("that is told as %+v", events)
		}
		wantCode(t, "the old key", h.live(first, id), sft.SignIn)
		wantCode(t, "the new key", h.live(key, id), "")

		// A key that another took the place of does not come back.
		_, err = try(instance, back, sign(key, id, e.URL, back, e.Clock.Now()))
		wantCode(t, "the old key again", err, sft.Enrolled)
		_, err = try(instance, spki, good)
		wantCode(t, "the very same word", err, sft.Enrolled)
		wantCode(t, "the new key after that", h.live(key, id), "")
	})
}

func TestCloudIdentitiesThatCannotBe(t *testing.T) {
	e := testenv.New(t)
	h := newCloudHost(t, e)
	h.bind("prod", account)
	start := e.Clock.Now()
	doc := testenv.Document(account, instance, "eu-test-1", start)
	_, spki := testenv.Key(t)
	for _, tt := range []struct {
		name string
		id   api.CloudIdentity
		code sft.Code
	}{
		{"another cloud", api.CloudIdentity{Provider: "gce", Document: doc, Signature: h.c.Sign("eu-test-1", doc, nil)}, sft.Invalid},
		{"no signature", api.CloudIdentity{Provider: "aws", Document: doc}, sft.Invalid},
		{"a signature of another region", api.CloudIdentity{Provider: "aws", Document: doc, Signature: h.c.Sign("us-test-1", doc, nil)}, sft.Denied},
		{"another account in it", api.CloudIdentity{Provider: "aws", Document: strings.Replace(doc, account, "210987654321", 1), Signature: h.c.Sign("eu-test-1", doc, nil)}, sft.Denied},
		{"nothing", api.CloudIdentity{}, sft.Invalid},
	} {
		_, err := h.send(spki, &tt.id)
		wantCode(t, tt.name, err, tt.code)
	}
	_, err := h.enroll(spki, account, instance, start.Add(time.Hour))
	wantCode(t, "an instance that starts in an hour", err, sft.Denied)
	both := api.EnrollServerRequest{Token: e.Token("prod"), CloudIdentity: &api.CloudIdentity{Provider: "aws", Document: doc, Signature: h.c.Sign("eu-test-1", doc, nil)}, DeviceKey: spki, Facts: testenv.Facts("web01")}
	wantCode(t, "a token too", e.Anonymous().Do(t.Context(), "POST", "/v1/servers/enroll", both, nil), sft.Invalid)
	var l api.List[sft.Server]
	e.Do("GET", "/servers", nil, &l)
	if len(l.List) != 0 {
		t.Errorf("there are servers: %+v", l.List)
	}
	// A record is not taken over by an instance whose account is elsewhere now.
	if _, err := h.enroll(spki, account, instance, start); err != nil {
		t.Fatal(err)
	}
	e.Do("GET", "/servers", nil, &l)
	e.Do("PUT", "/projects/prod/servers/"+l.List[0].ID, map[string]bool{"reenroll_allowed": true}, nil)
	var accounts api.List[sft.CloudAccount]
	e.Do("GET", "/projects/prod/cloud_accounts", nil, &accounts)
	e.Do("DELETE", "/projects/prod/cloud_accounts/"+accounts.List[0].ID, nil, nil)
	e.Project("lab")
	h.bind("lab", account)
	_, spki2 := testenv.Key(t)
	_, err = h.enroll(spki2, account, instance, start)
	wantCode(t, "an instance with a record in another project", err, sft.Enrolled)
}
