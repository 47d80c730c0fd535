package store

import (
	"context"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
)

// columns is what a row of events has beside the event's id and JSON, so that
// lists are quick.
type columns struct {
	at                              int64
	team, kind, source, who, target string
	session                         sql.NullString // most events are of none
}

func columnsOf(e audit.Event) columns {
	who := e.Actor.Name
	if u := e.Detail["user"]; u != "" && e.Actor.Kind == "server" {
		who = u // what a host tells of is somebody's
	}
	session := findable(e.Session)
	return columns{micros(e.Time), e.Team, string(e.Kind), e.Source, findable(who), findable(e.Target), sql.NullString{String: session, Valid: session != ""}}
}

// maxFindable caps what is indexed of a text that may be a stranger's, in
// bytes: PostgreSQL refuses rows with more than some 2,700.
const maxFindable = 200

// findable is how who and whom are compared: folded, as in JSON, and cut.
func findable(s string) string {
	s = sft.Fold(strings.ReplaceAll(string([]rune(s)), "\x00", ""))
	return strings.ToValidUTF8(s[:min(len(s), maxFindable)], "")
}

// AddEvent stores an event outside of what a Change returns, and reports
// whether it was new: an agent may send its own again.
func (tx *Tx) AddEvent(e audit.Event) (added bool, err error) {
	query, args, err := insertEvent(e)
	if err != nil {
		return false, err
	}
	n, err := tx.exec(query, args...)
	return n > 0, err
}

// addEvent is AddEvent of what goes with the commit.
func (tx *Tx) addEvent(e audit.Event, done func(rows int64)) error {
	query, args, err := insertEvent(e)
	if err != nil {
		return err
	}
	return tx.later(done, query, args...)
}

func insertEvent(e audit.Event) (query string, args []any, err error) {
	if err := e.Check(); err != nil {
		return "", nil, err
	}
	c := columnsOf(e)
	return `INSERT INTO events (id, at, team, kind, source, who, target, session, body) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING`,
		[]any{e.ID, c.at, c.team, c.kind, c.source, c.who, c.target, c.session, toJSON(e)}, nil
}

// An EventQuery says which events of a team are meant. What is empty does not
// matter.
type EventQuery struct {
	Team         string
	Kind         audit.Kind
	Who          string    // who did it or, of what a host tells, whose it is
	Target       string    // what was acted on
	Session      string    // in whose course it was, or for which
	From, Before time.Time // when it was stored, by its id, in milliseconds
	After        string    // the id of the last event of the page before
	Count        int       // at most so many
	Descending   bool      // the newest first
	// Numbered leaves out what is not sealed, and puts the rest in the order of
	// its numbers: nothing is ever added but at the end. It is for reading
	// forward, and not with Before or Descending.
	Numbered bool
	after    int64 // the number to go on from, if Numbered
}

// sql is the text of the query and its arguments. A page costs what is in it,
// however many events there are: each of the four filters has an index in each
// order of pages, and "|| ”" keeps the databases from a worse one.
func (q EventQuery) sql() (string, []any) {
	args := []any{q.Team}
	where := `team = $1`
	add := func(cond string, v any) {
		args = append(args, v)
		where += fmt.Sprintf(" AND "+cond+" $%d", len(args))
	}
	other := ""
	for _, c := range []struct{ column, value string }{{"session", findable(q.Session)}, {"target", findable(q.Target)}, {"who", findable(q.Who)}, {"kind", string(q.Kind)}} {
		if c.value != "" {
			add(c.column+other+" =", c.value)
			other = ` || ''`
		}
	}
	if q.Numbered {
		if !q.From.IsZero() {
			add("id || '' >=", idFrom(q.From))
		}
		add("seq >", q.after)
		args = append(args, q.Count)
		return fmt.Sprintf(`SELECT body FROM events WHERE %s ORDER BY seq LIMIT $%d`, where, len(args)), args
	}
	if !q.From.IsZero() {
		add("id >=", idFrom(q.From))
	}
	if !q.Before.IsZero() {
		add("id <", idFrom(q.Before))
	}
	order := "id"
	if q.Descending {
		order = "id DESC"
	}
	if q.After != "" && q.Descending {
		add("id <", q.After)
	} else if q.After != "" {
		add("id >", q.After)
	}
	args = append(args, q.Count)
	return fmt.Sprintf(`SELECT body FROM events WHERE %s ORDER BY %s LIMIT $%d`, where, order, len(args)), args
}

