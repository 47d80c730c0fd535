package platform

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"sft"
	"sft/internal/api"
	"sft/internal/policy"
	"sft/internal/store"
)

// The sizes of a page.
const (
	defaultCount = 100
	maxCount     = 1000
)

// Paging says which page of a list is wanted. Every list of things that can
// become many takes it, and each names its key: what Offset is a value of.
type Paging struct {
	Count      int    `query:"count" json:"-" min:"1" max:"1000" default:"100"` // how many there are on a page
	Offset     string `query:"offset" json:"-"`                                 // the key of the last thing of the page before; empty: from the beginning
	Descending string `query:"descending" json:"-"`                             // "true": backwards, from the end
	Prev       string `query:"prev" json:"-"`                                   // "true": the page before Offset, and not after it
}

// flag reads a "true" or "false" of a query.
func flag(name, v string) (bool, error) {
	if v == "" {
		return false, nil
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		return false, &sft.Error{Code: sft.Invalid, Msg: name + " is " + sft.Quote(v), Hint: "use true or false"}
	}
	return b, nil
}

// pageOf makes one page of a list. more reads records after a place, key tells
// the place of each, and noun makes of it what the asker sees, if they may:
// reading goes on until the page is full.
func pageOf[R, T any](g Paging, key func(R) string, more func(store.Page) ([]R, error), noun func(R) (T, bool)) (api.List[T], error) {
	none := api.List[T]{List: []T{}}
	if g.Count == 0 {
		g.Count = defaultCount
	}
	if g.Count < 1 || g.Count > maxCount {
		return none, &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("count is %d", g.Count), Hint: fmt.Sprintf("use 1 to %d", maxCount)}
	}
	descending, err := flag("descending", g.Descending)
	if err != nil {
		return none, err
	}
	back, err := flag("prev", g.Prev)
	if err != nil {
		return none, err
	}
	if back && g.Offset == "" {
		return none, &sft.Error{Code: sft.Invalid, Msg: "prev without an offset", Hint: "give the key of the first thing of the page that you have as offset"}
	}
	list, keys := []T{}, []string{}
	// One more than the page holds tells whether there is another.
	p := store.Page{After: g.Offset, Count: g.Count + 1, Descending: descending != back}
	for len(list) <= g.Count {
		records, err := more(p)
		if err != nil {
			return none, err
		}
		for _, r := range records {
			p.After = key(r)
			if v, ok := noun(r); ok && len(list) <= g.Count {
				list, keys = append(list, v), append(keys, p.After)
			}
		}
		if len(records) < p.Count {
			break
		}
		p.Count = maxCount // most are left out
	}
	full := len(list) > g.Count
	if full {
		list, keys = list[:g.Count], keys[:g.Count]
	}
	if back {
		slices.Reverse(list)
		slices.Reverse(keys)
	}
	l := api.List[T]{List: list}
	if len(keys) > 0 {
		if full || back {
			l.Next = keys[len(keys)-1]
		}
		if back && full || !back && g.Offset != "" {
			l.Prev = keys[0]
		}
	}
	return l, nil
}

// InProjectRequest is GET of a list under /v1/teams/{team}/projects/{project}.
type InProjectRequest struct {
	Team    string `path:"team" json:"-"`
	Project string `path:"project" json:"-"`
	Paging
}

// listIn returns a page of the things of a project, by their ids.
func listIn[R, T any](ctx context.Context, p *Platform, a Actor, r InProjectRequest, action policy.Action, id func(R) string,
	more func(*store.Tx, store.ProjectRecord, store.Page) ([]R, error), noun func(R) T) (api.List[T], error) {
	return read(ctx, p, a, r.Team, action, func(tx *store.Tx, k asker) (api.List[T], error) {
		pr, err := tx.Project(k.team.ID, r.Project)
		if err != nil {
			return api.List[T]{}, notFound(err, "project", r.Project)
		}
		return pageOf(r.Paging, id, func(g store.Page) ([]R, error) { return more(tx, pr, g) }, every(noun))
	})
}

// every is a noun of pageOf that leaves nothing out.
func every[R, T any](noun func(R) T) func(R) (T, bool) {
	return func(r R) (T, bool) { return noun(r), true }
}

// pageIn is pageOf for what is read whole, and is not much.
func pageIn[T any](g Paging, all []T, key func(T) string) (api.List[T], error) {
	return pageOf(g, key, func(p store.Page) ([]T, error) {
		order := func(a, b string) int { // of what p goes through
			if p.Descending {
				a, b = b, a
			}
			return strings.Compare(a, b)
		}
		list := slices.SortedFunc(slices.Values(all), func(a, b T) int { return order(key(a), key(b)) })
		if p.After != "" {
			list = slices.DeleteFunc(list, func(v T) bool { return order(key(v), p.After) <= 0 })
		}
		return list[:min(len(list), p.Count)], nil
	}, func(v T) (T, bool) { return v, true })
}
