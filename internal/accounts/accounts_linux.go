package accounts

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
	"syscall"
	"time"

	"sft"
)

// The local groups of our accounts.
const (
	usersGroup = "sft-users" // marks an account as ours
	adminGroup = "sft-admin" // may do everything with sudo
)

const (
	homes       = "/home"
	sudoersDir  = "/etc/sudoers.d"
	sudoersFile = sudoersDir + "/sft-admin"
	sudoersRule = "# Made by sftd: server_admin of the project. Set AllowAdmin: false in sftd.yaml to forbid it.\n" +
		"%sft-admin ALL=(ALL) NOPASSWD: ALL\n"
)

// A Linux is the accounts in /etc/passwd, changed by the shadow tools alone,
// so that their locks, and the records of subordinate ids, audit and SELinux,
// stay right.
//
// The tools are found in the system's own folders, get no environment but
// these, an argument list and never a shell, and passwords on standard input.
type Linux struct {
	run  func(context.Context, command) error
	term time.Duration // between SIGTERM and SIGKILL
	hook time.Duration // for one script of a hook
}

// NewLinux returns the accounts of this host.
func NewLinux() *Linux { return &Linux{run: runTool, term: 3 * time.Second, hook: hookDeadline} }

// A command is one run of an account tool.
type command struct {
	tool  string // its name alone
	args  []string
	stdin sft.Secret
}

// toolFolders is where account tools may be, and the PATH that they get.
var toolFolders = []string{"/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// findTool returns the path of an account tool.
func findTool(name string) (string, error) {
	for _, dir := range toolFolders {
		p := filepath.Join(dir, name)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", &missingTool{name}
}

// A missingTool says that a program is not on this host.
type missingTool struct{ name string }

func (e *missingTool) Error() string {
	return e.name + " is not on this host; install the package that has it (passwd, shadow-utils or sudo)"
}

// A toolError is a tool's own refusal.
type toolError struct {
	tool string
	exit int
	text string // what it said, one line
}

func (e *toolError) Error() string {
	s := fmt.Sprintf("%s: %s (status %d)", e.tool, e.text, e.exit)
	if strings.Contains(e.text, "lock") {
		s += "; another program is changing accounts: end it if it hangs"
	}
	return s
}

// Is tells errors.Is of userdel(8)'s "user currently logged in".
func (e *toolError) Is(target error) bool {
	return target == errInUse && e.tool == "userdel" && e.exit == 8
}

// toolDeadline is more than any tool needs: they wait 15 s for their locks.
const toolDeadline = 30 * time.Second

// runTool runs c. A tool that has begun is let finish when ctx ends, since one
// that is killed leaves the account files half changed.
func runTool(ctx context.Context, c command) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w; it is tried again at the next sync", c.tool, err)
	}
	path, err := findTool(c.tool)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), toolDeadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, c.args...)
	cmd.Env = []string{"PATH=" + strings.Join(toolFolders, ":"), "LC_ALL=C", "HOME=/"}
	cmd.Dir = "/"
	cmd.Stdin = strings.NewReader(c.stdin.Reveal())
	var out head
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a signal to the agent's group is not for the tool
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 2 * time.Second
	err = cmd.Run()
	switch exit, ok := errors.AsType[*exec.ExitError](err); {
	case ctx.Err() != nil:
		return fmt.Errorf("%s did not end in %v; look for what holds it up, such as a directory server that does not answer", c.tool, toolDeadline)
	case ok:
		return &toolError{c.tool, exit.ExitCode(), out.line(c.stdin)}
	case err != nil:
		return fmt.Errorf("run %s: %w", c.tool, err)
	}
	return nil
}

// A head keeps the first bytes that are written to it.
type head struct{ b bytes.Buffer }

func (h *head) Write(p []byte) (int, error) {
	h.b.Write(p[:min(len(p), 2048-h.b.Len())])
	return len(p), nil
}

