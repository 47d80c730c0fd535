//go:build linux

package wine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A suite is a package whose tests are run on Windows.
type suite struct {
	dir  string
	runs []variant // none: once, as it is
	// May be skipped, and why. Without a word here a test that is skipped in
	// all variants fails.
	skips map[string]string
}

// A variant is one way to run a package's tests.
type variant struct {
	name  string
	tag   string            // for the build
	run   string            // only these, -test.run
	skip  string            // not these, -test.skip
	env   map[string]string // beside this process' own
	setup [][]string        // commands of Windows to run before
}

// patience is how long the tests of a package may take. They take seconds.
const patience = 3 * time.Minute

// suites lists what is run. standin is the folder with the stand-ins for DLLs,
// mstsc the stand-in for the RDP client.
func suites(standin, mstsc string) []suite {
	accounts := map[string]string{"SFT_STANDIN_DIR": `C:\host`, "SFT_WINE_DLLS": standin}
	return []suite{
		{dir: "internal/accounts", runs: []variant{{env: accounts}}},
		{dir: "internal/agent", runs: []variant{{run: "Windows|RDP|TestAlive|Spool"}}},
		{dir: "internal/broker", runs: []variant{{
			// What is left out takes a minute: it waits for deadlines, and is of no system.
			skip: "^(TestSilentConnectionsKeepNobodyOut|TestInjectRefused|TestEndOfAStreamThatIsStuck|TestEndWhileTheStreamIsOpened)$",
		}}, skips: map[string]string{"TestSignatureAlgorithms": "needs openssl"}},
		{dir: "internal/client", runs: []variant{{skip: "^TestDiagnose"}}}, // a minute of faults of the network, which are of no system
		{dir: "internal/conf"},
		{dir: "internal/daemon"},
		{dir: "internal/frame"},
		{dir: "internal/launch", runs: []variant{{env: map[string]string{"SFT_STANDIN_MSTSC": path(mstsc)}}},
			skips: map[string]string{"TestArgvAsOpenSSHReadsIt": "needs ssh", "TestSignedFile": "needs openssl", "TestTerminalScript": "needs sh"}},
		{dir: "internal/loopback"},
		// Only the system can start a broker: with the tag the account is excused.
		{dir: "internal/privsep", runs: []variant{{}, {name: "winetest", tag: "winetest"}}},
		{dir: "internal/rdp"},
		// What a connection takes is another number there, and a reset is now and
		// then told as an end.
		{dir: "internal/relay", runs: []variant{{skip: "^(TestIdleConnectionsHoldNoBuffers|TestReadAReset)$"}}},
		{dir: "internal/sshagent"},
		{dir: "internal/tunnel"},
		// A service has no environment but what the registry has.
		{dir: "cmd/sftd", runs: []variant{{env: accounts, setup: [][]string{
			{"reg", "add", `HKCU\Software\Wine\DllOverrides`, "/v", "netapi32", "/d", "native", "/f"},
			{"reg", "add", `HKLM\SYSTEM\CurrentControlSet\Control\Session Manager\Environment`, "/v", "SFT_STANDIN_DIR", "/d", `C:\host`, "/f"},
		}}}},
	}
}

