package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"sft"
)

// sshPublic returns the SSH form of a public key.
func sshPublic(t testing.TB, k crypto.PublicKey) ssh.PublicKey {
	t.Helper()
	p, err := ssh.NewPublicKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func edKey(t testing.TB) ssh.PublicKey {
	t.Helper()
	p, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return sshPublic(t, p)
}

func ecKey(t testing.TB, c elliptic.Curve) ssh.PublicKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return sshPublic(t, &k.PublicKey)
}

func rsaKey(t testing.TB, bits int) ssh.PublicKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return sshPublic(t, &k.PublicKey)
}

var grant = SSHGrant{Session: "x-1", User: "u-1", Server: "s-1", Login: "ann"}

func TestSSHKeys(t *testing.T) {
	ed := edKey(t)
	line := SSHLine(ed)
	p224 := "ecdsa-sha2-nistp224 AAAA"
	sk := "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIJpzLjqjBB9oVVOGmxJZ0rHvRHlRJpLVPGZrqWcsaXYcAAAABHNzaDo="
	if _, _, _, _, err := ssh.ParseAuthorizedKey([]byte(sk)); err != nil {
		t.Fatalf("the security key's line is none: %v", err)
	}
	cert, err := issueSSHUser(authority(t, SSHUser, now), ed, grant, now)
	if err != nil {
		t.Fatal(err)
	}
	small := "ssh-rsa " + strings.TrimPrefix(SSHLine(rsaKey(t, 1024)), "ssh-rsa ")
	tests := []struct {
		name, line string
		user, host bool
	}{
		{"ed25519", line, true, true},
		{"with its newline", line + "\n", true, true},
		{"ECDSA of 256 bits", SSHLine(ecKey(t, elliptic.P256())), false, true},
		{"of 384", SSHLine(ecKey(t, elliptic.P384())), false, true},
		{"of 521", SSHLine(ecKey(t, elliptic.P521())), false, true},
		{"of 224", p224, false, false},
		{"RSA of 2048 bits", SSHLine(rsaKey(t, 2048)), false, true},
		{"RSA of 1024 bits", small, false, false},
		{"on a security key", sk, false, false},
		{"a certificate", cert.Line, false, false},
		{"none", "", false, false},
		{"a newline", "\n", false, false},
		{"two newlines", line + "\n\n", false, false},
		{"two keys", line + "\n" + line, false, false},
		{"with a comment", line + " ann@laptop", false, false},
		{"with options", "restrict " + line, false, false},
		{"with a space before", " " + line, false, false},
		{"with two spaces", strings.Replace(line, " ", "  ", 1), false, false},
		{"with a carriage return", line + "\r\n", false, false},
		{"without its padding or last byte", line[:len(line)-1], false, false},
		{"with a byte more", line + "AAAA", false, false},
		{"with another type's name", "ssh-rsa " + strings.TrimPrefix(line, "ssh-ed25519 "), false, false},
		{"the type alone", "ssh-ed25519", false, false},
		{"long", "ssh-ed25519 " + strings.Repeat("A", 5000), false, false},
		{"noise", "\x00\xff", false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for what, f := range map[string]struct {
				parse func(string) (ssh.PublicKey, error)
				want  bool
			}{"user": {SSHUserKey, tt.user}, "host": {SSHHostKey, tt.host}} {
				key, err := f.parse(tt.line)
				switch {
				case f.want && (err != nil || SSHLine(key) != strings.TrimSuffix(tt.line, "\n")):
					t.Errorf("as a %s's: %v, %v", what, key, err)
				case !f.want && (key != nil || sft.CodeOf(err) != sft.Invalid):
					t.Errorf("as a %s's it is taken: %v, %v", what, key, err)
				}
			}
		})
	}
}

// lookSSH describes everything in a certificate that counts.
func lookSSH(c *ssh.Certificate) string {
	at := func(v uint64) string { return time.Unix(int64(v), 0).UTC().Format(time.RFC3339) }
	return fmt.Sprintf("type %d\nkey id %s\nprincipals %q\nlife %s to %s\ncritical %v\nextensions %q\nreserved %d",
		c.CertType, c.KeyId, c.ValidPrincipals, at(c.ValidAfter), at(c.ValidBefore), c.CriticalOptions, slices.Sorted(maps.Keys(c.Extensions)), len(c.Reserved))
}

