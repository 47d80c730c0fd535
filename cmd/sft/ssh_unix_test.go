//go:build unix

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"sft"
	"sft/internal/api"
	"sft/internal/sshagent"
)

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 500 {
		if ok() {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("not in time: " + what)
}

// answers is the comment-free key of who answers at m's address, or "".
func answers(m meeting) string {
	c, err := sshagent.Dial(m.address())
	if err != nil {
		return ""
	}
	defer c.Close()
	list, err := agent.NewClient(c).List()
	if err != nil || len(list) != 1 {
		return ""
	}
	return string(list[0].Blob)
}

func member(t *testing.T) (*sshagent.Agent, string) {
	t.Helper()
	s, err := authority()
	if err != nil {
		t.Fatal(err)
	}
	return &sshagent.Agent{Current: func(context.Context) (ssh.Signer, error) { return s, nil }}, string(s.PublicKey().Marshal())
}

// shortDir is a folder whose path leaves room for a socket's.
func shortDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "m")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestMeeting checks that ssh finds somebody for as long as anybody is there,
// whoever comes, leaves or is killed meanwhile.
func TestMeeting(t *testing.T) {
	m := meeting{dir: filepath.Join(shortDir(t), "ssh", "main"), name: "prod/web01"}
	first, one := member(t)
	leaveFirst, err := m.join(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	if answers(m) != one {
		t.Fatal("the first is not found")
	}
	second, two := member(t)
	leaveSecond, err := m.join(t.Context(), second)
	if err != nil {
		t.Fatal(err)
	}
	if answers(m) != two {
		t.Error("the last is not found")
	}
	leaveSecond()
	if answers(m) != one { // at once
		t.Error("the first is not found when the last has left")
	}
	// One that was killed leaves a socket and a link.
	sockets := filepath.Join(filepath.Dir(m.dir), "run")
	dead := filepath.Join(sockets, m.prefix()+"dead")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if err := m.point(dead); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first is found again", func() bool { return answers(m) == one })
	// Another name is another meeting.
	other := meeting{dir: m.dir, name: "prod"}
	third, three := member(t)
	leaveThird, err := other.join(t.Context(), third)
	if err != nil {
		t.Fatal(err)
	}
	if answers(m) != one || answers(other) != three {
		t.Error("two names are mixed up")
	}
	leaveThird()
	if _, err := os.Lstat(dead); err != nil {
		t.Errorf("another name's run removed what it cannot know: %v", err)
	}
	fourth, _ := member(t)
	leaveFourth, err := m.join(t.Context(), fourth)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(dead); err == nil {
		t.Error("what a killed run left is still there")
	}
	leaveFirst()
	leaveFourth()
	if left, _ := filepath.Glob(filepath.Join(sockets, "*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if _, err := os.Lstat(m.address()); err == nil {
		t.Error("the link is still there")
	}
	long := meeting{dir: m.dir, name: strings.Repeat("a", 100)}
	if err := long.check(); sft.CodeOf(err) != sft.Invalid {
		t.Errorf("a path that no socket can have: %v", err)
	}
}

// TestUnheard checks that a proxycommand ends with who reads from it, however it
// was started and though nobody closes its standard input; and not with who
// started it.
func TestUnheard(t *testing.T) {
	if os.Getenv("SFT_TEST_UNHEARD") != "" {
		fmt.Println(os.Getpid())
		unheard(context.Background(), os.Stdout)
		os.Exit(0)
	}
	t.Parallel()
	pipe := func() (r, w *os.File) {
		t.Helper()
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		return r, w
	}
	pair := func() (r, w *os.File) {
		t.Helper()
		fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
		if err != nil {
			t.Fatal(err)
		}
		syscall.CloseOnExec(fds[0])
		return os.NewFile(uintptr(fds[0]), "here"), os.NewFile(uintptr(fds[1]), "there")
	}
	for name, open := range map[string]func() (r, w *os.File){"pipe": pipe, "socket": pair} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			in, w := pipe()
			defer w.Close()
			defer in.Close()
			r, out := open()
			defer r.Close()
			// A shell starts the child, and goes.
			cmd := exec.Command("sh", "-c", `"$0" -test.run '^TestUnheard$' &`, os.Args[0])
			cmd.Env = append(os.Environ(), "SFT_TEST_UNHEARD=1")
			cmd.Stdin, cmd.Stdout = in, out
			if err := cmd.Run(); err != nil {
				t.Fatal(err)
			}
			out.Close()
			pid, err := bufio.NewReader(r).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			ended := func() bool {
				stat, err := os.ReadFile("/proc/" + strings.TrimSpace(pid) + "/stat")
				return err != nil || strings.Contains(string(stat), ") Z ")
			}
			for range 25 { // more than it takes to look twice
				if ended() {
					t.Fatal("the child ended with who started it")
				}
				time.Sleep(100 * time.Millisecond)
			}
			r.Close()
			eventually(t, "the child has ended", ended)
		})
	}
}

