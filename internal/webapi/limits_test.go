package webapi_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/store"
	"sft/internal/testenv"
	"sft/internal/webapi"
)

// limited serves e's platform with limits of its own, on plain HTTP.
func limited(t *testing.T, e *testenv.Env, change func(*webapi.Limits)) string {
	t.Helper()
	s := webapi.New(e.Platform, slog.New(slog.DiscardHandler))
	change(&s.Limits)
	return listen(t, s, &http.Server{ConnState: s.Conn})
}

// from returns a client whose connections come from an address of loopback.
func from(t *testing.T, addr string) *http.Client {
	t.Helper()
	d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(addr)}}
	tr := &http.Transport{DialContext: d.DialContext}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second}
}

// ask sends a request and returns the answer, whose body has been read.
func ask(t *testing.T, hc *http.Client, url, path, authorization string) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	resp, err := hc.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode == 429 || resp.StatusCode == 503 {
		var reply api.ErrorReply
		after, aerr := strconv.Atoi(resp.Header.Get("Retry-After"))
		if err := json.Unmarshal(b, &reply); strings.HasPrefix(path, "/v1/") && (err != nil || reply.Error.Hint == "") || aerr != nil || after < 1 {
			t.Errorf("%s is refused with %s, Retry-After %q: %v", path, b, resp.Header.Get("Retry-After"), err)
		}
	}
	return resp
}

// Who asks too often is told so, without a word to the database; it is nobody
// else's trouble.
func TestRates(t *testing.T) { testenv.Each(t, rates) }

func rates(t *testing.T, e *testenv.Env) {
	ann, bob := e.Client(testenv.Owner), e.Client(testenv.Owner)
	url := limited(t, e, func(l *webapi.Limits) { l.Rate, l.Anonymous = 0.25, 0.25 }) // ten at once
	path := base + "/users"
	signed := func(c *testenv.Client) string { return signer(t, c.Client)("GET", path, nil) }
	transactions := atomic.Int64{}
	here, there := from(t, "127.0.0.2"), from(t, "127.0.0.3")
	for i := range 10 {
		resp := ask(t, here, url, path, signed(ann))
		if got := resp.Header.Get("X-RateLimit-Remaining"); resp.StatusCode != 200 || got != fmt.Sprint(9-i) || resp.Header.Get("X-RateLimit-Limit") != "10" {
			t.Fatalf("request %d: %s, %s left", i, resp.Status, got)
		}
		if reset, err := strconv.ParseInt(resp.Header.Get("X-RateLimit-Reset"), 10, 64); err != nil || reset < time.Now().Unix() {
			t.Errorf("the bucket is full at %q", resp.Header.Get("X-RateLimit-Reset"))
		}
	}
	e.DB.Watch(func(store.Span) { transactions.Add(1) })
	defer e.DB.Watch(func(store.Span) {})
	for _, hc := range []*http.Client{here, there} {
		resp := ask(t, hc, url, path, signed(ann))
		if at, err := strconv.ParseInt(resp.Header.Get("X-RateLimit-Retry-At"), 10, 64); resp.StatusCode != 429 || err != nil || at < time.Now().Unix() {
			t.Errorf("one more: %s, again at %q", resp.Status, resp.Header.Get("X-RateLimit-Retry-At"))
		}
	}
	if n := transactions.Load(); n != 0 {
		t.Errorf("the refused requests were %d transactions", n)
	}

	// A stranger uses up the place's bucket, not that of those it claims to be.
	if resp := ask(t, here, url, path, signed(bob)); resp.StatusCode != 200 {
		t.Fatalf("another client from the same place: %s", resp.Status)
	}
	for range 30 {
		forged := signed(bob)
		ask(t, here, url, path, forged[:len(forged)-8]+"AAAAAAAA")
		ask(t, here, url, path, "")
	}
	transactions.Store(0)
	for _, resp := range []*http.Response{ask(t, here, url, path, ""), ask(t, here, url, "/v1/info", ""), ask(t, here, url, "/v1/nothing", "")} {
		if resp.StatusCode != 429 {
			t.Errorf("the stranger gets %s", resp.Status)
		}
	}
	if resp := ask(t, here, url, "/signin", ""); resp.StatusCode != 429 {
		t.Errorf("the stranger's page: %s", resp.Status)
	}
	if n := transactions.Load(); n != 0 {
		t.Errorf("the stranger's requests were %d transactions", n)
	}
	if resp := ask(t, here, url, path, signed(bob)); resp.StatusCode != 200 {
		t.Errorf("who was here before: %s", resp.Status)
	}
	if resp := ask(t, there, url, "/v1/info", ""); resp.StatusCode != 200 {
		t.Errorf("from elsewhere: %s", resp.Status)
	}
}

