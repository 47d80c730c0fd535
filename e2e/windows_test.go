//go:build linux

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sft"
	"sft/e2e/lab"
	"sft/e2e/stage"
	"sft/internal/audit"
)

// windowsPrograms builds what is put on hosts with Windows, the agent with
// the given build tags. What is in the folder SFT_WINDOWS_BIN is not built.
func windowsPrograms(t *testing.T, tags string) stage.WindowsPrograms {
	t.Helper()
	lab.NeedWine(t)
	if _, err := exec.LookPath("x86_64-w64-mingw32-gcc"); err != nil {
		t.Skip("SKIPPED: there is no compiler for Windows' stand-ins; run make setup")
	}
	dir, out := os.Getenv("SFT_WINDOWS_BIN"), t.TempDir()
	build := func(name, pkg string, args ...string) string {
		if dir != "" {
			if file := filepath.Join(dir, name); exists(file) {
				return file
			}
		}
		file := filepath.Join(out, name)
		cmd := exec.Command("go", append(append([]string{"build", "-o", file}, args...), pkg)...)
		cmd.Env = append(os.Environ(), "GOOS=windows", "GOARCH=amd64")
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", name, err, b)
		}
		return file
	}
	p := stage.WindowsPrograms{Project: "..", DLLs: filepath.Join(out, "dlls")}
	if b, err := exec.Command("./wine/standin/build.sh", p.DLLs).CombinedOutput(); err != nil {
		t.Fatalf("build the stand-ins: %v\n%s", err, b)
	}
	if tags == "" {
		p.Sftd = build("sftd-default.exe", "sft/cmd/sftd")
	} else {
		p.Sftd = build("sftd-"+tags+".exe", "sft/cmd/sftd", "-tags", tags)
	}
	p.Sft = build("sft.exe", "sft/cmd/sft")
	p.Mstsc = build("mstsc.exe", "sft/e2e/wine/mstsc")
	return p
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// windowsWorld is world with a server of Windows, and its desktop in red.
func windowsWorld(t *testing.T) (*stage.Stage, *stage.WindowsServer, stage.WindowsPrograms) {
	t.Helper()
	in := windowsPrograms(t, "winetest")
	s := newStage(t)
	s.Project("prod", false)
	s.Person("ann", "Ann Example", "prod")
	win := s.WindowsServer("win01", "prod", red, in)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the log of the service:\n%s", win.ServiceLog())
		}
	})
	return s, win, in
}

// account is an account that has to be there.
func account(t *testing.T, win *stage.WindowsServer, name string) lab.WindowsAccount {
	t.Helper()
	a, ok := win.Account(name)
	if !ok {
		t.Fatalf("%s has no account %s", win.Name(), name)
	}
	return a
}

// disabled waits until an account of Windows is.
func disabled(s *stage.Stage, win *stage.WindowsServer, name string, atMost time.Duration) {
	s.Wait(name+" is disabled on "+win.Name(), atMost, func() bool {
		a, ok := win.Account(name)
		return ok && a.Disabled()
	})
}

// leased checks that an account which is open ends by itself within ten
// minutes of now.
func leased(t *testing.T, a lab.WindowsAccount) {
	t.Helper()
	if in := time.Until(time.Unix(a.Expires, 0)); a.Disabled() || in <= 0 || in > 10*time.Minute {
		t.Errorf("the account is %v, want it open, and to expire within 10 minutes", a)
	}
}

// startsWhenItListens starts the service, of a server that is enrolled or has
// a token: it is running for the service manager once people can come, and not
// before. After 20 seconds it is in any case.
func startsWhenItListens(t *testing.T, s *stage.Stage, win *stage.WindowsServer) {
	t.Helper()
	began := time.Now()
	win.Start()
	s.Wait("the service runs", 40*time.Second, func() bool { return win.ServiceState() == "RUNNING" })
	listens, took := win.Listens(netip.AddrPortFrom(netip.MustParseAddr(win.IP()), sft.BrokerPort)), time.Since(began)
	t.Logf("the service runs after %v", took)
	if !listens && took < 20*time.Second {
		t.Errorf("the service runs after %v, and nobody listens for people", took)
	}
	win.WaitServing()
}

