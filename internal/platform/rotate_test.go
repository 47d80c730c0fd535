package platform_test

import (
	"crypto/ecdsa"
	"crypto/x509"
	"slices"
	"strings"
	"testing"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/testenv"
)

// A keyed server can ask for another device key.
type keyed struct {
	t *testing.T
	e *testenv.Env
	*testenv.Server
}

// rotation is what old and next sign now, for the server.
func (k keyed) rotation(old, next *ecdsa.PrivateKey) api.DeviceKeyRequest {
	k.t.Helper()
	r, err := api.SignRotation(old, next, k.ID, k.e.URL, k.e.Clock.Now())
	if err != nil {
		k.t.Fatal(err)
	}
	return r
}

func (k keyed) send(r api.DeviceKeyRequest) error {
	return k.e.Anonymous().Do(k.t.Context(), "POST", api.RotatePath, r, nil)
}

// live tells whether the platform answers to the key.
func (k keyed) live(key *ecdsa.PrivateKey) error {
	return k.e.Signed(key, "server:"+k.ID).Do(k.t.Context(), "GET", "/v1/agent/state?after=-1", nil, nil)
}

func (k keyed) conflict() bool {
	var v sft.Server
	k.e.Do("GET", "/projects/prod/servers/"+k.ID, nil, &v)
	return v.KeyConflict
}

