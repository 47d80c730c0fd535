package api

import (
	"time"

	"sft"
)

// Keys and certificates are DER, in JSON as standard base64: a public key is
// a SubjectPublicKeyInfo (RFC 5280), a CSR is PKCS #10 (RFC 2986), a chain is
// a list with the leaf first.

// Facts are what an agent claims of its host. All of it is checked, and none
// of it is taken as proof of anything.
type Facts struct {
	Hostname      string   `json:"hostname"`
	CanonicalName string   `json:"canonical_name,omitempty"`
	AltNames      []string `json:"alt_names,omitempty"`
	AccessAddress string   `json:"access_address,omitempty"` // what clients dial
	BrokerPort    int      `json:"broker_port"`
	Bastion       string   `json:"bastion,omitempty"`
	OS            string   `json:"os"`
	OSType        string   `json:"os_type"` // linux or windows
	Version       string   `json:"sftd_version"`
	Services      []string `json:"services"`
	InstanceID    string   `json:"instance_id,omitempty"`
	Problems      []string `json:"problems,omitempty"` // what is wrong on the host, each with what to do
	// Labels are those of sftd.yaml; "sftd." comes before a key if it is left out.
	Labels map[string]string `json:"labels,omitempty"`
	// SSH is the host's OpenSSH server, where sftd looks after one.
	SSH *SSHFacts `json:"ssh,omitempty"`
	// PrivateAddress is where a bastion in the same Network reaches the host.
	// Network is the cloud's name of it, as in aws:vpc-0123.
	PrivateAddress string `json:"private_address,omitempty"`
	Network        string `json:"network,omitempty"`
}

// SSHFacts are what an agent says of its host's OpenSSH server.
type SSHFacts struct {
	Port     int      `json:"port"`             // that clients dial
	Broker   bool     `json:"broker,omitempty"` // it can be reached through the broker alone
	HostKeys []string `json:"host_keys"`        // as in authorized_keys, without a comment
}

// EnrollServerRequest is POST /v1/servers/enroll. Token or CloudIdentity is
// set, and is all that lets a server in, so there is no signature: the device
// key is new.
type EnrollServerRequest struct {
	Token         string         `json:"token,omitempty"`          // the secret out of an enrollment token
	CloudIdentity *CloudIdentity `json:"cloud_identity,omitempty"` // in the place of a token
	DeviceKey     []byte         `json:"device_key"`               // P-256
	Facts         Facts          `json:"facts"`
	// OldKeyProof is the word of the device key that the instance's record has,
	// a JWS by SignKey: with it, DeviceKey takes its place.
	OldKeyProof string `json:"old_key_proof,omitempty"`
}

// A CloudIdentity is what a cloud has signed of an instance, as the instance
// got it.
type CloudIdentity struct {
	Provider  string `json:"provider"`  // aws
	Document  string `json:"document"`  // byte for byte
	Signature string `json:"signature"` // PKCS #7, base64
}

// EnrollServerReply tells the agent who it is.
type EnrollServerReply struct {
	ServerID string `json:"server_id"` // what the agent's signed requests name as issuer, after "server:"
	Team     string `json:"team"`
	Project  string `json:"project"`
	URL      string `json:"url"`                   // what the agent's signed requests name as audience
	CA       []byte `json:"platform_ca,omitempty"` // of the platform, if it is private
	Revision int64  `json:"revision"`              // of the project
}

// DeviceKeyRequest is POST /v1/agent/device_key: the device key is to take the
// place of the one that the server has. Both have signed, as SignRotation does,
// and so the request itself is not. Asking again once it is done is no error.
type DeviceKeyRequest struct {
	ServerID  string `json:"server_id"`     // whose key it is
	DeviceKey []byte `json:"device_key"`    // P-256; the new one
	OldProof  string `json:"old_key_proof"` // a JWT by the key that the server has
	NewProof  string `json:"new_key_proof"` // a JWT by the new key
}

// A StateUser is one account that should exist on a server.
type StateUser struct {
	ID       string   `json:"id"`
	Name     string   `json:"name"`
	Login    string   `json:"login"` // the account's name on the server's system
	FullName string   `json:"full_name"`
	UID      int      `json:"uid"`              // user id on Linux
	GID      int      `json:"gid"`              // group id on Linux, of the group of the same name
	Admin    bool     `json:"admin"`            // whether it is an administrator's
	Groups   []string `json:"groups,omitempty"` // of State.Groups, by name
	Sudo     []string `json:"sudo,omitempty"`   // of State.Entitlements, by name
}

