package accounts

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sft"
)

// inside says to the test binary that it runs in its own namespaces.
const inside = "SFT_ACCOUNTS_TEST_INSIDE"

// TestMain is also the entrance of the agent that TestKilledAnywhere kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv("SFT_ACCOUNTS_TEST_AGENT"); dir != "" {
		agent(dir)
	}
	os.Exit(m.Run())
}

// TestLinux runs the tests of the real backend on a host of their own: this
// binary again, in namespaces with overlays on /etc and /var and nothing in
// /home and /run. The machine's own accounts are compared before and after.
func TestLinux(t *testing.T) {
	if os.Getenv(inside) != "" {
		linuxTests(t)
		return
	}
	if os.Getuid() != 0 {
		t.Skip("NOT TESTED: the Linux backend needs root to make namespaces; run the tests as root")
	}
	before := machine(t)
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc",
		"/bin/sh", "-c", `"$@"; exit $?`, "init", // whose parents died must be reaped, as by any init
		os.Args[0], "-test.run=^TestLinux$", "-test.v", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	t.Logf("inside:\n%s", out)
	if err != nil {
		t.Errorf("inside: %v", err)
	}
	if after := machine(t); !maps.Equal(before, after) {
		for name := range after {
			if before[name] != after[name] {
				t.Errorf("%s of this machine changed", name)
			}
		}
		t.Error("the machine itself was touched")
	}
}

// machine returns what must not change on the real machine.
func machine(t *testing.T) map[string]string {
	t.Helper()
	m := map[string]string{}
	for _, f := range []string{"/etc/passwd", "/etc/shadow", "/etc/group", "/etc/gshadow", "/etc/subuid", "/etc/subgid"} {
		data, err := os.ReadFile(f)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		m[f] = string(data)
	}
	for _, d := range []string{"/home", "/var/mail", "/etc/sudoers.d"} {
		all, _ := os.ReadDir(d)
		m[d] = fmt.Sprint(all)
	}
	return m
}

// A spy is the tool runner of a Linux under test. It notes each command, and
// can step in before and after.
type spy struct {
	seen   []command
	before func(command) error
	after  func(command) error
}

func (s *spy) run(ctx context.Context, c command) error {
	s.seen = append(s.seen, c)
	if s.before != nil {
		if err := s.before(c); err != nil {
			return err
		}
	}
	err := runTool(ctx, c)
	if err == nil && s.after != nil {
		err = s.after(c)
	}
	return err
}

// tools returns the names of the commands seen since the last call.
func (s *spy) tools() []string {
	var all []string
	for _, c := range s.seen {
		all = append(all, c.tool)
	}
	s.seen = nil
	return all
}

// newHost gives this process a host without accounts of ours, and returns its
// backend.
func newHost(t *testing.T) (*Linux, *spy) {
	t.Helper()
	s := &spy{}
	l := NewLinux()
	l.run, l.term = s.run, 300*time.Millisecond
	scratch := must1(os.MkdirTemp("", "accounts-host-"))(t) // a comma in the path would end an overlay option
	var mounted []string
	mount := func(source, target, kind, data string) {
		t.Helper()
		if err := unix.Mount(source, target, kind, 0, data); err != nil {
			t.Fatalf("mount %s on %s: %v", kind, target, err)
		}
		mounted = append(mounted, target)
	}
	t.Cleanup(func() {
		for _, target := range slices.Backward(mounted) {
			if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", target, err)
			}
		}
		must(t, os.Remove(scratch))
	})
	mount("tmpfs", scratch, "tmpfs", "mode=755") // an overlay cannot stand on an overlay
	must(t, os.Mkdir(scratch+"/tmp", 0o700))
	t.Setenv("TMPDIR", scratch+"/tmp") // state folders in memory: hundreds of records are written
	for _, dir := range []string{"etc", "var"} {
		up, work := filepath.Join(scratch, dir), filepath.Join(scratch, dir+".work")
		must(t, errors.Join(os.Mkdir(up, 0o755), os.Mkdir(work, 0o755)))
		mount("overlay", "/"+dir, "overlay", "lowerdir=/"+dir+",upperdir="+up+",workdir="+work)
	}
	sh(t, "sed", "-i", "s/pam_unix.so/& nodelay/", "/etc/pam.d/common-auth") // a wrong password need not cost 3 s
	sh(t, "sed", "-i", "$ a FAIL_DELAY 0", "/etc/login.defs")
	mount("tmpfs", "/home", "tmpfs", "mode=755")
	mount("tmpfs", "/run", "tmpfs", "mode=755")
	mount("tmpfs", "/var/mail", "tmpfs", "mode=1777")
	return l, s
}

// sh runs a command that sets the scene.
func sh(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// lines returns every line about login in the account files.
func lines(t *testing.T, login string) string {
	t.Helper()
	var all []string
	for _, f := range []string{"/etc/passwd", "/etc/shadow", "/etc/group", "/etc/gshadow"} {
		data := must1(os.ReadFile(f))(t)
		for l := range strings.Lines(string(data)) {
			if slices.Contains(strings.FieldsFunc(l, func(r rune) bool { return r == ':' || r == ',' || r == '\n' }), login) {
				all = append(all, f+" "+l)
			}
		}
	}
	return strings.Join(all, "")
}

// signIn asks PAM, as somebody who has no rights of their own.
func signIn(password string) bool {
	cmd := exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "su", "alice", "-c", "true")
	cmd.Stdin = strings.NewReader(password + "\n")
	return cmd.Run() == nil
}