func issueSSHUser(a *Authority, k ssh.PublicKey, g SSHGrant, now time.Time) (SSHCertificate, error) {
	d, err := a.DraftSSHUser(k, g, now)
	if err != nil {
		return SSHCertificate{}, err
	}
	return d.Sign()
}

func TestSSHCertificates(t *testing.T) {
	users, hosts := authority(t, SSHUser, now), authority(t, SSHHost, now)
	user := func(change func(*SSHGrant)) func(ssh.PublicKey) (SSHCertificate, error) {
		g := grant
		change(&g)
		return func(k ssh.PublicKey) (SSHCertificate, error) { return issueSSHUser(users, k, g, now) }
	}
	host := func(names ...string) func(ssh.PublicKey) (SSHCertificate, error) {
		return func(k ssh.PublicKey) (SSHCertificate, error) { return hosts.IssueSSHHost(k, "s-1", names, now) }
	}
	const userIs = "type 1\nkey id sft:session/x-1/user/u-1\nprincipals [\"sft:s-1:ann\"]\nlife 2026-03-01T08:59:00Z to 2026-03-01T09:05:00Z\ncritical map[]\nextensions "
	hostIs := func(principals string) string {
		return "type 2\nkey id sft:server/s-1\nprincipals [" + principals + "]\nlife 2026-03-01T08:59:00Z to 2026-03-08T09:00:00Z\ncritical map[]\nextensions []\nreserved 0"
	}
	var many []string
	for i := range 100 {
		many = append(many, fmt.Sprint("n", i))
	}
	tests := []struct {
		name  string
		by    *Authority
		issue func(ssh.PublicKey) (SSHCertificate, error)
		want  string
	}{
		{"to a target", users, user(func(*SSHGrant) {}), userIs + "[\"permit-X11-forwarding\" \"permit-port-forwarding\" \"permit-pty\" \"permit-user-rc\"]\nreserved 0"},
		{"with an agent", users, user(func(g *SSHGrant) { g.ForwardAgent = true }), userIs + "[\"permit-X11-forwarding\" \"permit-agent-forwarding\" \"permit-port-forwarding\" \"permit-pty\" \"permit-user-rc\"]\nreserved 0"},
		{"to a hop", users, user(func(g *SSHGrant) { g.Hop = true }), userIs + "[\"permit-port-forwarding\"]\nreserved 0"},
		{"to a hop, which no agent follows", users, user(func(g *SSHGrant) { g.Hop, g.ForwardAgent = true, true }), userIs + "[\"permit-port-forwarding\"]\nreserved 0"},
		{"of a host without names", hosts, host(), hostIs(`"s-1"`)},
		{"of a host with names", hosts, host("WEB01", "web01.example.com", "web01", "web_1"), hostIs(`"s-1" "web01" "web01.example.com" "web_1"`)},
		{"of a host that asks for addresses", hosts, host("10.0.0.1", "2001:db8::1", "fe80::1", "ok"), hostIs(`"s-1" "ok"`)},
		{"of a host that asks for ids", hosts, host("01890a5d-ac96-774b-bcce-b302099a8057", "01890A5D-AC96-774B-BCCE-B302099A8057", "s-1"), hostIs(`"s-1"`)},
		{"of a host that asks for patterns", hosts, host("*", "web*", "!web", "web?", "a,b", "", "a b", "web\n", "-web", "sft:s-2:ann", "."), hostIs(`"s-1"`)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			key := edKey(t)
			got, err := tt.issue(key)
			if err != nil {
				t.Fatal(err)
			}
			c, err := parseSSHCertificate(got.Line)
			if err != nil {
				t.Fatal(err)
			}
			if s := lookSSH(c); s != tt.want {
				t.Errorf("the certificate is\n%s, want\n%s", s, tt.want)
			}
			if SSHLine(c.Key) != SSHLine(key) || SSHLine(c.SignatureKey) != tt.by.AuthorizedKey() || got.Serial != c.Serial || c.Serial == 0 || uint64(got.Until.Unix()) != c.ValidBefore {
				t.Errorf("key, CA, serial or end are others: %+v", got)
			}
			again, err := tt.issue(key)
			if err != nil || again.Serial == got.Serial {
				t.Errorf("another one has the serial %d too, %v", again.Serial, err)
			}
		})
	}
	t.Run("of a host with a hundred names", func(t *testing.T) {
		got, err := host(many...)(edKey(t))
		if err != nil {
			t.Fatal(err)
		}
		if c, err := parseSSHCertificate(got.Line); err != nil || len(c.ValidPrincipals) != maxSSHNames {
			t.Errorf("it has %d principals, %v", len(c.ValidPrincipals), err)
		}
	})
	for _, k := range []ssh.PublicKey{ecKey(t, elliptic.P256()), ecKey(t, elliptic.P384()), ecKey(t, elliptic.P521()), rsaKey(t, 2048)} {
		if _, err := host("web01")(k); err != nil {
			t.Errorf("a host's %s key: %v", k.Type(), err)
		}
		if _, err := user(func(*SSHGrant) {})(k); err == nil || !strings.Contains(err.Error(), "of a type that is not allowed") {
			t.Errorf("a user's %s key: %v", k.Type(), err)
		}
	}
	if _, err := host("web01")(rsaKey(t, 1024)); err == nil || !strings.Contains(err.Error(), "of a type that is not allowed") {
		t.Errorf("a host's small key: %v", err)
	}
}

