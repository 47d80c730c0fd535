// Package launch puts a person in front of a desktop: it listens on a random
// loopback port, starts the person's own RDP client on it, and gives each
// socket of that client a stream to the server.
//
// The port is the weak point, because any process of the machine may connect
// to it. So every socket must belong to the person (see package loopback), and
// the RDP client is told which certificate to expect (see Program), so that
// nobody who takes the port over learns the password. The password itself goes
// to the RDP client on its standard input: it is in no argument, no variable
// and no file. mstsc has no such way; see Start.
package launch