var (
	alice = Want{"alice", "Alice Example", 60001, 63001, false}
	bob   = Want{"bob", "Bob", 60002, 63002, false}
	yes   = Limits{AllowAdmin: true}
)

func linuxTests(t *testing.T) {
	run := func(name string, f func(*testing.T, *Linux, *spy)) {
		t.Run(name, func(t *testing.T) {
			l, s := newHost(t)
			f(t, l, s)
		})
	}

	run("the life of an account", func(t *testing.T, l *Linux, _ *spy) {
		testLife(t, l, func(login string, uid int) {
			sh(t, "useradd", "-m", "-u", strconv.Itoa(uid), "-p", "$6$salt$hash", login)
		})
	})

	run("a new account is at rest, private and complete", func(t *testing.T, l *Linux, s *spy) {
		must(t, os.WriteFile("/etc/skel/.profile", []byte("x"), 0o644))
		must(t, os.Symlink("/usr/share/doc", "/etc/skel/doc"))
		m := open(t, t.TempDir(), l)
		expect(t, m.Reconcile(t.Context(), []Want{alice}, yes, false), "alice created")
		gid := must1(readAll())(t).findGroup("sft-users").gid
		want := "/etc/passwd alice:x:60001:63001:Alice Example:/home/alice:/bin/bash\n" +
			"/etc/shadow alice:*:" + strconv.Itoa(today()) + ":0::7:::\n" +
			fmt.Sprintf("/etc/group sft-users:x:%d:alice\n", gid) +
			"/etc/group alice:x:63001:\n" +
			"/etc/gshadow sft-users:!::alice\n" +
			"/etc/gshadow alice:!::\n"
		if got := lines(t, "alice"); got != want {
			t.Errorf("the files hold\n%swant\n%s", got, want)
		}
		for _, f := range []struct {
			path string
			mode fs.FileMode
		}{{"/home/alice", fs.ModeDir | 0o700}, {"/home/alice/.profile", 0o644}, {"/home/alice/doc", fs.ModeSymlink | 0o777}} {
			st := must1(os.Lstat(f.path))(t)
			sys := st.Sys().(*syscall.Stat_t)
			if st.Mode() != f.mode || sys.Uid != 60001 || sys.Gid != 63001 {
				t.Errorf("%s has mode %v and belongs to %d:%d", f.path, st.Mode(), sys.Uid, sys.Gid)
			}
		}
		s.seen = nil
		for range 3 {
			expect(t, m.Reconcile(t.Context(), []Want{alice}, yes, false), "alice kept")
		}
		must(t, m.Disable(t.Context(), "alice"))
		must(t, m.DisableAll(t.Context()))
		if got := s.tools(); got != nil {
			t.Errorf("with nothing to do, the tools %q were run", got)
		}
		if st := must1(os.Stat(m.path))(t); st.Mode() != 0o600 {
			t.Errorf("the record has mode %v", st.Mode())
		}
	})

	run("administrators", func(t *testing.T, l *Linux, s *spy) {
		m := open(t, t.TempDir(), l)
		boss := alice
		boss.Admin = true
		expect(t, m.Reconcile(t.Context(), []Want{boss, bob}, yes, false), "alice created", "bob created")
		sudo := func(login string) string {
			out, _ := exec.Command("sudo", "-l", "-U", login).CombinedOutput()
			return string(out)
		}
		if out := sudo("alice"); !strings.Contains(out, "(ALL) NOPASSWD: ALL") {
			t.Errorf("sudo -l of alice: %s", out)
		}
		if out := sudo("bob"); strings.Contains(out, "NOPASSWD") {
			t.Errorf("sudo -l of bob: %s", out)
		}
		if out, err := exec.Command("setpriv", "--reuid=60001", "--regid=63001", "--init-groups", "sudo", "-n", "id", "-u").CombinedOutput(); err != nil || string(out) != "0\n" {
			t.Errorf("sudo of alice: %v, %s", err, out)
		}
		if st := must1(os.Stat(sudoersFile))(t); st.Mode() != 0o440 {
			t.Errorf("the drop-in has mode %v", st.Mode())
		}
		if all := must1(filepath.Glob(sudoersDir + "/.sft*"))(t); all != nil {
			t.Errorf("left behind: %q", all)
		}
		s.seen = nil
		expect(t, m.Reconcile(t.Context(), []Want{boss, bob}, yes, false), "alice kept", "bob kept")
		if got := s.tools(); got != nil {
			t.Errorf("with nothing to do, the tools %q were run", got)
		}

		// A rule that somebody spoilt is put right.
		must(t, os.WriteFile(sudoersFile, []byte("ALL ALL=(ALL) NOPASSWD: ALL\n"), 0o440))
		expect(t, m.Reconcile(t.Context(), []Want{boss, bob}, yes, false), "alice kept", "bob kept")
		if got := string(must1(os.ReadFile(sudoersFile))(t)); got != sudoersRule {
			t.Errorf("the drop-in holds %q", got)
		}

		expect(t, m.Reconcile(t.Context(), []Want{boss, bob}, Limits{}, false), "alice updated !", "bob kept")
		if out := sudo("alice"); strings.Contains(out, "NOPASSWD") {
			t.Errorf("sudo -l of alice, who is no administrator now: %s", out)
		}
		expect(t, m.Reconcile(t.Context(), []Want{boss, bob}, yes, false), "alice updated", "bob kept")
		expect(t, m.Reconcile(t.Context(), []Want{bob}, yes, false), "alice disabled", "bob kept")
		if out := sudo("alice"); strings.Contains(out, "NOPASSWD") {
			t.Errorf("sudo -l of alice, who is gone: %s", out)
		}
	})

	run("a host without sudo still has the accounts", func(t *testing.T, l *Linux, s *spy) {
		must(t, os.Remove("/etc/sudoers"))
		m := open(t, t.TempDir(), l)
		boss := alice
		boss.Admin = true
		got := m.Reconcile(t.Context(), []Want{boss, bob}, yes, false)
		expect(t, got, "alice created !", "bob created")
		want := "alice: created: give administrators their rights: sudo is not on this host; install it, or set AllowAdmin to false"
		if got[0].String() != want {
			t.Errorf("told %q, want %q", got[0], want)
		}
	})

	run("a rule that visudo refuses is not put in place", func(t *testing.T, l *Linux, s *spy) {
		s.before = func(c command) error {
			if c.tool == "visudo" {
				return os.WriteFile(c.args[1], []byte("%sft-admin ALL=(ALL\n"), 0o440)
			}
			return nil
		}
		m := open(t, t.TempDir(), l)
		boss := alice
		boss.Admin = true
		expect(t, m.Reconcile(t.Context(), []Want{boss}, yes, false), "alice created !")
		if all := must1(filepath.Glob(sudoersDir + "/*sft*"))(t); all != nil {
			t.Errorf("left behind: %q", all)
		}
	})

	run("what is somebody else's is told and left as it is", func(t *testing.T, l *Linux, s *spy) {
		sh(t, "useradd", "-m", "-u", "60001", "-p", "$6$salt$hash", "-c", "The Other Alice", "alice") // same name, same uid
		sh(t, "useradd", "-M", "-u", "60002", "carol")                                                // bob's uid
		sh(t, "groupadd", "-g", "63003", "team")                                                      // dave's gid
		must(t, os.Mkdir("/home/erin", 0o755))                                                        // root's folder
		must(t, os.Symlink("/root", "/home/fay"))
		sh(t, "useradd", "-M", "-d", "/home/gus", "harry") // gus's home
		others := []string{"alice", "carol", "team", "harry"}
		before := map[string]string{}
		for _, n := range others {
			before[n] = lines(t, n)
		}
		m := open(t, t.TempDir(), l)
		got := m.Reconcile(t.Context(), []Want{alice, bob, {Login: "dave", UID: 60003, GID: 63003}, {Login: "erin", UID: 60004, GID: 63004},
			{Login: "fay", UID: 60005, GID: 63005}, {Login: "gus", UID: 60006, GID: 63006}, {Login: "root", UID: 60007, GID: 63007}}, yes, true)
		expect(t, got, "alice conflict !", "bob conflict !", "dave conflict !", "erin conflict !", "fay conflict !", "gus conflict !", "root refused !")
		must(t, m.DisableAll(t.Context()))
		for _, n := range others {
			if now := lines(t, n); now != before[n] {
				t.Errorf("%s was\n%sis\n%s", n, before[n], now)
			}
		}
		if got := s.tools(); got != nil {
			t.Errorf("tools %q were run", got)
		}
	})

	run("a password opens the account, and only that one does", func(t *testing.T, l *Linux, s *spy) {
		m := open(t, t.TempDir(), l)
		must(t, os.WriteFile("/etc/login.defs", append(must1(os.ReadFile("/etc/login.defs"))(t), "\nPASS_MAX_DAYS 1\nPASS_MIN_DAYS 1\n"...), 0o644))
		m.Reconcile(t.Context(), []Want{alice}, yes, false)
		first, second := strings.Repeat("aB3:$'\\ ", 8), strings.Repeat("x", 64)
		sh(t, "chage", "-d", "0", "-E", "1", "-M", "1", "-m", "1", "-I", "0", "alice") // whatever expiry can do
		must(t, m.Enable(t.Context(), "alice", sft.NewSecret(first)))
		if !signIn(first) || signIn(second) || signIn("") {
			t.Errorf("after the first: first %v, second %v, empty %v", signIn(first), signIn(second), signIn(""))
		}
		must(t, m.Enable(t.Context(), "alice", sft.NewSecret(second)))
		if signIn(first) || !signIn(second) {
			t.Errorf("after the second: first %v, second %v", signIn(first), signIn(second))
		}
		must(t, m.Disable(t.Context(), "alice"))
		if signIn(first) || signIn(second) || signIn("") || signIn("*") {
			t.Error("an account at rest lets somebody in")
		}
		if f := strings.Split(lines(t, "alice"), "\n")[1]; !strings.HasPrefix(f, "/etc/shadow alice:*:") || !strings.HasSuffix(f, ":0::7:::") {
			t.Errorf("at rest the shadow line is %s", f)
		}
		for _, c := range s.seen {
			if s := strings.Join(c.args, " "); strings.Contains(s, first) || strings.Contains(s, second) {
				t.Errorf("%s was given the password as argument", c.tool)
			}
		}
		// An account that its administrator locked is brought back to rest.
		sh(t, "passwd", "-q", "-l", "alice")
		must(t, m.DisableAll(t.Context()))
		if a := lines(t, "alice"); !strings.Contains(a, "alice:*:") {
			t.Errorf("after DisableAll:\n%s", a)
		}
	})

	run("a lockout is cleared", func(t *testing.T, l *Linux, _ *spy) {
		m := open(t, t.TempDir(), l)
		m.Reconcile(t.Context(), []Want{alice}, yes, false)
		must(t, os.WriteFile("/etc/pam.d/su", []byte("auth required pam_faillock.so preauth deny=2 nodelay\nauth [success=1 default=ignore] pam_unix.so nodelay\n"+
			"auth [default=die] pam_faillock.so authfail deny=2 nodelay\nauth required pam_permit.so\naccount required pam_unix.so\n"), 0o644))
		must(t, m.Enable(t.Context(), "alice", sft.NewSecret("one")))
		for range 3 {
			signIn("wrong")
		}
		if signIn("one") {
			t.Fatal("the host does not lock accounts out: nothing is tested")
		}
		must(t, m.Enable(t.Context(), "alice", sft.NewSecret("two")))
		if !signIn("two") {
			t.Error("the account is still locked out")
		}
	})

	run("the record lost: all accounts in the group are shut", func(t *testing.T, l *Linux, _ *spy) {
		dir := t.TempDir()
		m := open(t, dir, l)
		m.Reconcile(t.Context(), []Want{alice, bob}, yes, false)
		must(t, m.Enable(t.Context(), "alice", sft.NewSecret("x")))
		must(t, m.Enable(t.Context(), "bob", sft.NewSecret("x")))
		sh(t, "usermod", "-aG", "sft-users", "daemon") // a mistake must not reach the system's accounts
		daemon := lines(t, "daemon")
		sh(t, "usermod", "-p", "$6$salt$hash", "root")
		root := lines(t, "root")
		must(t, os.Remove(filepath.Join(dir, recordName)))
		must(t, LockAll(t.Context(), dir, NewLinux()))
		e := must1(readAll())(t)
		if a, b := e.shadow["alice"].password, e.shadow["bob"].password; a != "*" || b != "*" {
			t.Errorf("passwords are %q and %q", a, b)
		}
		if lines(t, "daemon") != daemon || lines(t, "root") != root {
			t.Error("an account of the system was changed")
		}
	})

	run("log-off ends every process", func(t *testing.T, l *Linux, _ *spy) { testLogoff(t, l) })
	run("a sign-in that was under way at the log-off does not keep the account", func(t *testing.T, l *Linux, s *spy) {
		m := open(t, t.TempDir(), l)
		m.Reconcile(t.Context(), []Want{alice, bob}, yes, false)
		start := 1 // how often something is started just before the account goes
		s.before = func(c command) error {
			if c.tool == "userdel" && start > 0 {
				start--
				startAs(t, bob, "echo; exec sleep 1000")
			}
			return nil
		}
		expect(t, m.Reconcile(t.Context(), []Want{alice}, yes, true), "alice kept", "bob removed")
		if start != 0 || runs(t, bob) {
			t.Error("what was started runs on, or nothing was tested")
		}
		// Where it never ends, it is said, and tried again at the next sync.
		m.Reconcile(t.Context(), []Want{alice, bob}, yes, false)
		start = 100
		expect(t, m.Reconcile(t.Context(), []Want{alice}, yes, true), "alice kept", "bob failed !")
		if start < 90 {
			t.Errorf("userdel was run %d times", 100-start)
		}
		start = 0
		expect(t, m.Reconcile(t.Context(), []Want{alice}, yes, true), "alice kept", "bob removed")
	})
	run("a session is seen when it is newer", func(t *testing.T, l *Linux, _ *spy) { testSignedIn(t, l) })

	run("deletion takes the files, and nothing that is mounted there", func(t *testing.T, l *Linux, _ *spy) {
		m := open(t, t.TempDir(), l)
		m.Reconcile(t.Context(), []Want{alice, bob}, yes, false)
		mine := t.TempDir()
		precious := filepath.Join(mine, "precious")
		must(t, os.WriteFile(precious, []byte("x"), 0o600))
		must(t, os.WriteFile("/home/alice/notes", []byte("x"), 0o600))
		must(t, os.Symlink(mine, "/home/alice/link"))
		must(t, os.Mkdir(filepath.Join(mine, "deep"), 0o700))
		must(t, os.Mkdir("/home/alice/my drives", 0o700))
		for _, d := range []string{"/home/alice/my drives", "/home/alice/my drives/deep"} {
			must(t, unix.Mount(mine, d, "", unix.MS_BIND, ""))
		}
		must(t, os.WriteFile("/var/mail/alice", []byte("x"), 0o600))
		must(t, os.Chown("/var/mail/alice", 60001, 63001))
		must(t, os.WriteFile("/var/mail/bob", []byte("x"), 0o600)) // root's
		tree := exec.Command("setpriv", "--reuid=60001", "--regid=63001", "--clear-groups", "sleep", "1000")
		tree.Dir = "/home/alice"
		must(t, tree.Start())
		go tree.Wait()
		sh(t, "sed", "-i", "s/^USERGROUPS_ENAB.*/USERGROUPS_ENAB no/", "/etc/login.defs")

		expect(t, m.Reconcile(t.Context(), nil, yes, true), "alice removed", "bob removed")
		for _, n := range []string{"alice", "bob"} {
			if got := lines(t, n); got != "" {
				t.Errorf("left behind:\n%s", got)
			}
		}
		if all := must1(filepath.Glob("/home/*"))(t); all != nil {
			t.Errorf("left behind: %q", all)
		}
		if _, err := os.Stat(precious); err != nil {
			t.Errorf("what was mounted in the home is gone: %v", err)
		}
		if _, err := os.Stat("/var/mail/alice"); !errors.Is(err, fs.ErrNotExist) {
			t.Error("the mail is left behind")
		}
		if _, err := os.Stat("/var/mail/bob"); err != nil {
			t.Error("a file of root was deleted")
		}
	})

	run("a home that is somebody else's by now is not deleted", func(t *testing.T, l *Linux, _ *spy) {
		m := open(t, t.TempDir(), l)
		m.Reconcile(t.Context(), []Want{alice, bob}, yes, false)
		must(t, os.WriteFile("/home/alice/notes", []byte("x"), 0o600))
		must(t, os.Lchown("/home/alice", 1500, 1500))
		got := m.ReconcileDeleting(t.Context(), nil, yes, func(login string) bool { return login == "alice" })
		expect(t, got, "alice removed", "bob disabled")
		if _, err := os.Stat("/home/alice/notes"); err != nil {
			t.Errorf("a file of another account's was deleted: %v", err)
		}
		if _, err := os.Stat("/home/bob"); err != nil {
			t.Errorf("a home that was not to be deleted: %v", err)
		}
	})

	run("files wait for who comes back", func(t *testing.T, l *Linux, _ *spy) {
		m := open(t, t.TempDir(), l)
		m.Reconcile(t.Context(), []Want{alice}, yes, false)
		must(t, os.WriteFile("/home/alice/notes", []byte("mine"), 0o600))
		expect(t, m.Reconcile(t.Context(), nil, yes, false), "alice disabled")
		expect(t, m.Reconcile(t.Context(), []Want{alice}, yes, false), "alice updated")
		if got := string(must1(os.ReadFile("/home/alice/notes"))(t)); got != "mine" {
			t.Errorf("notes are %q", got)
		}
		// Even where somebody deleted the account behind our back.
		sh(t, "userdel", "alice")
		expect(t, m.Reconcile(t.Context(), []Want{alice}, yes, false), "alice created")
		if got := string(must1(os.ReadFile("/home/alice/notes"))(t)); got != "mine" {
			t.Errorf("notes are %q", got)
		}
		// And a home that somebody deleted is made again.
		must(t, os.RemoveAll("/home/alice"))
		expect(t, m.Reconcile(t.Context(), []Want{alice}, yes, false), "alice updated")
		if st := must1(os.Stat("/home/alice"))(t); owner(st) != 60001 {
			t.Errorf("the home belongs to %d", owner(st))
		}
	})

	run("what somebody changed by hand is put right, but for what is the person's own", func(t *testing.T, l *Linux, _ *spy) {
		m := open(t, t.TempDir(), l)
		m.Reconcile(t.Context(), []Want{alice}, yes, false)
		sh(t, "usermod", "-g", "users", "-c", "Alice Example,Room 1,2,3", "alice")
		sh(t, "sed", "-i", "/^alice:/d", "/etc/shadow")
		expect(t, m.Reconcile(t.Context(), []Want{alice}, yes, false), "alice updated")
		if p := must1(readAll())(t).find("alice"); p.gid != 63001 || p.gecos != "Alice Example,Room 1,2,3" {
			t.Errorf("passwd has %+v", p)
		}
		expect(t, m.Reconcile(t.Context(), []Want{alice}, yes, false), "alice kept")
	})

	run("a tool that fails is told in its own words", func(t *testing.T, l *Linux, s *spy) {
		m := open(t, t.TempDir(), l)
		must(t, os.WriteFile("/etc/passwd.lock", []byte("1\x00"), 0o600)) // held by init
		s.before = func(c command) error {
			if c.tool == "groupadd" {
				return &toolError{"groupadd", 10, "groupadd: cannot lock /etc/group; try again later."}
			}
			return nil
		}
		got := m.Reconcile(t.Context(), []Want{alice}, yes, false)
		want := "alice: failed: make group sft-users: groupadd: groupadd: cannot lock /etc/group; try again later. (status 10); another program is changing accounts: end it if it hangs"
		if len(got) != 1 || got[0].String() != want {
			t.Errorf("told %v, want %s", got, want)
		}
		must(t, os.Remove("/etc/passwd.lock"))
		s.before = nil
		expect(t, m.Reconcile(t.Context(), []Want{alice}, yes, false), "alice created")
	})

	run("a full disk is told, and half of nothing is made", func(t *testing.T, l *Linux, s *spy) {
		dir := t.TempDir()
		must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16k"))
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
		m := open(t, dir, l)
		m.Reconcile(t.Context(), []Want{bob}, yes, false)
		record := string(must1(os.ReadFile(m.path))(t))
		must(t, m.Enable(t.Context(), "bob", sft.NewSecret("x")))
		fill, err := os.Create(filepath.Join(dir, "fill"))
		must(t, err)
		for err == nil {
			_, err = fill.Write(make([]byte, 512))
		}
		fill.Close()

		got := m.Reconcile(t.Context(), []Want{alice}, yes, false) // alice comes, bob goes
		expect(t, got, "alice failed !", "bob disabled !")
		if !strings.Contains(got[0].String(), "no space left on device; make room on that disk") {
			t.Errorf("told %v", got[0])
		}
		if e := must1(readAll())(t); e.find("alice").login != "" || e.shadow["bob"].password != "*" {
			t.Error("alice was made, or bob is still open")
		}
		if now := string(must1(os.ReadFile(m.path))(t)); now != record {
			t.Errorf("the record is %s", now)
		}
		if all := must1(filepath.Glob(dir + "/*.new"))(t); all != nil {
			t.Errorf("left behind: %q", all)
		}
		must(t, os.Remove(fill.Name()))
		expect(t, open(t, dir, l).Reconcile(t.Context(), []Want{alice}, yes, false), "alice created", "bob disabled")
	})

	run("hooks", testHooks)
	run("synced groups", testGroups)
	run("groups and entitlements after a crash", testRightsCrash)
	run("sudo entitlements", testEntitlements)
	run("a crash after any step", testCrash)
	run("a useradd that was cut short", testHalfMade)
	run("an agent killed anywhere", func(t *testing.T, l *Linux, _ *spy) { testKilled(t, l) })
}