// idFrom is what no UUIDv7 from t on is smaller than (RFC 9562, 5.7).
func idFrom(t time.Time) string {
	ms := min(max(t.UnixMilli(), 0), 1<<48-1)
	return fmt.Sprintf("%08x-%04x", ms>>16, ms&0xffff)
}

// idTime is when an id was made, in milliseconds; of one that is no UUIDv7, the
// beginning of 1970.
func idTime(id string) time.Time {
	u, err := uuid.Parse(id)
	if err != nil {
		return time.UnixMilli(0)
	}
	return time.UnixMilli(int64(binary.BigEndian.Uint64(u[:8]) >> 16))
}

// FindEvents returns a page of events, in the order of their ids or, where that
// is asked for, of their numbers.
func (n Notes) FindEvents(q EventQuery) ([]audit.Event, error) {
	if q.Numbered {
		var err error
		if q.after, err = n.numberBefore(q); err != nil || q.after < 0 {
			return []audit.Event{}, err
		}
	}
	text, args := q.sql()
	return all(n, func(s scanner) (e audit.Event, err error) {
		var body string
		if err = s.Scan(&body); err == nil {
			err = json.Unmarshal([]byte(body), &e)
		}
		return e, err
	}, text, args...)
}

// numberBefore is the number after which a page begins. It is negative where
// nothing that is sealed can be in the page.
func (n Notes) numberBefore(q EventQuery) (int64, error) {
	if q.After != "" {
		// What has no number yet gets one behind all that are given.
		seq, err := one(n, scanCount, `SELECT coalesce(seq, -1) FROM events WHERE id = $1 AND team = $2`, q.After, q.Team)
		if !errors.Is(err, ErrNotFound) {
			return seq, err
		}
		// It was removed since, as all before it were, or lost by a restore.
	}
	if q.From.IsZero() {
		return 0, nil
	}
	// An event has a smaller number than one with a smaller id only if that one
	// was not visible when it was sealed: it was under way, or is of a platform
	// whose clock was behind. So the first number of those from a moment on is one
	// of their first by id, as far as clocks differ.
	text, args := firstSQL(q.Team, idFrom(q.From))
	id, err := one(n, scanText, text, args...)
	if errors.Is(err, ErrNotFound) {
		return -1, nil
	}
	if err != nil {
		return 0, err
	}
	text, args = numberSQL(q.Team, id, idFrom(idTime(id).Add(maxApart)))
	first, err := one(n, scanCount, text, args...)
	return first - 1, err
}

// maxApart is how far apart the ids of two events may be that are sealed in the
// other order: by the clocks of two platforms, with which clients talk that far,
// and by how long one was under way.
const maxApart = api.MaxSkew

// firstSQL asks for the first id of a team from id on.
func firstSQL(team, id string) (string, []any) {
	return `SELECT id FROM events WHERE team = $1 AND id >= $2 ORDER BY id LIMIT 1`, []any{team, id}
}

// numberSQL asks for the smallest number of a team's events with ids from first
// on and before end, 0 if none has one.
func numberSQL(team, first, end string) (string, []any) {
	return `SELECT coalesce(min(seq + 0), 0) FROM events WHERE team = $1 AND id >= $2 AND id < $3`, []any{team, first, end}
}

// Events returns up to count events of a team after the event with the id
// after, or, descending, before it.
func (n Notes) Events(team, after string, count int, descending bool) ([]audit.Event, error) {
	return n.FindEvents(EventQuery{Team: team, After: after, Count: count, Descending: descending})
}

const recordCols = `coalesce(seq, 0), id, at, team, kind, source, who, target, session, body`

func scanRecord(s scanner) (r audit.Record, err error) {
	var c columns
	if err = s.Scan(&r.Seq, &r.ID, &c.at, &c.team, &c.kind, &c.source, &c.who, &c.target, &c.session, &r.Body); err != nil {
		return r, err
	}
	var e audit.Event
	want := columns{}
	if json.Unmarshal([]byte(r.Body), &e) == nil {
		want = columnsOf(e)
	}
	for _, v := range []struct {
		name string
		same bool
	}{{"id", r.ID == e.ID}, {"at", c.at == want.at}, {"team", c.team == want.team}, {"kind", c.kind == want.kind}, {"source", c.source == want.source},
		{"who", c.who == want.who}, {"target", c.target == want.target}, {"session", c.session == want.session}} {
		if !v.same {
			r.Off = v.name
			break
		}
	}
	return r, nil
}

