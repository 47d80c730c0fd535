-- +goose Up
-- What people are called on Windows, what groups are called on hosts, and which
-- of it hosts say that they cannot have.

-- An account of Windows that has a login of its own has ids of its own, too.
ALTER TABLE users ADD COLUMN windows_login text NOT NULL DEFAULT '';
ALTER TABLE users ADD COLUMN windows_uid bigint NOT NULL DEFAULT 0;
ALTER TABLE users ADD COLUMN windows_gid bigint NOT NULL DEFAULT 0;
UPDATE users SET windows_login = login, windows_uid = uid, windows_gid = gid;
CREATE UNIQUE INDEX users_windows_login ON users (team_id, windows_login);
CREATE UNIQUE INDEX users_windows_uid ON users (team_id, windows_uid);
CREATE UNIQUE INDEX users_windows_gid ON users (team_id, windows_gid);

-- Empty: made of the group's name.
ALTER TABLE groups ADD COLUMN server_group text NOT NULL DEFAULT '';

-- The facts once more, to find the servers of one system.
ALTER TABLE servers ADD COLUMN os_type text NOT NULL DEFAULT '';
UPDATE servers SET os_type = 'windows' WHERE facts LIKE '%"os_type":"windows"%';
UPDATE servers SET os_type = 'linux' WHERE facts LIKE '%"os_type":"linux"%';

-- What the server's agent has said last. The subject is a user or a group.
CREATE TABLE account_conflicts (
  server_id text NOT NULL REFERENCES servers (id),
  subject   text NOT NULL,
  attribute text NOT NULL,
  value     text NOT NULL,
  reason    text NOT NULL,
  PRIMARY KEY (server_id, subject, attribute)
);
CREATE INDEX account_conflicts_subject ON account_conflicts (subject, attribute, value, server_id);
