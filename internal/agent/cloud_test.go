package agent

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/testenv"
)

const (
	cloudAccount  = "123456789012"
	cloudInstance = "i-0aaaabbbbccccdddd"
	otherInstance = "i-0eeeeffff00001111"
)

// newInstance makes a host without a token, on an instance whose account may
// enrol in the project.
func newInstance(t *testing.T, change func(*Config)) (*host, *testenv.Metadata, *testenv.Cloud) {
	t.Helper()
	env := testenv.New(t)
	env.Grant(testenv.Project, "dev", false, "ann")
	cloud := testenv.NewCloud(t)
	env.Platform.AWS = cloud.AWS
	env.Do("POST", "/projects/"+testenv.Project+"/cloud_accounts", map[string]string{"provider": "aws", "account_id": cloudAccount}, nil)
	m := cloud.Instance(cloudAccount, cloudInstance, env.Clock.Now())
	h := newHost(t, env, func(c *Config) {
		c.InitialURL, c.InitialCAFingerprint = env.URL, env.Init.CAFingerprint
		if change != nil {
			change(c)
		}
	})
	if err := os.Remove(h.c.EnrollmentTokenFile); err != nil {
		t.Fatal(err)
	}
	h.metadataURL = m.URL
	return h, m, cloud
}

func (h *host) identity() identity {
	h.t.Helper()
	id, _, err := readIdentity(h.c)
	if err != nil || id == nil {
		h.t.Fatalf("the identity is %v, %v", id, err)
	}
	return *id
}

func (h *host) servers() (l api.List[sft.Server]) {
	h.env.Do("GET", "/servers", nil, &l)
	return l
}

func TestMetadata(t *testing.T) {
	cloud := testenv.NewCloud(t)
	m := cloud.Instance(cloudAccount, cloudInstance, time.Now())
	doc := testenv.Document(cloudAccount, cloudInstance, "eu-test-1", time.Now())
	m.Become(doc)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	over := make(chan struct{})
	t.Cleanup(func() { close(over) })
	// at answers a path otherwise, and all others as it should.
	at := func(path string, f http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, path) {
				f(w, r)
			} else {
				m.Serve(w, r, doc)
			}
		}
	}
	say := func(s string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, s) }
	}
	status := func(n int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(n) }
	}
	hang := func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-over:
		}
	}
	long := strings.Repeat("A", 1<<20)
	tests := []struct {
		name   string
		answer http.HandlerFunc
		msg    string
	}{
		{"as it should", m.ServeHTTP, ""},
		{"no service", nil, "there is no instance metadata service here"},
		{"it hangs, as beyond the hop limit", at("/token", hang), "the instance metadata service takes a request and does not answer"},
		{"it hangs up", at("/token", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }), "the instance metadata service cannot be asked: EOF"},
		{"version 1 alone", func(w http.ResponseWriter, r *http.Request) {
			r.Header.Set("X-aws-ec2-metadata-token", "AQAEAFakeSession==")
			if r.Method == "PUT" {
				status(405)(w, r)
				return
			}
			m.Serve(w, r, doc)
		}, "the instance metadata service gives no session token (version 2, IMDSv2): it answers with status 405"},
		{"turned off", status(403), "the instance metadata service is turned off"},
		{"it sends elsewhere", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, m.URL+r.URL.Path, 307) }, "the instance metadata service gives no session token (version 2, IMDSv2): it answers with status 307"},
		{"a page for a token", at("/token", say("<html>sign in</html>")), "the instance metadata service gives no usable session token"},
		{"an empty token", at("/token", say("")), "the instance metadata service gives no usable session token"},
		{"a token of 1 MB", at("/token", say(long)), "the instance metadata service's answer is too long"},
		{"the session has ended", at("/document", status(401)), "the instance metadata service answers with status 401 for document"},
		{"a page for a document", at("/document", say("<html></html>")), "the instance metadata service gives no instance identity document"},
		{"a document of 1 MB", at("/document", say("{"+strings.Repeat(" ", 1<<20))), "the instance metadata service's answer is too long"},
		{"a document without end", at("/document", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, "{")
			w.(http.Flusher).Flush()
			hang(w, r)
		}), "the instance metadata service breaks off its answer: context deadline exceeded"},
		{"a document of no instance", at("/document", say(`{"instanceId":"../x"}`)), "the instance metadata service gives no instance identity document"},
		{"a page for a signature", at("/rsa2048", say("<html></html>")), "the signature of the instance identity document is no base64"},
		{"a page within a signature", at("/rsa2048", say("AAAA<html></html>AAAA")), "the signature of the instance identity document is no base64"},
		{"no signature", at("/rsa2048", status(404)), "the instance metadata service answers with status 404 for rsa2048"},
		{"a signature of 1 MB", at("/rsa2048", say(long)), "the instance metadata service's answer is too long"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			at := "http://" + closed.Addr().String()
			if tt.answer != nil {
				srv := httptest.NewServer(tt.answer)
				t.Cleanup(srv.Close)
				at = srv.URL
			}
			id, instance, err := newMetadata(at).identity(t.Context())
			if tt.msg == "" {
				if err != nil || instance != cloudInstance || id.Provider != "aws" || id.Document != doc || id.Signature == "" {
					t.Errorf("got %+v, %s, %v", id, instance, err)
				}
				return
			}
			wantCode(t, tt.name, err, sft.Unavailable)
			if err != nil && err.Error() != tt.msg || id != nil {
				t.Errorf("got %+v, %q, want %q", id, err, tt.msg)
			}
		})
	}
	if p := newMetadata(metadataURL).http.Transport.(*http.Transport).Proxy; p != nil {
		t.Error("the metadata service is asked through a proxy")
	}
}

