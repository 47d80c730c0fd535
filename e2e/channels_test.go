//go:build linux

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sft"
	"sft/e2e/lab"
	"sft/e2e/stage"
)

// echoSource opens the dynamic channel that its argument names, by the
// interface that xrdp gives to programs of a session, sends a word and prints
// what comes back. A client that has the channel ECHO sends back what it is
// sent (MS-RDPEECO 1.3).
const echoSource = `
#include <stdio.h>
#include <string.h>
extern void *WTSVirtualChannelOpenEx(unsigned int session, const char *name, unsigned int flags);
extern int WTSVirtualChannelWrite(void *channel, const char *data, unsigned int size, unsigned int *written);
extern int WTSVirtualChannelRead(void *channel, unsigned int ms, char *data, unsigned int size, unsigned int *got);
int main(int argc, char **argv) {
	char b[2000];
	unsigned int n = 0;
	void *c = WTSVirtualChannelOpenEx(0xffffffff, argv[1], 1 /* dynamic */);
	if (c == NULL) { puts("there is no interface"); return 1; }
	WTSVirtualChannelWrite(c, argv[2], strlen(argv[2]), &n);
	for (int i = 0; i < 30; i++) {
		if (!WTSVirtualChannelRead(c, 100, b, sizeof b, &n)) { puts("closed"); return 0; }
		if (n > 0) { fwrite(b, 1, n, stdout); return 0; }
	}
	puts("silence");
	return 0;
}
`

// A session is a desktop of ann that an RDP client shows.
type session struct {
	*stage.Server
	desk   *stage.Desk
	client *lab.Process
}

// run runs a command line in the session.
func (v session) run(command string) string {
	out, _ := v.Run("ann", "timeout", "5", "sh", "-c", "export DISPLAY=:10 XAUTHORITY=$HOME/.Xauthority; "+command)
	return out
}

// soon reports whether ok becomes true within a time in which it always does
// if it ever does.
func soon(ok func() bool) bool {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if ok() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}

const (
	copyIn  = "xclip -i -selection clipboard >/dev/null 2>&1"
	copyOut = "timeout 2 xclip -o -selection clipboard"
)

// carries is soon for a clipboard. What is copied before both ends are ready is
// not announced, so it is copied again each second.
func carries(copy func(), pasted func() bool) bool {
	var copied time.Time
	return soon(func() bool {
		if time.Since(copied) > time.Second {
			copy()
			copied = time.Now()
		}
		return pasted()
	})
}

// clipboardIn reports whether what is copied on the desk can be pasted in the
// session.
func (v session) clipboardIn() bool {
	const text = "copied on the desk"
	return carries(func() {
		v.desk.Must("ann", "sh", "-c", "printf '"+text+"' | DISPLAY=:0 "+copyIn)
	}, func() bool { return v.run(copyOut) == text })
}

// clipboardOut is clipboardIn the other way.
func (v session) clipboardOut() bool {
	const text = "copied in the session"
	return carries(func() { v.run("printf '" + text + "' | " + copyIn) }, func() bool {
		out, _ := v.desk.Run("ann", "sh", "-c", "DISPLAY=:0 "+copyOut)
		return out == text
	})
}

// devices reports whether the service has greeted the RDP client for its
// devices (MS-RDPEFS 2.2.2.2). xrdp 0.9 does not tell when a person is
// signed in, and FreeRDP 2 keeps its drives to itself until then: see drive.
func (v session) devices() bool {
	return soon(func() bool { return strings.Contains(v.client.Output(), "[rdpdr] server announces version") })
}

// drive reports whether a folder of the desk is a drive of the session, when
// rdesktop, which waits for nothing, is told to share it. It does not read the
// numbers that the service gives to channels (MS-RDPBCGR 2.2.1.4.4): where one
// is left out, it mistakes those after it.
func (v session) drive(in lab.SignIn) bool {
	cmd := v.desk.Command(context.Background(), "ann", "rdesktop", "-u", in.User, "-p", "-", "-g", "1024x700", "-a", "32", "-D", "-r", "disk:share=/tmp/share", in.Address)
	cmd.Env = append(cmd.Env, v.desk.Env...)
	cmd.Stdin = strings.NewReader(in.Password + "\nyes\n")
	p := v.desk.Host.Start("rdesktop-drive", cmd)
	defer p.Stop()
	v.desk.WaitPixel(900, 600, red)
	return soon(func() bool { return v.run("cat ~/thinclient_drives/share/file") == "a file of the desk" })
}

// audio reports whether the service has said what it can play.
func (v session) audio() bool {
	return soon(func() bool { return strings.Contains(v.client.Output(), "Server Audio Formats") })
}

// otherDynamic reports whether the dynamic channel ECHO works.
func (v session) otherDynamic() bool {
	return v.run("/usr/local/bin/channel ECHO 'a word of the session'") == "a word of the session"
}

