package store

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"sft"
	"sft/internal/api"
)

// A ProjectRecord is a project with its team.
type ProjectRecord struct {
	sft.Project
	TeamID string
}

const projectCols = `id, team_id, name, created_at, revision, create_users, delete_users, max_session, disconnected, ` +
	`channel_clipboard, channel_devices, channel_audio, channel_other_dynamic, ` +
	`ssh_port_forward, ssh_forward_agent, user_on_demand, require_preauth, name_reuse_after`

// A projectRow is projectCols on the way to a record.
type projectRow struct {
	p  ProjectRecord
	at int64
}

func (r *projectRow) cols() []any {
	p := &r.p
	return []any{&p.ID, &p.TeamID, &p.Name, &r.at, &p.Revision, &p.CreateServerUsers, &p.DeleteServerUsers,
		&p.MaxSession, &p.DisconnectedSession,
		&p.Channels.Clipboard, &p.Channels.Devices, &p.Channels.Audio, &p.Channels.OtherDynamic,
		&p.ClientOptions.PortForward, &p.ClientOptions.ForwardAgent, &p.UserOnDemand, &p.RequirePreauth, &p.NameReuseAfter}
}

func (r *projectRow) record() ProjectRecord {
	r.p.CreatedAt = fromMicros(r.at)
	return r.p
}

func scanProject(s scanner) (ProjectRecord, error) {
	var r projectRow
	err := s.Scan(r.cols()...)
	return r.record(), err
}

// AddProject stores a new project.
func (tx *Tx) AddProject(p ProjectRecord) error {
	return tx.add(`INSERT INTO projects (`+projectCols+`, name_fold) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)`,
		p.ID, p.TeamID, p.Name, micros(p.CreatedAt), p.Revision, p.CreateServerUsers, p.DeleteServerUsers,
		p.MaxSession, p.DisconnectedSession,
		p.Channels.Clipboard, p.Channels.Devices, p.Channels.Audio, p.Channels.OtherDynamic,
		p.ClientOptions.PortForward, p.ClientOptions.ForwardAgent, p.UserOnDemand, p.RequirePreauth, p.NameReuseAfter, fold(p.Name))
}

// SaveProject stores the settings of a project.
func (tx *Tx) SaveProject(p ProjectRecord) error {
	return tx.must(`UPDATE projects SET create_users = $2, delete_users = $3, max_session = $4, disconnected = $5,
		channel_clipboard = $6, channel_devices = $7, channel_audio = $8, channel_other_dynamic = $9,
		ssh_port_forward = $10, ssh_forward_agent = $11, user_on_demand = $12, require_preauth = $13, name_reuse_after = $14 WHERE id = $1`,
		p.ID, p.CreateServerUsers, p.DeleteServerUsers, p.MaxSession, p.DisconnectedSession,
		p.Channels.Clipboard, p.Channels.Devices, p.Channels.Audio, p.Channels.OtherDynamic,
		p.ClientOptions.PortForward, p.ClientOptions.ForwardAgent, p.UserOnDemand, p.RequirePreauth, p.NameReuseAfter)
}

// RemoveProject marks a project as deleted, deletes its tokens, takes it out of
// preauthorizations and frees its cloud accounts and sudo entitlements.
func (tx *Tx) RemoveProject(id string, at time.Time) error {
	if err := tx.add(`DELETE FROM preauthorization_projects WHERE project_id = $1`, id); err != nil {
		return err
	}
	if err := tx.add(`DELETE FROM project_sudo WHERE project_id = $1`, id); err != nil {
		return err
	}
	if err := tx.add(`DELETE FROM enrollment_tokens WHERE project_id = $1`, id); err != nil {
		return err
	}
	if err := tx.add(`DELETE FROM cloud_accounts WHERE project_id = $1`, id); err != nil {
		return err
	}
	return tx.must(`UPDATE projects SET deleted_at = $2 WHERE id = $1`, id, micros(at))
}

// Project returns the project of that name.
func (n Notes) Project(teamID, name string) (ProjectRecord, error) {
	return one(n, scanProject, `SELECT `+projectCols+` FROM projects WHERE team_id = $1 AND name_fold = $2 AND deleted_at IS NULL`, teamID, fold(name))
}

// ProjectName returns the name of a project, of a deleted one too.
func (n Notes) ProjectName(id string) (string, error) {
	return one(n, scanText, `SELECT name FROM projects WHERE id = $1`, id)
}

// ProjectByID returns the project of that id.
func (n Notes) ProjectByID(id string) (ProjectRecord, error) {
	return one(n, scanProject, `SELECT `+projectCols+` FROM projects WHERE id = $1 AND deleted_at IS NULL`, id)
}

// Revise counts a project's revision up: its agents are to hear of a change.
func (tx *Tx) Revise(projectID string) error {
	tx.tell(projectID)
	return tx.must(`UPDATE projects SET revision = revision + 1 WHERE id = $1`, projectID)
}

// ReviseGroup is Revise for each project that a group is in.
func (tx *Tx) ReviseGroup(groupID string) error {
	projects, err := all(tx.Notes, scanID, `UPDATE projects SET revision = revision + 1 WHERE id IN (SELECT project_id FROM project_groups WHERE group_id = $1) RETURNING id`, groupID)
	tx.tell(projects...)
	return err
}

// ReviseTeam is Revise for each project of a team.
func (tx *Tx) ReviseTeam(teamID string) error {
	tx.tell(teamID)
	return tx.add(`UPDATE projects SET revision = revision + 1 WHERE team_id = $1`, teamID)
}

func scanID(s scanner) (id string, err error) { return id, s.Scan(&id) }

// A ProjectGroupRecord is a group's place in a project. ServerGroupName is the
// local group's name, and empty where there is none.
type ProjectGroupRecord struct {
	sft.ProjectGroup
	ProjectID string
	GroupID   string
	GID       int // of the local group; 0: it was never one
}

