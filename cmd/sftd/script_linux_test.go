package main

import (
	"encoding/json"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"sft"
	"sft/internal/accounts"
	"sft/internal/agent"
	"sft/internal/privsep"
)

func TestMain(m *testing.M) { testscript.Main(m, map[string]func(){"sftd": main}) }

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("VERSION", sft.Version)
			e.Setenv("GORACE", os.Getenv("GORACE"))
			return nil
		},
		Condition: func(cond string) (bool, error) { return cond == "root" && os.Geteuid() == 0, nil },
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status": writeStatus,
			"exits":  exits,
		},
	})
}

// writeStatus is "status FILE [enrolled] [problem] [PID]": what an agent with
// that number would have written just now.
func writeStatus(ts *testscript.TestScript, neg bool, args []string) {
	s := agent.Status{At: time.Now(), PID: os.Getpid(), Version: "1.2.3", Accounts: []accounts.AccountStatus{}, Problems: []string{}}
	for _, a := range args[1:] {
		switch n, err := strconv.Atoi(a); {
		case err == nil:
			s.PID, s.At = n, time.Date(2026, 3, 1, 9, 0, 0, 0, time.Local)
		case a == "enrolled":
			s.ServerID, s.Team, s.Project, s.Platform = "srv_2", "main", "prod", "https://platform.example"
			s.Broker = agent.BrokerStatus{PID: 7, Listen: ":4421", Layers: []privsep.Layer{{Name: "uid", OK: true}, {Name: "seccomp", OK: true}, {Name: "landlock"}}}
			s.Accounts = []accounts.AccountStatus{{Login: "ann", State: accounts.AtRest, Admin: true}, {Login: "bob", State: accounts.Missing, Problem: "it is not ours; rename it"}}
		default:
			s.Problems = append(s.Problems, strings.ReplaceAll(a, "_", " "))
		}
	}
	b, err := json.Marshal(s)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o600))
}

// exits is "exits N COMMAND...": the command ends with the status N.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if e, ok := err.(interface{ ExitCode() int }); ok {
		got = e.ExitCode()
	} else {
		ts.Check(err)
	}
	if strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit status %d, want %s", got, args[0])
	}
}
