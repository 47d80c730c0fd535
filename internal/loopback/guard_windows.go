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
	pid, err := socketProcess(peer, here)
	if err != nil {
		return err
	}
	p, err := windows.OpenProcess(windows.PROCESS_QUERY_LIMITED_INFORMATION, false, pid)
	if err != nil {
		return fmt.Errorf("open its process %d: %w", pid, err)
	}
	defer windows.CloseHandle(p)
	var token windows.Token
	if err := windows.OpenProcessToken(p, windows.TOKEN_QUERY, &token); err != nil {
		return fmt.Errorf("open the token of its process %d: %w", pid, err)
	}
	defer token.Close()
	theirs, err := token.GetTokenUser()
	if err != nil {
		return err
	}
	ours, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return err
	}
	if !theirs.User.Sid.Equals(ours.User.Sid) {
		return fmt.Errorf("its process %d belongs to %s", pid, theirs.User.Sid)
	}
	var theirSession, ourSession uint32
	if err := windows.ProcessIdToSessionId(pid, &theirSession); err != nil {
		return err
	}
	if err := windows.ProcessIdToSessionId(windows.GetCurrentProcessId(), &ourSession); err != nil {
		return err
	}
	if theirSession != ourSession {
		return fmt.Errorf("its process %d is in session %d, not %d", pid, theirSession, ourSession)
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