const projectGroupCols = `pg.project_id, pg.group_id, g.name, g.gid, pg.server_access, pg.server_admin, pg.servers_selector, pg.server_group, pg.created_at`
const projectGroupFrom = ` FROM project_groups pg JOIN groups g ON g.id = pg.group_id `

func scanProjectGroup(s scanner) (g ProjectGroupRecord, err error) {
	var at int64
	err = s.Scan(&g.ProjectID, &g.GroupID, &g.Group, &g.GID, &g.ServerAccess, &g.ServerAdmin, &g.ServersSelector, &g.ServerGroupName, &at)
	g.CreatedAt, g.CreateServerGroup = fromMicros(at), g.ServerGroupName != ""
	return g, err
}

// AddProjectGroup lets a group into a project. Its sudo entitlements are set
// apart, by SetSudo.
func (tx *Tx) AddProjectGroup(g ProjectGroupRecord) error {
	return tx.add(`INSERT INTO project_groups (project_id, group_id, server_access, server_admin, servers_selector, server_group, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
		g.ProjectID, g.GroupID, g.ServerAccess, g.ServerAdmin, g.ServersSelector, g.ServerGroupName, micros(g.CreatedAt))
}

// SaveProjectGroup stores what a group may do in a project, but for its sudo
// entitlements.
func (tx *Tx) SaveProjectGroup(g ProjectGroupRecord) error {
	return tx.must(`UPDATE project_groups SET server_access = $3, server_admin = $4, servers_selector = $5, server_group = $6 WHERE project_id = $1 AND group_id = $2`,
		g.ProjectID, g.GroupID, g.ServerAccess, g.ServerAdmin, g.ServersSelector, g.ServerGroupName)
}

// RemoveProjectGroup takes a group out of a project.
func (tx *Tx) RemoveProjectGroup(projectID, groupID string) error {
	if err := tx.SetSudo(projectID, groupID, nil); err != nil {
		return err
	}
	return tx.must(`DELETE FROM project_groups WHERE project_id = $1 AND group_id = $2`, projectID, groupID)
}

// ProjectGroups returns the groups of a project, with the names of their sudo
// entitlements in order.
func (n Notes) ProjectGroups(projectID string) ([]ProjectGroupRecord, error) {
	list, err := all(n, scanProjectGroup, `SELECT `+projectGroupCols+projectGroupFrom+`WHERE pg.project_id = $1`, projectID)
	if err != nil {
		return nil, err
	}
	sudo, err := n.projectSudo(projectID)
	for i, g := range list {
		list[i].SudoEntitlements = sudo[g.GroupID]
	}
	return list, err
}

// ProjectGroupsOf returns every place that a user's groups have in projects,
// without sudo entitlements.
func (n Notes) ProjectGroupsOf(u UserRecord) ([]ProjectGroupRecord, error) {
	return all(n, scanProjectGroup, `SELECT `+projectGroupCols+projectGroupFrom+`WHERE g.team_id = $1
		AND (g.name = 'everyone' OR g.id IN (SELECT group_id FROM members WHERE user_id = $2))`, u.TeamID, u.ID)
}

// PlacesOf is GroupsOf and ProjectGroupsOf at once.
func (n Notes) PlacesOf(u UserRecord) (groups []GroupRecord, places []ProjectGroupRecord, err error) {
	type row struct {
		g  GroupRecord
		pg ProjectGroupRecord
	}
	rows, err := all(n, func(s scanner) (v row, err error) {
		var w groupRow
		var at int64
		pg := &v.pg
		err = s.Scan(append(w.cols(), &pg.ProjectID, &pg.ServerAccess, &pg.ServerAdmin, &pg.ServersSelector, &pg.ServerGroupName, &at)...)
		if err == nil {
			v.g, err = w.record()
		}
		pg.GroupID, pg.Group, pg.GID = v.g.ID, v.g.Name, v.g.GID
		pg.CreatedAt, pg.CreateServerGroup = fromMicros(at), pg.ServerGroupName != ""
		return v, err
	}, `SELECT `+prefixed("g.", groupCols)+`, coalesce(pg.project_id, ''), coalesce(pg.server_access, false), coalesce(pg.server_admin, false),
		coalesce(pg.servers_selector, ''), coalesce(pg.server_group, ''), coalesce(pg.created_at, 0)
		FROM groups g LEFT JOIN project_groups pg ON pg.group_id = g.id
		WHERE g.team_id = $1 AND (g.name = 'everyone' OR g.id IN (SELECT group_id FROM members WHERE user_id = $2)) ORDER BY g.id`, u.TeamID, u.ID)
	for i, v := range rows {
		if i == 0 || rows[i-1].g.ID != v.g.ID {
			groups = append(groups, v.g)
		}
		if v.pg.ProjectID != "" {
			places = append(places, v.pg)
		}
	}
	return groups, places, err
}

// A TokenRecord is an enrollment token with what only the platform knows.
type TokenRecord struct {
	sft.EnrollmentToken
	ProjectID  string
	SecretHash []byte
}

const tokenCols = `id, project_id, description, created_by, secret_hash, issued_at, expires_at, max_uses, uses`

func scanToken(s scanner) (t TokenRecord, err error) {
	var at int64
	var expires sql.NullInt64
	err = s.Scan(&t.ID, &t.ProjectID, &t.Description, &t.CreatedBy, &t.SecretHash, &at, &expires, &t.MaxUses, &t.Uses)
	t.IssuedAt, t.ExpiresAt = fromMicros(at), optTime(expires)
	return t, err
}

// AddToken stores a new enrollment token.
func (tx *Tx) AddToken(t TokenRecord) error {
	return tx.add(`INSERT INTO enrollment_tokens (`+tokenCols+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
		t.ID, t.ProjectID, t.Description, t.CreatedBy, t.SecretHash, micros(t.IssuedAt), optMicros(t.ExpiresAt), t.MaxUses, t.Uses)
}

// Token returns the enrollment token with that secret.
func (n Notes) Token(hash []byte) (TokenRecord, error) {
	return one(n, scanToken, `SELECT `+tokenCols+` FROM enrollment_tokens WHERE secret_hash = $1`, hash)
}

// TokenByID returns an enrollment token of a project.
func (n Notes) TokenByID(projectID, id string) (TokenRecord, error) {
	return one(n, scanToken, `SELECT `+tokenCols+` FROM enrollment_tokens WHERE project_id = $1 AND id = $2`, projectID, id)
}

// UseToken counts a use.
func (tx *Tx) UseToken(id string) error {
	return tx.must(`UPDATE enrollment_tokens SET uses = uses + 1 WHERE id = $1`, id)
}

// RemoveToken deletes an enrollment token.
func (tx *Tx) RemoveToken(projectID, id string) error {
	return tx.must(`DELETE FROM enrollment_tokens WHERE project_id = $1 AND id = $2`, projectID, id)
}

// A ServerRecord is a server as the platform knows it.
type ServerRecord struct {
	ID           string
	TeamID       string
	ProjectID    string
	Project      string
	DeviceKey    []byte // SPKI, DER
	Facts        api.Facts
	NameConflict []string
	HostKey      []byte // SHA-256 of the broker key's SPKI
	HostKeyOld   []byte // the one before, while it is renewed
	RegisteredAt time.Time
	LastSeen     *time.Time
	LastSeq      int64 // of the agent's events
	DeletedAt    *time.Time
	// Provider and Instance are of a server that enrolled by its cloud's word.
	Provider        string
	Instance        *sft.InstanceDetails
	ReenrollAllowed bool
	KeyConflict     bool
	// DeviceKeySince is when the device key was made known, and RotateKey that an
	// administrator wants another.
	DeviceKeySince time.Time
	RotateKey      bool
	AgentRevision  int64 // of the project, that the agent has taken up
	JoinedRevision int64 // of the project, when the server was moved into it; 0: it never was
	// Unmanaged is a record without an agent, made by an administrator: its
	// facts are what they said, and it has no device key.
	Unmanaged bool
	// Given are the labels of administrators, by their whole keys.
	Given map[string]string
	// Revision counts what the server's agent alone must hear of: with that of
	// the project it is the revision of the agent's state.
	Revision int64
}

// Labels are all of a server's labels, by their whole keys.
func (r ServerRecord) Labels() map[string]string {
	all := map[string]string{sft.LabelManaged: strconv.FormatBool(!r.Unmanaged), sft.LabelOSType: r.Facts.OSType, sft.LabelCloudProvider: r.Provider}
	if i := r.Instance; i != nil {
		all[sft.LabelCloudAccount], all[sft.LabelCloudRegion], all[sft.LabelCloudZone], all[sft.LabelInstanceType] = i.AccountID, i.Region, i.Zone, i.Type
	}
	maps.DeleteFunc(all, func(key, value string) bool { return value == "" || sft.CheckLabel(key, value) != nil })
	maps.Copy(all, r.Facts.Labels)
	maps.Copy(all, r.Given)
	return all
}

// An AgentRun is one run of a server's agent, from its start to its end.
type AgentRun struct {
	ID    string    `json:"id"`
	Addr  string    `json:"addr"`  // where it asked from first
	First time.Time `json:"first"` // when it asked
	Last  time.Time `json:"last"`
}

// Server returns the noun.
func (r ServerRecord) Server(now time.Time) sft.Server {
	f := r.Facts
	s := sft.Server{ID: r.ID, Project: r.Project, Hostname: f.Hostname, CanonicalName: f.CanonicalName, AltNames: f.AltNames,
		AccessAddress: f.AccessAddress, BrokerPort: f.BrokerPort, Bastion: f.Bastion, OS: f.OS, OSType: f.OSType, Version: f.Version,
		Services: f.Services, State: sft.StateInactive, Labels: r.Labels(), RegisteredAt: r.RegisteredAt, LastSeen: r.LastSeen,
		Problems: f.Problems, NameConflict: r.NameConflict,
		CloudProvider: r.Provider, InstanceDetails: r.Instance, ReenrollAllowed: r.ReenrollAllowed, Managed: !r.Unmanaged, KeyConflict: r.KeyConflict, RotateKey: r.RotateKey}
	if !r.Unmanaged {
		s.DeviceKeySince = &r.DeviceKeySince
	}
	if f.SSH != nil {
		s.SSHPort, s.SSHHostKeys = f.SSH.Port, f.SSH.HostKeys
	}
	if r.Unmanaged || r.LastSeen != nil && now.Sub(*r.LastSeen) < sft.ActiveFor {
		s.State = sft.StateActive
	}
	if r.DeletedAt != nil {
		s.State = sft.StateDeleted
	}
	if r.KeyConflict {
		s.Problems = append([]string{"its device key is used from two places at once, and nothing is issued for it; find the copy, enrol it anew, and set key_conflict to false"}, s.Problems...)
	}
	for _, list := range []*[]string{&s.AltNames, &s.Services, &s.Problems} {
		if *list == nil {
			*list = []string{}
		}
	}
	return s
}

const serverCols = `s.id, s.team_id, s.project_id, p.name, s.device_key, s.facts, s.name_conflict, s.host_key, s.host_key_old, s.registered_at, s.last_seen, s.last_seq, s.deleted_at,
	s.cloud_provider, s.cloud_details, s.reenroll_allowed, s.unmanaged, s.key_conflict, s.labels, s.revision, s.device_key_since, s.rotate_device_key, s.agent_revision, s.joined_revision`
const serverFrom = ` FROM servers s JOIN projects p ON p.id = s.project_id `

// A serverRow is serverCols on the way to a record.
type serverRow struct {
	r                                ServerRecord
	at, since                        int64
	seen, deleted                    sql.NullInt64
	facts, conflict, details, labels string
}

func (w *serverRow) cols() []any {
	r := &w.r
	return []any{&r.ID, &r.TeamID, &r.ProjectID, &r.Project, &r.DeviceKey, &w.facts, &w.conflict, &r.HostKey, &r.HostKeyOld,
		&w.at, &w.seen, &r.LastSeq, &w.deleted, &r.Provider, &w.details, &r.ReenrollAllowed, &r.Unmanaged, &r.KeyConflict, &w.labels, &r.Revision, &w.since, &r.RotateKey, &r.AgentRevision, &r.JoinedRevision}
}

func (w *serverRow) record() (r ServerRecord, err error) {
	r = w.r
	if r.Unmanaged {
		r.DeviceKey = nil
	}
	r.RegisteredAt, r.LastSeen, r.DeletedAt, r.DeviceKeySince = fromMicros(w.at), optTime(w.seen), optTime(w.deleted), fromMicros(w.since)
	if err = json.Unmarshal([]byte(w.facts), &r.Facts); err == nil {
		err = json.Unmarshal([]byte(w.conflict), &r.NameConflict)
	}
	if err == nil && w.details != "" {
		err = json.Unmarshal([]byte(w.details), &r.Instance)
	}
	if err == nil && w.labels != "" {
		err = json.Unmarshal([]byte(w.labels), &r.Given)
	}
	return r, err
}

func scanServer(s scanner) (ServerRecord, error) {
	var w serverRow
	if err := s.Scan(w.cols()...); err != nil {
		return w.r, err
	}
	return w.record()
}

// cloud are the columns of a server that its cloud has signed.
func (r ServerRecord) cloud() (provider, instance string, pending int64, details string) {
	if r.Instance == nil {
		return "", "", 0, ""
	}
	return r.Provider, r.Instance.InstanceID, micros(r.Instance.PendingTime), toJSON(r.Instance)
}

// AddServer stores a new server. A device key has one record, also after
// another took its place, and so has an instance of a cloud, as long as it is
// not deleted.
func (tx *Tx) AddServer(r ServerRecord) error {
	f := r.Facts
	provider, instance, pending, details := r.cloud()
	if r.Unmanaged {
		// The column wants a key of its own in each row. This is none that could
		// be parsed, and it is not read back.
		r.DeviceKey = []byte("unmanaged " + r.ID)
	}
	if err := tx.newDeviceKey(r.DeviceKey); err != nil {
		return err
	}
	if err := tx.add(`INSERT INTO servers (id, team_id, project_id, device_key, hostname, canonical_name, access_address, broker_port,
		facts, name_conflict, host_key, host_key_old, registered_at, last_seen, last_seq, cloud_provider, cloud_instance, cloud_pending, cloud_details, reenroll_allowed, unmanaged, device_key_since, os_type)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, 0, $15, $16, $17, $18, $19, $20, $13, $21)`,
		r.ID, r.TeamID, r.ProjectID, r.DeviceKey, f.Hostname, f.CanonicalName, f.AccessAddress, f.BrokerPort,
		toJSON(f), toJSON(r.NameConflict), r.HostKey, r.HostKeyOld, micros(r.RegisteredAt), optMicros(r.LastSeen),
		provider, instance, pending, details, r.ReenrollAllowed, r.Unmanaged, f.OSType); err != nil {
		return err
	}
	if err := tx.indexAliases(r.ID, f); err != nil {
		return err
	}
	return tx.indexLabels(r, sft.LabelSFTD, f.Labels)
}

// ReplaceServer gives a record to the instance that has enrolled anew: its
// device key is another, its broker has no key yet, its agent has taken up
// nothing, its events are numbered from the beginning, no service user is bound
// to its accounts any more, and this happens once.
func (tx *Tx) ReplaceServer(r ServerRecord) error {
	if err := tx.removeBindings(`server_id`, r.ID, r.RegisteredAt); err != nil {
		return err
	}
	if err := tx.ReplaceDeviceKey(r.ID, r.DeviceKey, r.RegisteredAt); err != nil {
		return err
	}
	// What was there has another machine's keys.
	if err := tx.add(`UPDATE former_projects SET host_key = NULL, host_key_old = NULL WHERE server_id = $1`, r.ID); err != nil {
		return err
	}
	provider, instance, pending, details := r.cloud()
	return tx.must(`UPDATE servers SET host_key = NULL, host_key_old = NULL, agent_revision = 0, last_seq = 0, registered_at = $2,
		cloud_provider = $3, cloud_instance = $4, cloud_pending = $5, cloud_details = $6, reenroll_allowed = $7 WHERE id = $1`,
		r.ID, micros(r.RegisteredAt), provider, instance, pending, details, false)
}

// AllowReenroll says whether a server's instance may take its record over.
func (tx *Tx) AllowReenroll(id string, allowed bool) error {
	return tx.must(`UPDATE servers SET reenroll_allowed = $2 WHERE id = $1`, id, allowed)
}

// AgentRuns returns the runs of a server's agent that asked lately, as
// SetAgentRuns stored them.
func (n Notes) AgentRuns(id string) (runs []AgentRun, err error) {
	s, err := one(n, func(s scanner) (v string, err error) { return v, s.Scan(&v) }, `SELECT agent_runs FROM servers WHERE id = $1`, id)
	if err == nil && s != "" {
		err = json.Unmarshal([]byte(s), &runs)
	}
	return runs, err
}

// SetAgentRuns notes which runs of a server's agent asked lately, the one that
// began last at the end.
func (n Notes) SetAgentRuns(id string, runs []AgentRun) error {
	return n.must(`UPDATE servers SET agent_runs = $2 WHERE id = $1`, id, toJSON(runs))
}

// SetKeyConflict says whether two agents use a server's device key, and
// forgets by which runs that is known.
func (tx *Tx) SetKeyConflict(id string, on bool) error {
	return tx.must(`UPDATE servers SET key_conflict = $2, agent_runs = '' WHERE id = $1`, id, on)
}

// An OldDeviceKey is a device key that another took the place of.
type OldDeviceKey struct {
	SPKI  []byte
	Until time.Time
}

// maxOldKeys of a server are kept: those of more than a year.
const maxOldKeys = 16

// OldDeviceKeys returns a server's device keys before its present one, the
// newest first.
func (n Notes) OldDeviceKeys(serverID string) ([]OldDeviceKey, error) {
	return all(n, func(s scanner) (k OldDeviceKey, err error) {
		var until int64
		err = s.Scan(&k.SPKI, &until)
		k.Until = fromMicros(until)
		return k, err
	}, `SELECT device_key, until FROM old_device_keys WHERE server_id = $1 ORDER BY until DESC`, serverID)
}

// newDeviceKey refuses a device key that some server had before.
func (n Notes) newDeviceKey(spki []byte) error {
	_, err := one(n, func(s scanner) (v string, err error) { return v, s.Scan(&v) }, `SELECT server_id FROM old_device_keys WHERE device_key = $1`, spki)
	if err == nil {
		return ErrExists
	}
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// ReplaceDeviceKey gives a server another device key, which no server may have
// or have had, and remembers the one before.
func (tx *Tx) ReplaceDeviceKey(id string, spki []byte, at time.Time) error {
	if err := tx.newDeviceKey(spki); err != nil {
		return err
	}
	if err := tx.add(`INSERT INTO old_device_keys (device_key, server_id, until) SELECT device_key, id, $2 FROM servers WHERE id = $1`, id, micros(at)); err != nil {
		return err
	}
	if err := tx.must(`UPDATE servers SET device_key = $2, device_key_since = $3, rotate_device_key = $4 WHERE id = $1`, id, spki, micros(at), false); err != nil {
		return err
	}
	return tx.add(`DELETE FROM old_device_keys WHERE server_id = $1 AND device_key NOT IN
		(SELECT device_key FROM old_device_keys WHERE server_id = $1 ORDER BY until DESC LIMIT $2)`, id, maxOldKeys)
}

// WantDeviceKey says whether a server's agent is to make another device key.
func (tx *Tx) WantDeviceKey(id string, wanted bool) error {
	return tx.must(`UPDATE servers SET rotate_device_key = $2 WHERE id = $1`, id, wanted)
}

// ServerByInstance returns the record of an instance of a cloud that is not
// deleted.
func (n Notes) ServerByInstance(provider, instance string) (ServerRecord, error) {
	return one(n, scanServer, `SELECT `+serverCols+serverFrom+`WHERE s.cloud_provider = $1 AND s.cloud_instance = $2 AND s.deleted_at IS NULL`, provider, instance)
}

// InstanceStarted returns when an instance was started last, as far as a
// document that it enrolled with has said so; the zero time if none has.
func (n Notes) InstanceStarted(provider, instance string) (time.Time, error) {
	at, err := one(n, func(s scanner) (v sql.NullInt64, err error) { return v, s.Scan(&v) },
		`SELECT max(cloud_pending) FROM servers WHERE cloud_provider = $1 AND cloud_instance = $2`, provider, instance)
	if err != nil || !at.Valid {
		return time.Time{}, err
	}
	return fromMicros(at.Int64), nil
}

// A CloudAccountRecord is a cloud account with its project.
type CloudAccountRecord struct {
	sft.CloudAccount
	ProjectID string
}

const cloudAccountCols = `id, project_id, provider, account_id, description, created_by, created_at`

func scanCloudAccount(s scanner) (c CloudAccountRecord, err error) {
	var at int64
	err = s.Scan(&c.ID, &c.ProjectID, &c.Provider, &c.AccountID, &c.Description, &c.CreatedBy, &at)
	c.CreatedAt = fromMicros(at)
	return c, err
}

// AddCloudAccount binds an account to a project. It is in one project of all.
func (tx *Tx) AddCloudAccount(c CloudAccountRecord) error {
	return tx.add(`INSERT INTO cloud_accounts (`+cloudAccountCols+`) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
		c.ID, c.ProjectID, c.Provider, c.AccountID, c.Description, c.CreatedBy, micros(c.CreatedAt))
}

