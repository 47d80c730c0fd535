package sft

// Version is the version of all three programs. The Makefile sets it.
var Version = "0.1.0"

// BrokerPort is the Access Broker's TCP port where nothing else is configured.
const BrokerPort = 4421
