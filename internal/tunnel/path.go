package tunnel

import (
	"context"
	"errors"
	"net"
	"sync"

	"golang.org/x/crypto/ssh"
)

// A Hop is a host to go through: an SSH server that connects on.
type Hop struct {
	Name    string // for messages
	Address string // host:port

	// Login, Signer (a certificate with its key), ID (the principal that the
	// host's certificate must have), HostCAs and HostKeys are of an enrolled
	// hop.
	Login    string
	Signer   ssh.Signer
	ID       string
	HostCAs  []ssh.PublicKey
	HostKeys []ssh.PublicKey // that it may show without a certificate
	Netcat   bool            // go on by a program on the hop, not by direct-tcpip

	// Unmanaged is a hop that the person's own ssh goes through. Address is
	// then what they would type, without a port if Port is 0.
	Unmanaged bool
	Port      int
}

// A Path connects through any number of hops, each reached through the one
// before it: what is between them sees ciphertext alone. The SSH connection to
// a hop is made when it is first needed, and shared by what goes through it;
// one that has broken is made again. Its methods may be used concurrently.
type Path struct {
	// Hops returns the hops in their order, with certificates that are good
	// now. It is called when an SSH connection is to be made.
	Hops func(ctx context.Context) ([]Hop, error)
	// Mark is told when a step is done: "hop NAME". It may be nil.
	Mark func(step string)

	mu sync.Mutex
}

// Dial connects to address, host:port, through the hops. Closing the Path ends
// the connection. Errors are *sft.Error, and name the hop that failed.
func (p *Path) Dial(ctx context.Context, address string) (net.Conn, error) {
	return nil, errors.New("not built yet")
}

// Close ends every connection through the hops.
func (p *Path) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return nil
}