// errCrash is what a step says after which the agent is no more.
var errCrash = errors.New("crash")

// testCrash ends the agent before its n-th tool, for every n, in a life of
// coming, changing and going; a new agent must then reach the same end.
func testCrash(t *testing.T, l *Linux, s *spy) {
	boss := alice
	boss.Admin, boss.FullName = true, "Alice Other"
	steps := []struct {
		wants []Want
		del   bool
	}{{[]Want{alice, bob}, false}, {[]Want{boss, bob}, false}, {[]Want{bob}, false}, {[]Want{boss}, true}, {nil, true}}
	for n := 0; ; n++ {
		dir, left := t.TempDir(), n
		s.before = func(command) error {
			if left--; left < 0 {
				return errCrash
			}
			return nil
		}
		crashed := false
		for _, step := range steps {
			for _, o := range open(t, dir, l).Reconcile(t.Context(), step.wants, yes, step.del) {
				crashed = crashed || o.Err != nil
			}
			if crashed {
				break
			}
		}
		s.before = nil
		for i, step := range steps {
			m := open(t, dir, l)
			m.Reconcile(t.Context(), step.wants, yes, step.del)
			for _, o := range m.Reconcile(t.Context(), step.wants, yes, step.del) {
				if o.Change != Kept || o.Err != nil {
					t.Fatalf("crash before tool %d, then step %d: %v", n, i, o)
				}
			}
			for _, w := range step.wants {
				want := Account{Login: w.Login, ID: strconv.Itoa(w.UID), UID: w.UID, GID: w.GID, FullName: w.FullName, Home: "/home/" + w.Login, Member: true, Admin: w.Admin}
				if got := read(t, l, w.Login); got != want {
					t.Fatalf("crash before tool %d, then step %d: the host has %+v, want %+v", n, i, got, want)
				}
			}
		}
		if left := lines(t, "alice") + lines(t, "bob"); left != "" {
			t.Fatalf("crash before tool %d: left behind\n%s", n, left)
		}
		sh(t, "groupdel", "sft-users")
		if _, err := os.Stat(sudoersFile); err == nil {
			must(t, os.Remove(sudoersFile))
			sh(t, "groupdel", "sft-admin")
		}
		if !crashed {
			if n < 15 {
				t.Errorf("only %d tools were run", n)
			}
			return
		}
	}
}

