package conf

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/windows"

	"sft"
)

var (
	advapi32          = windows.NewLazySystemDLL("advapi32.dll")
	accessCheck       = advapi32.NewProc("AccessCheck")
	createRestricted  = advapi32.NewProc("CreateRestrictedToken")
	impersonateLogged = uint32(windows.SecurityImpersonation)
)

// checkToken returns a token of this process to check access with, in which the
// SIDs of deny count only to keep somebody out.
func checkToken(t *testing.T, deny ...string) windows.Token {
	t.Helper()
	var own, cut, imp windows.Token
	if err := windows.OpenProcessToken(windows.CurrentProcess(), windows.TOKEN_ALL_ACCESS, &own); err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	list := make([]windows.SIDAndAttributes, 0, len(deny))
	for _, s := range deny {
		list = append(list, windows.SIDAndAttributes{Sid: sid(t, s)})
	}
	var first unsafe.Pointer
	if len(list) > 0 {
		first = unsafe.Pointer(&list[0])
	}
	if ok, _, err := createRestricted.Call(uintptr(own), 0, uintptr(len(list)), uintptr(first), 0, 0, 0, 0, uintptr(unsafe.Pointer(&cut))); ok == 0 {
		t.Fatal("CreateRestrictedToken:", err)
	}
	defer cut.Close()
	if err := windows.DuplicateTokenEx(cut, windows.TOKEN_ALL_ACCESS, nil, impersonateLogged, windows.TokenImpersonation, &imp); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { imp.Close() })
	return imp
}

