package audit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
)

// A Hash is a SHA-256 (FIPS 180-4). The zero Hash is where a chain begins.
type Hash [sha256.Size]byte

// A Record is an event as it is stored: what is hashed is the very text that
// was written when it happened, so that no later version of the program can
// come to another hash.
type Record struct {
	Seq  int64 // its number in the chain, from 1; 0 is not sealed yet
	ID   string
	Body string // the Event as JSON
	// Off names a column that the database keeps beside the body and that does
	// not say what the body says; empty is none. Lists are made by columns.
	Off string
}

// Entry is what the chain holds of the record.
func (r Record) Entry() Entry {
	return Entry{r.ID, sha256.Sum256([]byte("sft audit event v1\n" + r.Body))}
}

// An Entry is what the chain holds of an event.
type Entry struct {
	ID   string
	Body Hash // of "sft audit event v1\n" and the event's JSON
}

// Next is the chain's hash after the entry with the number seq: SHA-256 over
// "sft audit chain v1\n", the hash before (32 bytes), the number (8 bytes, the
// first is the highest), the length of the id (4 bytes), the id, and the hash
// of the body (32 bytes).
func (h Hash) Next(seq int64, e Entry) Hash {
	b := append([]byte("sft audit chain v1\n"), h[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(seq))
	b = binary.BigEndian.AppendUint32(b, uint32(len(e.ID)))
	b = append(b, e.ID...)
	return sha256.Sum256(append(b, e.Body[:]...))
}

// Chain is the hash after all of the entries, the first of which has the
// number first.
func (h Hash) Chain(first int64, entries []Entry) Hash {
	for i, e := range entries {
		h = h.Next(first+int64(i), e)
	}
	return h
}

// PackEntries is how the entries of a checkpoint are stored: of each the
// length of its id (4 bytes), the id and the hash. They need no signature of
// their own: only they lead from one checkpoint's hash to the next.
func PackEntries(list []Entry) []byte {
	var b []byte
	for _, e := range list {
		b = binary.BigEndian.AppendUint32(b, uint32(len(e.ID)))
		b = append(b, e.ID...)
		b = append(b, e.Body[:]...)
	}
	return b
}

// UnpackEntries is the way back.
func UnpackEntries(b []byte) ([]Entry, error) {
	var list []Entry
	for len(b) > 0 {
		if len(b) < 4 {
			return nil, errEntries
		}
		n := uint64(binary.BigEndian.Uint32(b))
		if b = b[4:]; n+sha256.Size > uint64(len(b)) {
			return nil, errEntries
		}
		e := Entry{ID: string(b[:n])}
		b = b[n+uint64(copy(e.Body[:], b[n:])):]
		list = append(list, e)
	}
	return list, nil
}

var errEntries = errors.New("the list of events is cut short")

// A NoteKind is what a Note says.
type NoteKind string

// The kinds of notes.
const (
	Checkpoint NoteKind = "checkpoint" // these events were sealed
	Retention  NoteKind = "retention"  // these events were removed on purpose
)

// A Note is what the platform signs of a part of the chain. Its text is what
// is stored, kept elsewhere and compared.
type Note struct {
	Kind        NoteKind
	Origin      string // the platform's URL
	First, Last int64  // the events, by number
	Previous    Hash   // the chain before the first
	Hash        Hash   // the chain after the last
	Time        time.Time
	Key         ed25519.PublicKey
	Signature   []byte
}

// signed is the part of the text under the signature (RFC 8032).
func (n Note) signed() string {
	return fmt.Sprintf("sft audit %s v1\norigin %s\nevents %d %d\nprevious %x\nhash %x\ntime %s\nkey %x\n",
		n.Kind, n.Origin, n.First, n.Last, n.Previous, n.Hash, n.Time.UTC().Format(noteTime), []byte(n.Key))
}

const noteTime = "2006-01-02T15:04:05.000000Z"

// Text is the whole note, eight lines.
func (n Note) Text() string { return n.signed() + fmt.Sprintf("signature %x\n", n.Signature) }

// Message is what Sign has to be given a signature of.
func (n Note) Message() []byte { return []byte(n.signed()) }

// errNote is what is no note.
var errNote = errors.New("it is not the text of a checkpoint: eight lines, of which the first is \"sft audit checkpoint v1\"")

// maxNote caps the text of a note, in bytes.
const maxNote = 4 << 10

// ParseNote reads a note, in the one spelling that Text has, and checks that
// it was signed by the key that it names. Whose key that is, is the caller's
// to know.
func ParseNote(text string) (Note, error) {
	var n Note
	if len(text) > maxNote {
		return n, errNote
	}
	lines := strings.Split(text, "\n")
	if len(lines) != 9 {
		return n, errNote
	}
	var previous, hash []byte
	for _, err := range []error{
		value(&n.Kind, lines[0], "sft audit ", " v1"),
		value(&n.Origin, lines[1], "origin ", ""),
		hexValue(&previous, lines[3], "previous ", len(Hash{})),
		hexValue(&hash, lines[4], "hash ", len(Hash{})),
		hexValue((*[]byte)(&n.Key), lines[6], "key ", ed25519.PublicKeySize),
		hexValue(&n.Signature, lines[7], "signature ", ed25519.SignatureSize),
	} {
		if err != nil {
			return n, err
		}
	}
	copy(n.Previous[:], previous)
	copy(n.Hash[:], hash)
	var at string
	err := value(&at, lines[5], "time ", "")
	if err == nil {
		n.Time, err = time.Parse(noteTime, at)
	}
	if _, err2 := fmt.Sscanf(lines[2], "events %d %d", &n.First, &n.Last); err != nil || err2 != nil {
		return n, errNote
	}
	if n.Kind != Checkpoint && n.Kind != Retention || n.First < 1 || n.Last < n.First || n.Text() != text {
		return n, errNote
	}
	if !ed25519.Verify(n.Key, n.Message(), n.Signature) {
		return n, errors.New("its signature is not by the key that it names")
	}
	return n, nil
}

func value[T ~string](to *T, line, prefix, suffix string) error {
	v, ok := strings.CutPrefix(line, prefix)
	if v, ok2 := strings.CutSuffix(v, suffix); ok && ok2 {
		*to = T(v)
		return nil
	}
	return errNote
}

func hexValue(to *[]byte, line, prefix string, size int) error {
	var s string
	if err := value(&s, line, prefix, ""); err != nil {
		return err
	}
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != size {
		return errNote
	}
	*to = b
	return nil
}

// Count is how many events the note tells of.
func (n Note) Count() int64 { return n.Last - n.First + 1 }

// A Break is the first place where a chain does not hold. It is an error.
type Break struct {
	Seq int64
	ID  string // of the event that is concerned; empty where none is
	Why string
}

// Error tells what happened to which event.
func (b *Break) Error() string {
	if b.ID == "" {
		return fmt.Sprintf("at event %d: %s", b.Seq, b.Why)
	}
	return fmt.Sprintf("event %d (%s): %s", b.Seq, b.ID, b.Why)
}

// A Chain is verified from its beginning, one checkpoint after the other.
type Chain struct {
	Keys []ed25519.PublicKey // those that may have signed
	Last int64               // the number of the last event that holds
	Hash Hash                // the chain after it
}

// known checks a note's signature and whose it is.
func (c *Chain) known(text string, kind NoteKind) (Note, error) {
	n, err := ParseNote(text)
	if err != nil {
		return n, err
	}
	if n.Kind != kind {
		return n, errors.New("it is a " + string(n.Kind))
	}
	for _, k := range c.Keys {
		if bytes.Equal(k, n.Key) {
			return n, nil
		}
	}
	return n, errors.New("it is signed by a key that is not this platform's")
}

// Begin starts after the events that were removed on purpose, as the last
// retention note says.
func (c *Chain) Begin(retention string) error {
	n, err := c.known(retention, Retention)
	if err != nil {
		return &Break{Seq: 1, Why: "the note of what was removed on purpose is not good: " + err.Error()}
	}
	c.Last, c.Hash = n.Last, n.Hash
	return nil
}

// Next takes the next checkpoint with its entries and returns its note. It
// looks at no events: see Compare.
func (c *Chain) Next(text string, entries []Entry) (Note, error) {
	n, err := c.known(text, Checkpoint)
	at := c.Last + 1
	switch {
	case err != nil:
		return n, &Break{Seq: at, Why: "the next checkpoint was changed: " + err.Error()}
	case n.First > at:
		return n, &Break{Seq: at, Why: fmt.Sprintf("the checkpoint that begins here was removed; the next begins at %d", n.First)}
	case n.First < at:
		return n, &Break{Seq: at, Why: fmt.Sprintf("the next checkpoint begins at %d, which another covers already", n.First)}
	case n.Previous != c.Hash:
		return n, &Break{Seq: at, Why: "the next checkpoint does not go on where the one before ends: one of the two is of another chain"}
	case n.Count() != int64(len(entries)) || c.Hash.Chain(n.First, entries) != n.Hash:
		return n, &Break{Seq: at, Why: fmt.Sprintf("the list of the checkpoint of events %d to %d was changed", n.First, n.Last)}
	}
	c.Last, c.Hash = n.Last, n.Hash
	return n, nil
}

// Compare holds the records that are numbered first and on against the
// entries that were signed. It returns the first that differs: its number, and
// the record that has the number now, if any. The number is 0 where all is as
// it was.
func Compare(first int64, entries []Entry, records []Record) (seq int64, now *Record) {
	for i, e := range entries {
		seq := first + int64(i)
		if len(records) == 0 || records[0].Seq != seq {
			return seq, nil
		}
		if r := records[0]; r.Entry() != e || r.Off != "" {
			return seq, &r
		}
		records = records[1:]
	}
	return 0, nil
}