// testHalfMade leaves the files as a useradd does that is killed after it
// wrote the first of them, or the second.
func testHalfMade(t *testing.T, l *Linux, s *spy) {
	for _, undo := range [][]string{{"/etc/shadow", "/etc/group", "/etc/gshadow"}, {"/etc/group", "/etc/gshadow"}, {"/etc/gshadow"}} {
		for _, gone := range []bool{false, true} {
			dir := t.TempDir()
			old := map[string][]byte{}
			s.before = func(c command) error {
				for _, f := range undo {
					if c.tool == "useradd" {
						old[f] = must1(os.ReadFile(f))(t)
					}
				}
				return nil
			}
			s.after = func(c command) error {
				if c.tool != "useradd" {
					return nil
				}
				for f, data := range old {
					must(t, os.WriteFile(f, data, 0o640))
				}
				return errCrash
			}
			expect(t, open(t, dir, l).Reconcile(t.Context(), []Want{alice}, yes, false), "alice failed !")
			s.before, s.after = nil, nil
			m := open(t, dir, l)
			if gone {
				m.Reconcile(t.Context(), nil, yes, true)
			} else {
				m.Reconcile(t.Context(), []Want{alice}, yes, false)
				expect(t, m.Reconcile(t.Context(), []Want{alice}, yes, false), "alice kept")
				must(t, m.Enable(t.Context(), "alice", sft.NewSecret("x")))
				expect(t, m.Reconcile(t.Context(), nil, yes, true), "alice removed")
			}
			if left := lines(t, "alice"); left != "" || len(m.rec) != 0 {
				t.Fatalf("without %q: left behind %v\n%s", undo, m.rec, left)
			}
		}
	}
}

