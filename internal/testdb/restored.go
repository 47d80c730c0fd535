package testdb

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Records are the rows of a dump by table, each as a line of JSON, sorted.
type Records map[string][]string

// ReadDump reads what store.Tx.Dump writes. Of each row is kept what keep
// returns, by column, or nothing if that is nil.
func ReadDump(t testing.TB, dump string, keep func(table string, row map[string]any) map[string]any) Records {
	t.Helper()
	all := Records{}
	table, columns := "", []string(nil)
	for line := range strings.Lines(dump) {
		d := json.NewDecoder(strings.NewReader(line))
		d.UseNumber()
		if line[0] == '{' {
			var head struct {
				Table   string
				Columns []string
			}
			if err := d.Decode(&head); err != nil {
				t.Fatal(err)
			}
			table, columns = head.Table, head.Columns
			continue
		}
		var values []any
		if err := d.Decode(&values); err != nil || len(values) != len(columns) {
			t.Fatalf("%s: %v, %d values for %d columns", table, err, len(values), len(columns))
		}
		row := map[string]any{}
		for i, c := range columns {
			row[c] = values[i]
		}
		if row = keep(table, row); row != nil {
			b, err := json.Marshal(row)
			if err != nil {
				t.Fatal(err)
			}
			all[table] = append(all[table], string(b))
		}
	}
	for _, rows := range all {
		slices.Sort(rows)
	}
	return all
}

// Restored is what store.Tx.AfterRestore is to make of a row, and nothing else.
func Restored(table string, row map[string]any) map[string]any {
	add := func(column string, n int64) {
		v, err := strconv.ParseInt(fmt.Sprint(row[column]), 10, 64)
		if err != nil {
			panic(err) // a test's: the column is gone, or no number
		}
		row[column] = json.Number(fmt.Sprint(v + n))
	}
	switch table {
	case "web_sessions", "sign_ins", "first_uses":
		return nil
	case "clients":
		add("signed_in_until", 0)
		row["signed_in_until"] = json.Number("0")
	case "projects":
		add("revision", 1<<20)
	case "teams":
		add("next_uid", 1000)
		add("next_gid", 1000)
	}
	return row
}

// Compare says where two sets of records differ.
func Compare(t testing.TB, got, want Records) {
	t.Helper()
	for table, rows := range want {
		if !slices.Equal(got[table], rows) {
			t.Errorf("table %s has\n%s\nwant\n%s", table, strings.Join(got[table], "\n"), strings.Join(rows, "\n"))
		}
	}
	for table, rows := range got {
		if len(want[table]) == 0 {
			t.Errorf("table %s has %d rows, want none", table, len(rows))
		}
	}
}