// One command to the desktop of a Windows server: its service, its enrolment
// by the token that PowerShell writes, its accounts through the calls of
// Windows, its broker, a real RDP server that checks the password by NLA.
func TestWindowsServer(t *testing.T) {
	s, win, _ := windowsWorld(t)
	// Somebody else's account of that name.
	planted := "name=Bob\npassword=theirs\nflags=66049\ncomment=ours since 2019\nfullname=\nexpires=4294967295\nsid=S-1-5-21-1000-2000-3000-1500\nset=1500000000\nbad=0\ncounter=0\n"
	win.Host.Write(lab.WindowsAccounts+"/users/Bob", 0o644, []byte(planted))
	s.Person("bob", "Bob Example", "prod")
	startsWhenItListens(t, s, win)
	desk := s.Desk("laptop", "ann")
	desk.EnrollQuickly()
	if _, err := win.Get(stage.WindowsState + `\enrollment.token`); err == nil {
		t.Error("the enrollment token is still there")
	}
	disabled(s, win, "ann", 10*time.Second)
	if a := account(t, win, "ann"); a.FullName != "Ann Example" || !strings.HasPrefix(a.SID, "S-1-5-21-1000-2000-3000-") {
		t.Errorf("the account is %v", a)
	}

	began := time.Now()
	p := desk.StartSft("sft-rdp", "--debug", "rdp", "--size", "1024x700", "win01")
	see(t, desk, red, "windows")
	t.Logf("the desktop came after %v", time.Since(began))
	ann := account(t, win, "ann")
	leased(t, ann)
	for _, group := range []string{"sft-users", "Users", "Remote Desktop Users"} {
		if b, err := win.Read(lab.WindowsAccounts + "/groups/" + group); err != nil || !strings.Contains(string(b), ann.SID) {
			t.Errorf("%s has %q, without ann: %v", group, b, err)
		}
	}
	start := s.WaitEvent("session.start", func(e audit.Event) bool { return e.Kind == audit.SessionStart })
	if start.Detail["user"] != "ann" || start.Target != "win01" {
		t.Errorf("session.start tells %+v", start)
	}
	// The RDP service listens on loopback alone: the one way in is the broker.
	if out, err := desk.Run("ann", "bash", "-c", "exec 3<>/dev/tcp/"+win.IP()+"/3389"); err == nil {
		t.Errorf("port 3389 is open to others: %s", out)
	}
	p.Stop()
	disabled(s, win, "ann", 15*time.Second)
	s.WaitEvent("session.end", func(e audit.Event) bool { return e.Kind == audit.SessionEnd && e.Session == start.Session })

	// The account that is not ours is left as it was, and both sides hear of it.
	s.WaitEvent("the conflict", func(e audit.Event) bool { return e.Kind == audit.AccountConflict && e.Detail["login"] == "bob" })
	if b, err := win.Read(lab.WindowsAccounts + "/users/Bob"); err != nil || string(b) != planted {
		t.Errorf("the planted account is now %s (%v)", b, err)
	}
	other := s.Desk("bobs", "bob")
	other.EnrollQuickly()
	if _, errs, status := other.Sft(t.Context(), "rdp", "win01"); status == 0 || !strings.Contains(errs, "was not made by sftd") {
		t.Errorf("sft rdp onto the planted account = %d, %q", status, errs)
	}

	// The service is killed while somebody is there: the broker ends with it, and
	// the account ends by itself. Started again, the service shuts the account.
	p = desk.StartSft("sft-rdp-2", "rdp", "--size", "1024x700", "win01")
	see(t, desk, red, "windows-2")
	win.KillService()
	broker := netip.AddrPortFrom(netip.MustParseAddr(win.IP()), sft.BrokerPort)
	s.Wait("nobody listens any more", 10*time.Second, func() bool { return !win.Listens(broker) })
	leased(t, account(t, win, "ann"))
	p.Stop()
	startsWhenItListens(t, s, win)
	disabled(s, win, "ann", 15*time.Second)

	// The service is stopped while somebody is there: in the time that the service
	// manager gives it, and the account is shut by then.
	p = desk.StartSft("sft-rdp-stop", "rdp", "--size", "1024x700", "win01")
	see(t, desk, red, "windows-stop")
	began = time.Now()
	win.Must("net", "stop", "scaleft-server-tools")
	s.Wait("the service has stopped", 30*time.Second, func() bool { return win.ServiceState() == "STOPPED" })
	t.Logf("the service stopped within %v", time.Since(began))
	if a := account(t, win, "ann"); !a.Disabled() {
		t.Errorf("the service has stopped, and the account is %v", a)
	}
	p.Stop()
	startsWhenItListens(t, s, win)

	// Access is taken away: the session ends, and the account.
	p = desk.StartSft("sft-rdp-3", "rdp", "--size", "1024x700", "win01")
	see(t, desk, red, "windows-3")
	s.Leave("ann", "prod")
	s.Wait("sft has ended", 10*time.Second, func() bool {
		select {
		case <-p.Done():
			return true
		default:
			return false
		}
	})
	disabled(s, win, "ann", 5*time.Second)
	if !strings.Contains(p.Output(), "has no access") {
		t.Errorf("sft does not say why it ended:\n%s", p.Output())
	}
	for _, secret := range s.Secrets() {
		if strings.Contains(win.ServiceLog(), secret) {
			t.Error("a secret is in the log of the service")
		}
	}
}