// agent makes accounts come and go until it is killed.
func agent(dir string) {
	m, err := Open(dir, NewLinux())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	boss := alice
	boss.Admin = true
	for {
		m.Reconcile(context.Background(), []Want{boss, bob}, yes, false)
		m.Reconcile(context.Background(), []Want{bob}, yes, true)
		m.Reconcile(context.Background(), []Want{alice}, yes, true)
	}
}

// testKilled kills a real agent, and the tool that it runs, at many moments.
func testKilled(t *testing.T, l *Linux) {
	dir := t.TempDir()
	for i := range 25 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "SFT_ACCOUNTS_TEST_AGENT="+dir)
		cmd.Stderr = os.Stderr
		must(t, cmd.Start())
		time.Sleep(time.Duration(30+i*11) * time.Millisecond) // the moment is what is tested
		var tools []byte
		for _, f := range must1(filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", cmd.Process.Pid)))(t) {
			data, _ := os.ReadFile(f)
			tools = append(tools, data...)
		}
		must(t, cmd.Process.Kill())
		cmd.Wait()
		for _, pid := range bytes.Fields(tools) {
			if n, err := strconv.Atoi(string(pid)); err == nil {
				syscall.Kill(n, syscall.SIGKILL)
			}
		}
		m := open(t, dir, l)
		kept := []string{"alice kept", "bob kept"}
		var got []Outcome
		for range 5 { // a tool that outlived the agent may be in the way at first
			if got = m.Reconcile(t.Context(), []Want{alice, bob}, yes, true); slices.Equal(told(got), kept) {
				break
			}
		}
		expect(t, got, kept...)
		for _, w := range []Want{alice, bob} {
			want := Account{Login: w.Login, ID: strconv.Itoa(w.UID), UID: w.UID, GID: w.GID, FullName: w.FullName, Home: "/home/" + w.Login, Member: true}
			if got := read(t, l, w.Login); got != want {
				t.Fatalf("round %d: the host has %+v, want %+v", i, got, want)
			}
		}
	}
}

