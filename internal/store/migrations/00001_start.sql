-- +goose Up
-- Times are microseconds since 1970. Ids are made by the program. A *_fold
-- column is the name as it is compared.

CREATE TABLE settings (
  name  text PRIMARY KEY,
  value text NOT NULL
);

CREATE TABLE teams (
  id                text PRIMARY KEY,
  name              text NOT NULL,
  name_fold         text NOT NULL UNIQUE,
  created_at        bigint NOT NULL,
  client_session    bigint NOT NULL,
  allow_device_code boolean NOT NULL,
  next_uid          bigint NOT NULL,
  next_gid          bigint NOT NULL
);

CREATE TABLE users (
  id            text PRIMARY KEY,
  team_id       text NOT NULL REFERENCES teams (id),
  name          text NOT NULL,
  name_fold     text NOT NULL,
  type          text NOT NULL,
  status        text NOT NULL,
  full_name     text NOT NULL,
  email         text NOT NULL,
  login         text NOT NULL,
  uid           bigint NOT NULL,
  gid           bigint NOT NULL,
  created_at    bigint NOT NULL,
  password_hash text NOT NULL,
  UNIQUE (team_id, name_fold),
  UNIQUE (team_id, login),
  UNIQUE (team_id, uid),
  UNIQUE (team_id, gid)
);

CREATE TABLE first_uses (
  secret_hash bytea PRIMARY KEY,
  user_id     text NOT NULL REFERENCES users (id),
  expires_at  bigint NOT NULL
);

CREATE TABLE service_keys (
  id          text PRIMARY KEY,
  user_id     text NOT NULL REFERENCES users (id),
  secret_hash bytea NOT NULL,
  issued_at   bigint NOT NULL,
  expires_at  bigint,
  last_used   bigint
);

CREATE TABLE groups (
  id         text PRIMARY KEY,
  team_id    text NOT NULL REFERENCES teams (id),
  name       text NOT NULL,
  name_fold  text NOT NULL,
  roles      text NOT NULL,
  created_at bigint NOT NULL,
  UNIQUE (team_id, name_fold)
);

CREATE TABLE members (
  group_id text NOT NULL REFERENCES groups (id),
  user_id  text NOT NULL REFERENCES users (id),
  PRIMARY KEY (group_id, user_id)
);
CREATE INDEX members_user ON members (user_id);

CREATE TABLE projects (
  id           text PRIMARY KEY,
  team_id      text NOT NULL REFERENCES teams (id),
  name         text NOT NULL,
  name_fold    text NOT NULL,
  created_at   bigint NOT NULL,
  deleted_at   bigint,
  revision     bigint NOT NULL,
  create_users boolean NOT NULL,
  delete_users boolean NOT NULL,
  max_session  bigint NOT NULL,
  disconnected bigint NOT NULL
);
CREATE UNIQUE INDEX projects_name ON projects (team_id, name_fold) WHERE deleted_at IS NULL;

CREATE TABLE project_groups (
  project_id    text NOT NULL REFERENCES projects (id),
  group_id      text NOT NULL REFERENCES groups (id),
  server_access boolean NOT NULL,
  server_admin  boolean NOT NULL,
  created_at    bigint NOT NULL,
  PRIMARY KEY (project_id, group_id)
);
CREATE INDEX project_groups_group ON project_groups (group_id);

CREATE TABLE enrollment_tokens (
  id          text PRIMARY KEY,
  project_id  text NOT NULL REFERENCES projects (id),
  description text NOT NULL,
  created_by  text NOT NULL,
  secret_hash bytea NOT NULL UNIQUE,
  issued_at   bigint NOT NULL,
  expires_at  bigint,
  max_uses    bigint NOT NULL,
  uses        bigint NOT NULL
);

