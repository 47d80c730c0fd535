package client

import (
	"archive/zip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// A SupportFile is one file of an archive for somebody who helps.
type SupportFile struct {
	Name  string `json:"name"`
	About string `json:"about"` // what is in it, for the person to decide whether to send it
	Data  []byte `json:"-"`
}

// NewSupportFile is a file with v as JSON.
func NewSupportFile(name, about string, v any) (SupportFile, error) {
	b, err := json.MarshalIndent(v, "", "  ")
	return SupportFile{Name: name, About: about, Data: append(b, '\n')}, err
}

// A supportAccount is what is told of an Account. A field that is added to
// Account is not told before it is added here.
type supportAccount struct {
	Kind          string    `json:"kind,omitempty"`
	Team          string    `json:"team"`
	User          string    `json:"user"`
	ClientID      string    `json:"client_id"`
	URL           string    `json:"url"`
	Audience      string    `json:"audience"`
	CASHA256      string    `json:"ca_sha256,omitempty"`
	Default       bool      `json:"default,omitempty"`
	SignedInUntil time.Time `json:"signed_in_until"`
	ClockOffset   int64     `json:"clock_offset_ms,omitempty"`
	InKeyring     bool      `json:"in_keyring,omitempty"`
}

// SupportAccounts is what may be told of accounts: all but their keys.
func SupportAccounts(list []Account) any {
	told := []supportAccount{}
	for _, a := range list {
		t := supportAccount{a.Kind, a.Team, a.User, a.ClientID, withoutPassword(a.URL), withoutPassword(a.Audience), "", a.Default, a.SignedInUntil, a.ClockOffset, a.InKeyring}
		if len(a.CA) > 0 {
			sum := sha256.Sum256(a.CA)
			t.CASHA256 = hex.EncodeToString(sum[:])
		}
		told = append(told, t)
	}
	return told
}

func withoutPassword(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return "unreadable"
	}
	if u.User != nil {
		u.User = url.User("left-out")
	}
	return u.String()
}

// A supportEntry is a file of a folder, by all but what is in it.
type supportEntry struct {
	Name    string    `json:"name"`
	Mode    string    `json:"mode"`
	Size    int64     `json:"size"`
	Changed time.Time `json:"changed"`
}

// maxEntries caps how many files of a folder are told of.
const maxEntries = 500

// sshFolder is where the links and keys for the person's own ssh are, whose
// names are those of servers.
const sshFolder = "ssh"

// SupportFolder lists what is in a folder, and opens nothing of it. Where names
// are those of servers, it says only how many there are.
func SupportFolder(dir string) any {
	list, servers := []supportEntry{}, 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		i, err := d.Info()
		if err != nil {
			return nil // it went meanwhile
		}
		name, _ := filepath.Rel(dir, path)
		if top, _, below := strings.Cut(filepath.ToSlash(name), "/"); below && top == sshFolder {
			servers++
			return nil
		}
		if list = append(list, supportEntry{filepath.ToSlash(name), i.Mode().String(), i.Size(), i.ModTime().UTC()}); len(list) >= maxEntries {
			return fs.SkipAll
		}
		return nil
	})
	told := map[string]any{"folder": dir, "files": list, "in_ssh": servers}
	if err != nil {
		told["problem"] = err.Error()
	}
	return told
}

// secretVariable is what variables are called whose values may be secret.
var secretVariable = regexp.MustCompile(`(?i)pass|secret|token|key|auth|cred|cookie|session|proxy`)

// userinfo finds the password in what looks like a URL, and may be none.
var userinfo = regexp.MustCompile(`(?s)://[^/@:]*:(.+)@`)

// SupportSecrets is what must not be in an archive, of an environment and of
// URLs that may have a password. What is short would be everywhere.
func SupportSecrets(environ []string, urls ...string) (list []string) {
	add := func(s string) {
		if len(s) >= 6 && !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	user := func(s string) {
		if m := userinfo.FindStringSubmatch(s); m != nil {
			add(m[1])
			if plain, err := url.PathUnescape(m[1]); err == nil {
				add(plain)
			}
		}
	}
	for _, v := range environ {
		name, value, _ := strings.Cut(v, "=")
		user(value)
		if secretVariable.MatchString(name) && !strings.Contains(value, "://") && !filepath.IsAbs(value) {
			add(value)
		}
	}
	for _, u := range urls {
		user(u)
	}
	slices.SortFunc(list, func(a, b string) int { return len(b) - len(a) }) // the longer first: one may be in another
	return list
}

// WriteSupport writes an archive of files. Each secret is taken out of them,
// wherever it came from: the files are made of what is no secret, and this is
// for what a message of another program has in it.
func WriteSupport(w io.Writer, now time.Time, files []SupportFile, secrets []string) error {
	z := zip.NewWriter(w)
	for _, f := range files {
		data := string(f.Data)
		for _, s := range secrets {
			data = strings.ReplaceAll(data, s, "[left out]")
			if b, err := json.Marshal(s); err == nil {
				data = strings.ReplaceAll(data, string(b[1:len(b)-1]), "[left out]")
			}
		}
		out, err := z.CreateHeader(&zip.FileHeader{Name: f.Name, Method: zip.Deflate, Modified: now})
		if err != nil {
			return err
		}
		if _, err := io.WriteString(out, data); err != nil {
			return fmt.Errorf("write %s: %w", f.Name, err)
		}
	}
	return z.Close()
}