// path is a file of the machine as Windows names it.
func path(file string) string { return "Z:" + strings.ReplaceAll(file, "/", `\`) }

// command is a command in the project, for Windows where it builds. It and
// what it has started end when the time is over.
func command(t *testing.T, project, name string, args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = project
	cmd.Env = append(os.Environ(), "GOOS=windows", "GOARCH=amd64", "CGO_ENABLED=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	return cmd
}

func must(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", cmd, err, out)
	}
}

// TestWindows runs the tests of each package.
func TestWindows(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: short")
	}
	home := os.Getenv("SFT_WINE")
	if home == "" {
		home = "/var/cache/sft-wine"
	}
	if _, err := os.Stat(filepath.Join(home, "recipe")); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("there is no Wine; run make setup")
		}
		t.Skip("SKIPPED: there is no Wine; run make setup")
	}
	project, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	// Below the project, which a Windows sees.
	if err := os.MkdirAll(filepath.Join(project, "build"), 0o755); err != nil {
		t.Fatal(err)
	}
	work, err := os.MkdirTemp(filepath.Join(project, "build"), "wine-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(work) })
	standin, mstsc := filepath.Join(work, "standin"), filepath.Join(work, "mstsc.exe")
	must(t, command(t, project, "e2e/wine/standin/build.sh", standin))
	must(t, command(t, project, "go", "build", "-o", mstsc, "./e2e/wine/mstsc"))
	all := suites(standin, mstsc)
	tags := map[string][]string{}
	for _, s := range all {
		for _, v := range s.variants() {
			tags[v.tag] = append(tags[v.tag], "./"+s.dir)
		}
	}
	for tag, dirs := range tags {
		slices.Sort(dirs)
		out := filepath.Join(work, "tests"+tag) + "/"
		if err := os.Mkdir(out, 0o755); err != nil {
			t.Fatal(err)
		}
		must(t, command(t, project, "go", append([]string{"test", "-c", "-ldflags=-s -w", "-tags=" + tag, "-o", out}, slices.Compact(dirs)...)...))
	}
	for _, s := range all {
		t.Run(s.dir, func(t *testing.T) {
			t.Parallel()
			passed, skipped := map[string]bool{}, map[string]string{}
			for _, v := range s.variants() {
				run := func(t *testing.T) {
					exe := filepath.Join(work, "tests"+v.tag, filepath.Base(s.dir)+".test.exe")
					p, sk := v.on(t, project, s.dir, exe)
					maps.Copy(passed, p)
					maps.Copy(skipped, sk)
				}
				if v.name == "" {
					run(t)
				} else {
					t.Run(v.name, run)
				}
			}
			for name, out := range skipped {
				if _, ok := s.skips[name]; !ok && !passed[name] {
					t.Errorf("%s is skipped, and run in no other way: %s", name, out)
				}
			}
			for name := range s.skips {
				if _, ok := skipped[name]; !ok {
					t.Errorf("%s may be skipped, and is not: take it out of the list", name)
				}
			}
			t.Logf("%d tests passed", len(passed))
		})
	}
}

func (s suite) variants() []variant {
	if len(s.runs) == 0 {
		return []variant{{}}
	}
	return s.runs
}

// on runs a test program and returns the tests that passed, and what those said
// that were skipped.
func (v variant) on(t *testing.T, project, dir, exe string) (passed map[string]bool, skipped map[string]string) {
	t.Helper()
	wine := filepath.Join(project, "scripts/wine")
	env := []string{}
	for name, value := range v.env {
		env = append(env, name+"="+value)
	}
	if len(v.setup) > 0 {
		env = append(env, "SFT_WINE_PREFIX="+t.TempDir())
	}
	for _, args := range v.setup {
		cmd := command(t, project, wine, args...)
		cmd.Env = append(cmd.Env, env...)
		must(t, cmd)
	}
	args := []string{"tool", "test2json", wine, exe, "-test.v=test2json", "-test.timeout=" + (patience - 20*time.Second).String()}
	if v.run != "" {
		args = append(args, "-test.run="+v.run)
	}
	if v.skip != "" {
		args = append(args, "-test.skip="+v.skip)
	}
	cmd := command(t, filepath.Join(project, dir), "go", args...)
	// test2json is of this machine, and the tests have its language.
	cmd.Env = append(append(os.Environ(), "LC_ALL=C"), env...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	passed, skipped, failed := results(out)
	for name, why := range failed {
		t.Errorf("%s fails: %s", name, why)
	}
	switch {
	case err != nil && len(failed) == 0:
		t.Errorf("%s: %v: %s%s", exe, err, said.String(), text(out))
	case len(passed) == 0:
		t.Errorf("%s: no test has passed", exe)
	}
	return passed, skipped
}

// An event is a line of test2json.
type event struct{ Action, Test, Output string }

func events(out []byte) (list []event) {
	for line := range bytes.Lines(out) {
		var e event
		if json.Unmarshal(line, &e) == nil {
			list = append(list, e)
		}
	}
	return list
}

// text is what was printed.
func text(out []byte) string {
	var b strings.Builder
	for _, e := range events(out) {
		b.WriteString(e.Output)
	}
	return b.String()
}

// results sorts the tests by how they ended, with what they printed. One that
// has begun and not ended has failed.
func results(out []byte) (passed map[string]bool, skipped, failed map[string]string) {
	passed, skipped, failed = map[string]bool{}, map[string]string{}, map[string]string{}
	said := map[string]string{}
	for _, e := range events(out) {
		if e.Test == "" {
			continue
		}
		switch e.Action {
		case "output":
			said[e.Test] += e.Output
		case "run":
			failed[e.Test] = ""
		case "pass":
			passed[e.Test] = true
			delete(failed, e.Test)
		case "skip":
			skipped[e.Test] = said[e.Test]
			delete(failed, e.Test)
		}
	}
	for name := range failed {
		failed[name] = said[name]
	}
	return passed, skipped, failed
}

// A test that is skipped, fails or does not come to its end is not lost.
func TestResults(t *testing.T) {
	var b bytes.Buffer
	for _, e := range []event{
		{"run", "TestA", ""}, {"output", "TestA", "fine\n"}, {"pass", "TestA", ""},
		{"run", "TestB", ""}, {"output", "TestB", "no such thing\n"}, {"skip", "TestB", ""},
		{"run", "TestC", ""}, {"run", "TestC/x", ""}, {"output", "TestC/x", "wrong\n"}, {"fail", "TestC/x", ""}, {"fail", "TestC", ""},
		{"run", "TestD", ""}, {"output", "TestD", "panic\n"}, {"output", "", "FAIL\n"}, {"fail", "", ""},
	} {
		if err := json.NewEncoder(&b).Encode(e); err != nil {
			t.Fatal(err)
		}
	}
	b.WriteString("not JSON\n")
	passed, skipped, failed := results(b.Bytes())
	if !maps.Equal(passed, map[string]bool{"TestA": true}) || !maps.Equal(skipped, map[string]string{"TestB": "no such thing\n"}) ||
		!maps.Equal(failed, map[string]string{"TestC": "", "TestC/x": "wrong\n", "TestD": "panic\n"}) {
		t.Errorf("passed %v, skipped %q, failed %q", passed, skipped, failed)
	}
	if got := text(b.Bytes()); !strings.Contains(got, "panic\nFAIL\n") {
		t.Errorf("printed %q", got)
	}
}

// Every package with tests for Windows alone is run.
func TestNothingIsForgotten(t *testing.T) {
	there := map[string]bool{}
	for _, s := range suites("", "") {
		there[s.dir] = true
	}
	for _, pattern := range []string{"../../internal/*/*_windows_test.go", "../../cmd/*/*_windows_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatal(pattern, errors.Join(err))
		}
		for _, file := range files {
			if dir := strings.TrimPrefix(filepath.Dir(file), "../../"); !there[dir] {
				t.Errorf("%s: its package is not in the list", file)
			}
		}
	}
}
