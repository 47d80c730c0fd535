-- +goose Up
-- What was, and still counts: the gids that groups had, which of a user's ids
-- were the last ones, which project a server was in, and until when what was
-- issued for a session can keep somebody signed in.

-- Of a group that may be gone.
CREATE TABLE former_gids (
  team_id  text NOT NULL REFERENCES teams (id),
  gid      bigint NOT NULL,
  group_id text NOT NULL,
  PRIMARY KEY (team_id, gid)
);

-- Counts the changes of one user; 0 is before they were counted.
ALTER TABLE former_accounts ADD COLUMN nth bigint NOT NULL DEFAULT 0;

-- Which project a server was in before which other, and the broker's keys that
-- it had there.
CREATE TABLE former_projects (
  server_id    text NOT NULL REFERENCES servers (id),
  nth          bigint NOT NULL,
  project_id   text NOT NULL REFERENCES projects (id),
  until        bigint NOT NULL,
  host_key     bytea,
  host_key_old bytea,
  PRIMARY KEY (server_id, nth)
);
-- The project's revision that a server came with: what is below is of another.
ALTER TABLE servers ADD COLUMN joined_revision bigint NOT NULL DEFAULT 0;

-- A certificate of five minutes was good at expires_at at the latest.
ALTER TABLE sessions ADD COLUMN live_until bigint NOT NULL DEFAULT 0;
UPDATE sessions SET live_until = expires_at + 300000000;