// CloudAccount returns the account of that number.
func (n Notes) CloudAccount(provider, account string) (CloudAccountRecord, error) {
	return one(n, scanCloudAccount, `SELECT `+cloudAccountCols+` FROM cloud_accounts WHERE provider = $1 AND account_id = $2`, provider, account)
}

// CloudAccountByID returns an account of a project.
func (n Notes) CloudAccountByID(projectID, id string) (CloudAccountRecord, error) {
	return one(n, scanCloudAccount, `SELECT `+cloudAccountCols+` FROM cloud_accounts WHERE project_id = $1 AND id = $2`, projectID, id)
}

// RemoveCloudAccount takes an account out of a project.
func (tx *Tx) RemoveCloudAccount(projectID, id string) error {
	return tx.must(`DELETE FROM cloud_accounts WHERE project_id = $1 AND id = $2`, projectID, id)
}

// SaveServer stores what an agent claims, and its broker's key.
func (tx *Tx) SaveServer(r ServerRecord) error {
	f := r.Facts
	if err := tx.indexLabels(r, sft.LabelSFTD, f.Labels); err != nil {
		return err
	}
	if err := tx.indexAliases(r.ID, f); err != nil {
		return err
	}
	return tx.must(`UPDATE servers SET hostname = $2, canonical_name = $3, access_address = $4, broker_port = $5, facts = $6,
		name_conflict = $7, host_key = $8, host_key_old = $9, os_type = $10 WHERE id = $1`,
		r.ID, f.Hostname, f.CanonicalName, f.AccessAddress, f.BrokerPort, toJSON(f), toJSON(r.NameConflict), r.HostKey, r.HostKeyOld, f.OSType)
}

