package sshd

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"sft"
	"sft/internal/conf"
)

// The names of host certificates begin and end so.
const (
	certPrefix = "sftd-host-"
	certSuffix = "-cert.pub"
)

// publicKey returns the public half of a host key, as in authorized_keys
// without a comment. The file with the private half is never opened.
func publicKey(file string) (string, error) {
	b, err := readCapped(file + ".pub")
	if err != nil {
		return "", err
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(b)
	if err != nil {
		return "", err
	}
	if _, ok := key.(*ssh.Certificate); ok {
		return "", errors.New("it is a certificate")
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))), nil
}

// certFile is where the certificate of a host key is, or "".
func (s *Server) certFile(hostKey string) string {
	key, err := publicKey(hostKey)
	if err != nil {
		return ""
	}
	return s.certOf(key)
}

func (s *Server) certOf(key string) string {
	kind, _, _ := strings.Cut(key, " ")
	sum := sha256.Sum256([]byte(key))
	return filepath.Join(s.files.Dir, certPrefix+kind+"-"+hex.EncodeToString(sum[:4])+certSuffix)
}

// Due returns the host keys that want a certificate: they have none that is for
// the server of that id and by one of the CAs (keys as in authorized_keys; none:
// by any), or half of its life is over.
func (s *Server) Due(serverID string, cas []string, now time.Time) (keys []string) {
	h, ok := s.Host()
	if !ok {
		return nil
	}
	for _, key := range h.Keys {
		b, err := readCapped(s.certOf(key))
		if err == nil {
			var c *ssh.Certificate
			if c, err = checkCert(string(b), key, serverID, now); err == nil {
				after, before := time.Unix(int64(c.ValidAfter), 0), time.Unix(int64(c.ValidBefore), 0)
				if now.Before(after.Add(before.Sub(after)/2)) && (len(cas) == 0 || slices.ContainsFunc(cas, signed(c))) {
					continue
				}
			}
		}
		keys = append(keys, key)
	}
	return keys
}

// Take stores certificates for host keys, as in authorized_keys and in the order
// of keys. The next Sync puts them to use. All are checked before one is
// written.
func (s *Server) Take(serverID string, keys, certs []string, now time.Time) error {
	if len(certs) != len(keys) {
		return fmt.Errorf("the platform sent %d certificates for %d SSH host keys", len(certs), len(keys))
	}
	for i, key := range keys {
		if _, err := checkCert(certs[i], key, serverID, now); err != nil {
			return fmt.Errorf("the platform's certificate for an SSH host key cannot be used: %w", err)
		}
	}
	if err := s.makeDirs(); err != nil {
		return err
	}
	for i, key := range keys {
		if err := conf.WriteFile(s.certOf(key), []byte(strings.TrimSpace(certs[i])+"\n"), 0o644); err != nil {
			return err
		}
	}
	// Those of keys that are no more are not the server's any longer.
	old, _ := filepath.Glob(filepath.Join(s.files.Dir, certPrefix+"*"+certSuffix))
	h, _ := s.Host()
	for _, f := range old {
		if !slices.ContainsFunc(h.Keys, func(k string) bool { return s.certOf(k) == f }) {
			os.Remove(f)
		}
	}
	return nil
}

// signed tells of a CA's key whether it has signed c.
func signed(c *ssh.Certificate) func(ca string) bool {
	return func(ca string) bool {
		k, _, _, _, err := ssh.ParseAuthorizedKey([]byte(ca))
		return err == nil && bytes.Equal(k.Marshal(), c.SignatureKey.Marshal())
	}
}

// checkCert parses a host certificate and refuses one that is not for key, not
// for the server of that id, or not valid now.
func checkCert(text, key, serverID string, now time.Time) (*ssh.Certificate, error) {
	p, _, _, rest, err := ssh.ParseAuthorizedKey([]byte(text))
	if err != nil {
		return nil, err
	}
	c, ok := p.(*ssh.Certificate)
	switch {
	case !ok || len(bytes.TrimSpace(rest)) > 0:
		return nil, errors.New("it is no certificate, or not one alone")
	case c.CertType != ssh.HostCert:
		return nil, errors.New("it is not for a host")
	case strings.TrimSpace(string(ssh.MarshalAuthorizedKey(c.Key))) != key:
		return nil, errors.New("it is for another key")
	case !slices.Contains(c.ValidPrincipals, serverID):
		return nil, errors.New("it is for another server")
	case c.ValidBefore > 1<<40 || int64(c.ValidAfter) > now.Add(5*time.Minute).Unix() || int64(c.ValidBefore) <= now.Unix():
		return nil, errors.New("it is not valid now")
	}
	return c, nil
}

// Principal is the name that a certificate must be for, to sign in to a server
// as login.
func Principal(serverID, login string) string { return "sft:" + serverID + ":" + login }

// HasPrincipal reports whether login is let in by the principal of a server of
// that id.
func (s *Server) HasPrincipal(serverID, login string) bool {
	b, err := readCapped(filepath.Join(s.principalsDir(), login))
	return err == nil && string(b) == Principal(serverID, login)+"\n"
}

func (s *Server) principalsDir() string { return filepath.Dir(s.files.Principals) }

// SetPrincipals lets exactly these logins in, each by the principal that it
// maps to. Those that are not among them are kept out first. Files that
// somebody else has put into the folder are left alone; one in the place of a
// login's is an error, and keeps that login out.
func (s *Server) SetPrincipals(want map[string]string) error {
	s.principals.Lock()
	defer s.principals.Unlock()
	dir := s.principalsDir()
	if len(want) > 0 {
		if err := s.makeDirs(); err != nil {
			return err
		}
	}
	list, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var bad []error
	if err != nil {
		bad = append(bad, err)
	}
	for _, e := range list {
		login := e.Name()
		file := filepath.Join(dir, login)
		if want[login] != "" {
			continue
		}
		if ours(file) || strings.HasPrefix(login, ".new-") {
			if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
				bad = append(bad, err)
			}
		}
	}
	for login, principal := range want {
		file := filepath.Join(dir, login)
		if sft.CheckLogin(login) != nil {
			bad = append(bad, fmt.Errorf("%s is no login", sft.Quote(login)))
			continue
		}
		line := principal + "\n"
		if i, err := os.Lstat(file); err == nil {
			if !ours(file) {
				bad = append(bad, &sft.Error{Code: sft.Conflict, Msg: file + " was not written by sftd", Hint: "move it away, or set AuthorizedPrincipalsFile in sftd.yaml to a folder of its own"})
				continue
			}
			if b, err := readCapped(file); err == nil && string(b) == line && i.Mode().Perm() == 0o644 && ownedByUs(i) {
				continue
			}
		}
		if err := conf.WriteFile(file, []byte(line), 0o644); err != nil {
			bad = append(bad, err)
		}
	}
	return errors.Join(bad...)
}

// ours reports whether a file of principals is one that SetPrincipals wrote.
func ours(file string) bool {
	i, err := os.Lstat(file)
	if err != nil || !i.Mode().IsRegular() || i.Size() > 1<<10 {
		return false
	}
	b, err := readCapped(file)
	if err != nil {
		return false
	}
	line, more, ok := strings.Cut(string(b), "\n")
	return ok && more == "" && strings.HasPrefix(line, "sft:") && strings.HasSuffix(line, ":"+filepath.Base(file))
}
