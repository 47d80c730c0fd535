package platform_test

import (
	"net/url"
	"testing"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/testenv"
)

// The audit is searched by type, user, target and time, and bad questions are
// refused.
func TestSearchingTheAudit(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		began := time.Now()
		e.User("ann")
		e.Client("ann")
		search := func(q url.Values) ([]audit.Event, error) {
			var list api.List[audit.Event]
			err := e.Service.Do(t.Context(), "GET", base+"/auditsV2?"+q.Encode(), nil, &list)
			return list.List, err
		}
		all := e.Events()
		for _, tt := range []struct {
			name string
			q    url.Values
			want func(audit.Event) bool
		}{
			{"everything", url.Values{}, func(audit.Event) bool { return true }},
			{"a type", url.Values{"type": {"user.create"}}, func(v audit.Event) bool { return v.Kind == audit.UserCreate }},
			{"a user", url.Values{"user": {"ANN"}}, func(v audit.Event) bool { return v.Actor.Name == "ann" }},
			{"a target", url.Values{"target": {"Olive"}}, func(v audit.Event) bool { return v.Target == "olive" }},
			{"both", url.Values{"target": {"ann"}, "type": {"user.create"}}, func(v audit.Event) bool { return v.Target == "ann" && v.Kind == audit.UserCreate }},
			{"since then", url.Values{"from": {began.Add(-time.Hour).Format(time.RFC3339Nano)}, "to": {began.Add(time.Hour).Format(time.RFC3339)}}, func(audit.Event) bool { return true }},
			{"before that", url.Values{"to": {"2026-01-01T00:00:00+01:00"}}, func(audit.Event) bool { return false }},
			{"what cannot be", url.Values{"user": {"a\x00b"}}, func(audit.Event) bool { return false }},
		} {
			var want []string
			for _, v := range all {
				if tt.want(v) {
					want = append(want, v.ID)
				}
			}
			got, err := search(tt.q)
			if err != nil || len(got) != len(want) {
				t.Errorf("%s: %s, %v, want %d of %s", tt.name, told(got), err, len(want), told(all))
				continue
			}
			for i := range got {
				if got[i].ID != want[i] {
					t.Errorf("%s: the order is another", tt.name)
				}
			}
		}
		for _, q := range []url.Values{{"from": {"yesterday"}}, {"to": {"2026-01-01"}}, {"offset": {"17"}}, {"offset": {"' OR 1=1"}}} {
			_, err := search(q)
			wantCode(t, q.Encode(), err, sft.Invalid)
		}
	})
}