// ServerByID returns the server of that id, deleted ones too.
func (n Notes) ServerByID(id string) (ServerRecord, error) {
	return one(n, scanServer, `SELECT `+serverCols+serverFrom+`WHERE s.id = $1`, id)
}

// ServerByKey returns the server with that device key, deleted ones too.
func (n Notes) ServerByKey(spki []byte) (ServerRecord, error) {
	return one(n, scanServer, `SELECT `+serverCols+serverFrom+`WHERE s.device_key = $1`, spki)
}

// Servers returns the servers of a project that are not deleted.
func (n Notes) Servers(projectID string) ([]ServerRecord, error) {
	return all(n, scanServer, `SELECT `+serverCols+serverFrom+`WHERE s.project_id = $1 AND s.deleted_at IS NULL`, projectID)
}

// Behind returns how many servers of a project whose agents were seen since
// then have not taken up a revision of it, and the ids of the first of them.
func (n Notes) Behind(projectID string, revision int64, since time.Time, first int) (ids []string, count int64, err error) {
	args := []any{projectID, revision, micros(since)}
	if count, err = one(n, scanCount, `SELECT count(*)`+behind, args...); err != nil || count == 0 || first == 0 {
		return nil, count, err
	}
	ids, err = all(n, scanID, `SELECT id`+behind+` ORDER BY id LIMIT $4`, append(args, first)...)
	return ids, count, err
}

