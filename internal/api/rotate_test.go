package api

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"sft"
)

// A key that changes while a request is on its way, or waits to be sent, costs
// no request; one that is refused and stays is not tried again.
func TestTheKeyChangesMeanwhile(t *testing.T) {
	first, second := key(t), key(t)
	asked := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		_, err := Verify(r.Header.Get("Authorization"), platform, r.Method, r.URL.RequestURI(), nil, now, func(string) (*ecdsa.PublicKey, error) { return &second.PublicKey, nil })
		if err != nil {
			w.WriteHeader(http.StatusUnauthorized)
			_ = json.NewEncoder(w).Encode(ErrorReply{Error: sft.Error{Code: sft.CodeOf(err), Msg: err.Error()}, Time: now})
		}
	}))
	defer s.Close()
	for _, tt := range []struct {
		name  string
		keys  []*ecdsa.PrivateKey
		want  sft.Code
		asked int
	}{
		{"the same key", []*ecdsa.PrivateKey{second}, "", 1},
		{"another key", []*ecdsa.PrivateKey{first, second}, "", 2},
		{"the wrong key", []*ecdsa.PrivateKey{first}, sft.SignIn, 1},
		{"another wrong key", []*ecdsa.PrivateKey{key(t), first}, sft.SignIn, 2},
	} {
		asked = 0
		n := 0
		c := Client{URL: s.URL, Audience: platform, Issuer: "server:1", HTTP: s.Client(), Clock: &Clock{Machine: func() time.Time { return now }},
			Keys: func(context.Context) (*ecdsa.PrivateKey, error) {
				k := tt.keys[min(n, len(tt.keys)-1)]
				n++
				return k, nil
			}}
		err := c.Do(t.Context(), "GET", "/v1/x", nil, nil)
		if (err == nil) != (tt.want == "") || err != nil && sft.CodeOf(err) != tt.want || asked != tt.asked {
			t.Errorf("%s: %v after %d requests, want %q after %d", tt.name, err, asked, tt.want, tt.asked)
		}
	}
	wait, cancel := context.WithCancel(t.Context())
	c := Client{URL: s.URL, HTTP: s.Client(), Clock: &Clock{}, Keys: func(ctx context.Context) (*ecdsa.PrivateKey, error) {
		cancel()
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	asked = 0
	if err := c.Do(wait, "GET", "/v1/x", nil, nil); err != context.Canceled || asked != 0 {
		t.Errorf("without a key: %v after %d requests", err, asked)
	}
}

// FuzzVerifyRotation checks that a change of the device key passes only with the
// words of both keys, the new one's for the old one's, and that for the new key.
func FuzzVerifyRotation(f *testing.F) {
	old, next, other := key(f), key(f), key(f)
	for _, k := range [][2]*ecdsa.PrivateKey{{old, next}, {next, old}, {old, other}} {
		r, err := SignRotation(k[0], k[1], "1", platform, now)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(r.ServerID, r.DeviceKey, r.OldProof, r.NewProof)
		f.Add(r.ServerID, r.DeviceKey, r.NewProof, r.OldProof)
	}
	f.Add("", []byte(nil), "a.b.c", "eyJhbGciOiJub25lIn0.e30.")
	f.Fuzz(func(t *testing.T, server string, spki []byte, oldProof, newProof string) {
		c, err := VerifyRotation(DeviceKeyRequest{ServerID: server, DeviceKey: spki, OldProof: oldProof, NewProof: newProof}, platform, now, &old.PublicKey, &next.PublicKey)
		if err != nil {
			if c != (Claims{}) {
				t.Errorf("refused with %+v", c)
			}
			return
		}
		signed := func(token string, by *ecdsa.PrivateKey, typ, body string) error {
			jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256})
			if err != nil {
				return err
			}
			payload, err := jws.Verify(&by.PublicKey)
			var c Claims
			if err == nil {
				err = json.Unmarshal(payload, &c)
			}
			if typ != jws.Signatures[0].Protected.ExtraHeaders[jose.HeaderType] || c.Body != body || c.Issuer != "server:"+server || c.Audience != platform || c.Path != RotatePath {
				return fmt.Errorf("it says %+v", c)
			}
			return err
		}
		if err := signed(oldProof, old, rekeyType, hash(spki)); err != nil {
			t.Errorf("the old key's word passed: %v", err)
		}
		if err := signed(newProof, next, newKeyType, hash([]byte(oldProof))); err != nil {
			t.Errorf("the new key's word passed: %v", err)
		}
	})
}
