package accounts

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sft"
)

// granted writes what Grant did, for comparison.
func granted(g Granted) string {
	var s []string
	for _, o := range g.Groups {
		line := o.Name + " " + string(o.Change)
		if o.Err != nil {
			line += " !"
		}
		s = append(s, line)
	}
	if g.Sudo != nil {
		s = append(s, "sudo !")
	}
	return strings.Join(append(s, g.Users...), ", ")
}

func grants(t *testing.T, m *Manager, r Rights, want string) Granted {
	t.Helper()
	g := m.Grant(t.Context(), r)
	if got := granted(g); got != want {
		t.Fatalf("Grant told %q, want %q; in full %v", got, want, g)
	}
	return g
}

// groupOf returns what /etc/group has of a group.
func groupOf(t *testing.T, name string) string {
	t.Helper()
	g := must1(readAll())(t).findGroup(name)
	if g.name == "" {
		return "none"
	}
	return fmt.Sprint(g.gid, g.members)
}

func testGroups(t *testing.T, l *Linux, s *spy) {
	dir := t.TempDir()
	m := open(t, dir, l)
	m.Reconcile(t.Context(), []Want{alice, bob}, yes, false)
	dev, dba := Group{"sft_dev", 63100}, Group{"dba", 63101}
	r := Rights{Groups: []Group{dev, dba}, Of: map[string]Held{"alice": {Groups: []string{"sft_dev", "dba"}}, "bob": {Groups: []string{"dba", "wheel"}}, "carl": {Groups: []string{"dba"}}}}
	want := func(name, want string) {
		t.Helper()
		if got := groupOf(t, name); got != want {
			t.Errorf("group %s is %q, want %q", name, got, want)
		}
	}
	grants(t, m, r, "dba created, sft_dev created, alice, bob")
	want("sft_dev", "63100 [alice]")
	want("dba", "63101 [alice bob]")
	s.seen = nil
	grants(t, m, r, "dba kept, sft_dev kept")
	if got := s.tools(); got != nil {
		t.Errorf("with nothing to do, the tools %q were run", got)
	}

	// A member that somebody else put there stays, and is told.
	sh(t, "useradd", "-M", "-u", "1500", "-G", "dba", "carl")
	sh(t, "gpasswd", "-a", "bob", "sft_dev")
	sh(t, "gpasswd", "-d", "bob", "dba")
	grants(t, open(t, dir, l), r, "dba updated !, sft_dev updated, bob")
	want("dba", "63101 [alice carl bob]")
	want("sft_dev", "63100 [alice]")

	// Who loses an account loses the membership, and so does who was ended.
	m = open(t, dir, l)
	m.Reconcile(t.Context(), []Want{alice}, yes, false)
	delete(r.Of, "bob")
	grants(t, m, r, "dba updated !, sft_dev kept, bob")
	want("dba", "63101 [alice carl]")

	// What is somebody else's is told and left as it is.
	sh(t, "groupadd", "-g", "63102", "ops")
	sh(t, "groupadd", "-g", "63103", "other")
	r.Groups = append(r.Groups, Group{"ops", 63102}, Group{"net", 63103}, Group{"docker", 63104}, Group{"sft-admin", 63105}, Group{"low", 27}, Group{"alice", 63001}, Group{"two", 63106}, Group{"two", 63107})
	r.Of["alice"] = Held{Groups: []string{"sft_dev", "dba", "ops", "net", "docker", "sft-admin", "low", "two"}}
	g := grants(t, m, r, "alice refused !, dba kept !, docker refused !, low refused !, net conflict !, ops conflict !, sft-admin refused !, sft_dev kept, two refused !")
	want("ops", "63102 []")
	want("other", "63103 []")
	want("net", "none")
	for _, o := range g.Groups {
		if e, ok := errors.AsType[*sft.Error](o.Err); o.Err != nil && (!ok || e.Hint == "") {
			t.Errorf("%s: %v has no hint", o.Name, o.Err)
		}
	}

	// A group whose gid somebody changed is not ours any more; one whose gid
	// the platform changed is a conflict, and nobody of ours stays in it.
	sh(t, "groupmod", "-g", "63999", "sft_dev")
	r.Groups = []Group{dev, {"dba", 63200}}
	grants(t, m, r, "dba conflict !, sft_dev conflict !, alice")
	want("sft_dev", "63999 [alice]")
	want("dba", "63101 [carl]")

	// Only what is ours is removed, and not from under an account.
	sh(t, "usermod", "-g", "dba", "carl")
	r.Groups = nil
	grants(t, m, r, "dba failed !")
	want("dba", "63101 [carl]")
	sh(t, "usermod", "-g", "users", "carl")
	grants(t, m, r, "dba removed")
	want("dba", "none")
	want("sft_dev", "63999 [alice]")
	want("ops", "63102 []")
	if len(m.groups) != 0 {
		t.Errorf("the record still has %v", m.groups)
	}
}

