package store

import (
	"fmt"
	"slices"
	"strings"

	"sft"
)

// A name and ids that a user or a group had once are theirs for good, also when
// the group is gone: what is left under them on hosts, files and an account
// that is shut, is never somebody else's.

// SetAccounts gives a user, who was was, the accounts of now on hosts, and
// keeps those before as the user's own.
func (tx *Tx) SetAccounts(was, now UserRecord) error {
	for _, os := range []string{sft.Linux, sft.Windows} {
		login, uid, gid := was.AccountOn(os)
		if err := tx.add(`INSERT INTO former_accounts (team_id, user_id, login, uid, gid, nth)
			VALUES ($1, $2, $3, $4, $5, (SELECT 1 + coalesce(max(nth), 0) FROM former_accounts WHERE user_id = $2))
			ON CONFLICT (team_id, login, uid, gid) DO UPDATE SET nth = excluded.nth`,
			was.TeamID, was.ID, login, uid, gid); err != nil {
			return err
		}
	}
	return tx.must(`UPDATE users SET login = $2, uid = $3, gid = $4, windows_login = $5, windows_uid = $6, windows_gid = $7 WHERE id = $1`,
		was.ID, now.Login, now.UID, now.GID, now.WindowsLogin, now.WindowsUID, now.WindowsGID)
}

// ReviseSystem is Revise for the agents of one os_type in a team.
func (tx *Tx) ReviseSystem(teamID, osType string) error {
	tx.tell(teamID)
	return tx.add(`UPDATE servers SET revision = revision + 1 WHERE team_id = $1 AND os_type = $2 AND deleted_at IS NULL`, teamID, osType)
}

// Former returns the ids that a user had last under a login, or ErrNotFound.
func (n Notes) Former(userID, login string) (uid, gid int, err error) {
	ids, err := one(n, func(s scanner) (v [2]int, err error) { return v, s.Scan(&v[0], &v[1]) },
		`SELECT uid, gid FROM former_accounts WHERE user_id = $1 AND login = $2 ORDER BY nth DESC, uid DESC, gid DESC LIMIT 1`, userID, login)
	return ids[0], ids[1], err
}

// LoginTaken reports whether a login name was ever given in a team, to anybody
// but the user of the id except, on whichever system.
func (n Notes) LoginTaken(teamID, login, except string) (bool, error) {
	return n.given(`login`, teamID, login, except)
}

// UIDTaken is LoginTaken for a uid.
func (n Notes) UIDTaken(teamID string, uid int, except string) (bool, error) {
	return n.given(`uid`, teamID, uid, except)
}

// GIDTaken is LoginTaken for a gid, which may be that of a group, too: of any
// but the group of the id except.
func (n Notes) GIDTaken(teamID string, gid int, except string) (bool, error) {
	taken, err := n.given(`gid`, teamID, gid, except)
	if err != nil || taken {
		return taken, err
	}
	c, err := one(n, scanCount, `SELECT (SELECT count(*) FROM groups WHERE team_id = $1 AND gid = $2 AND id <> $3)
		+ (SELECT count(*) FROM former_gids WHERE team_id = $1 AND gid = $2 AND group_id <> $3)`, teamID, gid, except)
	return c > 0, err
}

// SetGID stores the gid of a group's local groups, and keeps the one before as
// the group's own.
func (tx *Tx) SetGID(groupID string, gid int) error {
	if err := tx.keepGID(groupID, gid); err != nil {
		return err
	}
	return tx.must(`UPDATE groups SET gid = $2 WHERE id = $1`, groupID, gid)
}

// keepGID keeps the gid of a group as its own, if the next is another.
func (tx *Tx) keepGID(groupID string, next int) error {
	return tx.add(`INSERT INTO former_gids (team_id, gid, group_id) SELECT team_id, gid, id FROM groups WHERE id = $1 AND gid <> 0 AND gid <> $2
		ON CONFLICT DO NOTHING`, groupID, next)
}

