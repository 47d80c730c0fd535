package api

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"sft"
)

var now = time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)

const platform = "https://sft.example.com"

func key(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// forge signs any claims, under any type.
func forge(t testing.TB, alg jose.SignatureAlgorithm, k any, typ string, c any) string {
	t.Helper()
	payload, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: k}, (&jose.SignerOptions{}).WithType(jose.ContentType(typ)))
	if err != nil {
		t.Fatal(err)
	}
	jws, err := s.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	out, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return "Bearer " + out
}

func TestVerify(t *testing.T) {
	k, other := key(t), key(t)
	body := []byte(`{"a":1}`)
	good := Claims{Issuer: "client:1", Audience: platform, Issued: now.Unix(), Expires: now.Add(RequestLife).Unix(), ID: RandomID(),
		Method: "POST", Path: "/v1/x?y=1", Body: hash(body)}
	with := func(f func(*Claims)) string {
		c := good
		f(&c)
		return forge(t, jose.ES256, k, requestType, c)
	}
	signed, err := Sign(k, "client:1", platform, "POST", "/v1/x?y=1", body, now)
	if err != nil {
		t.Fatal(err)
	}
	at := func(d time.Duration) string {
		h, err := Sign(k, "client:1", platform, "POST", "/v1/x?y=1", body, now.Add(d))
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	parts := strings.Split(signed, ".")
	tests := []struct {
		name   string
		header string
		want   sft.Code
	}{
		{"as it was signed", signed, ""},
		{"59 seconds later", at(-59 * time.Second), ""},
		{"a minute early", at(60 * time.Second), ""},
		{"more than a minute late", at(-61 * time.Second), sft.ClockSkew},
		{"more than a minute early", at(61 * time.Second), sft.ClockSkew},
		{"no header", "", sft.SignIn},
		{"another scheme", "Basic " + signed[7:], sft.SignIn},
		{"no signature", strings.Join(parts[:2], ".") + ".", sft.SignIn},
		{"no algorithm", "Bearer eyJhbGciOiJub25lIn0." + parts[1] + ".", sft.SignIn},
		{"changed claims", parts[0] + "." + parts[1][:len(parts[1])-2] + "fQ." + parts[2], sft.SignIn},
		{"too long", "Bearer " + strings.Repeat("a", 20000), sft.SignIn},
		{"another key", forge(t, jose.ES256, other, requestType, good), sft.SignIn},
		{"another algorithm", forge(t, jose.HS256, []byte(strings.Repeat("k", 32)), requestType, good), sft.SignIn},
		{"another type of token", forge(t, jose.ES256, k, "sft-proof+jwt", good), sft.SignIn},
		{"not an object", forge(t, jose.ES256, k, requestType, "x"), sft.SignIn},
		{"an unknown issuer", with(func(c *Claims) { c.Issuer = "client:2" }), sft.Revoked},
		{"another platform", with(func(c *Claims) { c.Audience = "https://other" }), sft.SignIn},
		{"another platform and an unknown issuer", with(func(c *Claims) { c.Audience, c.Issuer = "https://other", "client:2" }), sft.SignIn},
		{"another method", with(func(c *Claims) { c.Method = "GET" }), sft.SignIn},
		{"another path", with(func(c *Claims) { c.Path = "/v1/z?y=1" }), sft.SignIn},
		{"another query", with(func(c *Claims) { c.Path = "/v1/x?y=2" }), sft.SignIn},
		{"no query", with(func(c *Claims) { c.Path = "/v1/x" }), sft.SignIn},
		{"another body", with(func(c *Claims) { c.Body = hash([]byte(`{"a":2}`)) }), sft.SignIn},
		{"no body", with(func(c *Claims) { c.Body = "" }), sft.SignIn},
		{"no id", with(func(c *Claims) { c.ID = "" }), sft.SignIn},
		{"a long id", with(func(c *Claims) { c.ID = strings.Repeat("x", 65) }), sft.SignIn},
		{"too long a life", with(func(c *Claims) { c.Expires++ }), sft.SignIn},
		{"no end", with(func(c *Claims) { c.Expires = 0 }), sft.SignIn},
		{"no times", with(func(c *Claims) { c.Issued, c.Expires = 0, 0 }), sft.ClockSkew},
		{"the last of times", with(func(c *Claims) { c.Issued, c.Expires = 1<<63-1, 1<<63-1 }), sft.ClockSkew},
		{"the first of times", with(func(c *Claims) { c.Issued, c.Expires = -1<<63, -1<<63 }), sft.ClockSkew},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Verify(tt.header, platform, "POST", "/v1/x?y=1", body, now, func(issuer string) (*ecdsa.PublicKey, error) {
				if issuer != "client:1" {
					return nil, &sft.Error{Code: sft.Revoked, Msg: "no such device"}
				}
				return &k.PublicKey, nil
			})
			if tt.want == "" {
				if err != nil || c.Issuer != "client:1" || len(c.ID) < 16 {
					t.Errorf("Verify = %+v, %v", c, err)
				}
			} else if err == nil || sft.CodeOf(err) != tt.want || c != (Claims{}) {
				t.Errorf("Verify = %+v, %v, want %s", c, err, tt.want)
			}
		})
	}
}

// FuzzVerify checks what must hold whatever is sent: what passes was signed
// by the key, for this request.
func FuzzVerify(f *testing.F) {
	k, other := key(f), key(f)
	for _, k := range []*ecdsa.PrivateKey{k, other} {
		h, err := Sign(k, "client:1", platform, "GET", "/", nil, now)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(h)
	}
	f.Add("")
	f.Add("Bearer a.b.c")
	f.Add("Bearer eyJhbGciOiJub25lIn0.e30.")
	f.Fuzz(func(t *testing.T, header string) {
		c, err := Verify(header, platform, "GET", "/", nil, now, func(string) (*ecdsa.PublicKey, error) { return &k.PublicKey, nil })
		if err != nil {
			if e, ok := errors.AsType[*sft.Error](err); !ok || e.Msg == "" || c != (Claims{}) {
				t.Errorf("Verify = %+v, %v", c, err)
			}
			return
		}
		jws, err := jose.ParseSignedCompact(strings.TrimPrefix(header, "Bearer "), []jose.SignatureAlgorithm{jose.ES256})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := jws.Verify(&k.PublicKey); err != nil || c.Audience != platform || c.Method != "GET" || c.Path != "/" {
			t.Errorf("something not signed passed: %v", err)
		}
	})
}
