-- +goose Up
-- Events are numbered, chained and signed after they were stored, in batches,
-- and found by who did what to whom.

ALTER TABLE events ADD COLUMN seq bigint; -- none until it is sealed
ALTER TABLE events ADD COLUMN who text NOT NULL DEFAULT '';
ALTER TABLE events ADD COLUMN target text NOT NULL DEFAULT '';
CREATE UNIQUE INDEX events_seq ON events (seq) WHERE seq IS NOT NULL;
CREATE INDEX events_unsealed ON events (id) WHERE seq IS NULL;
CREATE INDEX events_kind ON events (team, kind, id);
CREATE INDEX events_who ON events (team, who, id);
CREATE INDEX events_target ON events (team, target, id);

-- Each signed batch, with what the chain holds of its events.
CREATE TABLE checkpoints (
  last_seq  bigint PRIMARY KEY,
  first_seq bigint NOT NULL,
  at        bigint NOT NULL,
  note      text NOT NULL,
  entries   bytea NOT NULL
);

-- What was removed on purpose: signed, like a checkpoint.
CREATE TABLE retention (
  last_seq bigint PRIMARY KEY,
  note     text NOT NULL
);

-- How far each export has come, and which platform sends it until when.
CREATE TABLE exports (
  name   text PRIMARY KEY,
  seq    bigint NOT NULL,
  holder text NOT NULL,
  until  bigint NOT NULL
);
