// Package sshd makes a host's OpenSSH server let in who the platform says, and
// tells who has signed in to it.
//
// All that the server is told is for one group of accounts: a Match block with
// the CA to trust, and a file per login that names the one principal a
// certificate must have. Whoever is not in the group signs in as before. The
// block comes before any other that the administrator has, since of several
// that match the first counts; it is in a file of its own where the server
// reads such files, and else between two marked lines, so that it can be taken
// out again and leaves the bytes that were there.
//
// A server that nobody can reach is the one thing worse than a server that does
// not trust the CA. So a configuration that is broken is not touched, a change
// is tried by the server's own test before it is put in place and looked at
// afterwards, for one of our accounts and for somebody else's, and is taken
// back if either is not as it should be. What is under way is written down
// first: whoever is killed in the middle goes on from there.
package sshd
