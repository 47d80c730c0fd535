package sshd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sft/internal/conf"
)

// logFiles are where syslog keeps who has signed in, where there is no journal.
var logFiles = []string{"/var/log/auth.log", "/var/log/secure"}

// Follow tells of each sign-in to the server as it happens, until ctx ends.
// With the system's journal it goes on after the last one that emit took, which
// cursor, a private file, remembers; with a log file it begins at its end.
func (s *Server) Follow(ctx context.Context, cursor string, emit func(Login)) {
	for ctx.Err() == nil {
		var err error
		if s.program() == "" {
			// It may be installed yet.
		} else if journalctl := tool("journalctl"); journalctl != "" && exists("/run/systemd/journal/socket") {
			err = s.followJournal(ctx, journalctl, cursor, emit)
		} else {
			err = s.followFile(ctx, emit)
		}
		if err != nil && ctx.Err() == nil {
			s.log.Warn("follow who signs in by SSH", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Second):
		}
	}
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// serverPrograms are the programs that tell of a sign-in: since OpenSSH 9.8 a
// program of its own serves a connection.
func (s *Server) serverPrograms() []string {
	list := []string{s.program()}
	for _, p := range sessionPrograms {
		if exists(p) {
			if full, err := filepath.EvalSymlinks(p); err == nil {
				list = append(list, full)
			}
		}
	}
	return list
}

var sessionPrograms = []string{"/usr/lib/openssh/sshd-session", "/usr/libexec/openssh/sshd-session", "/usr/lib/ssh/sshd-session", "/usr/libexec/sshd-session"}

// goingPrograms are those that connections can be served by that were made when
// the server was there. Where it is not any more, as when its package was
// removed, they go on all the same.
func (s *Server) goingPrograms() []string {
	if s.program() != "" {
		return s.serverPrograms()
	}
	list := slices.Clone(sessionPrograms)
	for _, dir := range binDirs {
		list = append(list, filepath.Join(dir, "sshd"))
	}
	return list
}

func (s *Server) followJournal(ctx context.Context, journalctl, cursor string, emit func(Login)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	args := []string{"--follow", "--output=json", "--no-pager", "--quiet", "--all"}
	if b, err := conf.ReadPrivate(cursor); err == nil && len(b) < 1<<10 && len(b) > 0 {
		args = append(args, "--no-tail", "--after-cursor="+string(b))
	} else {
		args = append(args, "--lines=0")
	}
	programs := s.serverPrograms()
	for _, p := range programs {
		if p != "" {
			args = append(args, "_EXE="+p) // the same field twice: either
		}
	}
	args = append(args, "_UID=0")
	cmd := command(ctx, journalctl, args...)
	var said head
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	took := false
	err = eachLine(out, func(line []byte) {
		l, at, ok := parseJournal(line, programs)
		if !ok {
			return
		}
		emit(l)
		took = true
		if at != "" {
			if err := conf.WriteSecret(cursor, []byte(at)); err != nil {
				s.log.Warn("remember the last sign-in by SSH", "error", err)
			}
		}
	})
	cancel()
	werr := cmd.Wait()
	if !took && said.b.Len() > 0 { // the place is no more in the journal
		os.Remove(cursor)
	}
	if said.b.Len() > 0 {
		return &toolError{"journalctl", said.line()}
	}
	return errors.Join(err, werr)
}

// maxLine caps a line of the journal's output; a longer one is left out.
const maxLine = 64 << 10

// eachLine calls f with each whole line.
func eachLine(r io.Reader, f func([]byte)) error {
	b := bufio.NewReaderSize(r, maxLine)
	skip := false
	for {
		line, err := b.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			skip = true
			continue
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if !skip {
			f(bytes.TrimSuffix(line, []byte("\n")))
		}
		skip = false
	}
}

// followFile follows the first log file that is there. It looks as soon as a
// line is added: a line counts only while the process that it names is there,
// and one that runs a single command is gone soon.
func (s *Server) followFile(ctx context.Context, emit func(Login)) error {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	var tail tail
	defer tail.close()
	w, err := newWatch()
	if err != nil {
		return err
	}
	defer w.close()
	told := map[int]string{} // process to when it began: each lets one person in
	programs := s.serverPrograms()
	take := func(line string) {
		l, ok := parseLine(line)
		if !ok {
			return
		}
		real := false
		for _, p := range programs {
			real = real || p != "" && isServer(l.PID, p)
		}
		began := started(l.PID)
		if !real || began == "" || told[l.PID] == began {
			s.log.Warn("a line of the log tells of a sign-in that the SSH server does not know", "process", l.PID)
			return
		}
		if len(told) > 10_000 {
			clear(told)
		}
		told[l.PID] = began
		emit(l)
	}
	for first := true; ; first = false {
		tail.lines(take) // what came before another file took its place
		for _, path := range logFiles {
			if exists(path) {
				tail.follow(path, first)
				w.on(path)
				break
			}
		}
		tail.lines(take)

		for again := true; again; {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-w.added:
				tail.lines(take)
			case <-t.C:
				again = false
			}
		}
		programs = s.serverPrograms()
	}
}