// A StateGroup is a local group that should exist on a server: a group of the
// platform that a project syncs.
type StateGroup struct {
	Name string `json:"name"`
	GID  int    `json:"gid"` // group id on Linux
}

// State is the reply of GET /v1/agent/state?after=REVISION. The request hangs
// for up to 55 s, and is answered at once when the revision differs.
type State struct {
	Revision int64       `json:"revision"` // of the project; what the next request is to send as after
	Users    []StateUser `json:"users"`    // the accounts that should exist
	// AccessCAs are the certificates of the project's access CA: the broker
	// lets in what they have signed.
	AccessCAs [][]byte `json:"access_cas"`
	// SSHUserCAs are the keys of the project's SSH user CA, as in
	// authorized_keys: the host's OpenSSH server lets in what they have signed.
	SSHUserCAs []string `json:"ssh_user_cas,omitempty"`
	// HostCAs and SSHHostCAs are what the host's own certificates may be signed
	// by: those of the project that it is in. One by another is renewed at once.
	HostCAs    [][]byte `json:"host_cas,omitempty"`
	SSHHostCAs []string `json:"ssh_host_cas,omitempty"`
	// Groups are the local groups that should exist, Entitlements what users
	// without admin rights may run by sudo.
	Groups       []StateGroup          `json:"groups,omitempty"`
	Entitlements []sft.SudoEntitlement `json:"entitlements,omitempty"`
	// EndedSessions are sessions to this server and through it that may no longer
	// live, for example because their client was deleted.
	EndedSessions []string `json:"ended_sessions,omitempty"`
	// DroppedCAs are CAs of the project whose keys were known to others: what
	// one of them let in ends. An access CA is named by "sha256:" and the hash of
	// its certificate in hex, an SSH user CA as OpenSSH does.
	DroppedCAs []string `json:"dropped_cas,omitempty"`
	Settings   Settings `json:"settings"` // of the project
	// RotateDeviceKey: the agent is to make another device key now.
	RotateDeviceKey bool `json:"rotate_device_key,omitempty"`
}

// Settings are those of the project that its agents enforce.
type Settings struct {
	Team                string `json:"team"`
	Project             string `json:"project"`
	CreateServerUsers   bool   `json:"create_server_users"`          // the agents make local accounts
	DeleteServerUsers   bool   `json:"delete_server_users"`          // an account that nobody may use any more is deleted with its files, and not only disabled
	MaxSession          int64  `json:"max_session_seconds"`          // a session ends after that many seconds
	DisconnectedSession int64  `json:"disconnected_session_seconds"` // the OS session is logged off that many seconds after the last stream has ended
	// UserOnDemand is how many seconds after its last session an account is
	// removed, which exists from its first session on; 0: accounts are always
	// there.
	UserOnDemand int64 `json:"user_on_demand_period,omitempty"`
	// Channels is what the broker lets cross. An older platform does not say,
	// and allows all.
	Channels *sft.Channels `json:"channels,omitempty"`
}

// ReportRequest is POST /v1/agent/report: what the host is now, and a request
// for a new certificate of the broker when CSR is set.
type ReportRequest struct {
	Facts Facts  `json:"facts"`
	CSR   []byte `json:"csr,omitempty"` // P-256; empty: no certificate is wanted
	// SSHHostKeys are the host's SSH keys, as in authorized_keys, that it wants
	// a certificate for.
	SSHHostKeys []string `json:"ssh_host_keys,omitempty"`
	// Conflicts are all that the host cannot have, at most MaxConflicts: each
	// report takes the place of the one before.
	Conflicts []Conflict `json:"conflicts,omitempty"`
}

// MaxConflicts caps the conflicts of a report.
const MaxConflicts = 200

// A Conflict is something of the State that a host cannot have, since it has
// something that sftd did not make in its place. Either User or Group is set.
type Conflict struct {
	User   string `json:"user,omitempty"`  // its id
	Group  string `json:"group,omitempty"` // its name in the state
	Clash  string `json:"clash"`           // name, uid or gid: what of it is not to be had
	Value  string `json:"value"`           // which name or id that is
	Reason string `json:"reason"`          // for people: what is in the way
}