// line returns what was written as one printable line, without the secret.
func (h *head) line(secret sft.Secret) string {
	s := h.b.String()
	if !secret.Empty() {
		_, pw, _ := strings.Cut(strings.TrimSpace(secret.Reveal()), ":")
		s = strings.ReplaceAll(s, pw, secret.String())
	}
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }), ", ")
	if s == "" {
		s = "no reason given"
	}
	return s
}

// tool runs one tool without input.
func (l *Linux) tool(ctx context.Context, name string, args ...string) error {
	return l.run(ctx, command{tool: name, args: args})
}

// Read implements Backend.
func (l *Linux) Read(_ context.Context, logins []string) (Host, error) {
	e, err := readAll()
	if err != nil {
		return Host{}, err
	}
	h := Host{Groups: map[string]int{}, Homes: map[string]Home{}}
	for _, p := range e.passwd {
		h.Accounts = append(h.Accounts, e.account(p))
	}
	for _, g := range e.group {
		h.Groups[g.name] = g.gid
	}
	for _, login := range logins {
		home := Home{Path: filepath.Join(homes, login)}
		switch st, err := os.Lstat(home.Path); {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return Host{}, err
		default:
			home.Exists, home.Folder, home.UID = true, st.IsDir(), int(st.Sys().(*syscall.Stat_t).Uid)
		}
		h.Homes[login] = home
	}
	return h, nil
}

// ensureGroup makes the system group called name.
func (l *Linux) ensureGroup(ctx context.Context, name string) error {
	e, err := readAll()
	if err != nil || e.findGroup(name).name != "" {
		return err
	}
	if err := l.tool(ctx, "groupadd", "--system", name); err != nil {
		return fmt.Errorf("make group %s: %w", name, err)
	}
	return nil
}

// Prepare implements Backend.
func (l *Linux) Prepare(ctx context.Context) error { return l.ensureGroup(ctx, usersGroup) }

// PrepareAdmin implements Backend. The rule is checked before it stands where
// sudo reads it: a broken one would shut every administrator out of sudo.
func (l *Linux) PrepareAdmin(ctx context.Context) error {
	if err := l.ensureGroup(ctx, adminGroup); err != nil {
		return err
	}
	if err := l.putSudoers(ctx, sudoersFile, sudoersRule); err != nil {
		return fmt.Errorf("give administrators their rights: %w", err)
	}
	return nil
}

// putSudoers makes text the whole of file, in sudoersDir, if visudo has no
// objection. Where it is that already, nothing is run.
func (l *Linux) putSudoers(ctx context.Context, file, text string) error {
	main, err := readEtc("/etc/sudoers")
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("sudo is not on this host; install it, or set AllowAdmin to false")
	} else if err != nil {
		return err
	}
	if !bytes.Contains(main, []byte("includedir "+sudoersDir)) {
		return errors.New("/etc/sudoers does not read " + sudoersDir + "; add the line @includedir " + sudoersDir)
	}
	if sudoersRight(file, text) {
		return nil
	}
	// sudo passes over names with a dot, so it never reads the new file early.
	f, err := os.CreateTemp(sudoersDir, "."+filepath.Base(file)+".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Chmod(0o440), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := l.tool(ctx, "visudo", "-cf", f.Name()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), file); err != nil {
		return err
	}
	return syncFolder(sudoersDir)
}

// sudoersRight reports whether text is in place in file, as sudo demands it.
func sudoersRight(file, text string) bool {
	st, err := os.Lstat(file)
	if err != nil || st.Mode() != 0o440 || st.Sys().(*syscall.Stat_t).Uid != 0 || st.Sys().(*syscall.Stat_t).Gid != 0 {
		return false
	}
	data, err := readEtc(file)
	return err == nil && string(data) == text
}

// ensurePrivateGroup makes the group that has the login's name.
func (l *Linux) ensurePrivateGroup(ctx context.Context, login string, gid int) error {
	e, err := readAll()
	if err != nil {
		return err
	}
	if g := e.findGroup(login); g.name != "" && g.gid == gid {
		return nil
	}
	if err := l.tool(ctx, "groupadd", "-g", strconv.Itoa(gid), "--", login); err != nil {
		return fmt.Errorf("make group %s: %w", login, taken(err))
	}
	return nil
}

