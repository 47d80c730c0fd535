package sft

import (
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// The grammars of names. Whatever comes from a person, a URL or an agent
// passes one of them before it goes anywhere else.
var (
	nameRE  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	loginRE = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
	// Capitals would be another spelling of the same account.
	winLoginRE = regexp.MustCompile(`^[a-z0-9_]([a-z0-9._-]{0,18}[a-z0-9_-])?$`)
	hostRE     = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._:-]{0,251}[A-Za-z0-9])?$`)
)

// CheckName refuses what cannot be the name of a team, project, group or
// user. kind is the noun for the message.
func CheckName(kind, name string) error {
	if nameRE.MatchString(name) {
		return nil
	}
	if name == "" {
		return nameMissing(kind)
	}
	return &Error{Code: Invalid, Msg: kind + " name " + Quote(name) + " cannot be used",
		Hint: "use 1 to 63 letters, digits, \"-\", \"_\" and \".\", with a letter or digit first"}
}

// nameMissing is the answer to whoever leaves out the name of a kind of thing.
func nameMissing(kind string) error {
	return &Error{Code: Invalid, Msg: "the " + kind + "'s name is missing", Hint: "give it"}
}

// CheckLogin refuses what cannot be a local account's name on Linux.
func CheckLogin(login string) error {
	if loginRE.MatchString(login) {
		return nil
	}
	return &Error{Code: Invalid, Msg: "login name " + Quote(login) + " cannot be used",
		Hint: "use up to 32 of a-z, 0-9, \"-\" and \"_\", with a letter or \"_\" first"}
}

// winReserved are names that Windows gives to things of its own: accounts,
// groups and principals, some of which no list shows, and devices, after which
// no folder of a profile can be named, whatever follows after a dot.
var winReserved = strings.Fields(`
	administrator administrators guest guests users replicator krbtgt iusr iis_iusrs
	defaultaccount wdagutilityaccount defaultuser0 helpassistant support trustedinstaller
	system network service local interactive everyone anonymous batch dialup none authenticated creator restricted builtin proxy self null
	con prn aux nul com0 com1 com2 com3 com4 com5 com6 com7 com8 com9 lpt0 lpt1 lpt2 lpt3 lpt4 lpt5 lpt6 lpt7 lpt8 lpt9
	sftd scaleft`)

// CheckWindowsLogin refuses what cannot be a person's local account on Windows
// (page USER_INFO_1): small letters, because Windows does not tell them from
// capitals, none of the characters that it forbids, no dot at the end, 20
// characters at most, and no name that Windows or sftd has for itself.
func CheckWindowsLogin(login string) error {
	first, _, _ := strings.Cut(login, ".")
	switch {
	case !winLoginRE.MatchString(login):
		return &Error{Code: Invalid, Msg: "login name " + Quote(login) + " cannot be used on Windows",
			Hint: "use up to 20 of a-z, 0-9, \"-\", \"_\" and \".\", with a letter, a digit or \"_\" first and no \".\" at the end"}
	case slices.Contains(winReserved, first), strings.HasPrefix(login, "sft-"), strings.HasPrefix(login, "sft_"):
		return &Error{Code: Invalid, Msg: "login name " + Quote(login) + " is one that Windows or sftd keeps for itself", Hint: "choose another, or give the person another windows_user_name first"}
	}
	return nil
}

// CheckServerLogin refuses what can be a login on a server of no system.
func CheckServerLogin(login string) error {
	if winLoginRE.MatchString(login) {
		return nil
	}
	return CheckLogin(login)
}

// systemGroups are local groups that systems come with, or that give rights on
// a host by themselves: none of them is the platform's to fill.
var systemGroups = []string{"root", "daemon", "bin", "sys", "adm", "tty", "disk", "lp", "mem", "kmem", "wheel", "cdrom", "mail", "man", "dialout",
	"floppy", "games", "tape", "video", "audio", "ftp", "lock", "nobody", "nogroup", "users", "utmp", "utempter", "input", "render", "sgx", "kvm", "fax", "voice",
	"sudo", "admin", "administrators", "dip", "www-data", "apache", "nginx", "backup", "operator", "list", "irc", "src", "gnats", "shadow", "sasl", "plugdev", "staff",
	"news", "uucp", "proxy", "crontab", "messagebus", "dbus", "polkitd", "ssh", "sshd", "ssh_keys", "xrdp", "ssl-cert", "netdev", "bluetooth", "lpadmin", "scanner",
	"docker", "podman", "lxd", "incus", "incus-admin", "libvirt", "libvirtd", "libvirt-qemu", "qemu", "vboxusers", "wireshark", "postgres", "mysql", "redis", "chrony", "tss", "sync",
	"rdma", "pulse", "pulse-access", "avahi", "colord", "geoclue", "saned", "syslog", "uuidd", "tcpdump", "landscape", "lxc-dnsmasq", "microk8s", "ubuntu", "debian", "ec2-user", "cloud-user", "vagrant"}

// CheckServerGroup refuses what cannot be a local group's name on Linux, and
// the names of groups that systems and sftd have for themselves.
func CheckServerGroup(name string) error {
	hint := "use up to 32 of a-z, 0-9, \"-\" and \"_\", with a letter first; \"sft_\" before it keeps it apart from the host's own"
	switch {
	case !loginRE.MatchString(name):
		return &Error{Code: Invalid, Msg: "server group name " + Quote(name) + " cannot be used", Hint: hint}
	case name[0] == '_' || slices.Contains(systemGroups, name) || strings.HasPrefix(name, "systemd") || strings.HasPrefix(name, "sft-") || strings.HasPrefix(name, "sftd"):
		return &Error{Code: Invalid, Msg: "server group name " + Quote(name) + " is a system's own", Hint: hint}
	}
	return nil
}

// CheckTarget refuses what cannot name a server: a name, an id or an address,
// with "project/" before it or not. It is the first thing that happens to
// what was typed after "sft rdp".
func CheckTarget(target string) error {
	project, name, ok := strings.Cut(target, "/")
	if !ok {
		project, name = "", target
	}
	if (project == "" && !ok || nameRE.MatchString(project)) && hostRE.MatchString(name) {
		return nil
	}
	return &Error{Code: NotFound, Msg: Quote(target) + " cannot be the name of a server",
		Hint: "name a server as \"sft list-servers\" shows it, or as project/server"}
}

// CheckHostname refuses what an agent may not claim as a name or address.
func CheckHostname(name string) error {
	if hostRE.MatchString(name) {
		return nil
	}
	if name == "" {
		return nameMissing("host")
	}
	return &Error{Code: Invalid, Msg: "host name " + Quote(name) + " cannot be used",
		Hint: "use letters, digits, \".\", \"-\" and \"_\""}
}

// Quote makes s safe to show in one line of a message: quoted, control
// characters escaped, cut at 64 bytes.
func Quote(s string) string {
	if len(s) > 64 {
		n := 61
		for n > 0 && !utf8.RuneStart(s[n]) {
			n--
		}
		s = s[:n] + "..."
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < 0x20 || r == 0x7f || r == utf8.RuneError || r >= 0x80 && r < 0xa0 || r >= 0x2028 && r <= 0x202e || r >= 0x2066 && r <= 0x2069:
			b.WriteString(`\x`)
			const hex = "0123456789abcdef"
			if r > 0xff {
				b.WriteByte(hex[r>>12&15])
				b.WriteByte(hex[r>>8&15])
			}
			b.WriteByte(hex[r>>4&15])
			b.WriteByte(hex[r&15])
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// Fold is how names are compared: people do not remember capitals.
func Fold(name string) string { return strings.ToLower(name) }

// HostFold is how host names are compared: like Fold, and an ending ".local"
// is ignored.
func HostFold(name string) string { return strings.TrimSuffix(Fold(name), ".local") }

// Printable keeps s on one line and takes out what could steer a terminal.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\t', r == '\r':
			return ' '
		case r < 0x20, r >= 0x7f && r < 0xa0, r >= 0x2028 && r <= 0x202e, r >= 0x2066 && r <= 0x2069:
			return -1
		}
		return r
	}, s)
}
