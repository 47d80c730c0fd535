package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sft"
	"sft/internal/conf"
	"sft/internal/store"
)

// A holding keeps others from what does not go together with this process:
// serve from restore, whichever of the two was first.
type holding struct {
	files []*conf.Lock
	db    *store.Hold
}

func (h *holding) Release() {
	if h.db != nil {
		h.db.Release()
	}
	for _, l := range slices.Backward(h.files) {
		l.Release()
	}
}

// lockFiles are the files that serve has locks on: of its folder, and of the
// SQLite database, which may be in another one.
func (d *data) lockFiles() []string {
	list := []string{filepath.Join(d.dir, "serve.lock")}
	if path, ok := strings.CutPrefix(d.url(), "sqlite:"); ok {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			path = real
		}
		list = append(list, path+".lock")
	}
	return list
}

// who is how this process is told to whom it is in the way of.
func (d *data) who(command string) string {
	host, err := os.Hostname()
	if err != nil {
		host = "a host without a name"
	}
	return "sft-platform " + command + " on " + host
}

// use says that a platform runs on the folder and the database: the records are
// not to be replaced until it is released, or this process ends.
func (d *data) use(ctx context.Context) (*holding, error) {
	return d.hold(ctx, again(conf.TryShare), store.HoldShared, "serve",
		&sft.Error{Code: sft.Unavailable, Msg: "a backup is being restored", Hint: "start the platform when that is done"})
}

// again locks as lock does, and waits for a doctor, which has the file locked for
// a moment.
func again(lock func(string) (*conf.Lock, error)) func(string) (*conf.Lock, error) {
	return func(file string) (l *conf.Lock, err error) {
		for try := 0; try < 10; try++ {
			if l, err = lock(file); !errors.Is(err, conf.ErrLocked) {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		return l, err
	}
}

// addressFile has the address that serve listens on, or last did.
func (d *data) addressFile() string { return filepath.Join(d.dir, "serve.address") }

// served reports whether a platform runs on the folder, and on which address,
// if it has said that.
func (d *data) served() (runs bool, addr string) {
	lock := d.lockFiles()[0]
	if _, err := os.Stat(lock); err != nil { // nothing is made
		return false, ""
	}
	l, err := again(conf.TryShare)(lock)
	if err != nil { // restore has it
		return false, ""
	}
	l.Release()
	if l, err = again(conf.TryLock)(lock); err == nil {
		l.Release()
		return false, ""
	}
	if !errors.Is(err, conf.ErrLocked) {
		return false, ""
	}
	b, _ := readSmall(d.addressFile())
	return true, strings.TrimSpace(string(b))
}

// alone has no platform run on the folder and the database, and nobody change
// the master key, until it is released.
func (d *data) alone(ctx context.Context) (*holding, error) {
	h, err := d.hold(ctx, conf.TryLock, store.HoldAlone, "restore",
		&sft.Error{Code: sft.Invalid, Msg: "the platform runs on " + d.dir, Hint: "stop it first"})
	if err != nil {
		return nil, err
	}
	key, err := d.holdKey()
	if err != nil {
		h.Release()
		return nil, err
	}
	h.files = append(h.files, key)
	return h, nil
}

func (d *data) hold(ctx context.Context, lock func(string) (*conf.Lock, error), db func(context.Context, string, string) (*store.Hold, error), command string, locked error) (*holding, error) {
	h := &holding{}
	for _, f := range d.lockFiles() {
		l, err := lock(f)
		if errors.Is(err, conf.ErrLocked) {
			err = locked
		}
		if err != nil {
			h.Release()
			return nil, err
		}
		h.files = append(h.files, l)
	}
	var err error
	if h.db, err = db(ctx, d.url(), d.who(command)); err != nil {
		h.db = nil
		h.Release()
		return nil, err
	}
	return h, nil
}
