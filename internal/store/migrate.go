package store

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"

	"sft"
)

//go:embed migrations/*.sql
var migrations embed.FS

// fills are the migrations that are not SQL alone: in the transaction of each,
// the program fills what its file has made from the records that are there.
var fills = map[string]func(Notes) error{
	"00021_scale.sql":        Notes.fillAliases,
	"00023_auditsession.sql": Notes.fillSessions,
}

// filled is the migration of a file and of what fills it.
func (db *DB) filled(dir fs.FS, name string, fill func(Notes) error) (*goose.Migration, error) {
	version, err := migrationVersion(name)
	if err != nil {
		return nil, err
	}
	return goose.NewGoMigration(version, &goose.GoFunc{RunTx: func(ctx context.Context, tx *sql.Tx) error {
		b, err := fs.ReadFile(dir, name)
		if err != nil {
			return err
		}
		n := Notes{ctx, tx, db.d, &Span{}, nil}
		if err := n.add(string(b)); err != nil {
			return err
		}
		return fill(n)
	}}, nil), nil
}

// Migrate brings the schema up to a version; 0 is the newest. A schema that is
// newer than this program is refused: it would be written by rules that are no
// longer its own.
func (db *DB) Migrate(ctx context.Context, version int64) error {
	p, err := db.migrations()
	if err != nil {
		return err
	}
	have, newest, err := p.GetVersions(ctx)
	if err != nil {
		return err
	}
	if have > newest {
		return TooNew("the database", have, newest)
	}
	if version == 0 {
		version = newest
	}
	db.version = version
	_, err = p.UpTo(ctx, version)
	return err
}

// Versions returns the version of the schema, and the newest that this program
// knows.
func (db *DB) Versions(ctx context.Context) (have, newest int64, err error) {
	p, err := db.migrations()
	if err != nil {
		return 0, 0, err
	}
	return p.GetVersions(ctx)
}

func (db *DB) migrations() (*goose.Provider, error) {
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	var names []string
	var filled []*goose.Migration
	for name, fill := range fills {
		m, err := db.filled(dir, name, fill)
		if err != nil {
			return nil, err
		}
		names, filled = append(names, name), append(filled, m)
	}
	return goose.NewProvider(db.d.goose, db.write, dir, goose.WithExcludeNames(names), goose.WithGoMigrations(filled...))
}

// TooNew refuses what has a newer schema than this program knows.
func TooNew(what string, have, newest int64) error {
	return &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("%s is by a newer version: its schema is %d, and this program knows %d", what, have, newest),
		Hint: "use the version of sft-platform that made it, or a newer one"}
}