func sid(t *testing.T, s string) *windows.SID {
	t.Helper()
	v, err := windows.StringToSid(s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// may tells whether a token may do something with what has this descriptor.
func may(t *testing.T, sddl string, tok windows.Token, access uint32) bool {
	t.Helper()
	sd, err := windows.SecurityDescriptorFromString(sddl)
	if err != nil {
		t.Fatal(err)
	}
	mapping := [4]uint32{0x120089, 0x120116, 0x1200a0, 0x1f01ff} // FILE_GENERIC_READ, WRITE, EXECUTE, FILE_ALL_ACCESS
	var set [256]byte
	size := uint32(len(set))
	var granted, ok uint32
	r, _, err := accessCheck.Call(uintptr(unsafe.Pointer(sd)), uintptr(tok), uintptr(access), uintptr(unsafe.Pointer(&mapping)),
		uintptr(unsafe.Pointer(&set)), uintptr(unsafe.Pointer(&size)), uintptr(unsafe.Pointer(&granted)), uintptr(unsafe.Pointer(&ok)))
	if r == 0 {
		t.Fatal("AccessCheck:", err)
	}
	return ok != 0
}

// TestMeaningOfTheLists asks Windows what the lists of rights mean.
func TestMeaningOfTheLists(t *testing.T) {
	admin, other := checkToken(t), checkToken(t, sidAdministrators, sidSystem)
	for name, list := range map[string]string{"folder of a service": "O:SYG:SY" + serviceDirACL, "private folder": "O:SYG:SY" + privateDirACL, "private file": "O:SYG:SY" + privateACL} {
		if !may(t, list, admin, windows.FILE_WRITE_DATA) || !may(t, list, admin, windows.FILE_READ_DATA) {
			t.Errorf("%s: an administrator is kept out", name)
		}
		for what, access := range map[string]uint32{"read": windows.FILE_READ_DATA, "write": windows.FILE_WRITE_DATA, "cross": windows.FILE_EXECUTE, "look at": windows.FILE_READ_ATTRIBUTES} {
			if may(t, list, other, access) {
				t.Errorf("%s: others may %s it", name, what)
			}
		}
	}
	if !may(t, "O:SYG:SYD:(A;;FR;;;WD)", other, windows.FILE_READ_DATA) {
		t.Error("the question is never answered with yes")
	}
	// What judge makes of them is the same.
	for list, want := range map[string]verdict{
		"O:SYG:SY" + serviceDirACL:                                             asMade,
		"O:SYG:SY" + serviceDirACL + serviceDirLabel:                           asMade,
		"O:BAG:BAD:AI(A;OICIID;FA;;;SY)(A;OICIID;FA;;;BA)(A;OICIIOID;GA;;;CO)": asMade,
		"O:BAG:BAD:(A;;FA;;;SY)(A;;FRFX;;;BU)":                                 readable,
		"O:BAG:BAD:(A;;FA;;;SY)(A;;FW;;;BU)":                                   planted,
		"O:BAG:BAD:(A;;FA;;;SY)(D;;FA;;;BU)":                                   asMade,
		"O:BUG:BUD:(A;;FA;;;SY)":                                               planted,
		"O:BAG:BA":                                                             planted,
	} {
		sd, err := windows.SecurityDescriptorFromString(list)
		if err != nil {
			t.Errorf("%s: %v", list, err)
			continue
		}
		r, err := rightsOf(sd)
		if err != nil || r.judge() != want {
			t.Errorf("%s: judged as %d, %v, want %d", list, r.judge(), err, want)
		}
	}
}

func TestServiceDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b", "ScaleFT")
	for range 2 {
		if err := ServiceDir(dir); err != nil {
			t.Fatal(err)
		}
	}
	h, err := openDir(dir, windows.READ_CONTROL)
	if err != nil {
		t.Fatal(err)
	}
	defer windows.CloseHandle(h)
	if v, err := judgeHandle(h); err != nil || v != asMade {
		t.Errorf("the new folder is judged as %d, %v", v, err)
	}
	if err := WriteSecret(filepath.Join(dir, "x"), []byte("x")); err != nil {
		t.Error(err)
	}
	if _, err := ReadPrivate(filepath.Join(dir, "x")); err != nil {
		t.Error(err)
	}
}

// everybodys makes a folder that everyone can write.
func everybodys(t *testing.T) string {
	t.Helper()
	const list = "D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;WD)"
	dir := plant(t, list)
	sd, err := windows.SecurityDescriptorFromString(list)
	if err != nil {
		t.Fatal(err)
	}
	dacl, _, err := sd.DACL()
	if err != nil {
		t.Fatal(err)
	}
	if err := windows.SetNamedSecurityInfo(dir, windows.SE_FILE_OBJECT, windows.DACL_SECURITY_INFORMATION, nil, nil, dacl, nil); err != nil {
		t.Fatal(err)
	}
	return dir
}

// plant makes a folder as somebody else would have.
func plant(t *testing.T, sddl string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ScaleFT")
	sa, err := attributes(sddl)
	if err != nil {
		t.Fatal(err)
	}
	if err := windows.CreateDirectory(windows.StringToUTF16Ptr(dir), sa); err != nil {
		t.Fatal(err)
	}
	return dir
}

// What a script of an administrator has made is taken, and nobody else can
// read it any more.
func TestServiceDirThatOthersCouldRead(t *testing.T) {
	dir := plant(t, "D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;FRFX;;;WD)")
	h, err := openDir(dir, windows.READ_CONTROL)
	if err != nil {
		t.Fatal(err)
	}
	defer windows.CloseHandle(h)
	if v, err := judgeHandle(h); err != nil || v != readable {
		t.Fatalf("the folder is judged as %d, %v", v, err)
	}
	if err := ServiceDir(dir); err != nil {
		t.Fatal(err)
	}
	if v, err := judgeHandle(h); err != nil || v != asMade {
		t.Errorf("afterwards the folder is judged as %d, %v", v, err)
	}
}

// The user data of an instance makes the folder before the agent is there: with
// the rights that it inherits, by Administrator. It is taken with what is in it.
func TestServiceDirThatAScriptHasMade(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "AppData", "Local", "ScaleFT")
	token := filepath.Join(dir, "enrollment.token")
	if err := errors.Join(os.MkdirAll(dir, 0o777), os.WriteFile(token, []byte("x\r\n"), 0o666)); err != nil {
		t.Fatal(err)
	}
	h, err := openDir(dir, windows.READ_CONTROL)
	if err != nil {
		t.Fatal(err)
	}
	defer windows.CloseHandle(h)
	if v, err := judgeHandle(h); err != nil || v == planted {
		t.Fatalf("the folder is judged as %d, %v", v, err)
	}
	for range 2 {
		if err := ServiceDir(dir); err != nil {
			t.Fatal(err)
		}
	}
	if v, err := judgeHandle(h); err != nil || v != asMade {
		t.Errorf("afterwards the folder is judged as %d, %v", v, err)
	}
	if b, err := os.ReadFile(token); string(b) != "x\r\n" || err != nil {
		t.Errorf("afterwards the token is %q, %v", b, err)
	}
}

// Where Windows does not give what an administrator makes to the
// administrators, the owner is the machine's Administrator.
func TestAdministratorIsTrusted(t *testing.T) {
	a, err := administratorSID()
	if err != nil {
		t.Fatal(err)
	}
	me, err := ownSID()
	if err != nil {
		t.Fatal(err)
	}
	machine, ok := strings.CutSuffix(a, "-500")
	if !ok || !strings.HasPrefix(me, machine+"-") {
		t.Errorf("Administrator is %s, and this account, of the same machine, %s", a, me)
	}
	trusted, err := trustedSIDs()
	if err != nil {
		t.Fatal(err)
	}
	for owner, want := range map[string]verdict{a: asMade, machine + "-501": planted, "S-1-5-21-1-2-3-500": planted} {
		sd, err := windows.SecurityDescriptorFromString("O:" + owner + "G:BAD:AI(A;OICIID;FA;;;SY)(A;OICIID;FA;;;BA)(A;ID;FA;;;" + owner + ")(A;OICIIOID;GA;;;CO)")
		if err != nil {
			t.Fatal(err)
		}
		if r, err := rightsOf(sd); err != nil || r.judge(trusted...) != want {
			t.Errorf("of %s: judged as %d, %v, want %d", owner, r.judge(trusted...), err, want)
		}
	}
}

