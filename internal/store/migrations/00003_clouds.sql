-- +goose Up
-- Servers that enrol by the word of their cloud.

CREATE TABLE cloud_accounts (
  id          text PRIMARY KEY,
  project_id  text NOT NULL REFERENCES projects (id),
  provider    text NOT NULL,
  account_id  text NOT NULL,
  description text NOT NULL,
  created_by  text NOT NULL,
  created_at  bigint NOT NULL,
  UNIQUE (provider, account_id)
);
CREATE INDEX cloud_accounts_project ON cloud_accounts (project_id);

ALTER TABLE servers ADD COLUMN cloud_provider text NOT NULL DEFAULT '';
ALTER TABLE servers ADD COLUMN cloud_instance text NOT NULL DEFAULT '';
ALTER TABLE servers ADD COLUMN cloud_pending bigint NOT NULL DEFAULT 0;
ALTER TABLE servers ADD COLUMN cloud_details text NOT NULL DEFAULT '';
ALTER TABLE servers ADD COLUMN reenroll_allowed boolean NOT NULL DEFAULT false;

-- An instance has one record that is not deleted.
CREATE UNIQUE INDEX servers_instance ON servers (cloud_provider, cloud_instance) WHERE cloud_instance <> '' AND deleted_at IS NULL;
CREATE INDEX servers_instances ON servers (cloud_instance) WHERE cloud_instance <> '';