// startAs starts a shell script as uid in a session of its own, and waits for
// it to say that it is ready.
func startAs(t *testing.T, w Want, script string) (pid int) {
	t.Helper()
	cmd := exec.Command("/bin/bash", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: uint32(w.UID), Gid: uint32(w.GID)}}
	cmd.Dir = "/"
	out := must1(cmd.StdoutPipe())(t)
	must(t, cmd.Start())
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatalf("start %q: %v", script, err)
	}
	go cmd.Wait()
	return cmd.Process.Pid
}

// runs looks for a process of w many times: one that forks and ends all the
// time is missed by most looks.
func runs(t *testing.T, w Want) bool {
	t.Helper()
	for range 30 {
		if all := must1(processes(w.UID))(t); len(all) > 0 {
			return true
		}
	}
	return false
}

func testLogoff(t *testing.T, l *Linux) {
	m := open(t, t.TempDir(), l)
	m.Reconcile(t.Context(), []Want{alice, bob}, yes, false)
	startAs(t, bob, "echo; exec sleep 1000")
	must(t, m.Logoff(t.Context(), "alice")) // with nothing to do

	for _, tt := range []struct{ name, script string }{
		{"a polite one", "echo; exec sleep 1000"},
		{"a tree of sessions", "setsid sleep 1000 & (setsid setsid sleep 1000 &) ; setsid bash -c 'setsid sleep 1000 & sleep 1000' & sleep 0.1; echo; wait"},
		{"one that heeds no signal", "trap '' TERM HUP INT; setsid sleep 1000 & echo; while :; do sleep 1000; done"},
		{"one that is stopped", "echo; kill -STOP $$"},
		{"one that runs away by forking", "f() { (trap '' TERM; f) & }; trap '' TERM; f; echo"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			startAs(t, alice, tt.script)
			if !runs(t, alice) {
				t.Fatal("nothing runs: nothing is tested")
			}
			start := time.Now()
			must(t, m.Logoff(t.Context(), "alice"))
			d := time.Since(start)
			if runs(t, alice) {
				t.Error("something is left")
			}
			if d > 10*time.Second {
				t.Errorf("it took %v", d)
			}
		})
	}
	t.Run("one that every look at /proc misses", func(t *testing.T) {
		pid := startAs(t, alice, "trap '' TERM; echo; while :; do sleep 1000; done")
		proc := fmt.Sprintf("/proc/%d", pid)
		must(t, unix.Mount("tmpfs", proc, "tmpfs", 0, ""))
		defer unix.Unmount(proc, unix.MNT_DETACH)
		must(t, m.Logoff(t.Context(), "alice"))
		for end := time.Now().Add(5 * time.Second); syscall.Kill(pid, 0) == nil; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("it is left")
			}
		}
	})
	if all := must1(processes(60002))(t); len(all) != 1 {
		t.Errorf("bob has %d processes, want 1", len(all))
	}

	// An uid that two accounts share, and accounts that are not ours.
	sh(t, "useradd", "-M", "-o", "-u", "60002", "carol")
	if err := m.Logoff(t.Context(), "bob"); sft.CodeOf(err) != sft.Conflict {
		t.Errorf("log off bob, who shares a uid: %v, want a conflict", err)
	}
	if err := l.Logoff(t.Context(), Account{Login: "bob", ID: "60002", UID: 60002, GID: 63002}); err == nil {
		t.Error("the backend does not see that the uid is shared")
	}
	for _, login := range []string{"root", "daemon", "carol"} {
		if err := m.Logoff(t.Context(), login); err == nil {
			t.Errorf("%s was logged off", login)
		}
	}
	if err := l.Logoff(t.Context(), Account{Login: "root", ID: "0", UID: 0}); err == nil {
		t.Error("the backend logs root off")
	}
	if all := must1(processes(60002))(t); len(all) != 1 {
		t.Errorf("bob has %d processes, want 1", len(all))
	}
	sh(t, "userdel", "-f", "carol")

	// Who loses access loses the processes too, at the next sync if a crash
	// came in between.
	expect(t, m.Reconcile(t.Context(), []Want{alice}, yes, false), "alice kept", "bob disabled")
	if all := must1(processes(60002))(t); len(all) != 0 {
		t.Errorf("bob has %d processes", len(all))
	}
	startAs(t, bob, "echo; exec sleep 1000")
	expect(t, m.Reconcile(t.Context(), []Want{alice}, yes, false), "alice kept")
	if all := must1(processes(60002))(t); len(all) != 0 {
		t.Errorf("bob has %d processes", len(all))
	}
}

