// Package privsep splits sftd in two: a broker, which talks to the network and
// holds no rights, and a monitor, which holds the rights and talks to nothing
// but the broker and the platform.
//
// The monitor starts the broker as a child ([Start]) and hands it one end of an
// unnamed channel, so there is no name on the machine for another process to
// connect to. The broker's first act is to give everything up ([Enter]). Before
// it is handed anything, the monitor reads back from outside that it did: a
// broker that is not locked in is killed.
//
// What it cannot be handed it makes itself: on Linux the listener and the
// connected sockets come over the channel, on Windows the broker listens and
// connects, to the addresses it is told. Each system takes its one way and
// refuses the other.
//
// From then on the broker may ask for exactly what the [Request] type lists.
// The monitor's [Handler] checks each request against facts of its own; it
// takes the broker's word for nothing but which of its questions to answer. A
// message that an honest broker would not send ends the broker at once.
//
// What a broker holds when someone has taken it over: the sockets of the
// streams that are open, the listener, and the right to ask. On Linux it cannot
// make a socket, connect one, open a file, start a program or signal a process;
// on Windows it has the rights of a restricted token at low integrity, and no
// second process.
//
// The package knows nothing of TLS, accounts or policy: those are in
// internal/broker on one side of the channel and internal/agent on the other.
package privsep

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"time"
)

// What either side may ask of the other, and hold.
const (
	MaxMessage      = 192 << 10  // bytes of one message
	MaxFrame        = 4 + 64<<10 // bytes of Open.Frame: the length and the frame
	MaxCertificates = 8          // in Open.Certificates
	MaxStreams      = 4096       // open at once; the next is refused with sft.TooMany
	maxText         = 256        // bytes of Close.Why, End.Why
	maxLayers       = 16         // in Ready
	maxCalls        = 128        // outstanding at once, for each kind of request
	startTimeout    = 10 * time.Second
	writeTimeout    = 5 * time.Second
	dialTimeout     = 5 * time.Second
	requestTimeout  = 30 * time.Second // of one call of a Handler
)

// A Request is everything a broker can ask of its monitor. Exactly one field
// is set. To add a field is to widen the attack surface: say so in
// docs/attack-surface.md in the same change.
type Request struct {
	Ready  *Ready  `json:"ready,omitempty"`  // the sandbox is on: the first message, and only the first
	Sign   *Sign   `json:"sign,omitempty"`   // prove to a client that this host is this host
	Open   *Open   `json:"open,omitempty"`   // let one person in: ready their account, connect them
	Close  *Close  `json:"close,omitempty"`  // undo Open
	Report *Report `json:"report,omitempty"` // tell what was counted
}

// Ready says what the broker gave up, by its own account. The monitor believes
// what it reads back, and this only where nothing can be read.
type Ready struct {
	Layers []Layer `json:"layers"`
}

// A Layer is one of the things that keep the broker in, as sftd status shows it.
type Layer struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
}

// Sign asks for a signature with the TLS host key over a digest.
type Sign struct {
	Digest Digest `json:"digest"`
}

// A Digest is what the TLS host key signs: 32 bytes and nothing else. On the
// wire it is 64 hexadecimal digits; any other length does not decode.
type Digest [32]byte

// Open asks to let in the person who presented a certificate and sent a frame.
// The monitor verifies both itself; the broker passes them on untouched.
type Open struct {
	Certificates [][]byte `json:"certificates"` // DER, the chain as presented, leaf first
	Frame        []byte   `json:"frame"`        // the first frame, exactly as received
	Remote       string   `json:"remote"`       // address and port of the peer, as in net.Conn.RemoteAddr
}

// An OpenReply is the answer to an Open that was granted.
type OpenReply struct {
	Stream uint64          `json:"stream"` // names the stream in Close and End; 0 where none was opened (ping)
	Reply  json.RawMessage `json:"reply"`  // the frame to send to the client
	// Service is what the broker has to know to speak to the service itself;
	// empty if the client does. It may hold a secret.
	Service json.RawMessage `json:"service,omitempty"`
	// Dial is the loopback address, as in netip.AddrPort.String, of the service
	// that the broker connects to. It is set exactly where a stream was opened
	// on a system that hands over no sockets: Windows.
	Dial string `json:"dial,omitempty"`
}

