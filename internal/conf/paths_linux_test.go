package conf

import (
	"testing"

	"sft"
)

func TestClientPaths(t *testing.T) {
	tests := []struct {
		name string
		env  map[string]string
		want Client
	}{
		{"the home folder is enough", map[string]string{"HOME": "/h"},
			Client{"/h/.local/state/ScaleFT", "/h/.config/ScaleFT/sft.yaml", "/h/.local/state/ScaleFT/run"}},
		{"the XDG variables win", map[string]string{"HOME": "/h", "XDG_STATE_HOME": "/s", "XDG_CONFIG_HOME": "/c", "XDG_RUNTIME_DIR": "/r"},
			Client{"/s/ScaleFT", "/c/ScaleFT/sft.yaml", "/r/ScaleFT"}},
		{"an XDG variable that is no full path counts as unset", map[string]string{"HOME": "/h", "XDG_STATE_HOME": "s", "XDG_RUNTIME_DIR": "."},
			Client{"/h/.local/state/ScaleFT", "/h/.config/ScaleFT/sft.yaml", "/h/.local/state/ScaleFT/run"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ClientPaths(func(k string) string { return tt.env[k] })
			if err != nil || got != tt.want {
				t.Errorf("got %+v, %v, want %+v", got, err, tt.want)
			}
		})
	}
	if _, err := ClientPaths(func(string) string { return "" }); sft.CodeOf(err) != sft.Invalid {
		t.Errorf("no home: %v, want a refusal", err)
	}
}
