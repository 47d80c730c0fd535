package conf

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"sft"
)

// Options are the settings of a program: its flags. Each can be given as a flag,
// as a variable of the environment, and as a key of a YAML file that has the
// flag's name; the first of these that is there counts, and then the default.
// So the list of flags is the only list. What is for one call only is a flag
// alone.
type Options struct {
	Prefix string         // of the variables: --log-level is PREFIX_LOG_LEVEL
	Flags  *pflag.FlagSet // what the file may set; those of NotSetting and NotInFile are left out
}

const (
	notSetting   = "not-a-setting"
	notInFile    = "not-in-file"
	secretInURLs = "secret-in-urls"
)

// NotSetting marks flags that are for one call only: they are in no file, and no
// variable sets them. An environment outlives the call that it was meant for.
func NotSetting(flags *pflag.FlagSet, names ...string) { mark(flags, notSetting, names) }

// NotInFile marks flags that a variable may set, and no file.
func NotInFile(flags *pflag.FlagSet, names ...string) { mark(flags, notInFile, names) }

// SecretInURLs marks flags whose values may be URLs that are a secret as a
// whole, as those of webhooks often are: of them only scheme and host are shown.
func SecretInURLs(flags *pflag.FlagSet, names ...string) { mark(flags, secretInURLs, names) }

func mark(flags *pflag.FlagSet, as string, names []string) {
	for _, n := range names {
		if err := flags.SetAnnotation(n, as, []string{"true"}); err != nil {
			panic("conf: " + err.Error()) // our own flags: cannot happen
		}
	}
}

// settings are the flags that a file may set, by their names.
func (o Options) settings() (list []*pflag.Flag) {
	o.Flags.VisitAll(func(f *pflag.Flag) {
		if f.Annotations[notSetting] == nil && f.Annotations[notInFile] == nil && f.Name != "help" {
			list = append(list, f)
		}
	})
	return list
}

// Variable is the name of the variable for a flag.
func (o Options) Variable(flag string) string {
	return o.Prefix + "_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// Fill sets those of flags that were not given, but for those of NotSetting, from
// the environment and from the file, which may have keys for other flags of the program too. A file
// that does not exist is none, unless it was named by hand. It returns where
// each flag comes from.
func (o Options) Fill(flags *pflag.FlagSet, env func(string) (string, bool), file string, named bool) (from map[string]string, err error) {
	from = map[string]string{}
	given, err := o.read(file, named)
	if err != nil {
		return nil, err
	}
	flags.VisitAll(func(f *pflag.Flag) {
		name := o.Variable(f.Name)
		v, ok := env(name)
		switch {
		case f.Changed:
			from[f.Name] = "flag"
		case f.Annotations[notSetting] != nil:
			from[f.Name] = "default"
		case ok:
			from[f.Name] = "variable " + name
			if e := flags.Set(f.Name, v); e != nil && err == nil {
				err = &sft.Error{Code: sft.Invalid, Msg: name + ": " + reason(f, e), Hint: "correct the variable, or unset it"}
			}
		case given[f.Name] != nil:
			from[f.Name] = "file " + Where(file, f.Name)
			if e := given[f.Name](f); e != nil && err == nil {
				err = &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("%s: key %s: %s", Where(file, f.Name), sft.Quote(f.Name), reason(f, e)), Hint: "correct the value"}
			}
		default:
			from[f.Name] = "default"
		}
	})
	return from, err
}

// reason is why a flag does not take a value, without the value: it may be
// secret.
func reason(f *pflag.Flag, err error) string {
	for next := err; next != nil; next = errors.Unwrap(next) {
		err = next
	}
	switch {
	case errors.Is(err, strconv.ErrRange):
		return "too large a number"
	case errors.Is(err, strconv.ErrSyntax) && f.Value.Type() == "bool":
		return "not true or false"
	case errors.Is(err, strconv.ErrSyntax):
		return "not a whole number"
	case strings.HasPrefix(err.Error(), "time: "): // time.ParseDuration's repeat the value
		return "not a time with its unit, as in 90s, 15m or 12h"
	}
	return err.Error()
}

// read reads the file. For each key that is in it there is a function that
// sets a flag.
func (o Options) read(file string, named bool) (map[string]func(*pflag.Flag) error, error) {
	settings := o.settings()
	var fields []reflect.StructField
	for i, f := range settings {
		fields = append(fields, reflect.StructField{Name: fmt.Sprint("F", i), Type: reflect.TypeOf(kindOf(f)), Tag: reflect.StructTag(`yaml:"` + f.Name + `"`)})
	}
	v := reflect.New(reflect.StructOf(fields))
	if err := ReadYAML(file, v.Interface()); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if named {
			return nil, &sft.Error{Code: sft.Invalid, Msg: "there is no " + file, Hint: "check --config"}
		}
	}
	given := map[string]func(*pflag.Flag) error{}
	for i, f := range settings {
		v := v.Elem().Field(i)
		if v.IsNil() {
			continue
		}
		given[f.Name] = func(f *pflag.Flag) error {
			f.Changed = true
			if list, ok := f.Value.(pflag.SliceValue); ok {
				return list.Replace(v.Interface().([]string))
			}
			return f.Value.Set(fmt.Sprint(v.Elem().Interface()))
		}
	}
	return given, nil
}

