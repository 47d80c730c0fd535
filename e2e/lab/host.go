//go:build linux

package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// hostPath is where programs are on a host.
const hostPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// A Host is a machine of the lab.
type Host struct {
	lab  *Lab
	name string
	ip   string
	pid  int // of the host's process 1, as the program sees it
	cmd  *exec.Cmd
	gone chan struct{} // closed when that process has ended
	link string        // the bridge's end of the host's cable

	display *display
	urls    int  // addresses that NextURL has returned
	sam     bool // StartShadow has been here
}

// Host makes a host. Its name is known to all hosts of the lab, and to the
// program itself.
func (l *Lab) Host(name string) *Host {
	l.t.Helper()
	return l.host(name, false)
}

func (l *Lab) host(name string, systemd bool) *Host {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	h, err := l.build(name, systemd)
	if err != nil {
		l.t.Fatalf("make host %s: %v", name, err)
	}
	if err := l.tellNames(); err != nil {
		l.t.Fatalf("tell the hosts of %s: %v", name, err)
	}
	return h
}

func (l *Lab) build(name string, systemd bool) (*Host, error) {
	n := len(l.hosts) + 2
	if n > 254 {
		return nil, fmt.Errorf("the network is full")
	}
	h := &Host{lab: l, name: name, ip: fmt.Sprintf("10.77.0.%d", n), link: fmt.Sprintf("host%d", n), gone: make(chan struct{})}
	dir, err := os.MkdirTemp(scratch, "host-")
	if err != nil {
		return nil, err
	}
	plan, err := json.Marshal(blueprint{
		Name: name, IP: h.ip, Dir: dir, Systemd: systemd,
		Hosts: hostsFile(append(l.hosts[:len(l.hosts):len(l.hosts)], h)),
	})
	if err != nil {
		return nil, err
	}
	networkR, networkW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer networkW.Close()
	readyR, readyW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer readyR.Close()
	log, err := os.Create(filepath.Join(l.dir, name+"-init.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()

	h.cmd = again(stageHost)
	h.cmd.Env = append(h.cmd.Env, blueprintVar+"="+string(plan))
	h.cmd.Stdout, h.cmd.Stderr = log, log
	h.cmd.ExtraFiles = []*os.File{networkR, readyW}
	flags := uintptr(namespaces)
	if _, err := os.Stat("/proc/self/ns/cgroup"); err == nil && !systemd {
		flags |= unix.CLONE_NEWCGROUP // systemd makes its own, later, around a new group
	}
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Setsid: true}
	err = h.cmd.Start()
	networkR.Close()
	readyW.Close()
	if err != nil {
		return nil, err
	}
	h.pid = h.cmd.Process.Pid
	go func() {
		h.cmd.Wait()
		close(h.gone)
	}()
	l.hosts = append(l.hosts, h)
	if err := ip(nil,
		fmt.Sprintf("link add %s type veth peer name eth0 netns %d", h.link, h.pid),
		fmt.Sprintf("link set %s master lan up", h.link)); err != nil {
		return nil, err
	}
	networkW.Close()
	if said, err := io.ReadAll(readyR); err != nil || string(said) != "ok" {
		return nil, fmt.Errorf("%s%v", said, err)
	}
	return h, nil
}

// tellNames brings /etc/hosts up to date on every host and for the program.
// The files are written in place: the program's own is a mount.
func (l *Lab) tellNames() error {
	text := []byte(hostsFile(l.hosts))
	for _, h := range l.hosts {
		if !h.alive() {
			continue
		}
		path := fmt.Sprintf("/proc/%d/root/etc/hosts", h.pid)
		err := os.WriteFile(path, text, 0o644)
		// A process 1 that is just becoming systemd has no root for a moment: the
		// thread that gives it its number ends, and another takes its place.
		for try := 0; try < 100 && errors.Is(err, os.ErrNotExist) && h.alive(); try++ {
			time.Sleep(10 * time.Millisecond)
			err = os.WriteFile(path, text, 0o644)
		}
		if err != nil && h.alive() {
			return err
		}
	}
	return os.WriteFile("/etc/hosts", text, 0o644)
}

// machineID returns an identity for a host: the same name, the same machine.
func machineID(name string) string {
	return fmt.Sprintf("%x\n", sha256.Sum256([]byte(name)))[:32] + "\n"
}

// Name is the host's name.
func (h *Host) Name() string { return h.name }

// IP is the host's address.
func (h *Host) IP() string { return h.ip }

// Command returns a command that runs on the host: as root if user is empty,
// else as that user, in the user's home, with the environment of a fresh
// login and no more. Add to Env what the program needs.
//
// The program dies with the command, and when ctx ends. Signals do not reach
// it: use Start for a program that is to be stopped in order.
func (h *Host) Command(ctx context.Context, user, name string, args ...string) *exec.Cmd {
	a, err := h.account(user)
	full := []string{"-t", strconv.Itoa(h.pid), "-m", "-u", "-i", "-n", "-p", "--", "setpriv", "--pdeathsig=KILL"}
	if user != "" {
		full = append(full, "--reuid="+a.uid, "--regid="+a.gid, "--init-groups")
	}
	full = append(full, "env", "-C", a.home, name)
	cmd := exec.CommandContext(ctx, "nsenter", append(full, args...)...)
	cmd.Err = err
	cmd.Env = []string{"HOME=" + a.home, "USER=" + a.name, "LOGNAME=" + a.name, "SHELL=" + a.shell, "PATH=" + hostPath, "LANG=C.UTF-8", atOnce}
	return cmd
}

// atOnce has a program with the race detector end at once: it waits a second
// for races of its last moment otherwise.
const atOnce = "GORACE=atexit_sleep_ms=0"

// An account is a line of a host's /etc/passwd.
type account struct{ name, uid, gid, home, shell string }

// account looks a user up in the host's own file; "" is root.
func (h *Host) account(user string) (account, error) {
	if user == "" {
		user = "root"
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/etc/passwd", h.pid))
	if err != nil {
		return account{}, fmt.Errorf("host %s: %w", h.name, err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Split(strings.TrimSpace(line), ":"); len(f) == 7 && f[0] == user {
			return account{f[0], f[2], f[3], f[5], f[6]}, nil
		}
	}
	return account{}, fmt.Errorf("host %s has no user %s", h.name, user)
}

// Run runs a program on the host to its end and returns its standard output.
// The error holds what it wrote to standard error.
func (h *Host) Run(user, name string, args ...string) (string, error) {
	return output(h.Command(h.lab.t.Context(), user, name, args...))
}

func output(cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), err
}

// Must is Run for a program that cannot fail.
func (h *Host) Must(user, name string, args ...string) string {
	h.lab.t.Helper()
	out, err := h.Run(user, name, args...)
	if err != nil {
		h.lab.t.Fatalf("%s: %s %s: %v", h.name, name, strings.Join(args, " "), err)
	}
	return out
}

// Write puts a file on the host, and the folders it needs. It belongs to root.
func (h *Host) Write(path string, mode os.FileMode, data []byte) {
	h.lab.t.Helper()
	h.writeAs("root", path, mode, bytes.NewReader(data))
}

func (h *Host) writeAs(owner, path string, mode os.FileMode, data io.Reader) {
	h.lab.t.Helper()
	cmd := h.Command(h.lab.t.Context(), "", "install", "-D", "-o", owner, "-m", fmt.Sprintf("%04o", mode.Perm()), "/dev/stdin", path)
	cmd.Stdin = data
	if _, err := output(cmd); err != nil {
		h.lab.t.Fatalf("%s: write %s: %v", h.name, path, err)
	}
}

// Install copies a program of the machine to the host.
func (h *Host) Install(path, source string) {
	h.lab.t.Helper()
	f, err := os.Open(source)
	if err != nil {
		h.lab.t.Fatalf("%s: install %s: %v", h.name, path, err)
	}
	defer f.Close()
	h.writeAs("root", path, 0o755, f)
}

// Read returns a file of the host.
func (h *Host) Read(path string) ([]byte, error) {
	out, err := h.Run("", "cat", path)
	return []byte(out), err
}

// AddUser makes an account with a home. Without a password nobody can sign in
// to it with one.
func (h *Host) AddUser(name, password string) {
	h.lab.t.Helper()
	h.Must("", "useradd", "-m", "-s", "/bin/bash", name)
	if password != "" {
		h.SetPassword(name, password)
	}
}

// SetPassword changes a password.
func (h *Host) SetPassword(name, password string) {
	h.lab.t.Helper()
	cmd := h.Command(h.lab.t.Context(), "", "chpasswd")
	cmd.Stdin = strings.NewReader(name + ":" + password + "\n")
	if _, err := output(cmd); err != nil {
		h.lab.t.Fatalf("%s: set the password of %s: %v", h.name, name, err)
	}
}

// Kill ends the host as a power cut would. It returns when nothing of it runs.
func (h *Host) Kill() {
	h.cmd.Process.Kill()
	<-h.gone
	ip(nil, "link del "+h.link) // or the kernel does it, a little later
}

func (h *Host) alive() bool {
	select {
	case <-h.gone:
		return false
	default:
		return true
	}
}

// Block cuts the host off: from the given hosts, or with none from all. What
// is sent gets lost, as when a cable is cut; nothing is refused.
func (h *Host) Block(from ...*Host) { h.lab.t.Helper(); h.cable(true, from) }

// Unblock undoes Block.
func (h *Host) Unblock(from ...*Host) { h.lab.t.Helper(); h.cable(false, from) }

func (h *Host) cable(cut bool, others []*Host) {
	h.lab.t.Helper()
	if len(others) == 0 {
		state := "up"
		if cut {
			state = "down"
		}
		if err := ip(nil, "link set "+h.link+" "+state); err != nil {
			h.lab.t.Fatalf("%v", err)
		}
		return
	}
	for _, o := range others {
		for _, pair := range [][2]*Host{{h, o}, {o, h}} {
			// A hardware address that nobody has: what is sent there gets lost.
			command := "neigh replace " + pair[1].ip + " lladdr 02:00:00:00:00:01 dev eth0 nud permanent"
			if !cut {
				command = "neigh del " + pair[1].ip + " dev eth0"
			}
			if err := ip(pair[0], command); err != nil {
				h.lab.t.Fatalf("%v", err)
			}
		}
	}
}

// WaitListen waits until something on the host listens on a TCP address such
// as "127.0.0.1:3389". A listener on all addresses will do.
func (h *Host) WaitListen(addr string) {
	h.lab.t.Helper()
	want := netip.MustParseAddrPort(addr)
	poll(h.lab.t, h.name+": nobody listens on "+addr, func() bool { return h.Listens(want) })
}

// Listens reports whether something on the host listens on addr, or on its
// port at all addresses.
func (h *Host) Listens(addr netip.AddrPort) bool {
	for _, file := range []string{"tcp", "tcp6"} {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", h.pid, file))
		for _, a := range listeners(string(b)) {
			if a.Port() == addr.Port() && (a.Addr().IsUnspecified() || a.Addr() == addr.Addr()) {
				return true
			}
		}
	}
	return false
}

// listeners reads the text of /proc/net/tcp or tcp6.
func listeners(table string) []netip.AddrPort {
	var found []netip.AddrPort
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) < 4 || f[3] != "0A" {
			continue
		}
		hexAddr, hexPort, _ := strings.Cut(f[1], ":")
		port, err := strconv.ParseUint(hexPort, 16, 16)
		if err != nil || len(hexAddr)%8 != 0 {
			continue
		}
		// The address is in words of four bytes, each with its bytes reversed.
		raw := make([]byte, len(hexAddr)/2)
		for i := range raw {
			v, _ := strconv.ParseUint(hexAddr[2*i:2*i+2], 16, 8)
			raw[i/4*4+3-i%4] = byte(v)
		}
		if a, ok := netip.AddrFromSlice(raw); ok {
			found = append(found, netip.AddrPortFrom(a.Unmap(), uint16(port)))
		}
	}
	return found
}
