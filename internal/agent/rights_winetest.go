//go:build windows && winetest

package agent

import "errors"

// NOT FOR USE. A program built with the tag winetest does not ask who may sign
// in: it is for tests on a system that says of every right that nobody has it.
// The broker of such a program has the tag's other gaps too; see privsep.

func (windowsRDP) holders(string) ([]string, error) {
	return nil, errors.New("this is a build for tests")
}