// testRightsCrash ends the agent before its n-th tool, for every n; a new one
// must then reach the same end.
func testRightsCrash(t *testing.T, l *Linux, s *spy) {
	read := sft.SudoEntitlement{Name: "read", NoPasswd: true, Commands: []sft.SudoCommand{{Command: "/usr/bin/id", Type: "executable"}}}
	none := Rights{Of: map[string]Held{"alice": {}, "bob": {}}, AllowSudo: true}
	steps := []Rights{
		{Groups: []Group{{"sft_dev", 63100}}, Of: map[string]Held{"alice": {Groups: []string{"sft_dev"}}, "bob": {}}, AllowSudo: true},
		{Groups: []Group{{"sft_dev", 63100}, {"sft_ops", 63101}}, Entitlements: []sft.SudoEntitlement{read}, AllowSudo: true,
			Of: map[string]Held{"alice": {}, "bob": {Groups: []string{"sft_dev", "sft_ops"}, Sudo: []string{"read"}}}},
		{Groups: []Group{{"sft_ops", 63101}}, Of: map[string]Held{"alice": {Groups: []string{"sft_ops"}}, "bob": {}}, AllowSudo: true},
		none,
	}
	ends := []string{"63100 [alice] none false", "63100 [bob] 63101 [bob] true", "none 63101 [alice] false", "none none false"}
	dir := t.TempDir()
	open(t, dir, l).Reconcile(t.Context(), []Want{alice, bob}, yes, false)
	for n := 0; ; n++ {
		left := n
		s.before = func(command) error {
			if left--; left < 0 {
				return errCrash
			}
			return nil
		}
		for _, r := range steps {
			if open(t, dir, l).Grant(t.Context(), r); left < 0 {
				break
			}
		}
		s.before = nil
		for i, r := range steps {
			open(t, dir, l).Grant(t.Context(), r)
			sudo, _ := os.ReadFile(entitlementsFile)
			got := fmt.Sprint(groupOf(t, "sft_dev"), " ", groupOf(t, "sft_ops"), " ", strings.Contains(string(sudo), "bob ALL="))
			if got != ends[i] {
				t.Fatalf("crash before tool %d, then step %d: %q, want %q", n, i, got, ends[i])
			}
		}
		if left >= 0 {
			if n < 8 {
				t.Errorf("only %d tools were run", n)
			}
			return
		}
	}
}

