package store

// A name and ids that a user or a group had once are theirs for good, also when
// the group is gone: what is left under them on hosts, files and an account
// that is shut, is never somebody else's.

// Rename gives a user another login, uid and gid, and keeps those before as
// the user's own.
func (tx *Tx) Rename(u UserRecord, login string, uid, gid int) error {
	if err := tx.add(`INSERT INTO former_accounts (team_id, user_id, login, uid, gid, nth)
		VALUES ($1, $2, $3, $4, $5, (SELECT 1 + coalesce(max(nth), 0) FROM former_accounts WHERE user_id = $2))
		ON CONFLICT (team_id, login, uid, gid) DO UPDATE SET nth = excluded.nth`,
		u.TeamID, u.ID, u.Login, u.UID, u.GID); err != nil {
		return err
	}
	return tx.must(`UPDATE users SET login = $2, uid = $3, gid = $4 WHERE id = $1`, u.ID, login, uid, gid)
}

// Former returns the ids that a user had last under a login, or ErrNotFound.
func (n Notes) Former(userID, login string) (uid, gid int, err error) {
	ids, err := one(n, func(s scanner) (v [2]int, err error) { return v, s.Scan(&v[0], &v[1]) },
		`SELECT uid, gid FROM former_accounts WHERE user_id = $1 AND login = $2 ORDER BY nth DESC, uid DESC, gid DESC LIMIT 1`, userID, login)
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
	c, err := one(n, scanCount, `SELECT (SELECT count(*) FROM users WHERE team_id = $1 AND `+column+` = $2 AND id <> $3)
		+ (SELECT count(*) FROM former_accounts WHERE team_id = $1 AND `+column+` = $2 AND user_id <> $3)`, teamID, v, except)
	return c > 0, err
}