// A watch tells that something was added to a file (inotify(7)).
type watch struct {
	added chan struct{}
	f     *os.File
}

func newWatch() (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	w := &watch{added: make(chan struct{}, 1), f: os.NewFile(uintptr(fd), "inotify")}
	go func() {
		b := make([]byte, 4<<10)
		for {
			if _, err := w.f.Read(b); err != nil { // closed
				return
			}
			select {
			case w.added <- struct{}{}:
			default: // it is told already
			}
		}
	}()
	return w, nil
}

// on watches the file that is at path now. One that is watched already stays
// so; one that was removed is forgotten by the kernel. What cannot be watched
// is looked at once a second anyway.
func (w *watch) on(path string) {
	if c, err := w.f.SyscallConn(); err == nil {
		c.Control(func(fd uintptr) { unix.InotifyAddWatch(int(fd), path, unix.IN_MODIFY) })
	}
}

func (w *watch) close() { w.f.Close() }

// A tail reads what is added to a file, and to the one that takes its place.
type tail struct {
	path string
	f    *os.File
	at   int64
	part []byte // a line without its end
	skip bool   // it is the rest of a line that was too long
}

// follow opens the file at path unless it is open. With end it begins there.
func (t *tail) follow(path string, end bool) {
	now, err := os.Stat(path)
	if err != nil {
		return
	}
	if t.f != nil {
		have, err := t.f.Stat()
		if err == nil && os.SameFile(have, now) && now.Size() >= t.at {
			return
		}
		if err == nil && os.SameFile(have, now) { // cut off: logrotate's copytruncate
			t.at, t.part, t.skip = 0, nil, false
			return
		}
	}
	f, err := os.Open(path)
	if err != nil {
		return
	}
	old := *t
	t.path, t.f, t.at, t.part, t.skip = path, f, 0, nil, false
	if end {
		t.at = now.Size()
	}
	if old.f != nil {
		old.f.Close()
	}
}

func (t *tail) close() {
	if t.f != nil {
		t.f.Close()
	}
}

// lines calls f with each whole line that was added.
func (t *tail) lines(f func(string)) {
	if t.f == nil {
		return
	}
	buf := make([]byte, maxLine)
	for {
		n, err := t.f.ReadAt(buf, t.at)
		t.at += int64(n)
		b := append(t.part, buf[:n]...)
		for {
			line, rest, ok := bytes.Cut(b, []byte("\n"))
			if !ok {
				break
			}
			if !t.skip {
				f(strings.TrimSuffix(string(line), "\r"))
			}
			t.skip, b = false, rest
		}
		if len(b) > maxLine {
			t.skip, b = true, nil
		}
		t.part = bytes.Clone(b)
		if err != nil {
			return
		}
	}
}
