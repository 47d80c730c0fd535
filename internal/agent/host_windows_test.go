package agent

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func TestAlive(t *testing.T) {
	if !alive(os.Getpid()) {
		t.Error("this process is not there")
	}
	for _, pid := range []int{0, -1, 1<<31 - 4} {
		if alive(pid) {
			t.Errorf("there is a process %d", pid)
		}
	}
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if alive(cmd.Process.Pid) {
		t.Error("a process that has ended is there")
	}
}

func TestNameOfThisWindows(t *testing.T) {
	if got := osName(); !strings.HasPrefix(got, "Windows") && !strings.HasPrefix(got, "Microsoft Windows") || !strings.Contains(got, "(build ") {
		t.Errorf("osName = %q", got)
	}
}

func TestConfigOfWindows(t *testing.T) {
	d := Defaults()
	if d.BrokerUser != "" || d.SSHDConfigFile != "" || d.AuthorizedPrincipalsFile != "" || d.RDPAddress != "127.0.0.1:3389" || !strings.HasSuffix(d.TokenFile, `\ScaleFT\device.token`) || d.file("x") != d.StateDir()+`\x` {
		t.Errorf("defaults %+v", d)
	}
	c, _, err := readConfig(t, "BrokerUser: broker\nTokenFile: 'D:\\sftd\\device.token'\n")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(c.Useless(), []string{"BrokerUser"}) || c.StateDir() != `D:\sftd` {
		t.Errorf("Useless = %q, state in %s", c.Useless(), c.StateDir())
	}
}
