//go:build linux

package dist

import (
	"archive/tar"
	"archive/zip"
	"bufio"
	"compress/gzip"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sft/e2e/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m.Run)) }

// version is what "make dist-test" gives the packages.
const version = "0.20.0"

// packages is the folder that "make dist-test" makes, and the project's.
func packages(t *testing.T) (dir, project string) {
	t.Helper()
	if testing.Short() {
		t.Skip("SKIPPED: short")
	}
	project, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(project, "build/dist-test")
	if _, err := os.Stat(filepath.Join(dir, "SHA256SUMS")); err != nil {
		t.Fatalf("%v; run \"make dist-test\" first", err)
	}
	return dir, project
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		t.Fatalf("%s %q: %v: %s%s", name, args, err, out, exit.Stderr)
	} else if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// What is made is what the documents name, and SHA256SUMS tells of each file.
func TestFiles(t *testing.T) {
	dir, _ := packages(t)
	want := []string{
		"ScaleFT-Client-Tools-0.20.0.msi",
		"ScaleFT-Server-Tools-0.20.0.msi",
		"scaleft-client-tools-0.20.0-1.x86_64.rpm",
		"scaleft-client-tools-0.20.0-darwin-amd64.tar.gz",
		"scaleft-client-tools-0.20.0-linux-amd64.tar.gz",
		"scaleft-client-tools-0.20.0-windows-amd64.zip",
		"scaleft-client-tools_0.20.0-1_amd64.deb",
		"scaleft-server-tools-0.20.0-1.x86_64.rpm",
		"scaleft-server-tools-0.20.0-linux-amd64.tar.gz",
		"scaleft-server-tools-0.20.0-windows-amd64.zip",
		"scaleft-server-tools_0.20.0-1_amd64.deb",
		"sft-0.20.0.cdx.json",
		"sft-platform-0.20.0-1.x86_64.rpm",
		"sft-platform-0.20.0-linux-amd64.tar.gz",
		"sft-platform_0.20.0-1_amd64.deb",
		"userdata.ps1",
	}
	sums, err := os.Open(filepath.Join(dir, "SHA256SUMS"))
	if err != nil {
		t.Fatal(err)
	}
	defer sums.Close()
	var got []string
	for lines := bufio.NewScanner(sums); lines.Scan(); {
		sum, name, _ := strings.Cut(lines.Text(), "  ")
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if is := sha256.Sum256(data); hex.EncodeToString(is[:]) != sum {
			t.Errorf("SHA256SUMS has %s for %s, which is %x", sum, name, is)
		}
		got = append(got, name)
	}
	if !slices.Equal(got, want) {
		t.Errorf("SHA256SUMS has %q, want %q", got, want)
	}
	there, err := os.ReadDir(dir)
	if err != nil || len(there) != len(want)+1 {
		t.Errorf("there are %d files, want %d and SHA256SUMS (%v)", len(there), len(want), err)
	}
}

