package sft

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// mayImport is the layout: which packages of the module each package may
// import. Imports go down, never sideways between the towers. What a package
// is not allowed here it does not get.
var mayImport = map[string]string{
	".":                    "",
	"internal/api":         ".",
	"internal/audit":       ".",
	"internal/frame":       ".",
	"internal/conf":        ".",
	"internal/doctor":      ".",
	"internal/daemon":      ".",
	"internal/rdp":         ".",
	"internal/rdp/rdptest": ". internal/rdp",
	"internal/relay":       "",
	"internal/policy":      ".",
	"internal/rdpsign":     ".",
	"internal/ca":          ". internal/conf internal/frame internal/rdpsign",
	"internal/cloudid":     ".",
	"internal/acme":        "",
	"internal/store":       ". internal/api internal/audit",
	"internal/platform":    ". internal/acme internal/api internal/audit internal/ca internal/cloudid internal/frame internal/policy internal/store",
	"internal/webapi":      ". internal/api internal/frame internal/platform",
	"internal/export":      ". internal/audit internal/conf",
	"internal/accounts":    ". internal/conf",
	"internal/privsep":     ".",
	"internal/sshd":        ". internal/conf",
	"internal/broker":      ". internal/frame internal/rdp internal/relay",
	"internal/agent":       ". internal/accounts internal/api internal/audit internal/broker internal/conf internal/frame internal/privsep internal/sshd",
	"internal/tunnel":      ". internal/api internal/frame internal/loopback internal/relay",
	"internal/loopback":    "",
	"internal/sshagent":    ".",
	"internal/launch":      ". internal/conf internal/frame internal/loopback internal/rdp internal/rdpsign internal/relay",
	"internal/client":      ". internal/api internal/audit internal/conf internal/doctor internal/frame internal/loopback internal/tunnel",
	"cmd/sft":              ". internal/api internal/client internal/conf internal/doctor internal/frame internal/launch internal/loopback internal/rdp internal/sshagent internal/tunnel",
	"cmd/sftd":             ". internal/accounts internal/agent internal/api internal/broker internal/conf internal/daemon internal/privsep",
	"cmd/sft-platform":     ". internal/acme internal/api internal/ca internal/cloudid internal/conf internal/daemon internal/doctor internal/export internal/platform internal/store internal/webapi",
	"e2e/lab":              "",
	"e2e/stage":            ". e2e/lab internal/api internal/audit",
	"e2e/demo":             "e2e/lab e2e/stage internal/audit",
	"e2e":                  "",
	"e2e/shell":            "",
	"e2e/wine":             "",
	"e2e/wine/mstsc":       ". internal/launch internal/rdp/rdptest",
	"e2e/bench":            ". e2e/lab e2e/stage internal/api internal/audit internal/ca internal/platform internal/rdp internal/rdp/rdptest internal/store",
	"internal/testenv":     ". internal/api internal/ca internal/cloudid internal/platform internal/store internal/webapi internal/audit internal/testdb",
	"internal/testdb":      "",
	"e2e/dist":             "e2e/lab",
	"scripts/sbom":         "",
	"scripts/testsum":      "",
}

// mustNotLink says what must not be in a program, by whatever way: it would
// be reach that the program has no use for.
var mustNotLink = map[string][]string{
	"cmd/sft":          {"internal/store", "internal/ca", "internal/policy", "internal/platform", "internal/accounts", "internal/broker", "internal/acme", "database/sql", "k8s.io/apimachinery/pkg/labels"},
	"cmd/sftd":         {"internal/ca", "internal/cloudid", "internal/store", "internal/policy", "internal/platform", "internal/tunnel", "internal/client", "internal/sshagent", "internal/acme", "database/sql", "k8s.io/apimachinery/pkg/labels"},
	"cmd/sft-platform": {"internal/accounts", "internal/privsep", "internal/tunnel", "internal/client"},
}

type goPackage struct {
	ImportPath    string
	Imports, Deps []string
}

func goList(t *testing.T, args ...string) []goPackage {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,Deps"}, args...)...)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var list []goPackage
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
}

// local is a package's place in the module, or "" for one of others.
func local(path string) string {
	if path == "sft" {
		return "."
	}
	if p, ok := strings.CutPrefix(path, "sft/"); ok {
		return p
	}
	return ""
}

func TestImports(t *testing.T) {
	there := map[string]bool{}
	defer func() {
		for name := range mayImport {
			if !there[name] {
				t.Errorf("the layout has a row for %s, which is no package", name)
			}
		}
	}()
	for _, p := range goList(t, "./...") {
		name := local(p.ImportPath)
		there[name] = true
		allowed, ok := mayImport[name]
		if !ok {
			t.Errorf("package %s is not in the layout: give it a row in mayImport, and ARCHITECTURE.md a line", name)
			continue
		}
		for _, i := range p.Imports {
			if l := local(i); l != "" && !slices.Contains(strings.Fields(allowed), l) {
				t.Errorf("%s imports %s, which the layout does not allow", name, l)
			}
			if name == "." && strings.Contains(i, ".") {
				t.Errorf("the root package imports %s; it has the standard library alone", i)
			}
		}
	}
}

func TestLinks(t *testing.T) {
	for cmd, banned := range mustNotLink {
		for _, p := range goList(t, "./"+cmd) {
			for _, d := range p.Deps {
				name := d
				if l := local(d); l != "" {
					name = l
				}
				if slices.Contains(banned, name) {
					t.Errorf("%s links %s", cmd, name)
				}
			}
		}
	}
}
