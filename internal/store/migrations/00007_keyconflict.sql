-- +goose Up
-- Which runs of a server's agent have asked lately, and whether two did at once.

ALTER TABLE servers ADD COLUMN agent_runs text NOT NULL DEFAULT '';
ALTER TABLE servers ADD COLUMN key_conflict boolean NOT NULL DEFAULT false;
