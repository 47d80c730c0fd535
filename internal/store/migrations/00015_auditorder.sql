-- +goose Up
-- Who follows the events of a team reads them in the order of their numbers,
-- and what is old is found by when it was sealed.

CREATE INDEX events_team_seq ON events (team, seq) WHERE seq IS NOT NULL;
CREATE INDEX events_kind_seq ON events (team, kind, seq) WHERE seq IS NOT NULL;
CREATE INDEX events_who_seq ON events (team, who, seq) WHERE seq IS NOT NULL;
CREATE INDEX events_target_seq ON events (team, target, seq) WHERE seq IS NOT NULL;
CREATE INDEX checkpoints_at ON checkpoints (at, last_seq);
