package store

import (
	"database/sql"
	"encoding/json"
	"slices"
	"time"

	"sft"
)

// Setting returns the value of a setting of the platform, or ErrNotFound.
func (n Notes) Setting(name string) (string, error) {
	return one(n, func(s scanner) (v string, err error) { return v, s.Scan(&v) },
		`SELECT value FROM settings WHERE name = $1`, name)
}

// SetSetting stores a setting of the platform.
func (tx *Tx) SetSetting(name, value string) error {
	return tx.add(`INSERT INTO settings (name, value) VALUES ($1, $2)
		ON CONFLICT (name) DO UPDATE SET value = excluded.value`, name, value)
}

const teamCols = `id, name, created_at, client_session, allow_device_code, web_session`

// A teamRow is teamCols on the way to a team.
type teamRow struct {
	t  sft.Team
	at int64
}

func (r *teamRow) cols() []any {
	return []any{&r.t.ID, &r.t.Name, &r.at, &r.t.ClientSession, &r.t.AllowDeviceCode, &r.t.WebSession}
}

func (r *teamRow) team() sft.Team {
	r.t.CreatedAt = fromMicros(r.at)
	return r.t
}

func scanTeam(s scanner) (sft.Team, error) {
	var r teamRow
	err := s.Scan(r.cols()...)
	return r.team(), err
}

// AddTeam stores a new team. Its users' ids start at 60001, groups' at 63001.
func (tx *Tx) AddTeam(t sft.Team) error {
	return tx.add(`INSERT INTO teams (id, name, name_fold, created_at, client_session, allow_device_code, web_session, next_uid, next_gid)
		VALUES ($1, $2, $3, $4, $5, $6, $7, 60001, 63001)`,
		t.ID, t.Name, fold(t.Name), micros(t.CreatedAt), t.ClientSession, t.AllowDeviceCode, t.WebSession)
}

// SaveTeam stores the settings of a team.
func (tx *Tx) SaveTeam(t sft.Team) error {
	return tx.must(`UPDATE teams SET client_session = $2, allow_device_code = $3, web_session = $4 WHERE id = $1`,
		t.ID, t.ClientSession, t.AllowDeviceCode, t.WebSession)
}

// Team returns the team of that name.
func (n Notes) Team(name string) (sft.Team, error) {
	return one(n, scanTeam, `SELECT `+teamCols+` FROM teams WHERE name_fold = $1`, fold(name))
}

// TeamByID returns the team of that id.
func (n Notes) TeamByID(id string) (sft.Team, error) {
	return one(n, scanTeam, `SELECT `+teamCols+` FROM teams WHERE id = $1`, id)
}

// NextIDs takes the next uid and gid of a team: they are never given again.
func (tx *Tx) NextIDs(teamID string) (uid, gid int, err error) {
	return tx.nextIDs(teamID, `next_uid = next_uid + 1, next_gid = next_gid + 1`, `next_uid - 1, next_gid - 1`)
}

// NextGID is NextIDs for a gid alone.
func (tx *Tx) NextGID(teamID string) (gid int, err error) {
	_, gid, err = tx.nextIDs(teamID, `next_gid = next_gid + 1`, `0, next_gid - 1`)
	return gid, err
}

func (tx *Tx) nextIDs(teamID, set, taken string) (uid, gid int, err error) {
	for {
		ids, err := one(tx.Notes, func(s scanner) (v [2]int, err error) { return v, s.Scan(&v[0], &v[1]) },
			`UPDATE teams SET `+set+` WHERE id = $1 RETURNING `+taken, teamID)
		if err != nil {
			return 0, 0, err
		}
		if nobodys(ids[0]) || nobodys(ids[1]) {
			continue
		}
		// One that an administrator has given, to a user or to a group.
		uidTaken, err := tx.UIDTaken(teamID, ids[0], "")
		if err != nil {
			return 0, 0, err
		}
		gidTaken, err := tx.GIDTaken(teamID, ids[1], "")
		if err != nil || !uidTaken && !gidTaken {
			return ids[0], ids[1], err
		}
	}
}

// nobodys reports whether an id is what Linux shows for those it cannot map,
// or what a 16-bit caller takes for "leave it as it is". The counters, which
// are below, step over them.
func nobodys(id int) bool { return id == 65534 || id == 65535 }

// A UserRecord is a user with what only the platform knows.
type UserRecord struct {
	sft.User
	TeamID       string
	WindowsUID   int // of the account on Windows: UID and GID where its login is the same
	WindowsGID   int
	PasswordHash sft.Secret // PHC string of argon2id; empty: no password yet
}