// An archive is one folder, of its own name, with programs that can be run and
// nothing of the machine that made it.
func TestArchives(t *testing.T) {
	dir, _ := packages(t)
	tarFiles := func(t *testing.T, name string) map[string]int64 {
		f, err := os.Open(filepath.Join(dir, name+".tar.gz"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		files := map[string]int64{}
		for r := tar.NewReader(z); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				return files
			} else if err != nil {
				t.Fatal(err)
			}
			if h.Uid != 0 || h.Gid != 0 || h.Uname != "" {
				t.Errorf("%s belongs to %d:%d (%q)", h.Name, h.Uid, h.Gid, h.Uname)
			}
			if h.Typeflag == tar.TypeReg {
				files[strings.TrimPrefix(h.Name, name+"/")] = h.Mode
			}
		}
	}
	zipFiles := func(t *testing.T, name string) map[string]int64 {
		r, err := zip.OpenReader(filepath.Join(dir, name+".zip"))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		files := map[string]int64{}
		for _, f := range r.File {
			if !f.FileInfo().IsDir() {
				files[strings.TrimPrefix(f.Name, name+"/")] = int64(f.Mode().Perm())
			}
		}
		return files
	}
	tests := []struct {
		name string
		read func(*testing.T, string) map[string]int64
		want map[string]int64
	}{
		{"scaleft-server-tools-0.20.0-linux-amd64", tarFiles, map[string]int64{"LICENSE": 0o644, "sftd": 0o755, "sftd.service": 0o644, "sftd-lock.service": 0o644, "sftd.sysusers": 0o644, "sftd.tmpfiles": 0o644}},
		{"scaleft-client-tools-0.20.0-linux-amd64", tarFiles, map[string]int64{"LICENSE": 0o644, "sft": 0o755, "completion.bash": 0o644, "completion.fish": 0o644, "completion.zsh": 0o644}},
		{"scaleft-client-tools-0.20.0-darwin-amd64", tarFiles, map[string]int64{"LICENSE": 0o644, "sft": 0o755, "completion.bash": 0o644, "completion.fish": 0o644, "completion.zsh": 0o644}},
		{"sft-platform-0.20.0-linux-amd64", tarFiles, map[string]int64{"LICENSE": 0o644, "sft-platform": 0o755, "sft-platform.service": 0o644, "sft-platform.sysusers": 0o644, "sft-platform.tmpfiles": 0o644}},
		{"scaleft-server-tools-0.20.0-windows-amd64", zipFiles, map[string]int64{"LICENSE": 0o644, "sftd.exe": 0o755, "userdata.ps1": 0o644}},
		{"scaleft-client-tools-0.20.0-windows-amd64", zipFiles, map[string]int64{"LICENSE": 0o644, "sft.exe": 0o755}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.read(t, tt.name); !maps.Equal(got, tt.want) {
				t.Errorf("it has %v, want %v", got, tt.want)
			}
		})
	}
}

// What excuses a program under test is not in those of a release.
func TestTags(t *testing.T) {
	dir, _ := packages(t)
	for name, exe := range map[string]string{"server": "sftd.exe", "client": "sft.exe"} {
		to := t.TempDir()
		run(t, "unzip", "-q", "-j", filepath.Join(dir, "scaleft-"+name+"-tools-0.20.0-windows-amd64.zip"), "*/"+exe, "-d", to)
		info, err := buildinfo.ReadFile(filepath.Join(to, exe))
		if err != nil {
			t.Fatal(err)
		}
		settings := map[string]string{}
		for _, s := range info.Settings {
			settings[s.Key] = s.Value
		}
		if settings["GOOS"] != "windows" || settings["CGO_ENABLED"] != "0" || settings["-tags"] != "" {
			t.Errorf("%s is built with %v", exe, settings)
		}
	}
}

