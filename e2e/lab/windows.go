//go:build linux

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Where a Windows of the lab keeps what tests look at. Windows sees the host's
// /tmp as Z:\tmp.
const (
	WindowsAccounts = windowsFiles + "/accounts" // as e2e/wine/standin/netapi32.c describes it

	windowsFiles = "/tmp/windows"
	wineScripts  = "/opt/lab/scripts" // its parent is what scripts/wine shares with Windows
	winePrefix   = "/tmp/wine"
	wineDrive    = winePrefix + "/upper/drive_c" // what was written to drive C:
)

// A Windows is Wine on a host: drive C: and a registry as new, the host's
// network, and accounts that are files.
type Windows struct {
	*Host
	runs int
}

// NeedWine skips the test where make setup has not installed Wine.
func NeedWine(t T) {
	t.Helper()
	home := os.Getenv("SFT_WINE")
	if home == "" {
		home = "/var/cache/sft-wine"
	}
	if _, err := os.Stat(filepath.Join(home, "recipe")); err != nil {
		t.Skipf("SKIPPED: there is no Wine in %s; run make setup", home)
	}
}

// StartWindows starts Wine on the host, or skips the test as NeedWine does.
// project is the folder of go.mod; dlls, if it is not empty, is one with
// stand-ins for parts of Windows, which are used in place of Wine's.
//
// With the stand-in for netapi32.dll the accounts of Windows are the files in
// WindowsAccounts, and each that programs make, above the built-in ones, is an
// account of the host too: open with the same password, and shut while it is
// disabled or when it is deleted. A call that changes one returns after the
// host's has been changed.
func (h *Host) StartWindows(project, dlls string) *Windows {
	h.lab.t.Helper()
	NeedWine(h.lab.t)
	w := &Windows{Host: h}
	h.Install(wineScripts+"/wine", filepath.Join(project, "scripts/wine"))
	h.Must("", "mkdir", "-p", WindowsAccounts, wineDrive)
	h.Must("", "ln", "-s", WindowsAccounts, wineDrive+"/standin") // where the stand-in looks without an environment
	hold := w.command(context.Background(), "-hold")
	input, err := hold.StdinPipe() // Windows stops when it is closed
	if err != nil {
		h.lab.t.Fatalf("%s: %v", h.name, err)
	}
	p := h.Start("windows", hold)
	h.lab.t.Cleanup(func() {
		input.Close()
		select {
		case <-p.Done():
		case <-time.After(patience):
			h.lab.t.Logf("%s: Windows does not stop", h.name)
		}
	})
	if dlls == "" {
		return w
	}
	list, err := filepath.Glob(filepath.Join(dlls, "*.dll"))
	if err != nil || len(list) == 0 {
		h.lab.t.Fatalf("%s: there are no DLLs in %s: %v", h.name, dlls, err)
	}
	for _, dll := range list {
		w.InstallWindows(`C:\windows\system32\`+filepath.Base(dll), dll)
		// In the registry: services do not have our environment.
		w.Must("reg", "add", `HKCU\Software\Wine\DllOverrides`, "/v", strings.TrimSuffix(filepath.Base(dll), ".dll"), "/d", "native", "/f")
	}
	h.Write(WindowsAccounts+"/wait-ack", 0o644, nil)
	w.followAccounts()
	return w
}

// driveZ is a file of the host as its Windows names it.
func driveZ(path string) string { return "Z:" + strings.ReplaceAll(path, "/", `\`) }

func (w *Windows) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := w.Host.Command(ctx, "", wineScripts+"/wine", args...)
	cmd.Env = append(cmd.Env, "SFT_WINE_PREFIX="+winePrefix)
	if home := os.Getenv("SFT_WINE"); home != "" {
		cmd.Env = append(cmd.Env, "SFT_WINE="+home)
	}
	return cmd
}

// Command is Host.Command for a program of Windows, by its path there, or by
// the name of one that Windows has. It runs as Wine's one account. Standard
// input is empty.
func (w *Windows) Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	return w.command(ctx, append([]string{program}, args...)...)
}

// Run runs a program of Windows to its end and returns its standard output.
func (w *Windows) Run(program string, args ...string) (string, error) {
	return output(w.Command(w.lab.t.Context(), program, args...))
}

// Must is Run for a program that cannot fail.
func (w *Windows) Must(program string, args ...string) string {
	w.lab.t.Helper()
	out, err := w.Run(program, args...)
	if err != nil {
		w.lab.t.Fatalf("%s: %s %s: %v: %s", w.name, program, strings.Join(args, " "), err, out)
	}
	return out
}

// Put writes a file of Windows, and the folder that it needs.
func (w *Windows) Put(path string, data []byte) {
	w.lab.t.Helper()
	w.runs++
	file := fmt.Sprintf("%s/put-%d", windowsFiles, w.runs)
	w.Write(file, 0o644, data)
	dir := path[:strings.LastIndexByte(path, '\\')]
	w.Write(file+".bat", 0o644, fmt.Appendf(nil, "@echo off\r\nif not exist \"%s\" mkdir \"%s\"\r\ncopy /y %s \"%s\"\r\n", dir, dir, driveZ(file), path))
	w.Must("cmd", "/c", driveZ(file+".bat"))
	w.Host.Must("", "rm", file, file+".bat")
}

// InstallWindows copies a program of the machine to a path of Windows.
func (w *Windows) InstallWindows(path, source string) {
	w.lab.t.Helper()
	b, err := os.ReadFile(source)
	if err != nil {
		w.lab.t.Fatalf("%s: install %s: %v", w.name, path, err)
	}
	w.Put(path, b)
}

// Get reads a file of drive C: that Put or a program has made, with the case
// of letters that it was made with.
func (w *Windows) Get(path string) ([]byte, error) {
	rest, ok := strings.CutPrefix(path, `C:\`)
	if !ok {
		return nil, fmt.Errorf("%s is not on drive C:", path)
	}
	return os.ReadFile(w.shared(wineDrive + "/" + strings.ReplaceAll(rest, `\`, "/")))
}

// A WindowsAccount is an account as its Windows knows it.
type WindowsAccount struct {
	Name, FullName, Comment, SID string
	Flags                        uint32 // Microsoft, "USER_INFO_1008 structure"
	Expires                      int64  // seconds since 1970; 4294967295 is never

	password string
	counter  string
}

// String is the account without its password.
func (a WindowsAccount) String() string {
	return fmt.Sprintf("%s (%q, %q, %s, flags %#x, expires %d)", a.Name, a.FullName, a.Comment, a.SID, a.Flags, a.Expires)
}

// Disabled reports whether nobody can sign in.
func (a WindowsAccount) Disabled() bool { return a.Flags&0x2 != 0 }

// Account reads an account; ok is false if there is none.
func (w *Windows) Account(name string) (a WindowsAccount, ok bool) {
	b, err := os.ReadFile(w.shared(WindowsAccounts + "/users/" + name))
	if err != nil {
		return a, false
	}
	return parseWindowsAccount(b), true
}

// shared is a file of the host as the program sees it.
func (h *Host) shared(path string) string { return fmt.Sprintf("/proc/%d/root%s", h.pid, path) }

func parseWindowsAccount(b []byte) (a WindowsAccount) {
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(strings.TrimRight(line, "\r\n"), "=")
		switch key {
		case "name":
			a.Name = value
		case "fullname":
			a.FullName = value
		case "comment":
			a.Comment = value
		case "sid":
			a.SID = value
		case "password":
			a.password = value
		case "counter":
			a.counter = value
		case "flags":
			n, _ := strconv.ParseUint(value, 10, 32)
			a.Flags = uint32(n)
		case "expires":
			a.Expires, _ = strconv.ParseInt(value, 10, 64)
		}
	}
	return a
}

// followAccounts gives the host the accounts of its Windows, as they change.
func (w *Windows) followAccounts() {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		known := map[string]string{} // counters by name
		for {
			select {
			case <-tick.C:
				if err := w.follow(known); err != nil {
					select {
					case <-w.gone:
					default:
						w.lab.t.Logf("%s: the accounts of Windows: %v", w.name, err)
					}
				}
			case <-stop:
				return
			case <-w.gone:
				return
			}
		}
	}()
	w.lab.t.Cleanup(func() {
		close(stop)
		<-done
	})
}

func (w *Windows) follow(known map[string]string) error {
	dir := w.shared(WindowsAccounts)
	list, err := os.ReadDir(dir + "/users")
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nobody has asked for accounts yet
	}
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, e := range list {
		if strings.HasSuffix(e.Name(), ".new") {
			there[strings.TrimSuffix(e.Name(), ".new")] = true
			continue
		}
		there[e.Name()] = true
		b, err := os.ReadFile(dir + "/users/" + e.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		a := parseWindowsAccount(b)
		if a.counter == "0" || a.counter == "" || known[e.Name()] == a.counter {
			continue // built in, planted by a test, or as before
		}
		if err := w.adopt(e.Name(), a); err != nil {
			return err
		}
		known[e.Name()] = a.counter
		ack := dir + "/ack-" + e.Name()
		if err := errors.Join(os.WriteFile(ack+".new", []byte(a.counter), 0o644), os.Rename(ack+".new", ack)); err != nil {
			return err
		}
	}
	for name := range known {
		if !there[name] {
			if err := w.do(nil, "usermod", "-p", "*", name); err != nil {
				return err
			}
			delete(known, name)
		}
	}
	return nil
}

// adopt makes the host's account what Windows' is.
func (w *Windows) adopt(name string, a WindowsAccount) error {
	if _, err := w.account(name); err != nil {
		if err := w.do(nil, "useradd", "-m", "-s", "/bin/bash", name); err != nil {
			return err
		}
	}
	if a.Disabled() {
		return w.do(nil, "usermod", "-p", "*", name)
	}
	return w.do([]byte(name+":"+a.password+"\n"), "chpasswd")
}

func (w *Windows) do(input []byte, name string, args ...string) error {
	cmd := w.Host.Command(context.Background(), "", name, args...)
	cmd.Stdin = bytes.NewReader(input)
	_, err := output(cmd)
	if err != nil {
		err = fmt.Errorf("%s: %w", name, err)
	}
	return err
}