// After a start nobody is known yet. Who signs is let in then too, whatever
// others at the same place send without a signature; what only claims to be
// signed is bounded all the same.
func TestRateOfAPlaceWithoutSignatures(t *testing.T) {
	e := testenv.New(t)
	ann, bob := e.Client(testenv.Owner), e.Client(testenv.Owner)
	url := limited(t, e, func(l *webapi.Limits) { l.Rate, l.Anonymous = 0.25, 0.25 }) // ten at once
	path := base + "/users"
	here := from(t, "127.0.0.2")
	for range 20 {
		ask(t, here, url, "/v1/info", "")
	}
	if resp := ask(t, here, url, "/v1/info", ""); resp.StatusCode != 429 {
		t.Fatalf("the stranger gets %s", resp.Status)
	}
	if resp := ask(t, here, url, path, signer(t, ann.Client)("GET", path, nil)); resp.StatusCode != 200 {
		t.Errorf("a client that was not here before: %s", resp.Status)
	}
	for range 20 {
		forged := signer(t, bob.Client)("GET", path, nil)
		ask(t, here, url, path, forged[:len(forged)-8]+"AAAAAAAA")
	}
	transactions := atomic.Int64{}
	e.DB.Watch(func(store.Span) { transactions.Add(1) })
	if resp := ask(t, here, url, path, signer(t, bob.Client)("GET", path, nil)); resp.StatusCode != 429 || transactions.Load() != 0 {
		t.Errorf("after many that were forged: %s, %d transactions", resp.Status, transactions.Load())
	}
}

// Too many requests at once are refused at once, those of one place before
// those of others; whoever was let in is answered.
func TestRequestsAtOnce(t *testing.T) { testenv.Each(t, requestsAtOnce) }

func requestsAtOnce(t *testing.T, e *testenv.Env) {
	var clients []*testenv.Client
	for range 4 {
		clients = append(clients, e.Client(testenv.Owner))
	}
	s := webapi.New(e.Platform, slog.New(slog.DiscardHandler))
	s.Limits.Requests = 8 // two of each place
	url := listen(t, s, &http.Server{})
	release, done := make(chan struct{}), make(chan int, 8)
	e.DB.Watch(func(store.Span) { <-release })
	for i := range 8 {
		hc, path := from(t, fmt.Sprintf("127.0.0.%d", 2+i/2)), base+"/users"
		r, _ := http.NewRequestWithContext(t.Context(), "GET", url+path, nil)
		r.Header.Set("Authorization", signer(t, clients[i/2].Client)("GET", path, nil))
		go func() {
			resp, err := hc.Do(r)
			if err != nil {
				done <- 0
				return
			}
			resp.Body.Close()
			done <- resp.StatusCode
		}()
	}
	last := from(t, "127.0.0.9")
	poll(t, "eight are under way", func() bool { return s.UnderWay() == 8 })
	if resp := ask(t, last, url, "/v1/info", ""); resp.StatusCode != 503 {
		t.Errorf("a ninth: %s", resp.Status)
	}
	if resp := ask(t, from(t, "127.0.0.2"), url, "/v1/info", ""); resp.StatusCode != 429 {
		t.Errorf("a third of one place: %s", resp.Status)
	}
	close(release)
	for range 8 {
		if status := <-done; status != 200 {
			t.Errorf("one that was let in: %d", status)
		}
	}
	if resp := ask(t, last, url, "/v1/info", ""); resp.StatusCode != 200 {
		t.Errorf("afterwards: %s", resp.Status)
	}
}