// Unsealed reports whether there are events that no checkpoint covers.
func (n Notes) Unsealed() (bool, error) {
	found, err := all(n, scanRecord, `SELECT `+recordCols+` FROM events WHERE seq IS NULL ORDER BY id LIMIT 1`)
	return len(found) > 0, err
}

// CountUnsealed counts the events that no checkpoint covers, and of them those
// that were made before a time, by their ids.
func (n Notes) CountUnsealed(before time.Time) (all, old int64, err error) {
	if all, err = one(n, scanCount, `SELECT count(*) FROM events WHERE seq IS NULL`); err == nil {
		old, err = one(n, scanCount, `SELECT count(*) FROM events WHERE seq IS NULL AND id < $1`, idFrom(before))
	}
	return all, old, err
}

// Seal gives the next numbers to up to max events that have none, those with
// the smallest ids first, and stores the checkpoint that sign makes of them.
// sign is given the note that the chain goes on from, which is empty at its
// very beginning. All of it is stored or nothing, and one sealer is at work at
// a time. It returns how many events were sealed.
//
// What is not sealed is found by having no number, never by where the last
// batch ended: an event that becomes visible after one with a later id is in
// the next batch.
func (db *DB) Seal(ctx context.Context, max int, sign func(n Notes, last string, list []audit.Record) (audit.Note, error)) (sealed int, err error) {
	err = db.in(ctx, db.write, &sql.TxOptions{Isolation: db.d.write}, "seal", db.d.seal, func(n Notes) error {
		list, err := all(n, scanRecord, `SELECT `+recordCols+` FROM events WHERE seq IS NULL ORDER BY id LIMIT $1`, max)
		if err != nil || len(list) == 0 {
			return err
		}
		list = fitting(list)
		last, err := n.LastNote()
		if err != nil {
			return err
		}
		note, err := sign(n, last, list)
		if err != nil {
			return err
		}
		if note.Count() != int64(len(list)) {
			return fmt.Errorf("the checkpoint is of %d events, not %d", note.Count(), len(list))
		}
		entries := make([]audit.Entry, len(list))
		for i, r := range list {
			entries[i] = r.Entry()
		}
		seq := note.First
		for some := range slices.Chunk(list, maxNumbered) {
			if err := n.number(some, seq); err != nil {
				return err
			}
			seq += int64(len(some))
		}
		sealed = len(list)
		return n.add(`INSERT INTO checkpoints (last_seq, first_seq, at, note, entries) VALUES ($1, $2, $3, $4, $5)`,
			note.Last, note.First, micros(note.Time), note.Text(), audit.PackEntries(entries))
	})
	if err != nil {
		return 0, err
	}
	return sealed, nil
}

// maxNumbered is how many events one statement numbers.
const maxNumbered = 50

// number gives events their numbers, from first on.
func (n Notes) number(list []audit.Record, first int64) error {
	var args []any
	for i, r := range list {
		// Who, whom and in which session: events by a version that had no such
		// columns get them here.
		var e audit.Event
		var c columns
		if json.Unmarshal([]byte(r.Body), &e) == nil {
			c = columnsOf(e)
		}
		args = append(args, r.ID, first+int64(i), c.who, c.target, c.session)
	}
	// Both databases call the columns of VALUES so.
	rows, err := n.exec(`UPDATE events SET seq = v.column2, who = v.column3, target = v.column4, session = v.column5
		FROM (VALUES `+values(len(list), "text", "bigint", "text", "text", "text")+`) AS v WHERE events.id = v.column1 AND seq IS NULL`, args...)
	if err == nil && rows != int64(len(list)) {
		err = fmt.Errorf("%d events went while they were sealed", int64(len(list))-rows)
	}
	return err
}

// values is the list of a VALUES of so many rows with columns of these types,
// whose parameters are numbered from 1.
func values(rows int, types ...string) string {
	all, at := make([]string, rows), 0
	for i := range all {
		row := make([]string, len(types))
		for j, t := range types {
			at++
			row[j] = fmt.Sprintf("CAST($%d AS %s)", at, t)
		}
		all[i] = "(" + strings.Join(row, ", ") + ")"
	}
	return strings.Join(all, ", ")
}

