package loopback

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/windows"
)

var getExtendedTCPTable = windows.NewLazySystemDLL("iphlpapi.dll").NewProc("GetExtendedTcpTable")

// ownerPIDConnections is TCP_TABLE_OWNER_PID_CONNECTIONS.
const ownerPIDConnections = 4

// checkPeer refuses the socket from peer to here unless its process runs as
// this very user, in this very logon session: another session of the same
// name is on another screen.
func checkPeer(peer, here netip.AddrPort) error {
	_, err := checkedPeer(peer, here)
	return err
}

// checkedPeer is checkPeer, and returns the process.
func checkedPeer(peer, here netip.AddrPort) (process, error) {
	pid, err := socketProcess(peer, here)
	if err != nil {
		return process{}, err
	}
	h, err := windows.OpenProcess(windows.PROCESS_QUERY_LIMITED_INFORMATION, false, pid)
	if err != nil {
		return process{}, fmt.Errorf("open its process %d: %w", pid, err)
	}
	defer windows.CloseHandle(h)
	theirs, err := ask(h, pid)
	if err != nil {
		return process{}, err
	}
	// The table was read before the process was opened: its number may have
	// gone to another one in between. The socket of one that has ended is gone.
	if again, err := socketProcess(peer, here); err != nil || again != pid {
		return process{}, errors.New("it is not known whose it is")
	}
	ours, err := ask(windows.CurrentProcess(), windows.GetCurrentProcessId())
	if err != nil {
		return process{}, err
	}
	return theirs, theirs.belongs(ours)
}

// ask asks a process that is open who it is.
func ask(h windows.Handle, pid uint32) (process, error) {
	p := process{pid: pid}
	var token windows.Token
	if err := windows.OpenProcessToken(h, windows.TOKEN_QUERY, &token); err != nil {
		return p, fmt.Errorf("open the token of its process %d: %w", pid, err)
	}
	defer token.Close()
	user, err := token.GetTokenUser()
	if err != nil {
		return p, err
	}
	p.user = user.User.Sid.String()
	if err := windows.ProcessIdToSessionId(pid, &p.session); err != nil {
		return p, err
	}
	var started, ended, kernel, inUser windows.Filetime
	if err := windows.GetProcessTimes(h, &started, &ended, &kernel, &inUser); err != nil {
		return p, err
	}
	p.started = uint64(started.HighDateTime)<<32 | uint64(started.LowDateTime)
	return p, nil
}

// Only lets no sockets in but those of one process, which must be running: by
// its number, the time it was started at and its session, besides being the
// person's. Call it before the first Accept. The process is kept open until
// the program ends, so that no other one gets its number.
func (l *Listener) Only(pid uint32) error {
	h, err := windows.OpenProcess(windows.PROCESS_QUERY_LIMITED_INFORMATION, false, pid)
	if err != nil {
		return err
	}
	want, err := ask(h, pid)
	if err != nil {
		windows.CloseHandle(h)
		return err
	}
	l.check = func(peer, here netip.AddrPort) error {
		got, err := checkedPeer(peer, here)
		if err != nil {
			return err
		}
		return got.is(want)
	}
	return nil
}

// socketProcess returns the process that has the socket from local to remote,
// by the table that GetExtendedTcpTable fills: a count, then rows of six
// 32-bit words (MIB_TCPROW_OWNER_PID).
func socketProcess(local, remote netip.AddrPort) (uint32, error) {
	const row = 24
	b := make([]byte, 64<<10)
	for range 8 {
		size := uint32(len(b))
		status, _, _ := getExtendedTCPTable.Call(uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&size)), 0,
			windows.AF_INET, ownerPIDConnections, 0)
		if windows.Errno(status) == windows.ERROR_INSUFFICIENT_BUFFER {
			b = make([]byte, int(size)+64*row)
			continue
		}
		if status != 0 {
			return 0, windows.Errno(status)
		}
		n := int(binary.LittleEndian.Uint32(b))
		for i := 0; i < n && 4+(i+1)*row <= len(b); i++ {
			r := b[4+i*row:][:row]
			if tableAddr(r[4:]) == local && tableAddr(r[12:]) == remote {
				return binary.LittleEndian.Uint32(r[20:]), nil
			}
		}
		return 0, errors.New("it is not known whose it is")
	}
	return 0, errors.New("the table of connections does not stop growing")
}

// tableAddr reads an address and a port, both in network order.
func tableAddr(b []byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[:4])), binary.BigEndian.Uint16(b[4:]))
}
