-- +goose Up
-- What hosts hear of accounts beside whose they are: accounts on demand, groups
-- and sudo; and the service users that a host's account may act as.

ALTER TABLE projects ADD COLUMN user_on_demand bigint NOT NULL DEFAULT 0;

-- Given from the team's next_gid once, and kept; 0 is none.
ALTER TABLE groups ADD COLUMN gid bigint NOT NULL DEFAULT 0;
CREATE UNIQUE INDEX groups_gid ON groups (team_id, gid) WHERE gid <> 0;

ALTER TABLE project_groups ADD COLUMN server_group text NOT NULL DEFAULT '';
CREATE UNIQUE INDEX project_groups_server_group ON project_groups (project_id, server_group) WHERE server_group <> '';

CREATE TABLE sudo_entitlements (
  id         text PRIMARY KEY,
  team_id    text NOT NULL REFERENCES teams (id),
  name       text NOT NULL,
  name_fold  text NOT NULL,
  body       text NOT NULL,
  created_at bigint NOT NULL,
  UNIQUE (team_id, name_fold)
);

CREATE TABLE project_sudo (
  project_id     text NOT NULL,
  group_id       text NOT NULL,
  entitlement_id text NOT NULL REFERENCES sudo_entitlements (id),
  PRIMARY KEY (project_id, group_id, entitlement_id),
  FOREIGN KEY (project_id, group_id) REFERENCES project_groups (project_id, group_id)
);
CREATE INDEX project_sudo_entitlement ON project_sudo (entitlement_id);

CREATE TABLE service_bindings (
  id         text PRIMARY KEY,
  user_id    text NOT NULL REFERENCES users (id),
  server_id  text NOT NULL REFERENCES servers (id),
  account    text NOT NULL,
  created_by text NOT NULL,
  created_at bigint NOT NULL,
  UNIQUE (server_id, account)
);
CREATE INDEX service_bindings_user ON service_bindings (user_id);

-- Of a client that an agent asked for: the binding, which may be gone, and the
-- server.
ALTER TABLE clients ADD COLUMN binding_id text NOT NULL DEFAULT '';
ALTER TABLE clients ADD COLUMN made_by text NOT NULL DEFAULT '';
CREATE INDEX clients_binding ON clients (binding_id) WHERE binding_id <> '';
