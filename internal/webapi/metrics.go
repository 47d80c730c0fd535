package webapi

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"sft"
	"sft/internal/api"
	"sft/internal/frame"
	"sft/internal/platform"
)

// metrics are what the platform counts, for docs/metrics.md. Labels have the
// values of fixed tables and never what somebody sent: there is no name of a
// person, a server or a team in any.
type metrics struct {
	registry *prometheus.Registry

	requests     *prometheus.CounterVec
	seconds      *prometheus.HistogramVec
	refusals     *prometheus.CounterVec
	limited      *prometheus.CounterVec
	connects     *prometheus.CounterVec
	certificates *prometheus.CounterVec
	signInsLost  *prometheus.CounterVec
	events       prometheus.Counter
	transactions *prometheus.HistogramVec
	waits        *prometheus.HistogramVec
	statements   prometheus.Counter
}

// namespace begins each name.
const namespace = "sft_platform"

func newMetrics(s *Server) *metrics {
	r := prometheus.NewRegistry()
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
		r.MustRegister(c)
		return c
	}
	counter := func(name, help string) prometheus.Counter { return counters(name, help).WithLabelValues() }
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: namespace, Name: name, Help: help, Buckets: buckets}, labels)
		r.MustRegister(h)
		return h
	}
	gauge := func(name, help string, v func() int) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help}, func() float64 { return float64(v()) }))
	}
	short := []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10}
	m := &metrics{
		registry:     r,
		requests:     counters("http_requests_total", "Requests answered, by route and class of status.", "route", "code"),
		seconds:      histogram("http_request_seconds", "Time to answer a request, by route; those that hang are left out.", short, "route"),
		refusals:     counters("refusals_total", "Requests of the API that were refused, by error code.", "code"),
		limited:      counters("limited_total", "Requests and connections over a limit, by limit.", "limit"),
		connects:     counters("connects_total", "Answers to clients that want to get to a server, by service and error code (ok: let in).", "service", "code"),
		certificates: counters("certificates_issued_total", "Certificates issued, by kind.", "kind"),
		signInsLost:  counters("sign_ins_failed_total", "Sign-ins that failed, by what was wrong.", "by"),
		events:       counter("audit_events_total", "Audit events stored."),
		transactions: histogram("db_transaction_seconds", "Time of a transaction with its waiting, by kind and outcome.", short, "kind", "outcome"),
		waits:        histogram("db_wait_seconds", "Time a transaction waited for a connection and for the lock of writers, by kind.", short, "kind"),
		statements:   counter("db_statements_total", "SQL statements run."),
	}
	gauge("requests_in_flight", "Requests under way; those that hang are left out.", func() int { n, _ := s.requests.count(); return n })
	gauge("agent_requests_hanging", "Requests of agents that wait for news.", func() int { n, _ := s.hanging.count(); return n })
	gauge("agents_connected", "Agents of which a request waits for news.", func() int { _, n := s.hanging.count(); return n })
	gauge("connections_open", "Connections open.", s.Connections)
	gauge("stopping", "1 while the platform stops, else 0.", func() int { return oneIf(s.p.Stopping()) })
	gauge("audit_seal_failing", "1 while the sealing of audit events fails, else 0.", func() int { return oneIf(s.p.AuditSeal().Error != "") })
	build := prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Name: "build_info", Help: "1; the labels tell what runs.",
		ConstLabels: prometheus.Labels{"version": sft.Version, "goversion": runtime.Version()}})
	build.Set(1)
	r.MustRegister(build, &pools{s: s}, &servers{s: s}, &audits{s: s}, &acmes{s: s}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func oneIf(b bool) int {
	if b {
		return 1
	}
	return 0
}

// served counts an answer. The route is the pattern of one of the table, or
// none.
func (m *metrics) served(route string, status int, took time.Duration) {
	if route == "" {
		route = "none"
	}
	m.requests.WithLabelValues(route, strconv.Itoa(status/100)+"xx").Inc()
	if !strings.HasSuffix(route, statePath) {
		m.seconds.WithLabelValues(route).Observe(took.Seconds())
	}
}

// handled counts what an operation has done.
func (m *metrics) handled(rt route, body []byte, reply any, err error) {
	switch v := reply.(type) {
	case api.ConnectReply:
		code := "ok"
		if err != nil {
			code = string(sft.CodeOf(err))
		}
		m.connects.WithLabelValues(service(body), code).Inc()
		if err == nil {
			m.issued(v)
		}
	case api.ReportReply:
		if len(v.BrokerCertificate) > 0 {
			m.certificates.WithLabelValues("host").Inc()
		}
		m.certificates.WithLabelValues("ssh_host").Add(float64(len(v.SSHHostCertificates)))
	case api.ServiceTokenReply:
		if sft.CodeOf(err) == sft.SignIn && err != nil {
			m.signInsLost.WithLabelValues("key").Inc()
		}
	}
}

// issued counts the certificates of a way.
func (m *metrics) issued(r api.ConnectReply) {
	if len(r.Certificate) > 0 {
		m.certificates.WithLabelValues("access").Inc()
	}
	for _, h := range r.Route {
		if h.SSH != nil && h.SSH.Certificate != "" {
			m.certificates.WithLabelValues("ssh_user").Inc()
		}
	}
}

// service is the service that a body of connect names, or "other".
func service(body []byte) string {
	var r struct {
		Service string `json:"service"`
	}
	_ = json.Unmarshal(body, &r) // no service is another, too
	switch r.Service {
	case frame.RDP, frame.SSH, frame.Ping:
		return r.Service
	}
	return "other"
}

// span counts a transaction.
func (m *metrics) span(s platform.Span) {
	outcome := "stored"
	if s.Failed {
		outcome = "undone"
	}
	m.transactions.WithLabelValues(s.Kind, outcome).Observe(s.Took.Seconds())
	m.waits.WithLabelValues(s.Kind).Observe(s.Waited.Seconds())
	m.statements.Add(float64(s.Statements))
	if !s.Failed {
		m.events.Add(float64(s.Events))
	}
}

// pools tells of the database's connections.
type pools struct{ s *Server }

var (
	descConns    = prometheus.NewDesc(namespace+"_db_connections", "Connections to the database, by pool and state.", []string{"pool", "state"}, nil)
	descPoolWait = prometheus.NewDesc(namespace+"_db_pool_wait_seconds_total", "Time waited for a connection of a pool.", []string{"pool"}, nil)
	descServers  = prometheus.NewDesc(namespace+"_servers", "Servers with an agent, by state; counted every half minute at most.", []string{"state"}, nil)
	descUnsealed = prometheus.NewDesc(namespace+"_audit_unsealed", "Audit events that are not sealed yet.", nil, nil)
	descLag      = prometheus.NewDesc(namespace+"_audit_export_lag", "Sealed audit events that an export has not sent yet, by its place in the settings.", []string{"export"}, nil)
	descFailing  = prometheus.NewDesc(namespace+"_audit_export_failing", "1 while an export fails, else 0, by its place in the settings.", []string{"export"}, nil)
)

// Describe implements prometheus.Collector.
func (p *pools) Describe(ch chan<- *prometheus.Desc) { ch <- descConns; ch <- descPoolWait }

// Collect implements prometheus.Collector.
func (p *pools) Collect(ch chan<- prometheus.Metric) {
	for name, st := range p.s.p.DB.Pools() {
		ch <- prometheus.MustNewConstMetric(descConns, prometheus.GaugeValue, float64(st.InUse), name, "used")
		ch <- prometheus.MustNewConstMetric(descConns, prometheus.GaugeValue, float64(st.Idle), name, "idle")
		ch <- prometheus.MustNewConstMetric(descConns, prometheus.GaugeValue, float64(st.MaxOpenConnections), name, "most")
		ch <- prometheus.MustNewConstMetric(descPoolWait, prometheus.CounterValue, st.WaitDuration.Seconds(), name)
	}
}

// serversFor is how long a count of servers is good: it reads all of them.
const serversFor = 30 * time.Second

// servers tells how many servers there are.
type servers struct {
	s *Server

	mu               sync.Mutex
	at               time.Time
	active, inactive int
}

// Describe implements prometheus.Collector.
func (c *servers) Describe(ch chan<- *prometheus.Desc) { ch <- descServers }

// Collect implements prometheus.Collector.
func (c *servers) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at.IsZero() || time.Since(c.at) >= serversFor {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		active, inactive, err := c.s.p.CountServers(ctx)
		if err != nil {
			ch <- prometheus.NewInvalidMetric(descServers, err)
			return
		}
		c.active, c.inactive, c.at = active, inactive, time.Now()
	}
	ch <- prometheus.MustNewConstMetric(descServers, prometheus.GaugeValue, float64(c.active), "active")
	ch <- prometheus.MustNewConstMetric(descServers, prometheus.GaugeValue, float64(c.inactive), "inactive")
}

