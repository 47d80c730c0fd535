package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"sft"
	"sft/internal/accounts"
	"sft/internal/conf"
	"sft/internal/privsep"
)

// statusFile is what sftd status reads. There is no local socket to ask.
const statusFile = "status.json"

// Status is how the agent of a host is.
type Status struct {
	At       time.Time                `json:"at"`
	PID      int                      `json:"pid"`
	Version  string                   `json:"version"`
	ServerID string                   `json:"server_id,omitempty"` // empty: not enrolled
	Team     string                   `json:"team,omitempty"`
	Project  string                   `json:"project,omitempty"`
	Platform string                   `json:"platform,omitempty"`
	Heard    *time.Time               `json:"heard_at,omitempty"` // from the platform
	Revision int64                    `json:"revision,omitempty"`
	Broker   BrokerStatus             `json:"broker"`
	SSH      *SSHStatus               `json:"ssh,omitempty"` // nil: sftd does nothing for an SSH server
	Sessions int                      `json:"sessions"`
	Streams  int                      `json:"streams"`
	Accounts []accounts.AccountStatus `json:"accounts"`
	Problems []string                 `json:"problems,omitempty"`
}

// BrokerStatus is how the broker is.
type BrokerStatus struct {
	PID              int             `json:"pid,omitempty"`    // 0: not running
	Listen           string          `json:"listen,omitempty"` // empty: it does not listen yet
	Layers           []privsep.Layer `json:"layers,omitempty"`
	CertificateUntil *time.Time      `json:"certificate_until,omitempty"`
	Counters         privsep.Report  `json:"counters"`
}

func (a *Agent) status() Status {
	s := Status{At: time.Now().UTC(), PID: os.Getpid(), Version: sft.Version, Accounts: a.acc.Status(), Problems: a.problems()}
	if id := a.who.Load(); id != nil {
		s.ServerID, s.Team, s.Project, s.Platform = id.ServerID, id.Team, a.project(id), id.URL
	}
	if st, _ := a.current(); st != nil {
		h := a.heardAt().Add(-a.clock.Offset()).UTC() // as this machine's clock has it, like At
		s.Heard, s.Revision = &h, st.Revision
	}
	s.SSH = a.sshStatus()
	s.Sessions, s.Streams = a.sessions.count()
	if c := a.child.Load(); c != nil {
		s.Broker.PID = c.PID()
		if a.serving.Load() {
			s.Broker.Listen = fmt.Sprintf("%s:%d", a.conf.BrokerListenHost, a.conf.BrokerListenPort)
		}
	}
	if l := a.layers.Load(); l != nil {
		s.Broker.Layers = *l
	}
	if r := a.counters.Load(); r != nil {
		s.Broker.Counters = *r
	}
	a.mu.Lock()
	if until := a.certUntil.UTC(); !a.certUntil.IsZero() {
		s.Broker.CertificateUntil = &until
	}
	a.mu.Unlock()
	return s
}

// tellStatus has the status written at once, if it has changed.
func (a *Agent) tellStatus() {
	select {
	case a.statusNow <- struct{}{}:
	default: // it is asked already
	}
}

// runStatus writes the status when it has changed, and every ten seconds.
func (a *Agent) runStatus(ctx context.Context) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	var last string
	var at time.Time
	for {
		s := a.status()
		s.At = time.Time{}
		if b, err := json.Marshal(s); err == nil && (string(b) != last || time.Since(at) > 10*time.Second) {
			last, at = string(b), time.Now()
			a.writeStatus()
		}
		select {
		case <-ctx.Done():
			return
		case <-a.statusNow:
		case <-t.C:
		}
	}
}

func (a *Agent) writeStatus() {
	b, err := json.Marshal(a.status())
	if err == nil {
		err = conf.WriteSecret(a.conf.file(statusFile), b)
	}
	if err != nil {
		a.log.Debug("write the status", "error", err)
	}
}

// ReadStatus returns what the agent last wrote.
func ReadStatus(c Config) (Status, error) {
	var s Status
	b, err := conf.ReadPrivate(c.file(statusFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s, &sft.Error{Code: sft.Unavailable, Msg: "sftd has not run on this host yet", Hint: startHint}
	case errors.Is(err, fs.ErrPermission):
		return s, &sft.Error{Code: sft.Denied, Msg: deniedStatus, Hint: deniedHint}
	case err != nil:
		return s, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return Status{}, &sft.Error{Code: sft.Unavailable, Msg: c.file(statusFile) + " is not readable", Err: err, Hint: "wait until sftd has written it again, or start sftd"}
	}
	return s, nil
}

// Running reports whether the agent that wrote the status is alive.
func (s Status) Running() bool {
	return time.Since(s.At) < 30*time.Second && alive(s.PID)
}

// Print shows the status to a person.
func (s Status) Print(w io.Writer) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-10s %s\n", name, fmt.Sprintf(format, args...))
	}
	if s.Running() {
		line("sftd", "running, version %s, pid %d", s.Version, s.PID)
	} else {
		line("sftd", "not running, or without room to say so, since %s", s.At.Local().Format(time.DateTime))
	}
	if s.ServerID == "" {
		line("enrolled", "no")
	} else {
		line("enrolled", "server %s, project %s, team %s", s.ServerID, s.Project, s.Team)
		line("platform", "%s", s.Platform)
	}
	if s.Heard != nil {
		line("state", "revision %d, heard %s ago", s.Revision, time.Since(*s.Heard).Round(time.Second))
	}
	switch {
	case s.Broker.PID == 0:
		line("broker", "not running")
	case s.Broker.Listen == "":
		line("broker", "starts, pid %d", s.Broker.PID)
	default:
		line("broker", "listens on %s, pid %d", s.Broker.Listen, s.Broker.PID)
		var on, off []string
		for _, l := range s.Broker.Layers {
			if l.OK {
				on = append(on, l.Name)
			} else {
				off = append(off, l.Name)
			}
		}
		line("", "held by %s", strings.Join(on, ", "))
		if len(off) > 0 {
			line("", "without %s", strings.Join(off, ", "))
		}
		if s.Broker.CertificateUntil != nil {
			line("", "certificate until %s", s.Broker.CertificateUntil.Local().Format(time.DateTime))
		}
	}
	if s.SSH != nil {
		line("ssh", "%s", s.SSH)
	}
	line("sessions", "%d open, %d streams", s.Sessions, s.Streams)
	for i, a := range s.Accounts {
		name := ""
		if i == 0 {
			name = "accounts"
		}
		admin := ""
		if a.Admin {
			admin = ", admin"
		}
		line(name, "%s: %s%s", a.Login, a.State, admin)
		if a.Problem != "" {
			line("", "  %s", a.Problem)
		}
	}
	for i, p := range s.Problems {
		name := ""
		if i == 0 {
			name = "problems"
		}
		line(name, "%s", p)
	}
}
