package api

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"sft"
)

// RequestLife is how long a signed request is good for.
const RequestLife = 60 * time.Second

// MaxSkew is how far apart two clocks may be for the faster or slower one to
// be corrected. Beyond it both sides refuse.
const MaxSkew = 15 * time.Minute

// WarnSkew is from where on a corrected clock is worth a warning.
const WarnSkew = 60 * time.Second

// The types of what a device key signs: a request, another key, and that it
// is to take another's place.
const (
	requestType = "sft-request+jwt"
	rekeyType   = "sft-rekey+jwt"
	newKeyType  = "sft-newkey+jwt"
)

// Claims are what a signed request says of itself.
type Claims struct {
	Issuer   string `json:"iss"` // "client:ID" or "server:ID"
	Audience string `json:"aud"` // the platform's URL
	Issued   int64  `json:"iat"` // seconds since 1970
	Expires  int64  `json:"exp"`
	ID       string `json:"jti"`
	Method   string `json:"htm"`
	Path     string `json:"htu"` // path and raw query
	Body     string `json:"bh"`  // base64url SHA-256 of the body
}

// RandomID returns 128 random bits, base64url: an id used once.
func RandomID() string {
	var b [16]byte
	rand.Read(b[:])
	return base64.RawURLEncoding.EncodeToString(b[:])
}

func hash(body []byte) string {
	h := sha256.Sum256(body)
	return base64.RawURLEncoding.EncodeToString(h[:])
}

// Sign returns the value of the Authorization header for a request.
func Sign(key *ecdsa.PrivateKey, issuer, audience, method, path string, body []byte, now time.Time) (string, error) {
	c, err := sign(requestType, key, Claims{Issuer: issuer, Audience: audience, Method: method, Path: path, Body: hash(body)}, now)
	return "Bearer " + c, err
}

// SignKey returns the word of a server's device key that another one, as SPKI,
// is to take its place at the platform audience: once, and within RequestLife.
func SignKey(old *ecdsa.PrivateKey, server, audience string, spki []byte, now time.Time) (string, error) {
	return sign(rekeyType, old, Claims{Issuer: "server:" + server, Audience: audience, Method: "POST", Path: EnrollPath, Body: hash(spki)}, now)
}

// EnrollPath is where servers enrol.
const EnrollPath = "/v1/servers/enroll"

// RotatePath is where a server's agent changes its device key.
const RotatePath = "/v1/agent/device_key"

// SignRotation returns the request for the device key next in the place of a
// server's key old, at the platform audience: the old one signs for the new
// one, and the new one for that very signature. It is good once, and within
// RequestLife.
func SignRotation(old, next *ecdsa.PrivateKey, server, audience string, now time.Time) (DeviceKeyRequest, error) {
	r := DeviceKeyRequest{ServerID: server}
	c := Claims{Issuer: "server:" + server, Audience: audience, Method: "POST", Path: RotatePath}
	var err error
	if r.DeviceKey, err = x509.MarshalPKIXPublicKey(&next.PublicKey); err != nil {
		return r, err
	}
	c.Body = hash(r.DeviceKey)
	if r.OldProof, err = sign(rekeyType, old, c, now); err != nil {
		return r, err
	}
	c.Body = hash([]byte(r.OldProof))
	r.NewProof, err = sign(newKeyType, next, c, now)
	return r, err
}

// VerifyRotation checks what SignRotation has made, by the key old and the new
// one next. The claims are those of the old one's word.
func VerifyRotation(r DeviceKeyRequest, audience string, now time.Time, old, next *ecdsa.PublicKey) (Claims, error) {
	by := func(key *ecdsa.PublicKey) func(string) (*ecdsa.PublicKey, error) {
		return func(issuer string) (*ecdsa.PublicKey, error) {
			if issuer != "server:"+r.ServerID {
				return nil, &sft.Error{Code: sft.SignIn, Msg: "the request is signed for another server", Hint: "sign it for the one that it names"}
			}
			return key, nil
		}
	}
	if _, err := verify(newKeyType, r.NewProof, audience, "POST", RotatePath, []byte(r.OldProof), now, by(next)); err != nil {
		return Claims{}, err
	}
	return verify(rekeyType, r.OldProof, audience, "POST", RotatePath, r.DeviceKey, now, by(old))
}

func sign(typ string, key *ecdsa.PrivateKey, c Claims, now time.Time) (string, error) {
	c.Issued, c.Expires, c.ID = now.Unix(), now.Add(RequestLife).Unix(), RandomID()
	payload, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key},
		(&jose.SignerOptions{}).WithType(jose.ContentType(typ)))
	if err != nil {
		return "", err
	}
	jws, err := s.Sign(payload)
	if err != nil {
		return "", err
	}
	return jws.CompactSerialize()
}

// Verify checks the Authorization header of a request against the request
// itself. key is asked for the issuer's public key, and for nothing before
// the token is of the right form. A jti that was seen before is the caller's
// to refuse. now is the platform's clock: a request outside its minute is
// ClockSkew, so that the caller learns the time.
func Verify(header, audience, method, path string, body []byte, now time.Time, key func(issuer string) (*ecdsa.PublicKey, error)) (Claims, error) {
	token, ok := strings.CutPrefix(header, "Bearer ")
	if !ok {
		return Claims{}, &sft.Error{Code: sft.SignIn, Msg: "the request is not signed", Hint: "sign in again"}
	}
	return verify(requestType, token, audience, method, path, body, now, key)
}

// VerifyKey checks what SignKey has signed, as Verify does a request: by the
// key of the issuer, for the new key spki.
func VerifyKey(token, audience string, spki []byte, now time.Time, key func(issuer string) (*ecdsa.PublicKey, error)) (Claims, error) {
	return verify(rekeyType, token, audience, "POST", EnrollPath, spki, now, key)
}

func verify(typ, token, audience, method, path string, body []byte, now time.Time, key func(issuer string) (*ecdsa.PublicKey, error)) (Claims, error) {
	bad := func(msg string) (Claims, error) {
		return Claims{}, &sft.Error{Code: sft.SignIn, Msg: msg, Hint: "sign in again"}
	}
	if len(token) > 16<<10 { // it holds the path and query
		return bad("the request is not signed")
	}
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return bad("the request's signature is not readable")
	}
	if t, _ := jws.Signatures[0].Protected.ExtraHeaders[jose.HeaderType].(string); t != typ {
		return bad("the request's token is of another type")
	}
	var c Claims
	if err := json.Unmarshal(jws.UnsafePayloadWithoutVerification(), &c); err != nil {
		return bad("the request's token is not readable")
	}
	// Before the issuer is looked for: the platform must not tell the devices
	// of another that they were deleted.
	if c.Audience != audience {
		return bad("the request is for another platform")
	}
	pub, err := key(c.Issuer)
	if err != nil {
		return Claims{}, err
	}
	if _, err := jws.Verify(pub); err != nil {
		return bad("the request is not signed by the key of its sender")
	}
	issued, expires := time.Unix(c.Issued, 0), time.Unix(c.Expires, 0)
	switch {
	case c.Method != method || c.Path != path || c.Body != hash(body):
		return bad("the request is not the one that was signed")
	case len(c.ID) < 16 || len(c.ID) > 64:
		return bad("the request has no usable id")
	case expires.Sub(issued) > RequestLife || expires.Before(issued):
		return bad("the request's life is too long")
	case now.Add(RequestLife).Before(issued) || now.After(expires):
		return Claims{}, &sft.Error{Code: sft.ClockSkew, Msg: "the request was made at another time: the clocks differ",
			Hint: "set the clock of this machine"}
	}
	return c, nil
}
