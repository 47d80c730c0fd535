package webapi_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"sft"
	"sft/internal/audit"
	"sft/internal/platform"
	"sft/internal/store"
	"sft/internal/testenv"
	"sft/internal/webapi"
)

// docs/metrics.md has a row for each metric, with its labels, and no other.
func TestMetricsAreDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented, there []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(sft_\\w+)` \\| \\w+ \\|([^|]*)\\|").FindAllStringSubmatch(string(b), -1) {
		documented = append(documented, m[1]+" "+strings.Join(regexp.MustCompile(`\w+`).FindAllString(m[2], -1), ","))
	}
	s := webapi.New(&platform.Platform{DB: &store.DB{}}, slog.New(slog.DiscardHandler))
	for _, d := range webapi.MetricDescs(s) {
		m := regexp.MustCompile(`fqName: "(\w+)", help: "([^"]*)",.* constLabels: \{([^}]*)\}, variableLabels: \{([^}]*)\}`).FindStringSubmatch(d)
		if m == nil || m[2] == "" {
			t.Fatalf("the metric is %s", d)
		}
		if strings.HasPrefix(m[1], "go_") || strings.HasPrefix(m[1], "process_") {
			continue
		}
		labels := regexp.MustCompile(`="[^"]*"`).ReplaceAllString(m[3], "")
		there = append(there, m[1]+" "+strings.Trim(labels+","+m[4], ","))
	}
	slices.Sort(documented)
	slices.Sort(there)
	if !slices.Equal(documented, there) {
		t.Errorf("docs/metrics.md has\n%s\nand there are\n%s", strings.Join(documented, "\n"), strings.Join(there, "\n"))
	}
}

// What happens is counted, and nobody is named.
func TestMetrics(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Grant(testenv.Project, "devs", false, "ann")
		host, ann := e.Server(testenv.Project, testenv.SSHFacts(t, "web01")), e.Client("ann")
		s := webapi.New(e.Platform, slog.New(slog.DiscardHandler))
		s.MetricsToken = sft.NewSecret("the token of the metrics")
		url := listen(t, s, &http.Server{})
		ann.Audience, ann.URL, host.Audience, host.URL, e.Service.URL = e.URL, url, e.URL, url, url
		scrape := func(token string) (int, string) {
			r, _ := http.NewRequestWithContext(t.Context(), "GET", url+"/metrics", nil)
			r.Header.Set("Authorization", token)
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			return resp.StatusCode, string(b)
		}
		for token, want := range map[string]int{"": 401, "Bearer x": 401, "Bearer the token of the metrics": 200} {
			if got, _ := scrape(token); got != want {
				t.Errorf("with %q: %d, want %d", token, got, want)
			}
		}

		before := len(e.Events())
		if _, _, err := e.ConnectSSH(ann, "web01"); err != nil {
			t.Fatal(err)
		}
		e.Report(host)
		if _, _, err := e.Connect(ann, "not-there"); sft.CodeOf(err) != sft.NotFound {
			t.Errorf("to nowhere: %v", err)
		}
		if err := ann.Do(t.Context(), "POST", base+"/connect", map[string]string{"target": "web01", "service": "telnet"}, nil); sft.CodeOf(err) != sft.UnknownService {
			t.Errorf("by telnet: %v", err)
		}
		_ = e.Anonymous().Do(t.Context(), "POST", base+"/service_token", map[string]string{"key_id": "x", "key_secret": "y"}, nil)
		ann.Key = nil
		_ = ann.Do(t.Context(), "POST", base+"/service_token", map[string]string{"key_id": "x", "key_secret": "y"}, nil)
		_ = ann.Do(t.Context(), "GET", "/v1/web01/ann", nil, nil)
		_ = ann.Do(t.Context(), "GET", "/web01/ann", nil, nil)

		_, text := scrape("Bearer the token of the metrics")
		for _, want := range []string{
			`sft_platform_connects_total{code="ok",service="ssh"} 1`,
			`sft_platform_connects_total{code="resource_does_not_exist",service="rdp"} 1`,
			`sft_platform_connects_total{code="unknown_service",service="other"} 1`,
			`sft_platform_certificates_issued_total{kind="ssh_user"} 1`,
			`sft_platform_certificates_issued_total{kind="host"} 1`,
			`sft_platform_sign_ins_failed_total{by="key"} 1`,
			`sft_platform_http_requests_total{code="2xx",route="POST /v1/teams/{team}/connect"} 1`,
			`sft_platform_http_requests_total{code="4xx",route="none"} 1`,
			`sft_platform_http_requests_total{code="4xx",route="/v1/"} 1`,
			`sft_platform_servers{state="active"} 1`,
			fmt.Sprintf(`sft_platform_audit_events_total %d`, len(e.Events())-before),
			`sft_platform_refusals_total{code="resource_does_not_exist"} 2`,
		} {
			if !strings.Contains(text, want+"\n") {
				t.Errorf("there is no %s", want)
			}
		}
		for _, name := range []string{"web01", "ann", testenv.Team + "\"", testenv.Project + "\"", "telnet", "not-there", host.ID, ann.ID, "127.0.0.1", e.DBURL} {
			if i := strings.Index(text, name); i >= 0 {
				t.Errorf("it names %s: %s", name, text[max(0, i-100):i+50])
			}
		}
		if t.Failed() {
			t.Log(regexp.MustCompile(`(?m)^(go_|process_|#|.*_bucket).*\n`).ReplaceAllString(text, ""))
		}
	})
}

