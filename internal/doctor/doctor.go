// Package doctor is how the programs tell of a diagnosis: as a list of steps,
// each with what was found and, where something is wrong, what to do. A person
// reads a line for each step while they happen, and a program all of them as
// JSON.
package doctor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"sft"
)

// A Verdict is how one step of a diagnosis went.
type Verdict string

// The verdicts.
const (
	OK   Verdict = "ok"
	Warn Verdict = "warn" // it works, and something should be changed
	Fail Verdict = "fail"
	Skip Verdict = "skip" // it was not tried: what it needs failed, or is not there
)

// A Check is what a diagnosis found in one step.
type Check struct {
	Step    string   `json:"step"`
	Verdict Verdict  `json:"verdict"`
	Found   string   `json:"found"`
	Fix     string   `json:"fix,omitempty"`  // what to do, as an order
	Code    sft.Code `json:"code,omitempty"` // of a failure
}

// Failed is the check of a step that failed with err.
func Failed(step string, err error) Check {
	c := Check{Step: step, Verdict: Fail, Found: err.Error(), Code: sft.CodeOf(err)}
	if e, ok := errors.AsType[*sft.Error](err); ok {
		c.Fix = e.Hint
	}
	return c
}

// String is the check as a line, without what could steer a terminal.
func (c Check) String() string {
	line := fmt.Sprintf("%-4s  %-15s  %s", c.Verdict, c.Step, sft.Printable(c.Found))
	if c.Fix != "" {
		line += "; fix: " + sft.Printable(c.Fix)
	}
	return line
}

// A Report prints a diagnosis.
type Report struct {
	Out  io.Writer
	JSON bool // all checks in the end, and no line for each

	checks []Check
	err    error // of writing
}

// Add takes the next check.
func (r *Report) Add(c Check) {
	r.checks = append(r.checks, c)
	if !r.JSON && r.err == nil {
		_, r.err = fmt.Fprintln(r.Out, c)
	}
}

// End ends the report. It returns the failure with the highest exit status, or
// nil if there was none; or why the report could not be written.
func (r *Report) End() (worst *Check, err error) {
	if r.JSON {
		if r.checks == nil {
			r.checks = []Check{}
		}
		e := json.NewEncoder(r.Out)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		r.err = e.Encode(r.checks)
	}
	exit := 0
	for i, c := range r.checks {
		if n := c.Code.Info().Exit; c.Verdict == Fail && n > exit {
			worst, exit = &r.checks[i], n
		}
	}
	return worst, r.err
}