// LoginOn returns the login of the user's account on servers of that os_type.
func (u UserRecord) LoginOn(osType string) string {
	login, _, _ := u.AccountOn(osType)
	return login
}

// AccountOn returns login and ids of the user's account on servers of that
// os_type.
func (u UserRecord) AccountOn(osType string) (login string, uid, gid int) {
	if osType == sft.Windows {
		return u.WindowsLogin, u.WindowsUID, u.WindowsGID
	}
	return u.Login, u.UID, u.GID
}

const userCols = `id, team_id, name, type, status, full_name, email, login, uid, gid, windows_login, windows_uid, windows_gid, created_at, password_hash`

// A userRow is userCols on the way to a record.
type userRow struct {
	u    UserRecord
	at   int64
	hash string
}

func (r *userRow) cols() []any {
	u := &r.u
	return []any{&u.ID, &u.TeamID, &u.Name, &u.Type, &u.Status, &u.Details.FullName, &u.Details.Email,
		&u.Login, &u.UID, &u.GID, &u.WindowsLogin, &u.WindowsUID, &u.WindowsGID, &r.at, &r.hash}
}

func (r *userRow) record() UserRecord {
	r.u.CreateAt, r.u.PasswordHash = fromMicros(r.at), sft.NewSecret(r.hash)
	return r.u
}

func scanUser(s scanner) (UserRecord, error) {
	var r userRow
	err := s.Scan(r.cols()...)
	return r.record(), err
}

// AddUser stores a new user.
func (tx *Tx) AddUser(u UserRecord) error {
	return tx.add(`INSERT INTO users (`+userCols+`, name_fold) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)`,
		u.ID, u.TeamID, u.Name, u.Type, u.Status, u.Details.FullName, u.Details.Email, u.Login, u.UID, u.GID, u.WindowsLogin, u.WindowsUID, u.WindowsGID,
		micros(u.CreateAt), u.PasswordHash.Reveal(), fold(u.Name))
}

// SaveUser stores a user's status and details.
func (tx *Tx) SaveUser(u UserRecord) error {
	return tx.must(`UPDATE users SET status = $2, full_name = $3, email = $4 WHERE id = $1`,
		u.ID, u.Status, u.Details.FullName, u.Details.Email)
}

// SetPassword stores the hash of a user's password.
func (tx *Tx) SetPassword(userID string, hash sft.Secret) error {
	return tx.must(`UPDATE users SET password_hash = $2 WHERE id = $1`, userID, hash.Reveal())
}

// User returns the user of that name in a team, deleted ones too.
func (n Notes) User(teamID, name string) (UserRecord, error) {
	return one(n, scanUser, `SELECT `+userCols+` FROM users WHERE team_id = $1 AND name_fold = $2`, teamID, fold(name))
}

// UserByID returns the user of that id.
func (n Notes) UserByID(id string) (UserRecord, error) {
	return one(n, scanUser, `SELECT `+userCols+` FROM users WHERE id = $1`, id)
}

// UserInTeam is UserByID, with the user's team.
func (n Notes) UserInTeam(id string) (UserRecord, sft.Team, error) {
	var t teamRow
	u, err := one(n, func(s scanner) (UserRecord, error) {
		var u userRow
		err := s.Scan(append(u.cols(), t.cols()...)...)
		return u.record(), err
	}, `SELECT `+prefixed("u.", userCols)+`, `+prefixed("t.", teamCols)+` FROM users u JOIN teams t ON t.id = u.team_id WHERE u.id = $1`, id)
	return u, t.team(), err
}

// Asker returns a client, deleted ones too, with its user and team.
func (n Notes) Asker(clientID string) (ClientRecord, UserRecord, sft.Team, error) {
	var u userRow
	var t teamRow
	c, err := one(n, func(s scanner) (ClientRecord, error) {
		var c clientRow
		err := s.Scan(slices.Concat(c.cols(), u.cols(), t.cols())...)
		return c.record(), err
	}, `SELECT `+clientCols+`, `+prefixed("u.", userCols)+`, `+prefixed("t.", teamCols)+clientFrom+`JOIN teams t ON t.id = u.team_id WHERE c.id = $1`, clientID)
	return c, u.record(), t.team(), err
}

func scanCount(s scanner) (c int64, err error) { return c, s.Scan(&c) }

