package privsep

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/windows"
)

// Enter looks that this process has no rights a broker must not have, and
// returns the way to its monitor. Call it first in main: standard input and
// output are the channel, and are gone afterwards. On an error the program must
// exit.
//
// There is nothing to give up: on Windows a broker is born with what it has.
func Enter() (*Monitor, error) {
	ch, err := enter()
	if err != nil {
		return nil, err
	}
	return newMonitor(ch, Ready{Layers: []Layer{}}, listenExclusive, exit)
}

// enter is Enter before anything is sent.
func enter() (*pipe, error) {
	own, err := readToken(windows.GetCurrentProcessToken()) // a broker may not open its own
	if err != nil {
		return nil, err
	}
	if _, err := judgeToken(newPlan(own), own, excused); err != nil {
		return nil, fmt.Errorf("the broker has rights: %w; let sftd start its broker itself", err)
	}
	in, out := os.Stdin, os.Stdout
	os.Stdin, os.Stdout = nil, nil
	for _, f := range []*os.File{in, out} {
		if kind, err := windows.GetFileType(windows.Handle(f.Fd())); err != nil || kind != windows.FILE_TYPE_PIPE {
			return nil, errors.New("open channel: it is not a pipe; let sftd start its broker itself")
		}
	}
	return newPipe(in, out), nil
}

// exclusive is SO_EXCLUSIVEADDRUSE: Microsoft, "Using SO_REUSEADDR and
// SO_EXCLUSIVEADDRUSE". Without it another account's process could bind the
// same port, and take connections.
const exclusive = ^4

// listenExclusive listens on a TCP address that nobody else can then take a
// part of.
func listenExclusive(address string) (net.Listener, error) {
	c := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var set error
		err := raw.Control(func(fd uintptr) {
			set = windows.SetsockoptInt(windows.Handle(fd), windows.SOL_SOCKET, exclusive, 1)
		})
		return errors.Join(err, set)
	}}
	return c.Listen(context.Background(), "tcp", address)
}
