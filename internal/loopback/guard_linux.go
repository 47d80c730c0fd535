package loopback

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"
)

// checkPeer refuses the socket from peer to here unless it belongs to the
// person's uid. The table is read again if the socket is not in it: the
// kernel does not promise one consistent view.
func checkPeer(peer, here netip.AddrPort) error {
	for try := 0; ; try++ {
		for _, path := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
			f, err := os.Open(path)
			if errors.Is(err, os.ErrNotExist) && path == "/proc/self/net/tcp6" {
				continue // a kernel without IPv6
			}
			if err != nil {
				return err
			}
			uid, found, err := procNetOwner(f, peer, here)
			f.Close()
			if err != nil {
				return err
			}
			if found && int(uid) != os.Getuid() {
				return fmt.Errorf("it belongs to user id %d", uid)
			}
			if found {
				return nil
			}
		}
		if try == 2 {
			return errors.New("it is not known whose it is")
		}
		time.Sleep(10 * time.Millisecond)
	}
}