// taken turns the refusal of useradd and groupadd of a name or id that is not
// free (in a directory, where decide cannot see it) into a conflict.
func taken(err error) error {
	if e, ok := errors.AsType[*toolError](err); ok && (e.exit == 4 || e.exit == 9) {
		return &sft.Error{Code: sft.Conflict, Msg: e.Error(), Err: err,
			Hint: "look in the directory that this host uses, and give the person another login or other ids"}
	}
	return err
}

// shell is what people get.
func shell() string {
	if _, err := os.Stat("/bin/bash"); err == nil {
		return "/bin/bash"
	}
	return "/bin/sh"
}

// Create implements Backend. The one call of useradd makes the account ours,
// at rest and without expiry in one go; it writes passwd before group, so that
// one killed in between leaves the mark and no membership.
func (l *Linux) Create(ctx context.Context, w Want, mark string) (string, error) {
	if err := l.ensurePrivateGroup(ctx, w.Login, w.GID); err != nil {
		return "", err
	}
	err := l.tool(ctx, "useradd", "-M", "-d", filepath.Join(homes, w.Login), "-u", strconv.Itoa(w.UID), "-g", strconv.Itoa(w.GID),
		"-G", usersGroup, "-s", shell(), "-c", mark, "-p", rest, "-e", "", "-f", "-1",
		"-K", "PASS_MAX_DAYS=-1", "-K", "PASS_MIN_DAYS=0", "--", w.Login)
	if err != nil {
		return "", fmt.Errorf("make account %s: %w", w.Login, taken(err))
	}
	return strconv.Itoa(w.UID), nil
}

// Update implements Backend.
func (l *Linux) Update(ctx context.Context, a Account, w Want) error {
	e, p, err := l.again(a)
	if err != nil {
		return err
	}
	var args []string
	name, more, _ := strings.Cut(p.gecos, ",")
	if name != w.FullName {
		if more != "" { // room and telephones are the person's own
			more = "," + more
		}
		args = append(args, "-c", w.FullName+more)
	}
	if p.gid != w.GID {
		if err := l.ensurePrivateGroup(ctx, w.Login, w.GID); err != nil {
			return err
		}
		args = append(args, "-g", strconv.Itoa(w.GID))
	}
	if len(args) > 0 {
		if err := l.tool(ctx, "usermod", append(args, "--", w.Login)...); err != nil {
			return err
		}
	}
	if p.home == filepath.Join(homes, w.Login) {
		if err := l.ensureHome(ctx, w); err != nil {
			return fmt.Errorf("make home %s: %w", p.home, err)
		}
	}
	if err := l.setAdmin(ctx, e, w.Login, w.Admin); err != nil {
		return err
	}
	if _, ok := e.shadow[w.Login]; !ok { // somebody lost it
		return l.Rest(ctx, a)
	}
	return l.stopAging(ctx, e, w.Login)
}

// again reads the files once more and makes sure that a is still what it was.
func (l *Linux) again(a Account) (etc, passwdLine, error) {
	e, err := readAll()
	if err != nil {
		return e, passwdLine{}, err
	}
	p := e.find(a.Login)
	if p.login == "" || strconv.Itoa(p.uid) != a.ID || p.uid < minID {
		return e, p, fmt.Errorf("account %s changed meanwhile; look for another program that changes accounts", a.Login)
	}
	return e, p, nil
}

// setAdmin puts login into the admin group or takes it out.
func (l *Linux) setAdmin(ctx context.Context, e etc, login string, admin bool) error {
	if e.member(adminGroup, login) == admin {
		return nil
	}
	how := "-d"
	if admin {
		how = "-a"
	}
	return l.tool(ctx, "gpasswd", how, login, adminGroup)
}

