package sft

import (
	"fmt"
	"regexp"
	"strings"
)

// Where a server's label comes from is how its key begins.
const (
	LabelAPI    = "api."    // administrators said it
	LabelSFTD   = "sftd."   // the host says it, in its sftd.yaml
	LabelSystem = "system." // the platform has it from the server's record
)

// LabelSources are the beginnings of keys.
var LabelSources = []string{LabelAPI, LabelSFTD, LabelSystem}

// SystemLabels are the keys of the platform's own labels. A cloud has signed
// those of it; LabelOSType is the word of the host.
var SystemLabels = []string{LabelManaged, LabelOSType, LabelCloudProvider, LabelCloudAccount, LabelCloudRegion, LabelCloudZone, LabelInstanceType}

// The keys of SystemLabels.
const (
	LabelManaged       = LabelSystem + "managed" // false: a record without an agent
	LabelOSType        = LabelSystem + "os_type"
	LabelCloudProvider = LabelSystem + "cloud_provider"
	LabelCloudAccount  = LabelSystem + "cloud_account"
	LabelCloudRegion   = LabelSystem + "cloud_region"
	LabelCloudZone     = LabelSystem + "cloud_zone"
	LabelInstanceType  = LabelSystem + "instance_type"
)

// MaxLabels caps the labels of one server from one source, so that no host
// uses up the room of the administrators.
const MaxLabels = 50

// The grammar of labels is that of Kubernetes: a key is a name, perhaps with a
// DNS name and a slash before it, and a value is a name or empty.
var (
	labelNameRE = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$`)
	labelDNSRE  = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)
)

// CheckLabel refuses what cannot be a label. The key has its source before it.
func CheckLabel(key, value string) error {
	dns, name, ok := strings.Cut(key, "/")
	if !ok {
		dns, name = "", key
	}
	switch {
	case !labelNameRE.MatchString(name) || ok && (len(dns) > 253 || !labelDNSRE.MatchString(dns)):
		return &Error{Code: Invalid, Msg: "label key " + Quote(key) + " cannot be used",
			Hint: "use 1 to 63 letters, digits, \"-\", \"_\" and \".\", with a letter or digit first and last; the source counts"}
	case value != "" && !labelNameRE.MatchString(value):
		return &Error{Code: Invalid, Msg: "label " + Quote(key) + " cannot have the value " + Quote(value),
			Hint: "use up to 63 letters, digits, \"-\", \"_\" and \".\", with a letter or digit first and last"}
	}
	return nil
}

// LabelSource returns how a key begins that says where its label comes from,
// or "" if it does not say.
func LabelSource(key string) string {
	for _, s := range LabelSources {
		if strings.HasPrefix(key, s) {
			return s
		}
	}
	return ""
}

// CheckLabels returns labels from a source with their whole keys: the source is
// put before those that leave it out. Those of another source are refused.
func CheckLabels(source string, labels map[string]string) (map[string]string, error) {
	if len(labels) > MaxLabels {
		return nil, &Error{Code: Invalid, Msg: fmt.Sprintf("there are %d labels", len(labels)), Hint: fmt.Sprintf("keep %d", MaxLabels)}
	}
	var whole map[string]string
	for key, value := range labels {
		name := strings.TrimPrefix(key, source)
		if LabelSource(name) != "" {
			return nil, &Error{Code: Invalid, Msg: "label key " + Quote(key) + " is of another source", Hint: "only keys that begin with \"" + source + "\" can be set here; the source may be left out"}
		}
		key = source + name
		for _, k := range []string{name, key} {
			if err := CheckLabel(k, value); err != nil {
				return nil, err
			}
		}
		if _, twice := whole[key]; twice {
			return nil, &Error{Code: Invalid, Msg: "label key " + Quote(key) + " is there twice, with its source and without", Hint: "leave one of them out"}
		}
		if whole == nil {
			whole = map[string]string{}
		}
		whole[key] = value
	}
	return whole, nil
}