func testEntitlements(t *testing.T, l *Linux, s *spy) {
	m := open(t, t.TempDir(), l)
	m.Reconcile(t.Context(), []Want{alice, bob}, yes, false)
	all := []sft.SudoEntitlement{
		{Name: "web", NoPasswd: true, NoExec: true, Commands: []sft.SudoCommand{
			{Command: "/usr/bin/id", Type: "executable"}, {Command: "/bin/echo", Type: "executable", ArgsType: "custom", Args: "a=b,c:d e"}}},
		{Name: "files", NoPasswd: true, RunAs: "daemon", SetEnv: true, AddEnv: []string{"LANG_OF", "REGION"}, SubEnv: []string{"DISPLAY"},
			Commands: []sft.SudoCommand{{Command: "/usr/bin/env", Type: "executable", ArgsType: "any"}, {Command: "/usr/sbin/", Type: "directory", ArgsType: "any"}}},
		{Name: "bad", NoPasswd: true, Commands: []sft.SudoCommand{{Command: "/usr/bin/id, ALL", Type: "executable"}}},
	}
	r := Rights{Entitlements: all, AllowSudo: true, Of: map[string]Held{"alice": {Sudo: []string{"web", "files"}}, "bob": {Sudo: []string{"bad"}}}}
	g := grants(t, m, r, "sudo !, alice")
	if !strings.Contains(fmt.Sprint(g.Sudo), `sudo entitlement "bad" is not used`) {
		t.Errorf("told %v", g.Sudo)
	}
	want := sudoHead + `Defaults:alice env_keep += "LANG_OF REGION"
Defaults:alice env_keep -= "DISPLAY"
# files
alice ALL=(daemon) NOPASSWD: SETENV: /usr/bin/env, /usr/sbin/
# web
alice ALL=(root) NOPASSWD: NOEXEC: NOSETENV: /usr/bin/id "", /bin/echo a\=b\,c\:d e
`
	if got := string(must1(os.ReadFile(entitlementsFile))(t)); got != want {
		t.Errorf("the file holds\n%swant\n%s", got, want)
	}
	if st := must1(os.Stat(entitlementsFile))(t); st.Mode() != 0o440 {
		t.Errorf("it has mode %v", st.Mode())
	}
	if list := must1(filepath.Glob(sudoersDir + "/.sft*"))(t); list != nil {
		t.Errorf("left behind: %q", list)
	}
	out, _ := exec.Command("sudo", "-l", "-U", "alice").CombinedOutput()
	for _, line := range []string{"(daemon) SETENV: NOPASSWD: /usr/bin/env, /usr/sbin/", `(root) NOSETENV: NOEXEC: NOPASSWD: /usr/bin/id "",`} {
		if !strings.Contains(strings.Join(strings.Fields(string(out)), " "), line) {
			t.Errorf("sudo -l says %s", out)
		}
	}
	sudo := func(want bool, args ...string) string {
		t.Helper()
		cmd := exec.Command("setpriv", append([]string{"--reuid=60001", "--regid=63001", "--init-groups", "sudo", "-n"}, args...)...)
		cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "REGION=eu", "OTHER=x"}
		out, err := cmd.CombinedOutput()
		if (err == nil) != want {
			t.Errorf("sudo %q: %v, %s", args, err, out)
		}
		return string(out)
	}
	sudo(true, "id")
	sudo(false, "id", "-u")
	sudo(true, "/bin/echo", "a=b,c:d", "e")
	sudo(false, "/bin/echo", "a=b,c:d")
	sudo(false, "/bin/echo", "a=b,c:d", "e", "f")
	sudo(false, "-u", "daemon", "id")
	sudo(false, "env")
	sudo(false, "FOO=bar", "id")
	sudo(false, "/bin/sh", "-c", "true")
	if out := sudo(true, "-u", "daemon", "env"); !strings.Contains(out, "REGION=eu") || strings.Contains(out, "OTHER=") {
		t.Errorf("the environment is %s", out)
	}
	if out := sudo(true, "-u", "daemon", "FOO=bar", "env"); !strings.Contains(out, "FOO=bar") {
		t.Errorf("the environment is %s", out)
	}
	s.seen = nil
	grants(t, m, r, "sudo !")
	if got := s.tools(); got != nil {
		t.Errorf("with nothing to do, the tools %q were run", got)
	}

	// What somebody spoilt is put right.
	must(t, os.Chmod(entitlementsFile, 0o666))
	grants(t, m, r, "sudo !")
	if st := must1(os.Stat(entitlementsFile))(t); st.Mode() != 0o440 {
		t.Errorf("it has mode %v", st.Mode())
	}
	must(t, os.WriteFile(entitlementsFile, []byte("ALL ALL=(ALL) NOPASSWD: ALL\n"), 0o440))
	grants(t, m, r, "sudo !, alice")
	if got := string(must1(os.ReadFile(entitlementsFile))(t)); got != want {
		t.Errorf("the file holds\n%s", got)
	}

	// A rule that visudo refuses leaves none, not the one before.
	r.Of["alice"] = Held{Sudo: []string{"web"}}
	s.before = func(c command) error {
		if c.tool == "visudo" {
			return errors.New("no")
		}
		return nil
	}
	grants(t, m, r, "sudo !")
	if _, err := os.Lstat(entitlementsFile); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
	s.before = nil
	grants(t, m, r, "sudo !, alice")
	sudo(true, "id")
	sudo(false, "-u", "daemon", "env")

	// The host's own administrator has the last word.
	r.AllowSudo = false
	if g := grants(t, m, r, "sudo !, alice"); sft.CodeOf(g.Sudo) != sft.Denied {
		t.Errorf("told %v", g.Sudo)
	}
	sudo(false, "id")
	r.AllowSudo = true
	grants(t, m, r, "sudo !, alice")

	// Who has no account of ours has no right, whoever takes the name; nor has
	// one whose uid somebody else has too, or who was ended.
	given := func(want string) {
		t.Helper()
		m.Grant(t.Context(), r)
		data, _ := os.ReadFile(entitlementsFile)
		if got := strings.Join(slices.Sorted(maps.Keys(sudoOf(string(data)))), " "); got != want {
			t.Errorf("rights of %q, want %q", got, want)
		}
	}
	r.Of["alice"], r.Of["bob"] = Held{Sudo: []string{"web"}}, Held{Sudo: []string{"web"}}
	given("alice bob")
	sh(t, "useradd", "-M", "-o", "-u", "60001", "twin")
	given("bob")
	sh(t, "userdel", "-f", "twin")
	given("alice bob")
	m.Reconcile(t.Context(), []Want{alice}, yes, false)
	given("alice")
	sh(t, "gpasswd", "-d", "alice", "sft-users")
	given("")
	sh(t, "gpasswd", "-a", "alice", "sft-users")
	given("alice")
	m.Reconcile(t.Context(), nil, yes, true)
	r.Of["alice"] = Held{Sudo: []string{"web"}}
	sh(t, "useradd", "-M", "-u", "60001", "alice")
	grants(t, m, r, "")
	if _, err := os.Lstat(entitlementsFile); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
	if _, err := os.Stat("/etc/sudoers"); err != nil {
		t.Fatal(err)
	}
}