// Close tells that a stream has ended. The broker sends it once for every
// stream it was given, whoever ended it.
type Close struct {
	Stream   uint64 `json:"stream"`
	BytesIn  uint64 `json:"bytes_in"`  // from the client
	BytesOut uint64 `json:"bytes_out"` // to the client
	Why      string `json:"why"`       // at most 256 bytes
}

// A Report is what the broker counted since it started, and how many streams
// are open. It is shown, and decides nothing but when sftd says of itself that
// it serves.
type Report struct {
	Listening         bool   `json:"listening,omitempty"` // it accepts connections
	Accepted          uint64 `json:"accepted"`            // TCP connections
	Refused           uint64 `json:"refused"`             // by a limit, or by the monitor
	HandshakeFailures uint64 `json:"handshake_failures"`  // TLS or first frame
	Opened            uint64 `json:"opened"`              // streams since the start
	Open              uint64 `json:"open"`                // streams now
	BytesIn           uint64 `json:"bytes_in"`            // from clients
	BytesOut          uint64 `json:"bytes_out"`           // to clients
}

// A Configuration is what the broker serves with. The first one comes with the
// listener; a later one replaces it for connections accepted from then on.
type Configuration struct {
	HostCertificates [][]byte      `json:"host_certificates"` // DER, leaf first; its key stays with the monitor
	ClientCAs        [][]byte      `json:"client_cas"`        // DER
	ClockOffset      time.Duration `json:"clock_offset"`      // add to the local clock
	Limits           Limits        `json:"limits"`
	// Listen is the TCP address, host:port, that the broker listens on. It is
	// set with the first configuration, on a system that hands over no
	// listener: Windows.
	Listen string `json:"listen,omitempty"`
}

// Limits bound what the network can make the broker hold. Zero means the
// broker's default.
type Limits struct {
	Handshakes int `json:"handshakes"`  // connections that have not opened a stream
	Streams    int `json:"streams"`     // open streams
	PerAddress int `json:"per_address"` // connections of one remote address
}

// End tells the broker to end a stream now. It answers with a Close.
type End struct {
	Stream uint64 `json:"stream"`
	Why    string `json:"why"` // at most 256 bytes
}

// A Handler is the monitor's side of the requests. Its methods are called
// concurrently, a goroutine for each request. ctx ends with the child, and
// after 30 seconds.
//
// An error that is a *[sft.Error] reaches the broker, and may be shown to the
// person; of any other error the broker is told only that it happened.
//
// Each Open that was granted with a stream is followed by exactly one Close,
// whatever becomes of the child, and no call is running or comes after
// [Child.Wait] has returned.
type Handler interface {
	// Sign signs digest with the TLS host key.
	Sign(ctx context.Context, digest [32]byte) ([]byte, error)
	// Open decides, and returns the socket that is connected to the service.
	// The socket is nil exactly where the reply's Stream is 0. Open must not
	// use it again. On Windows it is always nil, and the reply has Dial.
	Open(ctx context.Context, o Open) (OpenReply, *os.File, error)
	// Close undoes Open.
	Close(ctx context.Context, c Close)
	// Report takes the broker's counters.
	Report(r Report)
}

// A Config says how to start a broker.
type Config struct {
	UID, GID int          // of the account BrokerUser; never 0. Windows has LocalService instead
	Path     string       // the program; empty means the running one
	Argv     []string     // empty means sftd broker
	Env      []string     // for tests; a broker has no environment
	Log      *slog.Logger // nil means slog.Default

	// birth, if set, changes what the child is born with: for tests of
	// children that a monitor must refuse.
	birth  func(*os.ProcAttr)
	alter  func(*plan)                    // the same, for Windows
	launch func(Config) (launched, error) // instead of the system's
}
