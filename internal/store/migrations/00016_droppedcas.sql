-- +goose Up
-- The CAs of a project whose keys were known to others: what they let in ends,
-- wherever and whenever it is heard of.

CREATE TABLE dropped_cas (
  project_id  text NOT NULL REFERENCES projects (id),
  fingerprint text NOT NULL,
  kind        text NOT NULL,
  at          bigint NOT NULL,
  PRIMARY KEY (project_id, fingerprint)
);
