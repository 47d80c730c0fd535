package sshd

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"

	"sft"
)

// Limits of what is read of the server's configuration. They are more than
// anybody has: sshd itself stops at 16 levels.
const (
	maxConfig = 1 << 20 // bytes of a file
	maxFiles  = 256
	maxDepth  = 16
)

// sshDir is where relative names of Include start: sshd_config(5).
const sshDir = "/etc/ssh"

// dropInName sorts before what others put in the folder: of several Match
// blocks the first counts.
const dropInName = "00-sftd.conf"

// The lines around what is ours in a file of somebody else. The second is used
// where the file had no newline at its end.
const (
	beginMark   = `# BEGIN sftd: do not edit; "sftd restore-ssh" takes it out`
	beginNoLine = `# BEGIN sftd (no newline before it): do not edit; "sftd restore-ssh" takes it out`
	endMark     = `# END sftd`
)

// directive splits a line as sshd does: a keyword, in small letters, and its
// arguments. Both are empty for a comment and for a line without anything.
func directive(line string) (keyword string, args []string) {
	line = strings.Trim(line, " \t\r\n\f")
	if line == "" || line[0] == '#' {
		return "", nil
	}
	rest := ""
	if line[0] == '"' { // so it takes a keyword, too
		keyword, rest, _ = strings.Cut(line[1:], `"`)
	} else if end := strings.IndexAny(line, " \t=\""); end >= 0 {
		keyword, rest = line[:end], line[end:]
	} else {
		keyword = line
	}
	if keyword = strings.ToLower(keyword); keyword == "" {
		return "", nil
	}
	rest = strings.TrimLeft(rest, " \t")
	rest = strings.TrimLeft(strings.TrimPrefix(rest, "="), " \t")
	for rest != "" && rest[0] != '#' {
		var arg strings.Builder
		quote := byte(0)
		i := 0
		for ; i < len(rest); i++ {
			c := rest[i]
			switch {
			case quote == 0 && (c == ' ' || c == '\t'):
			case quote == 0 && (c == '"' || c == '\''):
				quote = c
				continue
			case c == quote && quote != 0:
				quote = 0
				continue
			case c == '\\' && i+1 < len(rest) && strings.IndexByte(`"'\`, rest[i+1]) >= 0:
				i++
				arg.WriteByte(rest[i])
				continue
			default:
				arg.WriteByte(c)
				continue
			}
			break
		}
		args = append(args, arg.String())
		rest = strings.TrimLeft(rest[i:], " \t")
	}
	return keyword, args
}

// cutBlock takes what is ours out of a configuration, and tells whether there
// was something. A beginning without an end, or the other way round, is an
// error: somebody has edited it, and what to remove is not known.
func cutBlock(b []byte) (rest []byte, found bool, err error) {
	var out []byte
	in, noLine := false, false
	for line := range bytes.Lines(b) {
		switch text := strings.TrimRight(string(line), "\r\n"); {
		case text == beginMark || text == beginNoLine:
			if in || found {
				return b, true, errMarks
			}
			in, noLine = true, text == beginNoLine
		case text == endMark:
			if !in {
				return b, true, errMarks
			}
			in, found = false, true
		case !in:
			out = append(out, line...)
			if found {
				noLine = false // something was written after the block: the newline is needed
			}
		}
	}
	if in {
		return b, true, errMarks
	}
	if noLine {
		out = bytes.TrimSuffix(out, []byte("\n"))
	}
	return out, found, nil
}

var errMarks = errors.New("the lines that mark what sftd wrote are not in pairs")

// putBlock puts a block into a configuration that has none: before its first
// Match, which would make the block a part of itself, or at its end.
func putBlock(b, block []byte) []byte {
	at := len(b)
	n := 0
	for line := range bytes.Lines(b) {
		if k, _ := directive(string(line)); k == "match" {
			at = n
			break
		}
		n += len(line)
	}
	mark := beginMark
	var out []byte
	out = append(out, b[:at]...)
	if at == len(b) && at > 0 && b[at-1] != '\n' {
		mark = beginNoLine
		out = append(out, '\n')
	}
	out = append(out, mark+"\n"...)
	out = append(out, block...)
	out = append(out, endMark+"\n"...)
	return append(out, b[at:]...)
}

// dropIn returns the file of ours that a configuration would read, or "" where
// it reads no folder, or reads it for some people alone.
func dropIn(main []byte) string {
	for line := range bytes.Lines(main) {
		k, args := directive(string(line))
		if k == "match" {
			return ""
		}
		if k != "include" {
			continue
		}
		for _, pattern := range args {
			pattern = fullPattern(pattern)
			file := filepath.Join(filepath.Dir(pattern), dropInName)
			if ok, err := filepath.Match(pattern, file); err != nil || !ok {
				continue
			}
			if i, err := os.Lstat(filepath.Dir(file)); err == nil && i.IsDir() && ownedByUs(i) {
				return file
			}
		}
	}
	return ""
}

func fullPattern(pattern string) string {
	if filepath.IsAbs(pattern) {
		return pattern
	}
	return filepath.Join(sshDir, pattern)
}

// A place is a line of the configuration.
type place struct {
	file  string
	line  int
	match bool // below a Match of that file
}

// configFiles returns the configuration's files in the order in which they
// are read, as far as they can be.
func configFiles(main string) (files []string) {
	var walk func(file string, depth int)
	walk = func(file string, depth int) {
		if depth > maxDepth || len(files) >= maxFiles {
			return
		}
		files = append(files, file)
		b, err := readCapped(file)
		if err != nil {
			return
		}
		for line := range bytes.Lines(b) {
			if k, args := directive(string(line)); k == "include" {
				for _, pattern := range args {
					list, _ := filepath.Glob(fullPattern(pattern))
					for _, f := range list {
						walk(f, depth+1)
					}
				}
			}
		}
	}
	walk(main, 0)
	return files
}

// find returns the lines with a keyword, in the order in which they are read,
// without ours.
func find(files []string, keyword string) (all []place) {
	for _, file := range files {
		if filepath.Base(file) == dropInName {
			continue
		}
		b, err := readCapped(file)
		if err != nil {
			continue
		}
		n, ours, match := 0, false, false
		for line := range bytes.Lines(b) {
			n++
			text := strings.TrimSpace(string(line))
			switch {
			case text == beginMark || text == beginNoLine:
				ours = true
			case text == endMark:
				ours = false
			}
			k, _ := directive(text)
			match = match || k == "match" && !ours
			if k == keyword && !ours {
				all = append(all, place{file, n, match})
			}
		}
	}
	return all
}

func readCapped(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err == nil && len(b) > maxConfig {
		err = &sft.Error{Code: sft.Invalid, Msg: file + " is too large", Hint: "see what is in it"}
	}
	return b, err
}
