package testenv

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"

	"sft/internal/cloudid"
)

// A Cloud stands for AWS: it has regions that sign with keys of their own, and
// instances with a metadata service.
type Cloud struct {
	AWS    *cloudid.AWS // verifies what this cloud signs
	Bundle []byte       // its certificates, as in a file

	t    testing.TB
	cert map[string]*x509.Certificate
	key  map[string]*rsa.PrivateKey
}

// NewCloud makes a cloud with two regions, eu-test-1 and us-test-1.
func NewCloud(t testing.TB) *Cloud {
	t.Helper()
	c := &Cloud{t: t, cert: map[string]*x509.Certificate{}, key: map[string]*rsa.PrivateKey{}}
	var b bytes.Buffer
	for i, region := range []string{"eu-test-1", "us-test-1"} {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		name := pkix.Name{Country: []string{"US"}, Organization: []string{"A Cloud"}}
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(int64(100 + i)), Subject: name,
			NotBefore: time.Date(2015, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2190, 1, 1, 0, 0, 0, 0, time.UTC)}
		c.must(err)
		der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
		c.must(err)
		c.cert[region], err = x509.ParseCertificate(der)
		c.must(err)
		c.key[region] = key
		fmt.Fprintf(&b, "region %s\n%s", region, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	c.Bundle = b.Bytes()
	var err error
	c.AWS, err = cloudid.ParseAWS(c.Bundle)
	c.must(err)
	return c
}

func (c *Cloud) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// Document is what the cloud says of an instance that was started at a time.
func Document(account, instance, region string, started time.Time) string {
	return fmt.Sprintf(`{
  "accountId" : %q,
  "architecture" : "x86_64",
  "availabilityZone" : "%sa",
  "billingProducts" : null,
  "imageId" : "ami-0123456789abcdef0",
  "instanceId" : %q,
  "instanceType" : "t3.small",
  "pendingTime" : %q,
  "region" : %q,
  "version" : "2017-09-30"
}`, account, region, instance, started.UTC().Format(time.RFC3339), region)
}

// Sign signs a document as a region does; change may change how.
func (c *Cloud) Sign(region, document string, change func(*pkcs7.SignedData)) string {
	c.t.Helper()
	sd, err := pkcs7.NewSignedData([]byte(document))
	c.must(err)
	sd.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA256)
	if change != nil {
		change(sd)
	}
	c.must(sd.AddSigner(c.cert[region], c.key[region], pkcs7.SignerInfoConfig{}))
	der, err := sd.Finish()
	c.must(err)
	// In lines, as the metadata service has it.
	var b bytes.Buffer
	for s := base64.StdEncoding.EncodeToString(der); s != ""; {
		n := min(len(s), 64)
		b.WriteString(s[:n] + "\n")
		s = s[n:]
	}
	return b.String()
}

// Signer returns a region's certificate and key.
func (c *Cloud) Signer(region string) (*x509.Certificate, *rsa.PrivateKey) {
	return c.cert[region], c.key[region]
}

// A Metadata is an instance's metadata service, version 2. Version 1 is
// refused, as an instance with HttpTokens "required" does.
type Metadata struct {
	URL   string
	cloud *Cloud

	mu       sync.Mutex
	document string
	answer   http.HandlerFunc // in the place of all of it
	asked    int
}

// Instance starts the metadata service of an instance in eu-test-1.
func (c *Cloud) Instance(account, instance string, started time.Time) *Metadata {
	m := &Metadata{cloud: c}
	m.Become(Document(account, instance, "eu-test-1", started))
	srv := httptest.NewServer(m)
	c.t.Cleanup(srv.Close)
	m.URL = srv.URL
	return m
}

// Become makes the service one of the instance that a document is of.
func (m *Metadata) Become(document string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.document = document
}

// Answer makes the service answer otherwise; nil: as it should.
func (m *Metadata) Answer(f http.HandlerFunc) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.answer = f
}

// Asked returns how many requests there were.
func (m *Metadata) Asked() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.asked
}

// ServeHTTP answers as the metadata service does.
func (m *Metadata) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	m.asked++
	document, answer := m.document, m.answer
	m.mu.Unlock()
	if answer != nil {
		answer(w, r)
		return
	}
	m.Serve(w, r, document)
}

// Serve answers a request as an instance's service with that document does.
func (m *Metadata) Serve(w http.ResponseWriter, r *http.Request, document string) {
	const session = "AQAEAFakeSession=="
	switch r.Method + " " + r.URL.Path {
	case "PUT /latest/api/token":
		if r.Header.Get("X-aws-ec2-metadata-token-ttl-seconds") == "" || r.Header.Get("X-Forwarded-For") != "" {
			http.Error(w, "", http.StatusBadRequest)
			return
		}
		fmt.Fprint(w, session)
	case "GET /latest/dynamic/instance-identity/document", "GET /latest/dynamic/instance-identity/rsa2048":
		if r.Header.Get("X-aws-ec2-metadata-token") != session {
			http.Error(w, "", http.StatusUnauthorized)
			return
		}
		if r.URL.Path == "/latest/dynamic/instance-identity/document" {
			fmt.Fprint(w, document)
			return
		}
		fmt.Fprint(w, m.cloud.Sign("eu-test-1", document, nil))
	default:
		http.NotFound(w, r)
	}
}
