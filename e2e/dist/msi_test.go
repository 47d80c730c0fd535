//go:build linux

package dist

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// A windows is a Windows whose drive C: and registry last as long as the test.
type windows struct {
	t       *testing.T
	program string // scripts/wine
	prefix  string
}

// wineHome is where the set-up has put Wine.
func wineHome(t *testing.T) string {
	t.Helper()
	home := os.Getenv("SFT_WINE")
	if home == "" {
		home = "/var/cache/sft-wine"
	}
	if _, err := os.Stat(filepath.Join(home, "recipe")); err != nil {
		t.Skip("SKIPPED: there is no Wine; run make setup")
	}
	return home
}

func newWindows(t *testing.T, project string) *windows {
	t.Helper()
	wineHome(t)
	w := &windows{t, filepath.Join(project, "scripts/wine"), t.TempDir()}
	// One Windows for all commands of the test: it is held until the test ends.
	hold := exec.Command(w.program, "-hold")
	hold.Env = append(os.Environ(), "SFT_WINE_PREFIX="+w.prefix)
	end, err := hold.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	hold.Stderr = &said
	if err := hold.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		end.Close()
		if err := hold.Wait(); err != nil {
			t.Errorf("wine -hold: %v: %s", err, said.String())
		}
	})
	return w
}

