package sft

import "errors"

// A Code says what the caller of a failed operation can do about it. Codes
// cross the wire; add to the list, never rename or reuse. The table of
// codes, HTTP statuses and exit statuses is Codes.
type Code string

// The codes of the platform's API and of the Access Broker.
const (
	Invalid        Code = "invalid_request"              // the request is wrong: change it
	ContentType    Code = "unsupported_content_type"     // the body is of another type: send JSON
	NoMethod       Code = "method_not_allowed"           // the path does not take the method: use one that it takes
	KeyReused      Code = "idempotency_key_reused"       // the key was sent with another request before: send a new one
	SignIn         Code = "authentication_error"         // nobody is signed in, or no longer: sign in, then retry
	ClockSkew      Code = "clock_skew"                   // the two clocks are too far apart: set one
	Replayed       Code = "request_replayed"             // this very request was seen before: make a new one
	Revoked        Code = "server_authorization_revoked" // the server or client was deleted: enrol again
	Denied         Code = "forbidden_error"              // policy says no: ask an administrator
	NotFound       Code = "resource_does_not_exist"      // no such thing, or none the caller may see
	Ambiguous      Code = "ambiguous_name"               // the name means several things: name the project too
	Exists         Code = "resource_already_exists"      // someone was first: choose another name
	Enrolled       Code = "server_already_enrolled"      // the machine has a record that this key does not own
	Pending        Code = "authorization_pending"        // the person has not approved yet: poll again
	TooMany        Code = "too_many_requests"            // wait, then retry
	NotReady       Code = "not_ready"                    // the host has not heard of this grant yet: retry soon
	Conflict       Code = "account_conflict"             // a local account of that name is not ours: ask the host's administrator
	RDPUnavailable Code = "rdp_unavailable"              // the host's RDP service does not answer
	RDPCertificate Code = "rdp_certificate"              // what answers in the RDP service's place is not it
	RDPRefused     Code = "rdp_sign_in_refused"          // the RDP service did not take the password
	RDSFarm        Code = "rds_farm"                     // the RDP service sends people to another host
	Locked         Code = "locked"                       // the desktop was locked: sign in afresh to return to it
	// Windows: why nobody could sign in, before anything was opened.
	RDPDisabled         Code = "rdp_disabled"          // Remote Desktop is turned off on the host
	RDPPrompts          Code = "rdp_prompts"           // the host asks for a password that nobody knows
	RDPLogonRight       Code = "rdp_logon_right"       // local accounts may not sign in by RDP
	RDPNTLM             Code = "rdp_ntlm"              // the host takes no NTLM
	RDPDomainController Code = "rdp_domain_controller" // the host has no local accounts

	UnknownService Code = "unknown_service" // the broker has no such service
	Internal       Code = "unknown_error"   // our fault: the operator's log has the rest
	Unavailable    Code = "service_offline" // not now: retry later
)

// Exit statuses of sft, the same in every command.
const (
	ExitDone        = 0 // done
	ExitFailed      = 1 // failed
	ExitUsage       = 2 // wrong usage
	ExitSignIn      = 3 // sign-in needed
	ExitDenied      = 4 // denied
	ExitNotFound    = 5 // no such server, or ambiguous
	ExitUnreachable = 6 // unreachable
)

// A CodeInfo is one row of the error table.
type CodeInfo struct {
	Code    Code
	Status  int    // HTTP status, RFC 9110 section 15
	Exit    int    // exit status of sft
	Meaning string // one line for docs/protocol.md
}

// Codes is the one table of what can go wrong on the wire. docs/protocol.md
// holds the same rows, and a test compares them.
var Codes = []CodeInfo{
	{Invalid, 400, ExitFailed, "the request is wrong: change it"},
	{ContentType, 415, ExitFailed, "the body is of another type: send JSON"},
	{NoMethod, 405, ExitFailed, "the path does not take the method: use one that it takes"},
	{KeyReused, 422, ExitFailed, "the `Idempotency-Key` was sent with another request before: send a new one"},
	{SignIn, 401, ExitSignIn, "nobody is signed in, or no longer: sign in, then retry"},
	{ClockSkew, 401, ExitFailed, "the two clocks are too far apart: set one"},
	{Replayed, 401, ExitFailed, "this very request was seen before: make a new one"},
	{Revoked, 401, ExitSignIn, "the server or client was deleted: enrol again"},
	{Denied, 403, ExitDenied, "policy says no: ask an administrator"},
	{NotFound, 404, ExitNotFound, "no such thing, or none the caller may see"},
	{Ambiguous, 409, ExitNotFound, "the name means several things: name the project too"},
	{Exists, 409, ExitFailed, "someone was first: choose another name"},
	{Enrolled, 409, ExitFailed, "the machine has a record that this key does not own"},
	{Pending, 428, ExitSignIn, "the person has not approved yet: poll again"},
	{TooMany, 429, ExitFailed, "wait, then retry"},
	{NotReady, 503, ExitUnreachable, "the host has not heard of this grant yet: retry soon"},
	{Conflict, 409, ExitDenied, "a local account of that name is not ours: ask the host's administrator"},
	{RDPUnavailable, 503, ExitUnreachable, "the host's RDP service does not answer"},
	{RDPCertificate, 503, ExitUnreachable, "what answers in the RDP service's place does not have the certificate that the service is configured with"},
	{RDPRefused, 503, ExitFailed, "the RDP service did not take a password that was just set: look at what it asks for"},
	{RDSFarm, 409, ExitFailed, "the RDP service sends people to another host, and the way goes to this one alone"},
	{Locked, 409, ExitFailed, "the desktop was locked: sign in afresh to return to it"},
	{RDPDisabled, 503, ExitUnreachable, "Remote Desktop is turned off on the host: its administrator turns it on"},
	{RDPPrompts, 409, ExitFailed, "the host asks for a password that nobody knows: its administrator changes a setting"},
	{RDPLogonRight, 409, ExitDenied, "local accounts may not sign in to the host by RDP: its administrator changes a policy"},
	{RDPNTLM, 409, ExitFailed, "the host takes no NTLM, by which local accounts sign in: its administrator changes a policy"},
	{RDPDomainController, 409, ExitFailed, "the host is a domain controller and has no local accounts: go to another one"},
	{UnknownService, 400, ExitFailed, "the broker has no such service"},
	{Internal, 500, ExitFailed, "our fault: the operator's log has the rest"},
	{Unavailable, 503, ExitUnreachable, "not now: retry later"},
}

// Info returns the row of c. An unknown code has the row of Internal, under
// its own name.
func (c Code) Info() CodeInfo {
	for _, i := range Codes {
		if i.Code == c {
			return i
		}
	}
	i := Internal.Info()
	i.Code = c
	return i
}

// An Error may be shown to the person whose request failed. Any other error
// is Internal: it goes to the log, and the person is told only that.
type Error struct {
	Code Code   `json:"code"`           // which of the table
	Msg  string `json:"message"`        // what failed; lower case, no full stop
	Hint string `json:"hint,omitempty"` // what to do next, as an order
	ID   string `json:"id,omitempty"`   // of what is there already
	Err  error  `json:"-"`              // the cause, for the log only
}

// Error returns the message alone; the hint is for the program's voice.
func (e *Error) Error() string { return e.Msg }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// CodeOf returns the code of the first Error in err's chain, or Internal.
func CodeOf(err error) Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return Internal
}

// Explain joins what failed and what to do next in one line, for logs and
// lists.
func Explain(err error) string {
	if e, ok := errors.AsType[*Error](err); ok && e.Hint != "" {
		return err.Error() + "; " + e.Hint
	}
	return err.Error()
}
