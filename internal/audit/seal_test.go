package audit

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// testKey is always the same, so that what it signs is.
var testKey = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))

func sign(n Note) Note {
	n.Key = testKey.Public().(ed25519.PublicKey)
	n.Signature = ed25519.Sign(testKey, n.Message())
	return n
}

var goldenBodies = []string{
	`{"id":"019caaaa-0000-7000-8000-000000000001","timestamp":"2026-03-01T09:00:00.123456Z","type":"team.create","team_name":"main","actor":{"kind":"platform","name":"init"},"target":"main","outcome":"success"}`,
	`{"id":"019caaaa-0000-7000-8000-000000000002","timestamp":"2026-03-01T09:00:01Z","type":"user.create","team_name":"main","actor":{"kind":"user","name":"ü \u003c\u2028"},"outcome":"refused","detail":{"why":"\u0000"}}`,
	`not JSON at all`,
}

func goldenRecords() []Record {
	var list []Record
	for i, b := range goldenBodies {
		list = append(list, Record{Seq: int64(i + 1), ID: fmt.Sprintf("019caaaa-0000-7000-8000-00000000000%d", i+1), Body: b})
	}
	return list
}

func entriesOf(list []Record) (entries []Entry) {
	for _, r := range list {
		entries = append(entries, r.Entry())
	}
	return entries
}

func goldenNote() Note {
	return sign(Note{Kind: Checkpoint, Origin: "https://sft.example.com", First: 1, Last: 3, Hash: Hash{}.Chain(1, entriesOf(goldenRecords())),
		Time: time.Date(2026, 3, 1, 9, 0, 2, 5000, time.UTC)})
}

// What is hashed, signed, stored and exported never changes: a checkpoint that
// was kept years ago is still compared with what a new version computes.
func TestTheFormatIsTheSameForEver(t *testing.T) {
	var got strings.Builder
	h := Hash{}
	for _, r := range goldenRecords() {
		e := r.Entry()
		h = h.Next(r.Seq, e)
		fmt.Fprintf(&got, "body %x\nchain %x\n", e.Body, h)
	}
	fmt.Fprintf(&got, "%sentries %s\n", goldenNote().Text(), hex.EncodeToString(PackEntries(entriesOf(goldenRecords()))))
	for _, l := range (Batch{goldenRecords(), []Note{goldenNote()}}).Lines() {
		fmt.Fprintf(&got, "%s\n", l)
	}
	want, err := os.ReadFile("testdata/sealed.golden")
	if err != nil || got.String() != string(want) {
		t.Errorf("%v; what is sealed now is\n%s", err, got.String())
	}
}

// A Note has one spelling, and says what it says by a signature alone.
func TestParseNote(t *testing.T) {
	good := goldenNote()
	text := good.Text()
	n, err := ParseNote(text)
	if err != nil || n.Text() != text || n.Hash != good.Hash || n.First != 1 || n.Last != 3 || !n.Time.Equal(good.Time) {
		t.Fatalf("ParseNote = %+v, %v", n, err)
	}
	lines := strings.SplitAfter(text, "\n")
	for i := range 8 {
		for what, bad := range map[string]string{
			"without a line":    strings.Join(slices.Delete(slices.Clone(lines), i, i+1), ""),
			"with a line twice": strings.Join(slices.Insert(slices.Clone(lines), i, lines[i]), ""),
			"with a space more": strings.Join(lines[:i], "") + " " + strings.Join(lines[i:], ""),
			"with CRLF":         strings.Join(lines[:i], "") + strings.Replace(lines[i], "\n", "\r\n", 1) + strings.Join(lines[i+1:], ""),
			"in capitals":       strings.Join(lines[:i], "") + strings.ToUpper(lines[i]) + strings.Join(lines[i+1:], ""),
		} {
			if _, err := ParseNote(bad); err == nil {
				t.Errorf("a note %s was taken: %q", what, bad)
			}
		}
	}
	for what, change := range map[string]func(*Note){
		"kind":     func(n *Note) { n.Kind = Retention },
		"origin":   func(n *Note) { n.Origin = "https://other.example.com" },
		"first":    func(n *Note) { n.First = 2 },
		"last":     func(n *Note) { n.Last = 4 },
		"previous": func(n *Note) { n.Previous[0] = 1 },
		"hash":     func(n *Note) { n.Hash[31] ^= 1 },
		"time":     func(n *Note) { n.Time = n.Time.Add(time.Microsecond) },
		"key":      func(n *Note) { n.Key = slices.Clone(n.Key); n.Key[0] ^= 1 },
	} {
		n := good
		change(&n)
		if _, err := ParseNote(n.Text()); err == nil {
			t.Errorf("a note with another %s was taken", what)
		}
		n = sign(n)
		if _, err := ParseNote(n.Text()); err != nil {
			t.Errorf("a note with another %s, signed: %v", what, err)
		}
	}
	for _, n := range []Note{{Kind: "x", First: 1, Last: 1}, {Kind: Checkpoint, First: 0, Last: 1}, {Kind: Checkpoint, First: 3, Last: 2}, {Kind: Checkpoint, First: 1, Last: 1, Origin: "a\nb"}} {
		if _, err := ParseNote(sign(n).Text()); err == nil {
			t.Errorf("the note %+v was taken", n)
		}
	}
}