// audits tells what of the audit is not yet where it is to be. An export's name
// is an address: its place in the settings stands for it.
type audits struct{ s *Server }

// Describe implements prometheus.Collector.
func (c *audits) Describe(ch chan<- *prometheus.Desc) {
	ch <- descUnsealed
	ch <- descLag
	ch <- descFailing
}

// Collect implements prometheus.Collector.
func (c *audits) Collect(ch chan<- prometheus.Metric) {
	for i, x := range c.s.p.AuditExports() {
		place := strconv.Itoa(i + 1)
		ch <- prometheus.MustNewConstMetric(descLag, prometheus.GaugeValue, float64(x.Lag), place)
		ch <- prometheus.MustNewConstMetric(descFailing, prometheus.GaugeValue, float64(oneIf(x.Error != "")), place)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	n, _, err := c.s.p.CountUnsealed(ctx)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(descUnsealed, err)
		return
	}
	ch <- prometheus.MustNewConstMetric(descUnsealed, prometheus.GaugeValue, float64(n))
}

// acmes tells of the certificate by an ACME authority, where it is by one.
type acmes struct{ s *Server }

var (
	descEnd      = prometheus.NewDesc(namespace+"_certificate_not_after_timestamp_seconds", "When the certificate by the ACME authority ends; 0 before there is one.", nil, nil)
	descFailures = prometheus.NewDesc(namespace+"_acme_failures_total", "Tries of this process to get a certificate that failed.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c *acmes) Describe(ch chan<- *prometheus.Desc) { ch <- descEnd; ch <- descFailures }

// Collect implements prometheus.Collector.
func (c *acmes) Collect(ch chan<- prometheus.Metric) {
	a := c.s.p.ACME
	if a == nil {
		return
	}
	end := 0.0
	if t := a.End(); !t.IsZero() {
		end = float64(t.Unix())
	}
	ch <- prometheus.MustNewConstMetric(descEnd, prometheus.GaugeValue, end)
	ch <- prometheus.MustNewConstMetric(descFailures, prometheus.CounterValue, float64(a.Failures()))
}

// metricsHandler shows the metrics, one reader at a time. One that cannot be
// had is left out.
func (s *Server) metricsHandler() http.Handler {
	return promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 2, ErrorHandling: promhttp.ContinueOnError})
}

