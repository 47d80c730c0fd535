package platform

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"sft"
	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/store"
)

// A backup is one file:
//
//	the line "sft-platform backup 1"
//	a line of JSON, the BackupHead
//	the records, as package store writes them, by gzip (RFC 1952)
//	the SHA-256 of all that, 32 bytes
//	the same, sealed by the master key
//	the length of what is sealed, 2 bytes, big-endian
//
// The hash finds any damage, and the seal anything that was made or changed by
// somebody without the master key: a backup may lie where others can write.
const (
	backupMagic = "sft-platform backup 1\n"
	backupSeal  = "backup"
	maxHead     = 64 << 10 // bytes
)

// A BackupHead says what a backup is of. Nothing in it is secret.
type BackupHead struct {
	Version string    `json:"version"` // of sft-platform
	Schema  int64     `json:"schema"`
	MadeAt  time.Time `json:"made_at"`
	URL     string    `json:"url"`
	// MasterKey is the master key as a passphrase opens it; empty where it was
	// left out.
	MasterKey []byte `json:"master_key,omitempty"`
}

// A Backup is what was written to a backup.
type Backup struct {
	BackupHead
	Rows   store.Rows
	SHA256 string // as in the file's end, in hex
}

// Backup writes all records to w, as they are at one moment. The platform may
// be at work meanwhile. sealedKey is the master key by SealMasterKey, or nil.
func (p *Platform) Backup(ctx context.Context, w io.Writer, sealedKey []byte) (Backup, error) {
	b := Backup{BackupHead: BackupHead{Version: sft.Version, MadeAt: p.Now().UTC(), URL: p.URL, MasterKey: sealedKey}}
	h := sha256.New()
	out := io.MultiWriter(w, h)
	err := p.DB.Read(ctx, func(tx *store.Tx) (err error) {
		if b.Schema, err = tx.Schema(); err != nil {
			return err
		}
		head, err := json.Marshal(b.BackupHead)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(out, "%s%s\n", backupMagic, head); err != nil {
			return err
		}
		z := gzip.NewWriter(out)
		if b.Rows, err = tx.Dump(z); err != nil {
			return err
		}
		return z.Close()
	})
	if err != nil {
		return b, err
	}
	sum := h.Sum(nil)
	b.SHA256 = hex.EncodeToString(sum)
	sealed, err := p.Sealer.Seal(backupSeal, sum)
	if err != nil {
		return b, err
	}
	_, err = w.Write(binary.BigEndian.AppendUint16(append(sum, sealed...), uint16(len(sealed))))
	return b, err
}

// lastBackup is the setting that says when the last backup was made.
const lastBackup = "last_backup"

// BackupMade records that a backup was made, under a name.
func (p *Platform) BackupMade(ctx context.Context, b Backup, name string) error {
	return p.change(ctx, Actor{}, func(tx *store.Tx) (audit.Event, error) {
		e, err := p.ownEvent(tx, audit.PlatformBackup, name)
		if err != nil {
			return e, err
		}
		e.Detail = map[string]string{"sha256": b.SHA256, "rows": fmt.Sprint(b.Rows.Sum()), "master_key": "left out"}
		if len(b.MasterKey) > 0 {
			e.Detail["master_key"] = "sealed with a passphrase"
		}
		return e, setLastBackup(tx, p.Sealer, b.MadeAt)
	})
}

// setLastBackup writes down when the last backup was made, and with which master
// key: what that seals here is not sealed anew when it is changed. See
// BackupBeforeKey.
func setLastBackup(tx *store.Tx, s ca.Sealer, made time.Time) error {
	sealed, err := s.Seal(backupKey, nil)
	return errors.Join(err, tx.SetSetting(backupKey, base64.StdEncoding.EncodeToString(sealed)), tx.SetSetting(lastBackup, made.UTC().Format(time.RFC3339)))
}

// A BackupFile is a backup that was read and found to be as it was written.
type BackupFile struct {
	BackupHead
	r       io.ReaderAt
	records int64 // where they begin
	end     int64 // and end
	sum     []byte
	sealed  []byte
}

func damaged(format string, args ...any) error {
	return &sft.Error{Code: sft.Invalid, Msg: "the backup is damaged or not whole: " + fmt.Sprintf(format, args...), Hint: "take another backup; nothing was changed"}
}

// OpenBackup reads all of a backup of so many bytes, and refuses one with any
// damage.
func OpenBackup(r io.ReaderAt, size int64) (*BackupFile, error) {
	b := &BackupFile{r: r}
	top, err := io.ReadAll(io.NewSectionReader(r, 0, min(size, int64(len(backupMagic)+maxHead))))
	if err != nil {
		return nil, err
	}
	head, ok := bytes.CutPrefix(top, []byte(backupMagic))
	if !ok {
		return nil, &sft.Error{Code: sft.Invalid, Msg: "this is no backup that this version of sft-platform knows, or its beginning is damaged",
			Hint: "name a file that \"sft-platform backup\" made, by this version or an older one"}
	}
	head, _, ok = bytes.Cut(head, []byte("\n"))
	var tail [2]byte
	if ok {
		_, err = r.ReadAt(tail[:], size-2)
	}
	sealed := int64(binary.BigEndian.Uint16(tail[:]))
	b.records = int64(len(backupMagic) + len(head) + 1)
	b.end = size - 2 - sealed - sha256.Size
	if !ok || err != nil || b.end < b.records {
		return nil, damaged("it has no end")
	}
	end := make([]byte, sha256.Size+sealed)
	if _, err := r.ReadAt(end, b.end); err != nil {
		return nil, err
	}
	b.sum, b.sealed = end[:sha256.Size], end[sha256.Size:]
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(r, 0, b.end)); err != nil {
		return nil, err
	}
	if !bytes.Equal(h.Sum(nil), b.sum) {
		return nil, damaged("its SHA-256 is another one")
	}
	if err := json.Unmarshal(head, &b.BackupHead); err != nil {
		return nil, damaged("its head is not readable")
	}
	return b, nil
}

