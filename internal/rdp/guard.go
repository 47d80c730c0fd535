package rdp

import (
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"sync"

	"sft"
)

// dynamicCarrier is the static channel that carries the dynamic ones
// (MS-RDPEDYC 1.3.2).
const dynamicCarrier = "drdynvc"

// A Guard watches over a connection that stands. It walks over what crosses
// from PDU to PDU and passes it on as it came, but for three things: what a
// client sends on a channel that was left out is dropped; a redirection to
// another host ends the connection; and where the project does not allow all
// channels, the dynamic ones that it does not are refused in the client's
// place.
type Guard struct {
	main    uint16        // the I/O channel
	user    uint16        // the client's, as initiator
	dynamic uint16        // of the dynamicCarrier; 0: there is none
	known   []uint16      // the channels that the service has
	policy  *sft.Channels // nil: nothing has to be refused
	service io.Writer     // takes whole PDUs, whoever writes

	in, out walker

	mu      sync.Mutex
	refused map[uint32]bool // dynamic channels, by their number
}

// ErrRedirect says that the service sends the client to another host.
var ErrRedirect = &sft.Error{Code: sft.RDSFarm, Msg: "the RDP service sends you to another host of its farm, and this session leads to one host alone",
	Hint: "name the other host, if it is enrolled, or take this one out of the farm"}

// errFraming is about bytes that are no PDUs.
func errFraming(err error) error {
	return &sft.Error{Code: sft.Invalid, Msg: "what crosses is not RDP: " + err.Error(), Err: err, Hint: "run \"sft rdp\" again, with another RDP client if it stays so"}
}

// In takes what comes from the client, in pieces of any size, and returns what
// goes to the service; it is good until the next call. With an error, which is
// an *sft.Error, it is what may still go before the end. Where a policy is to be
// kept, it returns whole PDUs alone, so that others may be written between
// them.
func (g *Guard) In(b []byte) ([]byte, error) {
	return g.in.walk(b, func(head []byte, whole bool) (verdict, error) {
		channel, ok, more := channelOf(head)
		switch {
		case inPieces(head):
			return drop, errFraming(errPieces)
		case more:
			return undecided, nil
		case ok && !slices.Contains(g.known, channel):
			return drop, nil
		case g.policy == nil:
			return pass, nil
		case !whole:
			return collect, nil
		case ok && channel == g.dynamic && g.dynamic != 0:
			return g.answered(head)
		}
		return pass, nil
	})
}

// Out takes what comes from the service, and returns what goes to the client,
// in the same way.
func (g *Guard) Out(b []byte) ([]byte, error) {
	return g.out.walk(b, func(head []byte, whole bool) (verdict, error) {
		channel, ok, more := channelOf(head)
		if inPieces(head) {
			return drop, errFraming(errPieces)
		}
		watched := ok && (channel == g.main || g.policy != nil && channel == g.dynamic && g.dynamic != 0)
		switch {
		case more:
			return undecided, nil
		case !watched:
			return pass, nil
		case !whole:
			return collect, nil
		}
		data, err := ParseSendData(head)
		if err != nil {
			return drop, errFraming(err)
		}
		if channel != g.main {
			return g.offered(data)
		}
		if IsRedirection(data.Data) {
			return drop, ErrRedirect
		}
		return pass, nil
	})
}

// Rest is how many bytes are still to come of the PDU that Out has returned the
// beginning of; 0 if what it has returned ends with a PDU. Who calls Out may
// call it.
func (g *Guard) Rest() int {
	if g.out.fate != pass {
		return 0
	}
	return g.out.left
}

// errChannel is about a dynamic channel that cannot be judged.
var errChannel = &sft.Error{Code: sft.Invalid, Msg: "the RDP service opens a channel in a way that cannot be looked into",
	Hint: "allow all channels in the project's settings, or report it with the version of the RDP service"}

// dynamicPDU reads what begins on the carrier; ok is false for what goes on.
func dynamicPDU(data []byte) (p DynamicPDU, ok bool, err error) {
	chunk, err := ParseChunk(data)
	if err != nil {
		return p, false, errFraming(err)
	}
	if chunk.Flags&ChannelCompressed != 0 {
		return p, false, errChannel // compression was not agreed on
	}
	if chunk.Flags&ChannelFirst == 0 {
		return p, false, nil
	}
	// A create request fits into one chunk. One that does not is not looked
	// into, so it does not pass either.
	if p, err = ParseDynamic(chunk.Data); err != nil {
		return p, false, errFraming(err)
	}
	if p.Cmd == DynamicCreate && chunk.Flags&ChannelLast == 0 {
		return p, false, errChannel
	}
	return p, true, nil
}

