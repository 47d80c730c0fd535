-- +goose Up
-- Which servers a group's place in a project is for, and until when who may get
-- credentials where the project asks for more than a group.

-- Labels of administrators; those of a host are among its facts.
ALTER TABLE servers ADD COLUMN labels text NOT NULL DEFAULT '';
-- Counts what the server's agent alone must hear of.
ALTER TABLE servers ADD COLUMN revision bigint NOT NULL DEFAULT 0;

-- The labels of administrators and hosts once more, to find servers by.
CREATE TABLE server_labels (
  project_id text NOT NULL REFERENCES projects (id),
  name       text NOT NULL,
  value      text NOT NULL,
  server_id  text NOT NULL REFERENCES servers (id),
  PRIMARY KEY (project_id, name, value, server_id)
);
CREATE INDEX server_labels_server ON server_labels (server_id);

ALTER TABLE project_groups ADD COLUMN servers_selector text NOT NULL DEFAULT '';

ALTER TABLE projects ADD COLUMN require_preauth boolean NOT NULL DEFAULT false;

CREATE TABLE preauthorizations (
  id         text PRIMARY KEY,
  team_id    text NOT NULL REFERENCES teams (id),
  user_id    text NOT NULL REFERENCES users (id),
  servers    text NOT NULL,
  starts_at  bigint NOT NULL,
  expires_at bigint NOT NULL,
  disabled   boolean NOT NULL,
  created_by text NOT NULL,
  created_at bigint NOT NULL
);
CREATE INDEX preauthorizations_user ON preauthorizations (user_id, expires_at);

CREATE TABLE preauthorization_projects (
  project_id text NOT NULL REFERENCES projects (id),
  preauth_id text NOT NULL REFERENCES preauthorizations (id),
  PRIMARY KEY (project_id, preauth_id)
);
CREATE INDEX preauthorization_projects_preauth ON preauthorization_projects (preauth_id);
