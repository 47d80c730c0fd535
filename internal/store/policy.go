package store

import (
	"encoding/json"
	"maps"
	"slices"
	"time"

	"sft"
)

// SetLabels makes these the labels that administrators have given a server.
func (tx *Tx) SetLabels(r ServerRecord) error {
	if err := tx.indexLabels(r, sft.LabelAPI, r.Given); err != nil {
		return err
	}
	return tx.must(`UPDATE servers SET labels = $2 WHERE id = $1`, r.ID, toJSON(r.Given))
}

// ReviseServer is Revise for one server's agent alone.
func (tx *Tx) ReviseServer(id string) error {
	tx.tell(id)
	return tx.must(`UPDATE servers SET revision = revision + 1 WHERE id = $1`, id)
}

// indexLabels makes a server be found by these labels of a source, and by no
// others of it.
func (tx *Tx) indexLabels(r ServerRecord, source string, labels map[string]string) error {
	want := maps.Clone(labels)
	there, err := all(tx.Notes, func(s scanner) (v [2]string, err error) { return v, s.Scan(&v[0], &v[1]) },
		`SELECT name, value FROM server_labels WHERE server_id = $1`, r.ID)
	if err != nil {
		return err
	}
	for _, l := range there {
		if sft.LabelSource(l[0]) != source {
			continue
		}
		if v, ok := want[l[0]]; ok && v == l[1] {
			delete(want, l[0])
		} else if err := tx.add(`DELETE FROM server_labels WHERE server_id = $1 AND name = $2`, r.ID, l[0]); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if err := tx.add(`INSERT INTO server_labels (project_id, name, value, server_id) VALUES ($1, $2, $3, $4)`, r.ProjectID, name, want[name], r.ID); err != nil {
			return err
		}
	}
	return nil
}

// A Labelled asks for servers that have one of the labels: a name with one of
// the values, or with any if there are none.
type Labelled struct {
	Names  []string
	Values []string
}

// A PreauthRecord is a preauthorization with its team and the ids of its user
// and projects.
type PreauthRecord struct {
	sft.Preauthorization
	TeamID     string
	UserID     string
	ProjectIDs []string
}

const preauthCols = `a.id, a.team_id, a.user_id, u.name, a.servers, a.starts_at, a.expires_at, a.disabled, a.created_by, a.created_at`
const preauthFrom = ` FROM preauthorizations a JOIN users u ON u.id = a.user_id `

func scanPreauth(s scanner) (r PreauthRecord, err error) {
	var starts, expires, at int64
	var servers string
	if err = s.Scan(&r.ID, &r.TeamID, &r.UserID, &r.User, &servers, &starts, &expires, &r.Disabled, &r.CreatedBy, &at); err == nil {
		err = json.Unmarshal([]byte(servers), &r.Servers)
	}
	r.StartsAt, r.ExpiresAt, r.CreatedAt = fromMicros(starts), fromMicros(expires), fromMicros(at)
	return r, err
}

// AddPreauth stores a new preauthorization.
func (tx *Tx) AddPreauth(r PreauthRecord) error {
	if err := tx.add(`INSERT INTO preauthorizations (id, team_id, user_id, servers, starts_at, expires_at, disabled, created_by, created_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
		r.ID, r.TeamID, r.UserID, toJSON(r.Servers), micros(r.StartsAt), micros(r.ExpiresAt), r.Disabled, r.CreatedBy, micros(r.CreatedAt)); err != nil {
		return err
	}
	return tx.setPreauthProjects(r)
}

// SavePreauth stores where and when a preauthorization is good.
func (tx *Tx) SavePreauth(r PreauthRecord) error {
	if err := tx.must(`UPDATE preauthorizations SET servers = $2, starts_at = $3, expires_at = $4, disabled = $5 WHERE id = $1`,
		r.ID, toJSON(r.Servers), micros(r.StartsAt), micros(r.ExpiresAt), r.Disabled); err != nil {
		return err
	}
	return tx.setPreauthProjects(r)
}

func (tx *Tx) setPreauthProjects(r PreauthRecord) error {
	if err := tx.add(`DELETE FROM preauthorization_projects WHERE preauth_id = $1`, r.ID); err != nil {
		return err
	}
	for _, id := range r.ProjectIDs {
		if err := tx.add(`INSERT INTO preauthorization_projects (project_id, preauth_id) VALUES ($1, $2)`, id, r.ID); err != nil {
			return err
		}
	}
	return nil
}

// Preauth returns a preauthorization of a project.
func (n Notes) Preauth(projectID, id string) (PreauthRecord, error) {
	r, err := one(n, scanPreauth, `SELECT `+preauthCols+preauthFrom+`WHERE a.id = $2
		AND a.id IN (SELECT preauth_id FROM preauthorization_projects WHERE project_id = $1)`, projectID, id)
	if err != nil {
		return r, err
	}
	err = n.preauthProjects(&r)
	return r, err
}

// PreauthsByID returns a page of the preauthorizations of a project that end
// after a time; the key is the id.
func (n Notes) PreauthsByID(projectID string, after time.Time, p Page) ([]PreauthRecord, error) {
	list, err := paged(n, scanPreauth, preauthsByID(projectID, after), p)
	for i := range list {
		if err == nil {
			err = n.preauthProjects(&list[i])
		}
	}
	return list, err
}

func preauthsByID(projectID string, after time.Time) listing {
	// Not the bare column: by two indexes in the same order, those before the page
	// would be read to be passed over.
	return listing{`SELECT ` + preauthCols + ` FROM preauthorization_projects p JOIN preauthorizations a ON a.id = p.preauth_id || '' JOIN users u ON u.id = a.user_id`,
		where(`p.project_id = $1 AND a.expires_at > $2`, projectID, micros(after)), `p.preauth_id`}
}

// PreauthsOf returns those of a user for a project that end after a time, that
// first which ends last. Their projects are left out.
func (n Notes) PreauthsOf(projectID, userID string, after time.Time) ([]PreauthRecord, error) {
	return all(n, scanPreauth, `SELECT `+preauthCols+preauthFrom+`WHERE a.user_id = $2 AND a.expires_at > $3
		AND a.id IN (SELECT preauth_id FROM preauthorization_projects WHERE project_id = $1) ORDER BY a.expires_at DESC, a.id`, projectID, userID, micros(after))
}

func (n Notes) preauthProjects(r *PreauthRecord) error {
	projects, err := all(n, scanProject, `SELECT `+projectCols+` FROM projects WHERE deleted_at IS NULL
		AND id IN (SELECT project_id FROM preauthorization_projects WHERE preauth_id = $1) ORDER BY name`, r.ID)
	for _, p := range projects {
		r.ProjectIDs, r.Projects = append(r.ProjectIDs, p.ID), append(r.Projects, p.Name)
	}
	return err
}