const behind = ` FROM servers WHERE project_id = $1 AND deleted_at IS NULL AND NOT unmanaged AND agent_revision < $2 AND last_seen > $3`

// A NamedServer is a server with its project.
type NamedServer struct {
	ServerRecord
	In ProjectRecord
}

// ServersNamed returns the servers of a team that hold a name, or have it as
// their id.
func (n Notes) ServersNamed(teamID, name string) ([]NamedServer, error) {
	return all(n, func(s scanner) (v NamedServer, err error) {
		var w serverRow
		var p projectRow
		if err = s.Scan(append(w.cols(), p.cols()...)...); err != nil {
			return v, err
		}
		v.ServerRecord, err = w.record()
		v.In = p.record()
		return v, err
	}, serversNamed, teamID, name, sft.HostFold(name))
}

// To SQLite CROSS JOIN says what comes first: it would go through a team's
// servers.
var serversNamed = `SELECT ` + serverCols + `, ` + prefixed("p.", projectCols) + ` FROM
	(SELECT id FROM servers WHERE id = $2 UNION SELECT server_id FROM server_names WHERE name_fold = $3) n
	CROSS JOIN servers s JOIN projects p ON p.id = s.project_id
	WHERE s.id = n.id AND s.team_id = $1 AND s.deleted_at IS NULL`

