// Package loopback listens on the machine itself for one person.
//
// Any process of the machine may connect to a loopback port. So every socket
// is looked up in the system's table by both its ends, and one that does not
// belong to the person who runs this process is closed before a byte of it is
// read. On Windows it must also be of the same logon session.
package loopback
