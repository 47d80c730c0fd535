//go:build linux

package stage

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode/utf16"

	"sft/e2e/lab"
)

// Where the agent for Windows keeps what it has, and where the programs are.
const (
	WindowsState = `C:\windows\system32\config\systemprofile\AppData\Local\ScaleFT`
	WindowsSftd  = `C:\Program Files\ScaleFT\Server Tools\sftd.exe`
	WindowsSft   = `C:\Program Files\ScaleFT\Client Tools\sft.exe`

	windowsService = "scaleft-server-tools"
)

// WindowsPrograms is what is put on hosts with Windows.
type WindowsPrograms struct {
	Project string // folder of go.mod
	Sftd    string // sftd.exe
	Sft     string // sft.exe
	Mstsc   string // mstsc.exe, the stand-in
	DLLs    string // folder with the stand-in for netapi32.dll
}

// A WindowsServer is a host with Windows, sftd.exe as a service there, and an
// RDP server that takes the passwords of Windows' accounts.
type WindowsServer struct {
	*lab.Windows
	stage *Stage
}

// WindowsServer makes a host with Windows, where the service is installed and
// not yet started, with an enrollment token that PowerShell has written. The
// host has an RDP server that knows NLA alone and shows a desktop of a colour.
func (s *Stage) WindowsServer(name, project, colour string, in WindowsPrograms) *WindowsServer {
	s.t.Helper()
	h := s.Lab.Host(name)
	v := &WindowsServer{Windows: h.StartWindows(in.Project, in.DLLs), stage: s}
	shadow := h.StartShadow(colour, lab.ShadowNLA)
	v.InstallWindows(WindowsSftd, in.Sftd)
	pem, err := h.Read(shadow.Certificate)
	if err != nil {
		s.t.Fatalf("%v", err)
	}
	v.Put(WindowsState+`\rdp.pem`, pem)
	// The addresses of the host cannot be asked for under Wine.
	v.Put(WindowsState+`\sftd.yaml`, fmt.Appendf(nil, "AccessAddress: %s\r\nRDPAddress: %s\r\nRDPCertificateFile: '%s\\rdp.pem'\r\nBrokeredLoginGracePeriodInSeconds: 2\r\n", h.IP(), lab.XRDPAddress, WindowsState))
	v.Put(WindowsState+`\enrollment.token`, OutFile(s.Token(project)+"\n"))
	// Remote Desktop is on, with NLA, as Windows is set where people come by RDP.
	const terminal = `HKLM\SYSTEM\CurrentControlSet\Control\Terminal Server`
	v.Must("reg", "add", terminal, "/v", "fDenyTSConnections", "/t", "REG_DWORD", "/d", "0", "/f")
	v.Must("reg", "add", terminal+`\WinStations\RDP-Tcp`, "/v", "UserAuthentication", "/t", "REG_DWORD", "/d", "1", "/f")
	v.Must(WindowsSftd, "install")
	return v
}

// OutFile is a text as Out-File of Windows PowerShell 5.1 writes it without
// -Encoding: UTF-16LE with a byte order mark, lines that end in CR LF.
func OutFile(text string) []byte {
	var b bytes.Buffer
	for _, u := range utf16.Encode([]rune("\ufeff" + strings.ReplaceAll(text, "\n", "\r\n"))) {
		_ = binary.Write(&b, binary.LittleEndian, u)
	}
	return b.Bytes()
}

// Start starts the service.
func (v *WindowsServer) Start() {
	v.stage.t.Helper()
	v.Must("net", "start", windowsService)
}

// serviceState is a line of what sc query prints.
var serviceState = regexp.MustCompile(`(?m)^\s*STATE\s*:\s*\d+\s+(\w+)`)

// ServiceState is what the service manager says of the service, as in RUNNING.
func (v *WindowsServer) ServiceState() string {
	out, _ := v.Run("sc", "query", windowsService)
	if m := serviceState.FindStringSubmatch(out); m != nil {
		return m[1]
	}
	return out
}

// Status is what sftd status --json prints.
func (v *WindowsServer) Status() map[string]any {
	out, _ := v.Run(WindowsSftd, "status", "--json")
	var st map[string]any
	_ = json.Unmarshal([]byte(out), &st)
	return st
}

// WaitStatus waits until the status is as wanted.
func (v *WindowsServer) WaitStatus(what string, ok func(map[string]any) bool) {
	v.stage.t.Helper()
	v.stage.Wait(what, 30*time.Second, func() bool { return ok(v.Status()) })
}

// WaitServing waits until people can come.
func (v *WindowsServer) WaitServing() {
	v.stage.t.Helper()
	v.WaitListen(v.IP() + ":4421")
}

// KillService ends the service's processes as a crash does.
func (v *WindowsServer) KillService() {
	v.stage.t.Helper()
	v.Host.Must("", "pkill", "-KILL", "-f", `sftd\.exe`)
}

// ServiceLog is the log of the service.
func (v *WindowsServer) ServiceLog() string {
	b, err := v.Get(WindowsState + `\Logs\sftd.log`)
	if err != nil {
		v.stage.t.Logf("%s: the log of the service: %v", v.Name(), err)
	}
	return string(b)
}

// A WindowsDesk is a person's own machine, with Windows. Its browser, and what
// shows pages, is the host's.
type WindowsDesk struct {
	*Desk
	Windows *lab.Windows
}

// WindowsDesk makes a machine with Windows, sft.exe and the stand-in for mstsc.
func (s *Stage) WindowsDesk(name, user string, in WindowsPrograms) *WindowsDesk {
	s.t.Helper()
	d := s.Desk(name, user)
	w := &WindowsDesk{Desk: d, Windows: d.StartWindows(in.Project, "")}
	w.Windows.InstallWindows(WindowsSft, in.Sft)
	w.Windows.InstallWindows(`C:\windows\system32\mstsc.exe`, in.Mstsc)
	return w
}

// Sft runs sft.exe to its end.
func (d *WindowsDesk) Sft(ctx context.Context, args ...string) (stdout, stderr string, status int) {
	var out, errs bytes.Buffer
	cmd := d.Windows.Command(ctx, WindowsSft, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if cmd.ProcessState == nil {
		return "", fmt.Sprint(err), -1
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

var codeRE = regexp.MustCompile(`\b[A-Z]{4}-[A-Z]{4}\b`)

// Enroll enrols sft.exe by a code: sft.exe takes no browser that is not
// Windows' own.
func (d *WindowsDesk) Enroll() {
	s := d.stage
	s.t.Helper()
	p := d.Start("sft-exe-enroll", d.Windows.Command(context.Background(), WindowsSft, append(strings.Fields(s.Enroll)[1:], "--no-browser")...))
	var code string
	s.Wait("sft.exe shows a code", 20*time.Second, func() bool {
		code = codeRE.FindString(p.Output())
		return code != ""
	})
	b := d.StartBrowser(d.User)
	defer b.Close()
	page := b.NewPage(s.URL + "/device")
	page.Type("#user", d.User)
	page.Type("#password", Password)
	page.Click("#signin")
	page.WaitFor(`document.querySelector("#code") !== null`)
	page.Type("#code", code)
	page.Click("#next")
	page.WaitFor(`document.querySelector("#approve") !== null`)
	page.Click("#approve")
	page.WaitFor(`document.querySelector("#done") !== null`)
	if status := p.Wait(); status != 0 {
		s.t.Fatalf("sft.exe enroll ends with %d: %s", status, p.Output())
	}
}
