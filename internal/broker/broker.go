// Package broker is the Access Broker: what answers on TCP 4421 and turns a
// certificate that the platform made minutes ago into a stream of bytes to one
// service of this host.
//
// It is two halves in two processes, which is the idea of the whole. A
// [Server] speaks to the network: TLS, the first frame, then bytes both ways.
// It decides nothing and holds nothing: no key, no address, no account. What
// it needs it asks of a [Monitor]. A [Verifier] is the other half: it runs in
// the monitor and judges the certificate and the frame that the Server passed
// on as they came, as if the Server were the attacker. So the checks that a
// Server makes in TLS only shed load, and a Server that was taken over can
// neither make a proof nor use one twice.
//
// The Server's promise to people is that nobody else can keep them out: the
// accept loop waits for nobody, whoever has not proven anything within ten
// seconds is gone, and when there are too many of those the ones that have
// shown the least go first.
//
// The frames and the proof are in internal/frame, the channel between the two
// processes is in internal/privsep.
package broker

import (
	"context"
	"net"
	"time"

	"sft"
	"sft/internal/frame"
)

// A Monitor holds the rights that a Server does not have. Its methods are
// called by many goroutines at once. When ctx ends first, the Monitor itself
// undoes what is granted later.
type Monitor interface {
	// Sign returns an ASN.1 ECDSA signature of a SHA-256 digest by the host
	// key.
	Sign(ctx context.Context, digest [32]byte) ([]byte, error)
	// Open decides about one first frame and connects the service. A refusal
	// that is an *sft.Error is sent to the client; of any other the client is
	// told only that it happened.
	Open(ctx context.Context, o Open) (Opened, error)
	// Close says that a stream is over. It is called once for each Stream
	// that Open returned.
	Close(ctx context.Context, c Closed) error
}

// Open is what a client presented, untouched. It is within MaxCertificates,
// MaxChain and frame.MaxSize, and never empty.
type Open struct {
	Certificates [][]byte // DER, as presented, leaf first
	Frame        []byte   // without its length
	Remote       string   // address and port of the client, for the records
}

// Opened is what a Monitor grants.
type Opened struct {
	Stream uint64   // names the stream in Closed and End; 0 if there is nothing to close
	Reply  []byte   // the frame for the client; it is overwritten once sent
	Conn   net.Conn // the service; nil for ping, which ends with the reply
	// RDP is set if the Server signs in to the RDP service itself. Reply is
	// then completed by it, see Server.inject.
	RDP *RDPService
}

// An RDPService is what a Server needs to sign in to the host's RDP service.
// It holds the account's password and must not be logged.
type RDPService struct {
	Login    string       `json:"login"`
	Domain   string       `json:"domain,omitempty"` // the host's NetBIOS name, on Windows
	Password frame.Secret `json:"password"`
	// CertificateSHA256 is the certificate that the service is configured
	// with, as its fingerprint in lower-case hex.
	CertificateSHA256 string       `json:"certificate_sha256"`
	Channels          sft.Channels `json:"channels"`
}

// Closed tells a Monitor how a stream ended.
type Closed struct {
	Stream   uint64
	BytesIn  uint64 // from the client to the service
	BytesOut uint64 // from the service to the client
	Why      string // ClientClosed, ServiceClosed, Failed, Aborted, PasswordRefused, ServiceRefused, or EndedPrefix and a reason
}

// Why streams end.
const (
	ClientClosed  = "client closed"
	ServiceClosed = "service closed"
	Failed        = "error"   // the network, or a broken TLS record
	EndedPrefix   = "ended: " // and the reason given to Server.End
	// Locked is a reason given to Server.End: the desktop asks for a password,
	// which nobody knows, and is there again after a fresh sign-in.
	Locked = "locked"
	// Nobody signed in by what was opened: the client's end gave up before
	// the Client Info, or did not prove itself.
	Aborted = "aborted"
	// The RDP service did not take the password, which is to be replaced.
	PasswordRefused = "password refused"
	// The RDP service could not be signed in to for another reason.
	ServiceRefused = "service refused"
)

// The caps of a presented chain. The platform's are one certificate of about
// 800 bytes.
const (
	MaxCertificates = 4
	MaxChain        = 16 << 10 // bytes of DER
)

// Config is what a Server needs to know of its host.
type Config struct {
	HostCertificates [][]byte // DER, leaf first; the leaf's key is P-256 and the Monitor's
	ClientCAs        [][]byte // DER of the project's access CA: more than one while it rotates
	ClockOffset      time.Duration
	Limits           Limits
}

// Limits keep a Server small. A zero field has its default. Connections that
// have not said anything may be eight times as many as Handshakes and
// PerAddress allow.
type Limits struct {
	Handshakes int // connections in TLS, or before the end of their frame; 256
	PerAddress int // of those, from one address (IPv6: one /64); 64
	Streams    int // streams, and connections that wait for the Monitor; 1024
}

func (l Limits) withDefaults() Limits {
	set := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	set(&l.Handshakes, 256)
	set(&l.PerAddress, 64)
	set(&l.Streams, 1024)
	return l
}

// Counters are what a Server has counted since it was made, and, in Waiting
// and Open, what there is now.
type Counters struct {
	Accepted          uint64 // TCP connections
	Shed              uint64 // of those: dropped because there were too many
	HandshakeFailures uint64 // of those: TLS failed, or no readable frame came in time
	Refused           uint64 // frames that the Monitor or the cap on streams refused
	Opened            uint64 // frames that were granted
	Waiting           uint64 // connections that have not sent their frame
	Open              uint64 // streams
	BytesIn           uint64 // of all streams, from clients
	BytesOut          uint64 // of all streams, to clients
	AcceptErrors      uint64
}

// checkChain refuses a chain over the caps.
func checkChain(chain [][]byte) error {
	n := 0
	for _, c := range chain {
		n += len(c)
	}
	if len(chain) > MaxCertificates || n > MaxChain {
		return &sft.Error{Code: sft.Invalid, Msg: "the certificate chain is too long",
			Hint: "send the certificate from the platform and nothing else"}
	}
	return nil
}
