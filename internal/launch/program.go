package launch

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"sft"
)

// A Target is what an RDP client is started on.
type Target struct {
	Addr        netip.AddrPort // on loopback
	Login       string         // the account's name
	Server      string         // the server's name, for the window's title
	Fingerprint string         // SHA-256 of the certificate at Addr, lower-case hex
	Channels    sft.Channels   // what the project lets cross: the rest is not asked for
}

// Check refuses a target with anything in it that could be more to a program
// than the value it is: all of it comes from the network.
func (t Target) Check() error {
	if err := sft.CheckServerLogin(t.Login); err != nil {
		return err
	}
	if err := sft.CheckHostname(t.Server); err != nil {
		return err
	}
	if b, err := hex.DecodeString(t.Fingerprint); err != nil || len(b) != 32 || strings.ToLower(t.Fingerprint) != t.Fingerprint {
		return &sft.Error{Code: sft.Internal, Msg: "the certificate fingerprint of the RDP service is not 64 hexadecimal digits",
			Hint: "check that sft and sftd are of the same version"}
	}
	return nil
}

// devices are names that Windows gives to none but its devices, whatever
// follows after a dot: Microsoft, "Naming Files, Paths, and Namespaces".
var devices = regexp.MustCompile(`^(?i:con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)`)

// fileName names a connection file after the server, as far as each system has
// files of that name: on Windows a colon begins another stream of a file.
func (t Target) fileName() string {
	name := strings.ReplaceAll(t.Server, ":", "-")
	if devices.MatchString(name) {
		name = "server-" + name
	}
	return name[:min(len(name), 64)] + ".rdp"
}

// A View is how the desktop is shown.
type View struct {
	Size         string // "WxH"; empty means all of the screen's work area
	Fullscreen   bool
	MultiMonitor bool

	// Of a window of mstsc that fills the work area, see screen.fit.
	place string // its winposstr
	scale int    // its desktopscalefactor
}

var sizeRE = regexp.MustCompile(`^[1-9][0-9]{2,4}x[1-9][0-9]{2,4}$`)

// CheckSize refuses what cannot be a View's Size.
func CheckSize(size string) error {
	if size == "" || sizeRE.MatchString(size) {
		return nil
	}
	return &sft.Error{Code: sft.Invalid, Msg: "size " + sft.Quote(size) + " cannot be used", Hint: "give it as WIDTHxHEIGHT, for example 1920x1080"}
}

// A Program is an RDP client on this machine.
type Program struct {
	Name    string // as a person knows it
	path    string
	freeRDP int      // the major version of FreeRDP, once asked; 0 is another program
	args    []string // the template of another program
	mstsc   *mstsc   // nil is another program
	asks    bool     // it takes no password from us, but from the person
}

// The names of FreeRDP's clients, best first, for X11 and for Wayland alone.
var (
	freeRDPs        = []string{"xfreerdp3", "xfreerdp", "sdl-freerdp3", "sdl-freerdp", "wlfreerdp3", "wlfreerdp"}
	freeRDPsWayland = []string{"sdl-freerdp3", "sdl-freerdp", "wlfreerdp3", "wlfreerdp"}
)

