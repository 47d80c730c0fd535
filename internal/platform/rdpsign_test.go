package platform_test

import (
	"crypto/sha1"
	"crypto/x509"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/rdpsign"
	"sft/internal/testenv"
)

// A team signs connection files once an administrator says so, with one
// certificate that lasts, for whoever is signed in, and says of each that it did.
func TestSignRDPFile(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		const team = "/v1/teams/" + testenv.Team
		ann := e.Client("ann")
		lines, _ := rdpsign.Lines("127.3.4.5:40123", func(string) (string, bool) { return "", false })
		sign := func(lines []string) (api.RDPSignatureReply, error) {
			var r api.RDPSignatureReply
			err := ann.Do(t.Context(), "POST", team+"/rdp_signature", api.RDPSignatureRequest{Settings: lines}, &r)
			return r, err
		}
		if _, err := sign(lines); sft.CodeOf(err) != sft.NotFound {
			t.Errorf("before anybody said so: %v", err)
		}
		var made, seen, again api.RDPSigningCertificate
		if err := ann.Do(t.Context(), "POST", team+"/rdp_signing_certificate", nil, nil); sft.CodeOf(err) != sft.Denied {
			t.Errorf("somebody without the role: %v", err)
		}
		e.Do("POST", "/rdp_signing_certificate", nil, &made)
		if err := e.Service.Do(t.Context(), "POST", team+"/rdp_signing_certificate", nil, &again); sft.CodeOf(err) != sft.Exists || again.Thumbprint != "" {
			t.Errorf("a second time: %v", err)
		}
		e.Do("GET", "/rdp_signing_certificate", nil, &seen)
		c, err := x509.ParseCertificate(made.Certificate)
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(made) != fmt.Sprint(seen) || made.Thumbprint != fmt.Sprintf("%X", sha1.Sum(c.Raw)) || made.Publisher != "sft team main at 127.0.0.1" ||
			!made.ExpiresAt.Equal(c.NotAfter) || made.ExpiresAt.Sub(e.Clock.Now()) < 9*365*24*time.Hour {
			t.Errorf("made %+v\nseen %+v", made, seen)
		}
		r, err := sign(lines)
		if err != nil {
			t.Fatal(err)
		}
		p, err := pkcs7.Parse(r.Signature)
		if err != nil {
			t.Fatal(err)
		}
		if p.Content, err = rdpsign.Message(lines); err != nil {
			t.Fatal(err)
		}
		if err := p.Verify(); err != nil || !p.GetOnlySigner().Equal(c) {
			t.Errorf("the signature: %v", err)
		}
		lines[0], lines[1] = "full address:s:10.1.2.3:3389", "alternate full address:s:10.1.2.3:3389"
		if r, err := sign(lines); sft.CodeOf(err) != sft.Invalid || len(r.Signature) != 0 {
			t.Errorf("another machine: %v", err)
		}
		var got []string
		for _, v := range e.Events() {
			if v.Kind == audit.RDPSignerCreate || v.Kind == audit.RDPFileSign {
				got = append(got, fmt.Sprint(v.Kind, " ", v.Actor.Name, " ", v.Target, " ", len(v.Detail["message_sha256"]), " ", v.Detail["sha1"] == made.Thumbprint))
			}
		}
		if want := "rdp_signing_certificate.create robot sft team main at 127.0.0.1 0 true, rdp_file.sign ann 127.3.4.5:40123 64 false"; strings.Join(got, ", ") != want {
			t.Errorf("events %q", got)
		}
		if err := ann.Do(t.Context(), "POST", "/v1/clients/logout", nil, nil); err != nil {
			t.Fatal(err)
		}
		lines, _ = rdpsign.Lines("127.3.4.5:40123", func(string) (string, bool) { return "", false })
		if _, err := sign(lines); sft.CodeOf(err) != sft.SignIn {
			t.Errorf("signed out: %v", err)
		}
	})
}