// The agent as it is shipped: on a system that cannot confine the broker there
// is none, nobody listens, and the status and the log say what is missing.
func TestWindowsBrokerIsConfined(t *testing.T) {
	in := windowsPrograms(t, "")
	s := newStage(t)
	s.Project("prod", false)
	win := s.WindowsServer("win01", "prod", red, in)
	win.Start()
	want := "start broker: account: "
	var problem string
	win.WaitStatus("the status tells of the broker", func(st map[string]any) bool {
		for _, p := range list(st["problems"]) {
			if strings.HasPrefix(p, "broker: ") {
				problem = p
			}
		}
		return problem != "" && st["server_id"] != nil
	})
	if !strings.HasPrefix(problem, "broker: "+want) {
		t.Errorf("the status says %q, want %q", problem, want)
	}
	out, err := win.Run(stage.WindowsSftd, "status")
	if err == nil || !strings.Contains(out, "broker     not running") || !strings.Contains(out, want) {
		t.Errorf("sftd status: %v\n%s", err, out)
	}
	if log := win.ServiceLog(); !strings.Contains(log, want) {
		t.Errorf("the log has:\n%s", log)
	}
	if win.Listens(netip.AddrPortFrom(netip.MustParseAddr(win.IP()), sft.BrokerPort)) {
		t.Error("somebody listens for people")
	}
}

func list(v any) (s []string) {
	b, _ := json.Marshal(v)
	_ = json.Unmarshal(b, &s)
	return s
}

// sft.exe, from enrolment to the desktop of a Windows server, by each way to
// start mstsc. In mstsc's place is a program that finds its secret as mstsc
// does, and leaves the rest to an RDP client of the host.
func TestWindowsClient(t *testing.T) {
	s, win, in := windowsWorld(t)
	win.Start()
	desk := s.WindowsDesk("laptop", "ann", in)
	desk.Enroll()
	win.WaitServing()
	for i, tt := range []struct{ way, secret string }{{"file", "file"}, {"direct", "credential"}, {"process", "none"}} {
		t.Run(tt.way, func(t *testing.T) {
			if out, errs, status := desk.Sft(t.Context(), "config", "rdp.launch", tt.way); status != 0 {
				t.Fatalf("sft.exe config = %d, %s%s", status, out, errs)
			}
			result := `C:\result-` + tt.way + ".json"
			cmd := desk.Windows.Command(t.Context(), stage.WindowsSft, "--debug", "rdp", "win01")
			cmd.Env = append(cmd.Env, "SFT_STANDIN_MSTSC_OUT="+result, fmt.Sprintf("SFT_STANDIN_MSTSC_RELAY=127.0.0.1:%d", 3390+i))
			p := desk.Start("sft-exe-"+tt.way, cmd)
			var got struct {
				Args                          []string
				User, Secret, Relay, Password string
				NLA                           bool
			}
			s.Wait("mstsc is started", 20*time.Second, func() bool {
				b, err := desk.Windows.Get(result)
				return err == nil && json.Unmarshal(b, &got) == nil
			})
			if got.User != "ann" || got.Secret != tt.secret || got.Relay == "" {
				t.Fatalf("mstsc found %+v", got)
			}
			if tt.way == "direct" && (!strings.Contains(credentials(desk), "TERMSRV/127.") || !strings.Contains(trusted(desk), "CertHash")) {
				t.Errorf("mstsc was started with the credentials\n%s\nand trusts\n%s", credentials(desk), trusted(desk))
			}
			security := lab.SecurityTLS
			if got.NLA {
				security = lab.SecurityNLA
			}
			password := got.Password
			if password == "" {
				password = "any"
			}
			client := desk.StartXfreerdp("ann", lab.SignIn{Address: got.Relay, User: got.User, Password: password, Security: security})
			see(t, desk.Desk, red, "windows-client-"+tt.way)
			// What mstsc had the secret from is gone while it is connected.
			s.Wait("the file is gone", 10*time.Second, func() bool {
				_, err := desk.Windows.Get(got.Args[0])
				return tt.way == "direct" || errors.Is(err, fs.ErrNotExist)
			})
			s.Wait("the credential is gone", 10*time.Second, func() bool { return !strings.Contains(credentials(desk), "TERMSRV/") })
			client.Stop()
			if status := p.Wait(); status != 0 {
				t.Errorf("sft.exe ended with %d", status)
			}
			if got.Password != "" && strings.Contains(p.Output(), got.Password) {
				t.Error("the secret was printed")
			}
			if left := trusted(desk); strings.Contains(left, "CertHash") {
				t.Errorf("a trusted certificate is left:\n%s", left)
			}
			disabled(s, win, "ann", 15*time.Second)
		})
	}
}

// credentials is what Wine's Credential Manager has of the person.
func credentials(desk *stage.WindowsDesk) string {
	out, _ := desk.Windows.Run("reg", "query", `HKCU\Software\Wine\Credential Manager`, "/s") // an error: nothing yet
	return out
}

// trusted is what mstsc remembers of servers.
func trusted(desk *stage.WindowsDesk) string {
	out, _ := desk.Windows.Run("reg", "query", `HKCU\Software\Microsoft\Terminal Server Client\Servers`, "/s")
	return out
}