// Find returns the RDP client to use. choice is the person's, from --client
// or rdp.client: empty for the best one there is, the name or path of a
// FreeRDP, or the command of any program, in which {address}, {host}, {port},
// {user}, {server}, {fingerprint} and {file} are replaced; {file} is the path
// of an RDP connection file. getenv is os.Getenv.
//
// Nothing is started yet: call Ask before the program is used.
func Find(choice string, getenv func(string) string) (*Program, error) {
	argv, err := Words(choice)
	if err != nil {
		return nil, err
	}
	if len(argv) == 0 {
		if err := checkScreen(getenv); err != nil {
			return nil, err
		}
		if p := systemClient(); p != nil {
			return p, nil
		}
		names := freeRDPs
		if getenv("DISPLAY") == "" && getenv("WAYLAND_DISPLAY") != "" {
			names = freeRDPsWayland
		}
		for _, name := range names {
			if path, err := exec.LookPath(name); err == nil {
				return foundFreeRDP(name, path), nil
			}
		}
		if p := lastClient(); p != nil {
			return p, nil
		}
		return nil, &sft.Error{Code: sft.Invalid, Msg: "no RDP client is installed",
			Hint: "install FreeRDP (" + strings.Join(names[:2], " or ") + "), name another one with \"sft config rdp.client\", or use --no-launch"}
	}
	if len(argv) == 1 && isSystemClient(argv[0]) {
		if p := systemClient(); p != nil {
			return p, checkScreen(getenv)
		}
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return nil, &sft.Error{Code: sft.Invalid, Msg: "RDP client " + sft.Quote(argv[0]) + " is not installed", Err: err,
			Hint: "install it, name another one with --client, or use --no-launch"}
	}
	name := strings.TrimSuffix(filepath.Base(argv[0]), ".exe")
	if len(argv) == 1 && isFreeRDP(name) {
		if err := checkScreen(getenv); err != nil {
			return nil, err
		}
		return foundFreeRDP(name, path), nil
	}
	p := &Program{Name: name, path: path, args: argv[1:]}
	if all := strings.Join(p.args, " "); !strings.Contains(all, "{address}") && !strings.Contains(all, "{port}") && !strings.Contains(all, "{file}") {
		return nil, &sft.Error{Code: sft.Invalid, Msg: "RDP client " + sft.Quote(choice) + " is not told where to connect",
			Hint: "add {address}, {port} or {file} to its arguments, for example \"" + name + " {file}\""}
	}
	if unknown := placeholder.FindString(p.replacer(Target{}, "").Replace(strings.Join(p.args, "\n"))); unknown != "" {
		return nil, &sft.Error{Code: sft.Invalid, Msg: "RDP client " + sft.Quote(choice) + " has the unknown placeholder " + unknown,
			Hint: "use {address}, {host}, {port}, {user}, {server}, {fingerprint} and {file}"}
	}
	return p, nil
}

// isSystemClient reports whether a name is that of the RDP client which comes
// with Windows. It is never looked for on the path: what lies there under its
// name is something else.
func isSystemClient(name string) bool {
	return strings.EqualFold(strings.TrimSuffix(strings.ToLower(name), ".exe"), "mstsc")
}

// Proven reports whether the program gives its own proof of who it is, in place
// of the launch secret: the Front is then not to ask for that.
func (p *Program) Proven() bool { return p.mstsc != nil && p.mstsc.start == StartProcess }

// Asks reports whether the program asks the person for the password, and
// takes it in no other way.
func (p *Program) Asks() bool { return p.asks }

// swept is called with the folder of a run whose process was killed.
func (p *Program) swept() func(dir string) {
	if p.mstsc == nil {
		return func(string) {}
	}
	return p.mstsc.forgetRun
}

var placeholder = regexp.MustCompile(`\{[a-z_]+\}`)

func isFreeRDP(name string) bool {
	for _, n := range freeRDPs {
		if n == name {
			return true
		}
	}
	return name == "wfreerdp"
}

func checkScreen(getenv func(string) string) error {
	if HasScreen(getenv) {
		return nil
	}
	return &sft.Error{Code: sft.Invalid, Msg: "there is no screen to show a desktop on",
		Hint: "run it in a graphical session, or use --no-launch and connect an RDP client of your own"}
}

var versionRE = regexp.MustCompile(`FreeRDP version ([0-9]{1,3})\.`)

// unasked is the version of a FreeRDP that has not said its own.
const unasked = -1

func foundFreeRDP(name, path string) *Program {
	p := &Program{Name: name, path: path, freeRDP: unasked}
	if strings.HasSuffix(name, "3") {
		p.freeRDP = 3
	}
	return p
}

// Ask asks a FreeRDP for its version, where its name does not tell: the
// switch that forbids a downgrade is not the same in all of them. It takes a
// moment. Of mstsc it settles how it is started.
func (p *Program) Ask(ctx context.Context) error {
	if p.mstsc != nil {
		return p.mstsc.ask()
	}
	if p.freeRDP != unasked {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, p.path, "/version").Output()
	m := versionRE.FindSubmatch(out) // whatever it ended with: some versions end with 1
	if m == nil {
		return &sft.Error{Code: sft.Invalid, Msg: p.path + " does not say which FreeRDP it is", Err: err,
			Hint: "run \"" + p.Name + " /version\" to see why, or name another client with --client"}
	}
	if p.freeRDP, err = strconv.Atoi(string(m[1])); err != nil || p.freeRDP < 2 {
		return &sft.Error{Code: sft.Invalid, Msg: p.path + " is FreeRDP " + string(m[1]) + ", which is too old", Hint: "install FreeRDP 2.1 or newer"}
	}
	return nil
}

// needsFile reports whether the program is started on a connection file, or
// has another use for a folder.
func (p *Program) needsFile() bool {
	return p.mstsc != nil || strings.Contains(strings.Join(p.args, " "), "{file}")
}

