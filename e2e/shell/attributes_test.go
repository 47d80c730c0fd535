//go:build linux

package shell

import (
	"strings"
	"testing"
	"time"

	"sft/internal/api"
	"sft/internal/platform"
)

// What a host cannot have because it has something of its own there is listed
// with the attribute, and another value is the way out. A group that gets
// another name keeps its number and its members.
func TestAttributesOnHosts(t *testing.T) {
	s := newStage(t)
	s.Project("prod", false)
	s.Do("POST", "/groups", map[string]any{"name": "dba"}, nil)
	s.Do("POST", "/projects/prod/groups", map[string]any{"name": "dba", "create_server_group": true}, nil)
	s.Person("ann", "Ann Example", "prod", "dba")
	s.Person("bob", "Bob Example", "prod")
	h := s.Lab.Host("web01")
	h.AddUser("bob", "") // somebody else's
	h.Must("", "groupadd", "-g", "4242", "sft_dba")
	web := s.ServerOn(h, "prod", "", "")
	conflicts := func(path string) (got string) {
		var l api.List[platform.Attribute]
		s.Do("GET", path+"/attributes?conflicting=true", nil, &l)
		for _, v := range l.List {
			got += v.Name + "=" + v.Value
			for _, c := range v.Conflicts {
				got += " " + c.Hostname + ": " + c.Reason
			}
		}
		return got
	}
	group := func(name string) string {
		out, _ := web.Run("", "getent", "group", name)
		return strings.TrimSpace(out)
	}
	put := func(path, value string) {
		s.Do("PUT", path, map[string]string{"attribute_value": value}, nil)
	}
	for path, want := range map[string]string{
		"/users/bob":  "unix_user_name=bob web01: account bob of this host was not made by sftd",
		"/groups/dba": "unix_group_name=sft_dba web01: group sft_dba of this host was not made by sftd",
	} {
		s.Wait("the conflict of "+path+" is listed", 20*time.Second, func() bool { return conflicts(path) == want })
	}
	put("/users/bob/attributes/unix_user_name", "bobby")
	s.Wait("bob has his account", 20*time.Second, func() bool {
		_, err := web.Run("", "getent", "passwd", "bobby")
		return err == nil
	})
	put("/groups/dba/attributes/unix_group_name", "dba-team")
	s.Wait("the group has another name", 20*time.Second, func() bool { return strings.HasSuffix(group("dba-team"), ":ann") })
	number := strings.Split(group("dba-team"), ":")[2]
	put("/groups/dba/attributes/unix_group_name", "dbas")
	s.Wait("the group has another name again", 20*time.Second, func() bool { return group("dbas") == "dbas:x:"+number+":ann" && group("dba-team") == "" })
	for _, path := range []string{"/users/bob", "/groups/dba"} {
		s.Wait("no conflict of "+path+" is listed", 20*time.Second, func() bool { return conflicts(path) == "" })
	}
	if got := group("sft_dba"); got != "sft_dba:x:4242:" {
		t.Errorf("the host's own group is now %q", got)
	}
}
