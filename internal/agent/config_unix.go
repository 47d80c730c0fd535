//go:build unix

package agent

// defaultsOfHost sets what is different from system to system.
func (c *Config) defaultsOfHost() {
	c.BrokerUser = "sftd-broker"
	// Not in the state folder, which nobody else may enter: sshd reads the first
	// as the person who signs in.
	c.AuthorizedPrincipalsFile, c.SSHDConfigFile, c.TrustedUserCAKeysFile = "/etc/ssh/sftd/principals/%u", "/etc/ssh/sshd_config", "/etc/ssh/sftd/user_ca.pub"
}

// uselessOnHost are the keys that do nothing on this system.
var uselessOnHost []string
