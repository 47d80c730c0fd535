package platform

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"sft"
	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/store"
)

// sealBatch is how many events a checkpoint covers at most.
const sealBatch = 500

// auditKey returns the key that signs the audit. It is made when there is none
// that is still good; older ones go on being good for what they have signed.
func (p *Platform) auditKey(ctx context.Context) (*ca.Authority, error) {
	var key *ca.Authority
	newest := func(tx *store.Tx) error {
		records, err := tx.CAs("")
		if err != nil || !slices.ContainsFunc(records, func(r store.CARecord) bool { return r.Kind == string(ca.Audit) && r.NotAfter.After(p.Now()) }) {
			return err
		}
		list, err := p.authorities(tx, "", ca.Audit)
		if err == nil {
			key = list.signer(ca.Audit)
		}
		return err
	}
	if err := p.DB.Read(ctx, newest); err != nil || key != nil {
		return key, err
	}
	there := errors.New("there is one now")
	err := p.DB.Change(ctx, func(tx *store.Tx) (audit.Event, error) {
		if err := newest(tx); err != nil || key != nil {
			return audit.Event{}, errors.Join(err, there)
		}
		if err := p.newCA(tx, store.CARecord{Stage: store.CAActive}, ca.Audit, ""); err != nil {
			return audit.Event{}, err
		}
		if err := newest(tx); err != nil {
			return audit.Event{}, err
		}
		return p.ownEvent(tx, audit.AuditKeyCreate, fmt.Sprintf("%x", key.AuditKey()))
	})
	if err != nil && !(key != nil && errors.Is(err, there)) {
		return nil, err
	}
	return key, nil
}

// sign makes the note of the events after the one that last is of, which ends
// with hash and has the number seq.
func (p *Platform) sign(key *ca.Authority, kind audit.NoteKind, from audit.Note, seq int64, hash audit.Hash) (audit.Note, error) {
	n := audit.Note{Kind: kind, Origin: p.URL, First: from.Last + 1, Last: seq, Previous: from.Hash, Hash: hash,
		Time: p.Now().UTC().Truncate(time.Microsecond), Key: key.AuditKey()}
	var err error
	n.Signature, err = key.SignAudit(n.Message())
	return n, err
}

// Seal numbers, chains and signs the events that are stored and not sealed
// yet, one batch, and returns how many there were. Several platforms on one
// database take turns.
func (p *Platform) Seal(ctx context.Context) (int, error) {
	var open bool
	if err := p.DB.Read(ctx, func(tx *store.Tx) (err error) { open, err = tx.Unsealed(); return err }); err != nil || !open {
		return 0, err
	}
	key, err := p.auditKey(ctx)
	if err != nil {
		return 0, err
	}
	n, err := p.DB.Seal(ctx, sealBatch, func(n store.Notes, last string, list []audit.Record) (audit.Note, error) {
		var from audit.Note
		if last != "" {
			// A note that somebody else wrote is not made good by going on from it.
			if from, err = audit.ParseNote(last); err == nil && !key.AuditKey().Equal(from.Key) {
				err = p.knowsKey(n, from.Key)
			}
			if err != nil {
				return from, fmt.Errorf("the newest checkpoint is not good: %w; run \"sft-platform audit verify\"", err)
			}
		}
		entries := make([]audit.Entry, len(list))
		for i, r := range list {
			entries[i] = r.Entry()
		}
		return p.sign(key, audit.Checkpoint, from, from.Last+int64(len(list)), from.Hash.Chain(from.Last+1, entries))
	})
	if n > 0 {
		p.sealed.news.tell("")
	}
	return n, err
}