func TestSSHCertificatesThatAreNotIssued(t *testing.T) {
	users, hosts := authority(t, SSHUser, now), authority(t, SSHHost, now)
	key := edKey(t)
	for name, change := range map[string]func(*SSHGrant){
		"no session": func(g *SSHGrant) { g.Session = "" }, "an odd session": func(g *SSHGrant) { g.Session = "x/user/root" },
		"no user": func(g *SSHGrant) { g.User = "" }, "an odd user": func(g *SSHGrant) { g.User = "a b" },
		"no server": func(g *SSHGrant) { g.Server = "" }, "an odd server": func(g *SSHGrant) { g.Server = "s:root" },
		"no login": func(g *SSHGrant) { g.Login = "" }, "an odd login": func(g *SSHGrant) { g.Login = "ann:root" },
		"a login of two": func(g *SSHGrant) { g.Login = "ann,root" }, "a login with a newline": func(g *SSHGrant) { g.Login = "ann\nroot" },
	} {
		g := grant
		change(&g)
		if c, err := issueSSHUser(users, key, g, now); err == nil || c.Line != "" {
			t.Errorf("%s: a certificate was issued", name)
		}
	}
	for _, id := range []string{"", "a b", "*", "s-1,s-2"} {
		if c, err := hosts.IssueSSHHost(key, id, nil, now); err == nil || c.Line != "" {
			t.Errorf("a certificate for the server %q was issued", id)
		}
	}
	for _, kind := range []Kind{Access, Host, Platform, SSHHost} {
		if _, err := issueSSHUser(authority(t, kind, now), key, grant, now); err == nil {
			t.Errorf("the %s CA signs for users", kind)
		}
	}
	for _, kind := range []Kind{Access, Host, Platform, SSHUser} {
		if _, err := authority(t, kind, now).IssueSSHHost(key, "s-1", nil, now); err == nil {
			t.Errorf("the %s CA signs for hosts", kind)
		}
	}
	late := now.Add(life - time.Minute)
	if _, err := issueSSHUser(users, key, grant, late); err == nil || !strings.Contains(err.Error(), "inside the CA's life") {
		t.Errorf("a certificate that outlives its CA: %v", err)
	}
}

