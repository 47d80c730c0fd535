package agent

import (
	"errors"
	"net"
	"slices"
	"strings"
	"testing"

	"sft"
	"sft/internal/audit"
	"sft/internal/frame"
	"sft/internal/privsep"
)

func TestWindowsName(t *testing.T) {
	for _, tt := range []struct {
		product, display, build string
		revision                uint64
		want                    string
	}{
		{"Windows Server 2022 Datacenter", "21H2", "20348", 2113, "Windows Server 2022 Datacenter 21H2 (build 20348.2113)"},
		{"Windows Server 2016 Standard", "", "14393", 0, "Windows Server 2016 Standard (build 14393)"},
		{"Windows 10 Pro", "23H2", "22631", 1, "Windows 11 Pro 23H2 (build 22631.1)"},
		{"Windows 10 Pro", "22H2", "19045", 1, "Windows 10 Pro 22H2 (build 19045.1)"},
		{"Windows Server 2025 Datacenter", "24H2", "26100", 1, "Windows Server 2025 Datacenter 24H2 (build 26100.1)"},
		{"", "", "", 0, "Windows"},
		{"x\ny", "", "what", 0, "x y (build what)"},
	} {
		if got := windowsName(tt.product, tt.display, tt.build, tt.revision); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
	if got := windowsName(strings.Repeat("x", 1000), "", "1", 0); len(got) > 100 {
		t.Errorf("%d bytes", len(got))
	}
}

// Without a list of interfaces the platform takes the address that it sees.
func TestAddressOfAHostThatCannotListItsInterfaces(t *testing.T) {
	broken := errors.New("no list")
	if got, err := pickAddress("", nil, broken); got != "" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	_, err := pickAddress("eth0", nil, broken)
	if e, ok := errors.AsType[*sft.Error](err); !ok || e.Code != sft.Unavailable || !strings.Contains(e.Hint, "AccessAddress") {
		t.Errorf("got %v", err)
	}
	gone := []net.Interface{{Index: 1 << 30, Name: "gone0", Flags: net.FlagUp}}
	if got, err := pickAddress("", gone, nil); got != "" || err != nil {
		t.Errorf("an interface that is gone: %q, %v", got, err)
	}
	_, err = pickAddress("gone0", gone, nil)
	wantCode(t, "the interface that was asked for is gone", err, sft.Invalid)
}

func TestOpenAccountsAreKeptAlive(t *testing.T) {
	t.Parallel()
	h := enrolledHost(t, nil)
	kept := func() (n int) {
		for _, c := range h.mem.Calls() {
			if c == "keep ann" {
				n++
			}
		}
		return n
	}
	h.mem.Fail("read", "", errors.New("no"))
	h.keepAlive(t.Context())
	h.mem.Fail("read", "", nil)
	h.mem.Fail("keep", "ann", errors.New("no"))
	if got := h.problems(); slices.ContainsFunc(got, func(p string) bool { return strings.HasPrefix(p, "expiry") }) || kept() != 0 {
		t.Errorf("with all accounts shut there is something to keep: %q", got)
	}
	if _, _, err := h.ask(h.connect("ann"), frame.RDP); err != nil {
		t.Fatal(err)
	}
	expiry := func() bool {
		return slices.ContainsFunc(h.problems(), func(p string) bool { return p == "expiry: keep ann from expiring: no" })
	}
	h.keepAlive(t.Context())
	if n := kept(); n != 0 || !expiry() {
		t.Errorf("kept %d times, problems %q", n, h.problems())
	}
	h.mem.Fail("keep", "ann", nil)
	h.keepAlive(t.Context())
	if n := kept(); n != 1 || expiry() {
		t.Errorf("kept %d times, problems %q", n, h.problems())
	}
}

func TestPasswordResetIsRecorded(t *testing.T) {
	t.Parallel()
	h := enrolledHost(t, nil)
	h.PasswordReset("ann")
	h.PasswordReset("nobody")
	until(t, "the platform knows", func() bool {
		n := 0
		for _, e := range h.env.Events() {
			if e.Kind == audit.AccountPasswordReset && e.Detail["login"] == "ann" && e.Outcome == audit.Success && e.Target == "web01" {
				n++
			}
		}
		return n == 1
	})
}

// What the host has to tell a person who signs in comes with the reply.
func TestReplyTells(t *testing.T) {
	t.Parallel()
	for _, signIn := range []string{frame.Inject, frame.Deliver} {
		h := enrolledHost(t, func(c *Config) { c.RDPSignIn = signIn })
		h.rdpSet = func() (RDPFacts, bool) {
			f := fine()
			f.Sessions = 2
			return f, true
		}
		k := h.connect("ann")
		ask := func(reset bool, warnings int) {
			t.Helper()
			n, r, err := h.ask(k, frame.RDP)
			if err != nil {
				t.Fatal(err)
			}
			if r.RDP.PasswordReset != reset || len(r.RDP.Warnings) != warnings {
				t.Errorf("%s: the reply is %+v", signIn, r.RDP)
			}
			h.Close(t.Context(), privsep.Close{Stream: n, Why: "client closed"})
		}
		ask(false, 1)
		h.PasswordReset("ann")
		ask(true, 1)
		ask(false, 1)
		n, r, own, err := h.askAll(k, frame.RDP)
		if err != nil {
			t.Fatal(err)
		}
		pw := own.Password.Secret
		if r.RDP.Secret != nil {
			pw = r.RDP.Secret.Secret
		}
		if err := h.mem.SignIn("ann", pw.Reveal(), h.machine()); err != nil {
			t.Fatal(err)
		}
		h.Close(t.Context(), privsep.Close{Stream: n, Why: "client closed"})
		ask(false, 0) // her own desktop is one of the two
		h.rdpSet = func() (RDPFacts, bool) {
			f := fine()
			f.Off = true
			return f, true
		}
		_, _, err = h.ask(k, frame.RDP)
		wantCode(t, "a host that takes nobody", err, sft.RDPDisabled)
	}
}
