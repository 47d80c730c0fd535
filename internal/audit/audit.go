// Package audit says what is recorded of what happens: one Event for each
// credential, sign-in, session, account change and administrative change.
//
// An event is stored in the same transaction as the change that it tells of
// (see package store), so that neither exists without the other. Events carry
// ids made from the clock (UUIDv7, RFC 9562) and no number: numbering them
// while they are written would make all writers wait for one another.
package audit

import (
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// A Kind names what happened, as object.verb.
type Kind string

// The kinds of events.
const (
	TeamCreate      Kind = "team.create"
	TeamSettings    Kind = "team_settings.update"
	UserCreate      Kind = "user.create"
	UserUpdate      Kind = "user.update"
	UserRemove      Kind = "user.remove"
	PasswordChange  Kind = "password.change"
	KeyRotate       Kind = "apikey.rotate"
	KeyDelete       Kind = "apikey.delete"
	GroupCreate     Kind = "group.create"
	GroupUpdate     Kind = "permission.change"
	GroupDelete     Kind = "group.delete"
	UserAttribute   Kind = "team_user_attribute.update" // what a user is on hosts
	GroupAttribute  Kind = "team_group_attribute.update"
	MemberAdd       Kind = "member.add"
	MemberRemove    Kind = "member.remove"
	ProjectCreate   Kind = "project.create"
	ProjectUpdate   Kind = "project.update"
	ProjectDelete   Kind = "project.delete"
	ProjectGroup    Kind = "project.add_group"
	ProjectUngroup  Kind = "project.remove_group"
	ProjectSelector Kind = "project_group_selector.update" // the group counts on other servers from then on
	PreauthCreate   Kind = "preauthorization.create"
	PreauthUpdate   Kind = "preauthorization.update"
	TokenCreate     Kind = "server_enrollment_token.create"
	TokenDelete     Kind = "server_enrollment_token.delete"
	CloudCreate     Kind = "cloud_account.create"
	CloudDelete     Kind = "cloud_account.delete"
	SudoCreate      Kind = "entitlement_sudo.create"
	SudoUpdate      Kind = "entitlement_sudo.update"
	SudoRemove      Kind = "entitlement_sudo.remove"
	SudoAttach      Kind = "entitlement_sudo.add_to_project" // a group has it in the project from then on
	SudoDetach      Kind = "entitlement_sudo.remove_from_project"
	ServiceCreate   Kind = "service.create" // a service user is bound to a host's account
	ServiceRemove   Kind = "service.remove"
	ServerEnroll    Kind = "server.enroll"
	ServerUnmanaged Kind = "unmanaged_server.create"
	ServerRemove    Kind = "server.remove"
	ServerReassign  Kind = "server.reassign" // it is in another project from then on
	ServerUpdate    Kind = "server.update"
	ServerLabels    Kind = "server_labels.update" // by an administrator or, of its own, by the host
	NameConflict    Kind = "server.name_conflict"
	KeyConflict     Kind = "server.key_conflict"      // two agents use one device key
	DeviceKeyRotate Kind = "server.device_key_rotate" // a server's agent has another device key
	NameReuse       Kind = "server.name_reuse"        // a silent server's name was given to another
	CARotate        Kind = "ca.rotate"                // one step of a CA's rotation
	CADrop          Kind = "ca.drop"                  // CAs whose keys were known to others are trusted no more
	MasterKeyRotate Kind = "master_key.rotate"
	ClientEnroll    Kind = "client.enroll"
	ClientRemove    Kind = "client.remove"
	ClientAssign    Kind = "client.assign"       // it is another person's from then on
	ClientUpdate    Kind = "client.state.update" // it waits for an administrator's approval from then on, or has it
	AuthTokenIssue  Kind = "auth_token.issue"    // a sign-in, on the web, of a client or of a service user
	AuthTokenEnd    Kind = "auth_token.end"
	UserCredsIssue  Kind = "user_creds.issue"   // certificates to a broker and to SSH servers
	HostCredsIssue  Kind = "server_creds.issue" // certificates of a broker and of an SSH server
	RDPSignerCreate Kind = "rdp_signing_certificate.create"
	RDPFileSign     Kind = "rdp_file.sign"
	SessionStart    Kind = "session.start"
	SessionEnd      Kind = "session.end"
	SessionRefused  Kind = "session.refused"
	AccountCreated  Kind = "account.created"
	AccountUpdated  Kind = "account.updated"
	AccountRemoved  Kind = "account.removed"
	AccountEnabled  Kind = "account.enabled"
	AccountDisabled Kind = "account.disabled"
	AccountConflict Kind = "account.conflict"
	AccountRefused  Kind = "account.refused" // beyond the host's own limits
	AccountFailed   Kind = "account.failed"
	// What the system keeps under the account's password was lost.
	AccountPasswordReset Kind = "account.password_reset"
	SSHLogin             Kind = "server.ssh_login"   // somebody came in by the host's SSH server
	EventsLost           Kind = "server.events_lost" // a gap in an agent's numbers
	AuditKeyCreate       Kind = "audit_key.create"   // by which sealed events are signed
	AuditPrune           Kind = "audit.prune"        // old events were removed on purpose
	AuditExportRemove    Kind = "audit_export.remove"
	ACMEAccountCreate    Kind = "acme_account.create"        // the key of an account at an authority was made
	ACMEAccountRotate    Kind = "acme_account.rotate"        // another key, and so another account, in the place of that
	PlatformCertificate  Kind = "platform_certificate.issue" // an ACME authority has issued the platform's own
	PlatformBackup       Kind = "platform.backup"
	PlatformRestore      Kind = "platform.restore" // what was recorded after the backup is not here
)

// FromAgent are the kinds that an agent may report; the platform records all
// others itself.
var FromAgent = map[Kind]bool{
	SessionStart: true, SessionEnd: true, SessionRefused: true,
	AccountCreated: true, AccountUpdated: true, AccountRemoved: true, AccountEnabled: true,
	AccountDisabled: true, AccountConflict: true, AccountRefused: true, AccountFailed: true, AccountPasswordReset: true,
	SSHLogin: true,
}

// FromClient are the kinds that a client may claim.
var FromClient = map[Kind]bool{SessionRefused: true}

// The outcomes of an event.
const (
	Success = "success"
	Refused = "refused"
	Failed  = "failed"
)

// ClaimedBy is the detail that marks an event as somebody's word alone. Only
// the platform sets it.
const ClaimedBy = "claimed_by"

// An Actor is who did it.
type Actor struct {
	Kind string `json:"kind"`           // user, service, client, server, platform, anonymous
	ID   string `json:"id,omitempty"`   // of the user, client or server
	Name string `json:"name,omitempty"` // of the same
	Addr string `json:"addr,omitempty"` // where the request came from
}

// An Event is one thing that happened. Nothing in it is secret.
type Event struct {
	ID      string    `json:"id"`        // UUIDv7
	Time    time.Time `json:"timestamp"` // when it happened
	Kind    Kind      `json:"type"`      // what happened
	Team    string    `json:"team_name,omitempty"`
	Project string    `json:"project_name,omitempty"`
	Actor   Actor     `json:"actor"`            // who did it
	Client  string    `json:"client,omitempty"` // id of the client that asked
	Target  string    `json:"target,omitempty"` // what was acted on, by name or id
	Session string    `json:"session,omitempty"`
	Via     []string  `json:"via,omitempty"` // the hosts that were gone through
	Outcome string    `json:"outcome"`       // success, refused or failed
	// Source is set on what an agent or a client sent: "SERVER/EVENT" or
	// "client:CLIENT/EVENT", EVENT being the sender's own id of the event. ID
	// tells when it arrived, Time when it was, as the sender says.
	Source string `json:"source,omitempty"`
	// Detail of what a client sent has claimed_by: "client".
	Detail map[string]string `json:"detail,omitempty"`
}

// Check refuses an event that does not say what happened, when, who did it
// and how it went.
func (e Event) Check() error {
	switch {
	case e.Kind == "":
		return errors.New("an event has no type")
	case e.Time.IsZero():
		return fmt.Errorf("event %s has no time", e.Kind)
	case e.Actor.Kind == "":
		return fmt.Errorf("event %s has no actor", e.Kind)
	case e.Outcome != Success && e.Outcome != Refused && e.Outcome != Failed:
		return fmt.Errorf("event %s has no outcome", e.Kind)
	}
	if _, err := uuid.Parse(e.ID); err != nil {
		return fmt.Errorf("event %s has no usable id", e.Kind)
	}
	return nil
}

// NewID returns a UUIDv7: random, and in the order of time.
func NewID() string { return uuid.Must(uuid.NewV7()).String() }
