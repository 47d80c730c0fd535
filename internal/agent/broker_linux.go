package agent

import (
	"context"
	"errors"
	"net"
	"os"
	"os/user"
	"strconv"
	"time"

	"sft"
	"sft/internal/privsep"
)

// brokerAccount says which account the broker runs as: BrokerUser.
func (a *Agent) brokerAccount(cfg *privsep.Config) error {
	name := a.conf.BrokerUser
	u, err := user.Lookup(name)
	if err != nil {
		return &sft.Error{Code: sft.Invalid, Msg: "there is no account " + sft.Quote(name) + " for the broker", Hint: "make it: useradd --system --no-create-home --shell /usr/sbin/nologin " + name + ", or set BrokerUser in sftd.yaml"}
	}
	var err1, err2 error
	cfg.UID, err1 = strconv.Atoi(u.Uid)
	cfg.GID, err2 = strconv.Atoi(u.Gid)
	return errors.Join(err1, err2)
}

// listen makes the listener, which is handed over to the broker.
func listen(address string) (listening, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return listening{}, err
	}
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		l.Close()
		return listening{}, err
	}
	return listening{Listener: l, address: l.Addr().String(), file: f}, nil
}

// connectSSH connects to the SSH server and returns the socket, for the broker.
func (a *Agent) connectSSH(ctx context.Context) (sock *os.File, dial string, err error) {
	d := net.Dialer{Timeout: 5 * time.Second}
	c, err := d.DialContext(ctx, "tcp", a.sshAddress())
	if err != nil {
		return nil, "", &sft.Error{Code: sft.Unavailable, Msg: "the SSH server of the host cannot be used: " + err.Error(), Err: err, Hint: "start it, and let it listen on 127.0.0.1"}
	}
	defer c.Close()
	sock, err = c.(*net.TCPConn).File()
	return sock, "", err
}

// connectRDP connects to the RDP service and returns the socket, for the broker.
func (a *Agent) connectRDP(ctx context.Context) (sock *os.File, dial string, err error) {
	sock, err = a.dialRDP(ctx)
	return sock, "", err
}