// ReportReply holds the certificates that were asked for.
type ReportReply struct {
	BrokerCertificate [][]byte `json:"broker_certificate,omitempty"` // for the CSR's key
	// SSHHostCertificates are those of the keys asked for, in their order, as
	// in authorized_keys.
	SSHHostCertificates []string `json:"ssh_host_certificates,omitempty"`
}

// EventsRequest is POST /v1/agent/events: a batch, oldest first. Sending an
// event again does nothing.
type EventsRequest struct {
	Events []Event `json:"events"`
}

// An Event is something that happened on a host.
type Event struct {
	ID      string            `json:"id"`  // UUIDv7
	Seq     int64             `json:"seq"` // counts the agent's events, without gaps
	Time    time.Time         `json:"time"`
	Kind    string            `json:"kind"`           // session.start and the others that an agent may report
	User    string            `json:"user,omitempty"` // id of the user
	Session string            `json:"session,omitempty"`
	Outcome string            `json:"outcome"`          // success, refused or failed
	Detail  map[string]string `json:"detail,omitempty"` // more, by name
}

// ClientEventsRequest is POST /v1/teams/{team}/client_events: up to 20 events,
// all or none of which are taken. Sending an event again does nothing.
type ClientEventsRequest struct {
	Events []ClientEvent `json:"events"`
}

// A ClientEvent is something that a client says happened in one of its own
// sessions. It is recorded as its claim.
type ClientEvent struct {
	ID      string            `json:"id"` // UUIDv7
	Time    time.Time         `json:"time"`
	Kind    string            `json:"kind"` // session.refused
	Session string            `json:"session"`
	Detail  map[string]string `json:"detail,omitempty"` // at most 16 of 1 KiB
}

// DeviceInfo is what a client says of its machine.
type DeviceInfo struct {
	Hostname string `json:"hostname"`
	OS       string `json:"os"`
	Version  string `json:"version"`
}

// EnrollClientRequest is POST /v1/clients/enroll, and, signed by an enrolled
// client's device key and without DeviceKey, POST /v1/clients/login. Either
// Code or DeviceCode is set.
type EnrollClientRequest struct {
	Code         string     `json:"code,omitempty"`          // from the loopback redirect (RFC 6749, RFC 8252)
	CodeVerifier string     `json:"code_verifier,omitempty"` // RFC 7636
	RedirectURI  string     `json:"redirect_uri,omitempty"`  // the one that the code was sent to
	DeviceCode   string     `json:"device_code,omitempty"`   // RFC 8628
	DeviceKey    []byte     `json:"device_key,omitempty"`    // P-256
	Device       DeviceInfo `json:"device,omitzero"`
}

// EnrollClientReply says who approved.
type EnrollClientReply struct {
	ClientID      string    `json:"client_id"`
	Team          string    `json:"team"`
	User          string    `json:"user"`
	URL           string    `json:"url"`
	SignedInUntil time.Time `json:"signed_in_until"`
	// State is that of a client that is new: PENDING where an administrator has to
	// approve it before it opens anything.
	State sft.State `json:"state,omitempty"`
}

// ServiceClientRequest is POST /v1/agent/service_client: the agent asks for a
// client for a process of one of its host's accounts, which it knows by the
// system's word, and never by the process's own.
type ServiceClientRequest struct {
	Account   string     `json:"account"`    // login name
	DeviceKey []byte     `json:"device_key"` // P-256; one that was sent before is renewed
	Device    DeviceInfo `json:"device,omitzero"`
}

// ServiceClientReply says as which service user the client acts, for an hour.
type ServiceClientReply struct {
	ClientID      string    `json:"client_id"`
	Team          string    `json:"team"`
	User          string    `json:"user"`
	URL           string    `json:"url"`
	SignedInUntil time.Time `json:"signed_in_until"`
}

// ServiceAsk is what a process asks the agent of its host for on the local
// socket: a client of the service user that its account is bound to.
type ServiceAsk struct {
	DeviceKey []byte     `json:"device_key"` // P-256; one that was sent before is renewed
	Device    DeviceInfo `json:"device"`
}

// ServiceAnswer is the agent's answer to a ServiceAsk: Error, or the rest.
type ServiceAnswer struct {
	ServiceClientReply
	CA    []byte     `json:"platform_ca,omitempty"` // DER; empty trusts what the system trusts
	Error *sft.Error `json:"error,omitempty"`
}

