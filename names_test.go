package sft

import (
	"slices"
	"strings"
	"testing"
)

func TestCheckWindowsLogin(t *testing.T) {
	for _, tt := range []struct {
		login string
		ok    bool
	}{
		{"ann", true},
		{"ann.miller", true},
		{"ann_m-2", true},
		{"_svc", true},
		{"7of9", true},
		{"x", true},
		{"abcdefghijklmnopqrst", true},
		{"con-rad", true},
		{"mr.con", true},
		{"", false},
		{"abcdefghijklmnopqrstu", false},
		{"Ann", false}, // another spelling of the same account
		{"ann.", false},
		{".ann", false},
		{"-ann", false},
		{"...", false},
		{"ann m", false},
		{"ann\n", false},
		{"\u0430nn", false}, // a Cyrillic a
		{"administrator", false},
		{"guest", false},
		{"system", false},
		{"users", false},
		{"sft-users", false},
		{"sft_dev", false},
		{"con", false},
		{"nul.txt", false}, // the device, whatever follows
		{"com1", false},
	} {
		if err := CheckWindowsLogin(tt.login); (err == nil) != tt.ok {
			t.Errorf("%q: %v, want it to pass: %v", tt.login, err, tt.ok)
		}
	}
	for _, c := range `"/\[]:;|=,+*?<>@ ` + "\x00\x1f\x7f" {
		if CheckWindowsLogin("a"+string(c)+"b") == nil {
			t.Errorf("%q passes, which Windows forbids", c)
		}
	}
}

// FuzzWindowsLogin checks that a login that passes is one account, one file and
// one word wherever it goes, and that what passes is a server's login.
func FuzzWindowsLogin(f *testing.F) {
	for _, s := range []string{"ann", "Ann.Miller", "con.x", "a b", "ann.", "-ann", "sft-users"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, login string) {
		if CheckWindowsLogin(login) != nil {
			return
		}
		device, _, _ := strings.Cut(login, ".")
		if len(login) == 0 || len(login) > 20 || strings.ToLower(login) != login || strings.ContainsAny(login, "\"/\\[]:;|=,+*?<>@ \r\n\x00") ||
			login[0] == '-' || login[0] == '.' || strings.HasSuffix(login, ".") || slices.Contains([]string{"con", "nul", "prn", "aux"}, device) || CheckServerLogin(login) != nil {
			t.Errorf("%q passes", login)
		}
	})
}
