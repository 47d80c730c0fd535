package launch

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"sft"
	"sft/internal/loopback"
)

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func TestChooseStart(t *testing.T) {
	tests := []struct {
		name string
		set  Start
		f    Facts
		want Start
	}{
		{"no policy: no file and no dialog", StartAuto, Facts{}, StartDirect},
		{"nothing set is auto", "", Facts{}, StartDirect},
		{"a domain's machine has a file", StartAuto, Facts{Domain: true}, StartFile},
		{"no saved passwords", StartAuto, Facts{DisablePasswordSaving: true}, StartProcess},
		{"no saved passwords in a domain", StartAuto, Facts{DisablePasswordSaving: true, Domain: true}, StartProcess},
		{"it always asks", StartAuto, Facts{PromptForPassword: true}, StartProcess},
		{"Credential Manager is shut", StartAuto, Facts{DisableDomainCreds: true}, StartProcess},
		{"saved credentials are withheld", StartAuto, Facts{NoSavedCredentials: true}, StartProcess},
		{"the person's choice counts", StartFile, Facts{DisablePasswordSaving: true}, StartFile},
		{"also for no file", StartDirect, Facts{Domain: true}, StartDirect},
		{"also for the process", StartProcess, Facts{}, StartProcess},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.set.choose(tt.f); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
	p := &Program{mstsc: &mstsc{sys: &pretended{f: Facts{Domain: true, NoUnsignedFiles: true}}}}
	if err := p.Ask(t.Context()); err != nil {
		t.Fatal(err)
	}
	how, policies, ok := p.Launch()
	if !ok || how != StartFile || !slices.Equal(policies, []string{"the machine is a domain's", "AllowUnsignedFiles is 0"}) || !p.NeedsSignature() {
		t.Errorf("it is started by %s, for %q, signed: %v", how, policies, p.NeedsSignature())
	}
	if p.How(StartDirect); p.NeedsSignature() {
		t.Error("a start without a file needs a signature")
	}
	for _, good := range []string{"", "auto", "file", "direct", "process"} {
		if err := CheckStart(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	if err := CheckStart("File"); sft.CodeOf(err) != sft.Invalid {
		t.Errorf("CheckStart = %v", err)
	}
}

func TestMSTSCArguments(t *testing.T) {
	for _, tt := range []struct {
		v    View
		want []string
	}{
		{View{}, []string{"/v:127.3.4.5:40123"}},
		{View{Size: "1280x800"}, []string{"/v:127.3.4.5:40123", "/w:1280", "/h:800"}},
		{View{Fullscreen: true}, []string{"/v:127.3.4.5:40123", "/f"}},
		{View{Fullscreen: true, MultiMonitor: true}, []string{"/v:127.3.4.5:40123", "/multimon"}},
	} {
		if got := mstscArgs(apartTarget(), tt.v); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%+v: got %q, want %q", tt.v, got, tt.want)
		}
	}
}

// A pretended is a Windows that keeps what it is given.
type pretended struct {
	mu          sync.Mutex
	f           Facts
	credentials map[string][]byte // by target
	users       map[string]string
	trusted     map[string][]byte // by host
	monitor     screen
	process     int   // what only was told
	fail        error // of only and trust
}

func newPretended() *pretended {
	return &pretended{credentials: map[string][]byte{}, users: map[string]string{}, trusted: map[string][]byte{}}
}

func (p *pretended) facts() (Facts, error) { return p.f, nil }

// protect turns bits over, so that a test can tell that it was called.
func (p *pretended) protect(b []byte) ([]byte, error) { return turnOver(b) }

func turnOver(b []byte) ([]byte, error) {
	out := bytes.Clone(b)
	for i := range out {
		out[i] ^= 0xff
	}
	return out, nil
}

func (p *pretended) writeCredential(target, user string, password []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.credentials[target], p.users[target] = bytes.Clone(password), user
	return nil
}

func (p *pretended) deleteCredential(target string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.credentials, target)
	return nil
}

func (p *pretended) trust(host string, sha1 []byte, _ string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil {
		return p.fail
	}
	p.trusted[host] = sha1
	return nil
}

func (p *pretended) distrust(host string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.trusted, host)
	return nil
}

func (p *pretended) screen() (screen, error) {
	if p.monitor == (screen{}) {
		return screen{}, errors.New("there is none")
	}
	return p.monitor, nil
}

func (p *pretended) only(_ *loopback.Listener, pid int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.process = pid
	return p.fail
}

// kept is how much of it is there.
func (p *pretended) kept() (credentials, hosts int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.credentials), len(p.trusted)
}

func newDir(t *testing.T) *RunDir {
	t.Helper()
	dir, err := NewRunDir(filepath.Join(t.TempDir(), "run"), func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Remove() })
	return dir
}