// The last look refuses what was not meant, and what no profile allows.
func TestCheckSSH(t *testing.T) {
	users, hosts, other := authority(t, SSHUser, now), authority(t, SSHHost, now), authority(t, SSHUser, now)
	userKey, hostKey := edKey(t), ecKey(t, elliptic.P256())
	unix := func(d time.Duration) uint64 { return uint64(now.Add(d).Unix()) }
	meantUser := func() *ssh.Certificate {
		return &ssh.Certificate{Key: userKey, Serial: 7, CertType: ssh.UserCert, KeyId: "sft:session/x-1/user/u-1", ValidPrincipals: []string{"sft:s-1:ann"},
			ValidAfter: unix(-time.Minute), ValidBefore: unix(5 * time.Minute), Permissions: ssh.Permissions{Extensions: map[string]string{"permit-pty": ""}}}
	}
	meantHost := func() *ssh.Certificate {
		return &ssh.Certificate{Key: hostKey, Serial: 7, CertType: ssh.HostCert, KeyId: "sft:server/s-1", ValidPrincipals: []string{"s-1", "web01"},
			ValidAfter: unix(-time.Minute), ValidBefore: unix(SSHHostLife)}
	}
	sign := func(a *Authority, c *ssh.Certificate) *ssh.Certificate {
		t.Helper()
		s, err := ssh.NewSignerFromSigner(a.key)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.SignCert(rand.Reader, s); err != nil {
			t.Fatal(err)
		}
		p, err := parseSSHCertificate(SSHLine(c))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	both := func(change func(c *ssh.Certificate)) func(t, c *ssh.Certificate) {
		return func(t, c *ssh.Certificate) { change(t); change(c) }
	}
	one := func(change func(c *ssh.Certificate)) func(t, c *ssh.Certificate) {
		return func(_, c *ssh.Certificate) { change(c) }
	}
	tests := []struct {
		name   string
		host   bool
		change func(t, c *ssh.Certificate) // what was meant, what was made
		want   string
	}{
		{"a user's as meant", false, one(func(*ssh.Certificate) {}), ""},
		{"a host's as meant", true, one(func(*ssh.Certificate) {}), ""},
		{"another key", false, one(func(c *ssh.Certificate) { c.Key = edKey(t) }), "the key is another"},
		{"a host's in place of a user's", false, both(func(c *ssh.Certificate) { c.CertType = ssh.HostCert }), "of the other type"},
		{"a user's in place of a host's", true, both(func(c *ssh.Certificate) { c.CertType = ssh.UserCert }), "of the other type"},
		{"another serial", false, one(func(c *ssh.Certificate) { c.Serial++ }), "serial or key id"},
		{"no serial", false, both(func(c *ssh.Certificate) { c.Serial = 0 }), "serial or key id"},
		{"another key id", false, one(func(c *ssh.Certificate) { c.KeyId = "x" }), "serial or key id"},
		{"no key id", false, both(func(c *ssh.Certificate) { c.KeyId = "" }), "serial or key id"},
		{"something reserved", false, one(func(c *ssh.Certificate) { c.Reserved = []byte{1} }), "serial or key id"},
		{"a second longer", false, one(func(c *ssh.Certificate) { c.ValidBefore++ }), "it would be good from"},
		{"a second longer, as meant", false, both(func(c *ssh.Certificate) { c.ValidBefore++ }), "it would be good from"},
		{"a second earlier, as meant", false, both(func(c *ssh.Certificate) { c.ValidAfter-- }), "it would be good from"},
		{"a host's a second longer, as meant", true, both(func(c *ssh.Certificate) { c.ValidBefore++ }), "it would be good from"},
		{"forever, as meant", false, both(func(c *ssh.Certificate) { c.ValidBefore = ssh.CertTimeInfinity }), "it would be good from"},
		{"always, as meant", false, both(func(c *ssh.Certificate) { c.ValidAfter, c.ValidBefore = 0, ssh.CertTimeInfinity }), "it would be good from"},
		{"ends before it begins, as meant", false, both(func(c *ssh.Certificate) { c.ValidAfter, c.ValidBefore = c.ValidBefore, c.ValidAfter }), "it would be good from"},
		{"not yet good, as meant", false, both(func(c *ssh.Certificate) { c.ValidAfter = unix(time.Second) }), "not yet valid"},
		{"a critical option, as meant", false, both(func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"force-command": "x"} }), "critical options"},
		{"an extension more", false, one(func(c *ssh.Certificate) { c.Extensions["permit-agent-forwarding"] = "" }), "the extensions are others"},
		{"an extension less", false, one(func(c *ssh.Certificate) { c.Extensions = nil }), "the extensions are others"},
		{"an extension with a value", false, one(func(c *ssh.Certificate) { c.Extensions["permit-pty"] = "x" }), "the extensions are others"},
		{"a host's with an extension, as meant", true, both(func(c *ssh.Certificate) { c.Extensions = map[string]string{"permit-pty": ""} }), "the extensions are others"},
		{"a principal more", false, one(func(c *ssh.Certificate) { c.ValidPrincipals = append(c.ValidPrincipals, "root") }), "2 principals"},
		{"another principal", false, one(func(c *ssh.Certificate) { c.ValidPrincipals = []string{"sft:s-2:ann"} }), "the principals are others"},
		{"two principals, as meant", false, both(func(c *ssh.Certificate) { c.ValidPrincipals = []string{"sft:s-1:ann", "sft:s-1:bob"} }), "2 principals"},
		{"no principal, as meant", false, both(func(c *ssh.Certificate) { c.ValidPrincipals = nil }), "0 principals"},
		{"a host's without a principal, as meant", true, both(func(c *ssh.Certificate) { c.ValidPrincipals = nil }), "0 principals"},
		{"a plain login, as meant", false, both(func(c *ssh.Certificate) { c.ValidPrincipals = []string{"root"} }), "cannot be a principal"},
		{"a host's pattern, as meant", true, both(func(c *ssh.Certificate) { c.ValidPrincipals = []string{"s-1", "*"} }), "cannot be a principal"},
		{"a host's address, as meant", true, both(func(c *ssh.Certificate) { c.ValidPrincipals = []string{"s-1", "10.0.0.1"} }), "cannot be a principal"},
		{"another host's id, as meant", true, both(func(c *ssh.Certificate) {
			c.ValidPrincipals = []string{"s-1", "01890a5d-ac96-774b-bcce-b302099a8057"}
		}), "cannot be a principal"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, p, key, meant := users, sshUserProfile, userKey, meantUser
			if tt.host {
				a, p, key, meant = hosts, sshHostProfile, hostKey, meantHost
			}
			m, c := meant(), meant()
			tt.change(m, c)
			wantError(t, SSHDraft{a: a, p: p, key: key, t: m, now: now}.look(sign(a, c)), tt.want)
		})
	}
	t.Run("by another CA", func(t *testing.T) {
		wantError(t, SSHDraft{a: users, p: sshUserProfile, key: userKey, t: meantUser(), now: now}.look(sign(other, meantUser())), "the signature is not the CA's")
	})
	t.Run("with another's signature", func(t *testing.T) {
		c := sign(users, meantUser())
		c.Signature = sign(users, meantUser()).Signature // of another nonce
		wantError(t, SSHDraft{a: users, p: sshUserProfile, key: userKey, t: meantUser(), now: now}.look(c), "signature does not verify")
	})
	t.Run("a user's ECDSA key, as meant", func(t *testing.T) {
		m, c := meantUser(), meantUser()
		m.Key, c.Key = hostKey, hostKey
		wantError(t, SSHDraft{a: users, p: sshUserProfile, key: hostKey, t: m, now: now}.look(sign(users, c)), "of a type that is not allowed")
	})
}

