package sft

import (
	"slices"
	"time"
)

// A Status is the life of a user.
type Status string

// The states of a user. A deleted user is kept, so that the login name is
// never given to somebody else.
const (
	StatusActive   Status = "ACTIVE"   // may sign in
	StatusDisabled Status = "DISABLED" // may do nothing until it is active again
	StatusDeleted  Status = "DELETED"  // for good
)

// A State is the life of a client or a server.
type State string

// The states of a client (ACTIVE, PENDING, DELETED) and of a server (ACTIVE,
// INACTIVE, DELETED).
const (
	StateActive   State = "ACTIVE"   // enrolled; of a server: and in touch
	StatePending  State = "PENDING"  // a client that opens nothing until an administrator approves it
	StateInactive State = "INACTIVE" // a server that has not been in touch for four days
	StateDeleted  State = "DELETED"  // its key is refused
)

// ActiveFor is how long a server counts as ACTIVE after it was last seen.
const ActiveFor = 96 * time.Hour

// A Role is what a group may do in its team.
type Role string

// The roles. Who is in several groups has all their roles.
const (
	AccessAdmin   Role = "access_admin"     // everything in the team
	AccessUser    Role = "access_user"      // read most things, manage own clients
	ReportingUser Role = "reporting_user"   // read what access_user reads, and enrollment tokens, preauthorizations and what anybody is to a server (service users' keys and team_stats are for access_admin alone)
	Preauthorizer Role = "preauthorization" // give others preauthorizations, and no more
	// set the labels of servers, make the records of those without an agent, and
	// delete any, and no more (it is nothing on hosts: that is the field of that
	// name of a group in a project)
	ServerAdmin Role = "server_admin"
)

// The groups that every team has from its first day.
const (
	Everyone = "everyone" // all users; membership is not stored
	Owners   = "owners"   // access_admin; never empty
)

// A Team is the tenant: users, groups, projects, settings.
type Team struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	CreatedAt time.Time `json:"created_at"`
	// ClientSession is how long a client's sign-in lasts, in seconds,
	// 3600 to 90000.
	ClientSession int64 `json:"client_session_duration"`
	// WebSession is how long a sign-in with a browser lasts, in seconds, 1800
	// to 90000.
	WebSession int64 `json:"web_session_duration"`
	// AllowDeviceCode permits enrolment by a typed code (RFC 8628).
	AllowDeviceCode bool `json:"allow_device_code"`
}

// A User is a person, or a service user, which has API keys and no password.
type User struct {
	ID      string      `json:"id"`
	Name    string      `json:"name"`
	Type    UserType    `json:"user_type"` // a person or a program
	Status  Status      `json:"status"`
	Details UserDetails `json:"details"`        // for people to read
	Login   string      `json:"unix_user_name"` // the local account's name on Linux servers
	// WindowsLogin is its name on Windows servers: the same, unless another was
	// given.
	WindowsLogin string    `json:"windows_user_name"`
	UID          int       `json:"unix_uid"`
	GID          int       `json:"unix_gid"`
	CreateAt     time.Time `json:"created_at"`
}

// A UserType tells people from programs.
type UserType string

// The types of a user.
const (
	Human   UserType = "human"   // a person
	Service UserType = "service" // a program
)

// UserDetails are for people to read; nothing is decided by them.
type UserDetails struct {
	FullName string `json:"full_name"`
	Email    string `json:"email"`
}

// A ServiceKey is a service user's API key. Its secret is shown once, when
// the key is made.
type ServiceKey struct {
	ID        string     `json:"id"`
	IssuedAt  time.Time  `json:"issued_at"`
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
	LastUsed  *time.Time `json:"last_used,omitempty"` // when a token was last made with it
}

// A Group holds users; its roles count in the whole team, its membership in
// projects is a ProjectGroup.
type Group struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	Roles []Role `json:"roles"`              // what its members may do in the team
	GID   int    `json:"unix_gid,omitempty"` // of the local groups, once a project has made one
	// ServerGroup is what the local groups are called where a project gives no
	// other name; empty: "sft_" and the name.
	ServerGroup string    `json:"unix_group_name,omitempty"`
	CreatedAt   time.Time `json:"created_at"`
}