// Without a token there is no page, and the listener on loopback is not to be
// reached under another name.
func TestWhoMayReadMetrics(t *testing.T) {
	e := testenv.New(t)
	if status, code := call(t, e, func(string, string, []byte) string { return "Bearer " }, "GET", "/metrics", "", nil); status != 404 {
		t.Errorf("without a token that was set: %d %s", status, code)
	}
	s := webapi.New(e.Platform, slog.New(slog.DiscardHandler))
	url := listen(t, s.LocalMetrics(), &http.Server{})
	for host, want := range map[string]int{"": 200, "localhost": 200, "[::1]:80": 200, "127.9.9.9": 200, "rebound.example.com": 403, "192.0.2.1:80": 403, "localhost.example.com": 403} {
		r, _ := http.NewRequestWithContext(t.Context(), "GET", url+"/metrics", nil)
		r.Host = host
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("called as %q: %s, want %d", host, resp.Status, want)
		}
	}
}

// A sink takes everything, or fails.
type sink struct {
	name string
	err  error
}

func (s sink) Name() string                            { return s.name }
func (s sink) Send(context.Context, audit.Batch) error { return s.err }

// What of the audit is not yet where it is to be is shown: events that are not
// sealed, and each export by its place in the settings.
func TestMetricsOfTheAudit(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		s := webapi.New(e.Platform, slog.New(slog.DiscardHandler))
		shows := func(want string) bool {
			w := httptest.NewRecorder()
			r := httptest.NewRequest("GET", "http://localhost/metrics", nil)
			s.LocalMetrics().ServeHTTP(w, r)
			if text := w.Body.String(); strings.Contains(text, "hook.example.com") {
				t.Fatalf("it names the export: %s", text)
			}
			return strings.Contains(w.Body.String(), "\nsft_platform_audit_"+want+"\n")
		}
		n := len(e.Events())
		if !shows(fmt.Sprintf("unsealed %d", n)) || !shows("seal_failing 0") {
			t.Errorf("%d events before any is sealed are not shown", n)
		}
		e.Platform.SealEvery = 5 * time.Millisecond
		e.Platform.Exports = []platform.Sink{sink{"https://hook.example.com/1", nil}, sink{"https://hook.example.com/2", errors.New("no room")}}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); e.Platform.Run(ctx) }()
		defer func() { stop(); <-ended }()
		for _, want := range []string{"unsealed 0", `export_lag{export="1"} 0`, `export_failing{export="1"} 0`, `export_failing{export="2"} 1`} {
			poll(t, want, func() bool { return shows(want) })
		}
		if lag := e.Platform.AuditExports()[1].Lag; lag < int64(n) || !shows(fmt.Sprintf(`export_lag{export="2"} %d`, lag)) {
			t.Errorf("the export that fails lags by %d of %d, which is not shown", lag, n)
		}
		e.Exec(`UPDATE checkpoints SET note = 'x'`)
		e.User("bob")
		poll(t, "the sealing fails", func() bool { return shows("seal_failing 1") })
	})
}