// run runs a command line of Windows and returns what it prints and its exit
// status, which Linux would cut to eight bits.
func (w *windows) run(line string) (string, string) {
	w.t.Helper()
	file, err := os.CreateTemp(w.t.TempDir(), "*.bat")
	if err != nil {
		w.t.Fatal(err)
	}
	fmt.Fprintf(file, "@echo off\r\n%s\r\necho status=%%errorlevel%%\r\n", line)
	file.Close()
	cmd := exec.Command(w.program, "cmd", "/c", "Z:"+strings.ReplaceAll(file.Name(), "/", `\`))
	cmd.Env = append(os.Environ(), "SFT_WINE_PREFIX="+w.prefix)
	out, err := cmd.CombinedOutput()
	m := regexp.MustCompile(`(?s)^(.*)status=(\d+)\r?\n$`).FindStringSubmatch(string(out))
	if m == nil {
		w.t.Fatalf("%s: %v: %s", line, err, out)
	}
	return m[1], m[2]
}

// want runs a command line that has to end with a status.
func (w *windows) want(status, line string) string {
	w.t.Helper()
	out, got := w.run(line)
	if got != status {
		w.t.Fatalf("%s ends with %s, want %s: %s", line, got, status, out)
	}
	return out
}

// path is a file of the machine as Windows names it.
func path(file string) string { return "Z:" + strings.ReplaceAll(file, "/", `\`) }

// value is a value of the registry, "" if there is none.
func (w *windows) value(key, name string) string {
	w.t.Helper()
	out, _ := w.run(`reg query "` + key + `" /v "` + name + `"`)
	m := regexp.MustCompile(`(?m)^ +` + regexp.QuoteMeta(name) + ` +REG_\w+ +(.*?)\r?$`).FindStringSubmatch(out)
	if m == nil {
		return ""
	}
	return m[1]
}

const (
	service = `HKLM\SYSTEM\CurrentControlSet\Services\scaleft-server-tools`
	events  = `HKLM\SYSTEM\CurrentControlSet\Services\EventLog\Application\ScaleFT Server Tools`
	state   = `C:\Windows\System32\config\systemprofile\AppData\Local\ScaleFT`
)

// reaches waits until the agent's service is in a state, as in "RUNNING".
func (w *windows) reaches(when, want string) {
	w.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		out, _ := w.run("sc query scaleft-server-tools")
		if strings.Contains(out, want) {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("%s, the service is not %s: %s%s", when, want, out, w.log())
		}
	}
}

// disk is a folder of drive C: as the machine sees it; one that is not there
// has no files.
func (w *windows) disk(folder string) string {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.prefix, "run/status"))
	m := regexp.MustCompile(`"child-pid": *(\d+)`).FindSubmatch(b)
	if err != nil || m == nil {
		w.t.Fatalf("what runs there: %s, %v", b, err)
	}
	dir := filepath.Join("/proc", string(m[1]), "root/prefix/drive_c")
	for _, name := range strings.Split(folder, `\`)[1:] { // of whatever case, as Windows has it
		list, err := os.ReadDir(dir)
		if err != nil {
			w.t.Fatal(err)
		}
		i := slices.IndexFunc(list, func(e os.DirEntry) bool { return strings.EqualFold(e.Name(), name) })
		if i < 0 {
			return filepath.Join(dir, "none")
		}
		dir = filepath.Join(dir, list[i].Name())
	}
	return dir
}

// log is what the agent has logged.
func (w *windows) log() string {
	b, _ := os.ReadFile(filepath.Join(w.disk(state), "Logs/sftd.log"))
	return string(b)
}

// The user data makes the folder of the state, and the token in it, before the
// agent is there. What an administrator has made so is taken, and nobody else
// can read it any more; what others may write is refused, and nothing in it is
// believed.
func TestServerMSIAndTheFolderThatIsThere(t *testing.T) {
	dir, project := packages(t)
	w := newWindows(t, project)
	w.want("0", "mkdir "+state)
	token := base64.StdEncoding.EncodeToString([]byte(`{"s":"secret","u":"https://127.0.0.1:1"}`))
	w.want("0", "echo "+token+"> "+state+`\enrollment.token`)
	folder := w.disk(state)
	mode := func() os.FileMode {
		i, err := os.Stat(folder)
		if err != nil {
			t.Fatal(err)
		}
		return i.Mode().Perm()
	}
	if mode()&0o005 != 0o005 {
		t.Fatalf("others cannot read the folder at first, its mode is %o", mode())
	}
	w.want("0", "msiexec /qb /I "+path(filepath.Join(dir, "ScaleFT-Server-Tools-0.20.0.msi")))
	w.reaches("with a folder of the user data", "RUNNING")
	if mode()&0o007 != 0 {
		t.Errorf("others can read the folder, its mode is %o", mode())
	}
	tried := func() bool { // the token's platform, which is not there
		return strings.Contains(w.log(), `msg="not enrolled"`) && strings.Contains(w.log(), "127.0.0.1:1")
	}
	for end := time.Now().Add(30 * time.Second); !tried(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the token was not tried:\n%s", w.log())
		}
	}

	w.want("0", "net stop scaleft-server-tools")
	w.reaches("after the stop", "STOPPED")
	w.want("0", "rmdir /s /q "+state+`\Logs`)
	if err := os.Chmod(folder, 0o777); err != nil {
		t.Fatal(err)
	}
	w.run("net start scaleft-server-tools")
	w.reaches("with a folder that everybody can write", "STOPPED")
	if out, _ := w.run("sc query scaleft-server-tools"); !regexp.MustCompile(`WIN32_EXIT_CODE +: 1066`).MatchString(out) {
		t.Errorf("it has not failed of itself: %s", out)
	}
	if mode() != 0o777 {
		t.Errorf("the refused folder has become %o", mode())
	}
	w.want("1", `if exist `+state+`\Logs (cmd /c exit 0) else (cmd /c exit 1)`)
}

// The agent's package from installation to removal. What the installer tells
// Windows about the service is read from where Windows keeps it.
func TestServerMSI(t *testing.T) {
	dir, project := packages(t)
	w := newWindows(t, project)
	msi := filepath.Join(dir, "ScaleFT-Server-Tools-0.20.0.msi")

	// An older package of the same programs, and a newer one.
	files := t.TempDir()
	run(t, "unzip", "-q", "-j", filepath.Join(dir, "scaleft-server-tools-0.20.0-windows-amd64.zip"), "*/sftd.exe", "-d", files)
	made := func(version string) string {
		file := filepath.Join(t.TempDir(), "server.msi")
		run(t, "env", "SOURCE_DATE_EPOCH=1700000000", filepath.Join(project, "scripts/msi.sh"), filepath.Join(project, "packaging/windows/server.wxs"), file, version, files)
		return file
	}
	older, newer := made("0.19.0"), made("0.21.0")
	if run(t, "sha256sum", "-z", "--", older)[:64] != run(t, "sha256sum", "-z", "--", made("0.19.0"))[:64] {
		t.Errorf("the same package, made twice, is not the same")
	}

	check := func(when string) {
		t.Helper()
		w.reaches(when, "RUNNING") // with what it settles itself
		for name, want := range map[string]string{
			"ImagePath":        `"C:\Program Files\ScaleFT\Server Tools\sftd.exe" service run`,
			"DisplayName":      "ScaleFT Server Tools",
			"ObjectName":       "LocalSystem",
			"Start":            "0x2",
			"DelayedAutostart": "0x1",
		} {
			if got := w.value(service, name); got != want {
				t.Errorf("%s, the service has %s %q, want %q", when, name, got, want)
			}
		}
		if got := w.value(events, "TypesSupported"); got != "0x7" {
			t.Errorf("%s, the source of events has TypesSupported %q", when, got)
		}
	}
	w.want("0", "msiexec /i "+path(older)+" /qn")
	check("after the installation")

	w.want("0", `echo kept> `+state+`\kept.txt`)
	w.want("0", "msiexec /qb /I "+path(msi)) // as the user data does
	check("after the upgrade")
	if got := w.want("0", `type `+state+`\kept.txt`); !strings.HasPrefix(got, "kept") {
		t.Errorf("after the upgrade a file of the state is %q", got)
	}
	w.want("0", "msiexec /i "+path(msi)+" /qn") // the same again
	check("after the second installation")
	w.want("1603", "msiexec /i "+path(older)+" /qn")
	check("after the refused downgrade")
	w.want("0", "msiexec /i "+path(newer)+" /qn")

	check("after the second upgrade")
	w.want("0", "msiexec /x "+path(newer)+" /qn")
	for _, key := range []string{service, events} {
		if _, status := w.run(`reg query "` + key + `"`); status == "0" {
			t.Errorf("after the removal there is still %s", key)
		}
	}
	if out, _ := w.run("sc query scaleft-server-tools"); strings.Contains(out, "STATE") {
		t.Errorf("after the removal there is still the service: %s", out)
	}
	// A process that has not quite ended when its file is to go keeps it: Windows
	// removes it at its next start, Wine leaves it. Nothing else may keep it.
	if _, status := w.run(`if exist "C:\Program Files\ScaleFT\Server Tools\sftd.exe" (cmd /c exit 0) else (cmd /c exit 1)`); status == "0" {
		t.Log("the service was still ending when sftd.exe was to go")
		w.want("0", `del "C:\Program Files\ScaleFT\Server Tools\sftd.exe"`)
	}
	w.want("0", `if exist `+state+` (cmd /c exit 0) else (cmd /c exit 1)`)
}

// The client is on the PATH while it is installed.
func TestClientMSI(t *testing.T) {
	dir, project := packages(t)
	w := newWindows(t, project)
	msi := filepath.Join(dir, "ScaleFT-Client-Tools-0.20.0.msi")
	const environment = `HKLM\SYSTEM\CurrentControlSet\Control\Session Manager\Environment`
	const folder = `C:\Program Files\ScaleFT\Client Tools\`

	w.want("0", "msiexec /i "+path(msi)+" /qn")
	if got := w.value(environment, "PATH"); !strings.HasSuffix(got, ";"+folder) {
		t.Errorf("the PATH is %q, want one that ends in %s", got, folder)
	}
	if got := w.want("0", `"`+folder+`sft.exe" --version`); strings.TrimSpace(got) != "sft 0.20.0" {
		t.Errorf("sft --version prints %q", got)
	}
	w.want("0", "msiexec /x "+path(msi)+" /qn")
	if got := w.value(environment, "PATH"); got == "" || strings.Contains(got, "ScaleFT") {
		t.Errorf("after the removal the PATH is %q", got)
	}
}

// A package of other bits is refused by Windows itself, before it is asked
// anything: that the package says so is all there is to see.
func TestMSIBits(t *testing.T) {
	dir, _ := packages(t)
	home := wineHome(t)
	for _, name := range []string{"Server", "Client"} {
		msi := filepath.Join(dir, "ScaleFT-"+name+"-Tools-0.20.0.msi")
		tool := func(args ...string) string {
			return run(t, "bwrap", append([]string{"--ro-bind", filepath.Join(home, "tree"), "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "--ro-bind", msi, "/tmp/package.msi", "msiinfo"}, args...)...)
		}
		if got := tool("suminfo", "/tmp/package.msi"); !strings.Contains(got, "Template: x64;1033") {
			t.Errorf("%s is for %s", msi, got)
		}
		if got := tool("export", "/tmp/package.msi", "LaunchCondition"); !strings.Contains(got, "VersionNT64\tScaleFT "+name+" Tools need 64-bit Windows") {
			t.Errorf("%s is installed under %s", msi, got)
		}
		if got := tool("export", "/tmp/package.msi", "CustomAction"); strings.Count(strings.TrimSpace(got), "\n") != 2 { // a table without rows
			t.Errorf("%s has custom actions: %s", msi, got)
		}
	}
}

// With a certificate, programs and packages are signed; without, they are what
// they were.
func TestSigning(t *testing.T) {
	dir, project := packages(t)
	files := t.TempDir()
	run(t, "unzip", "-q", "-j", filepath.Join(dir, "scaleft-client-tools-0.20.0-windows-amd64.zip"), "*/sft.exe", "-d", files)
	run(t, "cp", filepath.Join(dir, "ScaleFT-Client-Tools-0.20.0.msi"), files+"/client.msi")
	cert, key := filepath.Join(files, "cert.pem"), filepath.Join(files, "key.pem")
	run(t, "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=Example", "-days", "30", "-addext", "extendedKeyUsage=codeSigning",
		"-keyout", key, "-out", cert)
	for _, name := range []string{"sft.exe", "client.msi"} {
		file := filepath.Join(files, name)
		sign := filepath.Join(project, "scripts/sign.sh")
		before := run(t, "sha256sum", file)
		run(t, "env", "-u", "SIGN_CERT", "-u", "SIGN_KEY", sign, file, "Example")
		if after := run(t, "sha256sum", file); after != before {
			t.Errorf("%s is changed without a certificate", name)
		}
		if out, err := exec.Command("env", "SIGN_CERT="+cert, "SIGN_KEY="+files+"/none", sign, file, "Example").CombinedOutput(); err == nil || !strings.Contains(string(out), "two files") {
			t.Errorf("without a key: %v: %s", err, out)
		}
		run(t, "env", "SIGN_CERT="+cert, "SIGN_KEY="+key, sign, file, "Example")
		if out, err := exec.Command("osslsigncode", "verify", "-CAfile", cert, file).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", name, err, out)
		}
	}
}

// scripts/wine passes on what a program is given and what it says, and leaves
// nothing behind.
func TestWine(t *testing.T) {
	_, project := packages(t)
	wineHome(t)
	wine := func(env []string, args ...string) (string, int) {
		cmd := exec.Command(filepath.Join(project, "scripts/wine"), args...)
		cmd.Env = append(os.Environ(), env...)
		out, err := cmd.Output()
		if err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out)), cmd.ProcessState.ExitCode()
	}
	own, kept := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", own) // where its drive C: is
	if out, status := wine([]string{"SFT_WORD=hello"}, "cmd", "/c", `echo %SFT_WORD%& echo x> C:\left.txt& exit 7`); out != "hello" || status != 7 {
		t.Errorf("it prints %q and ends with %d", out, status)
	}
	if _, status := wine(nil, "cmd", "/c", `if exist C:\left.txt exit 1`); status != 0 {
		t.Errorf("drive C: is not as new")
	}
	prefix := []string{"SFT_WINE_PREFIX=" + kept}
	wine(prefix, "cmd", "/c", `echo x> C:\left.txt`)
	if _, status := wine(prefix, "cmd", "/c", `if not exist C:\left.txt exit 1`); status != 0 {
		t.Errorf("with a prefix of its own, drive C: is as new")
	}
	if left, err := os.ReadDir(own); err != nil || len(left) != 0 {
		t.Errorf("it leaves %v (%v)", left, err)
	}
}