// TestResolveQuietly checks that ssh is not kept waiting, and what it is told of
// a name when nobody is signed in.
func TestResolveQuietly(t *testing.T) {
	home := shortDir(t)
	p := &program{getenv: func(k string) string { return map[string]string{"HOME": home}[k] }, voice: &voice{err: io.Discard}}
	paths, err := p.paths()
	if err != nil {
		t.Fatal(err)
	}
	s, err := authority()
	if err != nil {
		t.Fatal(err)
	}
	if err := writeKnownHosts(paths.State, "web01", nil, []ssh.PublicKey{s.PublicKey()}); err != nil {
		t.Fatal(err)
	}
	out := &sft.Error{Code: sft.SignIn, Msg: "signed out"}
	down := &sft.Error{Code: sft.Unavailable, Msg: "down"}
	for _, tt := range []struct {
		name      string
		err, want error
	}{{"web01", nil, nil}, {"web01", out, nil}, {"web01", down, down}, {"github.com", out, out}, {"github.com", down, down}} {
		if err := p.resolveQuietly(t.Context(), tt.name, func(context.Context) error { return tt.err }); err != tt.want {
			t.Errorf("%s, %v: %v, want %v", tt.name, tt.err, err, tt.want)
		}
	}
	begun := time.Now()
	err = p.resolveQuietly(t.Context(), "web01", func(context.Context) error { select {} })
	if took := time.Since(begun); sft.CodeOf(err) != sft.Unavailable || took > 2*resolveTime {
		t.Errorf("without an answer: %v after %v", err, took)
	}
}

// TestBlock has OpenSSH itself read the block: with blanks in every path, and
// for names that are no server's.
func TestBlock(t *testing.T) {
	dir := filepath.Join(shortDir(t), "a b")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(dir, "sft")
	const script = "#!/bin/sh\nfor a; do echo \"$a\" >> \"$0.log\"; done\n[ \"$6\" = web01 ]\n"
	if err := os.WriteFile(own, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	text, err := block{Program: own, Team: "main", Login: "alice", Via: []string{"ec2-user@jump", "gate"}, State: dir}.text()
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "config")
	if err := os.WriteFile(config, []byte(text+"IdentityAgent /other\nUser other\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ask := func(name string) (settings []string, asked string) {
		t.Helper()
		os.Remove(own + ".log")
		out, err := exec.Command("ssh", "-F", config, "-G", "--", name).Output()
		if err != nil {
			return nil, ""
		}
		log, _ := os.ReadFile(own + ".log")
		return strings.Split(string(out), "\n"), strings.Join(strings.Fields(string(log)), " ")
	}
	got, asked := ask("web01")
	if want := "resolve -q --team main -- web01"; asked != want {
		t.Errorf("asked %q, want %q", asked, want)
	}
	for _, want := range []string{"user alice", "forwardagent no", "stricthostkeychecking true", "identityagent " + dir + "/ssh/main/web01@",
		"userknownhostsfile " + dir + "/proxycommand_known_hosts", "globalknownhostsfile " + dir + "/proxycommand_known_hosts",
		"proxycommand '" + own + "' proxycommand --team main --via ec2-user@jump --via gate --user %r -- '%h'"} {
		if !slices.Contains(got, want) {
			t.Errorf("ssh does not go by %q in\n%s", want, strings.Join(got, "\n"))
		}
	}
	if got, asked := ask("github.com"); asked != "resolve -q --team main -- github.com" || !slices.Contains(got, "user other") || !slices.Contains(got, "identityagent /other") {
		t.Errorf("another host: asked %q, settings\n%s", asked, strings.Join(got, "\n"))
	}
	// ssh refuses some of these by itself, in newer versions.
	for _, name := range []string{"x'$(touch " + dir + "/pwned)'", "x';touch " + dir + "/pwned;'", `x\'`, "x$(touch pwned)", "x;touch pwned"} {
		if _, asked := ask(name); strings.Contains(name, "'") && asked != "" {
			t.Errorf("%q was asked for: %q", name, asked)
		}
		if _, err := os.Stat(filepath.Join(dir, "pwned")); err == nil {
			t.Fatalf("%q ran", name)
		}
	}
	for _, path := range []string{"/a'b/sft", `/a"b`, "/a%b", "/a${b"} {
		if _, err := (block{Program: path, Team: "main", Login: "alice", State: dir}).text(); sft.CodeOf(err) != sft.Invalid {
			t.Errorf("%q was put into a block: %v", path, err)
		}
	}
}

// TestPipe checks that the end of either side is the end of both.
func TestPipe(t *testing.T) {
	for _, side := range []string{"ssh", "server", "parent"} {
		ctx, cancel := context.WithCancel(t.Context())
		ours, theirs := net.Pipe()
		in, keyboard := io.Pipe()
		done := make(chan error, 1)
		go func() { done <- pipe(ctx, in, io.Discard, ours) }()
		switch side {
		case "ssh":
			keyboard.Close()
		case "server":
			theirs.Close()
		case "parent":
			cancel()
		}
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("%s: %v", side, err)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s ended, and nothing else", side)
		}
		cancel()
		theirs.Close()
		keyboard.Close()
	}
}

