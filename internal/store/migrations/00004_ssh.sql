-- +goose Up
-- Settings of a project for the clients of its people, and servers without an
-- agent, which are there to be gone through.

ALTER TABLE projects ADD COLUMN ssh_port_forward text NOT NULL DEFAULT '';
ALTER TABLE projects ADD COLUMN ssh_forward_agent text NOT NULL DEFAULT '';
ALTER TABLE servers ADD COLUMN unmanaged boolean NOT NULL DEFAULT false;