// fillSessions makes the events that were there before the column be found by
// their sessions.
func (n Notes) fillSessions() error {
	type event struct{ id, body string }
	for after := ""; ; {
		list, err := all(n, func(s scanner) (v event, err error) { return v, s.Scan(&v.id, &v.body) },
			`SELECT id, body FROM events WHERE id > $1 AND body LIKE '%"session":"%' ORDER BY id LIMIT $2`, after, maxNumbered)
		if err != nil || len(list) == 0 {
			return err
		}
		var args []any
		for _, v := range list {
			var e audit.Event
			_ = json.Unmarshal([]byte(v.body), &e) // what cannot be read is no migration's to find
			args = append(args, v.id, columnsOf(e).session)
		}
		if err := n.add(`UPDATE events SET session = v.column2 FROM (VALUES `+values(len(list), "text", "text")+`) AS v WHERE events.id = v.column1`, args...); err != nil {
			return err
		}
		after = list[len(list)-1].id
	}
}

// maxSealed is about how much text a batch may have, in bytes: a checkpoint is
// also what is exported at once.
const maxSealed = 256 << 10

// fitting cuts a batch to that, and never to nothing.
func fitting(list []audit.Record) []audit.Record {
	size := 0
	for i, r := range list {
		if size += len(r.Body); size > maxSealed && i > 0 {
			return list[:i]
		}
	}
	return list
}

// LastNote is the text of the note that the chain goes on from: the newest
// checkpoint or, if all were removed on purpose, the note of that. It is empty
// where nothing was ever sealed.
func (n Notes) LastNote() (string, error) {
	text, err := one(n, scanText, `SELECT note FROM checkpoints ORDER BY last_seq DESC LIMIT 1`)
	if errors.Is(err, ErrNotFound) {
		return n.Retention()
	}
	return text, err
}

// Retention is the text of the newest note of what was removed on purpose, or
// empty.
func (n Notes) Retention() (string, error) {
	text, err := one(n, scanText, `SELECT note FROM retention ORDER BY last_seq DESC LIMIT 1`)
	if errors.Is(err, ErrNotFound) {
		return "", nil
	}
	return text, err
}

func scanText(s scanner) (t string, err error) {
	err = s.Scan(&t)
	return t, err
}

// A SealedBatch is a checkpoint as it is stored.
type SealedBatch struct {
	Last    int64     // the number of its last event, as its row says
	At      time.Time // when it was made, as its row says
	Note    string
	Entries []byte // audit.UnpackEntries reads them
}

func scanBatch(s scanner) (b SealedBatch, err error) {
	var at int64
	err = s.Scan(&b.Last, &at, &b.Note, &b.Entries)
	b.At = fromMicros(at)
	return b, err
}

// NextCheckpoint returns the first checkpoint that ends after the event with
// the number after.
func (n Notes) NextCheckpoint(after int64) (SealedBatch, error) {
	return one(n, scanBatch, `SELECT last_seq, at, note, entries FROM checkpoints WHERE last_seq > $1 ORDER BY last_seq LIMIT 1`, after)
}

// FirstCheckpoint returns the first checkpoint, by number, that was made at a
// time from first to last, of those that end no later than the event with the
// number most.
func (n Notes) FirstCheckpoint(first, last time.Time, most int64) (SealedBatch, error) {
	return one(n, scanBatch, firstCheckpoint, micros(first), micros(last), most)
}

// LastCheckpoint returns the last checkpoint, by number, that was made before t
// and ends no later than the event with the number most.
func (n Notes) LastCheckpoint(t time.Time, most int64) (SealedBatch, error) {
	return one(n, scanBatch, lastCheckpoint, micros(t), most)
}

// Both are read along the numbers: those of another time come first, and go.
const (
	firstCheckpoint = `SELECT last_seq, at, note, entries FROM checkpoints WHERE at >= $1 AND at <= $2 AND last_seq <= $3 ORDER BY last_seq LIMIT 1`
	lastCheckpoint  = `SELECT last_seq, at, note, entries FROM checkpoints WHERE at < $1 AND last_seq <= $2 ORDER BY last_seq DESC LIMIT 1`
)

// Records returns the events with the numbers from first to last.
func (n Notes) Records(first, last int64) ([]audit.Record, error) {
	return all(n, scanRecord, `SELECT `+recordCols+` FROM events WHERE seq >= $1 AND seq <= $2 ORDER BY seq`, first, last)
}

