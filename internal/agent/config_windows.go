package agent

// defaultsOfHost sets what is different from system to system. There is no
// SSH service to set up.
func (c *Config) defaultsOfHost() {}

// uselessOnHost are the keys that do nothing on this system: the broker's
// account is always LocalService, without its rights, and nothing is done for an
// SSH server.
var uselessOnHost = []string{"BrokerUser", "SSHAccess", "SSHDConfigFile", "SSHDPort", "AuthorizedPrincipalsFile", "TrustedUserCAKeysFile"}
