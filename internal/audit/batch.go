package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// A Batch is sealed events in the order of their numbers, and the checkpoints
// that cover them.
type Batch struct {
	Records []Record
	Notes   []Note
}

// Lines returns what is exported, each without a line's end: an event as
// {"seq": its number, "event": the very JSON that was hashed}, a checkpoint,
// behind its last event, as {"checkpoint": its text}.
func (b Batch) Lines() [][]byte {
	var lines [][]byte
	b.Each(func(r Record) { lines = append(lines, r.Line()) }, func(n Note) { lines = append(lines, n.Line()) })
	return lines
}

// Each calls one of the two for each thing in the batch, in order.
func (b Batch) Each(event func(Record), checkpoint func(Note)) {
	notes := b.Notes
	for _, r := range b.Records {
		for ; len(notes) > 0 && notes[0].Last < r.Seq; notes = notes[1:] {
			checkpoint(notes[0])
		}
		event(r)
	}
	for _, n := range notes {
		checkpoint(n)
	}
}

// Line is the event as one line of JSON. A body that somebody has made into
// something else is still one line: then it is a text.
func (r Record) Line() []byte {
	var body bytes.Buffer
	if json.Compact(&body, []byte(r.Body)) != nil {
		body.Reset()
		text, _ := json.Marshal(r.Body) // a string: cannot fail
		body.Write(text)
	}
	return fmt.Appendf(nil, `{"seq":%d,"event":%s}`, r.Seq, body.Bytes())
}

// Line is the note as one line of JSON.
func (n Note) Line() []byte {
	text, _ := json.Marshal(n.Text()) // a string: cannot fail
	return fmt.Appendf(nil, `{"checkpoint":%s}`, text)
}
