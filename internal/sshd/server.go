package sshd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"sft"
	"sft/internal/conf"
)

// Where things are by default. They are in /etc/ssh, and not with the agent's secrets:
// sshd reads the file of principals as the person who signs in, and whoever
// keeps programs to their own files (SELinux) lets it read that folder.
const (
	DefaultConfig     = sshDir + "/sshd_config"
	DefaultDir        = sshDir + "/sftd"
	DefaultPrincipals = DefaultDir + "/principals/%u"
	DefaultCAs        = DefaultDir + "/user_ca.pub"
)

// Group is the local group whose accounts are let in by the platform's
// certificates. Package accounts puts the accounts that it made in it.
const Group = "sft-users"

// Files are where things are. All are full paths.
type Files struct {
	Config     string // the server's main configuration
	Dir        string // folder of the host certificates, and of trials
	Principals string // a file per login, in a folder of ours: ends in /%u
	CAs        string // the keys of the SSH user CA
	Record     string // what was done, and what is under way; private
}

// putBackMax is how often an hour a configuration that somebody else rewrites
// is put right again.
const putBackMax = 4

// A Server is the host's OpenSSH server. Its methods may be called at the same
// time.
type Server struct {
	files Files
	log   *slog.Logger

	now     func() time.Time
	program func() string // sshd, or "" where there is none
	run     func(ctx context.Context, path string, args ...string) (string, error)
	signal  func(pid int, s syscall.Signal) error
	step    func(name string) // tests end the process here
	settle  time.Duration     // how long it is watched after it was told to read its configuration

	principals sync.Mutex // one change of the principals' files at a time

	syncing sync.Mutex // one change of the configuration at a time; guards what follows
	rec     record
	loaded  bool   // rec was read
	seen    string // what the files were when they were last looked at
	again   time.Time
	fails   int // in a row
	asleep  int // looks in a row at which it did not run
	problem error
	putBack []time.Time

	mu   sync.Mutex
	host *Host
}

// A Host is what the server says of itself.
type Host struct {
	Port int
	Keys []string // public host keys, as in authorized_keys without a comment
}

// A record is kept on disk.
type record struct {
	Text    string `json:"text,omitempty"`    // ours, as it was put in place
	Place   string `json:"place,omitempty"`   // the file that it is in
	Loaded  string `json:"loaded,omitempty"`  // digest of what the server was last told to read
	Pending bool   `json:"pending,omitempty"` // something was written, and is not known to work
}

// Open returns the host's server, whether there is one or not. It changes
// nothing.
func Open(f Files, log *slog.Logger) *Server {
	return &Server{files: f, log: log, now: time.Now, run: run, signal: signal, step: func(string) {}, settle: 500 * time.Millisecond,
		program: func() string {
			p := tool("sshd")
			if full, err := filepath.EvalSymlinks(p); err == nil {
				p = full
			}
			return p
		}}
}

// Host returns what the server said of itself at the last Sync; false is that
// there is none, or one that does not run.
func (s *Server) Host() (Host, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.host == nil {
		return Host{}, false
	}
	return *s.host, true
}

// Look asks the server what Host returns, and changes nothing.
func (s *Server) Look(ctx context.Context) error {
	program := s.program()
	if program == "" {
		return nil
	}
	e, err := s.effective(ctx, program, s.files.Config, "root")
	if err == nil {
		h := s.hostOf(e)
		s.setHost(&h)
	}
	return err
}

func (s *Server) setHost(h *Host) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.host = h
}

// errAsleep says that the server does not run, so that it cannot be asked: its
// run-time folder is made when it starts.
var errAsleep = errors.New("the SSH server does not run")

