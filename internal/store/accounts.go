package store

import (
	"encoding/json"
	"errors"
	"time"

	"sft"
)

// A SudoRecord is a sudo entitlement with its team.
type SudoRecord struct {
	sft.SudoEntitlement
	TeamID string
}

const sudoCols = `e.id, e.team_id, e.name, e.body, e.created_at`

func scanSudo(s scanner) (r SudoRecord, err error) {
	var at int64
	var id, name, body string
	if err = s.Scan(&id, &r.TeamID, &name, &body, &at); err == nil {
		err = json.Unmarshal([]byte(body), &r.SudoEntitlement)
	}
	r.ID, r.Name, r.CreatedAt = id, name, fromMicros(at)
	return r, err
}

// AddSudo stores a new sudo entitlement.
func (tx *Tx) AddSudo(r SudoRecord) error {
	return tx.add(`INSERT INTO sudo_entitlements (id, team_id, name, name_fold, body, created_at) VALUES ($1, $2, $3, $4, $5, $6)`,
		r.ID, r.TeamID, r.Name, fold(r.Name), toJSON(r.SudoEntitlement), micros(r.CreatedAt))
}

// SaveSudo stores what a sudo entitlement allows, and its name.
func (tx *Tx) SaveSudo(r SudoRecord) error {
	return tx.must(`UPDATE sudo_entitlements SET name = $2, name_fold = $3, body = $4 WHERE id = $1`,
		r.ID, r.Name, fold(r.Name), toJSON(r.SudoEntitlement))
}

// RemoveSudo deletes a sudo entitlement that no project has.
func (tx *Tx) RemoveSudo(id string) error {
	return tx.must(`DELETE FROM sudo_entitlements WHERE id = $1`, id)
}

// SudoByID returns the sudo entitlement of that id.
func (n Notes) SudoByID(id string) (SudoRecord, error) {
	return one(n, scanSudo, `SELECT `+sudoCols+` FROM sudo_entitlements e WHERE e.id = $1`, id)
}

// Sudo returns the sudo entitlement of that name.
func (n Notes) Sudo(teamID, name string) (SudoRecord, error) {
	return one(n, scanSudo, `SELECT `+sudoCols+` FROM sudo_entitlements e WHERE e.team_id = $1 AND e.name_fold = $2`, teamID, fold(name))
}

// ProjectSudos returns the sudo entitlements that the groups of a project
// have, where these groups give access, in the order of their names.
func (n Notes) ProjectSudos(projectID string) ([]SudoRecord, error) {
	return all(n, scanSudo, `SELECT `+sudoCols+` FROM sudo_entitlements e WHERE e.id IN (
		SELECT ps.entitlement_id FROM project_sudo ps JOIN project_groups pg ON pg.project_id = ps.project_id AND pg.group_id = ps.group_id
		WHERE ps.project_id = $1 AND pg.server_access = $2) ORDER BY e.name`, projectID, true)
}

// SudoProjects returns the projects in which a group has a sudo entitlement.
func (n Notes) SudoProjects(id string) ([]ProjectRecord, error) {
	return all(n, scanProject, `SELECT `+projectCols+` FROM projects WHERE id IN (SELECT project_id FROM project_sudo WHERE entitlement_id = $1) ORDER BY name`, id)
}

// GroupSudoProjects returns the projects in which a group has sudo entitlements,
// by name.
func (n Notes) GroupSudoProjects(groupID string) ([]ProjectRecord, error) {
	return all(n, scanProject, `SELECT `+projectCols+` FROM projects WHERE id IN (SELECT project_id FROM project_sudo WHERE group_id = $1) ORDER BY name`, groupID)
}

// SetSudo makes these the sudo entitlements of a group in a project.
func (tx *Tx) SetSudo(projectID, groupID string, ids []string) error {
	if err := tx.add(`DELETE FROM project_sudo WHERE project_id = $1 AND group_id = $2`, projectID, groupID); err != nil {
		return err
	}
	for _, id := range ids {
		if err := tx.add(`INSERT INTO project_sudo (project_id, group_id, entitlement_id) VALUES ($1, $2, $3)`, projectID, groupID, id); err != nil {
			return err
		}
	}
	return nil
}

// projectSudo returns the names of the sudo entitlements of a project's
// groups, by the id of the group.
func (n Notes) projectSudo(projectID string) (map[string][]string, error) {
	rows, err := all(n, func(s scanner) (v [2]string, err error) { return v, s.Scan(&v[0], &v[1]) },
		`SELECT ps.group_id, e.name FROM project_sudo ps JOIN sudo_entitlements e ON e.id = ps.entitlement_id WHERE ps.project_id = $1 ORDER BY e.name`, projectID)
	names := map[string][]string{}
	for _, r := range rows {
		names[r[0]] = append(names[r[0]], r[1])
	}
	return names, err
}

