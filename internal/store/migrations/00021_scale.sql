-- +goose Up
-- What is asked of much is found by an index.

-- Those that can still live are few, whatever a client or a server ever had.
DROP INDEX sessions_server;
DROP INDEX sessions_client;
CREATE INDEX sessions_server ON sessions (server_id, live_until);
CREATE INDEX sessions_client ON sessions (client_id, live_until);
CREATE INDEX sessions_live ON sessions (live_until);

CREATE INDEX servers_cloud ON servers (team_id, cloud_provider, id) WHERE deleted_at IS NULL AND cloud_provider <> '';
CREATE INDEX servers_project_cloud ON servers (project_id, cloud_provider, id) WHERE deleted_at IS NULL AND cloud_provider <> '';

-- Two of the facts once more, to find servers by them. The program fills it in
-- the transaction of this migration: how a name is folded is its to know.
CREATE TABLE server_aliases (
  server_id text NOT NULL REFERENCES servers (id),
  kind      text NOT NULL, -- name: one of its alt_names; bastion: its bastion
  name_fold text NOT NULL,
  PRIMARY KEY (kind, name_fold, server_id)
);
CREATE INDEX server_aliases_server ON server_aliases (server_id);
