//go:build linux

package lab

import (
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"
)

// Watch remembers how the machine is. The function it returns tells what has
// changed since: interfaces, mounts, account files, and processes that this
// one left behind. It waits a moment for the kernel to finish.
//
// Someone else may change the machine meanwhile, so what it tells of is a
// reason to look, and to fail only where nobody else works.
func Watch() func() []string {
	before := look()
	return func() []string {
		var changes []string
		for end := time.Now().Add(2 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			changes = compare(before, look())
			if len(changes) == 0 || time.Now().After(end) {
				return changes
			}
		}
	}
}

// look returns what there is, one line a thing.
func look() []string {
	var found []string
	interfaces, _ := net.Interfaces()
	for _, i := range interfaces {
		found = append(found, "interface "+i.Name)
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		found = append(found, fmt.Sprintf("mount of %s at %s", f[2], f[1]))
	}
	for _, name := range []string{"/etc/passwd", "/etc/shadow", "/etc/group", "/etc/gshadow", "/etc/hosts", "/etc/subuid", "/etc/subgid"} {
		b, _ := os.ReadFile(name)
		found = append(found, fmt.Sprintf("%s with sum %x", name, sha256.Sum256(b)))
	}
	for _, p := range descendants(os.Getpid()) {
		found = append(found, fmt.Sprintf("process %d %s", p.PID, p.Name))
	}
	return found
}

// compare returns the differences between two looks.
func compare(before, after []string) []string {
	var changes []string
	count := map[string]int{}
	for _, s := range before {
		count[s]--
	}
	for _, s := range after {
		count[s]++
	}
	for s, n := range count {
		switch {
		case n > 0:
			changes = append(changes, "new: "+s)
		case n < 0:
			changes = append(changes, "gone: "+s)
		}
	}
	slices.Sort(changes)
	return changes
}

// descendants returns the processes below the given one.
func descendants(pid int) []Running {
	all := processes()
	var found []Running
	for next := []int{pid}; len(next) > 0; next = next[1:] {
		for _, p := range all {
			if p.Parent == next[0] {
				found = append(found, p)
				next = append(next, p.PID)
			}
		}
	}
	return found
}