// A Project is the scope of authorization. It owns its CAs, its servers and
// its enrollment tokens.
type Project struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	CreatedAt time.Time `json:"created_at"`
	// Revision counts the changes that an agent of the project must hear of.
	Revision int64 `json:"revision"`
	// CreateServerUsers lets the agents make local accounts.
	CreateServerUsers bool `json:"create_server_users"`
	// DeleteServerUsers lets the agents delete the account and the files of
	// somebody who has lost access. Off: the account is only disabled.
	DeleteServerUsers bool `json:"delete_server_users"`
	// MaxSession ends a session after that many seconds, however it is used.
	MaxSession int64 `json:"max_session_seconds"`
	// DisconnectedSession logs the person's OS session off that many seconds
	// after the last stream has ended.
	DisconnectedSession int64 `json:"disconnected_session_seconds"`
	// Channels says what may cross between a desktop and a person's machine.
	Channels Channels `json:"channels"`
	// UserOnDemand makes an account when its person comes, and removes it, with
	// its files, that many seconds after their last session; 0: accounts are
	// always there.
	UserOnDemand int64 `json:"user_on_demand_period"`
	// RequirePreauth gives credentials for the project's servers to those alone
	// who have a Preauthorization beside the access that their groups give.
	RequirePreauth bool `json:"require_preauth_for_creds"`
	// NameReuseAfter gives a name to another server of the project that claims
	// it, when the one that holds it has been silent for that many seconds; 0:
	// never.
	NameReuseAfter int64 `json:"name_reuse_after"`
	// ClientOptions are for the clients of people who connect to the project's
	// servers.
	ClientOptions ClientOptions `json:"client_config_options"`
}

// ClientOptions are settings that a project gives to clients. Their names are
// those of the client's own settings, which they overrule.
type ClientOptions struct {
	// PortForward is how a server of the project is crossed: native, which is
	// also what empty means, or netcat where its SSH server forbids forwarding.
	PortForward string `json:"ssh.port_forward_method,omitempty"`
	// ForwardAgent lets a person forward their SSH agent to a server of the
	// project: host, or none, which is also what empty means.
	ForwardAgent string `json:"ssh.insecure_forward_agent,omitempty"`
}

// The values of ClientOptions.
const (
	ForwardNative = "native"
	ForwardNetcat = "netcat"
	AgentHost     = "host"
	AgentNone     = "none"
)

// A SudoEntitlement is a named set of commands that those who have it may run
// by sudo (sudoers(5)), without the rights of an administrator.
type SudoEntitlement struct {
	ID          string        `json:"id"`
	Name        string        `json:"name"`
	Description string        `json:"description,omitempty"`
	Commands    []SudoCommand `json:"structured_commands"`   // 1 to 64
	NoPasswd    bool          `json:"opt_no_passwd"`         // must be true: nobody has a password
	NoExec      bool          `json:"opt_no_exec,omitempty"` // the commands start no further programs
	RunAs       string        `json:"opt_run_as,omitempty"`  // a login; empty: root
	SetEnv      bool          `json:"opt_set_env,omitempty"` // the person may set any environment variable
	AddEnv      []string      `json:"add_env,omitempty"`     // names for env_keep
	SubEnv      []string      `json:"sub_env,omitempty"`     // names that are taken out of env_keep
	CreatedAt   time.Time     `json:"created_at"`
}

// A SudoCommand is one of an entitlement's commands.
type SudoCommand struct {
	Command  string `json:"command"`             // an absolute path; of a directory it ends with "/"
	Type     string `json:"command_type"`        // executable or directory
	Args     string `json:"args,omitempty"`      // with ArgsType custom
	ArgsType string `json:"args_type,omitempty"` // none, any or custom; empty: none, of a directory any
}

// Channels says what may cross beside picture, keyboard and mouse. A virtual
// channel (MS-RDPBCGR 1.3.3) belongs to exactly one of the switches, or to the
// desktop itself.
type Channels struct {
	Clipboard    bool `json:"clipboard"`     // cliprdr
	Devices      bool `json:"devices"`       // drives, printers, ports, smart cards, USB, cameras
	Audio        bool `json:"audio"`         // sound both ways
	OtherDynamic bool `json:"other_dynamic"` // every other channel, dynamic or static
}

// AllChannels is what a project allows from its first day.
var AllChannels = Channels{Clipboard: true, Devices: true, Audio: true, OtherDynamic: true}