// auditKeys returns the public keys that have signed the audit, old ones too.
// What counts is that the master key opens them: anybody can write a row.
func (p *Platform) auditKeys(n store.Notes) ([]ed25519.PublicKey, error) {
	records, err := n.CAs("")
	if err != nil {
		return nil, err
	}
	var keys []ed25519.PublicKey
	for _, r := range records {
		if r.Kind == string(ca.Audit) {
			a, err := ca.Open(ca.Sealed{Kind: ca.Audit, Public: r.Public, Key: r.Sealed, NotAfter: r.NotAfter}, r.ID, p.Sealer)
			if err != nil {
				return nil, err
			}
			keys = append(keys, a.AuditKey())
		}
	}
	return keys, nil
}

// knowsKey refuses a key that is not the platform's. It reads with n: whoever
// seals has one connection, and others may wait for it with all the rest.
func (p *Platform) knowsKey(n store.Notes, k ed25519.PublicKey) error {
	keys, err := p.auditKeys(n)
	if err == nil && !slices.ContainsFunc(keys, func(o ed25519.PublicKey) bool { return o.Equal(k) }) {
		err = errors.New("it is signed by a key that is not this platform's")
	}
	return err
}

// SealStatus is how the sealing of events goes.
type SealStatus struct {
	Seq   int64  // the number of the last event that this platform knows to be sealed
	Error string // why the last try failed, or empty
}

// sealing is what Run knows of the sealing, and whom it wakes.
type sealing struct {
	SealStatus
	gone int64 // the number of the last event that was removed on purpose
	mu   sync.Mutex
	news news // of "", the one chain
}

// AuditSeal tells how the sealing goes.
func (p *Platform) AuditSeal() SealStatus {
	p.sealed.mu.Lock()
	defer p.sealed.mu.Unlock()
	return p.sealed.SealStatus
}

// seal seals until ctx ends.
func (p *Platform) seal(ctx context.Context) {
	wait := pause{every: p.SealEvery, most: time.Minute}
	for {
		n, err := p.Seal(ctx)
		var head int64
		var gone audit.Note
		if err == nil {
			err = p.DB.Read(ctx, func(tx *store.Tx) (err error) {
				if head, err = sealedTo(tx); err == nil {
					gone, err = retained(tx)
				}
				return err
			})
		}
		if ctx.Err() != nil {
			return
		}
		p.sealed.mu.Lock()
		said := p.sealed.Error
		p.sealed.Error = ""
		if err != nil {
			p.sealed.Error = err.Error()
		} else {
			p.sealed.Seq, p.sealed.gone = head, gone.Last
		}
		p.sealed.mu.Unlock()
		switch {
		case err != nil && err.Error() != said:
			p.Log.Error("seal audit events", "error", err)
		case err == nil && said != "":
			p.Log.Info("audit events are sealed again", "seq", head)
		}
		if n < sealBatch && !wait.sleep(ctx, nil, err != nil) {
			return
		}
	}
}

// sealedTo is the number of the last event that is sealed.
func sealedTo(tx *store.Tx) (int64, error) {
	text, err := tx.LastNote()
	if err != nil || text == "" {
		return 0, err
	}
	n, err := audit.ParseNote(text)
	return n.Last, err
}

// A Verified chain is what VerifyAudit found.
type Verified struct {
	First, Last int64 // the events that are there and as they were sealed; Last is 0 without any
	Checkpoints int
	Newest      string // the newest checkpoint
	Leaving     int64  // events that are removed on purpose and are still there, as they were sealed
	Unsealed    int64  // events that are stored and not sealed yet, of which nothing is known
}