// Users returns the users of a team.
func (n Notes) Users(teamID string) ([]UserRecord, error) {
	return all(n, scanUser, `SELECT `+userCols+` FROM users WHERE team_id = $1`, teamID)
}

// AddFirstUse stores the hash of a one-time sign-in secret.
func (tx *Tx) AddFirstUse(hash []byte, userID string, expires time.Time) error {
	return tx.add(`INSERT INTO first_uses (secret_hash, user_id, expires_at) VALUES ($1, $2, $3)`, hash, userID, micros(expires))
}

// FirstUse returns the user of a one-time sign-in secret that is still good.
func (n Notes) FirstUse(hash []byte, now time.Time) (UserRecord, error) {
	return one(n, scanUser, `SELECT `+prefixed("u.", userCols)+` FROM first_uses f JOIN users u ON u.id = f.user_id
		WHERE f.secret_hash = $1 AND f.expires_at > $2`, hash, micros(now))
}

// EndFirstUses makes every one-time sign-in secret of a user useless.
func (tx *Tx) EndFirstUses(userID string) error {
	return tx.add(`DELETE FROM first_uses WHERE user_id = $1`, userID)
}

// A KeyRecord is a service user's key with what only the platform knows.
type KeyRecord struct {
	sft.ServiceKey
	UserID     string
	SecretHash []byte // SHA-256: the secret has 256 random bits
}

const keyCols = `id, user_id, secret_hash, issued_at, expires_at, last_used`

func scanKey(s scanner) (k KeyRecord, err error) {
	var at int64
	var expires, used sql.NullInt64
	err = s.Scan(&k.ID, &k.UserID, &k.SecretHash, &at, &expires, &used)
	k.IssuedAt, k.ExpiresAt, k.LastUsed = fromMicros(at), optTime(expires), optTime(used)
	return k, err
}

// AddKey stores a service user's new key.
func (tx *Tx) AddKey(k KeyRecord) error {
	return tx.add(`INSERT INTO service_keys (`+keyCols+`) VALUES ($1, $2, $3, $4, $5, $6)`,
		k.ID, k.UserID, k.SecretHash, micros(k.IssuedAt), optMicros(k.ExpiresAt), optMicros(k.LastUsed))
}

// Key returns a service user's key.
func (n Notes) Key(id string) (KeyRecord, error) {
	return one(n, scanKey, `SELECT `+keyCols+` FROM service_keys WHERE id = $1`, id)
}

// ExpireKeys ends the keys of a service user at that time, sooner ones stay.
func (tx *Tx) ExpireKeys(userID string, at time.Time) error {
	return tx.add(`UPDATE service_keys SET expires_at = $2 WHERE user_id = $1 AND (expires_at IS NULL OR expires_at > $2)`, userID, micros(at))
}

// RemoveKey deletes a service user's key.
func (tx *Tx) RemoveKey(userID, id string) error {
	return tx.must(`DELETE FROM service_keys WHERE user_id = $1 AND id = $2`, userID, id)
}

// KeyUsed notes when a key was last used.
func (n Notes) KeyUsed(id string, at time.Time) error {
	return n.must(`UPDATE service_keys SET last_used = $2 WHERE id = $1`, id, micros(at))
}

// A GroupRecord is a group with its team.
type GroupRecord struct {
	sft.Group
	TeamID string
}

const groupCols = `id, team_id, name, roles, gid, server_group, created_at`

// A groupRow is groupCols on the way to a record.
type groupRow struct {
	g     GroupRecord
	at    int64
	roles string
}

func (r *groupRow) cols() []any {
	g := &r.g
	return []any{&g.ID, &g.TeamID, &g.Name, &r.roles, &g.GID, &g.ServerGroup, &r.at}
}

func (r *groupRow) record() (GroupRecord, error) {
	r.g.CreatedAt = fromMicros(r.at)
	err := json.Unmarshal([]byte(r.roles), &r.g.Roles)
	return r.g, err
}

func scanGroup(s scanner) (GroupRecord, error) {
	var r groupRow
	if err := s.Scan(r.cols()...); err != nil {
		return r.g, err
	}
	return r.record()
}

