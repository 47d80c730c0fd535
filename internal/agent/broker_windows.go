package agent

import (
	"context"
	"os"

	"sft/internal/privsep"
)

// brokerAccount leaves the account alone: on Windows the broker always runs as
// LocalService.
func (a *Agent) brokerAccount(*privsep.Config) error { return nil }

// listen leaves listening to the broker. An address that is taken ends it, and
// its last words say so.
func listen(address string) (listening, error) {
	return listening{address: address, broker: address}, nil
}

// connectRDP looks whether the RDP service is there, and returns the address
// that the broker connects to.
func (a *Agent) connectRDP(ctx context.Context) (sock *os.File, dial string, err error) {
	c, err := a.callRDP(ctx)
	if err != nil {
		return nil, "", err
	}
	defer c.Close()
	return nil, c.RemoteAddr().String(), nil
}
