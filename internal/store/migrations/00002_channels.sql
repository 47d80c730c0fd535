-- +goose Up
-- What may cross between a desktop and a person's machine. A project that was
-- there before allows all, as it did.

ALTER TABLE projects ADD COLUMN channel_clipboard boolean NOT NULL DEFAULT true;
ALTER TABLE projects ADD COLUMN channel_devices boolean NOT NULL DEFAULT true;
ALTER TABLE projects ADD COLUMN channel_audio boolean NOT NULL DEFAULT true;
ALTER TABLE projects ADD COLUMN channel_other_dynamic boolean NOT NULL DEFAULT true;
