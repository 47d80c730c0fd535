package ca

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"sft"
)

// The lives of SSH certificates.
const (
	SSHUserLife = 5 * time.Minute
	SSHHostLife = 7 * 24 * time.Hour
	sshEarly    = time.Minute // how long before now they are good already
)

// The sizes of what is parsed and signed.
const (
	maxSSHKey   = 4 << 10 // bytes of a line
	minRSA      = 2048    // bits
	maxRSA      = 8192
	maxSSHNames = 64 // principals of a host
)

// hostKeys are the types that a host's key may have. Certificates and keys on
// security keys, which a host cannot touch, are not among them.
var hostKeys = []string{ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoRSA}

// SSHUserKey parses the public key of a person, as in authorized_keys, without
// options or comment: ed25519.
func SSHUserKey(line string) (ssh.PublicKey, error) {
	return sshKey(line, "send an ed25519 key as in authorized_keys, without options or comment", ssh.KeyAlgoED25519)
}

// SSHHostKey parses the public key of a host, as in authorized_keys, without
// options or comment: ed25519, ECDSA, or RSA of 2048 to 8192 bits.
func SSHHostKey(line string) (ssh.PublicKey, error) {
	return sshKey(line, "send an ed25519, ECDSA or RSA key (2048 to 8192 bits) as in authorized_keys, without options or comment", hostKeys...)
}

// sshKey parses one line, which may end with a newline. A key has one
// spelling: what it would be written as is what was sent.
func sshKey(line, hint string, types ...string) (ssh.PublicKey, error) {
	bad := func(msg string) (ssh.PublicKey, error) {
		return nil, &sft.Error{Code: sft.Invalid, Msg: msg, Hint: hint}
	}
	line = strings.TrimSuffix(line, "\n")
	if line == "" || len(line) > maxSSHKey {
		return bad(fmt.Sprintf("the SSH key has %d bytes; it may have 1 to %d", len(line), maxSSHKey))
	}
	kind, blob, _ := strings.Cut(line, " ")
	if !slices.Contains(types, kind) {
		return bad("an SSH key of the type " + sft.Quote(kind) + " is not taken here")
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(blob)
	if err != nil {
		return bad("the SSH key is not readable")
	}
	key, err := ssh.ParsePublicKey(raw)
	if err != nil || key.Type() != kind || SSHLine(key) != line {
		return bad("the SSH key is not readable")
	}
	if k, ok := key.(ssh.CryptoPublicKey).CryptoPublicKey().(*rsa.PublicKey); ok && (k.N.BitLen() < minRSA || k.N.BitLen() > maxRSA) {
		return bad(fmt.Sprintf("the SSH key is RSA of %d bits", k.N.BitLen()))
	}
	return key, nil
}

// SSHLine is a key or certificate as in authorized_keys, without a comment.
func SSHLine(key ssh.PublicKey) string {
	return strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(key)), "\n")
}

// AuthorizedKey is the public key of an SSH authority, as in authorized_keys.
func (a *Authority) AuthorizedKey() string {
	key, err := ssh.ParsePublicKey(a.pub)
	if err != nil {
		panic("ca: " + err.Error()) // Open has compared it with the private one
	}
	return SSHLine(key)
}

// An SSHGrant is what a user certificate is for. Nothing else is in it.
type SSHGrant struct {
	Session string // ids
	User    string
	Server  string
	Login   string // the account on the server
	Hop     bool   // the server is only to be gone through
	// ForwardAgent permits to forward an SSH agent, on a target.
	ForwardAgent bool
}

// SSHPrincipal is the one principal of a certificate for an account on a
// server: an SSH server that asks for it lets nobody in with a certificate for
// another server.
func SSHPrincipal(serverID, login string) string { return "sft:" + serverID + ":" + login }

// SSHKeyID is the key id of a user certificate, which SSH servers log: it ties
// their log to the session, and to whose it is.
func SSHKeyID(session, user string) string { return "sft:session/" + session + "/user/" + user }

// extensions are what an SSH server may grant with the certificate. On a hop
// that is to connect on: no terminal, no agent. (A command without a terminal
// needs no extension; whoever crosses a server may use it.)
func (g SSHGrant) extensions() map[string]string {
	if g.Hop {
		return map[string]string{"permit-port-forwarding": ""}
	}
	e := map[string]string{"permit-pty": "", "permit-port-forwarding": "", "permit-X11-forwarding": "", "permit-user-rc": ""}
	if g.ForwardAgent {
		e["permit-agent-forwarding"] = ""
	}
	return e
}

