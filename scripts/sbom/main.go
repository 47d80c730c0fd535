// Sbom writes what programs are made of, as a CycloneDX 1.5 document:
//
//	go run ./scripts/sbom -version 1.2.3 PROGRAM... > sbom.cdx.json
//
// It reads what the Go linker has put into each program, so it tells what is in
// there and not what a go.mod would allow. With SOURCE_DATE_EPOCH set, the same
// programs give the same bytes.
package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

type document struct {
	Format       string       `json:"bomFormat"`
	Spec         string       `json:"specVersion"`
	Serial       string       `json:"serialNumber"`
	Version      int          `json:"version"`
	Metadata     metadata     `json:"metadata"`
	Components   []component  `json:"components"`
	Dependencies []dependency `json:"dependencies"`
}

type metadata struct {
	Timestamp string    `json:"timestamp,omitempty"`
	Component component `json:"component"`
}

type component struct {
	Type       string     `json:"type"`
	Ref        string     `json:"bom-ref"`
	Name       string     `json:"name"`
	Version    string     `json:"version"`
	Licenses   []license  `json:"licenses,omitempty"`
	PURL       string     `json:"purl,omitempty"`
	Hashes     []hash     `json:"hashes,omitempty"`
	Properties []property `json:"properties,omitempty"`
}

// A license is one of component, an SPDX expression.
type license struct {
	Expression string `json:"expression"`
}