// A rule is one command of one person, as cvtsudoers reads it.
type rule struct {
	users, runAs, command string
	tags                  string
}

// rulesOf lets the real parser of sudo say what text gives.
func rulesOf(t testing.TB, text string) (rules []rule, defaults []string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "sudoers")
	if err := os.WriteFile(file, []byte(text), 0o440); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("visudo", "-scf", file).CombinedOutput(); err != nil {
		t.Fatalf("visudo: %v, %s, of\n%s", err, out, text)
	}
	out, err := exec.Command("cvtsudoers", "-f", "json", file).Output()
	if err != nil {
		t.Fatalf("cvtsudoers: %v of\n%s", err, text)
	}
	type m = map[string]any
	var parsed struct {
		Defaults []struct {
			Binding []m
			Options []m
		}
		UserSpecs []struct {
			UserList []m `json:"User_List"`
			HostList []m `json:"Host_List"`
			Specs    []struct {
				RunAs    []m `json:"runasusers"`
				RunAsG   []m `json:"runasgroups"`
				Options  []m
				Commands []m
			} `json:"Cmnd_Specs"`
		} `json:"User_Specs"`
	}
	if err := json.Unmarshal(out, &parsed); err != nil {
		t.Fatal(err)
	}
	for _, d := range parsed.Defaults {
		defaults = append(defaults, fmt.Sprint(d.Binding, d.Options))
	}
	for _, u := range parsed.UserSpecs {
		for _, s := range u.Specs {
			if len(s.RunAsG) > 0 || fmt.Sprint(u.HostList) != "[map[hostname:ALL]]" {
				t.Errorf("a rule for %v on %v", s.RunAsG, u.HostList)
			}
			var tags []string
			for _, o := range s.Options {
				for k, v := range o {
					tags = append(tags, fmt.Sprint(k, "=", v))
				}
			}
			slices.Sort(tags)
			for _, c := range s.Commands {
				rules = append(rules, rule{fmt.Sprint(u.UserList), fmt.Sprint(s.RunAs), fmt.Sprint(c), strings.Join(tags, " ")})
			}
		}
	}
	return rules, defaults
}

// checkSudo is the property: whatever an entitlement holds, the file gives
// what it says, to that person, and nothing else.
func checkSudo(t testing.TB, e sft.SudoEntitlement) (used bool) {
	t.Helper()
	text, errs := renderSudo([]sft.SudoEntitlement{e}, map[string][]string{"alice": {e.Name}})
	if (text == "") != (len(errs) > 0) {
		t.Fatalf("the file %q with %v", text, errs)
	}
	if text == "" {
		return false
	}
	rules, defaults := rulesOf(t, text)
	if len(rules) != len(e.Commands) {
		t.Fatalf("%d rules for %d commands:\n%s", len(rules), len(e.Commands), text)
	}
	as := e.RunAs
	if as == "" {
		as = "root"
	}
	tags := fmt.Sprintf("authenticate=false setenv=%v", e.SetEnv)
	if e.NoExec {
		tags = fmt.Sprintf("authenticate=false noexec=true setenv=%v", e.SetEnv)
	}
	for i, c := range e.Commands {
		command := c.Command
		switch {
		case c.ArgsType == "custom":
			command += " " + c.Args
		case c.Type == "executable" && c.ArgsType != "any":
			command += ` ""`
		}
		got := rules[i]
		got.command = strings.NewReplacer(`\,`, ",", `\:`, ":", `\=`, "=").Replace(got.command)
		want := rule{"[map[username:alice]]", "[map[username:" + as + "]]", "map[command:" + command + "]", tags}
		if got != want {
			t.Fatalf("sudo reads %+v, want %+v, in\n%s", got, want, text)
		}
	}
	n := 0
	for _, d := range defaults {
		n++
		if !strings.HasPrefix(d, "[map[username:alice]] [map[env_keep:[") {
			t.Fatalf("sudo reads the default %s in\n%s", d, text)
		}
	}
	if n > 2 || n > 0 && len(e.AddEnv)+len(e.SubEnv) == 0 {
		t.Fatalf("%d defaults in\n%s", n, text)
	}
	return true
}

