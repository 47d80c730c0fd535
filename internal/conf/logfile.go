package conf

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
)

// The sizes of an agent's log on a system without a journal.
const (
	LogSize = 5 << 20 // bytes of one file
	LogKeep = 10      // files in all
)

// A LogFile is a log that keeps its newest part. What is written goes to the
// file at Path; when that would grow over Size, it becomes Path.1, the one
// before it Path.2, and so on; the oldest of Keep files is deleted. One process
// at a time may write it, and people may read, copy and delete all files.
//
// Write takes whole lines, and stores each whole or not at all. It never fails
// for its caller: with the disk full, or the file out of reach, lines are
// lost, and how many is the first line that is stored again. It starts no
// goroutine and holds no lock when it returns.
type LogFile struct {
	Path string
	Size int64 // bytes of one file; what is longer than a file has one alone
	Keep int   // files in all, Path among them; at least 1

	mu     sync.Mutex
	f      *os.File
	lost   int   // lines that could not be stored
	broken error // why the last one could not
}

// Write stores p, which is one or more whole lines.
func (l *LogFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	note := ""
	if l.lost > 0 {
		note = fmt.Sprintf("level=ERROR msg=\"lines of this log were lost\" lines=%d error=%q\n", l.lost, l.broken.Error())
	}
	if err := l.write(append([]byte(note), p...)); err != nil {
		l.lost, l.broken = l.lost+1, err
	} else {
		l.lost, l.broken = 0, nil
	}
	return len(p), nil
}

// Close lets go of the file. A later Write opens it again.
func (l *LogFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.let()
}

func (l *LogFile) let() error {
	if l.f == nil {
		return nil
	}
	err := l.f.Close()
	l.f = nil
	return err
}

func (l *LogFile) write(p []byte) error {
	at, err := l.end()
	if err == nil && at > 0 && at+int64(len(p)) > l.Size {
		at, err = l.turn(at)
	}
	if err != nil {
		return err
	}
	if _, err := l.f.Write(p); err != nil {
		_ = l.f.Truncate(at) // no half lines
		return err
	}
	return nil
}

// end opens the file if it is not, and returns where its end is: somebody may
// have emptied it.
func (l *LogFile) end() (int64, error) {
	if l.f == nil {
		if err := os.MkdirAll(filepath.Dir(l.Path), 0o700); err != nil {
			return 0, err
		}
		f, err := os.OpenFile(l.Path, os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return 0, err
		}
		l.f = f
	}
	return l.f.Seek(0, io.SeekEnd)
}

// turn begins a new file. Where the old one cannot be moved away, because
// somebody reads it, it goes on; twice its size, it is emptied.
func (l *LogFile) turn(at int64) (int64, error) {
	if err := l.let(); err != nil {
		return 0, err
	}
	_ = os.Remove(l.old(l.Keep - 1)) // Rename replaces it, unless it is something odd
	for n := l.Keep - 1; n > 0; n-- {
		_ = os.Rename(l.old(n-1), l.old(n)) // a gap is no harm
	}
	now, err := l.end()
	if err == nil && now == at && at > 2*l.Size {
		if err = l.f.Truncate(0); err == nil {
			now, err = l.f.Seek(0, io.SeekStart)
		}
	}
	return now, err
}

// old names the n-th file before the present one, which is the 0-th.
func (l *LogFile) old(n int) string {
	if n <= 0 {
		return l.Path
	}
	return fmt.Sprintf("%s.%d", l.Path, n)
}
