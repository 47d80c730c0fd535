package platform

import "testing"

// The log has no path of a webhook's address.
func TestShown(t *testing.T) {
	for name, want := range map[string]string{
		"https://hooks.example.com/services/T0/secret": "https://hooks.example.com/…",
		"https://hooks.example.com":                    "https://hooks.example.com",
		"syslog+tls://log.example.com:6514":            "syslog+tls://log.example.com:6514",
		"file:/var/log/sft/audit.jsonl":                "file:/var/log/sft/audit.jsonl",
	} {
		if got := Shown(name); got != want {
			t.Errorf("%s is shown as %s, want %s", name, got, want)
		}
	}
}
