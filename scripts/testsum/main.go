// Testsum reads the events of "go test -json" from standard input, prints what
// failed with all it wrote, a line for each package, and at the end how many
// tests passed, failed and were skipped. In CI a skipped test is a failure:
// everything that the tests need can be installed.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"sort"
	"strings"
)

type event struct {
	Action, Package, Test, Output, ImportPath string
	Elapsed                                   float64
}

func main() { os.Exit(run()) }

func run() int {
	output := map[string][]string{}
	var passed, failed, skipped int
	var skips []string
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 16<<20)
	broken := false
	ran := false
	for in.Scan() {
		var e event
		if json.Unmarshal(in.Bytes(), &e) != nil {
			fmt.Println(in.Text()) // not an event: what a tool said
			continue
		}
		ran = true
		key := e.Package + " " + e.Test
		switch e.Action {
		case "output":
			if o := strings.TrimSpace(e.Output); !strings.HasPrefix(o, "=== ") {
				output[key] = append(output[key], e.Output)
			}
		case "build-output":
			fmt.Print(e.Output)
		case "build-fail":
			broken = true
		case "pass", "fail", "skip":
			if e.Test == "" {
				if e.Action != "skip" {
					fmt.Printf("%-4s %s %.1fs\n", e.Action, e.Package, e.Elapsed)
				}
				if e.Action == "fail" {
					broken = true
					fmt.Print(strings.Join(output[key], ""))
				}
				continue
			}
			switch e.Action {
			case "pass":
				passed++
			case "fail":
				failed++
				fmt.Print(strings.Join(output[key], ""))
			case "skip":
				skipped++
				skips = append(skips, key+": "+strings.TrimSpace(strings.Join(output[key], " ")))
			}
			delete(output, key)
		}
	}
	sort.Strings(skips)
	for _, s := range skips {
		fmt.Println("SKIPPED", s)
	}
	if broken && failed == 0 {
		failed++
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped)
	switch {
	case !ran || passed == 0 || failed > 0:
		return 1
	case skipped > 0 && os.Getenv("CI") == "true":
		fmt.Println("testsum: skipped tests are failures in CI")
		return 1
	}
	return 0
}
