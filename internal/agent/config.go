package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"net/url"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/conf"
	"sft/internal/frame"
)

// Config is sftd.yaml. Every key is optional; a file that is not there is all
// defaults. Some keys do nothing on one system, so that hosts of both can share
// a file. Useless names those that are set.
type Config struct {
	AccessAddress   string   `yaml:"AccessAddress"`   // IP that clients use instead of the detected one
	AccessInterface string   `yaml:"AccessInterface"` // take the address from this interface
	AltNames        []string `yaml:"AltNames"`
	CanonicalName   string   `yaml:"CanonicalName"` // what people see and type instead of the host name
	Bastion         string   `yaml:"Bastion"`

	AutoEnroll           bool   `yaml:"AutoEnroll"` // by the cloud's word, at InitialURL
	EnrollmentTokenFile  string `yaml:"EnrollmentTokenFile"`
	InitialURL           string `yaml:"InitialURL"`           // the platform, for a host without a token
	InitialCAFingerprint string `yaml:"InitialCAFingerprint"` // of its CA, if it has one of its own
	ServerFile           string `yaml:"ServerFile"`           // the platform's URL
	TokenFile            string `yaml:"TokenFile"`            // this host's identity
	BufferFile           string `yaml:"BufferFile"`           // prefix of the spool of events
	ForwardProxy         string `yaml:"ForwardProxy"`

	BrokerAccessPort                  int    `yaml:"BrokerAccessPort"` // port that clients are told
	BrokerListenHost                  string `yaml:"BrokerListenHost"`
	BrokerListenPort                  int    `yaml:"BrokerListenPort"`
	BrokeredLoginGracePeriodInSeconds int    `yaml:"BrokeredLoginGracePeriodInSeconds"`
	BrokerUser                        string `yaml:"BrokerUser"` // Linux: the broker's account
	DisableBroker                     bool   `yaml:"DisableBroker"`

	RDPAddress         string `yaml:"RDPAddress"`
	RDPCertificateFile string `yaml:"RDPCertificateFile"`
	RDPSignIn          string `yaml:"RDPSignIn"` // frame.Inject or frame.Deliver

	OfflineGrace  Duration `yaml:"OfflineGrace"` // 0: none, -1: no limit
	AllowAdmin    bool     `yaml:"AllowAdmin"`
	AllowedLogins []string `yaml:"AllowedLogins"` // globs
	MaxUsers      int      `yaml:"MaxUsers"`      // 0: no limit

	SSHAccess                string `yaml:"SSHAccess"`                // sshDirect, sshBroker or sshNone
	SSHDConfigFile           string `yaml:"SSHDConfigFile"`           // of the host's OpenSSH server
	SSHDPort                 int    `yaml:"SSHDPort"`                 // that clients are told; 0: as the server says
	AuthorizedPrincipalsFile string `yaml:"AuthorizedPrincipalsFile"` // one per login, ends in /%u
	TrustedUserCAKeysFile    string `yaml:"TrustedUserCAKeysFile"`

	Labels map[string]string `yaml:"Labels"` // by which selectors find the host, under sftd.

	LogLevel string `yaml:"LogLevel"` // warn, info, debug

	state   string // folder of the TokenFile: everything else that is kept is beside it
	service string // socket for processes of accounts that act as service users
}

// A Duration is written as in "24h", "90m" or "-1".
type Duration struct {
	d   time.Duration
	bad string // what was written, if that is none
}

// UnmarshalYAML reads a duration, or a whole number of seconds. What is
// neither is check's to refuse, which knows the key.
func (d *Duration) UnmarshalYAML(b []byte) error {
	s := strings.Trim(strings.TrimSpace(string(b)), `"'`)
	if s == "-1" {
		*d = Duration{d: -1}
		return nil
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		v, err = time.ParseDuration(s + "s")
	}
	if err != nil || v < 0 {
		*d = Duration{bad: s}
		return nil
	}
	*d = Duration{d: v}
	return nil
}

