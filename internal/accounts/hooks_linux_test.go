package accounts

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sft"
)

func TestScripts(t *testing.T) {
	got := scripts([]string{"b.sh", "10-x.sh", "2-x.sh", "a.sh", "readme", ".hid.sh", "x.sh~", "02-a.sh", "99999999999999999999-x.sh"})
	want := []string{"02-a.sh", "2-x.sh", "10-x.sh", "99999999999999999999-x.sh", "a.sh", "b.sh"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// ran writes what was run, for comparison.
func ran(all []HookRun) string {
	var s []string
	for _, r := range all {
		line := strings.TrimPrefix(r.Script, hooksDir+"/") + "=" + r.Output
		if r.Err != nil {
			line += " !"
		}
		s = append(s, line)
	}
	return strings.Join(s, "; ")
}

func testHooks(t *testing.T, l *Linux, _ *spy) {
	l.hook = 500 * time.Millisecond
	m := open(t, t.TempDir(), l)
	upper := os.Getenv("TMPDIR") // of this test's own
	must(t, os.Mkdir(upper+"/lib", 0o755))
	must(t, os.Mkdir(upper+"/lib.work", 0o755))
	must(t, unix.Mount("overlay", "/usr/lib", "overlay", 0, "lowerdir=/usr/lib,upperdir="+upper+"/lib,workdir="+upper+"/lib.work"))
	t.Cleanup(func() {
		if err := unix.Unmount("/usr/lib", unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	must(t, os.MkdirAll(filepath.Dir(hooksDir), 0o755))
	hook := Hook{UserCreated, "alice"}
	check := func(what string, h Hook, want string) []HookRun {
		t.Helper()
		all := m.RunHooks(t.Context(), h)
		if got := ran(all); got != want {
			t.Errorf("%s: %q, want %q; in full %v", what, got, want, all)
		}
		for _, r := range all {
			if r.Err != nil && !strings.Contains(sft.Explain(r.Err), ";") {
				t.Errorf("%s: %v has no hint", what, r.Err)
			}
		}
		return all
	}
	check("no folder", hook, "")
	dir := hooksDir + "/user-created.d"
	must(t, os.MkdirAll(dir, 0o755))
	check("no scripts", hook, "")
	script := func(name, text string, mode os.FileMode) {
		t.Helper()
		must(t, os.WriteFile(name, []byte("#!/bin/sh\n"+text+"\n"), 0o600))
		must(t, os.Chmod(name, mode))
	}
	t.Setenv("SECRET", "x")
	script(dir+"/10-env.sh", "env | sort | tr '\\n' ' '; pwd; ls /proc/self/fd | wc -l", 0o755)
	script(dir+"/2-first.sh", "echo first $0; cat; exit 3", 0o700)
	script(dir+"/20-not", "echo not", 0o755)
	all := m.RunHooks(t.Context(), hook)
	got := ran(all)
	if !strings.HasPrefix(got, "user-created.d/2-first.sh=first /proc/self/fd/3 !; user-created.d/10-env.sh=HOME=/ LC_ALL=C PATH=") || strings.Contains(got, "SECRET") ||
		!strings.Contains(got, "SFT_HOOK_EVENT=user-created SFT_HOOK_USERNAME=alice") || strings.Contains(got, "GROUPNAME") || all[1].Err != nil {
		t.Errorf("it ran %s", got)
	}
	must(t, os.Remove(dir+"/10-env.sh"))
	must(t, os.Remove(dir+"/2-first.sh"))

	groups := hooksDir + "/group-deleted.d"
	must(t, os.Mkdir(groups, 0o755))
	script(groups+"/x.sh", `echo "$SFT_HOOK_EVENT $SFT_HOOK_GROUPNAME $SFT_HOOK_USERNAME"`, 0o755)
	check("of a group", Hook{GroupDeleted, "sft_dev"}, "group-deleted.d/x.sh=group-deleted sft_dev ")

	// One that hangs is ended, with what it started; the next one runs.
	script(dir+"/1-hang.sh", "echo begun; sleep 1000 & trap '' TERM; wait", 0o755)
	script(dir+"/2-leaves.sh", "sleep 1001 & exit 0", 0o755)
	script(dir+"/3-much.sh", "yes | head -c 1000000", 0o755)
	began := time.Now()
	all = m.RunHooks(t.Context(), hook)
	if len(all) != 3 || all[0].Err == nil || all[0].Output != "begun" || all[1].Err != nil || all[2].Err != nil || len(all[2].Output) > 8192 {
		t.Errorf("it ran %.500s", ran(all))
	}
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("it took %v", d)
	}
	if out := sleeps(t); slices.Contains(out, "1000") {
		t.Errorf("what hung goes on: %q", out)
	}
	for _, n := range []string{"1-hang.sh", "2-leaves.sh", "3-much.sh"} {
		must(t, os.Remove(dir+"/"+n))
	}

	// What others could have written is told, and not run.
	script(dir+"/a.sh", "echo ran", 0o755)
	const a = "user-created.d/a.sh"
	check("as it should be", hook, a+"=ran")
	for _, mode := range []os.FileMode{0o775, 0o757, 0o644} {
		must(t, os.Chmod(dir+"/a.sh", mode))
		check(fmt.Sprintf("mode %o", mode), hook, a+"= !")
	}
	must(t, os.Chmod(dir+"/a.sh", 0o755))
	must(t, os.Chown(dir+"/a.sh", 1000, 0))
	check("somebody else's", hook, a+"= !")
	must(t, os.Chown(dir+"/a.sh", 0, 0))
	script("/etc/elsewhere.sh", "echo ran", 0o755)
	must(t, os.Symlink("/etc/elsewhere.sh", dir+"/b.sh"))
	must(t, unix.Mkfifo(dir+"/c.sh", 0o755))
	must(t, os.Mkdir(dir+"/d.sh", 0o755))
	check("a link, a pipe and a folder", hook, a+"=ran; user-created.d/b.sh= !; user-created.d/c.sh= !; user-created.d/d.sh= !")
	for _, n := range []string{"b.sh", "c.sh", "d.sh"} {
		must(t, os.Remove(dir+"/"+n))
	}
	for _, path := range []string{dir, hooksDir, "/usr/lib/sftd"} {
		must(t, os.Chmod(path, 0o775))
		check(path+" of a group", hook, "user-created.d= !")
		must(t, os.Chmod(path, 0o755|os.ModeSticky))
		check(path+" as it should be", hook, a+"=ran")
		must(t, os.Chown(path, 1000, 0))
		check(path+" of somebody else", hook, "user-created.d= !")
		must(t, os.Chown(path, 0, 0))
		must(t, os.Rename(path, path+".real"))
		must(t, os.Symlink(path+".real", path))
		check(path+" as a link", hook, "user-created.d= !")
		must(t, os.Remove(path))
		must(t, os.Rename(path+".real", path))
	}
}

// sleeps returns the arguments of each sleep that runs.
func sleeps(t *testing.T) (args []string) {
	t.Helper()
	all, _ := os.ReadDir("/proc")
	for _, p := range all {
		b, _ := os.ReadFile("/proc/" + p.Name() + "/cmdline")
		if f := strings.Split(string(b), "\x00"); len(f) > 1 && strings.HasSuffix(f[0], "sleep") {
			args = append(args, f[1])
		}
	}
	return args
}
