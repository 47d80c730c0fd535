package platform

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"sft"
	"sft/internal/audit"
	"sft/internal/policy"
	"sft/internal/store"
)

// setLabels gives a server the labels of administrators, in the place of those
// that it had of them, and returns the event. Its host's and the platform's own
// are not theirs to change.
func (p *Platform) setLabels(tx *store.Tx, a Actor, k asker, s store.ServerRecord, labels map[string]string) (audit.Event, error) {
	given, err := sft.CheckLabels(sft.LabelAPI, labels)
	if err != nil {
		return audit.Event{}, err
	}
	before := s.Labels()
	s.Given = given
	if err := p.mayLabel(tx, k, s, before); err != nil {
		return audit.Event{}, err
	}
	if err := tx.SetLabels(s); err != nil {
		return audit.Event{}, err
	}
	e, changed := p.labelsEvent(a, k.team.Name, s, before)
	if !changed {
		return e, errSame
	}
	return e, tx.ReviseServer(s.ID)
}

// mayLabel refuses labels by which whoever sets them gets more on the server
// than with those before, unless they could take all of it anyway.
func (p *Platform) mayLabel(tx *store.Tx, k asker, s store.ServerRecord, before map[string]string) error {
	if policy.May(k.user.Status, k.roles, policy.RaiseSelf) {
		return nil
	}
	reach, err := p.reachOf(tx, k.user)
	if err != nil {
		return err
	}
	grants, err := withSudo(tx, s.ProjectID, reach.grants[s.ProjectID])
	if err != nil {
		return err
	}
	if group := policy.Raises(grants, before, s.Labels()); group != "" {
		return &sft.Error{Code: sft.Denied, Msg: fmt.Sprintf("by these labels user %s would get more on server %s, as a member of group %s", sft.Quote(k.user.Name), sft.Quote(s.Server(p.Now()).Name()), sft.Quote(group)),
			Hint: "ask somebody else who may set labels"}
	}
	return nil
}

// labelled tells of what has become of a server's labels by its host's word, if
// anything has: access may hang on it.
func (p *Platform) labelled(tx *store.Tx, a Actor, team string, s store.ServerRecord, before map[string]string) error {
	e, changed := p.labelsEvent(a, team, s, before)
	if !changed {
		return nil
	}
	tx.Also(e)
	return tx.ReviseServer(s.ID)
}

// labelsEvent tells how a server's labels differ from those before.
func (p *Platform) labelsEvent(a Actor, team string, s store.ServerRecord, before map[string]string) (e audit.Event, changed bool) {
	now := s.Labels()
	e = p.event(a, audit.ServerLabels, team, s.Project, s.Server(p.Now()).Name())
	e.Detail = map[string]string{"server": s.ID}
	if gone := lacks(now, before); gone != "" {
		e.Detail["removed"] = gone
	}
	if added := lacks(before, now); added != "" {
		e.Detail["set"] = added
	}
	return e, len(e.Detail) > 1
}

// lacks lists the labels of b that a does not have.
func lacks(a, b map[string]string) string {
	var list []string
	for _, key := range slices.Sorted(maps.Keys(b)) {
		if v, ok := a[key]; !ok || v != b[key] {
			list = append(list, key+"="+b[key])
		}
	}
	return strings.Join(list, " ")
}