// Bodies that are slow to arrive keep out other bodies of their place, and
// nothing that has none. One that does not arrive in time is refused, and
// counted where it came from.
func TestSlowBodies(t *testing.T) {
	e := testenv.New(t)
	var both http.Protocols
	both.SetHTTP1(true)
	both.SetUnencryptedHTTP2(true)
	for _, name := range []string{"HTTP/1.1", "HTTP/2.0"} {
		for _, path := range []string{"/v1/clients/enroll", "/signin"} {
			t.Run(name+path, func(t *testing.T) {
				s := webapi.New(e.Platform, slog.New(slog.DiscardHandler))
				s.Limits.Requests, s.Limits.Arrival, s.Limits.Patience = 16, time.Hour, time.Hour // two bodies of strangers, one of each place
				url := listen(t, s, &http.Server{Protocols: &both})
				client := func(addr string) *http.Client {
					hc := from(t, addr)
					if name == "HTTP/2.0" {
						hc.Transport.(*http.Transport).Protocols = &http.Protocols{}
						hc.Transport.(*http.Transport).Protocols.SetUnencryptedHTTP2(true)
					}
					return hc
				}
				release := make(chan struct{})
				post := func(hc *http.Client) <-chan *http.Response {
					done := make(chan *http.Response, 1)
					body, rest := io.Pipe()
					go func() {
						io.WriteString(rest, `{"x":`)
						<-release
						io.WriteString(rest, `1}`)
						rest.Close()
					}()
					go func() {
						resp, err := hc.Post(url+path, "application/json", body)
						if err != nil {
							t.Error(err)
							resp = &http.Response{}
						} else {
							resp.Body.Close()
						}
						done <- resp
					}()
					return done
				}
				here, there := client("127.0.0.2"), client("127.0.0.3")
				slow := []<-chan *http.Response{post(here)}
				poll(t, "a body arrives", func() bool { return s.Arriving() == 1 })
				refused := func(what string, addr string, want int) {
					resp, err := client(addr).Post(url+path, "application/json", strings.NewReader("{}"))
					if err != nil {
						t.Fatal(err)
					}
					resp.Body.Close()
					if resp.StatusCode != want || resp.Proto != name {
						t.Errorf("%s: %s %s, want %d", what, resp.Proto, resp.Status, want)
					}
				}
				refused("another body of the place", "127.0.0.2", 429)
				slow = append(slow, post(there))
				poll(t, "two bodies arrive", func() bool { return s.Arriving() == 2 })
				refused("one more from elsewhere", "127.0.0.4", 503)
				if n := s.UnderWay(); n != 0 {
					t.Errorf("%d requests are under way", n)
				}
				for _, hc := range []*http.Client{here, client("127.0.0.4")} {
					if resp := ask(t, hc, url, "/v1/info", ""); resp.StatusCode != 200 {
						t.Errorf("one without a body: %s", resp.Status)
					}
				}
				close(release)
				for _, done := range slow {
					if resp := <-done; resp.StatusCode == 0 || resp.StatusCode == 429 || resp.StatusCode >= 500 {
						t.Errorf("a body that has arrived: %s", resp.Status)
					}
				}

				s = webapi.New(e.Platform, slog.New(slog.DiscardHandler))
				s.Limits.Arrival = time.Millisecond
				url, release = listen(t, s, &http.Server{Protocols: &both}), make(chan struct{})
				defer close(release)
				resp := <-post(client("127.0.0.2"))
				if left := resp.Header.Get("X-RateLimit-Remaining"); resp.StatusCode != 400 || left != "1999" {
					t.Errorf("a body that does not arrive: %s, %s left", resp.Status, left)
				}
				if n := s.Arriving(); n != 0 {
					t.Errorf("%d bodies are arriving", n)
				}
			})
		}
	}
}

