package conf

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

func TestLogFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "Logs")
	l := &LogFile{Path: filepath.Join(dir, "x.log"), Size: 1000, Keep: 4}
	const lines = 2000
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range lines / 4 {
				fmt.Fprintf(l, "line %d-%d %s\n", w, i, strings.Repeat("x", i%40))
			}
		})
	}
	wg.Wait()
	fmt.Fprintf(l, "the last\n")
	l.Close()
	names := list(t, dir)
	if want := []string{"x.log", "x.log.1", "x.log.2", "x.log.3"}; !slices.Equal(names, want) {
		t.Fatalf("files %q, want %q", names, want)
	}
	for i, n := range names {
		b := read(t, filepath.Join(dir, n))
		if len(b) > 1000 || i > 0 && len(b) < 900 || !bytes.HasSuffix(b, []byte("\n")) {
			t.Errorf("%s has %d bytes, and ends with %q", n, len(b), b[max(0, len(b)-10):])
		}
		for s := range strings.Lines(string(b)) {
			if !strings.HasPrefix(s, "line ") && s != "the last\n" {
				t.Errorf("%s holds half a line: %q", n, s)
			}
		}
	}
	if b := read(t, l.Path); !bytes.HasSuffix(b, []byte("the last\n")) {
		t.Errorf("the newest file ends with %q", b)
	}
}

// What an agent before this one wrote is added to, and counts.
func TestLogFileGoesOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.log")
	for _, s := range []string{"one\n", "two\n", "three\n", "four\n"} {
		l := &LogFile{Path: path, Size: 9, Keep: 2}
		l.Write([]byte(s))
		l.Close()
	}
	if now, old := string(read(t, path)), string(read(t, path+".1")); now != "four\n" || old != "three\n" {
		t.Errorf("%q and %q", now, old)
	}
	l := &LogFile{Path: path, Size: 9, Keep: 1}
	l.Write([]byte("longer than a file\n"))
	l.Close()
	if b := string(read(t, path)); b != "longer than a file\n" {
		t.Errorf("a file alone holds %q", b)
	}
}

func TestLogFileThatCannotBeWritten(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "Logs", "x.log")
	if err := os.WriteFile(filepath.Dir(path), nil, 0o600); err != nil { // a file in the folder's place
		t.Fatal(err)
	}
	l := &LogFile{Path: path, Size: 1000, Keep: 2}
	for range 3 {
		if n, err := l.Write([]byte("lost\n")); n != 5 || err != nil {
			t.Errorf("Write = %d, %v: a caller must not be troubled", n, err)
		}
	}
	if err := os.Remove(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	l.Write([]byte("kept\n"))
	l.Write([]byte("kept too\n"))
	l.Close()
	got := string(read(t, path))
	if !strings.HasPrefix(got, "level=ERROR msg=\"lines of this log were lost\" lines=3 error=") || !strings.HasSuffix(got, "\nkept\nkept too\n") || strings.Count(got, "\n") != 3 {
		t.Errorf("the log is %q", got)
	}
}

// A reader who holds the file in its place does not make it grow for ever.
func TestLogFileThatCannotBeMoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.log")
	for _, f := range []string{path + ".1", path + ".1/x"} { // a folder that is not empty cannot be replaced
		if err := os.Mkdir(f, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	l := &LogFile{Path: path, Size: 100, Keep: 2}
	for i := range 100 {
		fmt.Fprintf(l, "line %d\n", i)
	}
	l.Close()
	b := read(t, path)
	if len(b) > 210 || !bytes.HasSuffix(b, []byte("line 99\n")) || !bytes.HasPrefix(b, []byte("line ")) {
		t.Errorf("%d bytes: %q", len(b), b)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
