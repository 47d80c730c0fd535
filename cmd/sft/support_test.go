package main

import (
	"archive/zip"
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf16"

	"github.com/rogpeppe/go-internal/testscript"
)

// unzip is what is in an archive, and the archive itself.
func unzip(ts *testscript.TestScript, file string) []byte {
	raw := []byte(ts.ReadFile(file))
	z, err := zip.NewReader(bytes.NewReader(raw), int64(len(raw)))
	ts.Check(err)
	all := bytes.Clone(raw)
	for _, f := range z.File {
		r, err := f.Open()
		ts.Check(err)
		b, err := io.ReadAll(r)
		ts.Check(err)
		all = append(append(all, '\n'), b...)
	}
	return all
}

// forms are the ways in which a secret may be written.
func forms(s string) map[string][]byte {
	wide := func(put func([]byte, uint16) []byte) (b []byte) {
		for _, u := range utf16.Encode([]rune(s)) {
			b = put(b, u)
		}
		return b
	}
	m := map[string][]byte{"as it is": []byte(s), "hex": []byte(hex.EncodeToString([]byte(s))),
		"UTF-16, little-endian": wide(func(b []byte, u uint16) []byte { return append(b, byte(u), byte(u>>8)) }),
		"UTF-16, big-endian":    wide(func(b []byte, u uint16) []byte { return append(b, byte(u>>8), byte(u)) })}
	for shift := range 3 {
		// What is before it moves the bits; the ends depend on what is around.
		b64 := base64.StdEncoding.EncodeToString([]byte("xxx"[:shift] + s))
		m["base64, moved by "+string(rune('0'+shift))] = []byte(strings.TrimRight(b64, "=")[4 : len(b64)-4])
	}
	return m
}

// plain FILE SECRET... fails if one of the secrets, or a device key, is in the
// archive in any form.
func plain(ts *testscript.TestScript, neg bool, args []string) {
	all := unzip(ts, args[0])
	secrets := args[1:]
	keys, err := filepath.Glob(ts.MkAbs("home/.local/state/ScaleFT/device-*.key"))
	ts.Check(err)
	if len(keys) == 0 {
		ts.Fatalf("there is no device key to look for")
	}
	for _, k := range keys {
		b, err := os.ReadFile(k)
		ts.Check(err)
		block, _ := pem.Decode(b)
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		ts.Check(err)
		d, err := key.(*ecdsa.PrivateKey).Bytes()
		ts.Check(err)
		secrets = append(secrets, string(d), strings.Split(string(b), "\n")[1])
	}
	lower := bytes.ToLower(all)
	for _, s := range secrets {
		for how, b := range forms(s) {
			if bytes.Contains(all, b) || how == "hex" && bytes.Contains(lower, b) {
				ts.Fatalf("%s has the secret %q, %s", args[0], s, how)
			}
		}
	}
}

// shows FILE TEXT... [!] fails if a text is not in the archive; with ! at the
// end the last one must not be.
func shows(ts *testscript.TestScript, neg bool, args []string) {
	all := unzip(ts, args[0])
	texts := args[1:]
	if n := len(texts); texts[n-1] == "!" {
		if bytes.Contains(all, []byte(texts[n-2])) {
			ts.Fatalf("%s has %q", args[0], texts[n-2])
		}
		texts = texts[:n-2]
	}
	for _, t := range texts {
		if !bytes.Contains(all, []byte(t)) {
			ts.Fatalf("%s does not have %q:\n%s", args[0], t, all[bytes.LastIndex(all, []byte("PK")):])
		}
	}
}