CREATE TABLE servers (
  id             text PRIMARY KEY,
  team_id        text NOT NULL REFERENCES teams (id),
  project_id     text NOT NULL REFERENCES projects (id),
  device_key     bytea NOT NULL UNIQUE,
  hostname       text NOT NULL,
  canonical_name text NOT NULL,
  access_address text NOT NULL,
  broker_port    bigint NOT NULL,
  facts          text NOT NULL,
  name_conflict  text NOT NULL,
  host_key       bytea,
  host_key_old   bytea,
  registered_at  bigint NOT NULL,
  last_seen      bigint,
  last_seq       bigint NOT NULL,
  deleted_at     bigint
);
CREATE INDEX servers_project ON servers (project_id);

-- Who holds which name: no two servers of a project, active or not.
CREATE TABLE server_names (
  project_id text NOT NULL REFERENCES projects (id),
  name_fold  text NOT NULL,
  server_id  text NOT NULL REFERENCES servers (id),
  PRIMARY KEY (project_id, name_fold)
);
CREATE INDEX server_names_name ON server_names (name_fold);
CREATE INDEX server_names_server ON server_names (server_id);

CREATE TABLE clients (
  id              text PRIMARY KEY,
  team_id         text NOT NULL REFERENCES teams (id),
  user_id         text NOT NULL REFERENCES users (id),
  device_key      bytea NOT NULL UNIQUE,
  state           text NOT NULL,
  hostname        text NOT NULL,
  os              text NOT NULL,
  version         text NOT NULL,
  description     text NOT NULL,
  enrolled_at     bigint NOT NULL,
  signed_in_until bigint NOT NULL,
  last_seen       bigint
);
CREATE INDEX clients_user ON clients (user_id);

CREATE TABLE web_sessions (
  secret_hash bytea PRIMARY KEY,
  user_id     text NOT NULL REFERENCES users (id),
  signed_in   bigint NOT NULL,
  expires_at  bigint NOT NULL
);

-- Sign-ins of clients on their way: authorization codes and device codes.
CREATE TABLE sign_ins (
  code_hash    bytea PRIMARY KEY,
  kind         text NOT NULL,
  user_code    text NOT NULL,
  team_id      text NOT NULL REFERENCES teams (id),
  client_id    text NOT NULL,
  user_id      text NOT NULL,
  challenge    text NOT NULL,
  redirect_uri text NOT NULL,
  key_sha256   text NOT NULL,
  hostname     text NOT NULL,
  os           text NOT NULL,
  addr         text NOT NULL,
  state        text NOT NULL,
  expires_at   bigint NOT NULL
);
CREATE INDEX sign_ins_user_code ON sign_ins (user_code);

CREATE TABLE cas (
  id         text PRIMARY KEY,
  project_id text NOT NULL,
  kind       text NOT NULL,
  public     bytea NOT NULL,
  sealed     bytea NOT NULL,
  created_at bigint NOT NULL,
  not_after  bigint NOT NULL
);
CREATE INDEX cas_project ON cas (project_id);

CREATE TABLE sessions (
  id         text PRIMARY KEY,
  project_id text NOT NULL REFERENCES projects (id),
  server_id  text NOT NULL REFERENCES servers (id),
  user_id    text NOT NULL REFERENCES users (id),
  client_id  text NOT NULL REFERENCES clients (id),
  service    text NOT NULL,
  created_at bigint NOT NULL,
  expires_at bigint NOT NULL,
  revoked    boolean NOT NULL
);
CREATE INDEX sessions_server ON sessions (server_id, revoked);
CREATE INDEX sessions_client ON sessions (client_id);

CREATE TABLE used_ids (
  id         text PRIMARY KEY,
  expires_at bigint NOT NULL
);
CREATE INDEX used_ids_expires ON used_ids (expires_at);

CREATE TABLE events (
  id      text PRIMARY KEY CHECK (id <> ''),
  at      bigint NOT NULL CHECK (at > 0),
  team    text NOT NULL,
  kind    text NOT NULL CHECK (kind <> ''),
  source  text NOT NULL,
  body    text NOT NULL CHECK (body <> '')
);
CREATE INDEX events_team ON events (team, id);
-- What an agent sent is stored once, however often it is sent.
CREATE UNIQUE INDEX events_source ON events (source) WHERE source <> '';
