package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"sft"
	"sft/internal/client"
	"sft/internal/conf"
	"sft/internal/launch"
)

// settings is sft.yaml.
type settings struct {
	RDP struct {
		Client     string `yaml:"client,omitempty"`
		Launch     string `yaml:"launch,omitempty"`
		ScreenSize string `yaml:"screensize,omitempty"`
		Fullscreen bool   `yaml:"fullscreen,omitempty"`
		Sign       bool   `yaml:"sign,omitempty"`
	} `yaml:"rdp,omitempty"`
	SSH struct {
		PortForward  string `yaml:"port_forward_method,omitempty"`
		ForwardAgent string `yaml:"insecure_forward_agent,omitempty"`
	} `yaml:"ssh,omitempty"`
	Network struct {
		ForwardProxy string `yaml:"forward_proxy,omitempty"`
	} `yaml:"network,omitempty"`
	ServiceAuth struct {
		Enable bool `yaml:"enable,omitempty"`
	} `yaml:"service_auth,omitempty"`
	Client struct {
		TimeoutSeconds *int64 `yaml:"timeout_seconds,omitempty"`
	} `yaml:"client,omitempty"`
}

const defaultTimeout = 300 // seconds

// timeout is how long a person may take to sign in; 0 is for ever.
func (s *settings) timeout() time.Duration {
	n := int64(defaultTimeout)
	if s.Client.TimeoutSeconds != nil {
		n = *s.Client.TimeoutSeconds
	}
	return time.Duration(max(n, 0)) * time.Second
}

// asking is how somebody may be asked to sign in: no person, where the host's
// agent says who this is.
func (s *settings) asking(otherwise client.Asking) client.Asking {
	if s.ServiceAuth.Enable {
		return client.ByAgent
	}
	return otherwise
}

// netcat reports whether hops are crossed by a program.
func (s *settings) netcat() bool { return s.SSH.PortForward == sft.ForwardNetcat }

// oneOf refuses what is none of these; "" is the default.
func oneOf(v string, these ...string) error {
	if v == "" || slices.Contains(these, v) {
		return nil
	}
	return fmt.Errorf("%s is not one of: %s", sft.Quote(v), strings.Join(these, ", "))
}

// A setting is one key of sft.yaml.
type setting struct {
	key, about string
	get        func(*settings) string
	set        func(*settings, string) error // "" is the default
}

var allSettings = []setting{
	{"rdp.client", "the RDP client: a name, or a command with {address}, {host}, {port}, {user}, {server}, {fingerprint} or {file}",
		func(s *settings) string { return s.RDP.Client },
		func(s *settings, v string) error {
			_, err := launch.Words(v)
			s.RDP.Client = v
			return err
		}},
	{"rdp.launch", "how mstsc is started on Windows: auto, file, direct or process (default: auto)",
		func(s *settings) string {
			if s.RDP.Launch == "" {
				return string(launch.StartAuto)
			}
			return s.RDP.Launch
		},
		func(s *settings, v string) error { s.RDP.Launch = v; return launch.CheckStart(v) }},
	{"rdp.screensize", "size of the window, WxH (default: the screen's work area)",
		func(s *settings) string { return s.RDP.ScreenSize },
		func(s *settings, v string) error { s.RDP.ScreenSize = v; return launch.CheckSize(v) }},
	{"rdp.fullscreen", "true for the whole screen (default: false)",
		func(s *settings) string { return strconv.FormatBool(s.RDP.Fullscreen) },
		func(s *settings, v string) error { return yesNo(&s.RDP.Fullscreen, v) }},
	{"rdp.sign", "true to have the platform sign the files that mstsc is started with (default: false)",
		func(s *settings) string { return strconv.FormatBool(s.RDP.Sign) },
		func(s *settings, v string) error { return yesNo(&s.RDP.Sign, v) }},
	{"ssh.port_forward_method", "how a hop is crossed: native, or netcat where its SSH server forbids forwarding (default: native)",
		func(s *settings) string { return cmp.Or(s.SSH.PortForward, sft.ForwardNative) },
		func(s *settings, v string) error {
			s.SSH.PortForward = v
			return oneOf(v, sft.ForwardNative, sft.ForwardNetcat)
		}},
	{"ssh.insecure_forward_agent", "host to forward your own SSH agent to servers whose project allows it: who is root there can use it meanwhile (default: none)",
		func(s *settings) string { return cmp.Or(s.SSH.ForwardAgent, sft.AgentNone) },
		func(s *settings, v string) error {
			s.SSH.ForwardAgent = v
			return oneOf(v, sft.AgentNone, sft.AgentHost)
		}},
	{"network.forward_proxy", "URL of an HTTP proxy to the platform (default: HTTPS_PROXY)",
		func(s *settings) string { return s.Network.ForwardProxy },
		func(s *settings, v string) error {
			u, err := url.Parse(v)
			if v != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
				return fmt.Errorf("%s is not the URL of a proxy", sft.Quote(v))
			}
			s.Network.ForwardProxy = v
			return nil
		}},
	{"service_auth.enable", "true on a server: act as the service user that this account of it is bound to, and never ask a person (default: false)",
		func(s *settings) string { return strconv.FormatBool(s.ServiceAuth.Enable) },
		func(s *settings, v string) error { return yesNo(&s.ServiceAuth.Enable, v) }},
	{"client.timeout_seconds", "how long sft waits for you to sign in; below 0 for ever (default: 300)",
		func(s *settings) string {
			if s.Client.TimeoutSeconds == nil {
				return strconv.Itoa(defaultTimeout)
			}
			return strconv.FormatInt(*s.Client.TimeoutSeconds, 10)
		},
		func(s *settings, v string) error {
			s.Client.TimeoutSeconds = nil
			if v == "" {
				return nil
			}
			n, err := strconv.ParseInt(v, 10, 32)
			if err != nil {
				return fmt.Errorf("%s is not a number of seconds", sft.Quote(v))
			}
			s.Client.TimeoutSeconds = &n
			return nil
		}},
}

