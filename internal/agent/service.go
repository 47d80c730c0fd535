package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"
	"unicode"

	"golang.org/x/time/rate"

	"sft"
	"sft/internal/api"
	"sft/internal/frame"
)

// A process of this host acts as a service user if an administrator of the
// team has bound its account to one. It asks on a local socket, with a device
// key of its own; whose process it is says the system, and the platform
// decides.

const (
	maxServiceAsk      = 4 << 10          // bytes of a request, without its length
	serviceTime        = 5 * time.Second  // for the request to come, and for the answer to go
	servicePlatform    = 15 * time.Second // for the platform
	maxServiceAsks     = 16               // connections at once
	maxServiceAsksEach = 4                // of one uid
)

// How often one uid may ask, which for a client that keeps its key is once an
// hour. The platform bounds what one server asks, so no uid may use that up;
// and each refusal is an event.
const (
	serviceEvery = 10 * time.Second
	serviceBurst = 10
)

// readServiceAsk reads one request: 4 bytes of length, big-endian, and a JSON
// object. It reads no byte more, and the caller sets the deadline.
func readServiceAsk(r io.Reader) (api.ServiceAsk, error) {
	var ask api.ServiceAsk
	bad := func(msg string, err error) (api.ServiceAsk, error) {
		return api.ServiceAsk{}, &sft.Error{Code: sft.Invalid, Msg: msg, Err: err, Hint: "use an sft of the same version as sftd"}
	}
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return bad("the request did not come whole", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxServiceAsk {
		return bad("the request is too long", nil)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return bad("the request did not come whole", err)
	}
	if err := frame.Decode(b, &ask); err != nil {
		return bad("the request is not readable", err)
	}
	pub, err := x509.ParsePKIXPublicKey(ask.DeviceKey)
	if k, ok := pub.(*ecdsa.PublicKey); err != nil || !ok || k.Curve != elliptic.P256() {
		return bad("the device key is not one of P-256", err)
	}
	for _, s := range []string{ask.Device.Hostname, ask.Device.OS, ask.Device.Version} {
		for _, c := range s {
			if len(s) > 100 || !unicode.IsPrint(c) {
				return bad("the device's description is not readable", nil)
			}
		}
	}
	return ask, nil
}

// A serviceDesk answers the processes of this host.
type serviceDesk struct {
	account func(uid uint32) (string, error) // whose login name it is
	ask     func(context.Context, api.ServiceClientRequest) (api.ServiceClientReply, error)
	ca      []byte // of the platform, DER
	now     func() time.Time
	log     *slog.Logger

	mu   sync.Mutex
	open int
	each map[uint32]*serviceUID
}

// A serviceUID is what one uid has asked.
type serviceUID struct {
	open  int
	limit *rate.Limiter
}

// enter lets one request of uid in, or says why not. Who is in calls leave.
func (d *serviceDesk) enter(uid uint32) (leave func(), busy *sft.Error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.now()
	if d.each == nil || len(d.each) > 256 {
		kept := map[uint32]*serviceUID{}
		for id, u := range d.each {
			if u.open > 0 || u.limit.TokensAt(now) < serviceBurst {
				kept[id] = u
			}
		}
		d.each = kept
	}
	u := d.each[uid]
	if u == nil {
		u = &serviceUID{limit: rate.NewLimiter(rate.Every(serviceEvery), serviceBurst)}
		d.each[uid] = u
	}
	if d.open >= maxServiceAsks || u.open >= maxServiceAsksEach || !u.limit.AllowN(now, 1) {
		return nil, &sft.Error{Code: sft.TooMany, Msg: "this host's agent is asked too often for a service user", Hint: "wait for some seconds, then try again"}
	}
	d.open++
	u.open++
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.open--
		u.open--
	}, nil
}

// run answers who comes to l until ctx ends or l is closed. uid says whose
// process a connection is from.
func (d *serviceDesk) run(ctx context.Context, l net.Listener, uid func(net.Conn) (uint32, error)) {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		id, err := uid(c)
		if err != nil {
			d.log.Error("find out who asks for a service user", "error", err)
			c.Close()
			continue
		}
		leave, busy := d.enter(id)
		if busy != nil {
			d.log.Debug("asked too often for a service user", "uid", id)
			reply(c, api.ServiceAnswer{Error: busy})
			c.Close()
			continue
		}
		wg.Go(func() {
			defer leave()
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(serviceTime))
			defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
			reply(c, d.answer(ctx, c, id))
		})
	}
}

// reply sends the answer. One that nobody waits for is lost: who asked asks
// again.
func reply(c net.Conn, a api.ServiceAnswer) {
	_ = c.SetWriteDeadline(time.Now().Add(serviceTime))
	_ = frame.WriteJSON(c, a)
}

// answer reads one request of uid and has the platform decide.
func (d *serviceDesk) answer(ctx context.Context, r io.Reader, uid uint32) api.ServiceAnswer {
	refuse := func(account string, err error) api.ServiceAnswer {
		d.log.Warn("no client of a service user", "uid", uid, "account", account, "error", err)
		e, ok := errors.AsType[*sft.Error](err)
		if !ok {
			e = &sft.Error{Code: sft.Internal, Msg: "this host's agent could not ask for a service user", Hint: "have the host's administrator look at the log of sftd"}
		}
		return api.ServiceAnswer{Error: e}
	}
	ask, err := readServiceAsk(r)
	if err != nil {
		return refuse("", err)
	}
	account, err := d.account(uid)
	if err != nil {
		return refuse("", err)
	}
	ctx, cancel := context.WithTimeout(ctx, servicePlatform)
	defer cancel()
	reply, err := d.ask(ctx, api.ServiceClientRequest{Account: account, DeviceKey: ask.DeviceKey, Device: ask.Device})
	switch sft.CodeOf(err) {
	case sft.SignIn, sft.Revoked: // of this host, and not of who asks
		err = &sft.Error{Code: sft.Unavailable, Msg: "the platform does not know this host, or no longer", Err: err, Hint: "have the host's administrator look at \"sftd status\""}
	}
	if err != nil {
		return refuse(account, err)
	}
	d.log.Info("a client of a service user", "account", account, "uid", uid, "user", reply.User, "client", reply.ClientID)
	return api.ServiceAnswer{ServiceClientReply: reply, CA: d.ca}
}
