// Package ca holds the platform's certificate authorities: it makes them,
// seals their keys, and signs with them what a profile allows.
//
// A project has four: one each for certificates to its brokers (access), of
// its brokers (host), and for SSH users and hosts. The platform has one for
// its own TLS. A team may have one that signs RDP connection files, which is no
// CA. Keys are P-256 (X.509), ed25519 (SSH) and RSA (connection files). They exist in the
// clear only in the memory of the platform; what is stored is sealed with a
// master key that is kept outside of the database.
//
// The one thing the package takes from whoever asks for a certificate is the
// public key. All names, times and uses are set here, from the profile, and
// checked once more on the finished certificate before it leaves: see
// docs/issuance.md.
package ca