// Defaults returns the configuration of a host without sftd.yaml.
func Defaults() Config {
	p := conf.AgentPaths()
	file := func(name string) string { return filepath.Join(p.State, name) }
	c := Config{
		AutoEnroll: true, EnrollmentTokenFile: p.Token, ServerFile: file("device.server"), TokenFile: file("device.token"), BufferFile: file("buffer.db"),
		BrokerListenPort: sft.BrokerPort, BrokeredLoginGracePeriodInSeconds: 30, state: p.State, service: p.Service,
		RDPAddress: rdpDefault(), RDPSignIn: frame.Inject, OfflineGrace: Duration{d: 24 * time.Hour}, AllowAdmin: true,
		SSHAccess: sshDirect, LogLevel: "INFO",
	}
	c.defaultsOfHost()
	return c
}

// ReadConfig reads sftd.yaml at file, strictly. A file that does not exist is
// all defaults, unless it was named by hand.
func ReadConfig(file string, named bool) (Config, error) {
	c := Defaults()
	if err := conf.ReadYAML(file, &c); err != nil && (named || !errors.Is(err, fs.ErrNotExist)) {
		if errors.Is(err, fs.ErrNotExist) {
			return c, &sft.Error{Code: sft.Invalid, Msg: "there is no " + file, Hint: "check --conf"}
		}
		return c, err
	}
	c.state = filepath.Dir(c.TokenFile)
	if c.BrokerAccessPort == 0 {
		c.BrokerAccessPort = c.BrokerListenPort
	}
	if e := c.check(); e != nil {
		key, _, _ := strings.Cut(e.Msg, " ")
		e.Msg = conf.Where(file, key) + ": " + e.Msg
		return c, e
	}
	return c, nil
}

// maxAltNames is how many AltNames the platform takes.
const maxAltNames = 32

// fingerprintRE is a SHA-256 as people copy it.
var fingerprintRE = regexp.MustCompile(`^([Ss][Hh][Aa]256:)?[0-9A-Fa-f]{2}(:?[0-9A-Fa-f]{2}){31}$`)

