package store

import (
	"context"
	"database/sql"
	"sync"
)

// plans keeps the statements of a pool compiled. SQLite forgets each when it
// is done, and compiling one costs as much as running it; the driver of
// PostgreSQL keeps them by itself.
type plans struct {
	pool *sql.DB

	mu     sync.Mutex
	m      map[string]*sql.Stmt // nil while it is wanted
	wanted []string
}

// maxPlans caps how many are kept: more texts than that are not in the program.
const maxPlans = 1000

func newPlans(pool *sql.DB) *plans { return &plans{pool: pool, m: map[string]*sql.Stmt{}} }

// of returns the compiled statement, or nil where learn has not made it yet.
func (p *plans) of(query string) *sql.Stmt {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, known := p.m[query]
	if !known && len(p.m) < maxPlans {
		p.m[query] = nil
		p.wanted = append(p.wanted, query)
	}
	return s
}

// learn compiles what was wanted. The caller has no transaction: its
// connection may be the only one.
func (p *plans) learn(ctx context.Context) {
	p.mu.Lock()
	wanted := p.wanted
	p.wanted = nil
	p.mu.Unlock()
	for _, query := range wanted {
		s, err := p.pool.PrepareContext(ctx, query)
		p.mu.Lock()
		if err == nil {
			p.m[query] = s
		} else {
			delete(p.m, query) // the next to run it wants it again
		}
		p.mu.Unlock()
	}
}

// close lets go of all statements.
func (p *plans) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.m {
		if s != nil {
			s.Close()
		}
	}
	p.m = map[string]*sql.Stmt{}
}