// Only both keys together bring a new one in; the old one is of no use from
// then on, and whoever uses it is found out.
func TestDeviceKeyRotation(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Grant(testenv.Project, "dev", false, "ann")
		ann := e.Client("ann")
		k := keyed{t, e, e.Server(testenv.Project, testenv.Facts("web01"))}
		other := e.Server(testenv.Project, testenv.Facts("web02"))
		gone := e.Server(testenv.Project, testenv.Facts("web03"))
		e.Do("DELETE", "/projects/prod/servers/"+gone.ID, nil, nil)
		hop := unmanaged(t, e, testenv.Project, map[string]any{"hostname": "hop", "access_address": "192.0.2.99"}).ID
		first := k.Key
		next, _ := testenv.Key(t)
		stranger, _ := testenv.Key(t)

		good := k.rotation(first, next)
		late := k.rotation(first, next)
		change := func(f func(*api.DeviceKeyRequest)) api.DeviceKeyRequest { r := good; f(&r); return r }
		old, err := api.SignRotation(first, next, k.ID, e.URL, e.Clock.Now().Add(-2*time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		elsewhere, err := api.SignRotation(first, next, k.ID, "https://other.example", e.Clock.Now())
		if err != nil {
			t.Fatal(err)
		}
		header, err := api.Sign(first, "server:"+k.ID, e.URL, "POST", api.RotatePath, good.DeviceKey, e.Clock.Now())
		if err != nil {
			t.Fatal(err)
		}
		events := since(e, func() {
			for _, tt := range []struct {
				name string
				r    api.DeviceKeyRequest
				want sft.Code
			}{
				{"nothing", api.DeviceKeyRequest{}, sft.Invalid},
				{"no words", change(func(r *api.DeviceKeyRequest) { r.OldProof, r.NewProof = "", "" }), sft.SignIn},
				{"noise", change(func(r *api.DeviceKeyRequest) { r.OldProof = "noise" }), sft.SignIn},
				{"too much", change(func(r *api.DeviceKeyRequest) { r.NewProof = strings.Repeat("a", 20<<10) }), sft.SignIn},
				{"the old key's word alone", change(func(r *api.DeviceKeyRequest) { r.NewProof = r.OldProof }), sft.SignIn},
				{"the new key's word alone", change(func(r *api.DeviceKeyRequest) { r.OldProof = r.NewProof }), sft.SignIn},
				{"the new key's word for another signature", change(func(r *api.DeviceKeyRequest) { r.NewProof = late.NewProof }), sft.SignIn},
				{"a request in the old key's place", change(func(r *api.DeviceKeyRequest) { r.OldProof = strings.TrimPrefix(header, "Bearer ") }), sft.SignIn},
				{"another new key", change(func(r *api.DeviceKeyRequest) { r.DeviceKey = k.rotation(first, stranger).DeviceKey }), sft.SignIn},
				{"the new key for both", k.rotation(next, next), sft.SignIn},
				{"another server's key", k.rotation(other.Key, next), sft.SignIn},
				{"to another server's key", k.rotation(first, other.Key), sft.Exists},
				{"to a deleted server's key", k.rotation(first, gone.Key), sft.Exists},
				{"to itself", k.rotation(first, first), sft.Exists},
				{"for another server", change(func(r *api.DeviceKeyRequest) { r.ServerID = other.ID }), sft.SignIn},
				{"for none", change(func(r *api.DeviceKeyRequest) { r.ServerID = "x" }), sft.SignIn},
				{"for one without an agent", change(func(r *api.DeviceKeyRequest) { r.ServerID = hop }), sft.SignIn},
				{"for one that is deleted", change(func(r *api.DeviceKeyRequest) { r.ServerID = gone.ID }), sft.Revoked},
				{"for another platform", elsewhere, sft.SignIn},
				{"of two minutes ago", old, sft.ClockSkew},
			} {
				wantCode(t, tt.name, k.send(tt.r), tt.want)
			}
		})
		if len(events) != 0 {
			t.Errorf("what is refused is told as %s", told(events))
		}
		wantCode(t, "the old key still", k.live(first), "")

		events = since(e, func() { wantCode(t, "both keys", k.send(good), "") })
		if told(events) != "server.device_key_rotate success" || events[0].Actor.ID != k.ID || events[0].Target != "web01" || events[0].Project != "prod" || events[0].Detail["key_sha256"] == events[0].Detail["old_key_sha256"] {
			t.Errorf("that is told as %+v", events)
		}
		wantCode(t, "the new key", k.live(next), "")
		events = since(e, func() {
			// What was on its way while the key changed is refused, and no alarm.
			wantCode(t, "the old key", k.live(first), sft.SignIn)
			wantCode(t, "the same again", k.send(good), "")
			wantCode(t, "a request whose reply was lost", k.send(late), "")
			wantCode(t, "the old key for a third", k.send(k.rotation(first, stranger)), sft.SignIn)
		})
		if len(events) != 0 || k.conflict() {
			t.Errorf("what was on its way is told as %s", told(events))
		}
		wantCode(t, "back to the old key", k.send(k.rotation(next, first)), sft.Exists)
		spki, err := x509.MarshalPKIXPublicKey(&first.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		err = e.Anonymous().Do(t.Context(), "POST", api.EnrollPath, api.EnrollServerRequest{Token: e.Token("prod"), DeviceKey: spki, Facts: testenv.Facts("web09")}, nil)
		wantCode(t, "another record for the old key", err, sft.Enrolled)

		// A third key; then who took the first one comes back.
		third, _ := testenv.Key(t)
		e.Clock.Advance(10 * time.Second)
		wantCode(t, "a third key", k.send(k.rotation(next, third)), "")
		wantCode(t, "the first request, again", k.send(good), sft.SignIn)
		if k.conflict() {
			t.Error("a replay is taken for a copy")
		}
		e.Clock.Advance(10 * time.Second)
		events = since(e, func() {
			wantCode(t, "a stolen key", k.live(first), sft.SignIn)
		})
		wantCode(t, "a stolen key, rotating back", k.send(k.rotation(next, first)), sft.SignIn)
		if told(events) != "server.key_conflict refused" || events[0].Detail["why"] != "a device key that another took the place of was used" || events[0].Actor.ID != k.ID || !k.conflict() {
			t.Errorf("a stolen key is told as %+v", events)
		}
		_, _, err = e.Connect(ann, "web01")
		wantCode(t, "connecting then", err, sft.Denied)
		wantCode(t, "the host, which knows no better", k.live(third), "")
		fourth, _ := testenv.Key(t)
		wantCode(t, "another key then", k.send(k.rotation(third, fourth)), sft.Denied)
		wantCode(t, "one that is there already", k.send(k.rotation(next, third)), "")

		e.Do("PUT", "/projects/prod/servers/"+k.ID, map[string]bool{"key_conflict": false}, nil)
		wantCode(t, "another key once it is decided", k.send(k.rotation(third, fourth)), "")
		_, _, err = e.Connect(ann, "web01")
		wantCode(t, "connecting once it is decided", err, "")
	})
}

// A copy of a host that changes the key first does not get away with it: the
// host itself, which has the old key, is the alarm.
func TestDeviceKeyRotationByACopy(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		k := keyed{t, e, e.Server(testenv.Project, testenv.Facts("web01"))}
		stolen, _ := testenv.Key(t)
		wantCode(t, "the copy", k.send(k.rotation(k.Key, stolen)), "")
		e.Clock.Advance(time.Minute)
		own, _ := testenv.Key(t)
		events := since(e, func() { wantCode(t, "the host", k.send(k.rotation(k.Key, own)), sft.SignIn) })
		if told(events) != "server.key_conflict refused" || !k.conflict() {
			t.Errorf("it is told as %s", told(events))
		}
		another, _ := testenv.Key(t)
		wantCode(t, "the copy again", k.send(k.rotation(stolen, another)), sft.Denied)
	})
}

