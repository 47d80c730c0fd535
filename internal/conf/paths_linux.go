package conf

import "path/filepath"

// clientPaths follows the XDG Base Directory Specification: a variable that
// is not a full path counts as unset.
func clientPaths(getenv func(string) string) (Client, error) {
	home := getenv("HOME")
	dir := func(variable, inHome string) string {
		if v := getenv(variable); filepath.IsAbs(v) {
			return filepath.Join(v, "ScaleFT")
		}
		if !filepath.IsAbs(home) {
			return ""
		}
		return filepath.Join(home, inHome, "ScaleFT")
	}
	c := Client{State: dir("XDG_STATE_HOME", ".local/state"), Config: dir("XDG_CONFIG_HOME", ".config")}
	if c.State == "" || c.Config == "" {
		return Client{}, noHome("HOME")
	}
	c.Config = filepath.Join(c.Config, "sft.yaml")
	c.Runtime = filepath.Join(c.State, "run")
	if v := getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(v) {
		c.Runtime = filepath.Join(v, "ScaleFT")
	}
	return c, nil
}

func agentPaths() Agent {
	a := agentIn("/etc/sft/sftd.yaml", "/var/lib/sftd", "")
	a.Service = "/run/sftd/service.sock"
	return a
}

func platformPaths() Platform {
	return Platform{Config: "/etc/sft/platform.yaml", State: "/var/lib/sft-platform"}
}