func testSignedIn(t *testing.T, l *Linux) {
	m := open(t, t.TempDir(), l)
	m.Reconcile(t.Context(), []Want{alice, bob}, yes, false)
	signedIn := func(login string, since time.Time) bool {
		t.Helper()
		return must1(m.SignedInSince(t.Context(), login, since))(t)
	}
	before := time.Now()
	if signedIn("alice", before) || signedIn("alice", time.Unix(0, 0)) {
		t.Error("nobody has signed in")
	}
	time.Sleep(20 * time.Millisecond) // two ticks of /proc's clock
	startAs(t, alice, "echo; exec sleep 1000")
	time.Sleep(20 * time.Millisecond)
	after := time.Now()
	got := []bool{signedIn("alice", before), signedIn("alice", before.Round(0)), signedIn("alice", time.Unix(0, 0)), signedIn("alice", after), signedIn("bob", before)}
	if want := []bool{true, true, true, false, false}; !slices.Equal(got, want) {
		t.Errorf("since before, before by the wall clock, ever, after, bob: %v, want %v", got, want)
	}
	// What a session starts later is no new sign-in; a new session is.
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: &syscall.Credential{Uid: 60001, Gid: 63001}}
	must(t, cmd.Start())
	go cmd.Wait()
	if signedIn("alice", after) {
		t.Error("a process that leads no session counts")
	}
	time.Sleep(20 * time.Millisecond)
	startAs(t, alice, "echo; exec sleep 1000")
	if !signedIn("alice", after) {
		t.Error("a second session is not seen")
	}
	must(t, m.Logoff(t.Context(), "alice"))
	if signedIn("alice", before) {
		t.Error("a session that has ended counts")
	}
}

