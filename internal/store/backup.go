package store

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"sft"
)

// The records of a database, as Dump writes and Load reads them, are lines of
// JSON that say nothing of the kind of database. For each table there is
//
//	{"table":"teams","columns":["id","name",…]}
//
// and then a line for each row, its values in the order of the columns: text
// as a string, bytes as base64, numbers, true and false, and null. A table
// comes after those that its rows point to. The last line has the number of
// rows of each table:
//
//	{"end":{"teams":1,…}}
//
// Neither side holds more than a few rows at a time.

// maxLine caps one line, in bytes. The largest rows, servers with their facts
// and events, are bounded far below where they come in.
const maxLine = 16 << 20

// Rows says how many rows each table has.
type Rows map[string]int64

// Sum is how many rows there are in all.
func (r Rows) Sum() (n int64) {
	for _, v := range r {
		n += v
	}
	return n
}

// A line is what is no row.
type line struct {
	Table   string   `json:"table,omitempty"`
	Columns []string `json:"columns,omitempty"`
	End     Rows     `json:"end,omitempty"`
}

// A table is one of the schema's.
type table struct {
	name    string
	columns []string
	kinds   []string
}

// schemaTable is where the version of the schema is; it is no record.
const schemaTable = "goose_db_version"

// tables are those of the schema, each after those that it points to.
func (n Notes) tables() ([]table, error) {
	columns, err := all(n, func(s scanner) (c [3]string, err error) { return c, s.Scan(&c[0], &c[1], &c[2]) }, n.d.columns)
	if err != nil {
		return nil, err
	}
	parents, err := all(n, func(s scanner) (p [2]string, err error) { return p, s.Scan(&p[0], &p[1]) }, n.d.parents)
	if err != nil {
		return nil, err
	}
	var wait []table
	for _, c := range columns {
		if c[0] == schemaTable {
			continue
		}
		if len(wait) == 0 || wait[len(wait)-1].name != c[0] {
			wait = append(wait, table{name: c[0]})
		}
		t := &wait[len(wait)-1]
		t.columns, t.kinds = append(t.columns, c[1]), append(t.kinds, c[2])
	}
	var list []table
	for len(wait) > 0 {
		i := slices.IndexFunc(wait, func(t table) bool {
			return !slices.ContainsFunc(parents, func(p [2]string) bool {
				return p[0] == t.name && slices.ContainsFunc(wait, func(w table) bool { return w.name == p[1] })
			})
		})
		if i < 0 {
			return nil, fmt.Errorf("table %s and others point to each other, which no backup has", wait[0].name)
		}
		list, wait = append(list, wait[i]), slices.Delete(wait, i, i+1)
	}
	return list, nil
}

// names is the list of columns for a statement.
func (t table) names() string { return `"` + strings.Join(t.columns, `", "`) + `"` }

// Schema is the version of the schema, as this transaction sees it.
func (n Notes) Schema() (int64, error) {
	return one(n, func(s scanner) (v int64, err error) { return v, s.Scan(&v) }, `SELECT max(version_id) FROM `+schemaTable)
}

// Dump writes all records to w.
func (tx *Tx) Dump(w io.Writer) (Rows, error) {
	list, err := tx.tables()
	if err != nil {
		return nil, err
	}
	out := bufio.NewWriterSize(w, 64<<10)
	e := json.NewEncoder(out)
	e.SetEscapeHTML(false)
	rows := Rows{}
	for _, t := range list {
		if err := e.Encode(line{Table: t.name, Columns: t.columns}); err != nil {
			return nil, err
		}
		if rows[t.name], err = tx.dump(t, e); err != nil {
			return nil, fmt.Errorf("read table %s: %w", t.name, err)
		}
	}
	if err := e.Encode(line{End: rows}); err != nil {
		return nil, err
	}
	return rows, out.Flush()
}

func (tx *Tx) dump(t table, e *json.Encoder) (n int64, err error) {
	rows, err := tx.tx.QueryContext(tx.ctx, `SELECT `+t.names()+` FROM "`+t.name+`"`)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	into := make([]any, len(t.kinds))
	for i, k := range t.kinds {
		switch k {
		case "text":
			into[i] = new(sql.NullString)
		case "bigint":
			into[i] = new(sql.NullInt64)
		case "boolean":
			into[i] = new(sql.NullBool)
		case "bytea":
			into[i] = new(sql.Null[[]byte])
		default:
			return 0, fmt.Errorf("column %s is of type %s, which no backup has", t.columns[i], k)
		}
	}
	for ; rows.Next(); n++ {
		if err := rows.Scan(into...); err != nil {
			return n, err
		}
		row, size := make([]any, len(into)), 0
		for i, v := range into {
			switch v := v.(type) {
			case *sql.NullString:
				if v.Valid {
					row[i], size = v.String, size+len(v.String)
					if !storable(row[i : i+1]) {
						return n, fmt.Errorf("a text in column %s is not UTF-8", t.columns[i])
					}
				}
			case *sql.NullInt64:
				if v.Valid {
					row[i] = v.Int64
				}
			case *sql.NullBool:
				if v.Valid {
					row[i] = v.Bool
				}
			case *sql.Null[[]byte]:
				if v.Valid {
					row[i], size = base64.StdEncoding.EncodeToString(v.V), size+len(v.V)
				}
			}
		}
		if size > maxLine/8 { // a character may take 6 in JSON
			return n, fmt.Errorf("a row has %d bytes, which no backup has", size)
		}
		if err := e.Encode(row); err != nil {
			return n, err
		}
	}
	return n, rows.Err()
}