// Record returns an event by its id.
func (n Notes) Record(id string) (audit.Record, error) {
	return one(n, scanRecord, `SELECT `+recordCols+` FROM events WHERE id = $1`, id)
}

// Outlier returns an event whose number is below low or above high.
func (n Notes) Outlier(low, high int64) (audit.Record, error) {
	r, err := one(n, scanRecord, `SELECT `+recordCols+` FROM events WHERE seq < $1 ORDER BY seq LIMIT 1`, low)
	if errors.Is(err, ErrNotFound) {
		r, err = one(n, scanRecord, `SELECT `+recordCols+` FROM events WHERE seq > $1 ORDER BY seq LIMIT 1`, high)
	}
	return r, err
}

// Retain stores the note of what is removed on purpose. From then on
// DropRetained removes it.
func (tx *Tx) Retain(n audit.Note) error {
	return tx.add(`INSERT INTO retention (last_seq, note) VALUES ($1, $2)`, n.Last, n.Text())
}

// DropRetained removes up to max of the events that a retention note says are
// removed, the oldest first, or, when there are none left, of their
// checkpoints. It returns how many rows went: none is the end. Nobody seals or
// removes at the same time.
func (db *DB) DropRetained(ctx context.Context, max int) (rows int64, err error) {
	err = db.in(ctx, db.write, &sql.TxOptions{Isolation: db.d.write}, "seal", db.d.seal, func(n Notes) error {
		for _, query := range []string{
			`DELETE FROM events WHERE seq IN (SELECT seq FROM events WHERE seq <= (SELECT max(last_seq) FROM retention) ORDER BY seq LIMIT $1)`,
			`DELETE FROM checkpoints WHERE last_seq IN (SELECT last_seq FROM checkpoints WHERE last_seq <= (SELECT max(last_seq) FROM retention) ORDER BY last_seq LIMIT $1)`,
		} {
			if rows, err = n.exec(query, max); err != nil || rows > 0 {
				return err
			}
		}
		return nil
	})
	return rows, err
}

// An Export is how far an export has come.
type Export struct {
	Name   string
	Seq    int64     // the number of the last event that arrived
	Holder string    // the platform that sends it
	Until  time.Time // and for how long no other may
}

const exportCols = `name, seq, holder, until`

func scanExport(s scanner) (e Export, err error) {
	var at int64
	err = s.Scan(&e.Name, &e.Seq, &e.Holder, &at)
	e.Until = fromMicros(at)
	return e, err
}

// Exports returns all exports that there ever were and that nobody removed.
func (n Notes) Exports() ([]Export, error) {
	return all(n, scanExport, `SELECT `+exportCols+` FROM exports ORDER BY name`)
}

// Export returns one by its name.
func (n Notes) Export(name string) (Export, error) {
	return one(n, scanExport, `SELECT `+exportCols+` FROM exports WHERE name = $1`, name)
}

// AddExport makes an export that begins with the oldest event, unless it is
// there.
func (n Notes) AddExport(name string) error {
	return n.add(`INSERT INTO exports (name, seq, holder, until) VALUES ($1, 0, '', 0) ON CONFLICT DO NOTHING`, name)
}

// HoldExport makes holder the one that sends an export for so long from now,
// and returns where it goes on from. While it is another's, that is ErrExists;
// but one that would hold on for an hour more has had a clock that was ahead.
// With less, two platforms whose clocks differ would take it from each other for
// ever, and each would send what the other does.
func (n Notes) HoldExport(name, holder string, now time.Time, long time.Duration) (Export, error) {
	rows, err := n.exec(`UPDATE exports SET holder = $2, until = $4 WHERE name = $1 AND (holder = $2 OR until <= $3 OR until > $5)`,
		name, holder, micros(now), micros(now.Add(long)), micros(now.Add(long+time.Hour)))
	if err != nil {
		return Export{}, err
	}
	e, err := n.Export(name)
	if err == nil && rows == 0 {
		err = ErrExists
	}
	return e, err
}

// Exported moves an export on from the number where it was: what has the number
// to has arrived. One that is elsewhere by now, as after a restore, is
// ErrNotFound: what it is to send next nobody else can say.
func (n Notes) Exported(name string, from, to int64) error {
	return n.must(`UPDATE exports SET seq = $3 WHERE name = $1 AND seq = $2`, name, from, to)
}

// RemoveExport forgets an export.
func (tx *Tx) RemoveExport(name string) error {
	return tx.must(`DELETE FROM exports WHERE name = $1`, name)
}
