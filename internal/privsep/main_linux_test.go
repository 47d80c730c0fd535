package privsep

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Nobody has this account; it owns nothing.
const testID = 64999

// roleVar in the environment makes the test binary play another program.
const roleVar = "SFT_TEST_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVar); role != "" {
		os.Exit(play(role))
	}
	code := m.Run()
	if static.dir != "" {
		os.RemoveAll(static.dir)
	}
	os.Exit(code)
}

// play is main in the processes that the tests start.
func play(role string) int {
	kind, arg, _ := strings.Cut(role, ":")
	run, ok := map[string]func(string) error{
		"probe": probe, "serve": serve, "hostile": hostile, "skip": skip, "idle": idle, "parent": parent, "fail": failing,
	}[kind]
	if !ok {
		fmt.Fprintln(os.Stderr, "unknown role", role)
		return 2
	}
	if err := run(arg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// static is a build of this test as releases are built: no C library, no race
// detector. What holds for it holds for sftd.
var static struct {
	once sync.Once
	dir  string
	path string
	err  error
}

// builds returns the programs to try as a broker: this one, and static unless
// this one is.
func builds(t *testing.T) map[string]string {
	t.Helper()
	if len(libcNames) == 0 {
		return map[string]string{"a static build": ""}
	}
	static.once.Do(func() {
		if static.dir, static.err = os.MkdirTemp("", "privsep"); static.err != nil {
			return
		}
		if static.err = os.Chmod(static.dir, 0o755); static.err != nil {
			return
		}
		static.path = filepath.Join(static.dir, "broker")
		build := exec.Command("go", "test", "-c", "-o", static.path, ".")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			static.err = fmt.Errorf("%v: %s", err, out)
		}
	})
	if static.err != nil {
		t.Fatalf("build a static broker: %v", static.err)
	}
	return map[string]string{"this build": "", "a static build": static.path}
}

// config returns how to start this test as a broker that plays role.
func config(t *testing.T, role string) Config {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can start a broker")
	}
	return Config{
		UID: testID, GID: testID,
		Env: []string{roleVar + "=" + role, fmt.Sprintf("SFT_TEST_PARENT=%d", os.Getpid()), "GORACE=" + os.Getenv("GORACE")},
		Log: slog.New(slog.NewTextHandler(testLog{t}, nil)),
	}
}

// start starts a broker that ends with the test.
func start(t *testing.T, cfg Config, h Handler) *Child {
	t.Helper()
	c, err := Start(t.Context(), cfg, h)
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	t.Cleanup(func() { c.Kill(); c.Wait() })
	return c
}

// testLog writes to the log of a test.
type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Logf("%s", bytes.TrimSpace(b))
	return len(b), nil
}

// A testHandler does what its fields say; a nil one refuses.
type testHandler struct {
	sign   func(context.Context, [32]byte) ([]byte, error)
	open   func(context.Context, Open) (OpenReply, *os.File, error)
	report func(Report)

	mu     sync.Mutex
	closed []Close
}

var errNotPlayed = errors.New("the test does not do this")

func (h *testHandler) Sign(ctx context.Context, d [32]byte) ([]byte, error) {
	if h.sign == nil {
		return nil, errNotPlayed
	}
	return h.sign(ctx, d)
}

func (h *testHandler) Open(ctx context.Context, o Open) (OpenReply, *os.File, error) {
	if h.open == nil {
		return OpenReply{}, nil, errNotPlayed
	}
	return h.open(ctx, o)
}

func (h *testHandler) Close(_ context.Context, c Close) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = append(h.closed, c)
}

func (h *testHandler) Report(r Report) {
	if h.report != nil {
		h.report(r)
	}
}

// poll waits until ok says so.
func poll(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// gone reports whether process pid has ended.
func gone(pid int) bool {
	if unix.Kill(pid, 0) == unix.ESRCH {
		return true
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || bytes.Contains(b, []byte(") Z "))
}

// enterBut is Enter without some of its steps. It returns the channel before
// anything was sent.
func enterBut(skip string) (*channel, error) {
	if !strings.Contains(skip, "birth") {
		if err := checkBirth(); err != nil {
			return nil, err
		}
	}
	if !strings.Contains(skip, "memory") {
		if err := dropMemory(); err != nil {
			return nil, err
		}
	}
	c, err := openChannel(os.NewFile(channelFD, "monitor"))
	if err != nil {
		return nil, err
	}
	if !strings.Contains(skip, "files") {
		if _, err := dropFiles(); err != nil {
			return nil, err
		}
	}
	if !strings.Contains(skip, "calls") {
		if err := dropCalls(); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// idle is a broker that does nothing, until its monitor ends.
func idle(string) error {
	m, err := Enter()
	if err != nil {
		return err
	}
	for range m.Commands() {
	}
	return nil
}

// failing is a broker that ends at once.
func failing(string) error { return errors.New("the broker has no mind to") }
