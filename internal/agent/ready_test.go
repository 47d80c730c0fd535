package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"sft"
	"sft/internal/privsep"
	"sft/internal/testenv"
)

// testBroker is a broker that takes its time to listen, and ends with the
// first connection. The test's own program is started as it.
func testBroker() int {
	m, err := privsep.Enter()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for c := range m.Commands() {
		if c.Listener == nil {
			continue
		}
		time.Sleep(300 * time.Millisecond)
		if m.Report(context.Background(), privsep.Report{Listening: true}) != nil {
			return 1
		}
		c.Listener.Accept()
		fmt.Fprintln(os.Stderr, "somebody came")
		return 1
	}
	return 1
}

// runHeard runs the agent, and returns what is told when it is ready.
func (h *host) runHeard() <-chan time.Time {
	h.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done, heard := make(chan error, 1), make(chan time.Time, 2)
	go func() { done <- h.Agent.Run(ctx, func() { heard <- time.Now() }) }()
	h.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Errorf("the agent stopped with %v", err)
		}
		if len(heard) > 0 {
			h.t.Error("it was ready twice")
		}
	})
	return heard
}

func waitReady(t *testing.T, what string, heard <-chan time.Time) time.Time {
	t.Helper()
	select {
	case at := <-heard:
		return at
	case <-time.After(15 * time.Second):
		t.Fatalf("%s: it is not ready", what)
	}
	panic("unreachable")
}

// The service manager hears that sftd serves when 4421 listens, and no broker
// that is gone is shown.
func TestReadyWhenTheBrokerListens(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a broker is started by root")
	}
	t.Parallel()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	port := free.Addr().(*net.TCPAddr).Port
	env := testenv.New(t)
	env.Grant(testenv.Project, "dev", false, "ann")
	h := newHost(t, env, func(c *Config) { c.BrokerUser, c.BrokerListenPort = "nobody", port })
	h.patience = time.Hour
	// As an agent left it that was killed.
	stale, err := json.Marshal(Status{At: time.Now(), PID: os.Getpid(), Broker: BrokerStatus{PID: 1 << 30, Listen: "x"}})
	if err != nil {
		t.Fatal(err)
	}
	write(t, h.c.file(statusFile), stale)
	heard := h.runHeard()
	until(t, "a broker has started", func() bool { return h.child.Load() != nil })
	if len(heard) > 0 {
		t.Error("it was ready before the broker listened")
	}
	if s, err := ReadStatus(h.c); err != nil || s.Broker.PID == 1<<30 {
		t.Errorf("the status is of the agent before: %+v, %v", s.Broker, err)
	}
	h.setProblem("broker", &sft.Error{Code: sft.Unavailable, Msg: "as of the one before"})
	waitReady(t, "with a broker", heard)
	if !h.serving.Load() || h.hasProblem("broker:") {
		t.Errorf("ready; listening: %v, problems %q", h.serving.Load(), h.problems())
	}
	first := h.child.Load().PID()
	until(t, "the status says so", func() bool {
		s, err := ReadStatus(h.c)
		return err == nil && s.Broker.PID == first && s.Broker.Listen == "127.0.0.1:"+strconv.Itoa(port)
	})
	c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	until(t, "the broker is gone", func() bool { k := h.child.Load(); return k == nil || k.PID() != first })
	for end := time.Now().Add(300 * time.Millisecond); ; time.Sleep(5 * time.Millisecond) {
		if s, err := ReadStatus(h.c); err == nil && s.Broker.PID != first {
			if s.Broker.Listen != "" || len(s.Broker.Layers) > 0 {
				t.Errorf("the status shows what the dead broker was: %+v", s.Broker)
			}
			break
		}
		if time.Now().After(end) {
			t.Error("the status shows the dead broker")
			break
		}
	}
	until(t, "another one listens", func() bool { return h.serving.Load() && !h.hasProblem("broker:") })
}

// What there is nothing of to wait for is not waited for, and the rest not for
// long.
func TestReadyWithoutABroker(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	t.Run("turned off", func(t *testing.T) {
		h := newHost(t, env, func(c *Config) { c.DisableBroker = true })
		h.patience = time.Hour
		waitReady(t, "without a broker", h.runHeard())
		if h.who.Load() == nil {
			t.Error("it was ready before it was enrolled")
		}
	})
	t.Run("no token", func(t *testing.T) {
		h := newHost(t, env, nil)
		if err := os.Remove(h.c.EnrollmentTokenFile); err != nil {
			t.Fatal(err)
		}
		h.patience = time.Hour
		waitReady(t, "without a token", h.runHeard())
	})
	t.Run("a token that does not work, and a broker that does not start", func(t *testing.T) {
		for name, change := range map[string]func(*host){
			"a platform that is away": func(h *host) {
				write(t, h.c.EnrollmentTokenFile, []byte("eyJzIjoieCIsInUiOiJodHRwczovLzEyNy4wLjAuMToxIn0="))
			},
			"no account": func(*host) {},
		} {
			h := newHost(t, env, nil)
			change(h)
			h.patience = 700 * time.Millisecond
			began := time.Now()
			if d := waitReady(t, name, h.runHeard()).Sub(began); d < h.patience {
				t.Errorf("%s: it was ready after %v", name, d)
			}
			until(t, "it says what is wrong", func() bool { return len(h.problems()) > 0 })
		}
	})
}

// A host that cannot enrol says why once, and once more when it is another
// reason.
func TestWhyNotEnrolledIsLoggedOnce(t *testing.T) {
	t.Parallel()
	h := newHost(t, testenv.New(t), nil)
	write(t, h.c.EnrollmentTokenFile, []byte("garbage"))
	h.run()
	errors := func() int { return strings.Count(h.logs.String(), `level=ERROR msg="not enrolled"`) }
	tries := func(n int) {
		t.Helper()
		until(t, "it tries", func() bool { return strings.Count(h.logs.String(), "enrol")-errors() >= n && errors() > 0 })
	}
	tries(2)
	if n := errors(); n != 1 {
		t.Errorf("it was said %d times", n)
	}
	write(t, h.c.EnrollmentTokenFile, nil)
	until(t, "the other reason is said", func() bool { return strings.Contains(h.logs.String(), "the enrollment token file is empty") })
	if n := errors(); n != 2 {
		t.Errorf("both reasons were said %d times", n)
	}
	for range 3 {
		h.notEnrolled(&sft.Error{Code: sft.Unavailable, Msg: "read tcp 127.0.0.1:" + strconv.Itoa(40000+time.Now().Nanosecond()%1000) + ": reset"})
	}
	if n := errors(); n != 3 {
		t.Errorf("a reason that differs by a port: %d", n)
	}
}
