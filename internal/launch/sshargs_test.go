package launch

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sft"
)

func TestParseSSHArgs(t *testing.T) {
	tests := []struct {
		name string
		args string
		want SSHArgs
		err  string // in the message
	}{
		{"a server alone", "web01", SSHArgs{Server: "web01"}, ""},
		{"a command", "web01 ls -la /", SSHArgs{Server: "web01", Command: []string{"ls", "-la", "/"}}, ""},
		{"options with values before the server", "-L 80:a:80 -oX=y -i key web01", SSHArgs{Server: "web01", Options: []string{"-L", "80:a:80", "-o", "X=y", "-i", "key"}}, ""},
		{"options together", "-NTvL 1:a:1 web01", SSHArgs{Server: "web01", Options: []string{"-N", "-T", "-v", "-L", "1:a:1"}}, ""},
		{"options behind the server", "web01 -t -e none sudo -i", SSHArgs{Server: "web01", Options: []string{"-t", "-e", "none"}, Command: []string{"sudo", "-i"}}, ""},
		{"a command that looks like an option", "web01 -t -- -x -l", SSHArgs{Server: "web01", Options: []string{"-t"}, Command: []string{"-x", "-l"}}, ""},
		{"a server behind --", "-v -- web01 -T id", SSHArgs{Server: "web01", Options: []string{"-v", "-T"}, Command: []string{"id"}}, ""},
		{"a server that looks like an option is the server", "-- -oProxyCommand=x", SSHArgs{Server: "-oProxyCommand=x"}, ""},
		{"the agent", "-A web01 -a", SSHArgs{Server: "web01", ForwardAgent: true, NoAgent: true}, ""},
		{"the value of an option is no option", "-o -l web01", SSHArgs{Server: "web01", Options: []string{"-o", "-l"}}, ""},
		{"no server", "-v", SSHArgs{}, "the server's name is missing"},
		{"no value", "web01 -L", SSHArgs{}, "option -L of ssh has no value"},
		{"another login", "-l root web01", SSHArgs{}, `option "-l"`},
		{"another login, hidden", "-vvlroot web01", SSHArgs{}, `option "-l"`},
		{"another port", "web01 -p22 id", SSHArgs{}, `option "-p"`},
		{"another way", "-J a web01", SSHArgs{}, `option "-J"`},
		{"a master", "-M web01", SSHArgs{}, `option "-M"`},
		{"into the background", "web01 -fN", SSHArgs{}, `option "-f"`},
		{"an unknown one", "-Z web01", SSHArgs{}, `option "-Z"`},
		{"one that is no letter", "-\xff web01", SSHArgs{}, `cannot be used`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseSSHArgs(strings.Fields(tt.args))
			if tt.err != "" {
				if sft.CodeOf(err) != sft.Invalid || !strings.Contains(err.Error(), tt.err) || strings.Contains(err.Error(), "\xff") {
					t.Errorf("got %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil || got.Server != tt.want.Server || !slices.Equal(got.Options, tt.want.Options) || !slices.Equal(got.Command, tt.want.Command) ||
				got.ForwardAgent != tt.want.ForwardAgent || got.NoAgent != tt.want.NoAgent {
				t.Errorf("got %+v, %v, want %+v", got, err, tt.want)
			}
		})
	}
}

// TestArgvAsOpenSSHReadsIt has OpenSSH itself say what it makes of a command
// line whose options, and whose person's settings, all point elsewhere.
func TestArgvAsOpenSSHReadsIt(t *testing.T) {
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		t.Skip("there is no ssh")
	}
	dir := filepath.Join(t.TempDir(), "a folder, all mine")
	a := SSHArgs{Server: "web01", Options: []string{"-G", "-o", "User=mallory", "-o", "HostName=192.0.2.1", "-o", "Port=9", "-o", "StrictHostKeyChecking=no",
		"-o", "UserKnownHostsFile=/dev/null", "-o", "IdentityAgent=none", "-o", "ProxyCommand=x", "-o", "ForwardAgent=yes", "-o", "HostKeyAlias=x", "-o", "ControlPath=/tmp/x"}}
	run := SSHRun{Host: "web01", ServerID: "s1", Login: "alice", Addr: "127.0.0.1:4022", Local: true,
		Agent: filepath.Join(dir, "agent"), KnownHosts: filepath.Join(dir, "known_hosts")}
	argv, err := run.Argv(a)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(ssh, argv...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	got := strings.Split(string(out), "\n")
	for _, want := range []string{"user alice", "hostname 127.0.0.1", "port 4022", "hostkeyalias s1", "stricthostkeychecking true", "checkhostip no", "updatehostkeys false",
		"forwardagent no", "controlmaster false", "verifyhostkeydns false"} {
		if !slices.Contains(got, want) {
			t.Errorf("ssh does not go by %q", want)
		}
	}
	text := string(out)
	for _, want := range []string{"userknownhostsfile " + run.KnownHosts, "globalknownhostsfile " + run.KnownHosts} {
		if !strings.Contains(text, want) {
			t.Errorf("ssh does not go by %q:\n%s", want, text)
		}
	}
	for _, not := range []string{"192.0.2.1", "mallory", "proxycommand", "proxyjump", "controlpath"} {
		if strings.Contains(text, not) {
			t.Errorf("ssh goes by %q", not)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
	for _, path := range []string{"/a\"b", "/a'b", "/a${HOME}b", "/a\nb", "/a%b"} {
		if _, err := (SSHRun{Host: "web01", Addr: "127.0.0.1:1", Agent: path}).Argv(a); sft.CodeOf(err) != sft.Invalid {
			t.Errorf("%q was given to ssh: %v", path, err)
		}
	}
}

// FuzzParseSSHArgs checks that whatever is typed, no option that leads
// elsewhere gets through, and that ssh is told every word once.
func FuzzParseSSHArgs(f *testing.F) {
	for _, s := range []string{"web01", "-L\x001:a:1\x00web01\x00ls", "-vvl\x00root\x00x", "web01\x00-t\x00--\x00-x", "--\x00--\x00--", "-o\x00--\x00x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		a, err := ParseSSHArgs(strings.Split(line, "\x00"))
		if err != nil {
			if sft.CodeOf(err) != sft.Invalid || strings.ContainsAny(err.Error(), "\n\x1b") {
				t.Errorf("refused with %q", err)
			}
			return
		}
		for i := 0; i < len(a.Options); i++ {
			o := a.Options[i]
			if len(o) != 2 || o[0] != '-' || notOurs[o[1]] != "" {
				t.Fatalf("%q gave option %q", line, o)
			}
			if strings.IndexByte(sshValued, o[1]) >= 0 {
				i++
			}
		}
	})
}
