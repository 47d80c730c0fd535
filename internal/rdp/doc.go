// Package rdp is the beginning of an RDP connection, as far as somebody has to
// know it who stands between client and server and signs in for the client.
//
// A connection begins with a negotiation (X.224), TLS, network level
// authentication (CredSSP with NTLM), the MCS and GCC exchange that names the
// virtual channels, and the Client Info with the password. All of it is here,
// for both sides: as functions over bytes, which hold no state and read no
// socket, and as two halves that do the talking. The [Front] speaks to the RDP
// client in the server's place, and the [Back] to the RDP service in the
// client's. Between the two is RDP without any security of its own, inside
// whatever carries it.
//
// After that the bytes are only copied. A [Guard] walks over them from PDU to
// PDU, and keeps off what the project does not allow.
//
// Everything that is parsed here was written by somebody else: each parser has
// a cap, refuses what it does not understand, and has a fuzz target. Sources:
// MS-RDPBCGR, MS-CSSP, MS-NLMP, MS-SPNG, T.123, T.125, T.124, X.224.
package rdp
