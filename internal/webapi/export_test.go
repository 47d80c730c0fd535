package webapi

import (
	"github.com/prometheus/client_golang/prometheus"

	"sft/internal/platform"
)

// A Row is a route as the tests see it.
type Row struct {
	Method, Path, Access string
}

// Rows returns the table of routes.
func Rows(p *platform.Platform) (list []Row) {
	names := map[access]string{anyone: "anyone", agent: "agent", device: "device", signedIn: "signedIn", person: "person", deviceOrKey: "deviceOrKey"}
	for _, r := range routes(p) {
		list = append(list, Row{r.method, r.path, names[r.access]})
	}
	return list
}

// Reference is the API as an OpenAPI document.
var Reference = reference

// Next is where a sign-in leads.
var Next = next

// The limits' own parts.
var (
	CheckJSON = checkJSON
	Claimed   = claimed
)

// MetricDescs are the metrics of s as they describe themselves.
func MetricDescs(s *Server) (list []string) {
	ch := make(chan *prometheus.Desc)
	go func() { s.metrics.registry.Describe(ch); close(ch) }()
	for d := range ch {
		list = append(list, d.String())
	}
	return list
}

// Hanging is how many requests of agents hang.
func (s *Server) Hanging() int { n, _ := s.hanging.count(); return n }

// UnderWay is how many requests are, and Arriving how many bodies of some.
func (s *Server) UnderWay() int { n, _ := s.requests.count(); return n }
func (s *Server) Arriving() int { n, _ := s.arriving.count(); return n }