// However many strangers send slowly, there is room for those who have proven
// who they are: on that connection and, from the same place, on any. And a
// stranger who sends too little is not waited for.
func TestSlowBodiesOfStrangers(t *testing.T) {
	e := testenv.New(t)
	ann := e.Client(testenv.Owner)
	s := webapi.New(e.Platform, slog.New(slog.DiscardHandler))
	s.Limits.Requests, s.Limits.Arrival, s.Limits.Patience = 64, time.Hour, time.Hour // 16 bodies, 8 of strangers, one of each place
	url := listen(t, s, &http.Server{ConnState: s.Conn})
	// slow sends the head of a request and a byte of its body.
	slow := func(addr, header string) net.Conn {
		t.Helper()
		c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(addr)}}).Dial("tcp", strings.TrimPrefix(url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		fmt.Fprintf(c, "POST %s/users HTTP/1.1\r\nHost: x\r\n%sContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{", base, header)
		return c
	}
	status := func(c net.Conn) (n int) {
		t.Helper()
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		b := make([]byte, 12)
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatal(err)
		}
		fmt.Sscanf(string(b), "HTTP/1.1 %d", &n)
		return n
	}
	post := func(hc *http.Client, name string) int {
		t.Helper()
		body := fmt.Sprintf(`{"name":%q,"full_name":"X"}`, name)
		r, err := http.NewRequestWithContext(t.Context(), "POST", url+base+"/users", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", signer(t, ann.Client)("POST", base+"/users", []byte(body)))
		resp, err := hc.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		io.Copy(io.Discard, resp.Body)
		return resp.StatusCode
	}
	here, moving := from(t, "127.0.0.2"), from(t, "127.0.0.3")
	if got := post(here, "u1"); got != 201 {
		t.Fatalf("before: %d", got)
	}
	for i := range 8 {
		slow(fmt.Sprintf("127.0.0.%d", 10+i), "")
	}
	poll(t, "eight bodies arrive", func() bool { return s.Arriving() == 8 })
	if got := status(slow("127.0.0.30", "Authorization: "+signer(t, ann.Client)("POST", base+"/users", nil)+"\r\n")); got != 503 {
		t.Errorf("one more stranger, who claims to be somebody: %d", got)
	}
	if got := post(here, "u2"); got != 201 {
		t.Errorf("on the connection that is proven: %d", got)
	}
	if got := post(from(t, "127.0.0.2"), "u3"); got != 201 {
		t.Errorf("on another one from there: %d", got)
	}
	// The place is used up by one that is slow; who is proven is not.
	slow("127.0.0.2", "")
	poll(t, "nine bodies arrive", func() bool { return s.Arriving() == 9 })
	if got := post(from(t, "127.0.0.2"), "u4"); got != 429 {
		t.Errorf("a second body of the place: %d", got)
	}
	if got := post(here, "u5"); got != 201 {
		t.Errorf("on the connection that is proven, from a place that is used up: %d", got)
	}
	if got := post(moving, "u6"); got != 503 {
		t.Errorf("from a place where nobody was before: %d", got)
	}
	if resp := ask(t, moving, url, base+"/users", signer(t, ann.Client)("GET", base+"/users", nil)); resp.StatusCode != 200 {
		t.Errorf("without a body: %s", resp.Status)
	}
	if got := post(moving, "u7"); got != 201 {
		t.Errorf("after that: %d", got)
	}

	// A person may have many clients: one place has a quarter of it, whoever they are.
	s = webapi.New(e.Platform, slog.New(slog.DiscardHandler))
	s.Limits.Requests, s.Limits.Arrival, s.Limits.Patience = 64, time.Hour, time.Hour
	url = listen(t, s, &http.Server{ConnState: s.Conn})
	proven := func(addr string) net.Conn {
		t.Helper()
		c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(addr)}}).Dial("tcp", strings.TrimPrefix(url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		fmt.Fprintf(c, "GET %s/clients HTTP/1.1\r\nHost: x\r\nAuthorization: %s\r\n\r\n", base, signer(t, e.Client(testenv.Owner).Client)("GET", base+"/clients", nil))
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("a proof: %v, %v", resp, err)
		}
		io.Copy(io.Discard, resp.Body)
		fmt.Fprintf(c, "POST %s/users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{", base)
		return c
	}
	for range 4 {
		proven("127.0.0.50")
	}
	poll(t, "four bodies arrive", func() bool { return s.Arriving() == 4 })
	if got := status(proven("127.0.0.50")); got != 429 {
		t.Errorf("a fifth client's of one place: %d", got)
	}
	proven("127.0.0.51")
	poll(t, "one of another place arrives", func() bool { return s.Arriving() == 5 })

	// Strangers have to go on, and others have their time.
	s = webapi.New(e.Platform, slog.New(slog.DiscardHandler))
	s.Limits.Arrival, s.Limits.Patience = time.Hour, time.Millisecond
	url = listen(t, s, &http.Server{ConnState: s.Conn})
	if got := ask(t, here, url, base+"/users", signer(t, ann.Client)("GET", base+"/users", nil)).StatusCode; got != 200 {
		t.Fatalf("a proof: %d", got)
	}
	patient := slow("127.0.0.2", "")
	if got := status(slow("127.0.0.10", "")); got != 400 {
		t.Errorf("a stranger's that does not go on: %d", got)
	}
	if n := s.Arriving(); n != 1 {
		t.Errorf("%d bodies arrive", n)
	}
	fmt.Fprintf(patient, `%-19s`, "}")
	if got := status(patient); got != 401 {
		t.Errorf("one from a place that is known, when it is there: %d", got)
	}
}