// DeviceCodeRequest is POST /v1/clients/device_code (RFC 8628, section 3.1).
type DeviceCodeRequest struct {
	Team      string     `json:"team"`
	ClientID  string     `json:"client_id,omitempty"` // when signing in again
	DeviceKey []byte     `json:"device_key"`          // P-256; with ClientID the key of that client
	Device    DeviceInfo `json:"device,omitzero"`
}

// DeviceCodeReply is RFC 8628, section 3.2; times are in seconds.
type DeviceCodeReply struct {
	DeviceCode      string `json:"device_code"`      // the client polls with it
	UserCode        string `json:"user_code"`        // the person types it
	VerificationURI string `json:"verification_uri"` // where the person types it
	ExpiresIn       int64  `json:"expires_in"`       // seconds until both codes end
	Interval        int64  `json:"interval"`         // seconds between two polls
}

// ConnectRequest is POST /v1/teams/{team}/connect: resolve, decide and issue
// in one request.
type ConnectRequest struct {
	Target       string   `json:"target"`                   // the server: its id or one of its names, PROJECT/NAME where a name means several
	Via          []string `json:"via,omitempty"`            // hosts to go through, in their order, in the place of the bastions that the target names
	Service      string   `json:"service"`                  // rdp, ssh or ping
	CSR          []byte   `json:"csr"`                      // P-256; only its public key is used
	SSHPublicKey string   `json:"ssh_public_key,omitempty"` // ed25519, as in authorized_keys: for every certificate of SSH in the reply
	SessionID    string   `json:"session_id,omitempty"`     // continues a live session
}

// ConnectReply is the way to the target and what opens it.
type ConnectReply struct {
	SessionID string `json:"session_id"` // of the session that the way is for
	Route     []Hop  `json:"route"`      // in the order that they are crossed; the target is the last
	// Certificate is for the CSR's key and the target's broker. It is not there
	// where the target is reached by SSH alone.
	Certificate [][]byte  `json:"broker_certificate,omitempty"`
	ExpiresAt   time.Time `json:"expires_at"`
	// Channels is what the project lets cross. The broker enforces it; the
	// client does not ask for the rest.
	Channels *sft.Channels `json:"channels,omitempty"`
}

// A Hop is one server of a route, with what proves it.
type Hop struct {
	ServerID string `json:"server_id"` // its id; empty: the platform has no record of it
	Name     string `json:"name"`
	Project  string `json:"project_name"`
	Address  string `json:"address"` // where it is reached from the hop before
	Port     int    `json:"port"`
	// BrokerName is the DNS name in the broker's certificate.
	BrokerName string `json:"broker_name"`
	// HostCAs are the certificates that the broker's may be signed by.
	HostCAs [][]byte `json:"host_cas,omitempty"`
	// HostKeys are the SHA-256 of the SPKIs the broker's key may have now:
	// one, or two while it is renewed.
	HostKeys [][]byte `json:"host_keys,omitempty"`
	Login    string   `json:"login"` // the person's account there
	// SSH is set where the hop is to be reached by SSH: on every enrolled hop
	// before the target, and on the target of the service ssh.
	SSH *SSHHop `json:"ssh,omitempty"`
	// Unmanaged is a hop without an agent: what reaches and proves it is the
	// person's own SSH. Only Name, Address, Port (0: as their settings say) and
	// Login (empty: as their settings say) are set, and ServerID if the platform
	// has a record of it.
	Unmanaged bool `json:"unmanaged,omitempty"`
}

// An SSHHop is how to reach a server by SSH, as the Login of its Hop.
type SSHHop struct {
	Port        int    `json:"port"`
	Certificate string `json:"certificate"` // for the request's SSH key, as in authorized_keys
	// HostCAs are the keys that the host's certificate may be signed by, whose
	// principal must be the server's id. HostKeys are those that it may show
	// without one. Both as in authorized_keys.
	HostCAs  []string `json:"host_cas"`
	HostKeys []string `json:"host_keys"`
	// Broker is set on a target whose SSH server is reached through its broker.
	Broker bool `json:"broker,omitempty"`
	// Netcat: the hop forwards by a program instead of by direct-tcpip.
	Netcat bool `json:"netcat,omitempty"`
	// ForwardAgent permits the person to forward their SSH agent to the target.
	ForwardAgent bool `json:"forward_agent,omitempty"`
}

