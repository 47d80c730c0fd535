package platform

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"sft/internal/api"
)

// Whatever page is asked for, it holds what comes next in the list, no more
// than was asked for, and who follows Next from there has seen all of the rest.
func FuzzPage(f *testing.F) {
	f.Add("a b c d e", 2, "", false, false)
	f.Add("a b c d e", 2, "c", true, false)
	f.Add("a b c d e", 2, "c", false, true)
	f.Add("x", 1, "y", true, true)
	f.Fuzz(func(t *testing.T, text string, count int, offset string, descending, back bool) {
		words := strings.Fields(text)
		slices.Sort(words)
		words = slices.Compact(words)
		if len(words) > 200 {
			t.Skip()
		}
		get := func(offset string, back bool) (api.List[string], error) {
			return pageIn(Paging{count, offset, fmt.Sprint(descending), fmt.Sprint(back)}, words, func(s string) string { return s })
		}
		want := slices.Clone(words)
		if descending {
			slices.Reverse(want)
		}
		after := func(s string) bool { return offset == "" || (s > offset) != descending && s != offset }
		l, err := get(offset, back)
		if err != nil {
			if count >= 0 && count <= maxCount && !(back && offset == "") {
				t.Fatalf("count %d, offset %q, back %v: %v", count, offset, back, err)
			}
			return
		}
		if count == 0 {
			count = defaultCount
		}
		if back {
			want = slices.DeleteFunc(want, func(s string) bool { return after(s) || s == offset })
			want = want[max(0, len(want)-count):]
			if !slices.Equal(l.List, want) {
				t.Fatalf("the page before %q is %q, want %q", offset, l.List, want)
			}
			return
		}
		want = slices.DeleteFunc(want, func(s string) bool { return !after(s) })
		all := l.List
		for l.Next != "" {
			if len(l.List) != count || l.Next != l.List[count-1] {
				t.Fatalf("a page of %d has %q and goes on after %q", count, l.List, l.Next)
			}
			if l, err = get(l.Next, false); err != nil || len(l.List) == 0 {
				t.Fatalf("the next page is %q, %v", l.List, err)
			}
			all = append(all, l.List...)
		}
		if !slices.Equal(all, want) {
			t.Fatalf("after %q are %q, want %q", offset, all, want)
		}
	})
}
