// Package wine runs the tests of the parts for Windows under Wine: what only
// Windows has, and what has to be the same there. Each package's tests are
// built here, run by scripts/wine, and counted: one that is skipped without
// being run another way is a failure.
package wine
