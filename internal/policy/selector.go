package policy

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"

	"sft"
)

// The limits of a selector.
const (
	maxRequirements = 10
	maxSelector     = 2048 // bytes
)

// A Selector says which servers it means, by their labels. The zero Selector
// means all.
//
// It is one of Kubernetes, parsed and matched by the library that defines them.
// A key whose source is left out is completed, so that who may say what is
// looked for is never open: see ParseSelector and ParseFilter.
type Selector struct{ all []requirement }

// A requirement is met by a label of one of the sources that its key may mean.
type requirement []labels.Requirement

// ParseSelector reads a selector that access depends on. A key without a source
// is the administrators', "api.": a host has no way to say it.
func ParseSelector(text string) (Selector, error) { return parse(text, sft.LabelAPI) }

// ParseFilter reads a selector that nothing depends on but what is shown. A key
// without a source means one of any source.
func ParseFilter(text string) (Selector, error) { return parse(text, sft.LabelSources...) }

func parse(text string, sources ...string) (Selector, error) {
	var s Selector
	bad := func(why string) error {
		return &sft.Error{Code: sft.Invalid, Msg: "selector " + sft.Quote(text) + ": " + why, Hint: "use a label selector of Kubernetes, as in api.env=prod,api.role in (web,db)"}
	}
	if len(text) > maxSelector {
		text = text[:40] + "..."
		return s, bad(fmt.Sprintf("it is longer than %d bytes", maxSelector))
	}
	parsed, err := labels.Parse(text)
	if err != nil {
		return s, bad(err.Error())
	}
	list, _ := parsed.Requirements()
	if len(list) > maxRequirements {
		return s, bad(fmt.Sprintf("it has %d requirements, and %d is the limit", len(list), maxRequirements))
	}
	for _, r := range list {
		if sft.LabelSource(r.Key()) != "" {
			s.all = append(s.all, requirement{r})
			continue
		}
		var any requirement
		for _, source := range sources {
			if source == sft.LabelSystem && !slices.Contains(sft.SystemLabels, source+r.Key()) {
				continue
			}
			r, err := labels.NewRequirement(source+r.Key(), r.Operator(), r.ValuesUnsorted())
			if err != nil {
				return Selector{}, bad(err.Error())
			}
			any = append(any, *r)
		}
		s.all = append(s.all, any)
	}
	return s, nil
}

// String is the selector with the sources of all its keys.
func (s Selector) String() string {
	var parts []string
	for _, r := range s.all {
		parts = append(parts, r.String())
	}
	return strings.Join(parts, ",")
}

func (r requirement) String() string {
	var parts []string
	for i := range r {
		parts = append(parts, r[i].String())
	}
	return strings.Join(parts, " or ")
}

// Matches reports whether a server with these labels is meant.
func (s Selector) Matches(server map[string]string) bool { return s.unmet(server) == nil }

// unmet returns the first requirement that the labels do not meet.
func (s Selector) unmet(server map[string]string) requirement {
	for _, r := range s.all {
		if !r.met(labels.Set(server)) {
			return r
		}
	}
	return nil
}

// negative reports whether a requirement is about what must not be: a server
// without the label meets it.
func (r requirement) negative() bool {
	switch r[0].Operator() {
	case selection.NotEquals, selection.NotIn, selection.DoesNotExist:
		return true
	}
	return false
}

func (r requirement) met(server labels.Set) bool {
	no := r.negative()
	for i := range r {
		if r[i].Matches(server) != no {
			return !no // one label is enough, to meet it or to break it
		}
	}
	return no
}

// of is what a selector wants of the labels of one source.
func (s Selector) of(source string) (one Selector) {
	for _, r := range s.all {
		if strings.HasPrefix(r[0].Key(), source) {
			one.all = append(one.all, r)
		}
	}
	return one
}

// ByHost returns the keys whose value a host says itself.
func (s Selector) ByHost() (keys []string) {
	for _, r := range s.all {
		for i := range r {
			if key := r[i].Key(); strings.HasPrefix(key, sft.LabelSFTD) || key == sft.LabelOSType {
				keys = append(keys, key)
			}
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// A Hint is a label that every server has which a selector means: one of the
// keys, with one of the values, or with any if there are none.
type Hint struct{ Keys, Values []string }

// Hint returns one that needs no look at each server: of labels that the
// platform does not work out. ok is false if there is none.
func (s Selector) Hint() (h Hint, ok bool) {
	for _, r := range s.all {
		var keys []string
		for i := range r {
			if strings.HasPrefix(r[i].Key(), sft.LabelSystem) {
				keys = nil
				break
			}
			keys = append(keys, r[i].Key())
		}
		switch op := r[0].Operator(); {
		case keys == nil:
		case op == selection.In || op == selection.Equals || op == selection.DoubleEquals:
			return Hint{keys, r[0].ValuesUnsorted()}, true
		case op == selection.Exists && !ok:
			h, ok = Hint{Keys: keys}, true
		}
	}
	return h, ok
}
