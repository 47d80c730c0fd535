package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"sft"
	"sft/internal/api"
)

// An sshd is a real one on loopback, set up as an agent sets one up, and the
// authorities that it trusts. It is db01, with the id s5.
type sshd struct {
	cmd            *exec.Cmd
	dir, login     string
	port           int
	userCA, hostCA ssh.Signer
	hostKey        string
	names          map[string]bool
	life           time.Duration // of what it issues
	issued         int
}

func authority() (ssh.Signer, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return ssh.NewSignerFromSigner(key)
}

func line(k ssh.PublicKey) string { return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k))) }

func newSSHD(dir string) (d *sshd, err error) {
	u, err := user.Current()
	if err != nil {
		return nil, err
	}
	// A socket's path is short, and so is the folder that it is in.
	if dir, err = os.MkdirTemp("", "sshd"); err != nil {
		return nil, err
	}
	d = &sshd{dir: dir, login: u.Username, names: map[string]bool{"db01": true, "s5": true, "prod/db01": true, "impostor": true}, life: 5 * time.Minute}
	var errs [4]error
	d.userCA, errs[0] = authority()
	d.hostCA, errs[1] = authority()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err = errors.Join(append(errs[:], err)...); err != nil {
		return nil, err
	}
	host, err := ssh.NewSignerFromSigner(key)
	if err != nil {
		return nil, err
	}
	d.hostKey = line(host.PublicKey())
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		return nil, err
	}
	cert := &ssh.Certificate{Key: host.PublicKey(), CertType: ssh.HostCert, ValidPrincipals: []string{"s5", "db01"},
		ValidAfter: uint64(time.Now().Add(-time.Hour).Unix()), ValidBefore: uint64(time.Now().Add(24 * time.Hour).Unix())}
	if err := cert.SignCert(rand.Reader, d.hostCA); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	d.port = l.Addr().(*net.TCPAddr).Port
	l.Close()
	config := fmt.Sprintf(`ListenAddress 127.0.0.1
Port %d
HostKey %[2]s/key
HostCertificate %[2]s/key-cert.pub
TrustedUserCAKeys %[2]s/ca
AuthorizedPrincipalsFile %[2]s/principals
AuthorizedKeysFile none
AuthenticationMethods publickey
PermitRootLogin prohibit-password
StrictModes no
PidFile none
UsePAM no
AcceptEnv SAID
Subsystem sftp internal-sftp
`, d.port, dir)
	for name, text := range map[string]string{"key": string(pem.EncodeToMemory(block)), "key-cert.pub": line(cert), "ca": line(d.userCA.PublicKey()),
		"principals": "sft:s5:" + d.login, "config": config} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text+"\n"), 0o600); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil && os.Getuid() == 0 {
		return nil, err
	}
	d.cmd = exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", filepath.Join(dir, "config"))
	var out bytes.Buffer
	d.cmd.Stderr = &out
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	for n := 0; ; n++ {
		c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(d.port))
		if err == nil {
			c.Close()
			return d, nil
		}
		if n == 200 {
			d.stop()
			return nil, fmt.Errorf("sshd does not listen: %w: %s", err, out.String())
		}
		time.Sleep(25 * time.Millisecond)
	}
}

func (d *sshd) stop() {
	d.cmd.Process.Kill()
	d.cmd.Wait()
	os.RemoveAll(d.dir)
}

// route answers a request for a way by SSH. Names say what is wrong with it.
func (d *sshd) route(c api.ConnectRequest) (api.ConnectReply, *sft.Error) {
	if !d.names[sft.Fold(c.Target)] && c.Target != "closed" {
		return api.ConnectReply{}, &sft.Error{Code: sft.NotFound, Msg: "there is no server " + sft.Quote(c.Target), Hint: `see "sft list-servers" for those that you can reach`}
	}
	d.issued++
	now := time.Now()
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(c.SSHPublicKey))
	if err != nil {
		return api.ConnectReply{}, &sft.Error{Code: sft.Invalid, Msg: "no SSH key"}
	}
	cert := &ssh.Certificate{Key: key, CertType: ssh.UserCert, KeyId: "sft:n1:u1", ValidPrincipals: []string{"sft:s5:" + d.login},
		ValidAfter: uint64(now.Add(-time.Minute).Unix()), ValidBefore: uint64(now.Add(d.life).Unix()),
		Permissions: ssh.Permissions{Extensions: map[string]string{"permit-pty": "", "permit-port-forwarding": "", "permit-agent-forwarding": "", "permit-user-rc": ""}}}
	if err := cert.SignCert(rand.Reader, d.userCA); err != nil {
		return api.ConnectReply{}, &sft.Error{Code: sft.Internal, Msg: err.Error()}
	}
	hop := api.Hop{ServerID: "s5", Name: "db01", Address: "127.0.0.1", Port: 4421, BrokerName: "s5.server.sft", Login: d.login,
		SSH: &api.SSHHop{Port: d.port, Certificate: line(cert), HostCAs: []string{line(d.hostCA.PublicKey())}, HostKeys: []string{d.hostKey}}}
	switch c.Target {
	case "impostor":
		other, _ := authority()
		hop.SSH.HostCAs, hop.SSH.HostKeys = []string{line(other.PublicKey())}, nil
	case "closed":
		hop.SSH.Port = 1
	}
	route := []api.Hop{hop}
	for _, v := range slices.Backward(c.Via) {
		via := hop
		via.Name = v
		if v == "closed" {
			s := *hop.SSH
			s.Port = 1
			via.SSH = &s
		}
		route = append([]api.Hop{via}, route...)
	}
	return api.ConnectReply{SessionID: "n1", Route: route, ExpiresAt: now.Add(d.life)}, nil
}

func (p *standIn) login() string {
	if p.sshd != nil {
		return p.sshd.login
	}
	return "alice"
}

// hops are those that the platform knows on the way to any server.
func (p *standIn) hops() []string {
	if p.sshd != nil {
		return []string{"gate1", "gate2"}
	}
	return nil
}
