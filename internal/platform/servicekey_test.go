package platform_test

import (
	"testing"
	"time"

	"sft"
	"sft/internal/audit"
	"sft/internal/platform"
	"sft/internal/testenv"
)

// Whoever has the platform's files gets a key that opens the API, also where
// there was none; the keys before it end in a day.
func TestNewServiceKey(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Do("POST", "/service_users", m{"name": "off"}, nil)
		e.Do("PUT", "/service_users/off", m{"status": "DISABLED"}, nil)
		opens := func(what string, k platform.KeyReply, code sft.Code) {
			t.Helper()
			wantCode(t, what, e.Bearer(k.ID, k.Secret).Do(t.Context(), "POST", base+"/projects", m{"name": "p" + audit.NewID()}, nil), code)
		}
		make := func(user string, create bool, want ...audit.Kind) platform.KeyReply {
			t.Helper()
			before := e.Events()
			k, err := e.Platform.NewServiceKey(t.Context(), user, create)
			if err != nil {
				t.Fatal(err)
			}
			var kinds []audit.Kind
			for _, v := range e.Events()[len(before):] {
				kinds = append(kinds, v.Kind)
				if v.Actor != (audit.Actor{Kind: "platform", Name: "service-key"}) || v.Team != "main" {
					t.Errorf("%s is told as %+v", user, v)
				}
			}
			sameKinds(t, kinds, want)
			return k
		}
		first := make("robot2", true, audit.UserCreate, audit.MemberAdd, audit.KeyRotate)
		opens("the first key", first, "")
		second := make("ROBOT2", false, audit.KeyRotate)
		opens("the second", second, "")
		opens("the first, on that day", first, "")
		third := make("robot2", true, audit.KeyRotate) // it is there
		e.Clock.Advance(25 * time.Hour)
		err := e.Anonymous().Do(t.Context(), "POST", base+"/service_token", m{"key_id": first.ID, "key_secret": first.Secret}, nil)
		wantCode(t, "the first, a day later", err, sft.SignIn)
		opens("the third", third, "")

		for _, tt := range []struct {
			name, user string
			create     bool
			code       sft.Code
		}{
			{"nobody", "nobody", false, sft.NotFound},
			{"a person", "olive", true, sft.Invalid},
			{"one who was disabled", "off", true, sft.Denied},
			{"a name that cannot be", "a b", true, sft.Invalid},
		} {
			before := e.Events()
			k, err := e.Platform.NewServiceKey(t.Context(), tt.user, tt.create)
			wantCode(t, tt.name, err, tt.code)
			if k.Secret != "" || len(e.Events()) != len(before) {
				t.Errorf("%s: %+v, and %d events", tt.name, k.ServiceKey, len(e.Events())-len(before))
			}
		}
		// A group that is no administrator's makes nobody one.
		robot := e.Bearer(third.ID, third.Secret)
		for _, q := range [][2]any{{"/groups", m{"name": "ops", "roles": []string{"access_admin"}}}, {"/groups/ops/users", m{"name": "robot2"}}} {
			if err := robot.Do(t.Context(), "POST", base+q[0].(string), q[1], nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := robot.Do(t.Context(), "PUT", base+"/groups/"+platform.Automation, m{"roles": []string{}}, nil); err != nil {
			t.Fatal(err)
		}
		_, err = e.Platform.NewServiceKey(t.Context(), "robot3", true)
		wantCode(t, "with a group that has no such role", err, sft.Denied)
		if err := robot.Do(t.Context(), "DELETE", base+"/groups/"+platform.Automation, nil, nil); err != nil {
			t.Fatal(err)
		}
		k, err := e.Platform.NewServiceKey(t.Context(), "robot3", true)
		if err != nil {
			t.Fatal(err)
		}
		opens("with a group that was made for it", k, "")
	})
}

func sameKinds(t *testing.T, got, want []audit.Kind) {
	t.Helper()
	left := map[audit.Kind]int{}
	for _, k := range got {
		left[k]++
	}
	for _, k := range want {
		left[k]--
	}
	for k, n := range left {
		if n != 0 {
			t.Errorf("the events are %q, want %q (%s)", got, want, k)
		}
	}
}
