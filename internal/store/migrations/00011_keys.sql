-- +goose Up
-- The lives of keys and names: device keys that others took the place of, and
-- the names of servers that have been silent for long.

ALTER TABLE servers ADD COLUMN device_key_since bigint NOT NULL DEFAULT 0;
UPDATE servers SET device_key_since = registered_at;
ALTER TABLE servers ADD COLUMN rotate_device_key boolean NOT NULL DEFAULT false;

CREATE TABLE old_device_keys (
  device_key bytea PRIMARY KEY,
  server_id  text NOT NULL REFERENCES servers (id),
  until      bigint NOT NULL
);
CREATE INDEX old_device_keys_server ON old_device_keys (server_id, until);

ALTER TABLE projects ADD COLUMN name_reuse_after bigint NOT NULL DEFAULT 0;

-- A CA is next (trusted, and signs nothing yet), active or retired (trusted as
-- long as something that it has signed is good). One that is next came with
-- that revision of its project, and a server's agent has taken up that one.
ALTER TABLE cas ADD COLUMN stage text NOT NULL DEFAULT 'active';
ALTER TABLE cas ADD COLUMN stage_at bigint NOT NULL DEFAULT 0;
UPDATE cas SET stage_at = created_at;
ALTER TABLE cas ADD COLUMN revision bigint NOT NULL DEFAULT 0;
ALTER TABLE servers ADD COLUMN agent_revision bigint NOT NULL DEFAULT 0;
