package store

import (
	"fmt"
	"strings"

	"sft"
)

// A Page is the part of a list after a place in it. The place is the key of a
// record, which never changes, and the record need not be there any more: so
// whatever comes and goes between two pages, what was there all the time is on
// exactly one of them.
type Page struct {
	After      string // the key; empty: from the beginning
	Count      int    // at most
	Descending bool
}

// A filter is the condition of a query, which grows, and its values.
type filter struct {
	sql  string
	args []any
}

// where begins a filter.
func where(cond string, args ...any) *filter { return &filter{cond, args} }

// and narrows the filter; "?" in cond is v.
func (f *filter) and(cond string, v any) {
	f.args = append(f.args, v)
	f.sql += " AND " + strings.ReplaceAll(cond, "?", fmt.Sprintf("$%d", len(f.args)))
}

// maybe is and, where v says something.
func (f *filter) maybe(cond, v string) {
	if v != "" {
		f.and(cond, v)
	}
}

// in is the condition that a column has one of the values, of which there is
// one that nothing has.
func (f *filter) in(column string, values []string) string {
	list := []string{"''"}
	for _, v := range values {
		f.args = append(f.args, v)
		list = append(list, fmt.Sprintf("$%d", len(f.args)))
	}
	return column + ` IN (` + strings.Join(list, ", ") + `)`
}

// contains and startsWith are about text in folded form, whatever characters
// a pattern has.
func (f *filter) contains(column, part string) {
	f.maybe(column+` LIKE '%' || ? || '%' ESCAPE '\'`, escapeLike(fold(part)))
}

func (f *filter) startsWith(column, part string) {
	f.maybe(column+` LIKE ? || '%' ESCAPE '\'`, escapeLike(fold(part)))
}

