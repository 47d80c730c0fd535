-- +goose Up
-- A session points to records that are never deleted, only marked. Keys that
-- say so to PostgreSQL had each connect lock and write the rows of its project,
-- server, user and client, and wait for others that did the same.

CREATE TABLE new_sessions (
  id         text PRIMARY KEY,
  project_id text NOT NULL,
  server_id  text NOT NULL,
  user_id    text NOT NULL,
  client_id  text NOT NULL,
  service    text NOT NULL,
  created_at bigint NOT NULL,
  expires_at bigint NOT NULL,
  revoked    boolean NOT NULL,
  live_until bigint NOT NULL
);
INSERT INTO new_sessions (id, project_id, server_id, user_id, client_id, service, created_at, expires_at, revoked, live_until)
  SELECT id, project_id, server_id, user_id, client_id, service, created_at, expires_at, revoked, live_until FROM sessions;
CREATE TABLE new_session_hops (
  session_id text NOT NULL REFERENCES new_sessions (id),
  server_id  text NOT NULL,
  expires_at bigint NOT NULL,
  PRIMARY KEY (session_id, server_id)
);
INSERT INTO new_session_hops (session_id, server_id, expires_at) SELECT session_id, server_id, expires_at FROM session_hops;
DROP TABLE session_hops;
DROP TABLE sessions;
ALTER TABLE new_sessions RENAME TO sessions;
ALTER TABLE new_session_hops RENAME TO session_hops;
CREATE INDEX sessions_server ON sessions (server_id, revoked);
CREATE INDEX sessions_client ON sessions (client_id);
CREATE INDEX session_hops_server ON session_hops (server_id);
CREATE INDEX session_hops_expires ON session_hops (expires_at);
