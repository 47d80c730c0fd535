//go:build linux

package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unicode/utf16"
)

// A Find is a place where a secret was found. It never holds the secret.
type Find struct {
	Process Running
	Needle  int    // index of the secret among those that were looked for
	Where   string // "cmdline", "environ", or the name of a mapping such as "[heap]"
	Form    string // "bytes" or "UTF-16LE"
}

// String says what was found, without the secret.
func (f Find) String() string {
	return fmt.Sprintf("secret %d as %s in %s of %s (%d)", f.Needle, f.Form, f.Where, f.Process.Name, f.Process.PID)
}

// A needle is a secret in one of the forms that programs keep it in.
type needle struct {
	index int
	form  string
	bytes []byte
}

// needles returns the secrets as they are and in UTF-16LE, as Windows and the
// protocols of RDP have it (MS-RDPBCGR 2.2.1.11.1.1, MS-CSSP 2.2.1.2.1).
func needles(secrets [][]byte) ([]needle, error) {
	var all []needle
	for i, s := range secrets {
		if len(s) < 6 {
			return nil, fmt.Errorf("secret %d is too short to search for; use one of 6 bytes or more", i)
		}
		var wide []byte
		for _, u := range utf16.Encode([]rune(string(s))) {
			wide = append(wide, byte(u), byte(u>>8))
		}
		all = append(all, needle{i, "bytes", s}, needle{i, "UTF-16LE", wide})
	}
	return all, nil
}

// GrepMemory looks for secrets in all that a process of the host can read, and
// returns where they are: one Find for each mapping, secret and form. pid is
// the process as the lab sees it, as in Running; LabPID translates. The
// process runs on meanwhile: look when it is at rest.
//
// It knows the secrets as bytes and in UTF-16LE, not encrypted or encoded.
func (h *Host) GrepMemory(pid int, secrets ...[]byte) []Find {
	h.lab.t.Helper()
	wanted, err := needles(secrets)
	if err != nil {
		h.lab.t.Fatalf("%s: %v", h.name, err)
	}
	var process Running
	for _, p := range h.Processes("") {
		if p.PID == pid {
			process = p
		}
	}
	if process.PID == 0 {
		h.lab.t.Fatalf("%s has no process %d; give its number in the lab, from LabPID", h.name, pid)
	}
	found, err := grepMemory(process, wanted)
	if err != nil {
		h.lab.t.Fatalf("%s: read the memory of %s (%d): %v", h.name, process.Name, pid, err)
	}
	return found
}

func grepMemory(p Running, wanted []needle) ([]Find, error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", p.PID))
	if err != nil {
		return nil, err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", p.PID))
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	var found []Find
	read := 0
	for line := range strings.Lines(string(maps)) {
		m, ok := parseMapping(line)
		if !ok {
			continue
		}
		hits, n := search(mem, m.from, m.to, wanted)
		read += n
		for _, w := range hits {
			found = append(found, Find{p, w.index, m.name, w.form})
		}
	}
	if read == 0 {
		return nil, errors.New("nothing of it can be read")
	}
	return found, nil
}

// A mapping is a line of /proc/PID/maps.
type mapping struct {
	from, to int64
	name     string
}

// parseMapping reads a line of /proc/PID/maps, and passes over what cannot be
// read or belongs to the kernel.
func parseMapping(line string) (mapping, bool) {
	f := strings.Fields(line)
	if len(f) < 5 || !strings.HasPrefix(f[1], "r") {
		return mapping{}, false
	}
	a, b, _ := strings.Cut(f[0], "-")
	from, err1 := strconv.ParseInt(a, 16, 64) // [vsyscall] does not fit, and holds nothing
	to, err2 := strconv.ParseInt(b, 16, 64)
	m := mapping{from, to, "an unnamed mapping"}
	if len(f) > 5 {
		m.name = strings.Join(f[5:], " ")
	}
	return m, errors.Join(err1, err2) == nil && from < to && !strings.HasPrefix(m.name, "[vvar")
}

// chunk is how much of a memory is looked at in one go.
const chunk = 1 << 20

// search returns the needles that are between two addresses, each once, and
// how many bytes it could read. Pages that cannot be read are passed over.
func search(mem io.ReaderAt, from, to int64, wanted []needle) (hits []needle, read int) {
	overlap := 0
	for _, w := range wanted {
		overlap = max(overlap, len(w.bytes)-1)
	}
	seen := make([]bool, len(wanted))
	buf := make([]byte, overlap+chunk)
	kept := 0 // bytes of the chunk before, at the front
	for at := from; at < to; {
		size := int(min(chunk, to-at))
		n, _ := mem.ReadAt(buf[kept:kept+size], at)
		read += n
		for i, w := range wanted {
			if !seen[i] && bytes.Contains(buf[:kept+n], w.bytes) {
				seen[i] = true
				hits = append(hits, w)
			}
		}
		if n < size { // a page that is not there
			const page = 4096
			at, kept = (at+int64(n))/page*page+page, 0
			continue
		}
		at += int64(n)
		tail := min(overlap, kept+n)
		copy(buf, buf[kept+n-tail:kept+n])
		kept = tail
	}
	return hits, read
}

// LabPID returns the number, as the lab sees it, of the process that the host
// itself knows by another: what a program on the host calls its PID. It is 0
// if there is none.
func (h *Host) LabPID(pid int) int {
	h.lab.t.Helper()
	for _, p := range h.Processes("") {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "NSpid:" && f[len(f)-1] == strconv.Itoa(pid) {
				return p.PID
			}
		}
	}
	return 0
}

// GrepProc looks for secrets in the arguments and the environment of every
// process of the host, and returns where they are.
func (h *Host) GrepProc(secrets ...[]byte) []Find {
	h.lab.t.Helper()
	wanted, err := needles(secrets)
	if err != nil {
		h.lab.t.Fatalf("%s: %v", h.name, err)
	}
	var found []Find
	for _, p := range h.Processes("") {
		for _, file := range []string{"cmdline", "environ"} {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.PID, file))
			if err != nil {
				continue // it has ended meanwhile
			}
			for _, w := range wanted {
				if bytes.Contains(b, w.bytes) {
					found = append(found, Find{p, w.index, file, w.form})
				}
			}
		}
	}
	return found
}
