package conf

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/windows"
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
// asks: "sftd status" is run by people. The system says where it is; a
// variable of the environment could be anybody's word.
func agentPaths() Agent {
	system, err := windows.GetSystemDirectory()
	if err != nil || !filepath.IsAbs(system) {
		system = `C:\Windows\System32`
	}
	dir := filepath.Join(system, "config", "systemprofile", "AppData", "Local", "ScaleFT")
	return agentIn(filepath.Join(dir, "sftd.yaml"), dir, filepath.Join(dir, "Logs"))
}

func platformPaths() Platform {
	dir := filepath.Join(os.Getenv("ProgramData"), "sft-platform")
	return Platform{Config: filepath.Join(dir, "platform.yaml"), State: dir}
}
