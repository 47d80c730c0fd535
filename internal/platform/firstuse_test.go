package platform_test

import (
	"net/url"
	"strings"
	"testing"

	"sft"
	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/platform"
	"sft/internal/testenv"
)

func TestNewFirstUse(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.User("ann")
		e.User("dora")
		e.Do("PUT", "/users/dora", map[string]string{"status": "DISABLED"}, nil)
		secret := func(link string) sft.Secret {
			t.Helper()
			u, err := url.Parse(link)
			if err != nil || !strings.HasPrefix(link, e.URL+"/first-use?secret=") {
				t.Fatalf("the link is %q", link)
			}
			return sft.NewSecret(u.Query().Get("secret"))
		}
		tests := []struct {
			name, team, user string
			code             sft.Code
		}{
			{"the owner, whose first link was lost", "", "olive", ""},
			{"somebody of a team that is named", "MAIN", "Ann", ""},
			{"nobody", "", "nobody", sft.NotFound},
			{"another team", "other", "ann", sft.NotFound},
			{"a service user", "", testenv.ServiceUser, sft.Invalid},
			{"a user who was disabled", "", "dora", sft.Denied},
		}
		for _, tt := range tests {
			before := e.Events()
			link, err := e.Platform.NewFirstUse(t.Context(), tt.team, tt.user)
			wantCode(t, tt.name, err, tt.code)
			told := e.Events()[len(before):]
			if err != nil {
				if link != "" || len(told) != 0 {
					t.Errorf("%s: %q, %+v", tt.name, link, told)
				}
				continue
			}
			if len(told) != 1 || told[0].Kind != audit.PasswordChange || told[0].Actor != (audit.Actor{Kind: "platform", Name: "first-use"}) ||
				told[0].Team != "main" || !strings.EqualFold(told[0].Target, tt.user) || told[0].Detail["how"] != "one-time link made" {
				t.Errorf("%s is told as %+v", tt.name, told)
			}
			if _, err := e.Platform.FirstUse(t.Context(), secret(link)); err != nil {
				t.Errorf("%s: the link: %v", tt.name, err)
			}
		}
		_, err := e.Platform.FirstUse(t.Context(), secret(e.Init.FirstUseURL))
		wantCode(t, "the link before", err, sft.Denied)
	})
}

// The database alone is not enough.
func TestNewFirstUseNeedsTheMasterKey(t *testing.T) {
	e := testenv.New(t)
	path := t.TempDir() + "/other.key"
	if err := ca.NewMasterKey(path); err != nil {
		t.Fatal(err)
	}
	other, err := ca.OpenSealer(path)
	if err != nil {
		t.Fatal(err)
	}
	p, err := platform.New(t.Context(), e.DB, other, e.Platform.Log, e.Clock.Now)
	if err != nil {
		t.Fatal(err)
	}
	if link, err := p.NewFirstUse(t.Context(), "", "olive"); err == nil || link != "" {
		t.Errorf("with another master key: %q, %v", link, err)
	}
}
