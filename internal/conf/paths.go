package conf

import (
	"path/filepath"

	"sft"
)

// Client is where sft keeps one person's files.
type Client struct {
	State   string // folder of accounts and device keys
	Config  string // sft.yaml
	Runtime string // folder for what lives no longer than one command
}

// Agent is where sftd keeps a host's files.
type Agent struct {
	Config string // sftd.yaml
	State  string // folder; only the service's own account may read it
	Token  string // the enrollment token, deleted once it has been used
	Logs   string // folder; empty where the system's journal is used
	// Service is the socket on which processes of accounts that act as a
	// service user ask; empty where there is none.
	Service string
}

// Platform is where sft-platform keeps its files.
type Platform struct {
	Config string // platform.yaml
	State  string // folder of the master key and the SQLite database
}

// ClientPaths returns where sft keeps its files. getenv is os.Getenv.
func ClientPaths(getenv func(string) string) (Client, error) { return clientPaths(getenv) }

// AgentPaths returns where sftd keeps its files if it is not told otherwise.
func AgentPaths() Agent { return agentPaths() }

// PlatformPaths returns where sft-platform keeps its files if it is not told
// otherwise.
func PlatformPaths() Platform { return platformPaths() }

// agentIn is the layout that all hosts share.
func agentIn(config, state, logs string) Agent {
	return Agent{Config: config, State: state, Token: filepath.Join(state, "enrollment.token"), Logs: logs}
}

func noHome(variable string) error {
	return &sft.Error{Code: sft.Invalid, Msg: "it is not known where this person's files are: " + variable + " is not set to a full path",
		Hint: "set " + variable + " to the person's own folder"}
}
