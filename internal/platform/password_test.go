package platform

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"sft"
)

func TestNewPasswords(t *testing.T) {
	tests := []struct{ name, user, pw, want string }{
		{"twelve characters", "ann", "abcdefghijkl", ""},
		{"twelve characters of more bytes", "ann", "äöüäöüäöüäöü", ""},
		{"words and spaces", "ann", "correct horse battery staple", ""},
		{"256 characters", "ann", strings.Repeat("x", 256), ""},
		{"eleven", "ann", "abcdefghijk", "the password is too short"},
		{"eleven of many bytes", "ann", strings.Repeat("\U0001F600", 11), "the password is too short"},
		{"none", "ann", "", "the password is too short"},
		{"257 characters", "ann", strings.Repeat("x", 257), "the password is too long"},
		{"the user's name in it", "olive", "my name is Olive!", "the password holds the user name"},
		{"a short name, which is in many words", "an", "banana banana", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := ""
			if err := checkNewPassword(sft.NewSecret(tt.pw), tt.user); err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("checkNewPassword = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestCheckPassword(t *testing.T) {
	pw := sft.NewSecret("correct horse")
	hash := hashPassword(pw)
	if again := hashPassword(pw); again == hash {
		t.Error("two hashes of one password are the same")
	}
	parts := strings.Split(hash.Reveal(), "$")
	if got := strings.Join(parts[:4], "$"); got != "$argon2id$v=19$m=19456,t=2,p=1" {
		t.Errorf("the hash begins with %s", got)
	}
	with := func(i int, s string) sft.Secret {
		p := append([]string{}, parts...)
		p[i] = s
		return sft.NewSecret(strings.Join(p, "$"))
	}
	tests := []struct {
		name string
		hash sft.Secret
		pw   string
		want bool
	}{
		{"the password", hash, "correct horse", true},
		{"another", hash, "correct horses", false},
		{"none", hash, "", false},
		{"nobody's hash", sft.Secret{}, "", false},
		{"nobody's hash, with a password", sft.Secret{}, "correct horse", false},
		{"noise", sft.NewSecret("noise"), "correct horse", false},
		{"another algorithm", with(1, "argon2i"), "correct horse", false},
		{"another version", with(2, "v=16"), "correct horse", false},
		{"other costs", with(3, "m=19456,t=1,p=1"), "correct horse", false},
		{"costs that nobody can pay", with(3, "m=4294967295,t=2,p=1"), "correct horse", false},
		{"no passes", with(3, "m=19456,t=0,p=1"), "correct horse", false},
		{"no threads", with(3, "m=19456,t=2,p=0"), "correct horse", false},
		{"a cost more", with(3, "m=19456,t=2,p=1,x=1"), "correct horse", false},
		{"another salt", with(4, "AAAAAAAAAAAAAAAAAAAAAA"), "correct horse", false},
		{"no salt", with(4, ""), "correct horse", false},
		{"a short key", with(5, parts[5][:20]), "correct horse", false},
		{"no key", with(5, ""), "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := checkPassword(tt.hash, sft.NewSecret(tt.pw)); got != tt.want {
				t.Errorf("checkPassword = %v, want %v", got, tt.want)
			}
		})
	}
}

// FuzzPHC checks what must hold whatever is stored: what is read can be paid
// for, and is written the same way again.
func FuzzPHC(f *testing.F) {
	f.Add(hashPassword(sft.NewSecret("x")).Reveal())
	f.Add("$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
	f.Add("$argon2id$v=19$m=-1,t=+2,p=01$$")
	f.Add("$$$$$")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		h, ok := parsePHC(s)
		if !ok {
			return
		}
		if h.encode() != s {
			t.Errorf("%q is read as %q", s, h.encode())
		}
		if h.memory > maxMemory || h.time < 1 || h.time > maxTime || h.threads < 1 || len(h.key) != argonKey || len(h.salt) < 8 {
			t.Errorf("%q is taken, as %+v", s, h)
		}
	})
}

func TestTooManyTries(t *testing.T) {
	at := time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)
	p := &Platform{Now: func() time.Time { return at }}
	tries := func(account, addr string, want int) {
		t.Helper()
		n := 0
		for p.tried(account, addr) == nil && n < 1000 {
			n++
		}
		if n != want {
			t.Errorf("%s may try %d times from %s, want %d", account, n, addr, want)
		}
	}
	tries("ann", "10.0.0.1", 8)
	tries("ann", "10.0.0.2", 8) // a stranger who tries does not keep her out
	tries("ann", "2001:db8::1", 8)
	tries("ann", "2001:db8::2", 0) // one /64 is one place
	tries("bob", "10.0.0.1", 8)
	if err := p.tried("ann", "10.0.0.1"); sft.CodeOf(err) != sft.TooMany {
		t.Errorf("tried = %v", err)
	}
	at = at.Add(15 * time.Second)
	tries("ann", "10.0.0.1", 1)
	at = at.Add(time.Hour)
	tries("ann", "10.0.0.1", 8)
	at = at.Add(time.Hour)
	n := 0
	for i := range 1000 { // many places at once are stopped, too
		if p.tried("dora", fmt.Sprintf("10.1.%d.%d", i/250, i%250)) == nil {
			n++
		}
	}
	if n != 200 {
		t.Errorf("a thousand places may try %d times, want 200", n)
	}

	// One address that tries many accounts is stopped, and then no longer
	// uses up the tries of others.
	at = at.Add(time.Hour)
	n = 0
	for i := range 100 {
		if p.tried(fmt.Sprint("victim", i), "10.9.9.9") == nil {
			n++
		}
	}
	if n != 40 {
		t.Errorf("one address may try %d accounts, want 40", n)
	}
	for range 100 {
		p.tried("carl", "10.9.9.9")
	}
	tries("carl", "10.0.0.4", 8)
}

func TestLimitsForgetBeforeTheyFillTheMemory(t *testing.T) {
	var l Limits
	at := time.Now()
	for i := range maxLimiters + 10 {
		l.allow(at, fmt.Sprint(i), time.Minute, 1)
	}
	if len(l.m) > maxLimiters {
		t.Errorf("%d limiters are kept", len(l.m))
	}
}

func TestUserCodes(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		c := newUserCode()
		if len(c) != 9 || c[4] != '-' || strings.Trim(c, userCodeLetters+"-") != "" || seen[c] {
			t.Fatalf("the code is %q", c)
		}
		seen[c] = true
	}
}

// When the memory is full, those go first of whom there is nothing to tell.
func TestLimitsForgetWhatIsFullAgain(t *testing.T) {
	var l Limits
	at := time.Now()
	for i := range maxLimiters - 10 {
		l.Take(at, fmt.Sprint("once", i), time.Second, 10)
	}
	for range 10 {
		l.Take(at, "often", time.Hour, 10)
	}
	at = at.Add(time.Minute)
	for i := range 20 {
		l.Take(at, fmt.Sprint("later", i), time.Second, 10)
	}
	if b, known := l.Look(at, "often", time.Hour, 10); !known || b.OK || b.Again < 50*time.Minute || len(l.m) > 30 {
		t.Errorf("of who asks too often is known %+v, %v, among %d", b, known, len(l.m))
	}
}