// VerifyAudit checks every sealed event of the database against the chain and
// its signatures. kept, unless it is empty, is the text of a checkpoint that
// was kept elsewhere: the chain has to go through it. What does not hold is an
// audit.Break, the first one.
func (p *Platform) VerifyAudit(ctx context.Context, kept string) (Verified, error) {
	var v Verified
	err := p.DB.Read(ctx, func(tx *store.Tx) error {
		c := audit.Chain{}
		var err error
		if c.Keys, err = p.auditKeys(tx.Notes); err != nil {
			return err
		}
		var mark *audit.Note
		if kept != "" {
			n, err := audit.ParseNote(kept)
			if err == nil && !slices.ContainsFunc(c.Keys, func(k ed25519.PublicKey) bool { return k.Equal(n.Key) }) {
				err = errors.New("it is signed by a key that the database does not have")
			}
			if err != nil {
				return fmt.Errorf("the kept checkpoint: %w", err)
			}
			mark = &n
		}
		gone, err := tx.Retention()
		if err != nil {
			return err
		}
		if gone != "" {
			if err := c.Begin(gone); err != nil {
				return err
			}
			if mark != nil && mark.Last < c.Last {
				return fmt.Errorf("the kept checkpoint is of event %d, and all up to %d was removed on purpose; keep a newer one", mark.Last, c.Last)
			}
		}
		v.First = c.Last + 1
		begin := c.Last
		lowest, err := p.verifyLeaving(tx, c)
		if err != nil {
			return err
		}
		v.Leaving = v.First - lowest
		for {
			if mark != nil && mark.Last == c.Last && mark.Hash != c.Hash {
				return &audit.Break{Seq: mark.Last, Why: "the chain is not the one that the kept checkpoint is of: it was made anew"}
			}
			b, err := tx.NextCheckpoint(c.Last)
			if errors.Is(err, store.ErrNotFound) {
				break
			}
			if err != nil {
				return err
			}
			if err := p.verifyBatch(tx, &c, b, 1, mark); err != nil {
				return err
			}
			v.Checkpoints++
			v.Newest = b.Note
		}
		if mark != nil && mark.Last > c.Last {
			return &audit.Break{Seq: c.Last + 1, Why: fmt.Sprintf("everything from here was removed; the kept checkpoint is of event %d", mark.Last)}
		}
		// Numbers that no checkpoint has given.
		switch r, err := tx.Outlier(lowest, c.Last); {
		case errors.Is(err, store.ErrNotFound):
		case err != nil:
			return err
		default:
			return p.broken(tx, r.Seq, nil, &r)
		}
		if c.Last > begin {
			v.Last = c.Last
		}
		v.Unsealed, _, err = tx.CountUnsealed(p.Now())
		return err
	})
	return v, err
}

// verifyLeaving checks the events before the beginning of the chain, which a
// removal that is under way or was interrupted has not come to yet. It takes
// the oldest first, and their checkpoints when all are gone. verifyLeaving
// returns the number of the first that is there.
func (p *Platform) verifyLeaving(tx *store.Tx, c audit.Chain) (int64, error) {
	r, err := tx.Outlier(c.Last+1, math.MaxInt64)
	if errors.Is(err, store.ErrNotFound) || err == nil && r.Seq < 1 {
		return c.Last + 1, nil
	}
	if err != nil {
		return 0, err
	}
	there := &audit.Break{Seq: r.Seq, ID: r.ID, Why: "it was removed on purpose and is there"}
	before := audit.Chain{Keys: c.Keys, Last: r.Seq - 1}
	for begun := false; before.Last < c.Last; begun = true {
		b, err := tx.NextCheckpoint(before.Last)
		if errors.Is(err, store.ErrNotFound) {
			return 0, there
		}
		if err != nil {
			return 0, err
		}
		if !begun { // in the middle of a checkpoint
			n, err := audit.ParseNote(b.Note)
			if err != nil || n.First > r.Seq {
				return 0, there
			}
			before.Last, before.Hash = n.First-1, n.Previous
		}
		if err := p.verifyBatch(tx, &before, b, r.Seq, nil); err != nil {
			return 0, err
		}
	}
	if before.Last != c.Last || before.Hash != c.Hash {
		return 0, there
	}
	return r.Seq, nil
}