// An SSHCertificate is one that was issued.
type SSHCertificate struct {
	Line   string // as in authorized_keys, without a comment
	Serial uint64
	Until  time.Time
}

// An SSHDraft is an SSH certificate that may be signed, as a Draft is.
type SSHDraft struct {
	a      *Authority
	p      sshProfile
	key    ssh.PublicKey
	t      *ssh.Certificate
	now    time.Time
	Serial uint64
	Until  time.Time
}

// An sshProfile is everything that an SSH certificate of one kind may be.
type sshProfile struct {
	ca       Kind
	certType uint32
	life     time.Duration // the most, early time included
	types    []string      // of the key
	names    int           // the most
	name     *regexp.Regexp
}

var (
	idRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`)
	// uuidRE has the form of the ids of servers.
	uuidRE = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

	sshUserProfile = sshProfile{SSHUser, ssh.UserCert, SSHUserLife + sshEarly, []string{ssh.KeyAlgoED25519}, 1,
		regexp.MustCompile(`^sft:[A-Za-z0-9][A-Za-z0-9_-]{0,62}:[a-z0-9_][a-z0-9._-]{0,31}$`)}
	// A host's names have no "*", "?" or "!", which OpenSSH would read as a
	// pattern, and no colon, as in an address.
	sshHostProfile = sshProfile{SSHHost, ssh.HostCert, SSHHostLife + sshEarly, hostKeys, maxSSHNames,
		regexp.MustCompile(`^[a-z0-9A-Z]([A-Za-z0-9._-]{0,251}[a-zA-Z0-9])?$`)}
)

// DraftSSHUser returns a certificate for a person's key: for that account on
// that server in that session, for 5 minutes.
func (a *Authority) DraftSSHUser(key ssh.PublicKey, g SSHGrant, now time.Time) (SSHDraft, error) {
	for _, id := range []string{g.Session, g.User, g.Server} {
		if !idRE.MatchString(id) {
			return SSHDraft{}, fmt.Errorf("refuse to issue a certificate: %q is no id", id)
		}
	}
	if err := sft.CheckServerLogin(g.Login); err != nil {
		return SSHDraft{}, err
	}
	return a.draftSSH(sshUserProfile, key, &ssh.Certificate{
		KeyId:           SSHKeyID(g.Session, g.User),
		ValidPrincipals: []string{SSHPrincipal(g.Server, g.Login)},
		Permissions:     ssh.Permissions{Extensions: g.extensions()},
	}, now, SSHUserLife)
}

// IssueSSHHost signs the certificate of a host's key, for 7 days: for the
// server's id and those of its names that can be one. Addresses, and what has
// the form of another server's id, are left out.
func (a *Authority) IssueSSHHost(key ssh.PublicKey, serverID string, names []string, now time.Time) (SSHCertificate, error) {
	if !idRE.MatchString(serverID) {
		return SSHCertificate{}, fmt.Errorf("refuse to issue a certificate: %q is no id", serverID)
	}
	principals := []string{serverID}
	for _, n := range names {
		// SSH clients look for a name in small letters.
		n = sft.Fold(n)
		if hostName(n) && !slices.Contains(principals, n) && len(principals) < maxSSHNames {
			principals = append(principals, n)
		}
	}
	d, err := a.draftSSH(sshHostProfile, key, &ssh.Certificate{KeyId: "sft:server/" + serverID, ValidPrincipals: principals}, now, SSHHostLife)
	if err != nil {
		return SSHCertificate{}, err
	}
	return d.Sign()
}

// hostName reports whether n can be a principal of a host beside its id.
func hostName(n string) bool {
	_, err := netip.ParseAddr(n)
	return sshHostProfile.name.MatchString(n) && err != nil && !uuidRE.MatchString(sft.Fold(n))
}

// draftSSH completes the template by the profile, and refuses what the profile
// does not allow.
func (a *Authority) draftSSH(p sshProfile, key ssh.PublicKey, t *ssh.Certificate, now time.Time, life time.Duration) (SSHDraft, error) {
	if a.kind != p.ca {
		return SSHDraft{}, fmt.Errorf("the %s CA does not sign for the %s CA", a.kind, p.ca)
	}
	var serial [8]byte
	rand.Read(serial[:])
	t.Serial = binary.BigEndian.Uint64(serial[:])>>1 | 1<<62 // positive for who reads it signed, and never 0
	t.Key, t.CertType = key, p.certType
	t.ValidAfter, t.ValidBefore = uint64(now.Add(-sshEarly).Unix()), uint64(now.Add(life).Unix())
	d := SSHDraft{a, p, key, t, now, t.Serial, time.Unix(int64(t.ValidBefore), 0).UTC()}
	if err := d.check(t); err != nil {
		return SSHDraft{}, fmt.Errorf("refuse to issue a certificate: %w", err)
	}
	return d, nil
}

// Sign returns the certificate, after a look at the finished one.
func (d SSHDraft) Sign() (SSHCertificate, error) {
	none := SSHCertificate{}
	signer, err := ssh.NewSignerFromSigner(d.a.key)
	if err != nil {
		return none, err
	}
	t := *d.t
	if err := t.SignCert(rand.Reader, signer); err != nil {
		return none, err
	}
	line := SSHLine(&t)
	c, err := parseSSHCertificate(line)
	if err == nil {
		err = d.look(c)
	}
	if err != nil {
		return none, fmt.Errorf("refuse to issue a certificate: %w", err)
	}
	return SSHCertificate{line, d.Serial, d.Until}, nil
}

func parseSSHCertificate(line string) (*ssh.Certificate, error) {
	key, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return nil, err
	}
	c, ok := key.(*ssh.Certificate)
	if !ok || len(options) > 0 || len(rest) > 0 || SSHLine(c) != line {
		return nil, fmt.Errorf("it is not a certificate alone")
	}
	return c, nil
}

// look is the last one: it compares the finished certificate with what the
// profile allows and what was meant.
func (d SSHDraft) look(c *ssh.Certificate) error {
	if err := d.check(c); err != nil {
		return err
	}
	switch t := d.t; {
	case !bytes.Equal(c.SignatureKey.Marshal(), d.a.pub):
		return fmt.Errorf("the signature is not the CA's")
	case !bytes.Equal(c.Key.Marshal(), d.key.Marshal()):
		return fmt.Errorf("the key is another")
	case c.Serial != t.Serial || c.KeyId != t.KeyId:
		return fmt.Errorf("serial or key id are others")
	case c.ValidAfter != t.ValidAfter || c.ValidBefore != t.ValidBefore:
		return fmt.Errorf("the times are others")
	case !maps.Equal(c.Extensions, t.Extensions) && len(c.Extensions)+len(t.Extensions) > 0:
		return fmt.Errorf("the extensions are others")
	case !slices.Equal(c.ValidPrincipals, t.ValidPrincipals):
		return fmt.Errorf("the principals are others")
	}
	checker := ssh.CertChecker{Clock: func() time.Time { return d.now }}
	return checker.CheckCert(c.ValidPrincipals[0], c)
}

// check compares a certificate, or what is to be one, with what the profile
// allows.
func (d SSHDraft) check(c *ssh.Certificate) error {
	p := d.p
	small := false
	if k, ok := c.Key.(ssh.CryptoPublicKey); ok {
		r, ok := k.CryptoPublicKey().(*rsa.PublicKey)
		small = ok && r.N.BitLen() < minRSA
	}
	from, until := time.Unix(int64(c.ValidAfter), 0), time.Unix(int64(c.ValidBefore), 0)
	switch {
	case !slices.Contains(p.types, c.Key.Type()) || small:
		return fmt.Errorf("the key is of a type that is not allowed")
	case c.CertType != p.certType:
		return fmt.Errorf("it is of the other type")
	case c.Serial == 0 || c.KeyId == "" || len(c.Reserved) != 0:
		return fmt.Errorf("it has no serial or key id, or more than it should")
	case c.ValidBefore > 1<<40 || until.Sub(from) > p.life || !until.After(from) || until.After(d.a.notAfter):
		return fmt.Errorf("it would be good from %s to %s, and the profile allows %s inside the CA's life", from.UTC(), until.UTC(), p.life)
	case len(c.CriticalOptions) != 0:
		return fmt.Errorf("it has critical options")
	case p.certType == ssh.HostCert && len(c.Extensions) > 0:
		return fmt.Errorf("the extensions are others")
	case len(c.ValidPrincipals) == 0 || len(c.ValidPrincipals) > p.names:
		// OpenSSH takes a host's without principals for any name.
		return fmt.Errorf("it has %d principals", len(c.ValidPrincipals))
	}
	for i, n := range c.ValidPrincipals {
		if !p.name.MatchString(n) || p.certType == ssh.HostCert && i > 0 && !hostName(n) {
			return fmt.Errorf("%q cannot be a principal", n)
		}
	}
	return nil
}
