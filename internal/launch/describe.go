package launch

import (
	"os/exec"
	"strconv"

	"sft"
)

// Installed refuses a program that is not there to be started.
func (p *Program) Installed() error {
	if _, err := exec.LookPath(p.path); err != nil {
		return &sft.Error{Code: sft.Invalid, Msg: "there is no " + p.path, Err: err, Hint: "install it, or name another RDP client with \"sft config rdp.client\""}
	}
	return nil
}

// String names the program, with its version and path as far as Ask has told.
func (p *Program) String() string {
	s := p.Name
	if p.freeRDP > 0 {
		s += ", FreeRDP " + strconv.Itoa(p.freeRDP)
	}
	return s + ", " + p.path
}

// Launch returns how the program will be started and the policies of the
// machine that this goes by, by name, once Ask was called. Of a program that
// has one way only it returns false.
func (p *Program) Launch() (Start, []string, bool) {
	if p.mstsc == nil {
		return "", nil, false
	}
	return p.mstsc.start, p.mstsc.known.names(), true
}

// NeedsSignature reports whether the program will be started on a file that a
// policy of the machine has it refuse, unless it is signed.
func (p *Program) NeedsSignature() bool {
	return p.mstsc != nil && p.mstsc.known.NoUnsignedFiles && p.mstsc.start != StartDirect
}
