package platform

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/store"
)

// serviceTokenLife is how long a service user's bearer token works.
const serviceTokenLife = time.Hour

const serviceTokenType = "sft-service+jwt"

// errUnknownServer is what an agent is told whose record there never was, as
// far as this database knows.
var errUnknownServer = &sft.Error{Code: sft.SignIn, Msg: "the platform does not know this server", Hint: "restore the platform's newest backup, or enrol the server again"}

type serviceClaims struct {
	User    string `json:"sub"`
	Key     string `json:"kid"`
	Expires int64  `json:"exp"`
}

// tokenKey returns the key that signs service users' tokens.
func (p *Platform) tokenKey(ctx context.Context) ([]byte, error) {
	p.tokenMu.Lock()
	defer p.tokenMu.Unlock()
	if p.tokenK != nil {
		return p.tokenK, nil
	}
	var sealed string
	if err := p.DB.Read(ctx, func(tx *store.Tx) (err error) {
		sealed, err = tx.Setting("token_key")
		return err
	}); err != nil {
		return nil, err
	}
	b, err := base64.StdEncoding.DecodeString(sealed)
	if err == nil {
		p.tokenK, err = p.Sealer.Open("token_key", b)
	}
	return p.tokenK, err
}

// newTokenKey makes and stores the key of tokenKey.
func newTokenKey(tx *store.Tx, s ca.Sealer) error {
	key := make([]byte, 32)
	rand.Read(key)
	sealed, err := s.Seal("token_key", key)
	if err != nil {
		return err
	}
	return tx.SetSetting("token_key", base64.StdEncoding.EncodeToString(sealed))
}

// ServiceTokenRequest is POST /v1/teams/{team}/service_token.
type ServiceTokenRequest struct {
	Team string `path:"team" json:"-"`
	api.ServiceTokenRequest
}

// ServiceToken gives a service user a bearer token for its key.
func (p *Platform) ServiceToken(ctx context.Context, a Actor, r ServiceTokenRequest) (api.ServiceTokenReply, error) {
	var reply api.ServiceTokenReply
	if !p.from(a, "service", time.Second, 60) {
		return reply, &sft.Error{Code: sft.TooMany, Msg: "too many tokens for this address", Hint: "keep a token for its hour"}
	}
	key, err := p.tokenKey(ctx)
	if err != nil {
		return reply, err
	}
	wrong := &sft.Error{Code: sft.SignIn, Msg: "the team, key id or key secret is wrong", Hint: "rotate the service user's key for a new one"}
	refused := p.event(a, audit.AuthTokenIssue, "", "", "service token")
	err = p.DB.Add(ctx, func(tx *store.Tx) (audit.Event, error) {
		asked, err := tx.Team(r.Team)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return audit.Event{}, err
		}
		refused.Team = asked.Name
		k, err := tx.Key(r.KeyID)
		if errors.Is(err, store.ErrNotFound) {
			return audit.Event{}, wrong
		}
		if err != nil {
			return audit.Event{}, err
		}
		u, err := tx.UserByID(k.UserID)
		if err != nil {
			return audit.Event{}, err
		}
		team, err := tx.TeamByID(u.TeamID)
		if err != nil {
			return audit.Event{}, err
		}
		now := p.Now()
		if subtle.ConstantTimeCompare(tokenHash(r.KeySecret), k.SecretHash) != 1 || team.ID != asked.ID ||
			u.Status != sft.StatusActive || k.ExpiresAt != nil && !k.ExpiresAt.After(now) {
			return audit.Event{}, wrong
		}
		reply.Team, reply.ExpiresAt = team.Name, now.Add(serviceTokenLife).UTC().Truncate(time.Second)
		if reply.BearerToken, err = signService(key, serviceClaims{u.ID, k.ID, reply.ExpiresAt.Unix()}); err != nil {
			return audit.Event{}, err
		}
		a.User, a.Key, a.Name = u.ID, k.ID, u.Name
		return p.event(a, audit.AuthTokenIssue, team.Name, "", "service token"), tx.KeyUsed(k.ID, now)
	})
	if sft.CodeOf(err) == sft.SignIn {
		err = p.refuse(ctx, refused, err)
	}
	return reply, err
}

func signService(key []byte, c serviceClaims) (string, error) {
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: key}, (&jose.SignerOptions{}).WithType(serviceTokenType))
	if err != nil {
		return "", err
	}
	payload, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	jws, err := s.Sign(payload)
	if err != nil {
		return "", err
	}
	return jws.CompactSerialize()
}

