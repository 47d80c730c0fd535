package webapi_test

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/testenv"
	"sft/internal/webapi"
)

// Each code that the document has is what the platform answers to some
// request, with the status of the table. The others are those of brokers and
// of sft itself, which are not in the document.
func TestEveryCodeOfThePlatform(t *testing.T) { testenv.Each(t, everyCodeOfThePlatform) }

func everyCodeOfThePlatform(t *testing.T, e *testenv.Env) {
	as, m := cast(t, e)
	said := map[sft.Code]bool{}
	for _, list := range regexp.MustCompile("\"description\": \"(`[a-z_]+`(, `[a-z_]+`)*)\"").FindAllString(string(webapi.Reference), -1) {
		for _, c := range regexp.MustCompile("`[a-z_]+`").FindAllString(list, -1) {
			said[sft.Code(c[1:len(c)-1])] = true
		}
	}
	do := func(who caller, method, path, body string) (int, string) {
		t.Helper()
		ct := contentType([]byte(body))
		if strings.Contains(body, "typed") {
			ct = "text/plain"
		}
		return call(t, e, who, method, path, ct, []byte(body))
	}
	again := func(who caller) caller { // signs once, and sends that each time
		header := ""
		return func(method, path string, body []byte) string {
			if header == "" {
				header = who(method, path, body)
			}
			return header
		}
	}
	own := e.Client("ann")
	late := &api.Clock{Machine: func() time.Time { return e.Clock.Now().Add(time.Hour) }}
	gone := e.Client("ben")
	if err := gone.Do(t.Context(), "DELETE", base+"/clients/"+gone.ID, nil, nil); err != nil {
		t.Fatal(err)
	}
	other := e.Server("lab", testenv.Facts("web01"))
	e.Grant("lab", "lab", false, testenv.Owner)
	deviceCode := func() string {
		_, spki := testenv.Key(t)
		var r api.DeviceCodeReply
		if err := e.Anonymous().Do(t.Context(), "POST", "/v1/clients/device_code", api.DeviceCodeRequest{Team: testenv.Team, DeviceKey: spki, Device: api.DeviceInfo{Hostname: "h"}}, &r); err != nil {
			t.Fatal(err)
		}
		b, _ := json.Marshal(api.EnrollClientRequest{DeviceCode: r.DeviceCode, DeviceKey: spki, Device: api.DeviceInfo{Hostname: "h"}})
		return string(b)
	}
	enroll := func() string { // a key that a server has, and has used
		spki, _ := x509.MarshalPKIXPublicKey(&other.Key.PublicKey)
		b, _ := json.Marshal(api.EnrollServerRequest{Token: e.Token(testenv.Project), DeviceKey: spki, Facts: testenv.Facts("web02")})
		return string(b)
	}
	for _, name := range []string{"keyed", "other"} {
		status, got := withKey(t, e, as[robot], "POST", base+"/groups", "k", []byte(`{"name":"`+name+`"}`))
		if name == "other" && (status != sft.KeyReused.Info().Status || !strings.Contains(got, string(sft.KeyReused))) {
			t.Errorf("a key with another body: %d %s", status, got)
		}
	}
	delete(said, sft.KeyReused)
	connect := string(m.body(`{"target":"prod/web01","service":"x","csr":"$C"}`))
	// Each is sent until it gets the code, at most so often.
	for _, tt := range []struct {
		code         sft.Code
		who          caller
		method, path string
		body         string
		times        int
	}{
		{sft.Invalid, as[robot], "POST", base + "/groups", `{"name":"a b"}`, 1},
		{sft.ContentType, as[robot], "POST", base + "/groups", `{"name":"typed"}`, 1},
		{sft.SignIn, as[nobody], "GET", base + "/users", "", 1},
		{sft.ClockSkew, func(method, path string, body []byte) string {
			h, err := api.Sign(own.Key, own.Issuer, own.URL, method, path, body, late.Now())
			if err != nil {
				t.Fatal(err)
			}
			return h
		}, "GET", base + "/users", "", 1},
		{sft.Replayed, again(as[admin]), "POST", base + "/groups", `{"name":"once"}`, 2},
		{sft.Revoked, signer(t, gone.Client), "GET", base + "/users", "", 1},
		{sft.Denied, as[plain], "POST", base + "/groups", `{"name":"x"}`, 1},
		{sft.NotFound, as[robot], "GET", base + "/groups/none", "", 1},
		{sft.Ambiguous, as[admin], "GET", base + "/resolve?target=web01", "", 1},
		{sft.Exists, as[robot], "POST", base + "/groups", `{"name":"twice"}`, 2},
		{sft.Enrolled, as[nobody], "POST", "/v1/servers/enroll", enroll(), 1},
		{sft.Pending, as[nobody], "POST", "/v1/clients/enroll", deviceCode(), 1},
		{sft.TooMany, as[nobody], "POST", base + "/service_token", `{"key_id":"x","key_secret":"y"}`, 100},
		{sft.UnknownService, as[admin], "POST", base + "/connect", connect, 1},
		{sft.Unavailable, as[admin], "POST", base + "/connect", `{"target":"prod/web01","service":"ssh","csr":""}`, 1},
		{sft.Internal, as[nobody], "POST", base + "/service_token", `{"key_id":"x","key_secret":"y"}`, 1}, // the last: its database is gone
	} {
		if tt.code == sft.Internal {
			e.Clock.Advance(time.Minute)
			e.DB.Close()
		}
		var got []string
		for range tt.times {
			status, code := do(tt.who, tt.method, tt.path, tt.body)
			got = append(got, fmt.Sprint(status, " ", code))
			if code == string(tt.code) {
				break
			}
		}
		if want := fmt.Sprint(tt.code.Info().Status, " ", tt.code); got[len(got)-1] != want {
			t.Errorf("%s %s %s is answered with %q, want %s in the end", tt.method, tt.path, tt.body, got, want)
		}
		if !said[tt.code] {
			t.Errorf("the document does not have %s", tt.code)
		}
		delete(said, tt.code)
	}
	for c := range said {
		t.Errorf("the document has %s, which no request here gets", c)
	}
}