func TestServiceDirRefusesWhatIsPlanted(t *testing.T) {
	dir := everybodys(t)
	err := ServiceDir(dir)
	if sft.CodeOf(err) != sft.Denied || !strings.Contains(err.Error(), "others can write") {
		t.Errorf("a folder that everyone can write: %v, want a refusal", err)
	}
	file := filepath.Join(t.TempDir(), "ScaleFT")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ServiceDir(file); sft.CodeOf(err) != sft.Denied {
		t.Errorf("a file: %v, want a refusal", err)
	}
	if err := ServiceDir(filepath.Join(file, "below")); sft.CodeOf(err) != sft.Denied {
		t.Errorf("below a file: %v, want a refusal", err)
	}
	if err := ServiceDir("ScaleFT"); sft.CodeOf(err) != sft.Invalid {
		t.Errorf("no full path: %v, want a refusal", err)
	}
	link, target := filepath.Join(t.TempDir(), "link"), t.TempDir()
	err = os.Symlink(target, link)
	if i, serr := os.Lstat(link); err != nil || serr != nil || i.Mode()&os.ModeSymlink == 0 {
		t.Logf("NOT TESTED: a link in the folder's place: this system makes none: %v, %v", err, serr)
		return
	}
	for _, p := range []string{link, filepath.Join(link, "ScaleFT")} {
		if err := ServiceDir(p); sft.CodeOf(err) != sft.Denied {
			t.Errorf("a link: %v, want a refusal", err)
		}
	}
	if names := list(t, target); len(names) != 0 {
		t.Errorf("the link was followed: %q", names)
	}
}

func TestAgentPathsAreTheSystems(t *testing.T) {
	want := AgentPaths()
	t.Setenv("SystemRoot", `C:\Users\eve`)
	t.Setenv("windir", `C:\Users\eve`)
	if got := AgentPaths(); got != want || strings.Contains(got.State, "eve") || !strings.HasSuffix(strings.ToLower(got.State), `\system32\config\systemprofile\appdata\local\scaleft`) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if want.Token != want.State+`\enrollment.token` || want.Logs != want.State+`\Logs` || want.Config != want.State+`\sftd.yaml` {
		t.Errorf("paths %+v", want)
	}
}

func TestAbove(t *testing.T) {
	got := strings.Join(above(`C:\Windows\System32\x\ScaleFT`), "|")
	if want := `C:\Windows|C:\Windows\System32|C:\Windows\System32\x`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := above(`C:\ScaleFT`); len(got) != 0 {
		t.Errorf("got %q", got)
	}
}

func TestCheckProgram(t *testing.T) {
	dir := plant(t, "D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;FA;;;OW)")
	good := filepath.Join(dir, "sftd.exe")
	if err := WriteSecret(good, nil); err != nil {
		t.Fatal(err)
	}
	if err := CheckProgram(good); err != nil {
		t.Error(err)
	}
	open := filepath.Join(everybodys(t), "sftd.exe")
	if err := WriteSecret(open, nil); err != nil {
		t.Fatal(err)
	}
	if err := CheckProgram(open); sft.CodeOf(err) != sft.Denied {
		t.Errorf("a folder that everyone can write: %v, want a refusal", err)
	}
	// Whoever may rename the folder above puts another one in its place.
	below := filepath.Join(everybodys(t), "Tools")
	if err := mkdirPrivate(below); err != nil {
		t.Fatal(err)
	}
	deep := filepath.Join(below, "sftd.exe")
	if err := WriteSecret(deep, nil); err != nil {
		t.Fatal(err)
	}
	if err := CheckProgram(deep); sft.CodeOf(err) != sft.Denied {
		t.Errorf("below a folder that everyone can write: %v, want a refusal", err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err == nil {
		i, err := os.Lstat(link)
		if err != nil || i.Mode()&os.ModeSymlink == 0 {
			t.Logf("NOT TESTED: a program behind a link: this system makes none: %v", err)
		} else if err := CheckProgram(filepath.Join(link, "sftd.exe")); sft.CodeOf(err) != sft.Denied {
			t.Errorf("behind a link: %v, want a refusal", err)
		}
	}
	if err := CheckProgram(filepath.Join(dir, "none.exe")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no program: %v", err)
	}
}

// A scanner that looks at a file does not keep it from being replaced.
func TestWriteSecretWhileSomebodyReads(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	if err := WriteSecret(path, []byte("one")); err != nil {
		t.Fatal(err)
	}
	h, err := windows.CreateFile(windows.StringToUTF16Ptr(path), windows.GENERIC_READ, windows.FILE_SHARE_READ, nil, windows.OPEN_EXISTING, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() { written <- WriteSecret(path, []byte("two")) }()
	for len(list(t, dir)) < 2 { // the new file is there
	}
	windows.CloseHandle(h)
	if err := <-written; err != nil {
		t.Error(err)
	}
	if b, err := ReadPrivate(path); err != nil || string(b) != "two" {
		t.Errorf("got %q, %v", b, err)
	}
}
