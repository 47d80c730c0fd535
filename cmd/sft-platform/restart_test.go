//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sft/internal/api"
	"sft/internal/ca"
	"sft/internal/platform"
	"sft/internal/store"
)

// A manager is what systemd is to the platform: it is told when a process is
// ready, and keeps the socket from one to the next.
type manager struct {
	t      *testing.T
	notify *net.UnixConn
	path   string
	kept   *os.File
	args   []string
	log    *os.File
}

// newManager is a manager of a command, whose log is shown if the test fails.
func newManager(t *testing.T, args ...string) *manager {
	t.Helper()
	m := &manager{t: t, path: filepath.Join(t.TempDir(), "notify"), args: args}
	var err error
	m.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"})
	must(t, err)
	t.Cleanup(func() { m.notify.Close() })
	m.log, err = os.Create(filepath.Join(t.TempDir(), "log"))
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			b, _ := os.ReadFile(m.log.Name())
			t.Logf("%s", b)
		}
	})
	return m
}

// start starts a process, and returns once it is ready.
func (m *manager) start() *exec.Cmd {
	m.t.Helper()
	cmd := exec.Command("/bin/sh", append([]string{"-c", `LISTEN_PID=$$ exec sft-platform "$@"`, "sh"}, m.args...)...)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+m.path)
	cmd.Stdout, cmd.Stderr = m.log, m.log
	if m.kept != nil {
		cmd.ExtraFiles = []*os.File{m.kept}
		cmd.Env = append(cmd.Env, "LISTEN_FDS=1", "LISTEN_FDNAMES="+socketName)
	}
	must(m.t, cmd.Start())
	m.t.Cleanup(func() { cmd.Process.Kill() })
	for {
		b, oob := make([]byte, 4096), make([]byte, 128)
		m.notify.SetReadDeadline(time.Now().Add(20 * time.Second))
		n, oobn, _, _, err := m.notify.ReadMsgUnix(b, oob)
		must(m.t, err)
		switch said := string(b[:n]); {
		case said == "FDSTORE=1\nFDNAME="+socketName:
			if m.kept != nil {
				m.t.Error("a second socket is to be kept")
			}
			msgs, err := syscall.ParseSocketControlMessage(oob[:oobn])
			must(m.t, err)
			fds, err := syscall.ParseUnixRights(&msgs[0])
			must(m.t, err)
			m.kept = os.NewFile(uintptr(fds[0]), "kept")
		case said == "READY=1":
			return cmd
		case said != "STOPPING=1":
			m.t.Errorf("the manager is told %q", said)
		}
	}
}

