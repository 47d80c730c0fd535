-- +goose Up
-- What a page of a list is found by: the beginning of each index is what the
-- list is of, its end the key that the list is in the order of.

CREATE INDEX users_id ON users (team_id, id);
CREATE INDEX users_type ON users (team_id, type, name_fold);
CREATE INDEX clients_page ON clients (team_id, id) WHERE state <> 'DELETED';
CREATE INDEX clients_user_page ON clients (user_id, id) WHERE state <> 'DELETED';
CREATE INDEX servers_page ON servers (team_id, id) WHERE deleted_at IS NULL;
CREATE INDEX servers_project_page ON servers (project_id, id) WHERE deleted_at IS NULL;
CREATE INDEX servers_hostname ON servers (team_id, lower(hostname), id) WHERE deleted_at IS NULL;
CREATE INDEX servers_canonical ON servers (team_id, lower(canonical_name), id) WHERE deleted_at IS NULL AND canonical_name <> '';
CREATE INDEX sudo_entitlements_page ON sudo_entitlements (team_id, id);
CREATE INDEX service_keys_user ON service_keys (user_id, id);
CREATE INDEX enrollment_tokens_project ON enrollment_tokens (project_id, id);

-- How long a sign-in with a browser lasts, in seconds.
ALTER TABLE teams ADD COLUMN web_session bigint NOT NULL DEFAULT 36000;

-- What users were called on hosts before they were given another login or other
-- ids: never somebody else's.
CREATE TABLE former_accounts (
  team_id text NOT NULL REFERENCES teams (id),
  user_id text NOT NULL REFERENCES users (id),
  login   text NOT NULL,
  uid     bigint NOT NULL,
  gid     bigint NOT NULL,
  PRIMARY KEY (team_id, login, uid, gid)
);
CREATE INDEX former_accounts_uid ON former_accounts (team_id, uid);
CREATE INDEX former_accounts_gid ON former_accounts (team_id, gid);
