package platform_test

import (
	"fmt"
	"net/url"
	"testing"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/store"
	"sft/internal/testdb"
	"sft/internal/testenv"
)

// BenchmarkServers is what lists and names cost in a project of 50,000 servers,
// of which 100 have the label api.env=few and all have api.env.
func BenchmarkServers(b *testing.B) {
	const n, few = 50_000, 100
	for name, url := range map[string]string{"sqlite": testdb.SQLite(b), "postgres": testdb.Postgres(b)} {
		b.Run(name, func(b *testing.B) { benchServers(b, testenv.NewOn(b, url), n, few) })
	}
}

func benchServers(b *testing.B, e *testenv.Env, n, few int) {
	e.Grant("big", "dev", false, "ann")
	e.Grant("big", "few", false, "bob")
	e.Do("PUT", "/projects/big/groups/few", m{"server_access": true, "servers_selector": "env=few"}, nil)
	pr := e.Project("big")
	now := e.Clock.Now()
	if err := e.DB.Change(b.Context(), func(tx *store.Tx) (audit.Event, error) {
		team, err := tx.Team(testenv.Team)
		if err != nil {
			return audit.Event{}, err
		}
		for i := range n {
			s := store.ServerRecord{ID: audit.NewID(), TeamID: team.ID, ProjectID: pr.ID, Project: "big", DeviceKey: fmt.Append(nil, i), RegisteredAt: now, LastSeen: &now,
				Facts: testenv.Facts(fmt.Sprintf("host%05d", i)), Given: m2{"api.env": "many", "api.role": "web"}}
			s.Facts.Labels = m2{"sftd.rack": fmt.Sprint(i % 40)}
			if i < few {
				s.Given["api.env"] = "few"
			}
			if err := tx.AddServer(s); err != nil {
				return audit.Event{}, err
			}
			if err := tx.SetLabels(s); err != nil {
				return audit.Event{}, err
			}
			if _, err := tx.TakeNames(pr.ID, s.ID, []string{s.Facts.Hostname}); err != nil {
				return audit.Event{}, err
			}
		}
		return audit.Event{ID: audit.NewID(), Time: now, Kind: audit.ServerEnroll, Team: testenv.Team, Actor: audit.Actor{Kind: "platform"}, Outcome: audit.Success}, nil
	}); err != nil {
		b.Fatal(err)
	}
	ann, bob := e.Client("ann"), e.Client("bob")
	list := func(c *testenv.Client, query string, want int) func(*testing.B) {
		return func(b *testing.B) {
			for b.Loop() {
				var l api.List[sft.Server]
				if err := c.Do(b.Context(), "GET", base+"/servers?"+query, nil, &l); err != nil || len(l.List) != want {
					b.Fatalf("%d servers, %v", len(l.List), err)
				}
			}
		}
	}
	b.Run("list/a selector of 100", list(bob, "", few))
	b.Run("list/a filter of 100", list(ann, "selector="+url.QueryEscape("env=few"), few))
	b.Run("list/what must not be", list(ann, "selector="+url.QueryEscape("env!=many"), few))
	b.Run("list/of the host's word", list(ann, "selector="+url.QueryEscape("sftd.rack=7,env=few"), (few+32)/40))
	b.Run("resolve", func(b *testing.B) {
		for b.Loop() {
			if err := bob.Do(b.Context(), "GET", base+"/resolve?target=host00042", nil, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
}