// A host's certificate is for names, which may have been another host's: it
// counts only where nothing better is known.
func TestAuthorities(t *testing.T) {
	s, err := authority()
	if err != nil {
		t.Fatal(err)
	}
	some := []ssh.PublicKey{s.PublicKey()}
	h := api.Hop{ServerID: "srv-1", Name: "web01"}
	for _, tt := range []struct {
		name string
		keys []ssh.PublicKey
		want bool
	}{{"web01", some, false}, {"srv-1", some, false}, {"Web01", nil, true}, {"srv-1", nil, true}, {"web01.example.com", nil, false}} {
		if got := authorities(tt.name, h, some, tt.keys); (len(got) > 0) != tt.want {
			t.Errorf("%s with %d keys: by %d authorities", tt.name, len(tt.keys), len(got))
		}
	}
}

// TestKnownHosts checks what ssh-keygen, which reads the file as ssh does, finds
// in it.
func TestKnownHosts(t *testing.T) {
	dir := shortDir(t)
	var keys []ssh.PublicKey
	for range 4 {
		s, err := authority()
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, s.PublicKey())
	}
	write := func(name string, cas, own []ssh.PublicKey) {
		t.Helper()
		if err := writeKnownHosts(dir, name, cas, own); err != nil {
			t.Fatal(err)
		}
	}
	found := func(name string) string {
		out, _ := exec.Command("ssh-keygen", "-F", name, "-f", filepath.Join(dir, knownHostsFile)).Output()
		var lines []string
		for l := range strings.Lines(string(out)) {
			if !strings.HasPrefix(l, "#") {
				lines = append(lines, strings.Join(strings.Fields(l)[len(strings.Fields(l))-2:], " "))
			}
		}
		return strings.Join(lines, "\n")
	}
	if knownHost(dir, "web01") {
		t.Error("known before anything is")
	}
	write("Web01", keys[:1], keys[1:2])
	write("web01.example.com", nil, keys[2:3])
	write("prod/web01", nil, keys[3:4])
	want := line(keys[0]) + "\n" + line(keys[1])
	for _, name := range []string{"web01", "[web01]:2222"} {
		if got := found(name); got != want {
			t.Errorf("%s: found\n%s\nwant\n%s", name, got, want)
		}
	}
	if got := found("web01.example.com"); got != line(keys[2]) {
		t.Errorf("another name: found %s", got)
	}
	for name, want := range map[string]bool{"WEB01": true, "web0": false, "web01.example": false, "prod/web01": true, "": false} {
		if knownHost(dir, name) != want {
			t.Errorf("%q is known: %v", name, !want)
		}
	}
	write("web01", nil, keys[3:])
	if got := found("web01"); got != line(keys[3]) {
		t.Errorf("after a change: found\n%s", got)
	}
	before, err := os.Stat(filepath.Join(dir, knownHostsFile))
	if err != nil {
		t.Fatal(err)
	}
	write("web01", nil, keys[3:])
	if after, err := os.Stat(filepath.Join(dir, knownHostsFile)); err != nil || !os.SameFile(before, after) {
		t.Errorf("it was written with nothing new in it: %v", err)
	}
}

// FuzzMergeKnownHosts checks that whatever is in the file, it stays within
// bounds, has the new lines whole, and no other of that name.
func FuzzMergeKnownHosts(f *testing.F) {
	s, err := authority()
	if err != nil {
		f.Fatal(err)
	}
	keys := []ssh.PublicKey{s.PublicKey()}
	f.Add([]byte("web01,[web01]:* ssh-ed25519 AAAA\nb,[b]:* x\n"), "web01")
	f.Add([]byte("@cert-authority a,[a]:* x\nno end"), "a")
	f.Add(bytes.Repeat([]byte("b,[b]:* ssh-ed25519 AAAA\n"), 60000), "a")
	f.Fuzz(func(t *testing.T, old []byte, name string) {
		if sft.CheckTarget(name) != nil {
			return
		}
		got := mergeKnownHosts(old, name, keys, keys)
		names := sft.Fold(name) + ",[" + sft.Fold(name) + "]:*"
		if len(got) > max(maxKnownHosts, len(old)) || len(old) <= maxKnownHosts && len(got) > maxKnownHosts {
			t.Errorf("%d bytes", len(got))
		}
		n := 0
		for l := range bytes.Lines(got) {
			if bytes.HasPrefix(bytes.TrimPrefix(l, []byte("@cert-authority ")), []byte(names+" ")) {
				n++
			}
		}
		if n != 2 || !bytes.Contains(got, []byte("@cert-authority "+names+" "+line(keys[0])+"\n"+names+" "+line(keys[0])+"\n")) {
			t.Errorf("%d lines of %s in\n%s", n, name, got)
		}
	})
}
