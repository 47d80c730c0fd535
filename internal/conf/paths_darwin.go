package conf

import "path/filepath"

func clientPaths(getenv func(string) string) (Client, error) {
	home := getenv("HOME")
	if !filepath.IsAbs(home) {
		return Client{}, noHome("HOME")
	}
	dir := filepath.Join(home, "Library", "Application Support", "ScaleFT")
	return Client{State: dir, Config: filepath.Join(dir, "sft.yaml"), Runtime: filepath.Join(dir, "run")}, nil
}

func agentPaths() Agent {
	return agentIn("/Library/Application Support/sftd/sftd.yaml", "/Library/Application Support/sftd", "")
}

func platformPaths() Platform {
	const dir = "/Library/Application Support/sft-platform"
	return Platform{Config: dir + "/platform.yaml", State: dir}
}