// Authenticate finds out who a request is from by its Authorization header:
// a service user's token, or the signature of a client or an agent. No
// header is nobody, and no error.
func (p *Platform) Authenticate(ctx context.Context, header, method, path string, body []byte, addr string) (Actor, error) {
	nobody := Actor{Addr: addr}
	if header == "" {
		return nobody, nil
	}
	if a, ok, err := p.service(ctx, header, addr); ok || err != nil {
		return a, err
	}
	a := nobody
	c, err := api.Verify(header, p.URL, method, path, body, p.Now(), func(issuer string) (*ecdsa.PublicKey, error) {
		kind, id, _ := strings.Cut(issuer, ":")
		var spki []byte
		err := p.DB.Look(ctx, func(n store.Notes) error {
			switch kind {
			case "client":
				c, err := n.Client(id)
				if err == nil && c.State != sft.StateActive && c.State != sft.StatePending {
					return errRevoked("client")
				}
				a.User, a.Client, a.Name, spki = c.UserID, c.ID, c.User, c.DeviceKey
				return err
			case "server":
				s, err := n.ServerByID(id)
				if err == nil && s.Unmanaged {
					return store.ErrNotFound // it has no key to sign with
				}
				if err == nil && s.DeletedAt != nil {
					return errRevoked("server")
				}
				a.Server, a.Name, spki = s.ID, s.Server(p.Now()).Name(), s.DeviceKey
				return err
			}
			return store.ErrNotFound
		})
		if errors.Is(err, store.ErrNotFound) && kind == "server" {
			// Not "deleted": a platform restored from an old backup must not make
			// every newer host end all access and forget who it is.
			return nil, errUnknownServer
		}
		if errors.Is(err, store.ErrNotFound) {
			return nil, errRevoked("device")
		}
		if err != nil {
			return nil, err
		}
		return ca.PublicKey(spki)
	})
	if err != nil && a.Server != "" && sft.CodeOf(err) == sft.SignIn {
		err = p.signedBefore(ctx, a, err, func(key *ecdsa.PublicKey) (api.Claims, error) {
			return api.Verify(header, p.URL, method, path, body, p.Now(), func(string) (*ecdsa.PublicKey, error) { return key, nil })
		})
	}
	if err != nil {
		return nobody, err
	}
	a.RequestID, a.RequestExpires = c.ID, time.Unix(c.Expires, 0)
	return a, nil
}

// service authenticates by a service user's token. ok says that the header
// holds one.
func (p *Platform) service(ctx context.Context, header, addr string) (a Actor, ok bool, err error) {
	token, found := strings.CutPrefix(header, "Bearer ")
	if !found || len(token) > 2048 {
		return a, false, nil
	}
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.HS256})
	if err != nil {
		return a, false, nil // a device's signature, or noise: Verify says which
	}
	dead := &sft.Error{Code: sft.SignIn, Msg: "the bearer token is not good, or no longer", Hint: "get another from service_token"}
	key, err := p.tokenKey(ctx)
	if err != nil {
		return a, true, err
	}
	payload, err := jws.Verify(key)
	if t, _ := jws.Signatures[0].Protected.ExtraHeaders[jose.HeaderType].(string); err != nil || t != serviceTokenType {
		return a, true, dead
	}
	var c serviceClaims
	if json.Unmarshal(payload, &c) != nil || c.Expires <= p.Now().Unix() {
		return a, true, dead
	}
	err = p.DB.Read(ctx, func(tx *store.Tx) error {
		k, err := tx.Key(c.Key)
		if errors.Is(err, store.ErrNotFound) || err == nil && (k.UserID != c.User || k.ExpiresAt != nil && !k.ExpiresAt.After(p.Now())) {
			return dead
		}
		if err != nil {
			return err
		}
		u, err := tx.UserByID(c.User)
		if err == nil && u.Status != sft.StatusActive {
			return dead
		}
		a = Actor{Addr: addr, User: u.ID, Name: u.Name, Key: k.ID}
		return err
	})
	return a, true, err
}

// SignedIn refuses a client whose sign-in has ended, for the requests that
// need a person behind the device.
func (p *Platform) SignedIn(ctx context.Context, a Actor) error {
	var c store.ClientRecord
	err := p.DB.Look(ctx, func(n store.Notes) (err error) {
		c, err = p.signedIn(n, a)
		return err
	})
	if err != nil || p.seen(c) {
		return err
	}
	return p.DB.Note(ctx, func(n store.Notes) error { return n.ClientSeen(c.ID, p.Now()) })
}
