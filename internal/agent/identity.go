package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"strings"
	"unicode/utf16"

	"sft"
	"sft/internal/api"
	"sft/internal/conf"
)

// An identity is what an enrolled host is to the platform. It is one file, so
// that a host is enrolled or it is not.
type identity struct {
	ServerID string `json:"server_id"`
	Team     string `json:"team"`
	Project  string `json:"project"`
	URL      string `json:"url"`
	CA       []byte `json:"platform_ca,omitempty"` // DER
	Key      []byte `json:"device_key"`            // PKCS #8, DER: signs requests, and nothing else
	Instance string `json:"instance_id,omitempty"` // that enrolled, if it did so by its cloud
	// OldKey is the device key before Key. A platform that was restored from a
	// backup may know that one alone.
	OldKey []byte `json:"old_device_key,omitempty"`
}

// readIdentity returns the identity in the TokenFile, or nothing on a host
// that is not enrolled.
func readIdentity(c Config) (*identity, *ecdsa.PrivateKey, error) {
	b, err := conf.ReadPrivate(c.TokenFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	var id identity
	if err := json.Unmarshal(b, &id); err != nil || id.ServerID == "" {
		return nil, nil, &sft.Error{Code: sft.Invalid, Msg: c.TokenFile + " is not readable", Hint: "remove it and enrol the server again"}
	}
	key, ok := parseKey(id.Key)
	if !ok {
		return nil, nil, &sft.Error{Code: sft.Invalid, Msg: c.TokenFile + " holds no usable key", Hint: "remove it and enrol the server again"}
	}
	return &id, key, nil
}

// parseKey reads a P-256 key, PKCS #8, DER.
func parseKey(der []byte) (*ecdsa.PrivateKey, bool) {
	k, err := x509.ParsePKCS8PrivateKey(der)
	key, ok := k.(*ecdsa.PrivateKey)
	return key, err == nil && ok && key.Curve == elliptic.P256()
}

// maxTokenFile caps the enrollment token file, in bytes.
const maxTokenFile = 16 << 10

// parseToken reads an enrollment token as people write it to a file: ASCII,
// UTF-8 or UTF-16 with a byte order mark (as PowerShell does), any line end,
// blanks around it.
func parseToken(b []byte) (api.EnrollmentToken, error) {
	var t api.EnrollmentToken
	bad := func(msg string) (api.EnrollmentToken, error) {
		return api.EnrollmentToken{}, &sft.Error{Code: sft.Invalid, Msg: msg, Hint: "write the token to the file as the platform showed it, in one line"}
	}
	if len(b) > maxTokenFile {
		return bad("the enrollment token file is too long")
	}
	switch {
	case bytes.HasPrefix(b, []byte{0xff, 0xfe}), bytes.HasPrefix(b, []byte{0xfe, 0xff}):
		le := b[0] == 0xff
		var u []uint16
		for i := 2; i+1 < len(b); i += 2 {
			lo, hi := b[i], b[i+1]
			if !le {
				lo, hi = hi, lo
			}
			u = append(u, uint16(lo)|uint16(hi)<<8)
		}
		b = []byte(string(utf16.Decode(u)))
	case bytes.HasPrefix(b, []byte{0xef, 0xbb, 0xbf}):
		b = b[3:]
	}
	b = bytes.TrimSpace(b)
	if len(b) == 0 {
		return bad("the enrollment token file is empty")
	}
	raw, err := base64.StdEncoding.DecodeString(string(b))
	if err != nil {
		if raw, err = base64.RawStdEncoding.DecodeString(string(b)); err != nil {
			return bad("the enrollment token file holds no enrollment token")
		}
	}
	if err := json.Unmarshal(raw, &t); err != nil || t.Secret == "" || t.URL == "" {
		return bad("the enrollment token file holds no enrollment token")
	}
	if t.URL, err = api.CheckURL(t.URL); err != nil {
		return bad("the enrollment token names no usable platform")
	}
	return t, nil
}

// errNoToken says that a host is not enrolled and cannot enrol.
var errNoToken = &sft.Error{Code: sft.SignIn, Msg: "this host is not enrolled", Hint: "write an enrollment token of its project to the token file"}

// An entry is what lets the host in, and where: an enrollment token, or, with
// an instance, what the cloud has signed of it.
type entry struct {
	api.EnrollmentToken
	instance string
}

// entry reads the token file. Without one the host asks its cloud, where that
// is wanted.
func (a *Agent) entry(ctx context.Context) (entry, *api.CloudIdentity, error) {
	b, err := readCapped(a.conf.EnrollmentTokenFile)
	if err == nil {
		t, err := parseToken(b)
		return entry{EnrollmentToken: t}, nil, err
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return entry{}, nil, err
	}
	if !a.mayEnrollByCloud() {
		e := *errNoToken
		e.Hint = "write an enrollment token of its project to " + a.conf.EnrollmentTokenFile
		return entry{}, nil, &e
	}
	cloud, instance, err := a.metadata().identity(ctx)
	return entry{api.EnrollmentToken{URL: a.conf.InitialURL, Fingerprint: a.conf.InitialCAFingerprint}, instance}, cloud, err
}

// enroll enrols the host with the token file, or else by its cloud. Nothing is
// written before the platform has said yes; then the identity, whole; then the
// token file goes.
func (a *Agent) enroll(ctx context.Context) error {
	t, cloud, err := a.entry(ctx)
	if err != nil {
		return err
	}
	if t == a.bad && a.badReason != nil {
		return a.badReason // each try would cost a record
	}
	var ca []byte
	if t.Fingerprint != "" {
		if ca, err = api.FetchCA(ctx, t.URL, t.Fingerprint, a.proxy(), a.clock); err != nil {
			return err
		}
	}
	hc, err := a.http(ca)
	if err != nil {
		return err
	}
	facts, err := a.facts()
	if err != nil {
		return err
	}
	facts.InstanceID = t.instance
	// On disk before it is used: if the reply is lost, or this process ends
	// before it is stored, the same key is told of the same record again.
	key, err := a.keptKey(pendingKeyFile)
	if err != nil {
		return err
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	old, proof, err := a.oldKeyProof(t, spki)
	if err != nil {
		return err
	}
	// A platform never heard of must not cost a record: try the disk first.
	if err := a.writable(); err != nil {
		return err
	}
	c := api.Client{URL: t.URL, HTTP: hc, Clock: a.clock, UserAgent: userAgent}
	var reply api.EnrollServerReply
	if err := c.Do(ctx, "POST", api.EnrollPath, api.EnrollServerRequest{Token: t.Secret, CloudIdentity: cloud, DeviceKey: spki, Facts: facts, OldKeyProof: proof}, &reply); err != nil {
		switch sft.CodeOf(err) {
		case sft.Denied, sft.Invalid, sft.Enrolled: // an answer, and no: there is no record to come back for
			if rerr := os.Remove(a.conf.file(pendingKeyFile)); rerr != nil {
				a.log.Warn("remove the key of the enrolment", "error", rerr)
			}
		}
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	id := identity{ServerID: reply.ServerID, Team: reply.Team, Project: reply.Project, URL: t.URL, CA: ca, Key: der, Instance: t.instance}
	if reply.URL != "" && reply.URL != t.URL {
		a.bad = t
		a.badReason = &sft.Error{Code: sft.Invalid, Msg: "the platform at " + t.URL + " calls itself " + sft.Quote(reply.URL), Hint: "make a new enrollment token, or set InitialURL in sftd.yaml to that"}
		return a.badReason
	}
	if err := a.forget(); err != nil {
		return err
	}
	j, err := json.Marshal(id)
	if err != nil {
		return err
	}
	if err := conf.WriteSecret(a.conf.TokenFile, j); err != nil {
		return err
	}
	// From here on the host is enrolled; the rest is for people.
	a.asked = a.asked || cloud != nil
	if err := os.Remove(a.conf.file(pendingKeyFile)); err != nil {
		a.log.Warn("remove the key of the enrolment", "error", err)
	}
	if old != "" {
		if err := os.Remove(old); err != nil {
			a.log.Warn("remove the old identity", "error", err)
		}
	}
	if err := conf.WriteFile(a.conf.ServerFile, []byte(id.URL+"\n"), 0o644); err != nil {
		a.log.Warn("write the platform's URL", "error", err)
	}
	if err := os.Remove(a.conf.EnrollmentTokenFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		a.log.Warn("remove the enrollment token file by hand: it can still enrol servers", "error", err)
	}
	a.log.Info("enrolled", "server", id.ServerID, "team", id.Team, "project", id.Project, "platform", id.URL)
	return nil
}

// oldIdentity is what the TokenFile is renamed to, with this at its end, by who
// wants another device key for an instance.
const oldIdentity = ".old"

// oldKeyProof has the key of the identity that was put aside sign for the new
// one, if that was this instance's at this platform. old is its file; it is
// empty, and so is proof, where there is none of use.
func (a *Agent) oldKeyProof(t entry, spki []byte) (old, proof string, err error) {
	if t.instance == "" {
		return "", "", nil
	}
	c := a.conf
	c.TokenFile += oldIdentity
	id, key, err := readIdentity(c)
	if err != nil {
		a.log.Warn("read the old identity; the platform may ask for an administrator's word instead", "error", err)
	}
	if err != nil || id == nil || id.Instance != t.instance || id.URL != t.URL {
		return "", "", nil
	}
	proof, err = api.SignKey(key, id.ServerID, t.URL, spki, a.now())
	return c.TokenFile, proof, err
}

// forget removes what belonged to the host's former record.
func (a *Agent) forget() error {
	for _, f := range []string{stateFile, brokerKeyFile, sessionsFile, nextKeyFile} {
		if err := os.Remove(a.conf.file(f)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return a.events.forget()
}

// writable tells whether the state folder takes files.
func (a *Agent) writable() error {
	probe := a.conf.file(".probe")
	defer os.Remove(probe)
	if err := conf.WriteSecret(probe, make([]byte, 8<<10)); err != nil {
		return fmt.Errorf("write to the state folder: %w", err)
	}
	return nil
}

func (a *Agent) http(ca []byte) (*http.Client, error) { return api.NewHTTP(ca, a.proxy(), a.clock) }

// proxy is the way to the platform; nil is as the environment says.
func (a *Agent) proxy() *url.URL {
	if a.conf.ForwardProxy == "" {
		return nil
	}
	u, _ := url.Parse(a.conf.ForwardProxy) // checked by ReadConfig
	return u
}

// brokerKeyFile holds the TLS host key, which proves the broker and is never
// used for anything else.
const brokerKeyFile = "broker.key"

// pendingKeyFile holds the device key while the host enrols.
const pendingKeyFile = "device.pending"

// hostKey returns the TLS host key, made on first use.
func (a *Agent) hostKey() (*ecdsa.PrivateKey, error) { return a.keptKey(brokerKeyFile) }

// keptKey returns the private key in a file of the state folder, made on first
// use.
func (a *Agent) keptKey(name string) (*ecdsa.PrivateKey, error) {
	path := a.conf.file(name)
	b, err := conf.ReadPrivate(path)
	if errors.Is(err, fs.ErrNotExist) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, err
		}
		return key, conf.WriteSecret(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	}
	if err != nil {
		return nil, err
	}
	if block, _ := pem.Decode(b); block != nil {
		if key, ok := parseKey(block.Bytes); ok {
			return key, nil
		}
	}
	return nil, &sft.Error{Code: sft.Invalid, Msg: path + " holds no usable key", Hint: "remove it: a new one is made"}
}

var userAgent = strings.Join([]string{"sftd", sft.Version}, "/")
