package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"sft"
	"sft/internal/api"
)

// metadataURL is where an EC2 instance finds its metadata service (EC2 user
// guide, "Access instance metadata"). The address is link-local: nothing but
// the instance's own host answers there.
const metadataURL = "http://169.254.169.254"

// Caps of what the metadata service answers, in bytes, and the time for all
// of it.
const (
	maxMetadataToken = 1 << 10
	maxDocument      = 64 << 10
	maxSignature     = 8 << 10
	metadataTime     = 5 * time.Second
)

// errNoCloud says that the host has no metadata service.
var errNoCloud = &sft.Error{Code: sft.Unavailable, Msg: "there is no instance metadata service here", Hint: "on a machine that is not an EC2 instance, enrol by a token"}

// A metadata is a client of the instance metadata service, version 2 alone:
// version 1 answers whoever can make a process of the host send a GET.
type metadata struct {
	url  string
	http *http.Client
}

// newMetadata returns a client of the service at url. It goes through no
// proxy, follows nothing, and waits for little: on a host without a service
// that costs a second.
func newMetadata(url string) *metadata {
	return &metadata{url, &http.Client{
		Transport: &http.Transport{
			DialContext:            (&net.Dialer{Timeout: time.Second}).DialContext,
			ResponseHeaderTimeout:  2 * time.Second,
			MaxResponseHeaderBytes: 16 << 10,
			DisableKeepAlives:      true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       metadataTime,
	}}
}

// identity returns what the cloud signs of this instance, and its id.
func (m *metadata) identity(ctx context.Context) (*api.CloudIdentity, string, error) {
	ctx, cancel := context.WithTimeout(ctx, metadataTime)
	defer cancel()
	token, err := m.token(ctx)
	if err != nil {
		return nil, "", err
	}
	document, err := m.get(ctx, token, "document", maxDocument)
	if err != nil {
		return nil, "", err
	}
	id, err := instanceID(document)
	if err != nil {
		return nil, "", err
	}
	signature, err := m.get(ctx, token, "rsa2048", maxSignature)
	if err != nil {
		return nil, "", err
	}
	if signature == "" || strings.Trim(signature, base64Chars) != "" {
		return nil, "", notMetadata("the signature of the instance identity document is no base64")
	}
	return &api.CloudIdentity{Provider: "aws", Document: document, Signature: signature}, id, nil
}

// instance returns the id of this instance.
func (m *metadata) instance(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, metadataTime)
	defer cancel()
	token, err := m.token(ctx)
	if err != nil {
		return "", err
	}
	document, err := m.get(ctx, token, "document", maxDocument)
	if err != nil {
		return "", err
	}
	return instanceID(document)
}

const base64Chars = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\r\n"

func notMetadata(msg string) error {
	return &sft.Error{Code: sft.Unavailable, Msg: msg, Hint: "check what answers at " + metadataURL + "; it has to be EC2's metadata service"}
}

// token asks for a session of version 2.
func (m *metadata) token(ctx context.Context) (string, error) {
	req, err := http.NewRequestWithContext(ctx, "PUT", m.url+"/latest/api/token", nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("X-aws-ec2-metadata-token-ttl-seconds", "60")
	resp, err := m.http.Do(req)
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return "", errNoCloud
	}
	if nerr, ok := errors.AsType[net.Error](err); ok && nerr.Timeout() {
		return "", &sft.Error{Code: sft.Unavailable, Msg: "the instance metadata service takes a request and does not answer", Err: err,
			Hint: "if sftd runs in a container, set the instance's HttpPutResponseHopLimit to 2"}
	}
	if err != nil {
		return "", &sft.Error{Code: sft.Unavailable, Msg: "the instance metadata service cannot be asked: " + reason(err), Err: err, Hint: "see whether the instance has it turned on"}
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusForbidden:
		return "", &sft.Error{Code: sft.Unavailable, Msg: "the instance metadata service is turned off", Hint: "set the instance's HttpEndpoint to enabled, or enrol by a token"}
	default:
		return "", &sft.Error{Code: sft.Unavailable, Msg: fmt.Sprintf("the instance metadata service gives no session token (version 2, IMDSv2): it answers with status %d", resp.StatusCode),
			Hint: "version 1 is not used; check what answers at " + metadataURL}
	}
	b, err := capped(resp.Body, maxMetadataToken)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(b)
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) || strings.HasPrefix(token, "<") {
		return "", notMetadata("the instance metadata service gives no usable session token")
	}
	return token, nil
}