func TestEnrollByCloud(t *testing.T) {
	t.Parallel()
	h, m, _ := newInstance(t, nil)
	h.run()
	h.waitAccount("ann")
	id := h.identity()
	if id.Instance != cloudInstance || id.URL != h.env.URL || len(id.CA) == 0 {
		t.Errorf("the identity is of %s at %s", id.Instance, id.URL)
	}
	s := h.servers().List
	if len(s) != 1 || s[0].ID != id.ServerID || s[0].CloudProvider != "aws" || s[0].InstanceDetails.InstanceID != cloudInstance {
		t.Errorf("the servers are %+v", s)
	}
	if f, err := h.facts(); err != nil || f.InstanceID != cloudInstance {
		t.Errorf("the facts are %+v, %v", f, err)
	}
	if n := m.Asked(); n < 3 || n > 6 { // the document, and the network
		t.Errorf("the metadata service was asked %d times", n)
	}
	if _, err := os.Stat(h.c.file(pendingKeyFile)); err == nil {
		t.Error("the key of the enrolment is still there")
	}
}

// A token wins, and who does not want the cloud does not ask it.
func TestTheCloudIsNotAsked(t *testing.T) {
	t.Parallel()
	h, m, _ := newInstance(t, nil)
	h.writeToken(testenv.Project)
	if err := h.enroll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if id := h.identity(); id.Instance != "" || m.Asked() != 0 {
		t.Errorf("by a token: instance %q, the metadata service was asked %d times", id.Instance, m.Asked())
	}
	for name, change := range map[string]func(*Config){
		"AutoEnroll is false":    func(c *Config) { c.AutoEnroll = false },
		"there is no InitialURL": func(c *Config) { c.InitialURL = "" },
	} {
		h, m, _ := newInstance(t, change)
		err := h.enroll(t.Context())
		wantCode(t, name, err, sft.SignIn)
		if m.Asked() != 0 {
			t.Errorf("%s: the metadata service was asked", name)
		}
	}
}

// What the platform refuses is tried again without a token file, said once,
// and a token file still helps.
func TestTheCloudsWordIsRefused(t *testing.T) {
	t.Parallel()
	h, m, _ := newInstance(t, nil)
	m.Become(testenv.Document("210987654321", cloudInstance, "eu-test-1", h.env.Clock.Now()))
	h.run()
	until(t, "it says so", func() bool {
		return h.hasProblem("AWS account 210987654321 is bound to no project; let an administrator add it")
	})
	until(t, "it tries again", func() bool { return m.Asked() > 6 })
	if n := strings.Count(h.logs.String(), "not enrolled"); n != 1 {
		t.Errorf("it says so %d times", n)
	}
	until(t, "the key of the refused enrolment is gone", func() bool { // another try may be under way
		_, err := os.Stat(h.c.file(pendingKeyFile))
		return errors.Is(err, os.ErrNotExist)
	})
	m.Become(testenv.Document(cloudAccount, cloudInstance, "eu-test-1", h.env.Clock.Now()))
	h.waitAccount("ann")
}

func TestNoCloudHere(t *testing.T) {
	t.Parallel()
	h, _, _ := newInstance(t, nil)
	h.metadataURL = "http://127.0.0.1:1"
	h.run()
	until(t, "it says so", func() bool {
		return h.hasProblem("there is no instance metadata service here; on a machine that is not an EC2 instance, enrol by a token")
	})
	var wait backoff
	if d := h.cloudAgain(errNoCloud, &wait); d < time.Minute {
		t.Errorf("it is asked again after %v", d)
	}
	h.writeToken(testenv.Project)
	h.waitAccount("ann")
	if n := strings.Count(h.logs.String(), "not enrolled"); n != 1 {
		t.Errorf("it says %d times that it is not enrolled:\n%s", n, h.logs)
	}
}