// Sync makes the server trust these keys, as in authorized_keys, for the
// accounts of Group; with none it is as it was before us. login is one of the
// accounts that can be let in, for a look at what holds for it; "" is none.
//
// It returns what is wrong, with what to do about it. Where nothing has changed
// since the last call it starts no program and returns the same again.
func (s *Server) Sync(ctx context.Context, cas []string, login string) error {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	program := s.program()
	if program == "" {
		s.setHost(nil)
		s.seen = ""
		return nil
	}
	now := s.look(program, cas, login)
	if now == s.seen && s.now().Before(s.again) {
		return s.problem
	}
	err := s.sync(ctx, program, cas, login)
	slept := errors.Is(err, errAsleep)
	s.again = s.now().Add(time.Hour)
	if slept {
		err = s.problem
		s.again = s.now().Add(3 * time.Second)
		if s.asleep++; s.asleep > 1 { // it is not just being started again
			s.setHost(nil)
			err = nil
			s.again = s.now().Add(15 * time.Second)
		}
	} else if err != nil {
		s.fails++
		s.again = s.now().Add(min(time.Hour, time.Minute<<min(s.fails-1, 6)))
	} else {
		s.fails = 0
	}
	if !slept {
		s.asleep = 0
	}
	if err != nil && (s.problem == nil || err.Error() != s.problem.Error()) {
		s.log.Error("the SSH server", "error", err)
	}
	s.problem, s.seen = err, now
	if err != nil {
		s.seen = s.look(program, cas, login) // what was taken back is no news
	} // else what came meanwhile is, and what we wrote is looked at once more
	return err
}

// look returns what Sync depends on, without starting a program.
func (s *Server) look(program string, cas []string, login string) string {
	all := append([]string{login, identity(program), identity(s.files.CAs), identity("/run/sshd.pid")}, cas...)
	for _, f := range configFiles(s.files.Config) {
		all = append(all, identity(f))
	}
	certs, _ := filepath.Glob(filepath.Join(s.files.Dir, certPrefix+"*"+certSuffix))
	for _, f := range append(certs, s.rec.Place) {
		all = append(all, identity(f))
	}
	if b, err := readCapped(s.files.Config); err == nil {
		all = append(all, dropIn(b))
	}
	return strings.Join(all, "\n")
}