// An Authority is a certificate authority of a project, or one that takes or
// gives up its place.
type Authority struct {
	ID          string    `json:"id"`
	Kind        string    `json:"kind"`        // access, host, ssh_user or ssh_host
	Stage       string    `json:"stage"`       // next (trusted), active (signs), retired (still trusted)
	Since       time.Time `json:"since"`       // it has that stage
	Fingerprint string    `json:"fingerprint"` // SHA-256 of the key or certificate, as people compare it
	CreatedAt   time.Time `json:"created_at"`
	ExpiresAt   time.Time `json:"expires_at"`
	// Until is when a retired one goes, and when one that is next signs at the
	// latest. WaitingFor are the ids of active servers whose agents have not said
	// that they have it, of one that is next or took another's place: the first
	// 100 of Waiting.
	Until      *time.Time `json:"until,omitempty"`
	WaitingFor []string   `json:"waiting_for,omitempty"`
	Waiting    int64      `json:"waiting,omitempty"`
}

// A ProjectGroup lets a group into a project's servers.
type ProjectGroup struct {
	Group        string `json:"name"`
	ServerAccess bool   `json:"server_access"` // the group's members may reach the servers
	ServerAdmin  bool   `json:"server_admin"`  // they are administrators there
	// ServersSelector is a label selector of Kubernetes: all that is here counts
	// on the servers that match it alone. Empty: on every server.
	ServersSelector string `json:"servers_selector,omitempty"`
	// CreateServerGroup makes the group a local group on the project's Linux
	// servers, under ServerGroupName or, if that is left empty, the group's
	// unix_group_name, or "sft_" and the group's name. Its members are those of
	// the group who have an account.
	CreateServerGroup bool   `json:"create_server_group"`
	ServerGroupName   string `json:"server_group_name,omitempty"`
	// SudoEntitlements are what the group's members may run by sudo, by name,
	// on servers that the group gives access to.
	SudoEntitlements []string  `json:"sudo_entitlements,omitempty"`
	CreatedAt        time.Time `json:"created_at"`
}

// A Preauthorization lets one user have credentials, from a time to a time,
// where projects require one. It gives no access by itself, and its end ends no
// session.
type Preauthorization struct {
	ID        string    `json:"id"`
	User      string    `json:"user_name"`
	Projects  []string  `json:"projects"`          // by name
	Servers   []string  `json:"servers,omitempty"` // by id; empty: all of the projects
	StartsAt  time.Time `json:"starts_at"`         // when it begins
	ExpiresAt time.Time `json:"expires_at"`
	Disabled  bool      `json:"disabled"`
	CreatedBy string    `json:"created_by_user"`
	CreatedAt time.Time `json:"created_at"`
}

// An EnrollmentToken lets any number of servers enrol in one project until it
// is deleted, has expired, or was used MaxUses times. Its secret is part of
// the token and shown to those who may enrol servers.
type EnrollmentToken struct {
	ID          string     `json:"id"`
	Description string     `json:"description"`
	CreatedBy   string     `json:"created_by_user"`
	IssuedAt    time.Time  `json:"issued_at"`
	ExpiresAt   *time.Time `json:"expires_at,omitempty"`
	MaxUses     int64      `json:"max_uses,omitempty"` // 0: no limit
	Uses        int64      `json:"uses"`               // how many servers it has let in
}

// A CloudAccount lets the instances of a cloud's account enrol in one project
// without a token. An account belongs to one project of the installation.
type CloudAccount struct {
	ID          string    `json:"id"`
	Provider    string    `json:"provider"` // aws
	AccountID   string    `json:"account_id"`
	Description string    `json:"description"`
	CreatedBy   string    `json:"created_by_user"`
	CreatedAt   time.Time `json:"created_at"`
}

// InstanceDetails are what a cloud has signed of an instance.
type InstanceDetails struct {
	InstanceID  string    `json:"instance_id"`
	AccountID   string    `json:"account_id"`
	Region      string    `json:"region"`                      // where it is
	Zone        string    `json:"availability_zone,omitempty"` // where in the region
	ImageID     string    `json:"image_id,omitempty"`          // what it was started from
	Type        string    `json:"instance_type,omitempty"`     // its size, as the cloud names it
	PendingTime time.Time `json:"pending_time"`                // when it was started last
}

// The values of a server's os_type.
const (
	Linux   = "linux"
	Windows = "windows"
)

