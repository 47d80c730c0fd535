package store

import (
	"context"
	"database/sql"
	"strings"
	"time"
)

// A Table is a table of the schema, for the tests.
type Table struct {
	Name           string
	Columns, Kinds []string
}

// Tables lists the schema.
func (n Notes) Tables() (list []Table, err error) {
	tables, err := n.tables()
	for _, t := range tables {
		list = append(list, Table{t.name, t.columns, t.kinds})
	}
	return list, err
}

// Alone is Change without an event, so that a test has nothing but what it
// stores.
func Alone(ctx context.Context, db *DB, fn func(*Tx) error) error {
	return db.in(ctx, db.write, &sql.TxOptions{Isolation: db.d.write}, "change", db.d.change, func(n Notes) error { return fn(&Tx{Notes: n}) })
}

// SQL is the text of the query and its arguments, for the test of its plan.
func (q EventQuery) SQL() (string, []any) { return q.sql() }

// FromSQL are the texts of the two queries by which a page from a moment on
// begins, and their arguments.
func FromSQL(team, id string, end time.Time) (first, number string, firstArgs, numberArgs []any) {
	first, firstArgs = firstSQL(team, id)
	number, numberArgs = numberSQL(team, id, idFrom(end))
	return first, number, firstArgs, numberArgs
}

// ServersEitherWay is ServersByID with labels that are common, or that are not.
func (n Notes) ServersEitherWay(teamID string, s ServerFilter, p Page, common bool) ([]ServerRecord, error) {
	for range s.Labels {
		s.common = append(s.common, common)
	}
	return paged(n, scanServer, s.byID(teamID), p)
}

// Labelled counts labels, up to most.
func (n Notes) Labelled(projects []string, alternatives []Labelled, most int64) (int64, error) {
	return n.labelled(projects, alternatives, most)
}

// ExplainPages explains the queries of pages in the words of the database:
// each by what it is a page of.
func (tx *Tx) ExplainPages(teamID, projectID, userID, groupID string, p Page) (map[string][]string, error) {
	explain := "EXPLAIN QUERY PLAN "
	scan := func(s scanner) (v string, err error) {
		var n int
		return v, s.Scan(&n, &n, &n, &v)
	}
	if tx.d.change != "" { // PostgreSQL
		explain = "EXPLAIN (ANALYZE, TIMING OFF, COSTS OFF) "
		scan = func(s scanner) (v string, err error) { return v, s.Scan(&v) }
	}
	plans := map[string][]string{}
	for what, l := range map[string]listing{
		"servers":                       ServerFilter{}.byID(teamID),
		"servers that are active":       ServerFilter{State: "ACTIVE", SeenSince: 1}.byID(teamID),
		"servers of a project":          ServerFilter{Projects: []string{projectID}}.byID(teamID),
		"servers of several projects":   ServerFilter{Projects: []string{projectID, "x", "y"}}.byID(teamID),
		"servers of a host name":        ServerFilter{Hostname: "HOST-777"}.byID(teamID),
		"servers of a canonical name":   ServerFilter{CanonicalName: "name-777"}.byID(teamID),
		"servers behind a bastion":      ServerFilter{Bastion: "GW"}.byID(teamID),
		"servers behind none":           ServerFilter{Bastion: "no"}.byID(teamID),
		"servers of another name":       ServerFilter{AltName: "alias-777"}.byID(teamID),
		"servers of both":               ServerFilter{AltName: "alias-777", Bastion: "gw", Projects: []string{projectID}}.byID(teamID),
		"servers with a common label":   ServerFilter{Projects: []string{projectID, "x"}, Labels: [][]Labelled{{{Names: []string{"api.env"}, Values: []string{"prod"}}}}, common: []bool{true}}.byID(teamID),
		"servers of a cloud":            ServerFilter{CloudProvider: "aws"}.byID(teamID),
		"servers of no cloud":           ServerFilter{CloudProvider: "no", Projects: []string{projectID}}.byID(teamID),
		"clients":                       clientsByID(teamID, "", ""),
		"clients of a user":             clientsByID(teamID, userID, ""),
		"clients of a state":            clientsByID(teamID, "", "ACTIVE"),
		"preauthorizations":             preauthsByID(projectID, time.UnixMicro(0)),
		"users by name":                 UserFilter{}.byName(teamID),
		"people by name":                UserFilter{Type: "human"}.byName(teamID),
		"users by id":                   UserFilter{NotDeleted: true}.byID(teamID),
		"members of a group":            UserFilter{MemberOf: groupID, NotDeleted: true}.byID(teamID),
		"people who are not in a group": UserFilter{NotIn: groupID}.byID(teamID),
	} {
		if strings.HasSuffix(what, " common label") && tx.d.commonLabels == 0 {
			continue // by what it has counted, and not by the page
		}
		query, args := l.page(p)
		plan, err := all(tx.Notes, scan, explain+query, args...)
		if err != nil {
			return nil, err
		}
		plans[what] = plan
	}
	return plans, nil
}

// BeginLocked begins a change on PostgreSQL, and leaves its end to the test.
func BeginLocked(ctx context.Context, db *DB) (*locked, error) {
	return beginLocked(ctx, db.write, db.d.change)
}

// ExplainNamed explains on SQLite how the servers of a name are found.
func (n Notes) ExplainNamed(teamID, name string) ([]string, error) {
	return all(n, func(s scanner) (v string, err error) {
		var n int
		return v, s.Scan(&n, &n, &n, &v)
	}, "EXPLAIN QUERY PLAN "+serversNamed, teamID, name, name)
}

// ExplainSessions explains on SQLite how sessions are found that end, that are
// over, and that a server is told of.
func (n Notes) ExplainSessions() (map[string][]string, error) {
	plans := map[string][]string{}
	for what, q := range map[string]string{"end": endSessions, "through": endThrough, "sweep": sweepSessions, "revoked": revokedSessions} {
		plan, err := all(n, func(s scanner) (v string, err error) {
			var n int
			return v, s.Scan(&n, &n, &n, &v)
		}, "EXPLAIN QUERY PLAN "+q, "x", 1, 2)
		if err != nil {
			return nil, err
		}
		plans[what] = plan
	}
	return plans, nil
}
