package privsep

import (
	"context"
	"net"
	"testing"
)

func TestLoopback(t *testing.T) {
	for _, s := range []string{"127.0.0.1:3389", "127.9.9.9:1", "[::1]:3389"} {
		if a, err := loopback(s); err != nil || a.String() != s {
			t.Errorf("loopback(%q) = %v, %v", s, a, err)
		}
	}
	for _, s := range []string{
		"", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "10.0.0.1:3389", "0.0.0.0:3389", "[::]:3389", ":3389",
		"localhost:3389", "[::ffff:127.0.0.1]:3389", "[::1%1]:3389", "128.0.0.1:3389", "127.0.0.1:03389", " 127.0.0.1:1",
	} {
		if a, err := loopback(s); err == nil {
			t.Errorf("loopback(%q) = %v, want a refusal", s, a)
		}
		if c, err := dialLoopback(context.Background(), s); err == nil {
			c.Close()
			t.Errorf("dialLoopback(%q) connected", s)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := dialLoopback(context.Background(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestEachSystemHasOneWay(t *testing.T) {
	const here = "127.0.0.1:3389"
	tests := []struct {
		name  string
		files bool
		reply OpenReply
		file  bool
		want  string // of the error
	}{
		{"a socket is handed over", true, OpenReply{Stream: 1}, true, ""},
		{"nothing is opened", true, OpenReply{}, false, ""},
		{"a stream without a socket", true, OpenReply{Stream: 1}, false, "stream 1 and a socket do not go together: false"},
		{"a socket without a stream", true, OpenReply{}, true, "stream 0 and a socket do not go together: true"},
		{"an address where sockets are handed over", true, OpenReply{Stream: 1, Dial: here}, false, "an address to dial, where sockets are handed over"},
		{"both where sockets are handed over", true, OpenReply{Stream: 1, Dial: here}, true, "an address to dial, where sockets are handed over"},
		{"an address is told", false, OpenReply{Stream: 1, Dial: here}, false, ""},
		{"nothing is opened there either", false, OpenReply{}, false, ""},
		{"a stream without an address", false, OpenReply{Stream: 1}, false, "stream 1 and a socket do not go together: false"},
		{"an address without a stream", false, OpenReply{Dial: here}, false, "stream 0 and a socket do not go together: true"},
		{"a socket where none can go", false, OpenReply{Stream: 1}, true, "a socket, where the broker connects itself"},
		{"an address elsewhere", false, OpenReply{Stream: 1, Dial: "10.0.0.1:3389"}, false, `"10.0.0.1:3389" is no address and port on loopback`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := ""
			if err := checkOpen(tt.files, tt.reply, tt.file); err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("checkOpen = %q, want %q", got, tt.want)
			}
		})
	}
	listen := Configuration{Listen: ":4421"}
	for _, tt := range []struct {
		name  string
		files bool
		cfg   Configuration
		file  bool
		ok    bool
	}{
		{"a listener is handed over", true, Configuration{}, true, true},
		{"a later configuration", true, Configuration{}, false, true},
		{"an address where the listener is handed over", true, listen, false, false},
		{"an address is told", false, listen, false, true},
		{"a later configuration there", false, Configuration{}, false, true},
		{"a listener where none can go", false, listen, true, false},
	} {
		if err := checkConfiguration(tt.files, tt.cfg, tt.file); (err == nil) != tt.ok {
			t.Errorf("%s: checkConfiguration = %v", tt.name, err)
		}
	}
}
