package export

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"sft/internal/audit"
)

// A syslog sends to a receiver by RFC 5424 and RFC 5425: TLS, and each message
// with its length before it.
//
// The protocol has no answers. So that a batch counts as arrived when it has,
// each has a connection of its own, which is ended as RFC 5425, 4.4, says: the
// receiver, having read everything, ends it too.
type syslog struct {
	addr string
	host string // our own name
	tls  *tls.Config
}

func (s *syslog) Name() string { return "syslog+tls://" + s.addr }

// maxReply caps what is read of a receiver that has nothing to say, in bytes.
const maxReply = 4 << 10

func (s *syslog) Send(ctx context.Context, b audit.Batch) (err error) {
	defer func() { err = late(ctx, err) }()
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.addr)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	t := tls.Client(c, s.tls)
	if err := t.HandshakeContext(ctx); err != nil {
		return err
	}
	if _, err := t.Write(s.frames(b)); err != nil {
		return err
	}
	if err := t.CloseWrite(); err != nil {
		return err
	}
	tcp := c.(*net.TCPConn)
	if err := tcp.CloseWrite(); err != nil { // for receivers that wait for this
		return err
	}
	// An end without a farewell is taken too: some receivers know no other, such
	// as rsyslog. One that refuses our certificate says so, or hangs up; by TLS 1.3
	// both come after our handshake.
	if err := silence(t); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	return taken(ctx, tcp)
}

// silence reads what has nothing to say to its end.
func silence(r io.Reader) error {
	n, err := io.Copy(io.Discard, io.LimitReader(r, maxReply))
	if n == maxReply {
		return errors.New("the receiver answers, which syslog does not")
	}
	return err
}

// taken waits for the end of a connection that we have ended: until the other
// side has ended it, too, and has all that was sent. A side that hangs up with
// something unread resets it, at once or for what comes afterwards.
func taken(ctx context.Context, c *net.TCPConn) error {
	if err := silence(c); err != nil {
		return err
	}
	for {
		left, err := unacknowledged(c)
		if err != nil || left == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// frames are the messages of a batch: length, space, message (RFC 5425, 4.3).
func (s *syslog) frames(b audit.Batch) []byte {
	var out bytes.Buffer
	add := func(m []byte) {
		out.WriteString(strconv.Itoa(len(m)))
		out.WriteByte(' ')
		out.Write(m)
	}
	b.Each(func(r audit.Record) { add(s.event(r)) }, func(n audit.Note) { add(s.checkpoint(n)) })
	return out.Bytes()
}

// Priorities (RFC 5424, 6.2.1): of the facility "log audit".
const (
	logAudit = 13 * 8
	warning  = logAudit + 4
	info     = logAudit + 6
)

// sdID names our structured data. There is no number of ours: 32473 is the one
// for examples (RFC 5612).
const sdID = "sft@32473"

const syslogTime = "2006-01-02T15:04:05.000000Z"

func (s *syslog) event(r audit.Record) []byte {
	var e audit.Event
	_ = json.Unmarshal([]byte(r.Body), &e) // what somebody has changed goes out as it is
	pri := info
	if e.Outcome != audit.Success {
		pri = warning
	}
	at := "-"
	if y := e.Time.UTC().Year(); y > 0 && y <= 9999 {
		at = e.Time.UTC().Format(syslogTime)
	}
	return s.message(pri, at, string(e.Kind), r.Line(), [][2]string{{"seq", strconv.FormatInt(r.Seq, 10)}, {"id", r.ID}, {"type", string(e.Kind)}, {"outcome", e.Outcome}, {"team", e.Team}, {"project", e.Project},
		{"actor", e.Actor.Name}, {"addr", e.Actor.Addr}, {"target", e.Target}, {"session", e.Session}})
}

func (s *syslog) checkpoint(n audit.Note) []byte {
	return s.message(info, n.Time.UTC().Format(syslogTime), "checkpoint", n.Line(),
		[][2]string{{"seq", strconv.FormatInt(n.Last, 10)}, {"hash", fmt.Sprintf("%x", n.Hash)}})
}

// message is one message. Its text is JSON alone, without a byte order mark,
// which would be none (RFC 8259, 8.1).
func (s *syslog) message(pri int, at, id string, text []byte, data [][2]string) []byte {
	m := fmt.Appendf(nil, "<%d>1 %s %s sft-platform - %s [%s", pri, at, s.host, printable(id, 32), sdID)
	for _, d := range data {
		if d[1] != "" {
			m = fmt.Appendf(m, ` %s="%s"`, d[0], param(d[1]))
		}
	}
	return append(append(m, "] "...), text...)
}

// maxParam caps a value of structured data, in bytes; the text has it whole.
const maxParam = 1 << 10

// param writes a value of structured data (RFC 5424, 6.3.3). Control
// characters, of which a receiver may think anything, are not in it.
func param(v string) string {
	v = strings.ToValidUTF8(v[:min(len(v), maxParam)], "")
	var b strings.Builder
	for _, r := range v {
		switch {
		case r == '"' || r == '\\' || r == ']':
			b.WriteByte('\\')
		case r < 32 || r >= 127 && r < 160:
			r = '?'
		}
		b.WriteRune(r)
	}
	return b.String()
}