// While one process follows another, no request is lost: whether its
// connection is new or old, HTTP/1.1 or 2, answered at once or hanging.
func TestRestartLosesNoRequest(t *testing.T) {
	const restarts = 3
	ctx, done := context.WithCancel(t.Context())
	defer done()
	d := data{dir: t.TempDir()}
	must(t, ca.NewMasterKey(d.masterKey()))
	sealer, err := ca.OpenSealer(d.masterKey())
	must(t, err)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	listen := free.Addr().String()
	free.Close()
	db, err := store.Open(ctx, d.url())
	must(t, err)
	init, err := platform.Init(ctx, db, sealer, platform.InitRequest{URL: "https://" + listen, Team: "main", Owner: "olive", Project: "prod", OwnCA: true}, nil)
	must(t, err)
	must(t, db.Close())

	m := newManager(t, "serve", "--data", d.dir, "--listen", listen, "--anonymous-rate", "100000", "--rate", "100000")
	process := m.start()
	if m.kept == nil {
		t.Fatal("the socket was not left with the manager")
	}
	platformCA, err := api.FetchCA(ctx, "https://"+listen, init.CAFingerprint, nil, &api.Clock{})
	must(t, err)
	client := func(h2 bool) *http.Client {
		hc, err := api.NewHTTP(platformCA, nil, &api.Clock{})
		must(t, err)
		if !h2 {
			tr := hc.Transport.(*http.Transport)
			tr.ForceAttemptHTTP2, tr.TLSClientConfig.NextProtos = false, []string{"http/1.1"}
		}
		t.Cleanup(hc.CloseIdleConnections)
		return hc
	}

	var all sync.WaitGroup
	var answered [8]atomic.Int64
	for i := range answered {
		hc := client(i%2 == 0)
		all.Go(func() {
			for ctx.Err() == nil {
				// The body can be sent once: nothing sends it again behind our back.
				body := io.MultiReader(strings.NewReader(`{"target":"web01"}`))
				r, err := http.NewRequest("POST", "https://"+listen+"/v1/teams/main/connect", body)
				if err == nil {
					r.Header.Set("Content-Type", "application/json")
					var resp *http.Response
					if resp, err = hc.Do(r); err == nil {
						var b []byte
						if b, err = io.ReadAll(resp.Body); err == nil && (resp.StatusCode != 401 || !bytes.Contains(b, []byte(`"error"`))) {
							err = fmt.Errorf("%s %s", resp.Status, b)
						}
						resp.Body.Close()
					}
				}
				if err != nil {
					t.Errorf("client %d: %v", i, err)
					return
				}
				answered[i].Add(1)
				time.Sleep(time.Duration(i) * 3 * time.Millisecond)
			}
		})
	}
	agent, revision := enroll(t, &api.Client{URL: "https://" + listen, Clock: &api.Clock{}, HTTP: client(true)}, init.Token)
	var states atomic.Int64
	all.Go(func() {
		for ctx.Err() == nil {
			var st api.State
			err := agent.Do(ctx, "GET", fmt.Sprint("/v1/agent/state?after=", revision), nil, &st)
			if ctx.Err() == nil && (err != nil || st.Revision != revision) {
				t.Errorf("the agent: %d, %v", st.Revision, err)
				return
			}
			states.Add(1)
		}
	})

	more := func() {
		t.Helper()
		var before [8]int64
		for i := range answered {
			before[i] = answered[i].Load()
		}
		for deadline := time.Now().Add(time.Minute); !t.Failed(); time.Sleep(10 * time.Millisecond) {
			waits := 0
			for i := range answered {
				if answered[i].Load() < before[i]+3 {
					waits++
				}
			}
			if waits == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d clients get no answer", waits)
			}
		}
	}
	for range restarts {
		more()
		must(t, process.Process.Signal(syscall.SIGTERM))
		if err := process.Wait(); err != nil {
			t.Fatalf("the process that was told to stop: %v", err)
		}
		process = m.start()
	}
	more()
	// The state that hung was answered early each time.
	if n := states.Load(); n < restarts || n > 10*restarts {
		t.Errorf("the agent got %d answers", n)
	}
	done()
	all.Wait()
	must(t, process.Process.Signal(syscall.SIGTERM))
	must(t, process.Wait())
	m.kept.Close()
	if _, err := net.Dial("tcp", listen); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("when the manager has let go, somebody still listens: %v", err)
	}
}

// A socket is used again for the address that it is for, and for no other.
func TestListensOn(t *testing.T) {
	tcp := func(ip string, port int) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: port} }
	for _, tt := range []struct {
		socket net.Addr
		addr   string
		want   bool
	}{
		{tcp("::", 443), ":443", true},
		{tcp("0.0.0.0", 443), ":443", true},
		{tcp("::", 443), "0.0.0.0:443", true},
		{tcp("127.0.0.1", 443), "127.0.0.1:443", true},
		{tcp("127.0.0.1", 443), ":443", false},
		{tcp("::", 443), "127.0.0.1:443", false},
		{tcp("::", 443), ":8443", false},
		{tcp("::", 443), "nonsense", false},
		{&net.UnixAddr{Name: "/x"}, ":443", false},
	} {
		if got := listensOn(tt.socket, tt.addr); got != tt.want {
			t.Errorf("%v for %s: %v", tt.socket, tt.addr, got)
		}
	}
}
