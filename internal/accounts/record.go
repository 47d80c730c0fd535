package accounts

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// recordName is the file in the state folder that says which accounts are
// ours. Losing it costs nothing but the proof: see the package comment.
const recordName = "accounts.json"

// maxRecord is more than any record is long; a longer file is damaged.
const maxRecord = 16 << 20

// A recordFile is the record as it is written.
type recordFile struct {
	Version  int              `json:"version"` // 1
	Accounts map[string]entry `json:"accounts"`
	Groups   map[string]int   `json:"groups,omitempty"` // gids of the synced groups that we made
}

// openRecord makes the folder and reads the record in it, which has no
// accounts, not even none, when there is none.
func openRecord(dir string) (recordFile, string, error) {
	none := recordFile{}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return none, "", fmt.Errorf("make the state folder: %w; run sftd as root and give it a disk it can write", err)
	}
	path := filepath.Join(dir, recordName)
	data, err := readAtMost(path, maxRecord)
	if errors.Is(err, fs.ErrNotExist) {
		return none, path, nil
	}
	if err != nil && !errors.Is(err, errTooLong) {
		return none, "", fmt.Errorf("read the record of accounts: %w; give sftd access to it, check the disk, or move the file away to start a new record", err)
	}
	rec, err := parseRecord(data)
	if err == nil {
		return rec, path, nil
	}
	if err := os.Rename(path, path+".bad"); err != nil {
		return none, "", fmt.Errorf("set the damaged record of accounts aside: %w; move it away by hand", err)
	}
	return none, path, nil
}

// errTooLong says that a file is longer than any that we write.
var errTooLong = errors.New("the file is too long")

// readAtMost reads a file of no more than limit bytes, and closes it: Windows
// renames no file that is open. Of a longer one it returns limit+1 bytes too.
func readAtMost(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = errTooLong
	}
	return data, err
}

// parseRecord reads what save wrote, and nothing else.
func parseRecord(data []byte) (recordFile, error) {
	none := recordFile{}
	if len(data) > maxRecord {
		return none, errors.New("the record of accounts is too long")
	}
	var r recordFile
	d := json.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(&r); err != nil {
		return none, err
	}
	if _, err := d.Token(); err != io.EOF {
		return none, errors.New("the record of accounts goes on after its end")
	}
	if r.Version != 1 || r.Accounts == nil {
		return none, fmt.Errorf("the record of accounts has version %d, not 1", r.Version)
	}
	for login, e := range r.Accounts {
		if err := e.check(login); err != nil {
			return none, err
		}
	}
	for name, gid := range r.Groups {
		if err := CheckGroup(name); err != nil {
			return none, err
		}
		if gid < minID {
			return none, fmt.Errorf("group %s has gid %d", name, gid)
		}
	}
	return r, nil
}

// save writes the record: a reader, and a machine that loses power, sees the
// old one or the new one. The caller holds m.mu.
func (m *Manager) save() error {
	if m.path == "" {
		return nil
	}
	data, err := json.MarshalIndent(recordFile{1, m.rec, m.groups}, "", "\t")
	if err != nil {
		return fmt.Errorf("encode the record of accounts: %w", err)
	}
	if err := replace(m.path, append(data, '\n')); err != nil {
		return fmt.Errorf("write the record of accounts: %w; make room on that disk, or let sftd write there", err)
	}
	return nil
}

// replace replaces the file at path with data in one step. Only its owner can
// read it. The folder is the agent's own, so a fixed name for the new file is
// safe, and a crash leaves at most one behind.
func replace(path string, data []byte) (err error) {
	next := path + ".new"
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(next)
		}
	}()
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(next, path); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}
