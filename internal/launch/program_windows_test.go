package launch

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"

	"sft"
	"sft/internal/conf"
)

// The test program itself is the RDP client of these tests.
func TestMain(m *testing.M) {
	if os.Getenv("SFT_TEST_CLIENT") == "mstsc" {
		os.Exit(pretendMSTSC(os.Args[1], func(b []byte) ([]byte, error) { return conf.Unprotect(b, nil) },
			func(target string) (string, []byte, error) {
				user, blob, _, err := readCredential(target)
				return user, blob, err
			}))
	}
	if os.Getenv("SFT_TEST_CLIENT") == "link" {
		os.Stdout.WriteString(strings.Join(os.Args[1:], "\n"))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestWindows is a whole run in each way, with the real DPAPI, Credential
// Manager, registry and table of sockets.
func TestWindows(t *testing.T) {
	for _, how := range []Start{StartFile, StartDirect, StartProcess} {
		t.Run(string(how), func(t *testing.T) {
			d, h, said := running(t, windowsSystem{}, how)
			host := d.Target.Addr.Addr().String()
			if err := d.Run(t.Context()); err != nil || len(said.all()) != 0 {
				t.Fatalf("Run = %v; said %q", err, said.all())
			}
			if h.served != 1 {
				t.Errorf("%d sign-ins", h.served)
			}
			if _, _, _, err := readCredential("TERMSRV/" + host); err != windows.ERROR_NOT_FOUND {
				t.Errorf("the credential afterwards: %v", err)
			}
			if _, err := registry.OpenKey(registry.CURRENT_USER, mstscServers+`\`+host, registry.QUERY_VALUE); err != registry.ErrNotExist {
				t.Errorf("the certificate's key afterwards: %v", err)
			}
			if left, _ := filepath.Glob(filepath.Join(d.RunBase, runPrefix+"*")); len(left) != 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

// TestStandIn is TestWindows with the program that SFT_STANDIN_MSTSC names in
// mstsc's place: e2e/wine/mstsc reads what is written by code of its own.
func TestStandIn(t *testing.T) {
	path := os.Getenv("SFT_STANDIN_MSTSC")
	if path == "" {
		t.Skip("SFT_STANDIN_MSTSC names no stand-in")
	}
	for how, where := range map[Start]string{StartFile: "file", StartDirect: "credential", StartProcess: "none"} {
		t.Run(string(how), func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out.json")
			t.Setenv("SFT_STANDIN_MSTSC_OUT", out)
			d, _, said := running(t, windowsSystem{}, how)
			d.Program.path = path
			if err := d.Run(t.Context()); err != nil {
				t.Errorf("Run = %v; said %q", err, said.all())
			}
			b, err := os.ReadFile(out)
			if got := string(b); err != nil || !strings.Contains(got, `"desktop":true`) || !strings.Contains(got, `"secret":"`+where+`"`) {
				t.Errorf("it says %s, %v", got, err)
			}
		})
	}
}

// A program ends with the handle that only the process has which started it.
func TestTie(t *testing.T) {
	cmd := exec.Command(filepath.Join(systemDir(t), "cmd.exe"), "/c", "pause")
	in, err := cmd.StdinPipe() // keeps it waiting
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait()
		close(ended)
	}()
	defer func() {
		cmd.Process.Kill()
		<-ended
	}()
	job, err := newJob()
	if err != nil {
		t.Fatal(err)
	}
	if err := assign(job, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	windows.CloseHandle(job)
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("it goes on when the job's last handle is closed")
	}
}

func systemDir(t *testing.T) string {
	t.Helper()
	dir, err := windows.GetSystemDirectory()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// Another process of the person, which has the right secret or none, is not
// the one that was started.
func TestWindowsRefusesAnotherProcess(t *testing.T) {
	d, h, said := running(t, windowsSystem{}, StartProcess)
	c, err := net.Dial("tcp", d.Target.Addr.String()) // waits in the listener's queue
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := d.Run(t.Context()); err != nil || h.served != 1 {
		t.Errorf("Run = %v, %d sign-ins", err, h.served)
	}
	if lines := strings.Join(said.all(), "\n"); !strings.Contains(lines, "not of the RDP client that was started") {
		t.Errorf("said %q", lines)
	}
}

// mstsc is the system's own, whatever lies on the path or in the folder.
func TestMSTSCIsTheSystems(t *testing.T) {
	planted := t.TempDir()
	if err := os.WriteFile(filepath.Join(planted, "mstsc.exe"), []byte("MZ"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", planted)
	t.Setenv("SystemRoot", planted)
	t.Setenv("windir", planted)
	t.Chdir(planted)
	defer os.Chdir(os.TempDir()) // a folder in use cannot be removed
	for _, choice := range []string{"", "mstsc", "MSTSC.exe"} {
		p, err := Find(choice, func(string) string { return "" })
		if err != nil {
			t.Fatal(err)
		}
		dir := strings.ToLower(filepath.Dir(p.path))
		if p.mstsc == nil || p.Name != "mstsc" || !filepath.IsAbs(p.path) || !strings.HasSuffix(dir, `\system32`) || strings.Contains(dir, strings.ToLower(filepath.Base(planted))) {
			t.Errorf("%q: %+v", choice, p)
		}
	}
}

func TestFacts(t *testing.T) {
	got, err := windowsSystem{}.facts()
	if err != nil || got != (Facts{}) {
		t.Fatalf("facts = %+v, %v, want none", got, err)
	}
	set := func(key, name string, n uint32) {
		k, _, err := registry.CreateKey(registry.CURRENT_USER, key, registry.SET_VALUE)
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		if err := k.SetDWordValue(name, n); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { registry.DeleteKey(registry.CURRENT_USER, key) })
	}
	set(clientPolicy, "DisablePasswordSaving", 1)
	set(clientPolicy, "fPromptForPassword", 1)
	set(clientPolicy, "AllowUnsignedFiles", 0)
	if got, err = (windowsSystem{}).facts(); err != nil || got != (Facts{DisablePasswordSaving: true, PromptForPassword: true, NoUnsignedFiles: true}) {
		t.Errorf("facts = %+v, %v", got, err)
	}
}

var credReadW, credFree = advapi32.NewProc("CredReadW"), advapi32.NewProc("CredFree")

func readCredential(target string) (user string, blob []byte, persist uint32, err error) {
	name, err := windows.UTF16PtrFromString(target)
	if err != nil {
		return "", nil, 0, err
	}
	var c *credential
	if ok, _, err := credReadW.Call(uintptr(unsafe.Pointer(name)), credTypeGeneric, 0, uintptr(unsafe.Pointer(&c))); ok == 0 {
		return "", nil, 0, err
	}
	defer credFree.Call(uintptr(unsafe.Pointer(c)))
	return windows.UTF16PtrToString(c.UserName), bytes.Clone(unsafe.Slice(c.Blob, c.BlobSize)), c.Persist, nil
}

func TestCredential(t *testing.T) {
	const target = "TERMSRV/127.9.8.7"
	sys := windowsSystem{}
	if err := sys.writeCredential(target, "alice", wide(sft.NewSecret("s3cret"))); err != nil {
		t.Fatal(err)
	}
	user, blob, persist, err := readCredential(target)
	if err != nil || user != "alice" || !bytes.Equal(blob, wide(sft.NewSecret("s3cret"))) || persist != credPersistSession {
		t.Errorf("read back: %q, %q, %d, %v", user, blob, persist, err)
	}
	if err := sys.deleteCredential(target); err != nil {
		t.Error(err)
	}
	if _, _, _, err := readCredential(target); err != windows.ERROR_NOT_FOUND {
		t.Errorf("after it was removed: %v", err)
	}
	if err := sys.deleteCredential(target); err != windows.ERROR_NOT_FOUND {
		t.Errorf("removed twice: %v", err)
	}
	if err := sys.writeCredential(target, "a\x00b", []byte{1}); err == nil {
		t.Error("a name with a NUL was taken")
	}
	if err := sys.writeCredential(target, "alice", nil); err == nil {
		t.Error("no password was taken")
	}
}

func TestTrust(t *testing.T) {
	sys := windowsSystem{}
	if err := sys.trust("127.9.8.7", []byte{1, 2, 3}, "alice"); err != nil {
		t.Fatal(err)
	}
	k, err := registry.OpenKey(registry.CURRENT_USER, mstscServers+`\127.9.8.7`, registry.QUERY_VALUE)
	if err != nil {
		t.Fatal(err)
	}
	hash, kind, err := k.GetBinaryValue("CertHash")
	k.Close()
	if err != nil || kind != registry.BINARY || !bytes.Equal(hash, []byte{1, 2, 3}) {
		t.Errorf("CertHash is %x, %d, %v", hash, kind, err)
	}
	if err := sys.distrust("127.9.8.7"); err != nil {
		t.Error(err)
	}
	if _, err := registry.OpenKey(registry.CURRENT_USER, mstscServers+`\127.9.8.7`, registry.QUERY_VALUE); err != registry.ErrNotExist {
		t.Errorf("after it was removed: %v", err)
	}
}

// What is in the file opens by DPAPI as mstsc opens it: for this person,
// without entropy.
func TestPasswordOfTheFile(t *testing.T) {
	sealed, err := windowsSystem{}.protect(wide(sft.NewSecret("s3cret")))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := conf.Unprotect(sealed, nil); err != nil || !bytes.Equal(got, wide(sft.NewSecret("s3cret"))) {
		t.Errorf("it opens as %q, %v", got, err)
	}
}

// TestCredentialLayout compares with what a C compiler makes of wincred.h.
func TestCredentialLayout(t *testing.T) {
	var c credential
	for _, tt := range [][2]uintptr{{unsafe.Sizeof(c), 80}, {unsafe.Offsetof(c.BlobSize), 32}, {unsafe.Offsetof(c.Blob), 40}, {unsafe.Offsetof(c.Persist), 48}, {unsafe.Offsetof(c.UserName), 72}} {
		if tt[0] != tt[1] {
			t.Errorf("%d, want %d", tt[0], tt[1])
		}
	}
}

// TestSystemProgramsWorkInTheSystemsFolder: what lies in the current folder is
// not found by mstsc.
func TestSystemProgramsWorkInTheSystemsFolder(t *testing.T) {
	dir, err := windows.GetSystemDirectory()
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{filepath.Join(dir, "mstsc.exe"): dir, filepath.Join(t.TempDir(), "mstsc.exe"): ""} {
		cmd := exec.Command(path)
		prepare(cmd)
		if cmd.Dir != want {
			t.Errorf("%s works in %q, want %q", path, cmd.Dir, want)
		}
	}
}
