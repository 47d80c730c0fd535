// Package client is the signed-in person: the accounts that this machine is
// enrolled in, the device keys that prove it, the requests that they sign, and
// the way from a server's name to a stream on it.
//
// Nothing that is kept here lets anybody in by itself. A device key signs
// requests, which the platform answers only while its person is signed in;
// what the platform then issues is for a key that lives in this process alone
// and dies with it.
//
// A Device is the machine, a Session one account on it, a Connection one
// session on one server.
package client
