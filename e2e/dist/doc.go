// Package dist tests the packages that "make dist" makes: they are installed,
// upgraded and removed, on hosts with systemd and under Wine, and what they
// leave behind is looked at. "make dist-test" makes the packages for it.
package dist