// Whatever was written, what ParseNote takes is what Text writes, and signed.
func FuzzParseNote(f *testing.F) {
	f.Add(goldenNote().Text())
	f.Add("sft audit retention v1\n")
	f.Fuzz(func(t *testing.T, text string) {
		if n, err := ParseNote(text); err == nil && (n.Text() != text || !ed25519.Verify(n.Key, n.Message(), n.Signature) || n.Last < n.First) {
			t.Errorf("%q was taken as %+v", text, n)
		}
	})
}

// Whatever was stored, what UnpackEntries takes is what PackEntries writes.
func FuzzUnpackEntries(f *testing.F) {
	f.Add(PackEntries(entriesOf(goldenRecords())))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		if list, err := UnpackEntries(b); err == nil && !bytes.Equal(PackEntries(list), b) {
			t.Errorf("%x was taken as %+v", b, list)
		}
	})
}

// chain makes checkpoints of the given sizes over records that follow from.
func chain(from Note, sizes ...int) (notes []Note, batches [][]Record) {
	for _, size := range sizes {
		var list []Record
		for i := range size {
			seq := from.Last + 1 + int64(i)
			list = append(list, Record{Seq: seq, ID: fmt.Sprint("id", seq), Body: fmt.Sprintf(`{"n":%d}`, seq)})
		}
		from = sign(Note{Kind: Checkpoint, Origin: "o", First: from.Last + 1, Last: from.Last + int64(size), Previous: from.Hash,
			Hash: from.Hash.Chain(from.Last+1, entriesOf(list)), Time: time.Unix(1, 0)})
		notes, batches = append(notes, from), append(batches, list)
	}
	return notes, batches
}

func TestChain(t *testing.T) {
	notes, batches := chain(Note{}, 3, 1, 2)
	other, _ := chain(Note{Hash: Hash{1}}, 2, 2, 2)
	gone := sign(Note{Kind: Retention, First: 1, Last: 3, Hash: notes[0].Hash})
	stranger := notes[1]
	stranger.Key = ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey)
	stranger.Signature = ed25519.Sign(ed25519.NewKeyFromSeed(make([]byte, 32)), stranger.Message())
	wrong := slices.Clone(entriesOf(batches[1]))
	wrong[0].Body[0] ^= 1
	for _, tt := range []struct {
		name string
		gone string
		list []Note
		at   map[int][]Entry // in the place of the note's own
		want string
	}{
		{"whole", "", notes, nil, ""},
		{"from a retention note", gone.Text(), notes[1:], nil, ""},
		{"without its beginning", "", notes[1:], nil, "at event 1: the checkpoint that begins here was removed; the next begins at 4"},
		{"without its middle", "", []Note{notes[0], notes[2]}, nil, "at event 4: the checkpoint that begins here was removed; the next begins at 5"},
		{"one checkpoint twice", "", []Note{notes[0], notes[0]}, nil, "at event 4: the next checkpoint begins at 1, which another covers already"},
		{"going on with another", "", []Note{notes[0], notes[1], other[2]}, nil, "at event 5: the next checkpoint does not go on where the one before ends: one of the two is of another chain"},
		{"a retention note as a checkpoint", "", []Note{gone}, nil, "at event 1: the next checkpoint was changed: it is a retention"},
		{"a checkpoint as a retention note", notes[0].Text(), notes[1:], nil, "at event 1: the note of what was removed on purpose is not good: it is a checkpoint"},
		{"by a stranger", "", []Note{notes[0], stranger}, nil, "at event 4: the next checkpoint was changed: it is signed by a key that is not this platform's"},
		{"with another list", "", notes, map[int][]Entry{1: wrong}, "at event 4: the list of the checkpoint of events 4 to 4 was changed"},
		{"with a shorter list", "", notes, map[int][]Entry{0: entriesOf(batches[0])[:2]}, "at event 1: the list of the checkpoint of events 1 to 3 was changed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := Chain{Keys: []ed25519.PublicKey{testKey.Public().(ed25519.PublicKey)}}
			var err error
			if tt.gone != "" {
				err = c.Begin(tt.gone)
			}
			for i, n := range tt.list {
				var entries []Entry
				for _, b := range batches {
					if b[0].Seq == n.First {
						entries = entriesOf(b)
					}
				}
				if e, ok := tt.at[i]; ok {
					entries = e
				}
				if err == nil {
					_, err = c.Next(n.Text(), entries)
				}
			}
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("it is %q, want %q", got, tt.want)
			}
		})
	}
}

func TestCompare(t *testing.T) {
	_, batches := chain(Note{}, 4)
	for _, tt := range []struct {
		name   string
		change func([]Record) []Record
		want   string
	}{
		{"as it was", func(l []Record) []Record { return l }, "0 "},
		{"changed", func(l []Record) []Record { l[1].Body += " "; return l }, "2 id2"},
		{"a column changed", func(l []Record) []Record { l[2].Off = "team"; return l }, "3 id3"},
		{"another id", func(l []Record) []Record { l[0].ID = "x"; return l }, "1 x"},
		{"removed", func(l []Record) []Record { return slices.Delete(l, 1, 2) }, "2 "},
		{"the last removed", func(l []Record) []Record { return l[:3] }, "4 "},
		{"all removed", func(l []Record) []Record { return nil }, "1 "},
		{"two changed places", func(l []Record) []Record { l[1].ID, l[2].ID = l[2].ID, l[1].ID; return l }, "2 id3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			seq, now := Compare(1, entriesOf(batches[0]), tt.change(slices.Clone(batches[0])))
			got := fmt.Sprint(seq, " ")
			if now != nil {
				got += now.ID
			}
			if got != tt.want {
				t.Errorf("Compare = %q, want %q", got, tt.want)
			}
		})
	}
}