// poll waits until ok.
func poll(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(what + ": not in 20 s")
		}
	}
}

// Agents that hang use up nothing that others need, and each has a few
// requests that hang.
func TestHangingAgentsCountApart(t *testing.T) { testenv.Each(t, hangingAgentsCountApart) }

func hangingAgentsCountApart(t *testing.T, e *testenv.Env) {
	s := webapi.New(e.Platform, slog.New(slog.DiscardHandler))
	s.Limits.Requests, s.Limits.Agents = 4, 9 // one of each place
	url := listen(t, s, &http.Server{})
	path := fmt.Sprint("/v1/agent/state?after=", e.Project(testenv.Project).Revision)
	var agents []*testenv.Server
	for i := range 3 {
		agents = append(agents, e.Enroll(testenv.Project, testenv.Facts(fmt.Sprintf("web%d", i))))
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	hang := func(a *testenv.Server) <-chan int {
		done := make(chan int, 1)
		r, _ := http.NewRequestWithContext(ctx, "GET", url+path, nil)
		r.Header.Set("Authorization", signer(t, a.Client)("GET", path, nil))
		before := s.Hanging()
		go func() {
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				done <- 0
				return
			}
			resp.Body.Close()
			done <- resp.StatusCode
		}()
		poll(t, "it hangs or ends", func() bool { return len(done) > 0 || s.Hanging() > before })
		return done
	}
	for i := range 8 {
		if done := hang(agents[i/4]); len(done) > 0 {
			t.Fatalf("request %d: %d", i, <-done)
		}
	}
	if status := <-hang(agents[0]); status != 429 {
		t.Errorf("a fifth of one agent: %d", status)
	}
	if done := hang(agents[2]); len(done) > 0 {
		t.Errorf("the ninth in all: %d", <-done)
	}
	if status := <-hang(agents[2]); status != 503 {
		t.Errorf("the tenth in all: %d", status)
	}
	if resp := ask(t, http.DefaultClient, url, "/v1/info", ""); resp.StatusCode != 200 {
		t.Errorf("somebody else: %s", resp.Status)
	}
	stop()
	poll(t, "all are gone", func() bool { return s.Hanging() == 0 })
}

