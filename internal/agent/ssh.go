package agent

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"time"
)

// What SSHAccess in sftd.yaml says.
const (
	sshDirect = "direct" // clients connect to the SSH server's own port
	sshBroker = "broker" // that port is closed to them: they come by the broker
	sshNone   = "none"   // sftd leaves the SSH server alone
)

// SSHStatus is how the host's OpenSSH server is.
type SSHStatus struct {
	Port   int  `json:"port"`
	Broker bool `json:"broker,omitempty"`
	Logins int  `json:"logins"` // that may sign in now
}

// String tells it in one line.
func (s *SSHStatus) String() string {
	how := fmt.Sprintf("port %d", s.Port)
	if s.Broker {
		how = "through the broker"
	}
	return fmt.Sprintf("%s, %d may sign in", how, s.Logins)
}

// privateAddress is where a bastion in the same network reaches the host: the
// lowest private IPv4 of its interfaces.
func privateAddress() string {
	list, _ := net.InterfaceAddrs() // without a list there is no such address
	var best netip.Addr
	for _, n := range list {
		p, err := netip.ParsePrefix(n.String())
		if a := p.Addr(); err == nil && a.Is4() && a.IsPrivate() && (!best.IsValid() || a.Less(best)) {
			best = a
		}
	}
	if !best.IsValid() {
		return ""
	}
	return best.String()
}

// A network is the cloud's name of the one that this instance is in. It does
// not change while the instance runs.
type network struct {
	mu    sync.Mutex
	name  string
	again time.Time // when to ask again; zero: now
}

// network returns aws:VPC, or "" where the cloud does not say.
func (a *Agent) network() string {
	a.vpc.mu.Lock()
	defer a.vpc.mu.Unlock()
	if now := a.machine(); a.vpc.name == "" && !now.Before(a.vpc.again) {
		a.vpc.again = now.Add(10 * time.Minute)
		vpc, err := a.metadata().vpc(context.Background())
		if err != nil {
			a.log.Debug("ask the cloud for this host's network", "error", err)
		} else {
			a.vpc.name = "aws:" + vpc
		}
	}
	return a.vpc.name
}

var (
	macRE = regexp.MustCompile(`^[0-9a-f]{2}(:[0-9a-f]{2}){5}$`)
	vpcRE = regexp.MustCompile(`^vpc-[0-9a-f]{8,17}$`)
)

// vpc returns the network of the instance's first interface (EC2 user guide,
// "Instance metadata categories").
func (m *metadata) vpc(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, metadataTime)
	defer cancel()
	token, err := m.token(ctx)
	if err != nil {
		return "", err
	}
	get := func(path string, form *regexp.Regexp) (string, error) {
		req, err := http.NewRequestWithContext(ctx, "GET", m.url+"/latest/meta-data/"+path, nil)
		if err != nil {
			return "", err
		}
		req.Header.Set("X-aws-ec2-metadata-token", token)
		resp, err := m.http.Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(io.LimitReader(resp.Body, 100))
		if s := strings.TrimSpace(string(b)); err == nil && resp.StatusCode == http.StatusOK && form.MatchString(s) {
			return s, nil
		}
		return "", notMetadata("the instance metadata service does not give " + path)
	}
	mac, err := get("mac", macRE)
	if err != nil {
		return "", err
	}
	return get("network/interfaces/macs/"+mac+"/vpc-id", vpcRE)
}
