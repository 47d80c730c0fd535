package main

import "sft"

// Machines as Windows numbers them: Microsoft, "IMAGE_FILE_MACHINE constants".
const machineI386 = 0x14c

// checkWords refuses a program of so many bits on such a machine; 0 is one that
// is not known. A program of 32 bits would find other folders and other keys of
// the registry than it means.
func checkWords(bits int, machine uint16) error {
	switch {
	case bits == 64:
		return nil
	case machine == machineI386:
		return &sft.Error{Code: sft.Invalid, Msg: "this is a 32-bit Windows", Hint: "use a server with a 64-bit Windows: there is no agent for this one"}
	}
	return &sft.Error{Code: sft.Invalid, Msg: "this is the program for 32-bit Windows", Hint: "install the package for x64"}
}

// startHint says how to start a service that is in a state as in
// daemon.InstalledState; "" is not known.
func startHint(state, name string) string {
	switch state {
	case "not installed":
		return "in a prompt of an administrator, run \"sftd install\", then: net start " + name
	case "installed, running", "installed, starting":
		return "the service is " + state + "; look at it with: sftd status"
	}
	return "in a prompt of an administrator: net start " + name
}
