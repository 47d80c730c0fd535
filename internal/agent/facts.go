package agent

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"sft"
	"sft/internal/api"
	"sft/internal/frame"
)

// maxProblems is how many problems the platform is told.
const maxProblems = 50

// facts collects what the host is.
func (a *Agent) facts() (api.Facts, error) {
	name, err := os.Hostname()
	if err != nil {
		return api.Facts{}, err
	}
	problems := a.problems()
	if n := len(problems) - maxProblems; n > 0 {
		problems = append(problems[:maxProblems-1], fmt.Sprintf("and %d more; see \"sftd status\" on the host", n+1))
	}
	f := api.Facts{Hostname: name, CanonicalName: a.conf.CanonicalName, AltNames: a.conf.AltNames, AccessAddress: a.conf.AccessAddress,
		BrokerPort: a.conf.BrokerAccessPort, Bastion: a.conf.Bastion, OS: osName(), OSType: runtime.GOOS, Version: sft.Version, Problems: problems,
		Labels: a.conf.Labels}
	if id := a.who.Load(); id != nil {
		f.InstanceID = id.Instance
	}
	if f.InstanceID != "" {
		f.PrivateAddress, f.Network = privateAddress(), a.network()
	}
	if !a.conf.DisableBroker {
		f.Services = []string{frame.RDP}
	}
	if f.SSH = a.sshFacts(); f.SSH != nil {
		f.Services = append(f.Services, frame.SSH)
	}
	if f.AccessAddress == "" {
		f.AccessAddress, err = accessAddress(a.conf.AccessInterface)
	}
	return f, err
}

// DeviceInfo is facts, for sftd --debug-device-info.
func DeviceInfo(c Config) (api.Facts, error) {
	a := &Agent{conf: c}
	a.lookAtSSH()
	return a.facts()
}

// accessAddress picks the address that clients use: the lowest public IPv4,
// else the lowest private one, else an IPv6; of one interface, if named. Where
// it cannot be known it is empty: the platform takes the one that the request
// came from.
func accessAddress(iface string) (string, error) {
	list, err := net.Interfaces()
	return pickAddress(iface, list, err)
}

// pickAddress is accessAddress for what the system says of its interfaces.
func pickAddress(iface string, list []net.Interface, err error) (string, error) {
	if err != nil && iface != "" {
		return "", &sft.Error{Code: sft.Unavailable, Msg: "the interfaces of this host cannot be listed: " + err.Error(), Err: err, Hint: "set AccessAddress in sftd.yaml instead of AccessInterface"}
	}
	var found []netip.Addr
	for _, i := range list {
		if iface != "" && i.Name != iface || i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, n := range addrs {
			if p, err := netip.ParsePrefix(n.String()); err == nil && p.Addr().IsGlobalUnicast() {
				found = append(found, p.Addr())
			}
		}
	}
	if len(found) == 0 {
		if iface != "" {
			return "", &sft.Error{Code: sft.Invalid, Msg: "interface " + sft.Quote(iface) + " has no address", Hint: "check AccessInterface in sftd.yaml"}
		}
		return "", nil
	}
	rank := func(a netip.Addr) int {
		switch {
		case a.Is4() && !a.IsPrivate():
			return 0
		case a.Is4():
			return 1
		}
		return 2
	}
	slices.SortFunc(found, func(a, b netip.Addr) int {
		if d := rank(a) - rank(b); d != 0 {
			return d
		}
		return a.Compare(b)
	})
	return found[0].String(), nil
}

// windowsName is the name of a Windows for people, from what its registry says:
// SOFTWARE\Microsoft\Windows NT\CurrentVersion. The product's name went on to be
// "Windows 10" when that was over; the build tells.
func windowsName(product, display, build string, revision uint64) string {
	if n, err := strconv.Atoi(build); err == nil && n >= 22000 {
		product = strings.Replace(product, "Windows 10", "Windows 11", 1)
	}
	if product == "" {
		product = "Windows"
	}
	name := product
	if display != "" && !strings.Contains(product, display) {
		name += " " + display
	}
	if build != "" {
		name += " (build " + build
		if revision > 0 {
			name += fmt.Sprintf(".%d", revision)
		}
		name += ")"
	}
	return oneLine(name, 100)
}
