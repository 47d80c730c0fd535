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
