package testdb

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// A Template gives tests databases that are prepared already, as by migrations,
// which is done once in a test process and takes longer than a copy.
type Template struct {
	prepare func(t testing.TB, url string) // lets go of the database before it returns

	mu       sync.Mutex
	sqlite   []byte // the prepared file
	postgres string // the prepared database
}

// NewTemplate returns a Template whose databases are as prepare leaves an empty
// one.
func NewTemplate(prepare func(t testing.TB, url string)) *Template {
	return &Template{prepare: prepare}
}

// Each is Each with prepared databases.
func (p *Template) Each(t *testing.T, f func(t *testing.T, url string)) {
	t.Run("sqlite", func(t *testing.T) { f(t, p.SQLite(t)) })
	t.Run("postgres", func(t *testing.T) { f(t, p.Postgres(t)) })
}

// SQLite is SQLite with a prepared database.
func (p *Template) SQLite(t testing.TB) string {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sqlite == nil {
		url := SQLite(t)
		p.prepare(t, url)
		path := strings.TrimPrefix(url, "sqlite:")
		if left, _ := filepath.Glob(path + "-*"); len(left) > 0 {
			t.Fatal("a part of the prepared database is not in its file: ", left)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		p.sqlite = b
	}
	url := SQLite(t)
	if err := os.WriteFile(strings.TrimPrefix(url, "sqlite:"), p.sqlite, 0o600); err != nil {
		t.Fatal(err)
	}
	return url
}

// Postgres is Postgres with a prepared database.
func (p *Template) Postgres(t testing.TB) string {
	t.Helper()
	s := running(t)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.postgres == "" {
		name := fmt.Sprintf("made%d", databases.Add(1)) // it goes with the server
		s.exec(t, "CREATE DATABASE "+name)
		p.prepare(t, s.url(name))
		p.postgres = name
	}
	return s.create(t, p.postgres)
}