// startAll starts an RDP client that asks for all there is.
func startAll(desk *stage.Desk, name string, in lab.SignIn) *lab.Process {
	cmd := desk.Command(context.Background(), "ann", "stdbuf", "-oL", "xfreerdp", "/v:"+in.Address, "/u:"+in.User, "/from-stdin:force", "/cert:ignore", "/size:1024x700", "-decorations",
		"/log-level:DEBUG", "+clipboard", "/drive:share,/tmp/share", "/sound:sys:fake", "/echo")
	cmd.Env = append(cmd.Env, desk.Env...)
	cmd.Stdin = strings.NewReader(in.Password + "\n")
	return desk.Host.Start("xfreerdp-"+name, cmd)
}

// What a project does not allow does not cross, whatever the RDP client asks
// for: the broker sees to it. What it allows does, and the desktop always.
func TestChannels(t *testing.T) {
	s := newStage(t)
	s.Project("prod", false)
	s.Person("ann", "Ann Example", "prod")
	desk := s.Desk("laptop", "ann")
	desk.EnrollQuickly()
	desk.Must("ann", "sh", "-c", "mkdir /tmp/share; printf 'a file of the desk' >/tmp/share/file")
	but := func(change func(*sft.Channels)) sft.Channels {
		c := sft.AllChannels
		change(&c)
		return c
	}
	for _, tt := range []struct {
		name   string
		policy sft.Channels
	}{
		{"all", sft.AllChannels},
		{"noclip", but(func(c *sft.Channels) { c.Clipboard = false })},
		{"nodev", but(func(c *sft.Channels) { c.Devices = false })},
		{"noaudio", but(func(c *sft.Channels) { c.Audio = false })},
		{"noother", but(func(c *sft.Channels) { c.OtherDynamic = false })},
		{"none", sft.Channels{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s.Project(tt.name, false)
			s.Join("ann", tt.name)
			s.Do("PUT", "/projects/"+tt.name, map[string]any{"channels": tt.policy}, nil)
			v := session{Server: s.Server(tt.name+"01", tt.name, blue, "BrokeredLoginGracePeriodInSeconds: 2\n"), desk: desk}
			v.Write("/usr/local/src/channel.c", 0o644, []byte(echoSource))
			v.Must("", "sh", "-ec", "cd /usr/lib/*/xrdp; gcc -o /usr/local/bin/channel /usr/local/src/channel.c ./libxrdpapi.so.0 -Wl,-rpath,$PWD")
			d := open(t, s, desk, v.Name())
			v.client = startAll(desk, tt.name, d.SignIn)
			desk.WaitPixel(900, 600, blue)
			if in, out := v.clipboardIn(), v.clipboardOut(); in != tt.policy.Clipboard || out != tt.policy.Clipboard {
				t.Errorf("the clipboard crosses: in %v, out %v; want %v", in, out, tt.policy.Clipboard)
			}
			got := sft.Channels{Clipboard: tt.policy.Clipboard, Devices: v.devices(), Audio: v.audio(), OtherDynamic: v.otherDynamic()}
			if got != tt.policy {
				t.Errorf("what crosses is %+v, want %+v", got, tt.policy)
			}
			v.run("xsetroot -solid '" + red + "'")
			desk.WaitPixel(900, 600, red)
			v.client.Stop()
			s.Wait("xrdp has let go of the RDP client", 10*time.Second, func() bool { return len(v.Processes("xrdp")) == 1 })
			if rest := tt.policy; rest.Clipboard && rest.Audio && rest.OtherDynamic {
				if got := v.drive(d.SignIn); got != rest.Devices {
					t.Errorf("a drive of the desk is in the session: %v, want %v", got, rest.Devices)
				}
			}
			d.Stop()
			atRest(s, v.Server, "ann", 15*time.Second)

			// "sft rdp" does not even ask.
			p := desk.StartSft("sft-rdp", "rdp", "--size", "1024x700", v.Name())
			desk.WaitPixel(900, 600, red)
			want := "+clipboard"
			if !tt.policy.Clipboard {
				want = "-clipboard"
			}
			if args := arguments(desk.Host, "xfreerdp"); !bytes.Contains(args, []byte("\x00"+want+"\x00")) {
				t.Errorf("xfreerdp is started with %q, want %s", args, want)
			}
			p.Stop()
			desk.Screenshot(filepath.Join(pictures(t), "channels-"+tt.name+".png"))
			v.Kill()
		})
	}
}

// arguments returns those of the programs of a name.
func arguments(h *lab.Host, program string) (all []byte) {
	for _, p := range h.Processes("") {
		if p.Name == program {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID))
			all = append(all, b...)
		}
	}
	return all
}