// offered judges what the service says on the carrier.
func (g *Guard) offered(data SendDataPDU) (verdict, error) {
	p, ok, err := dynamicPDU(data.Data)
	if err != nil || !ok || p.Cmd != DynamicCreate {
		return pass, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if Allows(*g.policy, p.Name, true) {
		delete(g.refused, p.ChannelID)
		return pass, nil
	}
	if g.refused == nil {
		g.refused = map[uint32]bool{}
	}
	if len(g.refused) >= maxRefused {
		return drop, errChannel
	}
	g.refused[p.ChannelID] = true
	body := DynamicCreateResponse(p.ChannelID, StatusRefused)
	answer, err := SendDataPDU{Initiator: g.user, Channel: g.dynamic, Priority: data.Priority,
		Data: Chunk{Length: uint32(len(body)), Flags: ChannelFirst | ChannelLast, Data: body}.Bytes()}.Bytes()
	if err != nil {
		return drop, err
	}
	if _, err := g.service.Write(answer); err != nil {
		return drop, silent(err)
	}
	return drop, nil
}

// maxRefused caps the dynamic channels that are remembered as refused.
const maxRefused = 4096

// answered judges what the client says on the carrier: about a channel that
// was refused in its place it has nothing to say.
func (g *Guard) answered(pdu []byte) (verdict, error) {
	data, err := ParseSendData(pdu)
	if err != nil {
		return drop, errFraming(err)
	}
	p, ok, err := dynamicPDU(data.Data)
	if err != nil || !ok {
		return pass, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch p.Cmd {
	case DynamicCreate, DynamicDataFirst, DynamicData, DynamicClose, DynamicDataFirstCompressed, DynamicDataCompressed:
		if g.refused[p.ChannelID] {
			return drop, nil
		}
	}
	return pass, nil
}

var errPieces = errors.New("a PDU comes in several of X.224")

// inPieces reports whether head begins a data TPDU that is not the last of its
// kind (X.224 13.7). RDP has none, and what they carry could not be looked into.
func inPieces(head []byte) bool {
	return len(head) >= 7 && head[0] == 3 && head[5] == 0xf0 && head[6] != 0x80
}

// channelOf returns the channel of a data PDU of MCS that begins with head;
// more means that head is too short to tell.
func channelOf(head []byte) (channel uint16, ok, more bool) {
	if len(head) == 0 || head[0] != 3 { // fast-path
		return 0, false, len(head) == 0
	}
	if len(head) < 8 {
		return 0, false, true
	}
	if k := KindOf(head); k != SendData && k != SendDataIndication {
		return 0, false, false
	}
	if len(head) < 12 {
		return 0, false, true
	}
	return binary.BigEndian.Uint16(head[10:]), true, false
}

// A verdict says what becomes of a PDU.
type verdict int

const (
	undecided verdict = iota // more of it is needed
	pass
	drop
	collect // it is to be seen whole
)

// headSize is as much of a PDU as a verdict needs.
const headSize = 12

// A walker goes from PDU to PDU through a stream that comes in pieces.
type walker struct {
	held []byte  // the beginning of a PDU that is undecided, or is being collected
	left int     // of the PDU that is being passed or dropped
	fate verdict // of it
	buf  []byte
}

// walk returns what may go on, with an error what may go on before it. judge is shown the beginning of each PDU, with
// whole set if it is all of it, and again with all of it after collect. Of
// what passes through one piece in a row nothing is copied.
func (w *walker) walk(b []byte, judge func(head []byte, whole bool) (verdict, error)) ([]byte, error) {
	out := w.buf[:0] // what has to be copied together; empty: all of it is b[from:to]
	from, to := 0, 0 // a run of b that passes, after out
	emit := func(p, q int) {
		if to != p && to > from {
			out = append(out, b[from:to]...)
			from = p
		} else if to <= from {
			from = p
		}
		to = q
	}
	flush := func(extra []byte) { // extra goes after the run
		if to > from {
			out = append(out, b[from:to]...)
		}
		from, to = 0, 0
		out = append(out, extra...)
	}
	end := func(err error) ([]byte, error) {
		if w.buf = out[:0]; cap(w.buf) > keep {
			w.buf = nil
		}
		if len(w.held) == 0 && cap(w.held) > keep {
			w.held = nil
		}
		if len(out) == 0 {
			return b[from:to], err
		}
		return append(out, b[from:to]...), err
	}
	for i := 0; i < len(b); {
		if w.left > 0 {
			n := min(w.left, len(b)-i)
			if w.fate == pass {
				emit(i, i+n)
			}
			w.left -= n
			i += n
			continue
		}
		if len(w.held) > 0 {
			n, v, err := w.more(b[i:], judge)
			i += n
			if err != nil {
				return end(err)
			}
			if v == pass {
				flush(w.held)
			}
			if v == pass || v == drop {
				w.held = w.held[:0]
			}
			continue
		}
		rest := b[i:]
		n, known, err := PDULength(rest[:min(len(rest), 4)])
		if err != nil {
			return end(errFraming(err))
		}
		v := undecided
		whole := known && len(rest) >= n
		if whole {
			rest = rest[:n]
		}
		if known {
			if v, err = judge(rest, whole); err != nil {
				return end(err)
			}
		}
		switch {
		case v == pass || v == drop:
			w.fate, w.left = v, n
		case whole: // there is nothing more to know
			return end(errFraming(errors.New("a PDU too short to be one")))
		default:
			w.held = append(w.held[:0], rest...)
			i = len(b)
		}
	}
	return end(nil)
}

// keep is how much memory an idle walker may hold, in bytes.
const keep = 4 << 10

// more adds to what is held until it can be judged, and returns how much of b
// it took.
func (w *walker) more(b []byte, judge func(head []byte, whole bool) (verdict, error)) (taken int, v verdict, err error) {
	for {
		n, known, err := PDULength(w.held[:min(len(w.held), 4)])
		if err != nil {
			return taken, drop, errFraming(err)
		}
		whole := known && len(w.held) >= n
		if known {
			if v, err = judge(w.held, whole); err != nil {
				return taken, drop, err
			}
			if v == pass || v == drop {
				w.fate, w.left = v, n-len(w.held)
				return taken, v, nil
			}
			if whole {
				return taken, drop, errFraming(errors.New("a PDU too short to be one"))
			}
		}
		want := len(w.held) + 1
		if known && v == collect {
			want = n
		}
		k := min(want-len(w.held), len(b)-taken)
		if k == 0 {
			return taken, undecided, nil
		}
		w.held = append(w.held, b[taken:taken+k]...)
		taken += k
		if len(w.held) < want {
			return taken, undecided, nil
		}
	}
}
