package conf

import (
	"os"
	"path/filepath"
)

func clientPaths(getenv func(string) string) (Client, error) {
	local := getenv("LOCALAPPDATA")
	if !filepath.IsAbs(local) {
		return Client{}, noHome("LOCALAPPDATA")
	}
	dir := filepath.Join(local, "ScaleFT")
	return Client{State: dir, Config: filepath.Join(dir, "sft.yaml"), Runtime: filepath.Join(dir, "run")}, nil
}

// agentPaths names LocalSystem's own folder, which is the same path whoever
// asks: "sftd status" is run by people.
func agentPaths() Agent {
	root := os.Getenv("SystemRoot")
	if root == "" {
		root = `C:\Windows`
	}
	dir := filepath.Join(root, "System32", "config", "systemprofile", "AppData", "Local", "ScaleFT")
	return agentIn(filepath.Join(dir, "sftd.yaml"), dir, filepath.Join(dir, "Logs"))
}

func platformPaths() Platform {
	dir := filepath.Join(os.Getenv("ProgramData"), "sft-platform")
	return Platform{Config: filepath.Join(dir, "platform.yaml"), State: dir}
}
