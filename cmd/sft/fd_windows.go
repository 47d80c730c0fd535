package main

import (
	"io"

	"sft"
)

// inherited refuses: Windows hands handles on, not numbers.
func inherited(int) (io.WriteCloser, error) {
	return nil, usage{&sft.Error{Code: sft.Invalid, Msg: "--password-fd does not work on Windows", Hint: "use --show-password"}}
}