// A disk that is copied to another instance becomes another server; the first
// one stays.
func TestClonedDisk(t *testing.T) {
	t.Parallel()
	h, m, _ := newInstance(t, nil)
	stop := h.run()
	h.waitAccount("ann")
	first := h.identity()

	h.restart(stop)
	h.metadataURL = m.URL
	stop = h.run()
	h.waitAccount("ann")
	if id := h.identity(); id.ServerID != first.ServerID {
		t.Errorf("on the same instance it is %s, and was %s", id.ServerID, first.ServerID)
	}

	h.restart(stop)
	h.metadataURL = "http://127.0.0.1:1"
	stop = h.run()
	h.waitAccount("ann")
	if id := h.identity(); id.ServerID != first.ServerID {
		t.Errorf("without an answer it is %s, and was %s", id.ServerID, first.ServerID)
	}
	hostKey, err := os.ReadFile(h.c.file(brokerKeyFile))
	if err != nil {
		t.Fatal(err)
	}

	h.restart(stop)
	h.metadataURL = m.URL
	m.Become(testenv.Document(cloudAccount, otherInstance, "eu-test-1", h.env.Clock.Now()))
	h.run()
	until(t, "it enrols anew", func() bool {
		id, _, err := readIdentity(h.c)
		return err == nil && id != nil && id.Instance == otherInstance
	})
	h.waitAccount("ann")
	until(t, "it has another host key", func() bool {
		b, err := os.ReadFile(h.c.file(brokerKeyFile))
		return err == nil && string(b) != string(hostKey)
	})
	second := h.identity()
	if second.ServerID == first.ServerID || string(second.Key) == string(first.Key) {
		t.Errorf("on another instance it is %s, with the key of the first: %v", second.ServerID, string(second.Key) == string(first.Key))
	}
	if n := len(h.servers().List); n != 2 {
		t.Errorf("there are %d servers", n)
	}
	if _, err := os.Stat(h.c.TokenFile + ".cloned"); err != nil {
		t.Errorf("the first identity: %v", err)
	}
	for _, e := range h.env.Events() {
		if e.Kind == audit.EventsLost {
			t.Errorf("an event was lost: %v", e.Detail)
		}
	}
}

// Whose identity is put aside as the old one gets its record with a new key.
func TestNewKeyForAnInstance(t *testing.T) {
	t.Parallel()
	h, m, _ := newInstance(t, nil)
	stop := h.run()
	h.waitAccount("ann")
	first := h.identity()
	h.restart(stop)
	h.metadataURL = m.URL
	old := h.c.TokenFile + oldIdentity
	if err := os.Rename(h.c.TokenFile, old); err != nil {
		t.Fatal(err)
	}
	h.run()
	h.waitAccount("ann")
	second := h.identity()
	if second.ServerID != first.ServerID || string(second.Key) == string(first.Key) {
		t.Errorf("it is %s, was %s; the same key: %v", second.ServerID, first.ServerID, string(second.Key) == string(first.Key))
	}
	if _, err := os.Stat(old); err == nil {
		t.Error("the old identity is still there")
	}
	until(t, "it has a certificate", func() bool { return h.chain.Load() != nil })

	// What is of no use is not sent.
	for name, change := range map[string]func(*identity){
		"another instance": func(id *identity) { id.Instance = otherInstance },
		"by a token":       func(id *identity) { id.Instance = "" },
		"another platform": func(id *identity) { id.URL = "https://other.example" },
	} {
		id := second
		change(&id)
		writeIdentity(t, old, id)
		file, proof, err := h.oldKeyProof(entry{api.EnrollmentToken{URL: h.env.URL}, cloudInstance}, nil)
		if file != "" || proof != "" || err != nil {
			t.Errorf("%s: %q, %q, %v", name, file, proof, err)
		}
	}
	write(t, old, []byte("garbage"))
	if file, proof, err := h.oldKeyProof(entry{api.EnrollmentToken{URL: h.env.URL}, cloudInstance}, nil); file != "" || proof != "" || err != nil {
		t.Errorf("garbage: %q, %q, %v", file, proof, err)
	}
}

// A copy that cannot enrol is nobody, and not the first one.
func TestClonedDiskWithoutAWayIn(t *testing.T) {
	t.Parallel()
	h, m, _ := newInstance(t, nil)
	stop := h.run()
	h.waitAccount("ann")
	h.restart(stop)
	h.metadataURL = m.URL
	m.Become(testenv.Document("210987654321", otherInstance, "eu-test-1", h.env.Clock.Now()))
	h.run()
	until(t, "it says so", func() bool { return h.hasProblem("AWS account 210987654321 is bound to no project") })
	if _, err := os.Stat(h.c.TokenFile); !os.IsNotExist(err) {
		t.Errorf("there is an identity: %v", err)
	}
	if _, err := os.Stat(h.c.file(stateFile)); !os.IsNotExist(err) {
		t.Errorf("what the platform said of the first is still there: %v", err)
	}
	if h.enabled("ann") || h.who.Load() != nil {
		t.Error("the first one's people can sign in")
	}
}

// FuzzInstanceID checks that an id that is taken is one, whatever the document
// is.
func FuzzInstanceID(f *testing.F) {
	f.Add(testenv.Document(cloudAccount, cloudInstance, "eu-test-1", time.Unix(1e9, 0)))
	f.Add("<html></html>")
	f.Fuzz(func(t *testing.T, doc string) {
		id, err := instanceID(doc)
		if (err == nil) != instanceRE.MatchString(id) || strings.ContainsAny(id, "/.\n") || err != nil && sft.CodeOf(err) != sft.Unavailable {
			t.Errorf("instanceID(%q) = %q, %v", doc, id, err)
		}
	})
}