// TakeNames gives a server those of the names that no other server of its
// project holds, drops the ones it held before, and returns the names that
// others hold.
func (tx *Tx) TakeNames(projectID, serverID string, names []string) (taken []string, err error) {
	if err := tx.add(`DELETE FROM server_names WHERE server_id = $1`, serverID); err != nil {
		return nil, err
	}
	for _, name := range names {
		c, err := tx.exec(`INSERT INTO server_names (project_id, name_fold, server_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`,
			projectID, sft.HostFold(name), serverID)
		if err != nil {
			return nil, err
		}
		if c == 0 {
			holder, err := tx.NameHolder(projectID, name)
			if err != nil {
				return nil, err
			}
			if holder != serverID {
				taken = append(taken, name)
			}
		}
	}
	return taken, nil
}

// NameHolder returns the id of the server of a project that holds a name.
func (n Notes) NameHolder(projectID, name string) (string, error) {
	return one(n, scanID,
		`SELECT server_id FROM server_names WHERE project_id = $1 AND name_fold = $2`, projectID, sft.HostFold(name))
}

// GiveName gives a name to a server of the project, whoever holds it.
func (tx *Tx) GiveName(projectID, serverID, name string) error {
	return tx.must(`UPDATE server_names SET server_id = $2 WHERE project_id = $1 AND name_fold = $3`, projectID, serverID, sft.HostFold(name))
}

// RemoveServer marks a server as deleted, frees its names, and ends what its
// accounts were bound to.
func (tx *Tx) RemoveServer(id string, at time.Time) error {
	tx.tell(id)
	if err := tx.removeBindings(`server_id`, id, at); err != nil {
		return err
	}
	for _, table := range []string{"server_names", "server_labels", "server_aliases", "account_conflicts"} {
		if err := tx.add(`DELETE FROM `+table+` WHERE server_id = $1`, id); err != nil {
			return err
		}
	}
	return tx.must(`UPDATE servers SET deleted_at = $2 WHERE id = $1`, id, micros(at))
}

