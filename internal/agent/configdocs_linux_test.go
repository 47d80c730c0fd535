package agent

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"testing"
)

// The page about sftd.yaml has each key, no other, and the defaults that there
// are.
func TestEachKeyIsDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/sftd.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\| (.*?) \\| .+ \\|$").FindAllStringSubmatch(string(b), -1) {
		documented[row[1]] = row[2]
	}
	def := reflect.ValueOf(Defaults())
	for i := range def.NumField() {
		key := def.Type().Field(i).Tag.Get("yaml")
		if key == "" {
			continue
		}
		says, ok := documented[key]
		if !ok {
			t.Errorf("docs/sftd.md lacks %s", key)
		}
		delete(documented, key)
		v := def.Field(i)
		want := fmt.Sprintf("`%v`", v.Interface())
		if d, ok := v.Interface().(Duration); ok {
			want = fmt.Sprintf("`%gh`", d.d.Hours())
		}
		if (!v.IsZero() || v.Kind() == reflect.Bool) && says != want {
			t.Errorf("the default of %s is %s, and docs/sftd.md says %s", key, want, says)
		}
		if v.IsZero() && v.Kind() != reflect.Bool && regexp.MustCompile("^`[a-z0-9/]").MatchString(says) {
			t.Errorf("%s has no default, and docs/sftd.md says %s", key, says)
		}
	}
	for key := range documented {
		t.Errorf("docs/sftd.md has %s, which is no key", key)
	}
}