// Over the limit of connections the next one is closed; what is open works.
func TestConnectionsAtOnce(t *testing.T) {
	e := testenv.New(t)
	url := limited(t, e, func(l *webapi.Limits) { l.Connections = 8 }) // two of each place
	dial := func(addr string) net.Conn {
		c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(addr)}}).Dial("tcp", strings.TrimPrefix(url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	works := func(c net.Conn) bool {
		fmt.Fprint(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		n, _ := c.Read(make([]byte, 1000))
		return n > 0
	}
	one, two := dial("127.0.0.2"), dial("127.0.0.2")
	if !works(one) || !works(two) {
		t.Fatal("two connections do not work")
	}
	if works(dial("127.0.0.2")) {
		t.Error("a third one of a place works")
	}
	if !works(dial("127.0.0.3")) || !works(one) {
		t.Error("another place's connection, or the first one, does not work")
	}
	two.Close()
	poll(t, "there is room again", func() bool { return works(dial("127.0.0.2")) })
}

// What cannot be done in time is refused, and is not done later.
func TestTimeOfARequest(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		url := limited(t, e, func(l *webapi.Limits) { l.Time = 100 * time.Millisecond })
		c := *e.Client(testenv.Owner).Client
		c.Audience, c.URL = e.URL, url
		alone, over := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(over)
			e.DB.Change(t.Context(), func(*store.Tx) (audit.Event, error) {
				alone <- struct{}{}
				<-alone
				return audit.Event{}, fmt.Errorf("nothing")
			})
		}()
		<-alone
		err := c.Do(t.Context(), "POST", base+"/users", map[string]string{"name": "late", "full_name": "X"}, nil)
		if sft.CodeOf(err) != sft.Unavailable || !strings.Contains(err.Error(), "in time") {
			t.Errorf("while another changes something: %v", err)
		}
		alone <- struct{}{}
		<-over
		if err := e.Service.Do(t.Context(), "GET", base+"/users/late", nil, nil); sft.CodeOf(err) != sft.NotFound {
			t.Errorf("the user that was not made: %v", err)
		}
	})
}

// /readyz says when requests should go elsewhere.
func TestReadyz(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		ctx := t.Context()
		if err := e.Platform.Ready(ctx); err != nil {
			t.Fatal(err)
		}
		sealer := e.Platform.Sealer
		e.Platform.Sealer = testenv.Sealer(t)
		if err := e.Platform.Ready(ctx); err == nil || !strings.Contains(err.Error(), "master key") {
			t.Errorf("with another master key: %v", err)
		}
		e.Platform.Sealer = sealer
		for _, tt := range []struct{ name, breaks, mends, want string }{
			{"an older schema", `UPDATE goose_db_version SET version_id = -version_id`, `UPDATE goose_db_version SET version_id = -version_id`, "schema has version"},
			{"nothing can be written", `ALTER TABLE settings RENAME COLUMN value TO gone`, `ALTER TABLE settings RENAME COLUMN gone TO value`, "database"},
		} {
			e.Exec(tt.breaks)
			if err := e.Platform.Ready(ctx); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v", tt.name, err)
			}
			e.Exec(tt.mends)
		}
		ready := func() int {
			resp := ask(t, e.HTTP(), e.URL, "/healthz", "")
			if resp.StatusCode != 200 {
				t.Errorf("/healthz: %s", resp.Status)
			}
			resp, err := e.HTTP().Get(e.URL + "/readyz")
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			return resp.StatusCode
		}
		if got := ready(); got != 200 {
			t.Errorf("/readyz: %d", got)
		}
		e.Platform.Stop()
		if got := ready(); got != 503 {
			t.Errorf("/readyz of one that stops: %d", got)
		}
	})
}

// One that is about to stop says so before it does, and goes on until then.
func TestDrain(t *testing.T) {
	e := testenv.New(t)
	s := webapi.New(e.Platform, slog.New(slog.DiscardHandler))
	url := listen(t, s, &http.Server{})
	for _, drained := range []bool{false, true} {
		want := map[string]int{"/readyz": 200, "/healthz": 200, "/v1/info": 200}
		if drained {
			s.Drain()
			want["/readyz"] = 503
		}
		for path, want := range want {
			resp, err := http.Get(url + path)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != want {
				t.Errorf("%s, drained %v: %s", path, drained, resp.Status)
			}
		}
	}
}

