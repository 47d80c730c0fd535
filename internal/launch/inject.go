package launch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"sft"
	"sft/internal/frame"
	"sft/internal/rdp"
	"sft/internal/relay"
)

// A Way is a stream to the RDP service of a server, and what the server said
// of signing in to it.
type Way struct {
	Stream Stream
	// Secret is the account's password, where the server delivers it.
	Secret sft.Secret
	// Flags are those of the RDP service's negotiation, where the server signs
	// in itself.
	Flags byte
}

const (
	// answerTime is how long an RDP client may take from its first byte to its
	// Client Info. Some ask the person about the certificate meanwhile.
	answerTime = 2 * time.Minute
	// firstByte is how long it may take to say anything.
	firstByte = 10 * time.Second
	// firstPatience is how long a stream that was opened before the RDP
	// client was started waits for it. The RDP service does not wait longer.
	firstPatience = 20 * time.Second
	// maxUnproven caps the sockets that have not shown the launch secret.
	maxUnproven = 3
)

// An upstream is a stream as a Front speaks to it.
type upstream struct{ Way }

func (u *upstream) Flags() byte { return u.Way.Flags }

func (u *upstream) Write(b []byte) (int, error) { return u.Stream.Write(b) }

// Next returns the service's next PDU. In its place may be why there is none.
func (u *upstream) Next(max int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(u.Stream, head[:]); err != nil {
		return nil, err
	}
	r := io.MultiReader(bytes.NewReader(head[:]), u.Stream)
	if !frame.IsNotice(head[:]) {
		return rdp.ReadTPKT(r, max)
	}
	b, err := frame.Read(r)
	if err != nil {
		return nil, err
	}
	return nil, noticed(b)
}

// noticed is the error that a broker's notice tells of.
func noticed(b []byte) error {
	var n frame.Notice
	if err := frame.Decode(b, &n); err != nil {
		return err
	}
	if n.Error == nil || n.Error.Msg == "" {
		return &sft.Error{Code: sft.Internal, Msg: "the broker ended the connection without a reason", Hint: "look at \"sftd status\" on the server"}
	}
	return n.Error
}

// abort tells the broker to undo what was opened, and closes the stream.
func (u *upstream) abort(why string) {
	if b, err := json.Marshal(frame.Notice{Abort: why}); err == nil {
		u.Stream.SetWriteDeadline(time.Now().Add(time.Second))
		_ = frame.Write(u.Stream, b)
	}
	u.Stream.Close()
}

// An Ahead returns what is sent to a server before it has answered, or nothing.
// It waits for that a while, and returns the same when it is called again.
type Ahead func(context.Context) ([]byte, error)

// A late upstream is opened while the RDP client is answered already, by what
// the service said the first time. So its Connect Initial goes to the server
// with the first frame.
type late struct {
	flags byte
	began chan struct{} // closed with the first Write
	open  chan struct{} // closed when up or err is set
	up    *upstream
	err   error

	mu     sync.Mutex
	first  []byte // the first Write, if it came in time
	passed bool   // the frame goes, or went, without it
}

// aheadPatience is how long the frame waits for the RDP client: the broker
// does not wait much longer for the frame.
const aheadPatience = 5 * time.Second

// later opens a way of its own for a later socket.
func (d *Desktop) later(ctx context.Context, flags byte) *late {
	l := &late{flags: flags, began: make(chan struct{}), open: make(chan struct{})}
	go func() {
		defer close(l.open)
		w, err := d.another(ctx, l.ahead)
		if err != nil {
			l.err = opening{err}
			return
		}
		w.Stream.SetDeadline(time.Now().Add(answerTime))
		l.up = &upstream{Way: w}
	}()
	return l
}