// The bill of materials names each program, and the modules it is made of.
func TestSBOM(t *testing.T) {
	dir, _ := packages(t)
	b, err := os.ReadFile(filepath.Join(dir, "sft-"+version+".cdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		BomFormat, SpecVersion, SerialNumber string
		Metadata                             struct{ Component struct{ Version string } }
		Components                           []struct {
			Ref        string `json:"bom-ref"`
			Type, PURL string
			Licenses   []struct{ Expression string }
		}
		Dependencies []struct {
			Ref       string
			DependsOn []string
		}
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	if doc.BomFormat != "CycloneDX" || doc.SpecVersion != "1.5" || doc.Metadata.Component.Version != version || !strings.HasPrefix(doc.SerialNumber, "urn:uuid:") {
		t.Errorf("the document is %s %s, of version %q, %q", doc.BomFormat, doc.SpecVersion, doc.Metadata.Component.Version, doc.SerialNumber)
	}
	known := map[string]bool{"sft": true}
	var programs []string
	for _, c := range doc.Components {
		if known[c.Ref] {
			t.Errorf("%s is there twice", c.Ref)
		}
		known[c.Ref] = true
		if c.Type == "application" {
			programs = append(programs, c.Ref)
		} else if !strings.HasPrefix(c.PURL, "pkg:golang/") {
			t.Errorf("%s has the package URL %q", c.Ref, c.PURL)
		} else if len(c.Licenses) != 1 || c.Licenses[0].Expression == "" {
			t.Errorf("%s has the licences %q; read its file, and add it to the list of scripts/sbom", c.Ref, c.Licenses)
		}
	}
	want := []string{"linux/amd64/sft", "linux/amd64/sftd", "linux/amd64/sft-platform", "darwin/amd64/sft", "windows/amd64/sft.exe", "windows/amd64/sftd.exe"}
	if !slices.Equal(programs, want) {
		t.Errorf("it tells of %q, want %q", programs, want)
	}
	made := map[string]string{}
	for _, d := range doc.Dependencies {
		made[d.Ref] = strings.Join(d.DependsOn, " ")
		for _, on := range d.DependsOn {
			if !known[on] {
				t.Errorf("%s depends on %s, which is no component", d.Ref, on)
			}
		}
	}
	for ref, part := range map[string]string{"linux/amd64/sft-platform": "pkg:golang/modernc.org/sqlite@", "windows/amd64/sft.exe": "pkg:golang/github.com/microsoft/go-winio@"} {
		if !strings.Contains(made[ref], part) {
			t.Errorf("%s is made of %s; want %s among them", ref, made[ref], part)
		}
	}
	if strings.Contains(made["linux/amd64/sftd"], "sqlite") {
		t.Errorf("sftd is made of %s", made["linux/amd64/sftd"])
	}
}

// The user data is the one in the documents, with the version filled in, and is
// of Windows' own lines.
func TestUserData(t *testing.T) {
	dir, project := packages(t)
	got, err := os.ReadFile(filepath.Join(dir, "userdata.ps1"))
	if err != nil {
		t.Fatal(err)
	}
	docs, err := os.ReadFile(filepath.Join(project, "docs/install.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, shown, _ := strings.Cut(string(docs), "```ps1\n")
	shown, _, _ = strings.Cut(shown, "```")
	want := strings.ReplaceAll(strings.ReplaceAll(shown, "VERSION", version), "\n", "\r\n")
	if string(got) != want || !strings.Contains(want, "/v0.20.0/ScaleFT-Server-Tools-0.20.0.msi") {
		t.Errorf("the user data is\n%s\nwant, by docs/install.md,\n%s", got, want)
	}
}

// An rpm has the same files as the deb, but for the shell's own places, and
// the scripts know both.
func TestRPM(t *testing.T) {
	dir, project := packages(t)
	if _, err := exec.LookPath("rpm"); err != nil {
		t.Skip("SKIPPED: there is no rpm; run make setup")
	}
	for _, tt := range []struct{ name, script string }{{"scaleft-server-tools", "server"}, {"scaleft-client-tools", ""}, {"sft-platform", "platform"}} {
		t.Run(tt.name, func(t *testing.T) {
			rpm := filepath.Join(dir, tt.name+"-0.20.0-1.x86_64.rpm")
			var got, want []string
			for _, line := range strings.Split(strings.TrimSpace(run(t, "rpm", "-qp", "--nosignature", "--qf", "[%{FILENAMES} %{FILEMODES:perms} %{FILEUSERNAME}\n]", rpm)), "\n") {
				f := strings.Fields(line)
				if f[2] != "root" {
					t.Errorf("%s belongs to %s", f[0], f[2])
				}
				if f[1][0] == '-' {
					got = append(got, f[1]+" "+f[0])
				}
			}
			for _, line := range strings.Split(strings.TrimSpace(run(t, "dpkg-deb", "-c", filepath.Join(dir, tt.name+"_0.20.0-1_amd64.deb"))), "\n") {
				f := strings.Fields(line)
				if f[0][0] == '-' {
					name := strings.Replace(f[5][1:], "/zsh/vendor-completions/", "/zsh/site-functions/", 1)
					want = append(want, f[0]+" "+name)
				}
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("the rpm has %q, the deb %q", got, want)
			}
			if tt.script == "" {
				return
			}
			scripts := run(t, "rpm", "-qp", "--nosignature", "--scripts", rpm)
			for _, kind := range []string{"postinst", "prerm", "postrm"} {
				text, err := os.ReadFile(filepath.Join(project, "packaging/linux", tt.script+"."+kind))
				if err != nil {
					t.Fatal(err)
				}
				if !strings.Contains(scripts, strings.TrimSpace(string(text))) {
					t.Errorf("the rpm has not the script %s.%s:\n%s", tt.script, kind, scripts)
				}
			}
		})
	}
}
