-- +goose Up
-- What is asked of much is found by an index.

-- Those that can still live are few, whatever a client or a server ever had.
DROP INDEX sessions_server;
DROP INDEX sessions_client;
CREATE INDEX sessions_server ON sessions (server_id, live_until);
CREATE INDEX sessions_client ON sessions (client_id, live_until);
CREATE INDEX sessions_live ON sessions (live_until);
