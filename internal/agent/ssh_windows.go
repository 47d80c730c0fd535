package agent

import (
	"context"

	"sft/internal/api"
)

// An sshCare is what the agent does for an SSH server: nothing, on Windows.
type sshCare struct{}

func (a *Agent) careForSSH()                                 {}
func (a *Agent) loadLive()                                   {}
func (a *Agent) lookAtSSH()                                  {}
func (a *Agent) runSSH(context.Context)                      {}
func (a *Agent) shutSSH(context.Context, []string)           {}
func (a *Agent) sshFacts() *api.SSHFacts                     { return nil }
func (a *Agent) sshStatus() *SSHStatus                       { return nil }
func (a *Agent) sshGoesOn(ref) bool                          { return false }
func (a *Agent) sshSignedIn(string) bool                     { return false }
func (a *Agent) sshDue(string) []string                      { return nil }
func (a *Agent) sshAskNow()                                  {}
func (a *Agent) takeSSH(string, []string, []string)          {}
func (a *Agent) sshAccountIs(login string, there bool) error { return nil }
