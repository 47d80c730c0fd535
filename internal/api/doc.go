// Package api is the platform's HTTP API as its callers see it: the JSON of
// requests and replies, the signature that clients and agents put on theirs,
// and a client that speaks both.
//
// There is no bearer secret on a person's machine or on a host. Each request
// carries a JWT (RFC 7519, ES256) by a device key that never leaves it, bound
// to method, path, query and body, and good for at most a minute, once. See
// Sign and Verify.
package api
