package store

// A name and ids that a user had once are that user's for good: what is left
// under them on hosts, files and an account that is shut, is never somebody
// else's.

// Rename gives a user another login, uid and gid, and keeps those before as
// the user's own.
func (tx *Tx) Rename(u UserRecord, login string, uid, gid int) error {
	if err := tx.add(`INSERT INTO former_accounts (team_id, user_id, login, uid, gid) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING`,
		u.TeamID, u.ID, u.Login, u.UID, u.GID); err != nil {
		return err
	}
	return tx.must(`UPDATE users SET login = $2, uid = $3, gid = $4 WHERE id = $1`, u.ID, login, uid, gid)
}

// Former returns the ids that a user had under a login, or ErrNotFound.
func (n Notes) Former(userID, login string) (uid, gid int, err error) {
	ids, err := one(n, func(s scanner) (v [2]int, err error) { return v, s.Scan(&v[0], &v[1]) },
		`SELECT uid, gid FROM former_accounts WHERE user_id = $1 AND login = $2 ORDER BY uid DESC, gid DESC LIMIT 1`, userID, login)
	return ids[0], ids[1], err
}

// LoginTaken reports whether a login name was ever given in a team, to anybody
// but the user of the id except.
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
	c, err := one(n, scanCount, `SELECT count(*) FROM groups WHERE team_id = $1 AND gid = $2 AND id <> $3`, teamID, gid, except)
	return c > 0, err
}

func (n Notes) given(column, teamID string, v any, except string) (bool, error) {
	c, err := one(n, scanCount, `SELECT (SELECT count(*) FROM users WHERE team_id = $1 AND `+column+` = $2 AND id <> $3)
		+ (SELECT count(*) FROM former_accounts WHERE team_id = $1 AND `+column+` = $2 AND user_id <> $3)`, teamID, v, except)
	return c > 0, err
}