// A Server is a host enrolled in one project. Names and addresses are claims
// of its agent.
type Server struct {
	ID            string   `json:"id"`
	Team          string   `json:"team_name,omitempty"`
	Project       string   `json:"project_name"`
	Hostname      string   `json:"hostname"`
	CanonicalName string   `json:"canonical_name,omitempty"`
	AltNames      []string `json:"alt_names"`
	AccessAddress string   `json:"access_address"` // what clients dial
	BrokerPort    int      `json:"broker_port"`
	Bastion       string   `json:"bastion,omitempty"`
	OS            string   `json:"os"`
	OSType        string   `json:"os_type"` // linux or windows
	Version       string   `json:"sftd_version"`
	Services      []string `json:"services"`
	State         State    `json:"state"`
	// Labels are what selectors go by; a key begins with its source.
	Labels       map[string]string `json:"labels"`
	RegisteredAt time.Time         `json:"registered_at"` // when it was enrolled
	LastSeen     *time.Time        `json:"last_seen,omitempty"`
	// Managed is false for a record without an agent, which is there to be a
	// hop. Its state is always ACTIVE until it is deleted.
	Managed bool `json:"managed"`
	// SSHPort and SSHHostKeys are of the host's SSH server, where sftd looks
	// after one: keys as in authorized_keys.
	SSHPort     int      `json:"ssh_port,omitempty"`
	SSHHostKeys []string `json:"ssh_host_keys,omitempty"`
	// Problems are what the agent last said is wrong, and a KeyConflict, each
	// with what to do.
	Problems []string `json:"problems"`
	// NameConflict holds the names that this server claims and another holds.
	NameConflict []string `json:"name_conflict,omitempty"`
	// CloudProvider and InstanceDetails are of a server that enrolled by its
	// cloud's word.
	CloudProvider   string           `json:"cloud_provider,omitempty"`
	InstanceDetails *InstanceDetails `json:"instance_details,omitempty"`
	// ReenrollAllowed lets the instance take this record over with a new key,
	// once.
	ReenrollAllowed bool `json:"reenroll_allowed,omitempty"`
	// KeyConflict: two agents use the server's device key at once, or one uses
	// a key that another took the place of. Nothing is issued for the server
	// until an administrator sets it to false.
	KeyConflict bool `json:"key_conflict,omitempty"`
	// DeviceKeySince is when the agent's device key was made known. RotateKey:
	// the agent is to make another now.
	DeviceKeySince *time.Time `json:"device_key_since,omitempty"`
	RotateKey      bool       `json:"rotate_device_key,omitempty"`
}

// Name is what people call the server: its canonical name, else its host
// name; its id where another server holds that name.
func (s Server) Name() string {
	name := s.CanonicalName
	if name == "" {
		name = s.Hostname
	}
	if slices.Contains(s.NameConflict, name) {
		return s.ID
	}
	return name
}

// A ServerUser is the local account that a user has on a project's servers.
type ServerUser struct {
	User         string   `json:"user_name"`
	Type         UserType `json:"type"`                     // a person or a program
	Login        string   `json:"server_user_name"`         // the account's name on Linux servers
	WindowsLogin string   `json:"windows_server_user_name"` // and on Windows servers
	FullName     string   `json:"full_name"`
	UID          int      `json:"unix_uid"`
	GID          int      `json:"unix_gid"`
	Admin        bool     `json:"admin"` // whether it is an administrator's
	Status       Status   `json:"status"`
}

// A Client is one enrolled device of one user.
type Client struct {
	ID          string    `json:"id"`
	User        string    `json:"user_name"`
	State       State     `json:"state"`
	Hostname    string    `json:"hostname"`
	OS          string    `json:"os"`
	Version     string    `json:"version"`
	Description string    `json:"description,omitempty"`
	EnrolledAt  time.Time `json:"enrolled_at"` // when it was enrolled
	// SignedInUntil ends the client's sign-in; after it, sft opens the browser.
	SignedInUntil time.Time  `json:"signed_in_until"`
	LastSeen      *time.Time `json:"last_seen,omitempty"`
	Fingerprint   string     `json:"device_key_sha256"` // SHA-256 of the key's SPKI, hex
	// MadeBy is the id of the server whose agent asked for the client, for a
	// service user that is bound to one of the server's accounts.
	MadeBy string `json:"made_by_server,omitempty"`
}

// A ServiceBinding lets the processes of one account of one server act as a
// service user, as far as its groups let it reach servers.
type ServiceBinding struct {
	ID         string    `json:"id"`
	User       string    `json:"user_name"`
	Server     string    `json:"server"`       // its id
	ServerName string    `json:"server_name"`  // what people call the server
	Project    string    `json:"project_name"` // of the server
	Account    string    `json:"account"`      // the local account's login name
	CreatedBy  string    `json:"created_by_user"`
	CreatedAt  time.Time `json:"created_at"`
}
