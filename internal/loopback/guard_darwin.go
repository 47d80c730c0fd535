package loopback

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// checkPeer refuses the socket from peer to here unless it belongs to the
// person's uid.
func checkPeer(peer, here netip.AddrPort) error {
	for try := 0; ; try++ {
		b, err := unix.SysctlRaw("net.inet.tcp.pcblist_n")
		if err != nil {
			return err
		}
		uid, found := pcbOwner(b, peer, here)
		if found && int(uid) != os.Getuid() {
			return fmt.Errorf("it belongs to user id %d", uid)
		}
		if found {
			return nil
		}
		if try == 2 {
			return errors.New("it is not known whose it is")
		}
		time.Sleep(10 * time.Millisecond)
	}
}