func (s *Server) load() error {
	if s.loaded {
		return nil
	}
	b, err := conf.ReadPrivate(s.files.Record)
	if err == nil {
		if err = json.Unmarshal(b, &s.rec); err != nil { // what it told is found by the marks
			s.log.Error("read what was done to the SSH server; looking again", "error", err)
			s.rec, err = record{Pending: true}, nil
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s.loaded = true
	return nil
}

func (s *Server) save(r record) error {
	b, err := json.Marshal(r)
	if err == nil {
		err = conf.WriteSecret(s.files.Record, b)
	}
	if err == nil {
		s.rec = r
	}
	return err
}

// An edit is one file before and after; nil is no file.
type edit struct {
	path        string
	before, now []byte
	mode        fs.FileMode
	uid, gid    int
}

func (s *Server) sync(ctx context.Context, program string, cas []string, login string) error {
	if err := s.load(); err != nil {
		return err
	}
	base, err := s.effective(ctx, program, s.files.Config, "root")
	if err != nil {
		return s.broken(ctx, program, err)
	}
	h := s.hostOf(base)
	s.setHost(&h)
	text := ""
	if len(cas) > 0 {
		if err := s.writeCAs(cas); err != nil {
			return err
		}
		text = s.text(base)
	}
	main, err := s.mainFile()
	if err != nil {
		return err
	}
	edits, where, err := s.plan(main, text)
	if err != nil {
		return err
	}
	digest := s.digest(text)
	if len(edits) == 0 && !s.rec.Pending && s.rec.Loaded == digest {
		return s.check(ctx, program, text, login)
	}
	if len(edits) == 0 && text == "" && !s.rec.Pending && s.rec.Loaded == "" {
		return nil
	}
	if len(edits) > 0 {
		if err := s.mayPutBack(text, where); err != nil {
			return err
		}
		if err := s.try(ctx, program, edits, where, base); err != nil {
			return err
		}
	}
	if err := s.apply(ctx, program, base, edits, record{Text: text, Place: where, Loaded: digest}); err != nil {
		return err
	}
	return s.check(ctx, program, text, login)
}

// mainFile is the main configuration, behind a link to it if it is one.
func (s *Server) mainFile() (edit, error) {
	file, err := filepath.EvalSymlinks(s.files.Config)
	if err != nil {
		return edit{}, err
	}
	b, err := readCapped(file)
	if err != nil {
		return edit{}, err
	}
	i, err := os.Stat(file)
	if err != nil {
		return edit{}, err
	}
	uid, gid := owner(i)
	return edit{path: file, before: b, now: b, mode: i.Mode().Perm(), uid: uid, gid: gid}, nil
}

// plan says what has to be written for text to be in force, and where text is
// then. With no text nothing of ours is left.
func (s *Server) plan(main edit, text string) (edits []edit, where string, err error) {
	rest, _, err := cutBlock(main.before)
	if err != nil {
		return nil, "", &sft.Error{Code: sft.Conflict, Msg: main.path + ": " + err.Error(), Hint: "remove what is between \"# BEGIN sftd\" and \"# END sftd\", with both lines"}
	}
	own := dropIn(rest)
	main.now = rest
	switch {
	case text == "":
	case own != "":
		where = own
	default:
		where = main.path
		main.now = putBlock(rest, []byte(text))
	}
	if string(main.now) != string(main.before) {
		edits = append(edits, main)
	}
	for _, file := range slices.Compact([]string{own, s.rec.Place}) {
		if filepath.Base(file) != dropInName {
			continue
		}
		e := edit{path: file, mode: 0o644}
		if b, err := readCapped(file); err == nil {
			e.before = b
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, "", err
		}
		if file == where {
			e.now = []byte(beginMark + "\n" + text + endMark + "\n")
		}
		if (e.before == nil) != (e.now == nil) || string(e.before) != string(e.now) {
			edits = append(edits, e)
		}
	}
	return edits, where, nil
}

// text is what is ours: the certificates of host keys, which hold for all, and
// what holds for our accounts.
func (s *Server) text(base effective) string {
	var b strings.Builder
	for _, key := range base["hostkey"] {
		if file := s.certFile(key); file != "" {
			if _, err := os.Stat(file); err == nil {
				fmt.Fprintf(&b, "HostCertificate %s\n", quoted(file))
			}
		}
	}
	fmt.Fprintf(&b, "Match Group %s\n", Group)
	for _, l := range s.ours() {
		fmt.Fprintf(&b, "\t%s %s\n", l[0], l[1])
	}
	return b.String()
}

// ours are the settings for our accounts. The last three keep other ways in
// out that the administrator has for everybody.
func (s *Server) ours() [][2]string {
	return [][2]string{
		{"PubkeyAuthentication", "yes"},
		{"AuthenticationMethods", "publickey"},
		{"TrustedUserCAKeys", quoted(s.files.CAs)},
		{"AuthorizedPrincipalsFile", quoted(s.files.Principals)},
		{"AuthorizedKeysFile", "none"},
		{"AuthorizedKeysCommand", "none"},
		{"AuthorizedPrincipalsCommand", "none"},
	}
}

func quoted(path string) string {
	if strings.ContainsAny(path, " \t") {
		return `"` + path + `"`
	}
	return path
}

func (s *Server) writeCAs(cas []string) error {
	if err := s.makeDirs(); err != nil {
		return err
	}
	var b strings.Builder
	for _, ca := range cas {
		k, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(ca))
		if _, cert := k.(*ssh.Certificate); err != nil || cert || len(options) > 0 || len(rest) > 0 {
			return errors.New("what the platform said names an SSH user CA that is no key")
		}
		b.Write(ssh.MarshalAuthorizedKey(k))
	}
	want := b.String()
	if b, err := readCapped(s.files.CAs); err == nil && string(b) == want {
		return nil
	}
	return conf.WriteFile(s.files.CAs, []byte(want), 0o644)
}

// makeDirs makes the folders that sshd reads, whatever the umask.
func (s *Server) makeDirs() error {
	for _, dir := range []string{s.files.Dir, filepath.Dir(s.files.CAs), s.principalsDir()} {
		if err := makeDir(dir); err != nil {
			return err
		}
	}
	return nil
}

func makeDir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		err = os.Chmod(dir, 0o755)
	} else if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	if err != nil {
		return err
	}
	i, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !i.IsDir() || !ownedByUs(i) {
		return &sft.Error{Code: sft.Denied, Msg: dir + " is not a folder that only root can change", Hint: "see who made it, then remove it, or run \"chown root " + dir + "; chmod 755 " + dir + "\""}
	}
	return nil
}

