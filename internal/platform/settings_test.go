package platform_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/platform"
	"sft/internal/testenv"
)

func TestSettings(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		ctx := t.Context()
		is := func(what string, want platform.TeamSettings) {
			t.Helper()
			var got platform.TeamSettings
			e.Do("GET", "/settings", nil, &got)
			if got != want {
				t.Errorf("%s: the settings are %+v, want %+v", what, got, want)
			}
		}
		is("at first", platform.TeamSettings{ClientSession: 36000, WebSession: 36000, AllowDeviceCode: true})
		events := since(e, func() { e.Do("PUT", "/settings", map[string]any{"client_session_duration": 3600}, nil) })
		is("after one", platform.TeamSettings{ClientSession: 3600, WebSession: 36000, AllowDeviceCode: true})
		if told(events) != "team_settings.update success" || events[0].Detail["client_session_duration"] != "3600 (was 36000)" || events[0].Detail["web_session_duration"] != "36000" {
			t.Errorf("it is told as %+v", events)
		}
		for what, body := range map[string]string{
			"too short": `{"client_session_duration":3599}`, "too long": `{"client_session_duration":90001}`, "a web session too short": `{"web_session_duration":1799,"client_session_duration":7200}`,
			"a setting that is not there": `{"client_session_duration":7200,"post_login_url":"https://example.com"}`, "another": `{"include_user_sid":"Never"}`,
		} {
			status, _ := raw(t, e, "PUT", "/settings", body)
			if status != 400 {
				t.Errorf("%s: %d", what, status)
			}
		}
		is("after what was refused", platform.TeamSettings{ClientSession: 3600, WebSession: 36000, AllowDeviceCode: true})

		// They are in force from then on.
		ann := e.Client("ann")
		e.Clock.Advance(time.Hour - time.Minute)
		wantCode(t, "before the hour is over", ann.Do(ctx, "GET", base+"/current_user", nil, nil), "")
		e.Clock.Advance(2 * time.Minute)
		wantCode(t, "after it", ann.Do(ctx, "GET", base+"/current_user", nil, nil), sft.SignIn)
		e.Service = e.Bearer(e.Init.Key.ID, e.Init.Key.Secret) // the token's hour is over

		e.Do("PUT", "/settings", map[string]any{"web_session_duration": 1800, "allow_device_code": false}, nil)
		_, spki := testenv.Key(t)
		wantCode(t, "a device code", e.Anonymous().Do(ctx, "POST", "/v1/clients/device_code", api.DeviceCodeRequest{Team: testenv.Team, DeviceKey: spki}, nil), sft.Denied)
		var link platform.CreateUserReply
		e.Do("POST", "/users", map[string]string{"name": "bob"}, &link)
		u, err := url.Parse(link.FirstUseURL)
		if err != nil {
			t.Fatal(err)
		}
		const password = "correct horse battery"
		first, err := e.Platform.SetFirstPassword(ctx, platform.Actor{}, sft.NewSecret(u.Query().Get("secret")), sft.NewSecret(password))
		if err != nil {
			t.Fatal(err)
		}
		again, err := e.Platform.SignIn(ctx, platform.Actor{}, testenv.Team, "bob", sft.NewSecret(password))
		if err != nil {
			t.Fatal(err)
		}
		for _, step := range []struct {
			by   time.Duration
			want bool
		}{{29 * time.Minute, true}, {2 * time.Minute, false}} {
			e.Clock.Advance(step.by)
			for _, cookie := range []sft.Secret{first, again} {
				if _, _, _, err := e.Platform.Web(ctx, cookie, ""); (err == nil) != step.want {
					t.Errorf("the web session of half an hour, %s later: %v", step.by, err)
				}
			}
		}
	})
}

// raw is the service user's request with a body as it is.
func raw(t *testing.T, e *testenv.Env, method, path, body string) (int, http.Header) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, e.URL+base+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+e.Service.Token)
	resp, err := e.HTTP().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode, resp.Header
}