// ResolveReply is GET /v1/teams/{team}/resolve?target=NAME: what the name
// means to the asker. Nothing is issued.
type ResolveReply struct {
	Server sft.Server `json:"server"`          // what the name means
	Login  string     `json:"login"`           // the asker's account there
	Route  []string   `json:"route,omitempty"` // the names of the hops on the way to it
}

// Access is what a user is to a server: GET …/servers/{id}/access.
type Access struct {
	User        string   `json:"user_name"`
	Server      string   `json:"server_name"` // what people call the server
	ServerID    string   `json:"server_id"`   // its id
	Project     string   `json:"project_name"`
	Service     string   `json:"service"`                     // rdp or ssh
	Access      bool     `json:"access"`                      // the user has an account on the server
	Admin       bool     `json:"admin"`                       // it is an administrator's
	Sudo        []string `json:"sudo_entitlements,omitempty"` // what it may run by sudo, by name
	Credentials bool     `json:"credentials"`                 // the user would get in now
	// Group gives the access, Preauthorization lets credentials be issued.
	Group            string       `json:"group,omitempty"`
	Preauthorization string       `json:"preauthorization,omitempty"`
	Missing          string       `json:"missing,omitempty"` // the first thing that stands in the way
	Steps            []AccessStep `json:"steps"`             // what was looked at, in order
}

// An AccessStep is one answer on the way to a decision.
type AccessStep struct {
	Rule string `json:"rule"`           // which rule was asked
	OK   bool   `json:"ok"`             // it does not stand in the way
	Text string `json:"text"`           // what it found, for people
	Hint string `json:"hint,omitempty"` // what to do about it, for people
}

// A List is one page of things.
type List[T any] struct {
	List []T `json:"list"` // in the order that the route says, by name or id if it says none
	// Prev and Next are the keys from which the pages before and after begin;
	// empty: there is none. They are in the reply's Link header (RFC 8288).
	Prev string `json:"-"`
	Next string `json:"-"`
}

// Around returns the keys of the pages around this one.
func (l List[T]) Around() (prev, next string) { return l.Prev, l.Next }

// ServiceTokenRequest is POST /v1/teams/{team}/service_token.
type ServiceTokenRequest struct {
	KeyID     string `json:"key_id"`     // of one of the service user's keys
	KeySecret string `json:"key_secret"` // what the key was made with; it is shown once
}

// ServiceTokenReply holds a bearer token. It may die at any time: on 401 get
// another.
type ServiceTokenReply struct {
	BearerToken string    `json:"bearer_token"` // for the header Authorization, after "Bearer "
	ExpiresAt   time.Time `json:"expires_at"`
	Team        string    `json:"team_name"`
}

// ErrorReply is the body of every refusal. Time is the platform's, so that a
// caller whose clock is off can tell by how much.
type ErrorReply struct {
	Error sft.Error `json:"error"` // what went wrong, and what to do
	Time  time.Time `json:"time"`
}

// An EnrollmentToken is what an agent's token file holds, as base64 of this
// JSON.
type EnrollmentToken struct {
	Secret      string `json:"s"`
	URL         string `json:"u"`
	Fingerprint string `json:"f,omitempty"` // SHA-256 of the platform's CA certificate, hex, if it is private
}

// An RDPSignatureRequest is POST /v1/teams/{team}/rdp_signature: the settings
// of a connection file that are signed, as package rdpsign has them, each a line
// of NAME:TYPE:VALUE.
type RDPSignatureRequest struct {
	Settings []string `json:"settings"` // NAME:TYPE:VALUE, in their order
}

// An RDPSignatureReply holds a PKCS #7, DER.
type RDPSignatureReply struct {
	Signature []byte `json:"signature"` // detached, of the settings
}

// An RDPSigningCertificate is what a team's connection files are signed with:
// GET and POST /v1/teams/{team}/rdp_signing_certificate.
type RDPSigningCertificate struct {
	Certificate []byte    `json:"certificate"`        // DER
	Thumbprint  string    `json:"sha1_thumbprint"`    // hex, by which Windows knows a publisher
	Fingerprint string    `json:"sha256_fingerprint"` // hex, after "sha256:"
	Publisher   string    `json:"publisher"`          // the name that people see
	ExpiresAt   time.Time `json:"expires_at"`
}
