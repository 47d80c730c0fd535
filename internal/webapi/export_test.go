package webapi

import "sft/internal/platform"

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

// Next is where a sign-in leads.
var Next = next
