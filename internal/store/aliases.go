package store

import (
	"encoding/json"
	"slices"

	"sft"
	"sft/internal/api"
)

// An alias is what a server is found by beside the names that it holds.
type alias struct{ kind, name string }

// The kinds of aliases.
const (
	aliasName    = "name"
	aliasBastion = "bastion"
)

func aliasesOf(f api.Facts) (list []alias) {
	for _, n := range f.AltNames {
		list = append(list, alias{aliasName, sft.HostFold(n)})
	}
	if f.Bastion != "" {
		list = append(list, alias{aliasBastion, sft.HostFold(f.Bastion)})
	}
	return list
}

// indexAliases makes a server be found by the aliases of its facts, and by no
// others.
func (n Notes) indexAliases(serverID string, f api.Facts) error {
	want := aliasesOf(f)
	there, err := all(n, func(s scanner) (a alias, err error) { return a, s.Scan(&a.kind, &a.name) },
		`SELECT kind, name_fold FROM server_aliases WHERE server_id = $1`, serverID)
	if err != nil {
		return err
	}
	for _, a := range there {
		if !slices.Contains(want, a) {
			if err := n.add(`DELETE FROM server_aliases WHERE server_id = $1 AND kind = $2 AND name_fold = $3`, serverID, a.kind, a.name); err != nil {
				return err
			}
		}
	}
	return n.addAliases(serverID, slices.DeleteFunc(want, func(a alias) bool { return slices.Contains(there, a) }))
}

func (n Notes) addAliases(serverID string, list []alias) error {
	for _, a := range list {
		if err := n.add(`INSERT INTO server_aliases (server_id, kind, name_fold) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`, serverID, a.kind, a.name); err != nil {
			return err
		}
	}
	return nil
}

// aliasesAtOnce is how many servers get theirs in a step.
const aliasesAtOnce = 500

// fillAliases makes the servers that were there before aliases were be found by
// theirs.
func (n Notes) fillAliases() error {
	type server struct{ id, facts string }
	for after := ""; ; {
		list, err := all(n, func(s scanner) (v server, err error) { return v, s.Scan(&v.id, &v.facts) },
			`SELECT id, facts FROM servers WHERE deleted_at IS NULL AND id > $1 ORDER BY id LIMIT $2`, after, aliasesAtOnce)
		if err != nil || len(list) == 0 {
			return err
		}
		var args []any
		for _, s := range list {
			var f api.Facts
			if json.Unmarshal([]byte(s.facts), &f) != nil {
				f = api.Facts{} // nor can it be listed: that is no migration's to find
			}
			for _, a := range aliasesOf(f) {
				args = append(args, s.id, a.kind, a.name)
			}
			after = s.id
		}
		for some := range slices.Chunk(args, 3*aliasesAtOnce) {
			if err := n.add(`INSERT INTO server_aliases (server_id, kind, name_fold) VALUES `+values(len(some)/3, "text", "text", "text")+` ON CONFLICT DO NOTHING`, some...); err != nil {
				return err
			}
		}
	}
}