// TestSudoOfAnyEntitlement makes entitlements of words that mean something to
// sudo, and of good ones.
func TestSudoOfAnyEntitlement(t *testing.T) {
	if _, err := exec.LookPath("cvtsudoers"); err != nil {
		t.Skip("NOT TESTED: sudo is not on this machine")
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	pick := func(list ...string) string { return list[rnd.IntN(len(list))] }
	evil := []string{"ALL", "/bin/sh, ALL", "\n", "a\nALL ALL=(ALL) ALL", "\\", "#", "!", "*", "(ALL)", "NOPASSWD:", "%wheel", "+net", "@include /x", "\"", "''", "", " ", "=", ":", ",", "^.*$", "[a-z]", "sudoedit", "..", "\x00", "é", "sha224:aa /bin/sh"}
	mix := func(good ...string) string {
		if rnd.IntN(12) > 0 {
			return pick(good...)
		}
		return pick(good...) + pick(evil...) + pick("", pick(good...))
	}
	used, refused := 0, 0
	for range 400 {
		e := sft.SudoEntitlement{Name: mix("ops", "read logs", "x"), NoPasswd: rnd.IntN(20) > 0, NoExec: rnd.IntN(2) == 0, SetEnv: rnd.IntN(2) == 0, RunAs: mix("", "daemon", "postgres")}
		for range 1 + rnd.IntN(3) {
			c := sft.SudoCommand{Command: mix("/usr/bin/id", "/opt/a-b/c_d.sh", "/usr/bin/x@y"), Type: "executable", ArgsType: pick("", "none", "any", "custom")}
			if rnd.IntN(4) == 0 {
				c.Command, c.Type, c.ArgsType = mix("/usr/sbin/", "/opt/x/"), "directory", pick("", "any")
			}
			if c.ArgsType == "custom" {
				c.Args = mix("-a", "restart web@1.service", "a=b c:d,e", "--x=/y -- %z")
			}
			e.Commands = append(e.Commands, c)
		}
		for range rnd.IntN(3) {
			e.AddEnv = append(e.AddEnv, mix("LANG", "REGION"))
			e.SubEnv = append(e.SubEnv, mix("DISPLAY", "EDITOR"))
		}
		if checkSudo(t, e) {
			used++
		} else {
			refused++
		}
	}
	if used < 50 || refused < 50 {
		t.Errorf("%d were used and %d refused: little is tested", used, refused)
	}
}

// FuzzSudo checks that sudo's own parser reads in the file what the
// entitlement says, and nothing else.
func FuzzSudo(f *testing.F) {
	if _, err := exec.LookPath("cvtsudoers"); err != nil {
		f.Skip("NOT TESTED: sudo is not on this machine")
	}
	f.Add("ops", "/usr/bin/id", "executable", "", "", "root", "LANG", "DISPLAY", true)
	f.Add("a\nb", "/usr/bin/systemctl", "executable", "custom", "restart a@1 x=y,z:1", "", "", "", false)
	f.Add("x", "/usr/sbin/", "directory", "any", "", "ALL", "LD_PRELOAD", "X", false)
	f.Add("x", "/a/../b", "executable", "custom", "*", "", "", "", false)
	f.Fuzz(func(t *testing.T, name, command, kind, argsType, args, as, add, sub string, tag bool) {
		e := sft.SudoEntitlement{Name: name, NoPasswd: true, NoExec: tag, SetEnv: !tag, RunAs: as, Commands: []sft.SudoCommand{{Command: command, Type: kind, ArgsType: argsType, Args: args}}}
		if add != "" {
			e.AddEnv = []string{add}
		}
		if sub != "" {
			e.SubEnv = []string{sub}
		}
		checkSudo(t, e)
	})
}
