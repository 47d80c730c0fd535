// Package agent is sftd's monitor: it enrols the host, keeps it in line with
// what the platform says, and decides who the broker may let in.
//
// The platform's word is one State, fetched by a request that hangs until
// there is news, kept on disk whole and acted on even when the platform is
// gone. Everything else follows from it and can be done again at any time:
// the accounts that should exist (internal/accounts), the people who may sign
// in (Open), the sessions that may go on.
//
// The broker runs without rights in a process of its own (internal/privsep)
// and asks. The agent verifies each certificate and proof itself, and takes
// the broker's word for nothing (internal/broker.Verifier).
//
// What happens here is spooled on disk until the platform has it: see events.
package agent
