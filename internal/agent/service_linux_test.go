package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sft"
	"sft/internal/api"
	"sft/internal/frame"
	"sft/internal/testenv"
)

// asUID connects to a socket as a process of uid would.
func asUID(t *testing.T, uid int, path string) net.Conn {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can be somebody else")
	}
	type result struct {
		c   net.Conn
		err error
	}
	came := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with it
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
			came <- result{nil, e}
			return
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
		}
		if err != nil {
			came <- result{nil, err}
			return
		}
		f := os.NewFile(uintptr(fd), path)
		c, err := net.FileConn(f)
		f.Close()
		came <- result{c, err}
	}()
	r := <-came
	if r.err != nil {
		t.Fatalf("connect as %d: %v", uid, r.err)
	}
	t.Cleanup(func() { r.c.Close() })
	return r.c
}

// answered sends a request and reads the answer.
func answered(t *testing.T, c net.Conn, ask any) api.ServiceAnswer {
	t.Helper()
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_ = frame.WriteJSON(c, ask)
	b, err := frame.Read(c)
	var a api.ServiceAnswer
	if err == nil {
		err = json.Unmarshal(b, &a)
	}
	if err != nil {
		t.Fatalf("the answer: %v", err)
	}
	return a
}

func asking(spki []byte) api.ServiceAsk {
	return api.ServiceAsk{DeviceKey: spki, Device: api.DeviceInfo{Hostname: "web01", OS: "linux", Version: "1"}}
}

// openFolder is a folder that everybody may enter.
func openFolder(t testing.TB) string {
	dir := t.TempDir()
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(filepath.Dir(dir), 0o755)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// The agent gives a client to a process of a bound account, by the system's
// word of whose it is, and to no other.
func TestServiceSocket(t *testing.T) {
	t.Parallel()
	dir := openFolder(t)
	h := newHost(t, testenv.New(t), func(c *Config) {
		c.service, c.DisableBroker = filepath.Join(dir, "run", "service.sock"), true
	})
	path := h.c.service
	if _, err := os.Lstat(path); err == nil {
		t.Error("there is a socket before the host is enrolled")
	}
	stop := h.run()
	until(t, "the socket is there", func() bool { _, err := os.Lstat(path); return err == nil })
	h.env.Do("POST", "/service_users", map[string]string{"name": "robo"}, nil)
	h.env.Do("POST", "/service_users/robo/bindings", map[string]string{"server": h.who.Load().ServerID, "account": "daemon"}, nil)
	key, spki := testenv.Key(t)

	a := answered(t, asUID(t, 1, path), asking(spki))
	if a.Error != nil || a.User != "robo" || a.Team != "main" || a.URL != h.env.URL || !bytes.Equal(a.CA, h.env.CA) || a.ClientID == "" {
		t.Fatalf("daemon gets %+v", a)
	}
	var l api.List[sft.Server]
	if err := h.env.Signed(key, "client:"+a.ClientID).Do(t.Context(), "GET", "/v1/teams/main/servers", nil, &l); err != nil {
		t.Errorf("the client is of no use: %v", err)
	}
	if again := answered(t, asUID(t, 1, path), asking(spki)); again.ClientID != a.ClientID || again.Error != nil {
		t.Errorf("the same key gets %+v", again)
	}
	for who, uid := range map[string]int{"another account": 2, "root": 0, "a uid without a name": 54321, "who is not of this user namespace": overflowUID} {
		_, spki := testenv.Key(t)
		got := answered(t, asUID(t, uid, path), asking(spki))
		if got.Error == nil || got.Error.Code != sft.Denied || got.Error.Hint == "" || got.ClientID != "" {
			t.Errorf("%s gets %+v", who, got)
		}
		if n := fmt.Sprint(uid); uid > 2 && !strings.Contains(got.Error.Msg, n) {
			t.Errorf("%s is told %q", who, got.Error.Msg)
		}
	}
	if got := answered(t, asUID(t, 1, path), map[string]any{"device_key": spki[1:], "account": "root"}); got.Error == nil || got.Error.Code != sft.Invalid {
		t.Errorf("a broken key gets %+v", got)
	}

	// Who removes the socket finds it again, and at the end it is gone.
	os.Remove(path)
	until(t, "the socket is back", func() bool { _, err := os.Lstat(path); return err == nil })
	stop()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket of an agent that has ended: %v", err)
	}
	if strings.Contains(h.logs.String(), "level=ERROR") {
		t.Errorf("the log has errors:\n%s", h.logs.String())
	}
}

