package accounts

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"unicode"

	"sft"
)

// passwordChars is what a password is made of: nothing that any program
// between here and the sign-in treats as special.
const passwordChars = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

// NewPassword returns 64 random characters, 384 bits but for a fraction. It
// has a capital, a small letter, a digit and a symbol, and no word of three
// letters or more of names, which are those of the account: what the password
// policy of Windows may ask for at its strictest ("Password must meet
// complexity requirements").
func NewPassword(names ...string) sft.Secret {
	var words []string
	for _, n := range names {
		n = strings.ToLower(n)
		for _, w := range append(strings.FieldsFunc(n, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) }), n) {
			if len([]rune(w)) >= 3 {
				words = append(words, w)
			}
		}
	}
	for {
		var b [64]byte
		rand.Read(b[:])
		for i := range b {
			b[i] = passwordChars[b[i]%byte(len(passwordChars))] // 64 of them: each is as likely
		}
		if p := string(b[:]); complexPassword(p, words) {
			return sft.NewSecret(p)
		}
	}
}

// complexPassword reports whether p has every kind of character and none of
// the words.
func complexPassword(p string, words []string) bool {
	for _, kind := range []string{"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz", "0123456789", "-_"} {
		if !strings.ContainsAny(p, kind) {
			return false
		}
	}
	p = strings.ToLower(p)
	for _, w := range words {
		if strings.Contains(p, w) {
			return false
		}
	}
	return true
}

// parseKept reads what keep wrote, and nothing else.
func parseKept(data []byte) (kept, error) {
	if len(data) > maxKeptFile {
		return kept{}, errors.New("the kept passwords are too long")
	}
	var k kept
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&k); err != nil {
		return kept{}, errors.New("the kept passwords are damaged") // the cause could quote them
	}
	if _, err := d.Token(); err != io.EOF {
		return kept{}, errors.New("the kept passwords go on after their end")
	}
	if len(k.Passwords) > maxKept || k.SID != "" && !ordinarySID(k.SID) {
		return kept{}, errors.New("the kept passwords are damaged")
	}
	for _, p := range k.Passwords {
		if p == "" || len(p) > 4096 {
			return kept{}, errors.New("the kept passwords are damaged")
		}
	}
	return k, nil
}