func (p *Program) replacer(t Target, file string) *strings.Replacer {
	return strings.NewReplacer("{address}", t.Addr.String(), "{host}", t.Addr.Addr().String(), "{port}", fmt.Sprint(t.Addr.Port()),
		"{user}", t.Login, "{server}", t.Server, "{fingerprint}", t.Fingerprint, "{file}", file)
}

// ShowsNothing reports whether the program shows no window before it is
// connected.
func (p *Program) ShowsNothing() bool { return p.freeRDP != 0 }

// JoinsInOrder reports whether the program joins channels as rdp.Front.Ahead
// says.
func (p *Program) JoinsInOrder() bool { return p.freeRDP == 2 }

// argv returns the command line; front says that a Front answers. t has passed Check, and every value is
// behind a prefix of ours or takes the place that the person gave it, so none
// can be an option of its own.
func (p *Program) argv(t Target, v View, file string, front bool) []string {
	argv := []string{p.path}
	if p.freeRDP == 0 {
		r := p.replacer(t, file)
		for _, a := range p.args {
			argv = append(argv, r.Replace(a))
		}
		return argv
	}
	argv = append(argv,
		"/v:"+t.Addr.String(),
		"/u:"+t.Login,
		"/from-stdin:force", // the password is read before connecting
		"/cert:fingerprint:sha256:"+colons(t.Fingerprint),
		"/t:"+t.Login+"@"+t.Server,
		"/dynamic-resolution",
		clipboard(t.Channels),
		"+auto-reconnect",
		"/log-level:WARN",
	)
	// RDP's own encryption has no certificate to pin: whoever answers in the
	// service's place could choose it and be sent the password. TLS and NLA
	// are left to be negotiated. With a Front it is TLS: what NLA proves is
	// proven on the host, and FreeRDP 2 waits a tenth of a second for each
	// answer after it.
	switch {
	case front:
		argv = append(argv, "/sec:tls")
	case p.freeRDP == 2:
		argv = append(argv, "-sec-rdp")
	default:
		argv = append(argv, "/sec:rdp:off")
	}
	switch {
	case v.Size != "":
		argv = append(argv, "/size:"+v.Size)
	case !v.Fullscreen && !v.MultiMonitor:
		argv = append(argv, "/workarea")
	}
	if v.Fullscreen {
		argv = append(argv, "/f")
	}
	if v.MultiMonitor {
		argv = append(argv, "/multimon")
	}
	return argv
}

// clipboard is FreeRDP's switch for it.
func clipboard(c sft.Channels) string {
	if c.Clipboard {
		return "+clipboard"
	}
	return "-clipboard"
}

// colons writes a fingerprint as "aa:bb:…": FreeRDP refuses it without.
func colons(hex string) string {
	var b strings.Builder
	for i := 0; i+1 < len(hex); i += 2 {
		if i > 0 {
			b.WriteByte(':')
		}
		b.WriteString(hex[i : i+2])
	}
	return b.String()
}

var errName = regexp.MustCompile(`\bERR(CONNECT|INFO)_[A-Z0-9_]+`)

// reason says why FreeRDP ended with status, from what it is known to mean
// and what it wrote.
func (p *Program) reason(status int, output string) string {
	msg := fmt.Sprintf("%s ended with status %d", p.Name, status)
	if p.freeRDP > 0 {
		switch status {
		case 128:
			return msg + ": it does not know one of its arguments"
		case 132, 134:
			return msg + ": the server refused the account or its password"
		case 133, 146:
			return msg + ": it and the server have no security protocol in common"
		case 135:
			return msg + ": the account is locked"
		case 143:
			return msg + ": what answered did not show the certificate that was to be expected"
		}
	}
	if names := errName.FindAllString(output, -1); len(names) > 0 {
		return msg + ": " + names[len(names)-1]
	}
	if last := lastLine(output); last != "" {
		return msg + ": it said " + sft.Quote(last)
	}
	return msg
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}

// couldNotConnect reports whether a status says that the program gave up
// connecting: FreeRDP has a range for that.
func (p *Program) couldNotConnect(status int) bool {
	return p.freeRDP > 0 && status >= 128 && status < 255
}

// quiet reports whether a status is how sessions end that nobody need hear of:
// closed, logged off, disconnected.
func (p *Program) quiet(status int) bool {
	switch status {
	case 0, -1: // -1: ended by us
		return true
	case 1, 2, 11, 12:
		return p.freeRDP > 0
	}
	return false
}