// MoveServer puts a server into another project. What was issued for it and for
// people who came to it ends with the old one: its broker has no key, its
// names are not held, the sessions to it and through it are marked as ended, of
// which the other servers of their ways hear. A server that comes back before
// its broker had a key in another project has the one that it had: its agent
// may not have heard of any of it. The new project's revision is above the old
// one's: the agent, which knows that, hears of it.
func (tx *Tx) MoveServer(id, from, to string, at time.Time) error {
	tx.tell(id, to)
	for _, table := range []string{"server_names", "account_conflicts"} {
		if err := tx.add(`DELETE FROM `+table+` WHERE server_id = $1`, id); err != nil {
			return err
		}
	}
	const touched = `(SELECT id FROM sessions WHERE server_id = $1 AND live_until > $2 UNION SELECT session_id FROM session_hops WHERE server_id = $1 AND expires_at > $2)`
	if err := tx.add(`UPDATE sessions SET revoked = true WHERE id IN `+touched, id, micros(at)); err != nil {
		return err
	}
	others, err := all(tx.Notes, scanID, `UPDATE servers SET revision = revision + 1 WHERE id IN (SELECT server_id FROM sessions WHERE id IN `+touched+`
		UNION SELECT server_id FROM session_hops WHERE session_id IN `+touched+`) RETURNING id`, id, micros(at))
	if err != nil {
		return err
	}
	tx.tell(others...)
	if err := tx.add(`UPDATE server_labels SET project_id = $2 WHERE server_id = $1`, id, to); err != nil {
		return err
	}
	if err := tx.must(`UPDATE projects SET revision = 1 + (SELECT max(o.revision) FROM projects o WHERE o.id IN ($1, $2)) WHERE id = $2`, from, to); err != nil {
		return err
	}
	if err := tx.add(`INSERT INTO former_projects (server_id, nth, project_id, until, host_key, host_key_old)
		SELECT id, (SELECT 1 + coalesce(max(nth), 0) FROM former_projects WHERE server_id = $1), project_id, $2, host_key, host_key_old FROM servers WHERE id = $1`,
		id, micros(at)); err != nil {
		return err
	}
	const had = `(SELECT %s FROM former_projects WHERE server_id = $1 AND project_id = $2
		AND nth = (SELECT max(nth) FROM former_projects WHERE server_id = $1 AND host_key IS NOT NULL))`
	return tx.must(`UPDATE servers SET project_id = $2, host_key = `+fmt.Sprintf(had, "host_key")+`, host_key_old = `+fmt.Sprintf(had, "host_key_old")+`,
		reenroll_allowed = $3, agent_revision = 0, joined_revision = (SELECT revision FROM projects WHERE id = $2) WHERE id = $1`, id, to, false)
}

// A FormerProject is one that a server was in, until it was moved.
type FormerProject struct {
	Name  string
	Until time.Time
}

// FormerProjects returns the projects that a server was in before its present
// one, in their order.
func (n Notes) FormerProjects(serverID string) ([]FormerProject, error) {
	return all(n, func(s scanner) (f FormerProject, err error) {
		var until int64
		err = s.Scan(&f.Name, &until)
		f.Until = fromMicros(until)
		return f, err
	}, `SELECT p.name, f.until FROM former_projects f JOIN projects p ON p.id = f.project_id WHERE f.server_id = $1 ORDER BY f.nth`, serverID)
}

// ServerBindings returns the bindings of a server's accounts.
func (n Notes) ServerBindings(serverID string) ([]Binding, error) {
	return all(n, scanBinding, `SELECT `+bindingCols+` FROM service_bindings WHERE server_id = $1 ORDER BY id`, serverID)
}

// ServerSeen notes when a server's agent last asked for something.
func (n Notes) ServerSeen(id string, at time.Time) error {
	return n.must(`UPDATE servers SET last_seen = $2 WHERE id = $1`, id, micros(at))
}

// SetLastSeq stores the number of the last event that a server's agent sent.
func (tx *Tx) SetLastSeq(id string, seq int64) error {
	return tx.must(`UPDATE servers SET last_seq = $2 WHERE id = $1`, id, seq)
}

// A Session is one person's on one server through one service.
type Session struct {
	ID        string
	ProjectID string
	ServerID  string
	UserID    string
	ClientID  string
	Service   string
	CreatedAt time.Time
	ExpiresAt time.Time // nothing more is issued for it
	LiveUntil time.Time // what was issued for it keeps nobody signed in any more
	Revoked   bool
}

const sessionCols = `id, project_id, server_id, user_id, client_id, service, created_at, expires_at, live_until, revoked`

func scanSession(s scanner) (v Session, err error) {
	var at, ex, live int64
	err = s.Scan(&v.ID, &v.ProjectID, &v.ServerID, &v.UserID, &v.ClientID, &v.Service, &at, &ex, &live, &v.Revoked)
	v.CreatedAt, v.ExpiresAt, v.LiveUntil = fromMicros(at), fromMicros(ex), fromMicros(live)
	return v, err
}

// AddSession stores a session that credentials are issued for.
func (tx *Tx) AddSession(s Session) error {
	return tx.later(nil, `INSERT INTO sessions (`+sessionCols+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
		s.ID, s.ProjectID, s.ServerID, s.UserID, s.ClientID, s.Service, micros(s.CreatedAt), micros(s.ExpiresAt), micros(s.LiveUntil), s.Revoked)
}

// ProlongSession notes that more was issued for a session, by which somebody
// can be signed in until then at the latest.
func (tx *Tx) ProlongSession(id string, until time.Time) error {
	return tx.add(`UPDATE sessions SET live_until = $2 WHERE id = $1 AND live_until < $2`, id, micros(until))
}

// ProlongSessions moves that end of all that can live on and through the
// servers of a project: what begins from now on may last longer by that.
func (tx *Tx) ProlongSessions(projectID string, by time.Duration, now time.Time) error {
	const servers = `server_id IN (SELECT id FROM servers WHERE project_id = $1)`
	for _, q := range []string{`UPDATE sessions SET live_until = live_until + $2 WHERE live_until > $3 AND ` + servers,
		`UPDATE session_hops SET expires_at = expires_at + $2 WHERE expires_at > $3 AND ` + servers} {
		if err := tx.add(q, projectID, by.Microseconds(), micros(now)); err != nil {
			return err
		}
	}
	return nil
}

// Session returns a session.
func (n Notes) Session(id string) (Session, error) {
	return one(n, scanSession, `SELECT `+sessionCols+` FROM sessions WHERE id = $1`, id)
}

// AddSessionHop notes that a session goes through a server, where what is
// issued for it can keep somebody signed in until then at the latest.
func (tx *Tx) AddSessionHop(sessionID, serverID string, until time.Time) error {
	return tx.later(nil, `INSERT INTO session_hops (session_id, server_id, expires_at) VALUES ($1, $2, $3)
		ON CONFLICT (session_id, server_id) DO UPDATE SET expires_at = excluded.expires_at WHERE session_hops.expires_at < excluded.expires_at`,
		sessionID, serverID, micros(until))
}

