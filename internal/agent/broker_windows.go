package agent

import (
	"context"
	"os"

	"sft"
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

// sshdAddress is empty: sftd looks after no SSH server of Windows, and the
// service is not known there.
func (a *Agent) sshdAddress() string { return "" }

// connectSSH is not reached: sshAddress is empty.
func (a *Agent) connectSSH(context.Context) (sock *os.File, dial string, err error) {
	return nil, "", &sft.Error{Code: sft.UnknownService, Msg: "the host has no SSH server that sftd looks after", Hint: "use \"sft rdp\""}
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