type hash struct {
	Alg     string `json:"alg"`
	Content string `json:"content"`
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type dependency struct {
	Ref       string   `json:"ref"`
	DependsOn []string `json:"dependsOn,omitempty"`
}

// licenses has what each module's licence file says, as an SPDX expression. One
// that is new has to be looked at, and added.
var licenses = map[string]string{
	"github.com/Microsoft/go-winio":                 "MIT",
	"github.com/beorn7/perks":                       "MIT",
	"github.com/cespare/xxhash/v2":                  "MIT",
	"github.com/danieljoos/wincred":                 "MIT",
	"github.com/dustin/go-humanize":                 "MIT",
	"github.com/elastic/go-seccomp-bpf":             "Apache-2.0",
	"github.com/go-jose/go-jose/v4":                 "Apache-2.0",
	"github.com/go-logr/logr":                       "Apache-2.0",
	"github.com/goccy/go-yaml":                      "MIT",
	"github.com/godbus/dbus/v5":                     "BSD-2-Clause",
	"github.com/google/uuid":                        "BSD-3-Clause",
	"github.com/inconshreveable/mousetrap":          "Apache-2.0",
	"github.com/jackc/pgpassfile":                   "MIT",
	"github.com/jackc/pgservicefile":                "MIT",
	"github.com/jackc/pgx/v5":                       "MIT",
	"github.com/jackc/puddle/v2":                    "MIT",
	"github.com/landlock-lsm/go-landlock":           "MIT",
	"github.com/mfridman/interpolate":               "MIT",
	"github.com/mholt/acmez/v3":                     "Apache-2.0",
	"github.com/munnerz/goautoneg":                  "BSD-3-Clause",
	"github.com/pressly/goose/v3":                   "MIT",
	"github.com/prometheus/client_golang":           "Apache-2.0",
	"github.com/prometheus/client_model":            "Apache-2.0",
	"github.com/prometheus/common":                  "Apache-2.0",
	"github.com/prometheus/procfs":                  "Apache-2.0",
	"github.com/remyoudompheng/bigfft":              "BSD-3-Clause",
	"github.com/sethvargo/go-retry":                 "Apache-2.0",
	"github.com/smallstep/pkcs7":                    "MIT",
	"github.com/spf13/cobra":                        "Apache-2.0",
	"github.com/spf13/pflag":                        "BSD-3-Clause",
	"github.com/zalando/go-keyring":                 "MIT",
	"go.uber.org/multierr":                          "MIT",
	"golang.org/x/crypto":                           "BSD-3-Clause",
	"golang.org/x/net":                              "BSD-3-Clause",
	"golang.org/x/sync":                             "BSD-3-Clause",
	"golang.org/x/sys":                              "BSD-3-Clause",
	"golang.org/x/term":                             "BSD-3-Clause",
	"golang.org/x/text":                             "BSD-3-Clause",
	"golang.org/x/time":                             "BSD-3-Clause",
	"google.golang.org/protobuf":                    "BSD-3-Clause",
	"k8s.io/apimachinery":                           "Apache-2.0",
	"k8s.io/klog/v2":                                "Apache-2.0",
	"k8s.io/utils":                                  "Apache-2.0",
	"kernel.org/pub/linux/libs/security/libcap/psx": "BSD-3-Clause OR GPL-2.0-only",
	"modernc.org/libc":                              "BSD-3-Clause",
	"modernc.org/mathutil":                          "BSD-3-Clause",
	"modernc.org/memory":                            "BSD-3-Clause",
	"modernc.org/sqlite":                            "BSD-3-Clause",
	"std":                                           "BSD-3-Clause",
}

// licensed is what is known of a module's licence; TestSBOM wants it known.
func licensed(module string) []license {
	if l, ok := licenses[module]; ok {
		return []license{{l}}
	}
	return nil
}

func main() {
	version := flag.String("version", "", "of the product")
	flag.Parse()
	if err := run(os.Stdout, *version, os.Getenv("SOURCE_DATE_EPOCH"), flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func run(out io.Writer, version, epoch string, programs []string) error {
	if version == "" || len(programs) == 0 {
		return fmt.Errorf("name a version and at least one program")
	}
	doc := document{Format: "CycloneDX", Spec: "1.5", Version: 1}
	doc.Metadata.Component = component{Type: "application", Ref: "sft", Name: "sft", Version: version}
	if epoch != "" {
		s, err := strconv.ParseInt(epoch, 10, 64)
		if err != nil {
			return fmt.Errorf("SOURCE_DATE_EPOCH is not a number of seconds: %w", err)
		}
		doc.Metadata.Timestamp = time.Unix(s, 0).UTC().Format(time.RFC3339)
	}
	modules := map[string]component{} // by bom-ref
	root := dependency{Ref: "sft"}
	var links []dependency
	sum := sha256.New()
	for _, path := range programs {
		c, deps, err := program(path, version)
		if err != nil {
			return err
		}
		io.WriteString(sum, c.Hashes[0].Content)
		link := dependency{Ref: c.Ref}
		for _, d := range deps {
			modules[d.Ref] = d
			link.DependsOn = append(link.DependsOn, d.Ref)
		}
		slices.Sort(link.DependsOn)
		doc.Components = append(doc.Components, c)
		root.DependsOn = append(root.DependsOn, c.Ref)
		links = append(links, link)
	}
	for _, ref := range slices.Sorted(maps.Keys(modules)) {
		doc.Components = append(doc.Components, modules[ref])
	}
	doc.Dependencies = append([]dependency{root}, links...)
	s := sum.Sum(nil)
	s[6], s[8] = s[6]&0x0f|0x80, s[8]&0x3f|0x80 // RFC 9562: a UUID of our own making
	doc.Serial = fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", s[:4], s[4:6], s[6:8], s[8:10], s[10:16])
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(doc)
}

// program is a program as a component, and the modules it is linked from.
func program(path, version string) (component, []component, error) {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return component{}, nil, fmt.Errorf("read what %s is made of: %w", path, err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return component{}, nil, err
	}
	sum := sha256.Sum256(data)
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	name := filepath.Base(path)
	system := settings["GOOS"] + "/" + settings["GOARCH"]
	c := component{Type: "application", Ref: system + "/" + name, Name: name, Version: version,
		Hashes:     []hash{{"SHA-256", hex.EncodeToString(sum[:])}},
		Properties: []property{{"sft:system", system}}}
	deps := []component{{Type: "library", Ref: "pkg:golang/std@" + info.GoVersion, Name: "std", Version: info.GoVersion, Licenses: licensed("std"),
		PURL: "pkg:golang/std@" + url.PathEscape(strings.TrimPrefix(info.GoVersion, "go"))}}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		purl := "pkg:golang/" + strings.ToLower(m.Path) + "@" + url.PathEscape(m.Version) // in lower case: purl-spec, type golang
		lib := component{Type: "library", Ref: purl, Name: m.Path, Version: m.Version, Licenses: licensed(m.Path), PURL: purl}
		// go.sum's h1 is a SHA-256 over the list of the module's files, not of a file.
		if h, ok := strings.CutPrefix(m.Sum, "h1:"); ok {
			if b, err := base64.StdEncoding.DecodeString(h); err == nil {
				lib.Properties = []property{{"go:h1", hex.EncodeToString(b)}}
			}
		}
		deps = append(deps, lib)
	}
	return c, deps, nil
}