func TestCheckJSON(t *testing.T) {
	for body, ok := range map[string]bool{
		`{}`:                            true,
		`[{"a":1},{"a":2}]`:             true,
		`{"a":{"a":{"a":[1,"a"]}}}`:     true,
		`{"a":"b","b":"a"}`:             true,
		` {"a":1} ` + "\n":              true,
		`{"a":1,"a":1}`:                 false,
		`{"a":1,"A":2}`:                 false,
		`{"s":1,"ſ":2}`:                 false,
		`{"a":1,"\u0061":2}`:            false,
		`{"x":[{"a":{},"b":1,"a":[]}]}`: false,
		`{"a":1} {"b":2}`:               false,
		`{"a":1}]`:                      false,
		strings.Repeat("[", 16) + strings.Repeat("]", 16): true,
		strings.Repeat("[", 17) + strings.Repeat("]", 17): false,
		strings.Repeat(`{"a":`, 1000):                     false,
		`{"a":`:                                           true, // no JSON: the reader says so
	} {
		if err := webapi.CheckJSON([]byte(body)); (err == nil) != ok {
			t.Errorf("%.60s: %v", body, err)
		}
	}
}

// FuzzCheckJSON checks what must hold whatever is sent: what passes means the
// same however encoding/json reads it, so that nothing in it is lost.
func FuzzCheckJSON(f *testing.F) {
	for _, s := range []string{`{"a":[1,{"b":null}],"c":"d"}`, `{"a":1,"A":2}`, `[[]]`, `{`, `1 2`, `{"\u0061":1,"a":2}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if webapi.CheckJSON(body) != nil || !json.Valid(body) {
			return
		}
		var v any
		if err := json.Unmarshal(body, &v); err != nil {
			t.Fatal(err)
		}
		// What was read, written again, has all the text's fields and passes.
		again, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		fields, depth := count(v)
		if there := colons(body); depth > 16 || there != fields || webapi.CheckJSON(again) != nil {
			t.Errorf("%s has %d fields, of which %d are read, in %d levels", body, there, fields, depth)
		}
	})
}

// colons counts the colons of a text outside of its strings: one for each
// field.
func colons(body []byte) (n int) {
	quoted := false
	for i := 0; i < len(body); i++ {
		switch c := body[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case c == ':' && !quoted:
			n++
		}
	}
	return n
}

// count returns how many fields v has, and how many levels.
func count(v any) (fields, depth int) {
	switch v := v.(type) {
	case map[string]any:
		for _, e := range v {
			f, d := count(e)
			fields, depth = fields+f+1, max(depth, d)
		}
		return fields, depth + 1
	case []any:
		for _, e := range v {
			f, d := count(e)
			fields, depth = fields+f, max(depth, d)
		}
		return fields, depth + 1
	}
	return 0, 0
}

// FuzzClaimed checks what must hold whatever is sent: what a header claims is
// short, so that it can be a key of a table.
func FuzzClaimed(f *testing.F) {
	k, _ := testenv.Key(f)
	h, err := api.Sign(k, "client:1", "https://x", "GET", "/", nil, time.Now())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(h)
	f.Add("Bearer a.e30.b")
	f.Add("..")
	f.Fuzz(func(t *testing.T, header string) {
		if c := webapi.Claimed(header); len(c) > 120 {
			t.Errorf("%q claims %q", header, c)
		}
	})
}

// Claimed says who will be found to have signed, or nothing of the table would
// be theirs.
func TestClaimed(t *testing.T) {
	e := testenv.New(t)
	ann, host := e.Client("ann"), e.Server(testenv.Project, testenv.Facts("web01"))
	for want, header := range map[string]string{
		"client:" + ann.ID:     signer(t, ann.Client)("GET", "/", nil),
		"server:" + host.ID:    signer(t, host.Client)("GET", "/", nil),
		"key:" + e.Init.Key.ID: "Bearer " + e.Service.Token,
		"":                     "Bearer x",
	} {
		if got := webapi.Claimed(header); got != want {
			t.Errorf("claimed is %q, want %q", got, want)
		}
	}
}