// yesNo sets a setting that is true or false; "" is false.
func yesNo(to *bool, v string) error {
	switch v {
	case "true", "false", "":
		*to = v == "true"
		return nil
	}
	return fmt.Errorf("%s is neither true nor false", sft.Quote(v))
}

// readSettings reads the file at path; none is all defaults. Values are
// checked as "sft config" checks them.
func readSettings(path string) (settings, error) {
	var s settings
	if err := conf.ReadYAML(path, &s); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	for _, k := range allSettings {
		var scratch settings
		if err := k.set(&scratch, k.get(&s)); err != nil {
			return s, &sft.Error{Code: sft.Invalid, Msg: path + ": key " + k.key + ": " + err.Error(), Hint: "correct it with \"sft config " + k.key + " VALUE\""}
		}
	}
	return s, nil
}

// writeSetting changes one key in the file at path, and keeps its comments.
func writeSetting(path string, k setting, value string) error {
	var s settings
	comments := yaml.CommentMap{}
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := conf.PrivateDir(filepath.Dir(path)); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		if err := conf.DecodeYAML(path, data, &s); err != nil {
			return err
		}
		if err := yaml.UnmarshalWithOptions(data, new(settings), yaml.CommentToMap(comments)); err != nil {
			return err
		}
	}
	if err := k.set(&s, value); err != nil {
		return &sft.Error{Code: sft.Invalid, Msg: k.key + ": " + err.Error(), Hint: "run \"sft config --help\" to see what it takes"}
	}
	out, err := yaml.MarshalWithOptions(s, yaml.WithComment(comments))
	if err != nil {
		return err
	}
	return conf.WriteSecret(path, out)
}

func (p *program) settings() *cobra.Command {
	var asJSON bool
	about := ""
	for _, k := range allSettings {
		about += fmt.Sprintf("\n  %s\n      %s", k.key, k.about)
	}
	cmd := &cobra.Command{
		Use:   "config [--json] [KEY [VALUE]]",
		Short: "Show or change settings",
		Long: `Config prints all settings, or one, or sets one; an empty value sets it back to
its default. They are kept in sft.yaml: on Linux in $XDG_CONFIG_HOME/ScaleFT
(~/.config/ScaleFT), elsewhere in the folder of sft's state.
` + about,
		Args: cobra.MaximumNArgs(2),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			var keys []string
			for _, k := range allSettings {
				if len(args) == 0 {
					keys = append(keys, k.key)
				}
			}
			return keys, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			paths, err := p.paths()
			if err != nil {
				return err
			}
			if len(args) == 2 {
				k, err := settingNamed(args[0])
				if err != nil {
					return err
				}
				return writeSetting(paths.Config, k, args[1])
			}
			s, err := readSettings(paths.Config)
			if err != nil {
				return err
			}
			show := allSettings
			if len(args) == 1 {
				k, err := settingNamed(args[0])
				if err != nil {
					return err
				}
				if !asJSON {
					_, err = fmt.Fprintln(p.out, k.get(&s))
					return err
				}
				show = []setting{k}
			}
			values := map[string]string{}
			for _, k := range show {
				values[k.key] = k.get(&s)
				if !asJSON {
					fmt.Fprintf(p.out, "%s %s\n", k.key, k.get(&s))
				}
			}
			if asJSON {
				return writeJSON(p.out, values)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return cmd
}

func settingNamed(key string) (setting, error) {
	for _, k := range allSettings {
		if k.key == key {
			return k, nil
		}
	}
	return setting{}, usage{&sft.Error{Code: sft.Invalid, Msg: "there is no setting " + sft.Quote(key), Hint: "run \"sft config\" to see all"}}
}