// verifyBatch checks the next checkpoint and its events, of which those with
// numbers below lowest are gone.
func (p *Platform) verifyBatch(tx *store.Tx, c *audit.Chain, b store.SealedBatch, lowest int64, mark *audit.Note) error {
	entries, err := audit.UnpackEntries(b.Entries)
	if err != nil {
		return &audit.Break{Seq: c.Last + 1, Why: "the next checkpoint was changed: " + err.Error()}
	}
	before := c.Hash
	n, err := c.Next(b.Note, entries)
	if err != nil {
		return err
	}
	if b.Last != n.Last {
		return &audit.Break{Seq: n.First, Why: fmt.Sprintf("the checkpoint of events %d to %d was changed: it is kept as that of %d", n.First, n.Last, b.Last)}
	}
	if !b.At.Equal(n.Time) {
		return &audit.Break{Seq: n.First, Why: fmt.Sprintf("the checkpoint of events %d to %d was changed: it is kept as of another time", n.First, n.Last)}
	}
	lowest = max(lowest, n.First)
	records, err := tx.Records(lowest, n.Last)
	if err != nil {
		return err
	}
	if seq, now := audit.Compare(lowest, entries[lowest-n.First:], records); seq != 0 {
		return p.broken(tx, seq, &entries[seq-n.First], now)
	}
	// The kept checkpoint may end inside this batch of another chain.
	if mark != nil && mark.Last >= n.First && mark.Last < n.Last && before.Chain(n.First, entries[:mark.Last-n.First+1]) != mark.Hash {
		return &audit.Break{Seq: mark.Last, Why: "the chain is not the one that the kept checkpoint is of: it was made anew"}
	}
	return nil
}

// broken tells what was done at the number seq: was is what was sealed there,
// now what is there; either may be nothing.
func (p *Platform) broken(tx *store.Tx, seq int64, was *audit.Entry, now *audit.Record) error {
	if was != nil && now != nil && now.ID == was.ID {
		why := "it was changed"
		if now.Entry() == *was {
			why += ": its column " + now.Off + " does not say what the event says"
		}
		return &audit.Break{Seq: seq, ID: was.ID, Why: why}
	}
	if now != nil {
		sealed, err := sealedAs(tx, now.ID)
		if err != nil {
			return err
		}
		if sealed == 0 {
			return &audit.Break{Seq: seq, ID: now.ID, Why: "it was inserted: it was never sealed"}
		}
		if was == nil {
			return &audit.Break{Seq: seq, ID: now.ID, Why: fmt.Sprintf("it was moved from number %d", sealed)}
		}
	}
	switch r, err := tx.Record(was.ID); {
	case errors.Is(err, store.ErrNotFound):
		return &audit.Break{Seq: seq, ID: was.ID, Why: "it was removed"}
	case err != nil:
		return err
	case r.Seq == 0:
		return &audit.Break{Seq: seq, ID: was.ID, Why: "its number was taken away"}
	default:
		return &audit.Break{Seq: seq, ID: was.ID, Why: fmt.Sprintf("it was moved to number %d: the order was changed", r.Seq)}
	}
}

// sealedAs is the number under which the checkpoints have an event, or 0. They
// are searched one by one: it is for what is broken.
func sealedAs(tx *store.Tx, id string) (int64, error) {
	for after := int64(0); ; {
		b, err := tx.NextCheckpoint(after)
		if errors.Is(err, store.ErrNotFound) {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
		after = b.Last
		entries, err := audit.UnpackEntries(b.Entries)
		if err != nil {
			continue // the check of its own finds it
		}
		if i := slices.IndexFunc(entries, func(e audit.Entry) bool { return e.ID == id }); i >= 0 {
			return b.Last - int64(len(entries)-1-i), nil
		}
	}
}

// AuditCheckpoint returns the text of the newest signed checkpoint.
func (p *Platform) AuditCheckpoint(ctx context.Context) (string, error) {
	var text string
	err := p.DB.Read(ctx, func(tx *store.Tx) (err error) { text, err = tx.LastNote(); return err })
	if err == nil && text == "" {
		err = &sft.Error{Code: sft.NotFound, Msg: "nothing is sealed yet", Hint: "start the platform: it seals each second"}
	}
	return text, err
}