func TestParseStat(t *testing.T) {
	tail := " S 1 42 4242 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2"
	tests := []struct {
		name, in string
		session  int
		start    int64
		ok       bool
	}{
		{"as the kernel writes it", "42 (sleep)" + tail, 4242, 98765, true},
		{"a name with parentheses, spaces and numbers", "42 (a) S 1 1 1 1 (b\n) c)" + tail, 4242, 98765, true},
		{"cut short", "42 (sleep) S 1 42", 0, 0, false},
		{"nothing", "", 0, 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			session, start, err := parseStat([]byte(tt.in))
			if session != tt.session || start != tt.start || (err == nil) != tt.ok {
				t.Errorf("parseStat = %d, %d, %v", session, start, err)
			}
		})
	}
}

// FuzzProc checks that nothing that a process can do to its own lines in /proc
// stops the agent, and that what is read are ids.
func FuzzProc(f *testing.F) {
	f.Add([]byte("Name:\tsleep\nState:\tS (sleeping)\nUid:\t0\t0\t0\t0\n"))
	f.Add([]byte("42 (sleep) S 1 42 4242 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, uids, err := parseStatus(data); err == nil {
			for _, u := range uids {
				if u < 0 || u > 1<<32-1 {
					t.Errorf("uid %d", u)
				}
			}
		}
		parseStat(data)
	})
}

// FuzzEtc checks that an account file, whatever it holds, gives accounts with
// names and ids only, and that a line of our own is found in it.
func FuzzEtc(f *testing.F) {
	f.Add([]byte("root:x:0:0:root:/root:/bin/bash\n+::::::\n"))
	f.Add([]byte("sft-users:x:995:alice, bob,,\n"))
	f.Add([]byte("alice:*:20780:0::7:::\nbob:!$6$:0:-1:99999:7:1:2:\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, p := range parsePasswd(data) {
			if p.login == "" || p.uid < 0 || p.gid < 0 || p.uid > 1<<32-1 {
				t.Errorf("%+v", p)
			}
		}
		for _, g := range parseGroup(data) {
			if g.name == "" || g.gid < 0 || slices.Contains(g.members, "") {
				t.Errorf("%+v", g)
			}
		}
		for _, s := range parseShadow(data) {
			if s.login == "" || s.max < -1 || s.expire < -1 {
				t.Errorf("%+v", s)
			}
		}
		mine := append(append([]byte{}, data...), "\nzz-alice:x:60001:63001:A:/home/alice:/bin/sh\n"...)
		if p := (etc{passwd: parsePasswd(mine)}).find("zz-alice"); p.uid != 60001 && !bytes.Contains(data, []byte("zz-alice")) {
			t.Errorf("our line is lost after %q", data)
		}
	})
}

// FuzzMounts checks that only what is inside the folder is ever taken off.
func FuzzMounts(f *testing.F) {
	f.Add([]byte("36 35 98:0 / /home/alice/my\\040drives rw - fuse x rw\n37 35 98:0 / /home/alice2 rw - fuse x rw\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, p := range mountsBelow(data, "/home/alice") {
			if !strings.HasPrefix(p, "/home/alice/") {
				t.Errorf("%q is no part of the home", p)
			}
		}
	})
}

func TestLoginOf(t *testing.T) {
	passwd := parsePasswd([]byte("root:x:0:0::/root:/bin/sh\ntoor:x:0:0::/root:/bin/sh\nci:x:1000:1000::/home/ci:/bin/sh\n" +
		"ann:x:1001:1001::/:/bin/sh\nann:x:1002:1002::/:/bin/sh\n+nis:x:1003:1003::/:/bin/sh\nbad:x:1e3:0::/:/bin/sh\n"))
	for uid, want := range map[int]string{0: "root", 1000: "ci", 1001: "ann", 1002: "", 1003: "", 7: "", -1: ""} {
		if got := loginOf(passwd, uid); got != want {
			t.Errorf("uid %d is %q, want %q", uid, got, want)
		}
	}
}