// kindOf is nil of the type that a flag's value has in the file.
func kindOf(f *pflag.Flag) any {
	switch f.Value.Type() {
	case "bool":
		return (*bool)(nil)
	case "int", "int64", "uint", "uint16":
		return (*int64)(nil)
	case "stringSlice", "stringArray":
		return []string(nil)
	case "float64", "duration":
		return (*loose)(nil)
	}
	return (*string)(nil)
}

// A loose value is text that may look like a number.
type loose string

// Unknown are the variables of an environment that begin with the program's
// prefix, and set no flag of these sets.
func (o Options) Unknown(environ []string, sets ...*pflag.FlagSet) (list []string) {
	known := map[string]bool{}
	for _, s := range sets {
		s.VisitAll(func(f *pflag.Flag) {
			if f.Annotations[notSetting] == nil {
				known[o.Variable(f.Name)] = true
			}
		})
	}
	for _, v := range environ {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, o.Prefix+"_") && !known[name] {
			list = append(list, name)
		}
	}
	return list
}

// Where names a file, and the line on which a key of its top level is, if it
// is found.
func Where(file, key string) string {
	b, _ := os.ReadFile(file) // without it there is no line
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		if strings.HasPrefix(line, key+":") {
			return fmt.Sprintf("%s line %d", file, n)
		}
	}
	return file
}

// Print writes the settings as a file that could be read, with where each comes
// from as Fill said. What is secret is left out.
func (o Options) Print(w io.Writer, from map[string]string) error {
	for _, f := range o.settings() {
		redact := Redact
		if f.Annotations[secretInURLs] != nil {
			redact = Origin
		}
		var v any = f.Value.String()
		hidden, isText := false, true
		if list, ok := f.Value.(pflag.SliceValue); ok {
			shown := append([]string{}, list.GetSlice()...) // not null
			for i, s := range shown {
				shown[i] = redact(s)
				hidden = hidden || shown[i] != s
			}
			v, isText = shown, false
		} else if s := f.Value.String(); redact(s) != s {
			v, hidden = redact(s), true
		}
		note := from[f.Name]
		if hidden {
			note += "; what is secret in it is left out"
		}
		_, text := kindOf(f).(*string)
		if _, l := kindOf(f).(*loose); text || l || !isText {
			var b strings.Builder // JSON is YAML, too
			e := json.NewEncoder(&b)
			e.SetEscapeHTML(false)
			if err := e.Encode(v); err != nil {
				return err
			}
			v = strings.TrimSpace(b.String())
		}
		if _, err := fmt.Fprintf(w, "%s: %s # %s\n", f.Name, v, note); err != nil {
			return err
		}
	}
	return nil
}

// secretName is what parameters of a URL are called that are secret.
var secretName = regexp.MustCompile(`(?i)pass|secret|token|key|sig|auth|cred`)

// Redact returns a value without the passwords and other secrets that a URL may
// have in it.
func Redact(s string) string {
	if !strings.Contains(s, "://") {
		return s
	}
	u, err := url.Parse(s)
	if err != nil {
		return "unreadable"
	}
	if _, ok := u.User.Password(); ok {
		u.User = url.User(u.User.Username())
	}
	var kept []string
	for p := range strings.SplitSeq(u.RawQuery, "&") {
		name, _, _ := strings.Cut(p, "=")
		if plain, err := url.QueryUnescape(name); p != "" && err == nil && !secretName.MatchString(plain) {
			kept = append(kept, p)
		}
	}
	u.RawQuery = strings.Join(kept, "&")
	return u.String()
}

// Origin returns of a URL its scheme and host alone, and what is none as it is.
func Origin(s string) string {
	if !strings.Contains(s, "://") {
		return s
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" {
		return "unreadable"
	}
	return u.Scheme + "://" + u.Host
}

// Table is the settings as a table of Markdown, for the manual.
func (o Options) Table() string {
	var b strings.Builder
	b.WriteString("| flag | variable | key | default | |\n|---|---|---|---|---|\n")
	for _, f := range o.settings() {
		def := "`" + f.DefValue + "`"
		if f.DefValue == "" || f.DefValue == "[]" {
			def = ""
		}
		fmt.Fprintf(&b, "| `--%s` | `%s` | `%s` | %s | %s |\n", f.Name, o.Variable(f.Name), f.Name, def, strings.ReplaceAll(f.Usage, "|", "\\|"))
	}
	return b.String()
}
