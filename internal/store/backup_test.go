package store_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"sft"
	"sft/internal/audit"
	"sft/internal/store"
	"sft/internal/testdb"
)

var errEnough = errors.New("that was all")

// everything is the records of a database that has two rows in each table,
// with what is hard to carry in them.
func everything(t testing.TB, db *store.DB) string {
	t.Helper()
	var b strings.Builder
	e := json.NewEncoder(&b)
	rows := map[string]int{}
	if err := db.Read(t.Context(), func(tx *store.Tx) error {
		list, err := tx.Tables()
		for _, table := range list {
			e.Encode(struct {
				Table   string   `json:"table"`
				Columns []string `json:"columns"`
			}{table.Name, table.Columns})
			for i, text := range []string{"x", "\"\u00dcnal\" <&> \U0001F600\n\u2028"} {
				row := make([]any, len(table.Columns))
				for j, k := range table.Kinds {
					// Keys fit, since each text is the same everywhere.
					row[j] = map[string]any{"text": text, "bigint": []int64{1, 1<<62 + 1}[i], "boolean": i == 0, "bytea": [][]byte{{}, {0, 255, '\n'}}[i]}[k]
					if table.Columns[j] == "deleted_at" && i == 0 {
						row[j] = nil
					}
				}
				e.Encode(row)
			}
			rows[table.Name] = 2
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	e.Encode(map[string]any{"end": rows})
	return b.String()
}

func dump(t testing.TB, db *store.DB) string {
	t.Helper()
	var b bytes.Buffer
	if err := db.Read(t.Context(), func(tx *store.Tx) error { _, err := tx.Dump(&b); return err }); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// sorted are the lines of a dump, each table's rows in one order.
func sorted(dump string) string {
	var out []string
	from := 0
	for l := range strings.Lines(dump) {
		if l[0] == '{' {
			slices.Sort(out[from:])
			from = len(out) + 1
		}
		out = append(out, l)
	}
	return strings.Join(out, "")
}

// loads puts records into a database with nothing but them.
func loads(ctx context.Context, db *store.DB, r io.Reader) (rows store.Rows, err error) {
	err = store.Alone(ctx, db, func(tx *store.Tx) (err error) { rows, err = tx.Load(r); return err })
	return rows, err
}

// What is dumped of one kind of database is the same in the other, in each
// table, column and row.
func TestDumpGoesAcross(t *testing.T) {
	kinds := map[string]func(testing.TB) string{"sqlite": testdb.SQLite, "postgres": testdb.Postgres}
	for from, newFrom := range kinds {
		for to, newTo := range kinds {
			if to == from {
				continue
			}
			t.Run(from+" to "+to, func(t *testing.T) {
				a, b := open(t, newFrom(t)), open(t, newTo(t))
				all := everything(t, a)
				rows, err := loads(t.Context(), a, strings.NewReader(all))
				if err != nil {
					t.Fatal(err)
				}
				first := dump(t, a)
				if int(rows.Sum()) != 2*len(rows) || len(rows) < 20 {
					t.Errorf("%d tables with %d rows", len(rows), rows.Sum())
				}
				if got, want := values(t, first), values(t, all); got != want {
					t.Errorf("what was stored is\n%s\nwant\n%s", got, want)
				}
				if _, err := loads(t.Context(), b, strings.NewReader(first)); err != nil {
					t.Fatal(err)
				}
				if got := dump(t, b); sorted(got) != sorted(first) {
					t.Errorf("after it went across\n%s\nwant\n%s", got, first)
				}
			})
		}
	}
}

// After a restore, each row of each table is as it was, but for what is taken
// back on purpose.
func TestAfterRestore(t *testing.T) {
	testdb.Each(t, func(t *testing.T, url string) {
		db := open(t, url)
		all := everything(t, db)
		if err := store.Alone(t.Context(), db, func(tx *store.Tx) error {
			if _, err := tx.Load(strings.NewReader(all)); err != nil {
				return err
			}
			return tx.AfterRestore()
		}); err != nil {
			t.Fatal(err)
		}
		got := testdb.ReadDump(t, dump(t, db), func(_ string, row map[string]any) map[string]any { return row })
		if len(got) < 20 {
			t.Errorf("only %d tables have rows", len(got))
		}
		testdb.Compare(t, got, testdb.ReadDump(t, all, testdb.Restored))
	})
}

// values is a dump with JSON written one way, sorted.
func values(t *testing.T, dump string) string {
	var b strings.Builder
	for l := range strings.Lines(dump) {
		d := json.NewDecoder(strings.NewReader(l))
		d.UseNumber()
		var v any
		if err := d.Decode(&v); err != nil {
			t.Fatal(err)
		}
		json.NewEncoder(&b).Encode(v)
	}
	return sorted(b.String())
}

// A dump is of one moment, however many write meanwhile.
func TestDumpWhileOthersWrite(t *testing.T) {
	testdb.Each(t, func(t *testing.T, url string) {
		db := open(t, url)
		ctx, stop := context.WithCancel(t.Context())
		var writers sync.WaitGroup
		wrote := make(chan struct{}, 1)
		for w := range 3 {
			writers.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					e := event(audit.UserUpdate)
					e.Target = fmt.Sprint(w, "-", i)
					err := db.Change(context.Background(), func(tx *store.Tx) (audit.Event, error) { return e, tx.SetSetting(e.Target, e.ID) })
					if err != nil {
						t.Error(err)
						return
					}
					select {
					case wrote <- struct{}{}:
					default:
					}
				}
			})
		}
		for range 5 {
			<-wrote
			got := map[string]bool{}
			for l := range strings.Lines(dump(t, db)) {
				var row []any
				if json.Unmarshal([]byte(l), &row) != nil {
					continue
				}
				id := row[0].(string) // of an event
				if len(row) == 2 {
					id = row[1].(string) // which a setting has as its value
				}
				got[id] = !got[id]
			}
			for id, alone := range got {
				if alone {
					t.Errorf("event and setting %s are not both there", id)
				}
			}
		}
		stop()
		writers.Wait()
	})
}

// What is not exactly what was written is refused, and nothing of it stored.
func TestLoadRefuses(t *testing.T) {
	const teams = `{"table":"teams","columns":["id","name","name_fold","created_at","client_session","allow_device_code","next_uid","next_gid","web_session"]}` + "\n"
	replace := func(old, new string) func(string) string {
		return func(s string) string {
			if !strings.Contains(s, old) {
				panic(old + " is not there")
			}
			return strings.Replace(s, old, new, 1)
		}
	}
	cut := func(n int) func(string) string { return func(s string) string { return s[:len(s)-n] } }
	tests := []struct {
		name   string
		change func(string) string
		want   string
	}{
		{"nothing", func(string) string { return "" }, "its end is missing"},
		{"half of it", func(s string) string { return s[:strings.LastIndex(s[:len(s)/2], "\n")+1] }, "its end is missing"},
		{"a line that is cut", cut(5), "unexpected EOF"},
		{"a row that is missing", replace(`["x","x"]`+"\n", ""), "it has not as many rows as were written"},
		{"a row that is there twice", replace(`["x","x"]`, `["x","x"]`+"\n"+`["x","x"]`), "store rows of table"},
		{"a table that is missing", func(s string) string {
			before, after, _ := strings.Cut(s, `{"table":"used_ids"`)
			after = strings.SplitN(after, "\n", 4)[3]
			return before + strings.Replace(after, `"used_ids":2,`, "", 1)
		}, "table used_ids is missing"},
		{"a table of its own", replace(`{"table":"teams"`, `{"table":"goose_db_version"`), `table "goose_db_version" does not belong here`},
		{"a table twice", replace(teams, teams+teams), `table "teams" does not belong here`},
		{"an unknown column", replace(`"next_uid"`, `"next_uid\" FROM x"`), "does not belong in table teams"},
		{"a column that is missing", replace(`,"next_uid"`, ``), "column next_uid of table teams is missing"},
		{"a row too short", replace(`["x","x"]`, `["x"]`), "the row fits no table"},
		{"a number for a text", replace(`["x","x"]`, `["x",7]`), "is text, and this is none"},
		{"a fraction", replace(`4611686018427387905`, `0.5`), "invalid syntax"},
		{"a list for a text", replace(`["x","x"]`, `["x",[]]`), "invalid syntax"},
		{"null where there must be something", replace(`["x","x"]`, `["x",null]`), "store rows of table"},
		{"a text with the character 0", replace(`["x","x"]`, `["x","\u0000"]`), "cannot be stored"},
		{"bytes that are none", replace(`"AP8K"`, `"AP8L="`), "is bytea, and this is none"},
		{"a key to nothing", func(s string) string {
			return strings.Replace(s, strings.SplitAfter(s, teams)[1][:strings.Index(strings.SplitAfter(s, teams)[1], "\n")], `["z","x","x",1,1,true,1,1,1]`, 1)
		}, "store rows of table"},
		{"what is no JSON", replace(teams, teams+"nonsense\n"), "invalid character"},
		{"an unknown key", replace(`{"table":"teams",`, `{"table":"teams","more":1,`), "unknown field"},
		{"something after the end", func(s string) string { return s + "[]\n" }, "something follows its end"},
		{"a line without end", func(s string) string { return s + strings.Repeat("[", 17<<20) }, "token too long"},
		{"bytes that are no text", replace(`["x","x"]`, "[\"x\",\"\xff\"]"), "it is not UTF-8"},
	}
	testdb.Each(t, func(t *testing.T, url string) {
		db := open(t, url)
		whole := everything(t, db)
		empty := dump(t, db)
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				_, err := loads(t.Context(), db, strings.NewReader(tt.change(whole)))
				e, ok := errors.AsType[*sft.Error](err)
				if !ok || e.Code != sft.Invalid || e.Hint == "" || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("the error is %v, want %q", err, tt.want)
				}
				if got := dump(t, db); got != empty {
					t.Errorf("stored is\n%s", got)
				}
			})
		}
		if _, err := loads(t.Context(), db, strings.NewReader(whole)); err != nil {
			t.Errorf("without a change: %v", err)
		}
	})
}