func (c *Config) check() *sft.Error {
	bad := func(key string, v any, hint string) *sft.Error {
		return &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("%s is %s", key, sft.Quote(fmt.Sprint(v))), Hint: hint}
	}
	for _, p := range []struct {
		key string
		v   int
	}{{"BrokerListenPort", c.BrokerListenPort}, {"BrokerAccessPort", c.BrokerAccessPort}} {
		if p.v < 1 || p.v > 65535 {
			return bad(p.key, p.v, "use 1 to 65535")
		}
	}
	if c.AccessAddress != "" {
		if _, err := netip.ParseAddr(c.AccessAddress); err != nil {
			return bad("AccessAddress", c.AccessAddress, "use an IP address")
		}
	}
	if c.BrokerListenHost != "" {
		if _, err := netip.ParseAddr(c.BrokerListenHost); err != nil {
			return bad("BrokerListenHost", c.BrokerListenHost, "use an IP address of this host")
		}
	}
	for key, names := range map[string][]string{"CanonicalName": {c.CanonicalName}, "Bastion": {c.Bastion}, "AltNames": c.AltNames} {
		for _, n := range names {
			if (n != "" || key == "AltNames") && sft.CheckHostname(n) != nil {
				return bad(key, n, "use letters, digits, \".\", \"-\" and \"_\"")
			}
		}
	}
	if len(c.AltNames) > maxAltNames {
		return bad("AltNames", fmt.Sprintf("%d names", len(c.AltNames)), fmt.Sprintf("keep %d", maxAltNames))
	}
	for _, p := range []struct{ key, v string }{{"EnrollmentTokenFile", c.EnrollmentTokenFile}, {"ServerFile", c.ServerFile}, {"TokenFile", c.TokenFile}, {"BufferFile", c.BufferFile}} {
		if !filepath.IsAbs(p.v) {
			return bad(p.key, p.v, "use a full path")
		}
	}
	if c.InitialURL != "" {
		u, err := api.CheckURL(c.InitialURL)
		if err != nil {
			return bad("InitialURL", c.InitialURL, "use the platform's URL, as in https://HOST")
		}
		c.InitialURL = u
	}
	if c.InitialCAFingerprint != "" && !fingerprintRE.MatchString(c.InitialCAFingerprint) {
		return bad("InitialCAFingerprint", c.InitialCAFingerprint, "use the 64 hexadecimal digits that \"sft-platform init\" printed")
	}
	if c.RDPCertificateFile != "" && !filepath.IsAbs(c.RDPCertificateFile) {
		return bad("RDPCertificateFile", c.RDPCertificateFile, "use a full path")
	}
	if a, err := netip.ParseAddrPort(c.RDPAddress); err != nil || !a.Addr().IsLoopback() || a.Port() == 0 {
		return bad("RDPAddress", c.RDPAddress, "use an address of this host itself, as in 127.0.0.1:3389")
	}
	if c.RDPSignIn != frame.Inject && c.RDPSignIn != frame.Deliver {
		return bad("RDPSignIn", c.RDPSignIn, "use inject, or deliver where that does not work")
	}
	if c.OfflineGrace.bad != "" {
		return bad("OfflineGrace", c.OfflineGrace.bad, "use a time such as 24h, 0 for none, or -1 for no limit")
	}
	if n := c.BrokeredLoginGracePeriodInSeconds; n < 0 || n > 3600 {
		return bad("BrokeredLoginGracePeriodInSeconds", n, "use 0 to 3600")
	}
	if c.MaxUsers < 0 {
		return bad("MaxUsers", c.MaxUsers, "use 0 for no limit, or more")
	}
	for _, g := range c.AllowedLogins {
		if _, err := path.Match(g, ""); err != nil {
			return bad("AllowedLogins", g, "use a pattern such as dev-*")
		}
	}
	if c.ForwardProxy != "" {
		if u, err := url.Parse(c.ForwardProxy); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			shown := "unreadable"
			if err == nil { // it may hold a password
				shown = u.Redacted()
			}
			return bad("ForwardProxy", shown, "use http://HOST:PORT")
		}
	}
	if c.SSHAccess != sshDirect && c.SSHAccess != sshBroker && c.SSHAccess != sshNone {
		return bad("SSHAccess", c.SSHAccess, "use direct, broker where the SSH port is closed to clients, or none to leave the SSH server alone")
	}
	if c.SSHDPort < 0 || c.SSHDPort > 65535 {
		return bad("SSHDPort", c.SSHDPort, "use 1 to 65535, or leave it out")
	}
	if !slices.Contains(uselessOnHost, "SSHAccess") {
		for _, p := range []struct{ key, v string }{{"SSHDConfigFile", c.SSHDConfigFile}, {"TrustedUserCAKeysFile", c.TrustedUserCAKeysFile}} {
			if !filepath.IsAbs(p.v) || strings.ContainsAny(p.v, "\"%\\\n") {
				return bad(p.key, p.v, "use a full path")
			}
		}
		if dir, ok := strings.CutSuffix(c.AuthorizedPrincipalsFile, "/%u"); !ok || !filepath.IsAbs(dir) || strings.ContainsAny(dir, "\"%\\\n") {
			return bad("AuthorizedPrincipalsFile", c.AuthorizedPrincipalsFile, "use a full path that ends in /%u, in a folder of its own")
		}
	}
	if _, err := sft.CheckLabels(sft.LabelSFTD, c.Labels); err != nil {
		e, _ := errors.AsType[*sft.Error](err)
		return &sft.Error{Code: sft.Invalid, Msg: "Labels cannot be used: " + e.Msg, Hint: e.Hint}
	}
	if _, err := c.Level(); err != nil {
		return bad("LogLevel", c.LogLevel, "use warn, info or debug")
	}
	return nil
}

// Level is the log level.
func (c Config) Level() (slog.Level, error) {
	var l slog.Level
	err := l.UnmarshalText([]byte(c.LogLevel))
	return l, err
}

// Useless names the keys that are set and do nothing on this system.
func (c Config) Useless() (keys []string) {
	def := reflect.ValueOf(Defaults())
	v := reflect.ValueOf(c)
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if key := f.Tag.Get("yaml"); slices.Contains(uselessOnHost, key) && !reflect.DeepEqual(v.Field(i).Interface(), def.Field(i).Interface()) {
			keys = append(keys, key)
		}
	}
	return keys
}

// file is a path in the state folder.
func (c Config) file(name string) string { return filepath.Join(c.state, name) }

// StateDir is the folder in which the agent keeps what it knows.
func (c Config) StateDir() string { return c.state }

func (c Config) grace() time.Duration {
	return time.Duration(c.BrokeredLoginGracePeriodInSeconds) * time.Second
}