// ahead is what there is to send with the frame.
func (l *late) ahead(ctx context.Context) ([]byte, error) {
	select {
	case <-l.began:
	case <-time.After(aheadPatience): // somebody reads a question about the certificate
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.passed = l.first == nil
	return l.first, nil
}

func (l *late) Flags() byte { return l.flags }

func (l *late) Write(b []byte) (int, error) {
	l.mu.Lock()
	ahead := l.first == nil && !l.passed
	if ahead {
		l.first = bytes.Clone(b)
		close(l.began)
	}
	l.mu.Unlock()
	if ahead {
		return len(b), nil
	}
	<-l.open
	if l.err != nil {
		return 0, l.err
	}
	return l.up.Write(b)
}

// Next returns the service's next PDU.
func (l *late) Next(max int) ([]byte, error) {
	<-l.open
	if l.err != nil {
		return nil, l.err
	}
	return l.up.Next(max)
}

// answer takes an RDP client to its Client Info, and returns the two ends
// between which the rest is copied.
func (d *Desktop) answer(ctx context.Context, c net.Conn) (client Stream, up Stream, err error) {
	var u *upstream
	var l *late
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	c.SetDeadline(time.Now().Add(firstByte))
	t, err := d.Front.Answer(relay.Wrap(c), func() (rdp.Upstream, error) {
		c.SetDeadline(time.Now().Add(answerTime))
		w := d.take(ctx)
		if w.Stream == nil && ctx.Err() == nil && d.flags.Load() > 0 {
			l = d.later(ctx, byte(d.flags.Load()-1))
			return l, nil
		}
		if w.Stream == nil {
			var err error
			if w, err = d.another(ctx, nil); err != nil {
				return nil, opening{err}
			}
		}
		d.flags.Store(int32(w.Flags) + 1)
		u = &upstream{Way: w}
		u.Stream.SetDeadline(time.Now().Add(answerTime))
		return u, nil
	})
	stop()
	if l != nil {
		if err != nil {
			cancel() // ends the opening, if it goes on
		}
		<-l.open
		u = l.up
	}
	if err == nil {
		u.Stream.SetDeadline(time.Time{})
		c.SetDeadline(time.Time{})
		return t, u.Stream, nil
	}
	if u != nil {
		why := frame.AbortClient
		if errors.Is(err, rdp.ErrSecret) {
			why = frame.AbortSecret
		}
		u.abort(why)
	}
	return nil, nil, err
}

// opening is the error of a stream that could not be opened, which has been
// told.
type opening struct{ error }

func (o opening) Unwrap() error { return o.error }

// unproven tells of a socket that was not let through.
func (d *Desktop) unproven(err error) {
	var e *sft.Error
	switch {
	case errors.As(err, new(opening)):
	case errors.Is(err, rdp.ErrSecret):
		d.say("refused a connection: " + err.Error())
		if d.Refused != nil {
			d.Refused(err)
		}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		// RDP clients connect, look at the certificate and come again.
	case errors.As(err, &e):
		d.failure.Store(e)
	default:
		d.failure.Store(&sft.Error{Code: sft.Invalid, Msg: "the RDP client was not let through: " + err.Error(), Err: err, Hint: "run it again with --debug to see all that the RDP client says"})
		if d.Program == nil {
			d.say("refused a connection: " + err.Error())
		}
	}
}

// A noticer looks for the broker's notice among the PDUs from a server. It
// holds nothing back.
type noticer struct {
	mu     sync.Mutex
	left   int    // of a PDU
	head   []byte // of one whose length is not known yet
	notice []byte
	lost   bool // the bytes are no PDUs
}

// filter returns the PDUs in b.
func (n *noticer) filter(b []byte) ([]byte, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.lost {
		return b, nil
	}
	if n.notice != nil {
		return nil, n.add(b)
	}
	for i := 0; i < len(b); {
		if k := min(n.left, len(b)-i); k > 0 {
			n.left -= k
			i += k
			continue
		}
		had := len(n.head)
		n.head = append(n.head, b[i:min(i+4-had, len(b))]...)
		if frame.IsNotice(n.head) {
			n.notice = append([]byte{}, n.head[:had]...)
			return b[:i], n.add(b[i:])
		}
		length, known, err := rdp.PDULength(n.head)
		switch {
		case err != nil:
			n.lost = true
			return b, nil
		case !known:
			i += len(n.head) - had
		default:
			n.left = length - had
			n.head = n.head[:0]
		}
	}
	return b, nil
}

func (n *noticer) add(b []byte) error {
	if n.notice = append(n.notice, b...); len(n.notice) > frame.MaxSize+4 {
		return frame.ErrTooLarge
	}
	return nil
}

// reason returns what the broker has said, or nil.
func (n *noticer) reason() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.notice == nil {
		return nil
	}
	b, err := frame.Read(bytes.NewReader(n.notice))
	if err != nil {
		return nil
	}
	return noticed(b)
}