// Empty reports whether no platform has its records here.
func (n Notes) Empty() (bool, error) {
	list, err := n.tables()
	if err != nil {
		return false, err
	}
	for _, t := range ownTables {
		if !hasTable(list, t) {
			continue
		}
		some, err := one(n, func(s scanner) (b bool, err error) { return b, s.Scan(&b) }, `SELECT EXISTS (SELECT 1 FROM `+t+`)`)
		if err != nil || some {
			return false, err
		}
	}
	return true, nil
}

// Clear removes all records.
func (tx *Tx) Clear() error {
	list, err := tx.tables()
	if err != nil {
		return err
	}
	for _, t := range slices.Backward(list) {
		if err := tx.add(`DELETE FROM "` + t.name + `"`); err != nil {
			return err
		}
	}
	return nil
}

// Load adds what Dump wrote to a database that has no records and the same
// schema. What is not exactly that is an error, which undoes the transaction.
func (tx *Tx) Load(r io.Reader) (Rows, error) {
	list, err := tx.tables()
	if err != nil {
		return nil, err
	}
	l := loader{tx: tx, list: list, rows: Rows{}}
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 0, 64<<10), maxLine)
	number := 0
	for err = nil; err == nil && in.Scan(); {
		number++
		err = l.line(in.Bytes())
	}
	if err == nil {
		err = in.Err()
	}
	if err == nil && !l.ended {
		err = errors.New("its end is missing")
	}
	if _, known := errors.AsType[*sft.Error](err); err != nil && !known {
		err = &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("the backup is not as it was written, at line %d of its records: %v", number, err), Err: err,
			Hint: "take another backup; nothing was changed"}
	}
	return l.rows, err
}

// A loader is one run of Load.
type loader struct {
	tx    *Tx
	list  []table // those that are still to come
	t     table   // the one whose rows come
	rows  Rows
	ended bool

	batch []any // values of rows that are not stored yet
	size  int   // of them, in bytes
}

// A batch has at most maxBatch rows and maxValues values, which both databases
// take as parameters of one statement, and about batchSize bytes.
const (
	maxBatch  = 200
	maxValues = 30_000
	batchSize = 1 << 20
)

func (l *loader) most() int { return min(maxBatch, maxValues/len(l.t.columns)) }

func (l *loader) line(b []byte) error {
	switch {
	case l.ended:
		return errors.New("something follows its end")
	case !utf8.Valid(b):
		return errors.New("it is not UTF-8")
	case len(b) > 0 && b[0] == '[':
		return l.row(b)
	}
	var v line
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		return err
	}
	if err := l.flush(); err != nil {
		return err
	}
	if v.End != nil {
		l.ended = true
		switch {
		case len(l.list) > 0:
			return fmt.Errorf("table %s is missing", l.list[0].name)
		case !maps.Equal(v.End, l.rows):
			return errors.New("it has not as many rows as were written")
		}
		return nil
	}
	i := slices.IndexFunc(l.list, func(t table) bool { return t.name == v.Table })
	if i < 0 {
		return fmt.Errorf("table %s does not belong here", sft.Quote(v.Table))
	}
	t := l.list[i]
	l.list = slices.Delete(l.list, i, i+1)
	// The order of columns depends on how a database came to its schema.
	kinds := map[string]string{}
	for i, c := range t.columns {
		kinds[c] = t.kinds[i]
	}
	l.t, l.rows[t.name] = table{name: t.name, columns: v.Columns}, 0
	for _, c := range v.Columns {
		k, ok := kinds[c]
		if !ok {
			return fmt.Errorf("column %s does not belong in table %s", sft.Quote(c), t.name)
		}
		l.t.kinds = append(l.t.kinds, k)
		delete(kinds, c)
	}
	for c := range kinds {
		return fmt.Errorf("column %s of table %s is missing", c, t.name)
	}
	return nil
}

