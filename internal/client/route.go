package client

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"net"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"

	"sft"
	"sft/internal/api"
	"sft/internal/frame"
	"sft/internal/tunnel"
)

// maxHops is how many hops a route may have before its target, and maxKeys how
// many keys a host.
const (
	maxHops = 10
	maxKeys = 16
)

// CheckVia refuses what cannot be a hop: the name of a server, with the login
// on it before an "@" if it is one without an agent.
func CheckVia(via string) error {
	login, name, ok := strings.Cut(via, "@")
	if !ok {
		return sft.CheckTarget(via)
	}
	if err := checkHopLogin(login); err != nil {
		return err
	}
	return sft.CheckTarget(name)
}

// checkHopLogin refuses what cannot be a login on a host that is not ours: it
// goes to ssh as an argument.
func checkHopLogin(login string) error {
	if sft.CheckLogin(login) == nil {
		return nil
	}
	return sft.CheckName("login", login)
}

// A waypoint is a Hop that was checked.
type waypoint struct {
	api.Hop
	signer            ssh.Signer // of Hop.SSH
	hostCAs, hostKeys []ssh.PublicKey
}

// newSSHKey makes the key of one request.
func newSSHKey() (ssh.Signer, string, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, "", err
	}
	s, err := ssh.NewSignerFromSigner(key)
	if err != nil {
		return nil, "", err
	}
	return s, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(s.PublicKey()))), nil
}

// checkReply refuses a reply that cannot be used, before any of it is.
func checkReply(r api.ConnectReply, service string, key *ecdsa.PrivateKey, sshKey ssh.Signer) ([]waypoint, error) {
	bad := func(what string) error {
		return &sft.Error{Code: sft.Internal, Msg: "the platform's answer cannot be used: " + what,
			Hint: "check that sft and the platform are of the same version"}
	}
	switch {
	case len(r.Route) == 0:
		return nil, bad("it names no server")
	case len(r.Route) > maxHops+1:
		return nil, bad("its way has more than " + strconv.Itoa(maxHops) + " hops")
	case r.SessionID == "":
		return nil, bad("it names no session")
	}
	var route []waypoint
	for i, h := range r.Route {
		w := waypoint{Hop: h}
		target := i == len(r.Route)-1
		switch {
		case sft.CheckHostname(h.Address) != nil || sft.CheckHostname(h.Name) != nil:
			return nil, bad("its server has no usable address or name")
		case h.Unmanaged && target:
			return nil, bad("its server has no agent")
		case h.Unmanaged:
			if h.Port < 0 || h.Port > 65535 || h.Login != "" && checkHopLogin(h.Login) != nil {
				return nil, bad("its hop " + h.Name + " has no usable port or login")
			}
			route = append(route, w)
			continue
		case sft.CheckName("server", h.ServerID) != nil:
			return nil, bad("its server has no usable id")
		}
		bySSH := !target || service == frame.SSH
		if bySSH {
			if what := w.readSSH(sshKey); what != "" {
				return nil, bad(h.Name + ": " + what)
			}
		}
		// A broker is what the target is reached by, unless it is by SSH alone.
		if target && (!bySSH || h.SSH.Broker) && (sft.CheckHostname(h.BrokerName) != nil || h.Port < 1 || h.Port > 65535) {
			return nil, bad("its server has no usable address or name")
		}
		route = append(route, w)
	}
	if last := route[len(route)-1]; service == frame.SSH && !last.SSH.Broker {
		return route, nil
	}
	if len(r.Certificate) == 0 {
		return nil, bad("there is no certificate in it")
	}
	leaf, err := x509.ParseCertificate(r.Certificate[0])
	if err != nil {
		return nil, bad("its certificate is not readable")
	}
	if pub, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(key.Public()) {
		return nil, bad("its certificate is for another key")
	}
	return route, nil
}

// readSSH reads what is needed to reach w by SSH, and says what is wrong with
// it.
func (w *waypoint) readSSH(key ssh.Signer) (wrong string) {
	h := w.SSH
	if h == nil {
		return "there is no way by SSH in it"
	}
	if h.Port < 1 || h.Port > 65535 {
		return "its SSH server has no usable port"
	}
	if sft.CheckServerLogin(w.Login) != nil {
		return "its login cannot be used"
	}
	pub, err := oneKey(h.Certificate)
	cert, ok := pub.(*ssh.Certificate)
	switch {
	case err != nil || !ok || cert.CertType != ssh.UserCert:
		return "its SSH certificate is not readable"
	case !bytes.Equal(cert.Key.Marshal(), key.PublicKey().Marshal()):
		return "its SSH certificate is for another key"
	case !slices.Equal(cert.ValidPrincipals, []string{"sft:" + w.ServerID + ":" + w.Login}):
		return "its SSH certificate is for another login"
	}
	if w.signer, err = ssh.NewCertSigner(cert, key); err != nil {
		return "its SSH certificate cannot be used"
	}
	if w.hostCAs, ok = sshKeys(h.HostCAs); !ok {
		return "its host CA's keys are not readable"
	}
	if w.hostKeys, ok = sshKeys(h.HostKeys); !ok {
		return "its host keys are not readable"
	}
	if len(w.hostCAs)+len(w.hostKeys) == 0 {
		return "nothing would prove its SSH server"
	}
	return ""
}

// sshKeys reads the keys of a host, which are no certificates.
func sshKeys(lines []string) (list []ssh.PublicKey, ok bool) {
	if len(lines) > maxKeys {
		return nil, false
	}
	for _, l := range lines {
		k, err := oneKey(l)
		if _, cert := k.(*ssh.Certificate); err != nil || cert {
			return nil, false
		}
		list = append(list, k)
	}
	return list, true
}

// oneKey reads one line as in authorized_keys, without options.
func oneKey(line string) (ssh.PublicKey, error) {
	k, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	if err == nil && (len(options) > 0 || len(bytes.TrimSpace(rest)) > 0) {
		err = &sft.Error{Code: sft.Internal, Msg: "it is more than a key"}
	}
	if err != nil {
		return nil, err
	}
	return k, nil
}

// hop is w as a Path goes through it.
func (w waypoint) hop(netcat bool) tunnel.Hop {
	if w.Unmanaged {
		h := tunnel.Hop{Name: w.Name, Address: w.Address, Port: w.Port, Login: w.Login, Unmanaged: true}
		if w.ServerID != "" { // their settings are for the name, and the record knows where it is
			h.Address, h.HostName = w.Name, w.Address
		}
		return h
	}
	return tunnel.Hop{Name: w.Name, Address: net.JoinHostPort(w.Address, strconv.Itoa(w.SSH.Port)), Login: w.Login, Signer: w.signer,
		ID: w.ServerID, HostCAs: w.hostCAs, HostKeys: w.hostKeys, Netcat: netcat || w.SSH.Netcat}
}