// ServerGroupTaken reports whether a local group has that name, in a project
// of the team or by a group's attribute: of any but the group of the id except.
func (n Notes) ServerGroupTaken(teamID, name, except string) (bool, error) {
	c, err := one(n, scanCount, `SELECT (SELECT count(*) FROM project_groups pg JOIN projects p ON p.id = pg.project_id
		WHERE p.team_id = $1 AND p.deleted_at IS NULL AND pg.server_group = $2 AND pg.group_id <> $3)
		+ (SELECT count(*) FROM groups WHERE team_id = $1 AND server_group = $2 AND id <> $3)`, teamID, name, except)
	return c > 0, err
}

// ServerGroupGiven reports whether another group of the team has that name by
// its attribute.
func (n Notes) ServerGroupGiven(teamID, name, except string) (bool, error) {
	c, err := one(n, scanCount, `SELECT count(*) FROM groups WHERE team_id = $1 AND server_group = $2 AND id <> $3`, teamID, name, except)
	return c > 0, err
}

// A Binding lets one account of one server act as a service user.
type Binding struct {
	ID        string
	UserID    string
	ServerID  string
	Account   string
	CreatedBy string
	CreatedAt time.Time
}

const bindingCols = `id, user_id, server_id, account, created_by, created_at`

func scanBinding(s scanner) (b Binding, err error) {
	var at int64
	err = s.Scan(&b.ID, &b.UserID, &b.ServerID, &b.Account, &b.CreatedBy, &at)
	b.CreatedAt = fromMicros(at)
	return b, err
}

// AddBinding stores a new binding. An account has one.
func (tx *Tx) AddBinding(b Binding) error {
	return tx.add(`INSERT INTO service_bindings (`+bindingCols+`) VALUES ($1, $2, $3, $4, $5, $6)`,
		b.ID, b.UserID, b.ServerID, b.Account, b.CreatedBy, micros(b.CreatedAt))
}

// Binding returns the binding of a server's account.
func (n Notes) Binding(serverID, account string) (Binding, error) {
	return one(n, scanBinding, `SELECT `+bindingCols+` FROM service_bindings WHERE server_id = $1 AND account = $2`, serverID, account)
}

// BindingByID returns a binding of a service user.
func (n Notes) BindingByID(userID, id string) (Binding, error) {
	return one(n, scanBinding, `SELECT `+bindingCols+` FROM service_bindings WHERE user_id = $1 AND id = $2`, userID, id)
}

// Bindings returns the bindings of a service user.
func (n Notes) Bindings(userID string) ([]Binding, error) {
	return all(n, scanBinding, `SELECT `+bindingCols+` FROM service_bindings WHERE user_id = $1 ORDER BY id`, userID)
}

// Bound returns the ids of those service users of a team that are bound to an
// account of a server.
func (n Notes) Bound(teamID string) (map[string]bool, error) {
	ids, err := all(n, func(s scanner) (v string, err error) { return v, s.Scan(&v) },
		`SELECT DISTINCT b.user_id FROM service_bindings b JOIN users u ON u.id = b.user_id WHERE u.team_id = $1`, teamID)
	bound := map[string]bool{}
	for _, id := range ids {
		bound[id] = true
	}
	return bound, err
}

// BindingClients returns the clients that were made for a binding and are not
// deleted, that first whose sign-in ends first.
func (n Notes) BindingClients(id string) ([]ClientRecord, error) {
	return all(n, scanClient, `SELECT `+clientCols+clientFrom+`WHERE c.binding_id = $1 AND c.state = $2 ORDER BY c.signed_in_until, c.id`, id, sft.StateActive)
}

// RemoveBinding deletes a binding, and the clients that were made for it.
func (tx *Tx) RemoveBinding(id string, now time.Time) error {
	return tx.removeBindings(`id`, id, now)
}

// RemoveBindings is RemoveBinding for all of a service user.
func (tx *Tx) RemoveBindings(userID string, now time.Time) error {
	return tx.removeBindings(`user_id`, userID, now)
}

// removeBindings deletes the bindings whose column has the value. What their
// clients have opened may be on servers of any of the team's projects.
func (tx *Tx) removeBindings(column, value string, now time.Time) error {
	list, err := all(tx.Notes, scanBinding, `SELECT `+bindingCols+` FROM service_bindings WHERE `+column+` = $1`, value)
	if err != nil || len(list) == 0 {
		return err
	}
	for _, b := range list {
		if err := tx.removeClients(b.ID, now); err != nil {
			return err
		}
	}
	u, err := tx.UserByID(list[0].UserID)
	if err != nil {
		return err
	}
	return errors.Join(tx.add(`DELETE FROM service_bindings WHERE `+column+` = $1`, value), tx.ReviseTeam(u.TeamID))
}

// RemoveBoundClients deletes the clients that were made for a service user.
func (tx *Tx) RemoveBoundClients(userID string, now time.Time) error {
	list, err := tx.Bindings(userID)
	for _, b := range list {
		err = errors.Join(err, tx.removeClients(b.ID, now))
	}
	return err
}

func (tx *Tx) removeClients(bindingID string, now time.Time) error {
	clients, err := tx.BindingClients(bindingID)
	for _, c := range clients {
		err = errors.Join(err, tx.RemoveClient(c.ID, now))
	}
	return err
}
