-- +goose Up
-- Who follows the events of a team reads them in the order of their numbers.

CREATE INDEX events_team_seq ON events (team, seq) WHERE seq IS NOT NULL;
CREATE INDEX events_kind_seq ON events (team, kind, seq) WHERE seq IS NOT NULL;
CREATE INDEX events_who_seq ON events (team, who, seq) WHERE seq IS NOT NULL;
CREATE INDEX events_target_seq ON events (team, target, seq) WHERE seq IS NOT NULL;