// get fetches a part of the instance's identity.
func (m *metadata) get(ctx context.Context, token, name string, max int64) (string, error) {
	req, err := http.NewRequestWithContext(ctx, "GET", m.url+"/latest/dynamic/instance-identity/"+name, nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("X-aws-ec2-metadata-token", token)
	resp, err := m.http.Do(req)
	if err != nil {
		return "", &sft.Error{Code: sft.Unavailable, Msg: "the instance metadata service does not give " + name + ": " + reason(err), Err: err, Hint: "see whether the instance has it turned on"}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", notMetadata(fmt.Sprintf("the instance metadata service answers with status %d for %s", resp.StatusCode, name))
	}
	return capped(resp.Body, max)
}

func capped(r io.Reader, max int64) (string, error) {
	b, err := io.ReadAll(io.LimitReader(r, max+1))
	if err != nil {
		return "", &sft.Error{Code: sft.Unavailable, Msg: "the instance metadata service breaks off its answer: " + reason(err), Err: err, Hint: "try again"}
	}
	if int64(len(b)) > max {
		return "", notMetadata("the instance metadata service's answer is too long")
	}
	return string(b), nil
}

// reason is why a request failed, without the URL.
func reason(err error) string {
	for u := errors.Unwrap(err); u != nil; u = errors.Unwrap(err) {
		err = u
	}
	return err.Error()
}

var instanceRE = regexp.MustCompile(`^i-[0-9a-f]{8,17}$`)

// instanceID returns the instance that a document is of. Nothing is proven by
// it: the platform verifies the document.
func instanceID(document string) (string, error) {
	var d struct {
		InstanceID string `json:"instanceId"`
	}
	if !utf8.ValidString(document) || json.Unmarshal([]byte(document), &d) != nil || !instanceRE.MatchString(d.InstanceID) {
		return "", notMetadata("the instance metadata service gives no instance identity document")
	}
	return d.InstanceID, nil
}

// metadata returns the client of this host's metadata service.
func (a *Agent) metadata() *metadata {
	if a.metadataURL != "" {
		return newMetadata(a.metadataURL)
	}
	return newMetadata(metadataURL)
}

// mayEnrollByCloud tells whether the host may enrol without a token.
func (a *Agent) mayEnrollByCloud() bool { return a.conf.AutoEnroll && a.conf.InitialURL != "" }

// cloned tells whether the identity on disk is of another instance than the
// one that runs: the disk was copied. Where the metadata service does not say
// which one runs, the host stays who it was.
func (a *Agent) cloned(ctx context.Context, id *identity) bool {
	if id.Instance == "" || a.asked {
		return false
	}
	a.asked = true
	now, err := a.metadata().instance(ctx)
	if err != nil {
		a.log.Warn("see whether this is still the instance that enrolled", "instance", id.Instance, "error", err)
		return false
	}
	if now == id.Instance {
		return false
	}
	a.log.Error("this disk is a copy: it was enrolled as another instance, and enrols anew", "was", id.Instance, "is", now)
	return true
}

// cloudAgain is when to try again to enrol by the cloud, after err; zero is
// never. A host without a metadata service is not likely to get one.
func (a *Agent) cloudAgain(err error, wait *backoff) time.Duration {
	switch {
	case !a.mayEnrollByCloud():
		return 0
	case errors.Is(err, errNoCloud):
		return 5 * time.Minute
	}
	return wait.next()
}