// stopAging makes the account and its password last.
func (l *Linux) stopAging(ctx context.Context, e etc, login string) error {
	s, ok := e.shadow[login]
	if !ok || !s.aging() {
		return nil
	}
	args := []string{"-E", "-1", "-I", "-1", "-m", "0", "-M", "-1"}
	if s.changed == 0 {
		args = append(args, "-d", time.Now().UTC().Format(time.DateOnly))
	}
	return l.tool(ctx, "chage", append(args, "--", login)...)
}

// Enable implements Backend. The password goes in last.
func (l *Linux) Enable(ctx context.Context, a Account, password sft.Secret) error {
	e, _, err := l.again(a)
	if err != nil {
		return err
	}
	if err := l.stopAging(ctx, e, a.Login); err != nil {
		return err
	}
	// Most hosts have no pam_faillock set up, and its tool then has nothing to
	// clear. A lockout that cannot be cleared shows itself at the sign-in.
	if _, err := findTool("faillock"); err == nil {
		_ = l.tool(ctx, "faillock", "--user", a.Login, "--reset")
	}
	err = l.run(ctx, command{tool: "chpasswd", stdin: sft.NewSecret(a.Login + ":" + password.Reveal() + "\n")})
	if err != nil {
		return err
	}
	now, _, err := l.again(a)
	if err != nil {
		return err
	}
	if s := now.shadow[a.Login]; !s.enabled() || s.password == e.shadow[a.Login].password {
		return errors.New("chpasswd changed nothing in /etc/shadow; look at /etc/pam.d/chpasswd")
	}
	return nil
}

// Rest implements Backend.
func (l *Linux) Rest(ctx context.Context, a Account) error {
	e, _, err := l.again(a)
	if err != nil {
		return err
	}
	if s, ok := e.shadow[a.Login]; !ok || s.password != rest {
		if err := l.tool(ctx, "usermod", "-p", rest, "--", a.Login); err != nil {
			return err
		}
	}
	return l.stopAging(ctx, e, a.Login)
}

// End implements Backend. A password that matches nothing keeps nobody out who
// left a key in ~/.ssh/authorized_keys, or a job for cron: expiry does.
func (l *Linux) End(ctx context.Context, a Account) error {
	e, _, err := l.again(a)
	if err != nil {
		return err
	}
	if s := e.shadow[a.Login]; s.password != rest || !s.expired(today()) {
		if err := l.tool(ctx, "usermod", "-p", rest, "-e", "1970-01-02", "--", a.Login); err != nil {
			return err
		}
	}
	return l.setAdmin(ctx, e, a.Login, false)
}

// Delete implements Backend.
func (l *Linux) Delete(ctx context.Context, a Account, home bool) error {
	e, err := readAll()
	if err != nil {
		return err
	}
	p := e.find(a.Login)
	if p.login != "" && strconv.Itoa(p.uid) != a.ID {
		return nil // somebody else's by now
	}
	if a.UID < minID || CheckLogin(a.Login) != nil {
		return fmt.Errorf("delete account %s: it is not one that sftd makes; look at the record of accounts", a.Login)
	}
	if home {
		if err := l.removeFiles(ctx, a); err != nil {
			return fmt.Errorf("delete the files of %s: %w", a.Login, err)
		}
	}
	if p.login != "" {
		if err := l.tool(ctx, "userdel", "--", a.Login); err != nil {
			return err
		}
		if e, err = readAll(); err != nil {
			return err
		}
	}
	// What a userdel that was cut short, or told so by login.defs, leaves: a
	// later account of that name must not find itself in our groups.
	for _, g := range []string{usersGroup, adminGroup} {
		if e.member(g, a.Login) {
			if err := l.tool(ctx, "gpasswd", "-d", a.Login, g); err != nil {
				return err
			}
		}
	}
	if g := e.findGroup(a.Login); g.name != "" && g.gid == a.GID && len(g.members) == 0 && !e.primary(g.gid) {
		return l.tool(ctx, "groupdel", "--", a.Login)
	}
	return nil
}

// primary reports whether gid is the first group of any account.
func (e etc) primary(gid int) bool {
	for _, p := range e.passwd {
		if p.gid == gid {
			return true
		}
	}
	return false
}