// Which key is due, the platform's clock says, and no two at one time; or an
// administrator.
func TestDeviceKeyIsDue(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		var list []keyed
		for _, name := range []string{"a", "b", "c"} {
			list = append(list, keyed{t, e, e.Server(testenv.Project, testenv.Facts(name))})
		}
		due := func() (names []string) {
			for _, k := range list {
				if e.State(k.Server).RotateDeviceKey {
					names = append(names, k.Facts.Hostname)
				}
			}
			return names
		}
		start := e.Clock.Now()
		e.Clock.Set(start.Add(27*24*time.Hour - time.Second))
		if got := due(); len(got) != 0 {
			t.Errorf("before 27 days %v are due", got)
		}
		var after []time.Duration
		for h := 27 * 24; len(after) < len(list) && h <= 30*24; h++ {
			e.Clock.Set(start.Add(time.Duration(h) * time.Hour))
			for n := len(due()); len(after) < n; {
				after = append(after, e.Clock.Now().Sub(start))
			}
		}
		if len(after) != len(list) || len(slices.Compact(after)) == 1 {
			t.Errorf("keys were due after %v", after)
		}
		for _, k := range list {
			next, _ := testenv.Key(t)
			wantCode(t, "another key", k.send(k.rotation(k.Key, next)), "")
			k.Key = next
		}
		if got := due(); len(got) != 0 {
			t.Errorf("after they changed, %v are due", got)
		}
		k := list[1]
		put := func(id string, body any) error {
			return e.Service.Do(t.Context(), "PUT", base+"/projects/prod/servers/"+id, body, nil)
		}
		e.Service = e.Bearer(e.Init.Key.ID, e.Init.Key.Secret) // the one before has ended
		before := e.State(k.Server).Revision
		wantCode(t, "on demand", put(k.ID, map[string]bool{"rotate_device_key": true}), "")
		wantCode(t, "of a server without an agent", put(unmanaged(t, e, testenv.Project, map[string]any{"hostname": "hop", "access_address": "192.0.2.99"}).ID, map[string]bool{"rotate_device_key": true}), sft.Invalid)
		if got := due(); !slices.Equal(got, []string{"b"}) || e.State(k.Server).Revision == before {
			t.Errorf("on demand, %v are due", got)
		}
		next, _ := testenv.Key(t)
		events := since(e, func() { wantCode(t, "on demand", k.send(k.rotation(k.Key, next)), "") })
		k.Key = next
		if got := due(); len(got) != 0 || told(events) != "server.device_key_rotate success" {
			t.Errorf("after that %v are due, told as %s", got, told(events))
		}
	})
}