// digest stands for all that the server reads when it starts.
func (s *Server) digest(text string) string {
	if text == "" {
		return ""
	}
	h := sha256.New()
	h.Write([]byte(text))
	certs, _ := filepath.Glob(filepath.Join(s.files.Dir, certPrefix+"*"+certSuffix))
	for _, f := range certs {
		b, _ := readCapped(f)
		fmt.Fprintf(h, "\n%s %d ", f, len(b))
		h.Write(b)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// mayPutBack refuses when what is ours is taken away again and again.
func (s *Server) mayPutBack(text, where string) error {
	if s.rec.Pending || s.rec.Text != text || s.rec.Place != where || text == "" {
		return nil // it is we who change something
	}
	hour := s.now().Add(-time.Hour)
	s.putBack = slices.DeleteFunc(s.putBack, func(t time.Time) bool { return t.Before(hour) })
	if len(s.putBack) >= putBackMax {
		return &sft.Error{Code: sft.Conflict, Msg: fmt.Sprintf("something on this host has taken what sftd wrote out of %s %d times in an hour, and so nobody can sign in by SSH", where, putBackMax),
			Hint: "make the program that manages the file keep the lines, or let it include " + sshDir + "/sshd_config.d/*.conf"}
	}
	s.putBack = append(s.putBack, s.now())
	s.log.Warn("what sftd wrote was taken away, and is put back", "file", where)
	return nil
}

// try runs the server's own test over the configuration as it would be, and
// looks at what would hold for somebody else. Nothing is in place yet.
func (s *Server) try(ctx context.Context, program string, edits []edit, where string, base effective) error {
	if err := s.makeDirs(); err != nil {
		return err
	}
	var temp []string
	defer func() {
		for _, f := range temp {
			os.Remove(f)
		}
	}()
	temp, _ = filepath.Glob(filepath.Join(s.files.Dir, ".try-*")) // of one that was killed
	write := func(b []byte) (string, error) {
		f, err := os.CreateTemp(s.files.Dir, ".try-*")
		if err != nil {
			return "", err
		}
		temp = append(temp, f.Name())
		_, err = f.Write(b)
		return f.Name(), errors.Join(err, f.Close())
	}
	main, err := s.mainFile()
	if err != nil {
		return err
	}
	b := main.before
	for _, e := range edits {
		if e.path == main.path {
			b = e.now
		}
	}
	for _, e := range edits {
		if e.path != where || e.path == main.path {
			continue
		}
		own, err := write(e.now)
		if err != nil {
			return err
		}
		b = append([]byte("Include "+own+"\n"), b...) // as the folder would, before the rest
	}
	file, err := write(b)
	if err != nil {
		return err
	}
	eff, err := s.effective(ctx, program, file, "root")
	if err != nil {
		return fmt.Errorf("the SSH server would not start with what sftd adds to its configuration, so that nothing was changed: %w", err)
	}
	return s.same(base, eff)
}

// same refuses a change of what holds for somebody who is none of ours.
func (s *Server) same(before, after effective) error {
	for _, k := range slices.Sorted(maps.Keys(after)) {
		if k != "hostcertificate" && !slices.Equal(before[k], after[k]) {
			return &sft.Error{Code: sft.Conflict, Msg: "what sftd adds to the SSH server's configuration would change " + k + " for everybody", Hint: "see how the server's configuration uses that setting; nothing was changed"}
		}
	}
	return nil
}

// apply puts edits in place, has the server read them, and takes them back if
// it does not like them.
func (s *Server) apply(ctx context.Context, program string, base effective, edits []edit, r record) error {
	p := r
	p.Pending = true
	if err := s.save(p); err != nil {
		return err
	}
	s.step("recorded")
	ctx = context.WithoutCancel(ctx) // each step has an end of its own; half of it is worse
	err := put(edits)
	s.step("written")
	if err == nil {
		var eff effective
		if eff, err = s.effective(ctx, program, s.files.Config, "root"); err == nil {
			err = s.same(base, eff)
		}
	}
	if err == nil {
		err = s.reload(ctx, program, base)
	}
	s.step("reloaded")
	if err == nil {
		return s.save(r)
	}
	back := slices.Clone(edits)
	for i := range back {
		back[i].before, back[i].now = back[i].now, back[i].before
	}
	undone := put(back)
	if undone == nil {
		undone = s.reload(ctx, program, base)
	}
	if undone == nil && len(edits) > 0 {
		undone = s.save(record{})
	}
	return errors.Join(fmt.Errorf("change the SSH server's configuration: %w; it is as it was before", err), undone)
}

// put writes edits.
func put(edits []edit) error {
	for _, e := range edits {
		if e.now == nil {
			if err := os.Remove(e.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			if err := conf.SyncDir(filepath.Dir(e.path)); err != nil {
				return err
			}
			continue
		}
		if err := conf.WriteFile(e.path, e.now, e.mode); err != nil {
			return err
		}
		if err := os.Chown(e.path, e.uid, e.gid); err != nil {
			return err
		}
	}
	return nil
}

// broken is what to do about a configuration that the server's own test does
// not like. One that we had under way is taken back. Any other is its
// administrator's, who is told.
func (s *Server) broken(ctx context.Context, program string, why error) error {
	if errors.Is(why, errAsleep) {
		return why
	}
	report := &sft.Error{Code: sft.Invalid, Msg: "the configuration of the SSH server is broken: " + why.Error(), Err: why, Hint: "mend it: sshd -t tells the line; sftd changes nothing until then"}
	if !s.rec.Pending {
		return report
	}
	main, err := s.mainFile()
	if err != nil {
		return errors.Join(report, err)
	}
	edits, _, err := s.plan(main, "")
	if err != nil || len(edits) == 0 {
		return errors.Join(report, err)
	}
	if err := put(edits); err != nil {
		return errors.Join(report, err)
	}
	if _, err := s.effective(ctx, program, s.files.Config, "root"); err != nil { // it was not us
		for i := range edits {
			edits[i].before, edits[i].now = edits[i].now, edits[i].before
		}
		return errors.Join(report, put(edits))
	}
	s.log.Error("what sftd had begun to write broke the SSH server's configuration; it is taken out", "error", why)
	return errors.Join(s.save(record{}), errors.New("what sftd had begun to write into the SSH server's configuration was taken out; it is tried again"))
}

// Restore takes everything of ours out of the server's configuration, and
// removes the files that it read. A configuration that is broken is restored
// as well, and not loaded.
func (s *Server) Restore(ctx context.Context) error {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	if err := s.load(); err != nil {
		return err
	}
	s.seen = ""
	main, err := s.mainFile()
	if err == nil {
		var edits []edit
		if edits, _, err = s.plan(main, ""); err == nil && len(edits) > 0 {
			err = s.takeOut(ctx, edits)
		}
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return err
	}
	if err := s.SetPrincipals(nil); err != nil {
		return err
	}
	certs, _ := filepath.Glob(filepath.Join(s.files.Dir, certPrefix+"*"+certSuffix))
	for _, f := range append(certs, s.files.CAs, s.files.Record) {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	s.rec = record{}
	os.Remove(s.principalsDir()) // stay if others keep something there
	os.Remove(s.files.Dir)
	return nil
}

func (s *Server) takeOut(ctx context.Context, edits []edit) error {
	program := s.program()
	var before error
	var base effective
	if program != "" {
		base, before = s.effective(ctx, program, s.files.Config, "root")
	}
	if err := put(edits); err != nil {
		return err
	}
	if program == "" || before != nil {
		return nil
	}
	if _, err := s.effective(ctx, program, s.files.Config, "root"); err != nil {
		for i := range edits {
			edits[i].before, edits[i].now = edits[i].now, edits[i].before
		}
		return errors.Join(fmt.Errorf("the SSH server's configuration would be broken without sftd's lines: %w", err), put(edits))
	}
	return s.reload(ctx, program, base)
}

// effective are the server's settings as they hold for one account: keyword,
// in small letters, to its values.
type effective map[string][]string

// effective asks the server. An error is that the configuration is broken, or
// errAsleep.
func (s *Server) effective(ctx context.Context, program, file, login string) (effective, error) {
	out, err := s.run(ctx, program, "-T", "-f", file, "-C", "user="+login+",host=localhost,addr=127.0.0.1,laddr=127.0.0.1,lport=22")
	if err != nil {
		if strings.Contains(err.Error(), "Missing privilege separation directory") {
			return nil, errAsleep
		}
		return nil, err
	}
	eff := effective{}
	for line := range strings.Lines(out) {
		k, v, _ := strings.Cut(strings.TrimRight(line, "\n"), " ")
		k = strings.ToLower(k)
		eff[k] = append(eff[k], v)
	}
	if len(eff["port"]) == 0 {
		return nil, errors.New("sshd -T names no port")
	}
	return eff, nil
}

func (e effective) one(k string) string {
	if v := e[k]; len(v) > 0 {
		return v[0]
	}
	return ""
}

func (s *Server) hostOf(e effective) Host {
	var h Host
	h.Port, _ = strconv.Atoi(e.one("port"))
	for _, file := range e["hostkey"] {
		if key, err := publicKey(file); err == nil {
			h.Keys = append(h.Keys, key)
		}
	}
	return h
}

// check looks at what holds for one of our accounts.
func (s *Server) check(ctx context.Context, program, text, login string) error {
	if text == "" || login == "" {
		return nil
	}
	e, err := s.effective(ctx, program, s.files.Config, login)
	if err != nil {
		return err
	}
	files := configFiles(s.files.Config)
	lines := func(keyword string) string {
		all := find(files, keyword)
		// What is set for everybody does not win over us.
		if i := slices.IndexFunc(all, func(p place) bool { return p.match }); i > 0 {
			all = all[i:]
		}
		if len(all) > 0 {
			return fmt.Sprintf("%s line %d", all[0].file, all[0].line)
		}
		return "the SSH server's configuration"
	}
	for _, o := range s.ours() {
		k := strings.ToLower(o[0])
		if got := e.one(k); got != strings.Trim(o[1], `"`) && !(got == "" && o[1] == "none") {
			return &sft.Error{Code: sft.Conflict, Msg: fmt.Sprintf("%s sets %s to %s for the accounts that sftd made", lines(k), o[0], sft.Quote(got)),
				Hint: "leave " + Group + " out there, or put a \"Match Group\" with \"!" + Group + "\" around it"}
		}
	}
	if why := s.keptOut(e, login, lines); why != nil {
		return why
	}
	for _, a := range [][3]string{{"casignaturealgorithms", "CASignatureAlgorithms", "ssh-ed25519"}, {"pubkeyacceptedalgorithms", "PubkeyAcceptedAlgorithms", "ssh-ed25519-cert-v01@openssh.com"}} {
		if v := e.one(a[0]); v != "" && !slices.Contains(strings.Split(v, ","), a[2]) {
			return &sft.Error{Code: sft.Conflict, Msg: fmt.Sprintf("%s keeps the platform's certificates out: %s is without %s", lines(a[0]), a[1], a[2]), Hint: "add it there"}
		}
	}
	if l := strings.ToUpper(e.one("loglevel")); l == "SILENT" || l == "QUIET" || l == "FATAL" || l == "ERROR" {
		return &sft.Error{Code: sft.Conflict, Msg: fmt.Sprintf("%s sets LogLevel to %s: who signs in by SSH is not recorded", lines("loglevel"), l), Hint: "set it to INFO"}
	}
	return nil
}

// keptOut says what of the administrator's lists keeps our accounts out. It is
// theirs to change.
func (s *Server) keptOut(e effective, login string, lines func(string) string) error {
	list := func(k string) []string { return strings.Fields(strings.Join(e[k], " ")) }
	match := func(list []string, name string) bool {
		return slices.ContainsFunc(list, func(p string) bool {
			p, _, _ = strings.Cut(p, "@")
			ok, _ := path.Match(p, name)
			return ok
		})
	}
	no := func(keyword, what string) error {
		return &sft.Error{Code: sft.Conflict, Msg: fmt.Sprintf("%s keeps the accounts that sftd made out: %s", lines(strings.ToLower(keyword)), keyword), Hint: what}
	}
	switch {
	case match(list("denyusers"), login):
		return no("DenyUsers", "take them out of it")
	case match(list("denygroups"), Group):
		return no("DenyGroups", "take "+Group+" out of it")
	case len(list("allowusers")) > 0 && !match(list("allowusers"), login):
		return no("AllowUsers", "use AllowGroups with "+Group+" in its place")
	case len(list("allowgroups")) > 0 && !match(list("allowgroups"), Group) && !match(list("allowgroups"), login):
		return no("AllowGroups", "add "+Group+" to it")
	}
	return nil
}

// reload has the running server read its configuration, and sees that it still
// runs afterwards. One that does not run reads it when it starts.
func (s *Server) reload(ctx context.Context, program string, e effective) error {
	pid, unit := s.find(ctx, program, e)
	if pid == 0 {
		if anyServer(program) {
			return &sft.Error{Code: sft.Unavailable, Msg: "the running SSH server is not found by its file PidFile or its unit, so that it cannot be told to read its configuration", Hint: "give it a PidFile"}
		}
		return nil
	}
	began := started(pid)
	if err := s.signal(pid, syscall.SIGHUP); err != nil {
		return fmt.Errorf("have the SSH server read its configuration: %w", err)
	}
	// It starts itself again, as the same process.
	for end := time.Now().Add(s.settle); time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond)
		if !isServer(pid, program) || started(pid) != began {
			s.log.Error("the SSH server has ended when it was to read its configuration")
			if unit != "" {
				if _, err := s.run(ctx, tool("systemctl"), "start", unit); err != nil {
					return fmt.Errorf("the SSH server has ended, and does not start: %w", err)
				}
			}
			return errors.New("the SSH server has ended when it was to read its configuration")
		}
	}
	return nil
}

// find returns the server's main process, or 0, and its unit if systemd runs it.
func (s *Server) find(ctx context.Context, program string, e effective) (pid int, unit string) {
	if systemctl := tool("systemctl"); systemctl != "" {
		if _, err := os.Stat("/run/systemd/system"); err == nil {
			for _, u := range []string{"ssh.service", "sshd.service"} {
				out, err := s.run(ctx, systemctl, "show", "--property=MainPID", "--value", u)
				if n, aerr := strconv.Atoi(strings.TrimSpace(out)); err == nil && aerr == nil && n > 1 && isServer(n, program) {
					return n, u
				}
			}
		}
	}
	file := e.one("pidfile")
	if !filepath.IsAbs(file) {
		return 0, ""
	}
	i, err := os.Stat(file)
	if err != nil || !ownedByUs(i) {
		return 0, ""
	}
	b, err := readCapped(file)
	if n, aerr := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && aerr == nil && n > 1 && isServer(n, program) {
		return n, ""
	}
	return 0, ""
}