// Verify refuses a backup that was not sealed with this master key, or that is
// by a newer version.
func (b *BackupFile) Verify(s ca.Sealer) error {
	sum, err := s.Open(backupSeal, b.sealed)
	if err != nil || subtle.ConstantTimeCompare(sum, b.sum) != 1 {
		return &sft.Error{Code: sft.Denied, Msg: "the backup was made with another master key, or changed by somebody without it", Err: err,
			Hint: "put the master key of that platform into the data folder; if it is there, do not use this backup"}
	}
	newest, err := store.Newest()
	if err == nil && b.Schema > newest {
		err = store.TooNew("the backup", b.Schema, newest)
	}
	return err
}

// reader reads the records. Its end is an error if the bytes have changed
// since the backup was opened.
func (b *BackupFile) reader() (io.Reader, error) {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(b.r, 0, b.records)); err != nil {
		return nil, err
	}
	in := io.TeeReader(io.NewSectionReader(b.r, b.records, b.end-b.records), h)
	z, err := gzip.NewReader(bufio.NewReaderSize(in, 64<<10))
	if err != nil {
		return nil, damaged("%v", err)
	}
	return &checked{z, h, b.sum}, nil
}

// checked reports at its end whether a hash is as it should be.
type checked struct {
	r   io.Reader
	h   hash.Hash
	sum []byte
}

func (c *checked) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	switch {
	case err == io.EOF && !bytes.Equal(c.h.Sum(nil), c.sum):
		err = damaged("it changed while it was read")
	case err != nil && err != io.EOF:
		err = damaged("%v", err)
	}
	return n, err
}

// RestoreRequest says how a backup is restored.
type RestoreRequest struct {
	Sealer  ca.Sealer // opens what is sealed in the records
	Replace bool      // what is in the database is removed
	Scratch string    // an empty folder, for the records of a backup by an older version
	Name    string    // of the backup, for the event
}

// restoredAt is the setting that says when a backup was last restored.
const restoredAt = "restored_at"

// ErrRestored is what Restored returns to whoever works with records that are
// there no more.
var ErrRestored = &sft.Error{Code: sft.Unavailable, Msg: "a backup was restored while the database was out of reach", Hint: "start the platform again"}

// Restored tells which restore the records are by, or ErrRestored if that is
// not the one that they were by before.
func Restored(ctx context.Context, db *store.DB, before *string) (by string, err error) {
	err = db.Read(ctx, func(tx *store.Tx) (err error) {
		by, err = tx.Setting(restoredAt)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		err = nil
	}
	if err == nil && before != nil && *before != by {
		err = ErrRestored
	}
	return by, err
}

// Restore verifies a backup and puts its records into a database, all of them
// or none, whatever schema that has. They must be such that a platform can sign
// with them: the sealer opens all that is sealed. They are made safe to go on
// with: store.AfterRestore.
func (b *BackupFile) Restore(ctx context.Context, db *store.DB, r RestoreRequest) (store.Rows, error) {
	if err := b.Verify(r.Sealer); err != nil {
		return nil, err
	}
	newest, err := store.Newest()
	if err != nil {
		return nil, err
	}
	in, err := b.reader()
	if err != nil {
		return nil, err
	}
	if b.Schema < newest {
		var stop func()
		in, stop = converted(ctx, r.Scratch, b.Schema, in)
		defer stop()
	}
	p := &Platform{Now: time.Now}
	var rows store.Rows
	err = db.Change(ctx, func(tx *store.Tx) (audit.Event, error) {
		empty, err := tx.Empty()
		if err == nil && !empty && !r.Replace {
			err = &sft.Error{Code: sft.Exists, Msg: "the database is a platform's already", Hint: "give an empty one; or, to lose what is in it, stop the platform and give --force"}
		}
		if err != nil {
			return audit.Event{}, err
		}
		if err := tx.Rebuild(); err != nil {
			return audit.Event{}, err
		}
		if rows, err = tx.Load(in); err != nil {
			return audit.Event{}, err
		}
		if err := opensAll(tx, r.Sealer, func(store.CARecord) bool { return true }); err != nil {
			return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: "a platform with these records could not sign: " + err.Error(), Err: err,
				Hint: "put the master key that seals them into the data folder, or take another backup; nothing was changed"}
		}
		e, err := p.ownEvent(tx, audit.PlatformRestore, r.Name)
		if err != nil {
			return e, err
		}
		e.Detail = map[string]string{"sha256": hex.EncodeToString(b.sum), "made_at": b.MadeAt.Format(time.RFC3339), "rows": fmt.Sprint(rows.Sum())}
		return e, errors.Join(setLastBackup(tx, r.Sealer, b.MadeAt), tx.SetSetting(restoredAt, p.Now().UTC().Format(time.RFC3339Nano)), tx.AfterRestore())
	})
	return rows, err
}

// converted reads records of an older schema as those of the newest. The
// caller calls stop when it has read enough.
func converted(ctx context.Context, dir string, schema int64, old io.Reader) (in io.Reader, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.CloseWithError(store.Convert(ctx, dir, schema, old, w))
	}()
	return r, func() {
		cancel()
		r.Close()
		<-done
	}
}