// metricsByToken shows the metrics to whoever has the token for it. Without
// one that was set there is no such page.
func (s *Server) metricsByToken(w http.ResponseWriter, r *http.Request) {
	pass, err := s.begin(w, r, "")
	defer pass.end()
	if err == nil {
		want, got := sha256.Sum256([]byte("Bearer "+s.MetricsToken.Reveal())), sha256.Sum256([]byte(r.Header.Get("Authorization")))
		switch {
		case s.MetricsToken.Empty():
			err = &sft.Error{Code: sft.NotFound, Msg: "there is no such page", Hint: "see docs/metrics.md for who may read the metrics"}
		case subtle.ConstantTimeCompare(want[:], got[:]) != 1:
			err = &sft.Error{Code: sft.SignIn, Msg: "the metrics are for who has their token", Hint: "send it as Authorization: Bearer"}
		default:
			s.showMetrics.ServeHTTP(w, r)
			return
		}
		if e := pass.nobody(); e != nil {
			err = e
		}
	}
	s.fail(w, r, err)
}

// LocalMetrics is the handler of a listener for metrics alone, on loopback and
// without TLS. It answers only to whoever calls it by a loopback address: a
// web page cannot be led there under another name.
func (s *Server) LocalMetrics() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		if ip := net.ParseIP(strings.Trim(host, "[]")); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			http.Error(w, "call it by a loopback address", http.StatusForbidden)
			return
		}
		s.showMetrics.ServeHTTP(w, r)
	})
	return mux
}
