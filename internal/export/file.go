package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"sft/internal/audit"
	"sft/internal/conf"
)

// A file gets JSON lines. It is opened for each batch, so that it can be
// rotated by renaming it, at any time and without telling anybody.
type file struct{ path string }

func (f *file) Name() string { return "file:" + f.path }

// Send appends the batch, and waits until it is on disk. What a crash or a
// full disk left of a line is taken away first or at once: each line is whole.
func (f *file) Send(_ context.Context, b audit.Batch) (err error) {
	_, missing := os.Lstat(f.path)
	w, err := os.OpenFile(f.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if i, err := w.Stat(); err != nil || !i.Mode().IsRegular() {
		return errors.Join(err, fmt.Errorf("%s is not a file", f.path))
	}
	end, err := wholeLines(w)
	if err != nil {
		return err
	}
	if _, err := w.Write(append(bytes.Join(b.Lines(), []byte("\n")), '\n')); err != nil {
		return errors.Join(err, w.Truncate(end))
	}
	if err := w.Sync(); err != nil || missing == nil {
		return err
	}
	return conf.SyncDir(filepath.Dir(f.path))
}

// wholeLines cuts off what follows the last line's end, and returns the size.
func wholeLines(w *os.File) (int64, error) {
	size, err := w.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	buf := make([]byte, 64<<10)
	for end := size; end > 0; {
		n := min(end, int64(len(buf)))
		if _, err := w.ReadAt(buf[:n], end-n); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(buf[:n], '\n'); i >= 0 {
			end = end - n + int64(i) + 1
			if end == size {
				return size, nil
			}
			return end, w.Truncate(end)
		}
		end -= n
	}
	return 0, w.Truncate(0)
}