// AddGroup stores a new group.
func (tx *Tx) AddGroup(g GroupRecord) error {
	return tx.add(`INSERT INTO groups (`+groupCols+`, name_fold) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
		g.ID, g.TeamID, g.Name, toJSON(g.Roles), g.GID, g.ServerGroup, micros(g.CreatedAt), fold(g.Name))
}

// SetRoles stores the roles of a group.
func (tx *Tx) SetRoles(groupID string, roles []sft.Role) error {
	return tx.must(`UPDATE groups SET roles = $2 WHERE id = $1`, groupID, toJSON(roles))
}

// RemoveGroup deletes a group with its members and its place in projects. Its
// gid is nobody else's.
func (tx *Tx) RemoveGroup(id string) error {
	if err := tx.keepGID(id, 0); err != nil {
		return err
	}
	if err := tx.add(`DELETE FROM project_sudo WHERE group_id = $1`, id); err != nil {
		return err
	}
	if err := tx.add(`DELETE FROM account_conflicts WHERE subject = $1`, id); err != nil {
		return err
	}
	if err := tx.add(`DELETE FROM members WHERE group_id = $1`, id); err != nil {
		return err
	}
	if err := tx.add(`DELETE FROM project_groups WHERE group_id = $1`, id); err != nil {
		return err
	}
	return tx.must(`DELETE FROM groups WHERE id = $1`, id)
}

// Group returns the group of that name.
func (n Notes) Group(teamID, name string) (GroupRecord, error) {
	return one(n, scanGroup, `SELECT `+groupCols+` FROM groups WHERE team_id = $1 AND name_fold = $2`, teamID, fold(name))
}

// GroupsOf returns the groups of a user: the stored ones and "everyone".
func (n Notes) GroupsOf(u UserRecord) ([]GroupRecord, error) {
	return all(n, scanGroup, `SELECT `+groupCols+` FROM groups WHERE team_id = $1
		AND (name = 'everyone' OR id IN (SELECT group_id FROM members WHERE user_id = $2))`, u.TeamID, u.ID)
}

// AddMember puts a user into a group. Who is in it already stays.
func (tx *Tx) AddMember(groupID, userID string) (added bool, err error) {
	c, err := tx.exec(`INSERT INTO members (group_id, user_id) VALUES ($1, $2) ON CONFLICT DO NOTHING`, groupID, userID)
	return c > 0, err
}

// RemoveMember takes a user out of a group.
func (tx *Tx) RemoveMember(groupID, userID string) error {
	return tx.must(`DELETE FROM members WHERE group_id = $1 AND user_id = $2`, groupID, userID)
}

// Members returns the stored members of a group.
func (n Notes) Members(groupID string) ([]UserRecord, error) {
	return all(n, scanUser, `SELECT `+prefixed("u.", userCols)+` FROM members m JOIN users u ON u.id = m.user_id WHERE m.group_id = $1`, groupID)
}

// A ClientRecord is a client with what only the platform knows.
type ClientRecord struct {
	sft.Client
	TeamID    string
	UserID    string
	DeviceKey []byte // SPKI, DER
	BindingID string // of a client that a server's agent asked for
}

const clientCols = `c.id, c.team_id, c.user_id, u.name, c.device_key, c.state, c.hostname, c.os, c.version, c.description, c.enrolled_at, c.signed_in_until, c.last_seen, c.binding_id, c.made_by`
const clientFrom = ` FROM clients c JOIN users u ON u.id = c.user_id `

// A clientRow is clientCols on the way to a record.
type clientRow struct {
	c         ClientRecord
	at, until int64
	seen      sql.NullInt64
}

func (r *clientRow) cols() []any {
	c := &r.c
	return []any{&c.ID, &c.TeamID, &c.UserID, &c.User, &c.DeviceKey, &c.State, &c.Hostname, &c.OS, &c.Version,
		&c.Description, &r.at, &r.until, &r.seen, &c.BindingID, &c.MadeBy}
}

func (r *clientRow) record() ClientRecord {
	c := &r.c
	c.EnrolledAt, c.SignedInUntil, c.LastSeen = fromMicros(r.at), fromMicros(r.until), optTime(r.seen)
	c.Fingerprint = hexSHA256(c.DeviceKey)
	return *c
}

func scanClient(s scanner) (ClientRecord, error) {
	var r clientRow
	err := s.Scan(r.cols()...)
	return r.record(), err
}

// AddClient stores a new client.
func (tx *Tx) AddClient(c ClientRecord) error {
	return tx.add(`INSERT INTO clients (id, team_id, user_id, device_key, state, hostname, os, version, description, enrolled_at, signed_in_until, binding_id, made_by)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)`, c.ID, c.TeamID, c.UserID, c.DeviceKey, c.State,
		c.Hostname, c.OS, c.Version, c.Description, micros(c.EnrolledAt), micros(c.SignedInUntil), c.BindingID, c.MadeBy)
}

// Client returns the client of that id, deleted ones too.
func (n Notes) Client(id string) (ClientRecord, error) {
	return one(n, scanClient, `SELECT `+clientCols+clientFrom+`WHERE c.id = $1`, id)
}

// ClientByKey returns the client with that device key, deleted ones too.
func (n Notes) ClientByKey(spki []byte) (ClientRecord, error) {
	return one(n, scanClient, `SELECT `+clientCols+clientFrom+`WHERE c.device_key = $1`, spki)
}

// SignInClient moves the end of a client's sign-in.
func (tx *Tx) SignInClient(id string, until time.Time) error {
	return tx.must(`UPDATE clients SET signed_in_until = $2 WHERE id = $1`, id, micros(until))
}

// MoveClient gives a client to another user. Its sessions are marked as ended,
// and its sign-in is over.
func (tx *Tx) MoveClient(id, userID string, now time.Time) error {
	if err := tx.stopClient(id, now); err != nil {
		return err
	}
	return tx.must(`UPDATE clients SET user_id = $2 WHERE id = $1`, id, userID)
}

// HoldClient makes a client PENDING. Its sessions are marked as ended, and its
// sign-in is over.
func (tx *Tx) HoldClient(id string, now time.Time) error {
	if err := tx.stopClient(id, now); err != nil {
		return err
	}
	return tx.must(`UPDATE clients SET state = $2 WHERE id = $1`, id, sft.StatePending)
}

// ApproveClient makes a client ACTIVE.
func (tx *Tx) ApproveClient(id string) error {
	return tx.must(`UPDATE clients SET state = $2 WHERE id = $1`, id, sft.StateActive)
}

// stopClient ends a client's sessions and its sign-in, and one that waits to be
// redeemed: it was approved before.
func (tx *Tx) stopClient(id string, now time.Time) error {
	if err := tx.endSessions(id, now); err != nil {
		return err
	}
	for _, q := range []string{
		`DELETE FROM sign_ins WHERE client_id = $1`,
		`UPDATE clients SET signed_in_until = 0 WHERE id = $1`,
	} {
		if err := tx.add(q, id); err != nil {
			return err
		}
	}
	return nil
}

// clockSlack is by how much a clock may be ahead for what it takes to be over to
// end all the same.
const clockSlack = time.Hour

// endSessions marks the sessions of a client as ended that may live, on their
// servers or on the way to them. Whatever else it had stays as it is: that may
// be very many, and everybody waits for a change.
func (tx *Tx) endSessions(clientID string, now time.Time) error {
	for _, q := range []string{endSessions, endThrough} {
		if err := tx.add(q, clientID, micros(now.Add(-clockSlack))); err != nil {
			return err
		}
	}
	return nil
}

// To SQLite the expression says by which index not to go.
const (
	endSessions = `UPDATE sessions SET revoked = true WHERE client_id = $1 AND live_until > $2 AND NOT revoked`
	endThrough  = `UPDATE sessions SET revoked = true WHERE client_id || '' = $1 AND id IN (SELECT session_id FROM session_hops WHERE expires_at > $2) AND NOT revoked`
)

// RemoveClient marks a client as deleted and its sessions as ended.
func (tx *Tx) RemoveClient(id string, now time.Time) error {
	if err := tx.endSessions(id, now); err != nil {
		return err
	}
	return tx.must(`UPDATE clients SET state = $2, signed_in_until = 0 WHERE id = $1`, id, sft.StateDeleted)
}

// ReviseSessionsOf is ReviseServer for those to which, or through which, sessions
// of a client may live.
func (tx *Tx) ReviseSessionsOf(clientID string, now time.Time) error {
	ids, err := all(tx.Notes, scanID, `UPDATE servers SET revision = revision + 1 WHERE id IN (
		SELECT server_id FROM sessions WHERE client_id = $1 AND live_until > $2
		UNION SELECT h.server_id FROM session_hops h JOIN sessions s ON s.id = h.session_id WHERE h.expires_at > $2 AND s.client_id || '' = $1) RETURNING id`,
		clientID, micros(now.Add(-clockSlack)))
	tx.tell(ids...)
	return err
}

// ClientSeen notes when a client last asked for something.
func (n Notes) ClientSeen(id string, at time.Time) error {
	return n.must(`UPDATE clients SET last_seen = $2 WHERE id = $1`, id, micros(at))
}
