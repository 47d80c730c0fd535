// Package lab makes hosts for tests and demonstrations: real ones, with their
// own accounts, files, processes, network and, where asked for, systemd, on a
// machine that never notices.
//
// The idea is that a program moves into namespaces of its own before it makes
// anything. Main starts the program again inside a set of new namespaces, with
// a small init above it; the bridge, the hosts, their mounts and processes all
// live in there, so the kernel takes everything away when the program ends,
// however it ends. Each host is a further set of namespaces on that bridge,
// with the machine's own root file system under it and a tmpfs over that: it
// may read what the machine has installed and write wherever it likes.
//
// The lab promises that the machine's accounts, files, ports and interfaces
// stay as they were, and Watch checks it. It does not promise to hold a
// hostile program: hosts run as root of the machine's user namespace.
//
// It needs Linux and root. In a test binary:
//
//	func TestMain(m *testing.M) { os.Exit(lab.Main(m.Run)) }
//
//	func TestTwoHosts(t *testing.T) {
//		l := lab.New(t, "")
//		web := l.Host("web01")
//		web.AddUser("ann", "secret")
//		web.StartXRDP("#204060")
//		…
//	}
package lab