func TestServiceSocketIsMadeSafely(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root can be somebody else")
	}
	for _, tt := range []struct {
		name  string
		plant func(dir string) error
		want  sft.Code // "" where it is made all the same
	}{
		{"nothing is there", func(string) error { return nil }, ""},
		{"a folder that the umask closed", func(dir string) error { return os.Mkdir(dir, 0o700) }, ""},
		{"somebody else's folder", func(dir string) error { return errors.Join(os.Mkdir(dir, 0o755), os.Chown(dir, 1, 1)) }, sft.Denied},
		{"a folder that others can write", func(dir string) error { return errors.Join(os.Mkdir(dir, 0o755), os.Chmod(dir, 0o777)) }, sft.Denied},
		{"a folder of a group", func(dir string) error { return errors.Join(os.Mkdir(dir, 0o755), os.Chmod(dir, 0o775)) }, sft.Denied},
		{"a link to a folder", func(dir string) error {
			return errors.Join(os.Mkdir(dir+".real", 0o755), os.Symlink(dir+".real", dir))
		}, sft.Denied},
		{"a file", func(dir string) error { return os.WriteFile(dir, nil, 0o644) }, sft.Denied},
		{"a link in the socket's place", func(dir string) error {
			return errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(dir+".victim", []byte("x"), 0o600), os.Symlink(dir+".victim", dir+"/service.sock"))
		}, ""},
		{"the socket of one that was killed", func(dir string) error {
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
			l, err := net.Listen("unix", dir+"/service.sock")
			if err == nil {
				l.(*net.UnixListener).SetUnlinkOnClose(false)
				l.Close()
			}
			return err
		}, ""},
		{"a folder in the socket's place", func(dir string) error { return os.MkdirAll(dir+"/service.sock", 0o755) }, sft.Internal},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(openFolder(t), "sftd")
			if err := tt.plant(dir); err != nil {
				t.Fatal(err)
			}
			s, err := listenService(dir + "/service.sock")
			if tt.want != "" {
				if err == nil || sft.CodeOf(err) != tt.want {
					t.Fatalf("got %v, want %s", err, tt.want)
				}
				if left, _ := filepath.Glob(dir + "/.new-*"); left != nil {
					t.Errorf("left behind: %q", left)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			d, _ := os.Lstat(dir)
			i, err := os.Lstat(dir + "/service.sock")
			if err != nil || i.Mode() != os.ModeSocket|0o666 || d.Mode() != os.ModeDir|0o755 {
				t.Errorf("the folder is %v, the socket %v, %v", d.Mode(), i, err)
			}
			if v, err := os.Stat(dir + ".victim"); err == nil && (v.Mode().Perm() != 0o600 || v.Size() != 1) {
				t.Errorf("what the link led to is %v", v)
			}
			go func() { // who connects gets here
				c, err := s.Accept()
				if err == nil {
					c.Write([]byte("x"))
					c.Close()
				}
			}()
			b, _ := io.ReadAll(asUID(t, 1, dir+"/service.sock"))
			if string(b) != "x" {
				t.Errorf("somebody else reads %q", b)
			}
			// Another one takes the place: its socket stays when this one ends.
			next, err := listenService(dir + "/service.sock")
			if err != nil || s.there() || !next.there() {
				t.Fatalf("taking over: %v", err)
			}
			s.close()
			if !next.there() {
				t.Error("the end of the first one removed the second's")
			}
			next.close()
			if _, err := os.Lstat(dir + "/service.sock"); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("after the end: %v", err)
			}
		})
	}
}

func TestServiceDeskIsBounded(t *testing.T) {
	t.Parallel()
	now := time.Now()
	d := &serviceDesk{now: func() time.Time { return now }, log: slog.New(slog.DiscardHandler)}
	in := func(uid uint32) func() { leave, _ := d.enter(uid); return leave }
	var out []func()
	for range maxServiceAsksEach {
		out = append(out, in(1))
	}
	if in(1) != nil {
		t.Error("one uid has more than its share of connections")
	}
	for uid := range uint32(maxServiceAsks/maxServiceAsksEach - 1) {
		for range maxServiceAsksEach {
			out = append(out, in(10+uid))
		}
	}
	if in(99) != nil {
		t.Error("there are more connections than may be at once")
	}
	for _, leave := range out {
		leave()
	}
	n := maxServiceAsksEach
	for ; ; n++ {
		leave := in(1)
		if leave == nil {
			break
		}
		leave()
	}
	if n != serviceBurst {
		t.Errorf("one uid asks %d times at once", n)
	}
	if leave := in(2); leave == nil {
		t.Error("one uid keeps another out")
	} else {
		leave()
	}
	now = now.Add(serviceEvery)
	if in(1) == nil || in(1) != nil {
		t.Error("after a while it is not once more")
	}
	for uid := range uint32(1000) {
		if leave := in(1000 + uid); leave != nil {
			leave()
		}
		now = now.Add(time.Second)
	}
	if len(d.each) > 300 {
		t.Errorf("%d uids are remembered", len(d.each))
	}
}

