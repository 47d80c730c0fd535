-- +goose Up
-- Requests that made something and may be sent again with the same
-- Idempotency-Key: what they made, and what was answered.

CREATE TABLE repeats (
  user_id    text NOT NULL, -- who asked
  idem_key   text NOT NULL,
  route      text NOT NULL, -- method and path
  body_hash  bytea NOT NULL, -- SHA-256
  made       text NOT NULL, -- the id of what was made, where the answer held a secret
  reply      text NOT NULL, -- else the answer, as JSON
  expires_at bigint NOT NULL,
  PRIMARY KEY (user_id, idem_key)
);
CREATE INDEX repeats_expires ON repeats (expires_at);