func readRDP(t *testing.T, path string) RDPFile {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := ParseRDPFile(b)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestStartByFile(t *testing.T) {
	sys, dir := newPretended(), newDir(t)
	m := &mstsc{sys: sys, start: StartFile}
	args, tr, err := m.prepare(dir, apartTarget(), View{}, sft.NewSecret("Ω1"), nil, true)
	if err != nil || len(args) != 1 {
		t.Fatalf("prepare = %q, %v", args, err)
	}
	f := readRDP(t, args[0])
	if got, _ := f.Get(passwordSetting); got != "56FCCEFF" { // a903 3100, turned over
		t.Errorf("the password is %s", got)
	}
	if got, _ := f.Get("enablecredsspsupport"); got != "0" {
		t.Errorf("NLA is %s: a saved password would be withheld", got)
	}
	tr.used()
	if !exists(args[0]) {
		t.Error("the file is gone before it was read")
	}
	tr.read()
	if exists(args[0]) {
		t.Error("the file is there after it was read")
	}
	if c, h := sys.kept(); c+h != 0 {
		t.Errorf("%d credentials and %d hosts are kept", c, h)
	}
}

func TestStartDirectly(t *testing.T) {
	sys, dir := newPretended(), newDir(t)
	m := &mstsc{sys: sys, start: StartDirect}
	args, tr, err := m.prepare(dir, apartTarget(), View{}, sft.NewSecret("s"), []byte{7}, true)
	if err != nil || !slices.Equal(args, []string{"/v:127.3.4.5:40123"}) {
		t.Fatalf("prepare = %q, %v", args, err)
	}
	if got := sys.credentials["TERMSRV/127.3.4.5"]; string(got) != "s\x00" || sys.users["TERMSRV/127.3.4.5"] != "alice" || !bytes.Equal(sys.trusted["127.3.4.5"], []byte{7}) {
		t.Errorf("kept: %q, %q, %x", got, sys.users, sys.trusted)
	}
	tr.used()
	if c, h := sys.kept(); c != 0 || h != 1 {
		t.Errorf("after its use there are %d credentials and %d hosts, want 0 and 1", c, h)
	}
	tr.end()
	if c, h := sys.kept(); c+h != 0 {
		t.Errorf("in the end there are %d credentials and %d hosts", c, h)
	}
}

func TestStartDirectlyThatFailsLeavesNothing(t *testing.T) {
	sys, dir := newPretended(), newDir(t)
	sys.fail = errors.New("no room")
	m := &mstsc{sys: sys, start: StartDirect}
	_, tr, err := m.prepare(dir, apartTarget(), View{}, sft.NewSecret("s"), nil, true)
	if err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("prepare = %v", err)
	}
	if tr.end(); len(sys.credentials) != 0 {
		t.Errorf("%q is left", sys.credentials)
	}
	// What is kept under an address that others use is not ours.
	sys.fail = nil
	if _, _, err := m.prepare(dir, target, View{}, sft.NewSecret("s"), nil, true); err == nil || len(sys.credentials) != 0 {
		t.Errorf("at 127.0.0.1: %v, %q", err, sys.credentials)
	}
}

func TestStartByProcess(t *testing.T) {
	sys, dir := newPretended(), newDir(t)
	m := &mstsc{sys: sys, start: StartProcess}
	args, _, err := m.prepare(dir, apartTarget(), View{}, sft.NewSecret("s"), nil, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := readRDP(t, args[0]).Get(passwordSetting); ok {
		t.Error("there is a password in the file")
	}
	if _, _, err := m.prepare(dir, apartTarget(), View{}, sft.NewSecret("s"), nil, false); sft.CodeOf(err) != sft.Denied {
		t.Errorf("a password that is delivered: %v, want a refusal", err)
	}
}

// A password that is delivered is the account's own: mstsc is to look at the
// certificate.
func TestDeliveredPasswordKeepsTheCertificateChecked(t *testing.T) {
	sys, dir := newPretended(), newDir(t)
	m := &mstsc{sys: sys, start: StartDirect}
	args, _, err := m.prepare(dir, apartTarget(), View{}, sft.NewSecret("s"), nil, false)
	if err != nil {
		t.Fatal(err)
	}
	f := readRDP(t, args[0])
	level, _ := f.Get("authentication level")
	if got, _ := f.Get(passwordSetting); got != "8CFF" || level != "2" {
		t.Errorf("password %s, level %s", got, level)
	}
}

// What a process that was killed left in Credential Manager goes with its
// folder.
func TestForgetRun(t *testing.T) {
	base := filepath.Join(t.TempDir(), "run")
	dir, err := NewRunDir(base, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	sys := newPretended()
	p := &Program{mstsc: &mstsc{sys: sys, start: StartDirect}}
	if _, _, err := p.mstsc.prepare(dir, apartTarget(), View{}, sft.NewSecret("s"), []byte{7}, true); err != nil {
		t.Fatal(err)
	}
	if live, err := NewRunDir(base, p.swept()); err != nil {
		t.Fatal(err)
	} else {
		live.Remove()
	}
	if c, h := sys.kept(); c != 1 || h != 1 {
		t.Errorf("of a run that lives %d credentials and %d hosts are left", c, h)
	}
	dir.lock.Release() // as when its process has died
	next, err := NewRunDir(base, p.swept())
	if err != nil {
		t.Fatal(err)
	}
	defer next.Remove()
	if c, h := sys.kept(); c+h != 0 || exists(dir.Path) {
		t.Errorf("of a run that was killed %d credentials, %d hosts are left; folder %v", c, h, exists(dir.Path))
	}
}

func TestApart(t *testing.T) {
	for a, want := range map[string]bool{"127.3.4.5": true, "127.0.0.1": false, "10.0.0.1": false, "::1": false, "::ffff:127.3.4.5": false} {
		if got := apart(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: %v", a, got)
		}
	}
}
