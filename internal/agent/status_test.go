package agent

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"sft"
	"sft/internal/accounts"
	"sft/internal/frame"
	"sft/internal/privsep"
)

func TestStatus(t *testing.T) {
	t.Parallel()
	h := enrolledHost(t, nil)
	h.mem.AddForeign("carl", 1000)
	h.join("carl")
	h.waitAccount("carl")
	if _, _, err := h.ask(h.connect("ann"), frame.RDP); err != nil {
		t.Fatal(err)
	}
	h.Report(privsep.Report{Accepted: 7})
	var s Status
	until(t, "the status tells of it all", func() bool {
		var err error
		if s, err = ReadStatus(h.c); err != nil {
			return false
		}
		return s.Sessions == 1 && s.Streams == 1 && len(s.Accounts) == 3 && s.Broker.Counters.Accepted == 7 && s.Broker.CertificateUntil != nil
	})
	if !s.Running() || s.ServerID != h.who.Load().ServerID || s.PID != os.Getpid() || s.Revision == 0 {
		t.Errorf("status = %+v", s)
	}
	if s.Accounts[0].State != accounts.Enabled || !strings.Contains(s.Accounts[1].Problem, "was not made by sftd") {
		t.Errorf("accounts = %+v", s.Accounts)
	}
	var b bytes.Buffer
	s.Print(&b)
	for _, want := range []string{"sftd       running, version", "enrolled   server " + s.ServerID + ", project prod, team main\n", "platform   " + h.env.URL + "\n",
		"broker     not running\n", "sessions   1 open, 1 streams\n", "accounts   ann: enabled\n", "           account carl: account carl of this host was not made by sftd; rename",
		"problems   broker: there is no account \"no-such-account\" for the broker; make it: useradd"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "[secret]") {
		t.Error("a secret was on its way out")
	}
	if i, err := os.Stat(h.c.file(statusFile)); err != nil || i.Mode().Perm() != 0o600 {
		t.Errorf("the status is for others to read: %v, %v", i.Mode(), err)
	}
}

func TestStatusOfNoAgent(t *testing.T) {
	c := testConfig(t)
	_, err := ReadStatus(c)
	wantCode(t, "without a status", err, sft.Unavailable)
	for _, content := range []string{"", "garbage", "[]"} {
		write(t, c.file(statusFile), []byte(content))
		_, err = ReadStatus(c)
		wantCode(t, "a damaged status", err, sft.Unavailable)
	}
	for what, s := range map[string]Status{
		"dead":   {At: time.Now(), PID: 1 << 30},
		"silent": {At: time.Now().Add(-time.Minute), PID: os.Getpid()},
	} {
		if s.Running() {
			t.Errorf("an agent that is %s runs", what)
		}
	}
}