// FuzzLoad checks that whatever the records are, they are taken whole, and are
// then what the database has, or refused with an error that can be shown, and
// nothing is stored.
func FuzzLoad(f *testing.F) {
	db, err := store.Open(f.Context(), testdb.SQLite(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { db.Close() })
	whole := everything(f, db)
	for _, s := range []string{whole, "", "{}", "[]", `{"end":{}}`, whole[:len(whole)/2], strings.Replace(whole, "true", "null", 1), strings.Replace(whole, `"x"`, `"\ud800"`, 1)} {
		f.Add([]byte(s))
	}
	empty := dump(f, db)
	f.Fuzz(func(t *testing.T, data []byte) {
		var rows store.Rows
		var got bytes.Buffer
		err := store.Alone(context.Background(), db, func(tx *store.Tx) (err error) {
			if rows, err = tx.Load(bytes.NewReader(data)); err != nil {
				return err
			}
			n, err := tx.Dump(&got)
			if err == nil && n.Sum() != rows.Sum() {
				t.Errorf("%d rows were taken, and %d are there", rows.Sum(), n.Sum())
			}
			return errors.Join(err, errEnough)
		})
		if !errors.Is(err, errEnough) {
			if e, ok := errors.AsType[*sft.Error](err); !ok || e.Code != sft.Invalid || e.Hint == "" {
				t.Errorf("%T %v, want a refusal with a hint", err, err)
			}
		}
		if dump(t, db) != empty {
			t.Error("something was stored")
		}
	})
}

// Records of an older schema come out as the migrations make them.
func TestConvert(t *testing.T) {
	old, err := store.OpenAt(t.Context(), testdb.SQLite(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	var b bytes.Buffer
	if err := store.Convert(t.Context(), t.TempDir(), 1, strings.NewReader(everything(t, old)), &b); err != nil {
		t.Fatal(err)
	}
	testdb.Each(t, func(t *testing.T, url string) {
		db := open(t, url)
		if _, err := loads(t.Context(), db, bytes.NewReader(b.Bytes())); err != nil {
			t.Fatal(err)
		}
		if err := db.Read(t.Context(), func(tx *store.Tx) error {
			p, err := tx.ProjectByID("x")
			if want := (sft.Channels{Clipboard: true, Devices: true, Audio: true, OtherDynamic: true}); p.Channels != want {
				t.Errorf("channels are %+v, want what the migration says", p.Channels)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	})
	if err := store.Convert(t.Context(), t.TempDir(), 1, strings.NewReader("{}"), io.Discard); err == nil {
		t.Error("what is no dump was converted")
	}
}

// A database of a newer version is left alone.
func TestNewerSchema(t *testing.T) {
	testdb.Each(t, func(t *testing.T, url string) {
		open(t, url).Close()
		if _, err := testdb.Raw(t, url).Exec(`INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, true)`); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Open(t.Context(), url); sft.CodeOf(err) != sft.Invalid || !strings.Contains(err.Error(), "by a newer version") {
			t.Errorf("open: %v", err)
		}
		db, err := store.Attach(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if have, newest, err := db.Versions(t.Context()); err != nil || have != 99999 || newest < 7 {
			t.Errorf("versions %d, %d, %v", have, newest, err)
		}
	})
}

const loaderEnv = "SFT_TEST_LOADER"

// load loads what is on standard input, and says how much it has read.
func load(url string) error {
	ctx := context.Background()
	db, err := store.Open(ctx, url)
	if err != nil {
		return err
	}
	if _, err := loads(ctx, db, &counted{r: os.Stdin}); err != nil {
		return err
	}
	fmt.Println("stored")
	select {}
}

// A counted reader says how much was read of it.
type counted struct {
	r io.Reader
	n int
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += n
	fmt.Println(c.n)
	return n, err
}

// After kill -9 the database is empty, or it has all records.
func TestKilledWhileLoading(t *testing.T) {
	testdb.Each(t, func(t *testing.T, url string) {
		db := open(t, url)
		var many strings.Builder
		for i := range 600 {
			fmt.Fprintf(&many, `["e%d",1,"t","k","","%s",null,"","",null]`+"\n", i, strings.Repeat("b", 400))
		}
		const at = `{"table":"events","columns":["id","at","team","kind","source","body","seq","who","target","session"]}` + "\n"
		whole := everything(t, db)
		if !strings.Contains(whole, at) {
			t.Fatal("events are not as they were")
		}
		whole = strings.Replace(strings.Replace(whole, at, at+many.String(), 1), `"events":2`, `"events":602`, 1)
		empty := dump(t, db)
		for _, until := range []func(string) bool{
			func(said string) bool { var n int; fmt.Sscan(said, &n); return n > len(whole)/10 },
			func(said string) bool { var n int; fmt.Sscan(said, &n); return n == len(whole) },
			func(said string) bool { return said == "stored" },
		} {
			cmd := exec.Command(os.Args[0], "-test.run=^$")
			cmd.Env = append(os.Environ(), loaderEnv+"="+url)
			cmd.Stdin, cmd.Stderr = strings.NewReader(whole), os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			last := ""
			for lines := bufio.NewScanner(out); lines.Scan(); {
				if last = lines.Text(); until(last) {
					cmd.Process.Kill()
				}
			}
			cmd.Wait()
			got := dump(t, db)
			if got != empty && strings.Count(got, "\n") != strings.Count(whole, "\n") {
				t.Errorf("after %q it has %d lines of %d", last, strings.Count(got, "\n"), strings.Count(whole, "\n"))
			}
			if last == "stored" && got == empty {
				t.Error("what was said to be stored is lost")
			}
			if got != empty {
				break
			}
		}
	})
}
