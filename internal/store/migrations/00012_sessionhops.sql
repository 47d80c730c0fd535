-- +goose Up
-- Through which servers a session goes, and until when somebody can be signed
-- in there on what was issued for it.

CREATE TABLE session_hops (
  session_id text NOT NULL REFERENCES sessions (id),
  server_id  text NOT NULL REFERENCES servers (id),
  expires_at bigint NOT NULL,
  PRIMARY KEY (session_id, server_id)
);
CREATE INDEX session_hops_server ON session_hops (server_id);
CREATE INDEX session_hops_expires ON session_hops (expires_at);