var likeEscaper = strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`)

func escapeLike(s string) string { return likeEscaper.Replace(s) }

// A listing is a list as a query: what to select, what is in it, and the
// column that it is in the order of.
type listing struct {
	sel string
	*filter
	key string
}

// page is the query of one page.
func (l listing) page(p Page) (query string, args []any) {
	order, after := "", " > ?"
	if p.Descending {
		order, after = " DESC", " < ?"
	}
	l.maybe(l.key+after, p.After)
	l.args = append(l.args, p.Count)
	return fmt.Sprintf("%s WHERE %s ORDER BY %s%s LIMIT $%d", l.sel, l.sql, l.key, order, len(l.args)), l.args
}

// paged returns one page of a list.
func paged[T any](n Notes, scan func(scanner) (T, error), l listing, p Page) ([]T, error) {
	query, args := l.page(p)
	return all(n, scan, query, args...)
}

// A UserFilter says which users of a team are listed; what is empty lets all
// through.
type UserFilter struct {
	Type                 sft.UserType
	Status               sft.Status
	NotDeleted           bool
	Contains, StartsWith string // of the name
	MemberOf, NotIn      string // ids of groups whose members are stored
}

func (u UserFilter) on(f *filter) *filter {
	f.maybe(`u.type = ?`, string(u.Type))
	f.maybe(`u.status = ?`, string(u.Status))
	if u.NotDeleted {
		f.and(`u.status <> ?`, string(sft.StatusDeleted))
	}
	f.contains(`u.name_fold`, u.Contains)
	f.startsWith(`u.name_fold`, u.StartsWith)
	return f
}

// UsersByName returns a page of the users of a team; the key is the folded
// name.
func (n Notes) UsersByName(teamID string, u UserFilter, p Page) ([]UserRecord, error) {
	return paged(n, scanUser, u.byName(teamID), p)
}

func (u UserFilter) byName(teamID string) listing {
	return listing{`SELECT ` + prefixed("u.", userCols) + ` FROM users u`, u.on(where(`u.team_id = $1`, teamID)), `u.name_fold`}
}

// UsersByID is UsersByName with the id for the key, which is the order in
// which they were made, and with the filter's groups.
func (n Notes) UsersByID(teamID string, u UserFilter, p Page) ([]UserRecord, error) {
	return paged(n, scanUser, u.byID(teamID), p)
}

func (u UserFilter) byID(teamID string) listing {
	sel := `SELECT ` + prefixed("u.", userCols)
	if u.MemberOf != "" {
		return listing{sel + ` FROM members m JOIN users u ON u.id = m.user_id`, u.on(where(`m.group_id = $1`, u.MemberOf)), `m.user_id`}
	}
	f := u.on(where(`u.team_id = $1`, teamID))
	f.maybe(`NOT EXISTS (SELECT 1 FROM members m WHERE m.group_id = ? AND m.user_id = u.id)`, u.NotIn)
	return listing{sel + ` FROM users u`, f, `u.id`}
}

// GroupsByName returns a page of the groups of a team whose names contain the
// text; the key is the folded name.
func (n Notes) GroupsByName(teamID, contains string, p Page) ([]GroupRecord, error) {
	f := where(`team_id = $1`, teamID)
	f.contains(`name_fold`, contains)
	return paged(n, scanGroup, listing{`SELECT ` + groupCols + ` FROM groups`, f, `name_fold`}, p)
}

// GroupsOfByName is GroupsByName for the groups that a user is in.
func (n Notes) GroupsOfByName(u UserRecord, p Page) ([]GroupRecord, error) {
	f := where(`team_id = $1 AND (name = 'everyone' OR id IN (SELECT group_id FROM members WHERE user_id = $2))`, u.TeamID, u.ID)
	return paged(n, scanGroup, listing{`SELECT ` + groupCols + ` FROM groups`, f, `name_fold`}, p)
}

// KeysByID returns a page of the keys of a service user; the key is the id.
func (n Notes) KeysByID(userID string, p Page) ([]KeyRecord, error) {
	return paged(n, scanKey, listing{`SELECT ` + keyCols + ` FROM service_keys`, where(`user_id = $1`, userID), `id`}, p)
}

// BindingsByID returns a page of the bindings of a service user; the key is
// the id.
func (n Notes) BindingsByID(userID string, p Page) ([]Binding, error) {
	return paged(n, scanBinding, listing{`SELECT ` + bindingCols + ` FROM service_bindings`, where(`user_id = $1`, userID), `id`}, p)
}

// SudosByID returns a page of the sudo entitlements of a team; the key is the
// id: they can be renamed.
func (n Notes) SudosByID(teamID string, p Page) ([]SudoRecord, error) {
	return paged(n, scanSudo, listing{`SELECT ` + sudoCols + ` FROM sudo_entitlements e`, where(`e.team_id = $1`, teamID), `e.id`}, p)
}

// ClientsByID returns a page of the clients of a team or, with userID, of one
// of its users; the key is the id. Deleted ones are there when state asks for
// them.
func (n Notes) ClientsByID(teamID, userID string, state sft.State, p Page) ([]ClientRecord, error) {
	return paged(n, scanClient, clientsByID(teamID, userID, state), p)
}

func clientsByID(teamID, userID string, state sft.State) listing {
	f := where(`c.team_id = $1`, teamID)
	if userID != "" {
		f = where(`c.user_id = $1`, userID)
	}
	// A literal, so that the index without deleted ones is found.
	if f.maybe(`c.state = ?`, string(state)); state != sft.StateDeleted {
		f.sql += ` AND c.state <> 'DELETED'`
	}
	return listing{`SELECT ` + clientCols + clientFrom, f, `c.id`}
}

// ProjectsByName returns a page of the projects of a team; the key is the
// folded name.
func (n Notes) ProjectsByName(teamID string, p Page) ([]ProjectRecord, error) {
	return paged(n, scanProject, listing{`SELECT ` + projectCols + ` FROM projects`, where(`team_id = $1 AND deleted_at IS NULL`, teamID), `name_fold`}, p)
}

// TokensByID returns a page of the enrollment tokens of a project; the key is
// the id.
func (n Notes) TokensByID(projectID string, p Page) ([]TokenRecord, error) {
	return paged(n, scanToken, listing{`SELECT ` + tokenCols + ` FROM enrollment_tokens`, where(`project_id = $1`, projectID), `id`}, p)
}

// CloudAccountsByID returns a page of the cloud accounts of a project; the key
// is the id.
func (n Notes) CloudAccountsByID(projectID string, p Page) ([]CloudAccountRecord, error) {
	return paged(n, scanCloudAccount, listing{`SELECT ` + cloudAccountCols + ` FROM cloud_accounts`, where(`project_id = $1`, projectID), `id`}, p)
}

// A ServerFilter says which servers of a team are listed; what is empty lets
// all through.
type ServerFilter struct {
	Projects      []string // ids; nil: all
	State         sft.State
	SeenSince     int64  // microseconds since 1970: who was, is ACTIVE
	Hostname      string // in any case
	CanonicalName string
	CloudProvider string
	Bastion       string // in any case
	AltName       string // one of several, in any case
	Unmanaged     bool   // those alone
	// Labels asks for a label of one of the alternatives: of each of them, where
	// there are several. Those of administrators and hosts are found, by an
	// index, and only in Projects that are named.
	Labels [][]Labelled
	common []bool // which of Labels many servers have
}

// ServersByID returns a page of the servers of a team that are not deleted;
// the key is the id.
func (n Notes) ServersByID(teamID string, s ServerFilter, p Page) ([]ServerRecord, error) {
	s.common = make([]bool, len(s.Labels))
	if most := n.d.commonLabels; most > 0 {
		for i, alternatives := range s.Labels {
			many, err := n.labelled(s.Projects, alternatives, most)
			if err != nil {
				return nil, err
			}
			s.common[i] = many == most
		}
	}
	return paged(n, scanServer, s.byID(teamID), p)
}

// labelled counts labels of projects that are among the alternatives, up to most.
func (n Notes) labelled(projects []string, alternatives []Labelled, most int64) (int64, error) {
	var f filter
	var parts []string
	for _, l := range alternatives {
		parts = append(parts, `SELECT 1 AS one FROM server_labels WHERE `+f.in(`project_id`, projects)+f.labelled(l))
	}
	f.args = append(f.args, most)
	return one(n, scanCount, fmt.Sprintf(`SELECT count(*) FROM (SELECT one FROM (%s) AS l LIMIT $%d) AS m`, strings.Join(parts, ` UNION ALL `), len(f.args)), f.args...)
}

// labelled is the condition that a label is one that is asked for.
func (f *filter) labelled(l Labelled) string {
	cond := ` AND ` + f.in(`name`, l.Names)
	if len(l.Values) > 0 {
		cond += ` AND ` + f.in(`value`, l.Values)
	}
	return cond
}

func (s ServerFilter) byID(teamID string) listing {
	f := where(`s.team_id = $1`, teamID)
	switch {
	case len(s.Projects) == 1:
		f = where(`s.project_id = $1`, s.Projects[0])
	case s.Projects != nil:
		// Not the bare column: an index of it would have each project's servers
		// in order, and not all of them, and they would all be read to sort them.
		f.sql += ` AND ` + f.in(`s.project_id || ''`, s.Projects)
	}
	for i, alternatives := range s.Labels {
		var or []string
		for _, l := range alternatives {
			if s.common[i] { // a server's labels are of its project
				or = append(or, `EXISTS (SELECT 1 FROM server_labels WHERE server_id = s.id AND project_id = s.project_id`+f.labelled(l)+`)`)
			} else {
				or = append(or, `SELECT server_id FROM server_labels WHERE `+f.in(`project_id`, s.Projects)+f.labelled(l))
			}
		}
		if s.common[i] {
			f.sql += ` AND (` + strings.Join(or, ` OR `) + `)`
		} else {
			f.sql += ` AND s.id IN (` + strings.Join(or, ` UNION `) + `)`
		}
	}
	f.sql += ` AND s.deleted_at IS NULL`
	switch s.State {
	case sft.StateActive:
		f.and(`(s.unmanaged OR s.last_seen > ?)`, s.SeenSince)
	case sft.StateInactive:
		f.and(`NOT s.unmanaged AND (s.last_seen IS NULL OR s.last_seen <= ?)`, s.SeenSince)
	}
	f.maybe(`lower(s.hostname) = ?`, fold(s.Hostname))
	if s.CanonicalName != "" { // as the index has it
		f.and(`s.canonical_name <> '' AND lower(s.canonical_name) = ?`, fold(s.CanonicalName))
	}
	if s.CloudProvider != "" { // as the indexes have it
		f.and(`s.cloud_provider <> '' AND s.cloud_provider = ?`, s.CloudProvider)
	}
	if s.Unmanaged {
		f.sql += ` AND s.unmanaged`
	}
	l := listing{`SELECT ` + serverCols + serverFrom, f, `s.id`}
	// They are read along the first of the aliases, which has them in order. To
	// SQLite CROSS JOIN says what comes first.
	for _, a := range []alias{{aliasName, s.AltName}, {aliasBastion, s.Bastion}} {
		switch {
		case a.name == "":
		case l.key == `s.id`:
			l.sel, l.key = `SELECT `+serverCols+` FROM server_aliases a CROSS JOIN servers s JOIN projects p ON p.id = s.project_id`, `a.server_id`
			f.and(`s.id = a.server_id AND a.kind = ?`, a.kind)
			f.and(`a.name_fold = ?`, sft.HostFold(a.name))
		default:
			f.and(`EXISTS (SELECT 1 FROM server_aliases b WHERE b.server_id = a.server_id AND b.kind = ?`, a.kind)
			f.and(`b.name_fold = ?)`, sft.HostFold(a.name))
		}
	}
	return l
}

// Counts are how many there are of each in a team; deleted ones do not count.
type Counts struct {
	Clients, Groups, HumanUsers, Projects, Servers, ServiceUsers int64
}

// Count counts what a team has.
func (n Notes) Count(teamID string) (Counts, error) {
	return one(n, func(s scanner) (c Counts, err error) {
		return c, s.Scan(&c.Clients, &c.Groups, &c.HumanUsers, &c.Projects, &c.Servers, &c.ServiceUsers)
	}, `SELECT (SELECT count(*) FROM clients WHERE team_id = $1 AND state <> 'DELETED'),
		(SELECT count(*) FROM groups WHERE team_id = $1),
		(SELECT count(*) FROM users WHERE team_id = $1 AND type = $2 AND status <> $4),
		(SELECT count(*) FROM projects WHERE team_id = $1 AND deleted_at IS NULL),
		(SELECT count(*) FROM servers WHERE team_id = $1 AND deleted_at IS NULL),
		(SELECT count(*) FROM users WHERE team_id = $1 AND type = $3 AND status <> $4)`,
		teamID, string(sft.Human), string(sft.Service), string(sft.StatusDeleted))
}
