-- +goose Up
-- The platform's certificate by an ACME authority: a row for each authority
-- that was ever used, by its directory. Keys are sealed; the chain is DER.

CREATE TABLE acme (
  directory     text PRIMARY KEY,
  account_key   bytea NOT NULL,
  chain         bytea, -- none yet
  chain_key     bytea,
  renew_at      bigint NOT NULL, -- when the certificate is to be renewed
  ask_at        bigint NOT NULL, -- when the authority is asked again when that is
  failures      bigint NOT NULL, -- tries in a row
  failed_at     bigint NOT NULL,
  problem       text NOT NULL,
  fix           text NOT NULL,
  retry_at      bigint NOT NULL, -- of our own accord
  refused_until bigint NOT NULL, -- by the authority's word
  challenge     text NOT NULL,   -- the key authorization of a try under way
  holder        text NOT NULL,   -- the platform that tries, and until when no other may
  until         bigint NOT NULL
);
