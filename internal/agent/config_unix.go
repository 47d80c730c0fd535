//go:build unix

package agent

// defaultsOfHost sets what is different from system to system.
func (c *Config) defaultsOfHost() {
	c.BrokerUser = "sftd-broker"
	c.AuthorizedPrincipalsFile, c.SSHDConfigFile, c.TrustedUserCAKeysFile = c.file("principals/%u"), "/etc/ssh/sshd_config", c.file("ssh_ca.pub")
}

// uselessOnHost are the keys that do nothing on this system.
var uselessOnHost []string