// A connection on which nothing comes does not stay.
func TestServiceDeskDoesNotWait(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	d := &serviceDesk{now: time.Now, log: slog.New(slog.DiscardHandler), account: func(uint32) (string, error) { return "x", nil },
		ask: func(context.Context, api.ServiceClientRequest) (r api.ServiceClientReply, err error) {
			return r, &sft.Error{Code: sft.Revoked, Msg: "the server was deleted"}
		}}
	ended := make(chan struct{})
	go func() { d.run(ctx, l, peerUID); close(ended) }()
	dial := func() net.Conn {
		c, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	_, spki := testenv.Key(t)
	// The platform's refusal of the host is not one of who asks.
	if a := answered(t, dial(), asking(spki)); a.Error == nil || a.Error.Code != sft.Unavailable {
		t.Errorf("got %+v", a)
	}
	began := time.Now()
	silent := dial()
	if a, err := frame.Read(silent); err != nil || !strings.Contains(string(a), "did not come whole") || time.Since(began) > serviceTime+3*time.Second {
		t.Errorf("a silent one gets %s, %v after %v", a, err, time.Since(began))
	}
	dial()
	cancel()
	select {
	case <-ended:
	case <-time.After(3 * time.Second):
		t.Error("the end waits for a silent one")
	}
}

func TestReadServiceAsk(t *testing.T) {
	_, spki := testenv.Key(t)
	whole, _ := json.Marshal(asking(spki))
	long := asking(spki)
	long.Device.OS = strings.Repeat("x", 101)
	tooLong, _ := json.Marshal(long)
	long.Device.OS = "a\nb"
	steers, _ := json.Marshal(long)
	framed := func(b []byte) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...) }
	for _, tt := range []struct {
		name string
		in   []byte
		ok   bool
	}{
		{"a whole request", framed(whole), true},
		{"with more behind it", append(framed(whole), "more"...), true},
		{"nothing", nil, false},
		{"half a length", []byte{0, 0}, false},
		{"half a request", framed(whole)[:50], false},
		{"a length over the cap", framed(append(whole[:len(whole):len(whole)], strings.Repeat(" ", 4096)...)), false},
		{"a list", framed([]byte("[]")), false},
		{"no key", framed([]byte("{}")), false},
		{"two objects", framed(append(whole[:len(whole):len(whole)], whole...)), false},
		{"a description that is too long", framed(tooLong), false},
		{"one that could steer a terminal", framed(steers), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := readServiceAsk(bytes.NewReader(tt.in)); (err == nil) != tt.ok || err != nil && sft.CodeOf(err) != sft.Invalid {
				t.Errorf("got %v", err)
			}
		})
	}
}

// FuzzServiceAsk: whatever comes, no more than the cap is read, and what is
// taken is what the platform takes, byte for byte after another trip.
func FuzzServiceAsk(f *testing.F) {
	_, spki := testenv.Key(f)
	b, _ := json.Marshal(asking(spki))
	f.Add(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		ask, err := readServiceAsk(r)
		if read := len(in) - r.Len(); read > 4+maxServiceAsk {
			t.Fatalf("%d bytes were read", read)
		}
		if err != nil {
			if sft.CodeOf(err) != sft.Invalid {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		out, err := json.Marshal(ask)
		if err != nil {
			t.Fatal(err)
		}
		again, err := readServiceAsk(io.MultiReader(bytes.NewReader(binary.BigEndian.AppendUint32(nil, uint32(len(out)))), bytes.NewReader(out)))
		if err != nil || !bytes.Equal(again.DeviceKey, ask.DeviceKey) || again.Device != ask.Device || len(ask.Device.Hostname) > 100 {
			t.Fatalf("%+v becomes %+v, %v", ask, again, err)
		}
	})
}