func (l *loader) row(b []byte) error {
	var row []cell
	if err := json.Unmarshal(b, &row); err != nil {
		return err
	}
	if l.t.name == "" || len(row) != len(l.t.columns) {
		return errors.New("the row fits no table")
	}
	for i, c := range row {
		v, ok := c.as(l.t.kinds[i])
		if !ok {
			return fmt.Errorf("column %s of table %s is %s, and this is none", l.t.columns[i], l.t.name, l.t.kinds[i])
		}
		l.batch = append(l.batch, v)
	}
	l.rows[l.t.name]++
	l.size += len(b)
	if len(l.batch) >= l.most()*len(l.t.columns) || l.size > batchSize {
		return l.flush()
	}
	return nil
}

// flush stores the batch.
func (l *loader) flush() error {
	if len(l.batch) == 0 {
		return nil
	}
	if !storable(l.batch) {
		return errText
	}
	rows := len(l.batch) / len(l.t.columns)
	var q strings.Builder
	q.WriteString(`INSERT INTO "` + l.t.name + `" (` + l.t.names() + `) VALUES `)
	for i := range l.batch {
		switch {
		case i == 0:
			q.WriteString("(")
		case i%len(l.t.columns) == 0:
			q.WriteString("), (")
		default:
			q.WriteString(", ")
		}
		q.WriteString("$" + strconv.Itoa(i+1))
	}
	q.WriteString(")")
	r, err := l.tx.tx.ExecContext(l.tx.ctx, q.String(), l.batch...)
	if err != nil {
		return fmt.Errorf("store rows of table %s: %w", l.t.name, err)
	}
	if n, err := r.RowsAffected(); err != nil || n != int64(rows) {
		return errors.Join(err, fmt.Errorf("%d of %d rows of table %s were stored", n, rows, l.t.name))
	}
	l.batch, l.size = l.batch[:0], 0
	return nil
}

// A cell is one value of a row: nil, a bool, an int64 or a string.
type cell struct{ v any }

// UnmarshalJSON takes what a row may have, and nothing else.
func (c *cell) UnmarshalJSON(b []byte) (err error) {
	switch b[0] {
	case 'n':
		c.v = nil
	case 't', 'f':
		c.v = b[0] == 't'
	case '"':
		var s string
		err = json.Unmarshal(b, &s)
		c.v = s
	default:
		c.v, err = strconv.ParseInt(string(b), 10, 64)
	}
	return err
}

// as is the value for a column of a kind.
func (c cell) as(kind string) (v any, ok bool) {
	switch v := c.v.(type) {
	case nil:
		return nil, true
	case bool:
		return v, kind == "boolean"
	case int64:
		return v, kind == "bigint"
	case string:
		if kind == "bytea" {
			b, err := base64.StdEncoding.Strict().DecodeString(v)
			return b, err == nil
		}
		return v, kind == "text"
	}
	return nil, false
}

// The room that AfterRestore leaves.
const (
	revisionRoom = 1 << 20 // changes of a project
	idRoom       = 1000    // people and groups of a team
)

// AfterRestore makes records safe that are older than the world: what was
// revoked, used or given away since they were written is not in them. Everybody
// is signed out, and one-time links are void, so that a client or a link that
// was revoked must prove itself anew; each project's revision is beyond any
// that an agent may have seen, so that all agents take their state anew; and
// no uid or gid is given that may have been given since.
func (tx *Tx) AfterRestore() error {
	for _, q := range []string{
		`DELETE FROM web_sessions`,
		`DELETE FROM sign_ins`,
		`DELETE FROM first_uses`,
		`UPDATE clients SET signed_in_until = 0`,
		fmt.Sprintf(`UPDATE projects SET revision = revision + %d`, revisionRoom),
		fmt.Sprintf(`UPDATE teams SET next_uid = next_uid + %d, next_gid = next_gid + %d`, idRoom, idRoom),
	} {
		if err := tx.add(q); err != nil {
			return err
		}
	}
	return nil
}

// Convert copies records of an older schema, which it brings to the newest on
// the way, in a SQLite database of its own in a folder that is empty.
func Convert(ctx context.Context, dir string, schema int64, r io.Reader, w io.Writer) error {
	db, err := OpenAt(ctx, "sqlite:"+filepath.Join(dir, "records.db"), schema)
	if err != nil {
		return err
	}
	defer db.Close()
	if err := db.in(ctx, db.write, nil, "load", "", func(n Notes) error {
		tx := &Tx{Notes: n}
		if err := tx.Clear(); err != nil { // what migrations made is among the records
			return err
		}
		_, err := tx.Load(r)
		return err
	}); err != nil {
		return err
	}
	if err := db.Migrate(ctx, 0); err != nil {
		return fmt.Errorf("bring the records up to date: %w", err)
	}
	return db.Read(ctx, func(tx *Tx) error {
		_, err := tx.Dump(w)
		return err
	})
}
