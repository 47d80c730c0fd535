package main

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"golang.org/x/sys/windows"

	"sft"
)

// agentPath is the pipe of a run, named after its folder: pipes have names of
// the whole machine.
func agentPath(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return "//./pipe/sft-ssh-" + hex.EncodeToString(sum[:16])
}

// shellPath is path without blanks, as the system itself shortens it: inside
// the quotes of Match there is no way to say more quotes.
func shellPath(path string) (string, error) {
	if !strings.Contains(path, " ") {
		return path, nil
	}
	long, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return "", err
	}
	b := make([]uint16, windows.MAX_PATH)
	n, err := windows.GetShortPathName(long, &b[0], uint32(len(b)))
	if short := windows.UTF16ToString(b[:min(int(n), len(b))]); err == nil && n > 0 && !strings.Contains(short, " ") {
		return short, nil
	}
	return "", &sft.Error{Code: sft.Invalid, Msg: "the path of sft has a blank in it, which ssh's settings cannot say: " + sft.Quote(path), Hint: "install sft in a folder without blanks in its name"}
}