func (n Notes) given(column, teamID string, v any, except string) (bool, error) {
	c, err := one(n, scanCount, `SELECT (SELECT count(*) FROM users WHERE team_id = $1 AND (`+column+` = $2 OR windows_`+column+` = $2) AND id <> $3)
		+ (SELECT count(*) FROM former_accounts WHERE team_id = $1 AND `+column+` = $2 AND user_id <> $3)`, teamID, v, except)
	return c > 0, err
}

// SetServerGroup stores what a group's local groups are called where a project
// says nothing else: so are those from then on that were called was. An empty
// name is made of the group's.
func (tx *Tx) SetServerGroup(groupID, stored, was, name string) error {
	if err := tx.add(`UPDATE project_groups SET server_group = $3 WHERE group_id = $1 AND server_group = $2
		AND project_id IN (SELECT id FROM projects WHERE deleted_at IS NULL)`, groupID, was, name); err != nil {
		return err
	}
	return tx.must(`UPDATE groups SET server_group = $2 WHERE id = $1`, groupID, stored)
}

// A Conflict is an attribute that a server's agent says its host cannot have.
type Conflict struct {
	Subject   string // id of the user or group
	Attribute string
	Value     string
	Reason    string
}

// ConflictsOn returns what a server's agent has said last.
func (n Notes) ConflictsOn(serverID string) ([]Conflict, error) {
	return all(n, func(s scanner) (c Conflict, err error) {
		return c, s.Scan(&c.Subject, &c.Attribute, &c.Value, &c.Reason)
	},
		`SELECT subject, attribute, value, reason FROM account_conflicts WHERE server_id = $1`, serverID)
}

// SetConflicts stores what a server's agent says, in the place of what it said
// before. No two are of the same subject and attribute.
func (tx *Tx) SetConflicts(serverID string, list []Conflict) error {
	if err := tx.add(`DELETE FROM account_conflicts WHERE server_id = $1`, serverID); err != nil {
		return err
	}
	for some := range slices.Chunk(list, maxConflictRows) {
		var rows strings.Builder
		args := []any{serverID}
		for i, c := range some {
			if i > 0 {
				rows.WriteString(", ")
			}
			at := len(args)
			fmt.Fprintf(&rows, "($1, $%d, $%d, $%d, $%d)", at+1, at+2, at+3, at+4)
			args = append(args, c.Subject, c.Attribute, c.Value, c.Reason)
		}
		if err := tx.add(`INSERT INTO account_conflicts (server_id, subject, attribute, value, reason) VALUES `+rows.String(), args...); err != nil {
			return err
		}
	}
	return nil
}

// maxConflictRows is how many conflicts one statement stores.
const maxConflictRows = 50

// A Claim is a Conflict that a server reports.
type Claim struct {
	ServerID, Server, Project string // Server is the host's name
	Reason                    string
}

// Conflicting returns which servers say that they cannot have the attribute
// of a user or group with that value: the first of them, by id, and how many
// there are.
func (n Notes) Conflicting(subject, attribute, value string, first int) ([]Claim, int64, error) {
	const from = ` FROM account_conflicts c WHERE c.subject = $1 AND c.attribute = $2 AND c.value = $3`
	count, err := one(n, scanCount, `SELECT count(*)`+from, subject, attribute, value)
	if err != nil || count == 0 {
		return nil, count, err
	}
	list, err := all(n, func(s scanner) (c Claim, err error) { return c, s.Scan(&c.ServerID, &c.Server, &c.Project, &c.Reason) },
		`SELECT s.id, s.hostname, p.name, c.reason FROM account_conflicts c JOIN servers s ON s.id = c.server_id JOIN projects p ON p.id = s.project_id
		WHERE c.subject = $1 AND c.attribute = $2 AND c.value = $3 ORDER BY c.server_id LIMIT $4`, subject, attribute, value, first)
	return list, count, err
}
