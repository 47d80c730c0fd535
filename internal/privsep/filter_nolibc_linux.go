//go:build !cgo

package privsep

// A static Go program needs no more.
var (
	libcNames []string
	libcRules []rule
)