// OpenSSH reads the certificates as they are meant.
func TestSSHKeygenReadsThem(t *testing.T) {
	keygen, err := exec.LookPath("ssh-keygen")
	if err != nil {
		t.Skip("no ssh-keygen here")
	}
	g := grant
	g.ForwardAgent = true
	users, hosts := authority(t, SSHUser, now), authority(t, SSHHost, now)
	user, err := issueSSHUser(users, edKey(t), g, now)
	if err != nil {
		t.Fatal(err)
	}
	host, err := hosts.IssueSSHHost(rsaKey(t, 2048), "s-1", []string{"web01"}, now)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		c    SSHCertificate
		ca   *Authority
		want []string
	}{
		"user": {user, users, []string{"ssh-ed25519-cert-v01@openssh.com user certificate", `Key ID: "sft:session/x-1/user/u-1"`, "Serial: " + fmt.Sprint(user.Serial),
			"Valid: from 2026-03-01T08:59:00 to 2026-03-01T09:05:00", "Principals: sft:s-1:ann Critical Options: (none)",
			"Extensions: permit-X11-forwarding permit-agent-forwarding permit-port-forwarding permit-pty permit-user-rc"}},
		"host": {host, hosts, []string{"ssh-rsa-cert-v01@openssh.com host certificate", `Key ID: "sft:server/s-1"`, "Serial: " + fmt.Sprint(host.Serial),
			"Valid: from 2026-03-01T08:59:00 to 2026-03-08T09:00:00", "Principals: s-1 web01 Critical Options: (none) Extensions: (none)"}},
	} {
		path := filepath.Join(t.TempDir(), name+"-cert.pub")
		if err := os.WriteFile(path, []byte(tt.c.Line+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(keygen, "-L", "-f", path)
		cmd.Env = append(os.Environ(), "TZ=UTC")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
		got := strings.Join(strings.Fields(string(out)), " ")
		pub, _, _, _, err := ssh.ParseAuthorizedKey([]byte(tt.ca.AuthorizedKey()))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range append(tt.want, "Signing CA: ED25519 "+ssh.FingerprintSHA256(pub)) {
			if !strings.Contains(got, want) {
				t.Errorf("ssh-keygen says of the %s's\n%s\nwithout %q", name, got, want)
			}
		}
	}
}

// FuzzSSHKey checks what must hold whatever is sent: a key that comes back is
// spelled as it was sent and of a type that is allowed, every refusal is the
// sender's fault, and what is taken can be signed.
func FuzzSSHKey(f *testing.F) {
	a := authority(f, SSHHost, now)
	for _, k := range []ssh.PublicKey{edKey(f), ecKey(f, elliptic.P256()), ecKey(f, elliptic.P521()), rsaKey(f, 2048), rsaKey(f, 1024)} {
		f.Add(SSHLine(k))
		f.Add(SSHLine(k) + " comment\n")
	}
	f.Add("")
	f.Add("ssh-ed25519 AAAA")
	f.Add("restrict ssh-ed25519 AAAA")
	f.Fuzz(func(t *testing.T, line string) {
		key, err := SSHHostKey(line)
		user, uerr := SSHUserKey(line)
		if uerr == nil && (err != nil || user.Type() != ssh.KeyAlgoED25519) {
			t.Errorf("a user's %s key is taken, and as a host's not: %v", user.Type(), err)
		}
		if err != nil {
			if key != nil || sft.CodeOf(err) != sft.Invalid {
				t.Errorf("SSHHostKey = %v, %v", key, err)
			}
			return
		}
		if SSHLine(key) != strings.TrimSuffix(line, "\n") || !slices.Contains(hostKeys, key.Type()) {
			t.Errorf("%q is read as %q", line, SSHLine(key))
		}
		if _, err := a.IssueSSHHost(key, "s-1", nil, now); err != nil {
			t.Errorf("it was taken and cannot be signed: %v", err)
		}
	})
}

// person is the key of somebody who has the certificate that by issues for g at
// that time.
func person(t *testing.T, by *Authority, g SSHGrant, at time.Time) ssh.Signer {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	issued, err := issueSSHUser(by, sshPublic(t, pub), g, at)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := parseSSHCertificate(issued.Line)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := ssh.NewSignerFromSigner(priv)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewCertSigner(cert, plain)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

// OpenSSH's server lets in who holds a certificate for that very account on
// that very server, and shows one that is good for its id.
func TestSSHDTakesThem(t *testing.T) {
	sshd := "/usr/sbin/sshd"
	if _, err := os.Stat(sshd); err != nil || os.Getuid() != 0 {
		t.Skip("no sshd here, or not root")
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		t.Fatal(err)
	}
	users, hosts, others := authority(t, SSHUser, time.Now()), authority(t, SSHHost, time.Now()), authority(t, SSHUser, time.Now())
	dir := t.TempDir()
	// Root alone may change the files and what is above them.
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	_, hostKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(hostKey, "")
	if err != nil {
		t.Fatal(err)
	}
	hostCert, err := hosts.IssueSSHHost(sshPublic(t, hostKey.Public()), "s-1", []string{"web01"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	config := write("sshd_config", fmt.Sprintf(`HostKey %s
HostCertificate %s
TrustedUserCAKeys %s
AuthorizedPrincipalsFile %s
AuthorizedKeysFile none
AuthenticationMethods publickey
PermitRootLogin yes
StrictModes no
UsePAM no`, write("key", strings.TrimSpace(string(pem.EncodeToMemory(block)))), write("key-cert.pub", hostCert.Line), write("ca.pub", users.AuthorizedKey()), write("principals", "sft:s-1:root")))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dial := func(signer ssh.Signer, id string) (*ssh.Client, error) {
		t.Helper()
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		f, err := server.(*net.TCPConn).File()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(sshd, "-i", "-e", "-f", config)
		cmd.Stdin, cmd.Stdout = f, f
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		f.Close()
		server.Close()
		t.Cleanup(func() { conn.Close(); cmd.Wait() })
		checker := ssh.CertChecker{IsHostAuthority: func(k ssh.PublicKey, _ string) bool { return SSHLine(k) == hosts.AuthorizedKey() }}
		c, chans, reqs, err := ssh.NewClientConn(conn, id+":22", &ssh.ClientConfig{User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)},
			HostKeyCallback: checker.CheckHostKey, HostKeyAlgorithms: []string{ssh.CertAlgoED25519v01}, Timeout: 20 * time.Second})
		if err != nil {
			return nil, err
		}
		return ssh.NewClient(c, chans, reqs), nil
	}
	g := SSHGrant{Session: "x-1", User: "u-1", Server: "s-1", Login: "root"}
	with := func(change func(*SSHGrant)) SSHGrant { h := g; change(&h); return h }
	for _, tt := range []struct {
		name  string
		by    *Authority
		grant SSHGrant
		at    time.Time
		id    string
		want  string // in the error
		pty   bool
	}{
		{"to a target", users, g, time.Now(), "s-1", "", true},
		{"to a hop", users, with(func(g *SSHGrant) { g.Hop = true }), time.Now(), "s-1", "", false},
		{"for another server", users, with(func(g *SSHGrant) { g.Server = "s-2" }), time.Now(), "s-1", "unable to authenticate", false},
		{"for another login", users, with(func(g *SSHGrant) { g.Login = "ann" }), time.Now(), "s-1", "unable to authenticate", false},
		{"by another project's CA", others, g, time.Now(), "s-1", "unable to authenticate", false},
		{"of ten minutes ago", users, g, time.Now().Add(-10 * time.Minute), "s-1", "unable to authenticate", false},
		{"to a host that is another server", users, g, time.Now(), "s-2", `principal "s-2" not in the set`, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := dial(person(t, tt.by, tt.grant, tt.at), tt.id)
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("it is %v, want %q", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			s, err := c.NewSession()
			if err != nil {
				t.Fatal(err)
			}
			if err := s.RequestPty("xterm", 24, 80, nil); (err == nil) != tt.pty {
				t.Errorf("a terminal: %v, want %v", err, tt.pty)
			}
			on, err := c.Dial("tcp", l.Addr().String()) // the listener is as good as any
			if err != nil {
				t.Errorf("going on: %v", err)
			} else {
				on.Close()
				if a, err := l.Accept(); err == nil {
					a.Close()
				}
			}
		})
	}
	// A session goes on when its certificate has ended, and the certificate
	// opens no other.
	t.Run("that ends meanwhile", func(t *testing.T) {
		const left = 4 * time.Second
		signer := person(t, users, g, time.Now().Add(left-SSHUserLife))
		c, err := dial(signer, "s-1")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		in, err := s.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		s.Stdout = &out
		if err := s.Start("cat"); err != nil {
			t.Fatal(err)
		}
		for time.Now().Before(time.Unix(int64(signer.PublicKey().(*ssh.Certificate).ValidBefore), 0)) {
			time.Sleep(50 * time.Millisecond)
		}
		if _, err := dial(signer, "s-1"); err == nil || !strings.Contains(err.Error(), "unable to authenticate") {
			t.Errorf("a new connection: %v, want a refusal", err)
		}
		if _, err := io.WriteString(in, "still here"); err != nil {
			t.Error(err)
		}
		in.Close()
		if err := s.Wait(); err != nil || out.String() != "still here" {
			t.Errorf("the session of before says %q: %v", &out, err)
		}
		if on, err := c.Dial("tcp", l.Addr().String()); err != nil {
			t.Errorf("going on by the connection of before: %v", err)
		} else {
			on.Close()
			if a, err := l.Accept(); err == nil {
				a.Close()
			}
		}
	})
}
