package store

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/pressly/goose/v3/database"

	"sft"
)

// Newest is the newest version of the schema that this program knows.
func Newest() (int64, error) {
	names, err := migrationFiles()
	if err != nil {
		return 0, err
	}
	return migrationVersion(names[len(names)-1])
}

// migrationFiles are the paths of the migrations, in their order.
func migrationFiles() ([]string, error) {
	names, err := fs.Glob(migrations, "migrations/*.sql")
	slices.Sort(names)
	return names, err
}

func migrationVersion(name string) (int64, error) {
	number, _, _ := strings.Cut(path.Base(name), "_")
	return strconv.ParseInt(number, 10, 64)
}

// Rebuild removes all records, and leaves the newest schema, whichever there
// was: an older one, a newer one, or none. It is undone with the transaction.
// Tables that are no platform's are refused.
func (tx *Tx) Rebuild() error {
	if tx.d.seal != "" { // nobody seals events that are about to go
		if err := tx.add(tx.d.seal); err != nil {
			return err
		}
	}
	list, err := tx.tables()
	if err != nil {
		return err
	}
	if len(list) > 0 {
		for _, name := range ownTables {
			if !hasTable(list, name) {
				return &sft.Error{Code: sft.Exists, Msg: "the database has tables that are no platform's, such as " + sft.Quote(list[0].name),
					Hint: "give a database, or a schema of PostgreSQL, of its own"}
			}
		}
		have, err := tx.Schema()
		if err != nil {
			return err
		}
		// What is right stays: others may have been given rights on it.
		if newest, err := Newest(); err != nil || have == newest {
			if err != nil {
				return err
			}
			return tx.Clear()
		}
	}
	for _, t := range slices.Backward(list) {
		if err := tx.add(`DROP TABLE "` + t.name + `"`); err != nil {
			return err
		}
	}
	return tx.build()
}

// build makes the newest schema in a database that has no tables, but perhaps
// that of the schema's version. It leaves no records.
func (tx *Tx) build() error {
	versions, err := database.NewStore(tx.d.goose, schemaTable)
	if err != nil {
		return err
	}
	if err := tx.add(`DROP TABLE IF EXISTS ` + schemaTable); err != nil {
		return err
	}
	if err := versions.CreateVersionTable(tx.ctx, tx.tx); err != nil {
		return err
	}
	if err := versions.Insert(tx.ctx, tx.tx, database.InsertRequest{}); err != nil {
		return err
	}
	names, err := migrationFiles()
	if err != nil {
		return err
	}
	for _, name := range names {
		b, err := migrations.ReadFile(name)
		if err != nil {
			return err
		}
		v, err := migrationVersion(name)
		if err != nil {
			return err
		}
		// Both drivers take several statements at once. There is no way down.
		if err := tx.add(string(b)); err != nil {
			return fmt.Errorf("%s: %w", path.Base(name), err)
		}
		if err := versions.Insert(tx.ctx, tx.tx, database.InsertRequest{Version: v}); err != nil {
			return err
		}
	}
	return tx.Clear() // of what migrations have made
}

// ownTables are some that each platform has had, since the first version.
var ownTables = []string{"settings", "teams", "events"}

func hasTable(list []table, name string) bool {
	return slices.ContainsFunc(list, func(t table) bool { return t.name == name })
}
