-- +goose Up
-- What happened in a session, or for it, is found by its id. The program fills
-- the column in the transaction of this migration.

ALTER TABLE events ADD COLUMN session text; -- none where an event is of no session
CREATE INDEX events_session ON events (team, session, id) WHERE session IS NOT NULL;
CREATE INDEX events_session_seq ON events (team, session, seq) WHERE seq IS NOT NULL AND session IS NOT NULL;

-- A schema that was made by an early version of migration 15 has it, and the
-- databases would read checkpoints by it where they are to read them in order.
DROP INDEX IF EXISTS checkpoints_at;