// GoesThrough reports whether a session goes, or went not long ago, through a
// server to another.
func (n Notes) GoesThrough(sessionID, serverID string) (bool, error) {
	c, err := one(n, scanCount, `SELECT count(*) FROM session_hops WHERE session_id = $1 AND server_id = $2`, sessionID, serverID)
	return c > 0, err
}

// RevokedSessions returns the ids of the sessions to a server and through it
// that may no longer live and could, by their time, still do so: each counts
// from when somebody signs in, and not from when it was issued.
func (n Notes) RevokedSessions(serverID string, now time.Time) ([]string, error) {
	return all(n, scanID, revokedSessions, serverID, micros(now))
}

const revokedSessions = `SELECT id FROM sessions WHERE server_id = $1 AND live_until > $2 AND revoked
	UNION SELECT h.session_id FROM session_hops h JOIN sessions s ON s.id = h.session_id
	WHERE h.server_id = $1 AND h.expires_at > $2 AND s.revoked`

// A CARecord is a certificate authority with its sealed key.
type CARecord struct {
	ID        string
	ProjectID string // empty for the platform's own; a team's id for those of a team
	Kind      string
	Public    []byte // X.509: certificate, DER. SSH: public key, wire format
	Sealed    []byte
	CreatedAt time.Time
	NotAfter  time.Time
	Stage     string    // CANext, CAActive or CARetired
	StageAt   time.Time // since when
	Revision  int64     // of the project, that a next one came with
}

// The stages of a CA. One of each kind is active: it signs. One that is next is
// trusted already, and one that is retired is still.
const (
	CANext    = "next"
	CAActive  = "active"
	CARetired = "retired"
)

// AddCA stores a new authority.
func (tx *Tx) AddCA(c CARecord) error {
	return tx.add(`INSERT INTO cas (`+caCols+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
		c.ID, c.ProjectID, c.Kind, c.Public, c.Sealed, micros(c.CreatedAt), micros(c.NotAfter), c.Stage, micros(c.StageAt), c.Revision)
}

// CAs returns the authorities of a project, or, for "", the platform's own.
func (n Notes) CAs(projectID string) ([]CARecord, error) {
	return all(n, scanCA, `SELECT `+caCols+` FROM cas WHERE project_id = $1`, projectID)
}

const caCols = `id, project_id, kind, public, sealed, created_at, not_after, stage, stage_at, revision`

func scanCA(s scanner) (c CARecord, err error) {
	var at, na, since int64
	err = s.Scan(&c.ID, &c.ProjectID, &c.Kind, &c.Public, &c.Sealed, &at, &na, &c.Stage, &since, &c.Revision)
	c.CreatedAt, c.NotAfter, c.StageAt = fromMicros(at), fromMicros(na), fromMicros(since)
	return c, err
}

// ChangingCAs returns the authorities of projects that are not active, and
// those that are and end before at.
func (n Notes) ChangingCAs(at time.Time) ([]CARecord, error) {
	return all(n, scanCA, `SELECT `+caCols+` FROM cas WHERE project_id IN (SELECT id FROM projects WHERE deleted_at IS NULL)
		AND (stage <> $1 OR not_after < $2)`, CAActive, micros(at))
}

// SetCAStage moves an authority to another stage.
func (tx *Tx) SetCAStage(id, stage string, at time.Time) error {
	return tx.must(`UPDATE cas SET stage = $2, stage_at = $3 WHERE id = $1`, id, stage, micros(at))
}

// SetCASealed stores an authority's key as it is sealed from now on.
func (tx *Tx) SetCASealed(id string, sealed []byte) error {
	return tx.must(`UPDATE cas SET sealed = $2 WHERE id = $1`, id, sealed)
}

// RemoveCA deletes an authority, with its key.
func (tx *Tx) RemoveCA(id string) error { return tx.must(`DELETE FROM cas WHERE id = $1`, id) }

// DropCA deletes an authority, with its key, and remembers it as one whose key
// was known to others.
func (tx *Tx) DropCA(c CARecord, fingerprint string, at time.Time) error {
	if err := tx.RemoveCA(c.ID); err != nil {
		return err
	}
	return tx.add(`INSERT INTO dropped_cas (project_id, fingerprint, kind, at) VALUES ($1, $2, $3, $4)`, c.ProjectID, fingerprint, c.Kind, micros(at))
}

// maxDropped caps how many dropped authorities are told of.
const maxDropped = 100

// DroppedCAs returns the fingerprints of the dropped authorities of these kinds
// of a server's project, and of those that it was in before: what they let in
// may still go on there. The last ones come first.
func (n Notes) DroppedCAs(r ServerRecord, kind, other string) ([]string, error) {
	return all(n, func(s scanner) (v string, err error) { return v, s.Scan(&v) },
		`SELECT fingerprint FROM dropped_cas WHERE (project_id = $1 OR project_id IN (SELECT project_id FROM former_projects WHERE server_id = $2))
		AND kind IN ($3, $4) ORDER BY at DESC, fingerprint LIMIT `+strconv.Itoa(maxDropped), r.ProjectID, r.ID, kind, other)
}

// ReviseMoved is ReviseServer for those that were in a project before.
func (tx *Tx) ReviseMoved(projectID string) error {
	ids, err := all(tx.Notes, scanID, `UPDATE servers SET revision = revision + 1 WHERE project_id <> $1
		AND id IN (SELECT server_id FROM former_projects WHERE project_id = $1) RETURNING id`, projectID)
	tx.tell(ids...)
	return err
}

// SetAgentRevision notes which revision of its project a server's agent has
// taken up.
func (n Notes) SetAgentRevision(id string, revision int64) error {
	return n.must(`UPDATE servers SET agent_revision = $2 WHERE id = $1`, id, revision)
}

// AllCAs returns the CAs of all projects, and the platform's own.
func (n Notes) AllCAs() ([]CARecord, error) { return all(n, scanCA, `SELECT `+caCols+` FROM cas`) }
