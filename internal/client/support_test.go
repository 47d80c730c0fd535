package client

import (
	"archive/zip"
	"bytes"
	"io"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// What an environment or a URL says is secret is in no archive, though a
// message quotes it.
func TestSupportSecrets(t *testing.T) {
	secrets := SupportSecrets([]string{"HTTPS_PROXY=http://u:p%40ssword@proxy:1", "HTTP_PROXY=http://u:bad %zz:@word@proxy:1", "API_TOKEN=to\"ken1234", "AUTH_FILE=" + filepath.Join(t.TempDir(), "auth"), "MY_KEY=abc", "LANG=de_DE.UTF-8"}, "http://u:second@proxy:1")
	want := []string{"bad %zz:@word", "to\"ken1234", "p%40ssword", "p@ssword", "second"}
	slices.Sort(secrets)
	slices.Sort(want)
	if !slices.Equal(secrets, want) {
		t.Errorf("the secrets are %q, want %q", secrets, want)
	}
	f, err := NewSupportFile("a.json", "a", map[string]string{"said": `parse "http://u:bad %zz:@word@proxy:1", with to"ken1234`})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := WriteSupport(&b, time.Unix(1, 0), []SupportFile{f}, secrets); err != nil {
		t.Fatal(err)
	}
	z, err := zip.NewReader(bytes.NewReader(b.Bytes()), int64(b.Len()))
	if err != nil {
		t.Fatal(err)
	}
	r, err := z.File[0].Open()
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if want := "{\n  \"said\": \"parse \\\"http://u:[left out]@proxy:1\\\", with [left out]\"\n}\n"; string(got) != want || err != nil {
		t.Errorf("the file is\n%s%v\nwant\n%s", got, err, want)
	}
}
