// Package conf is about the files that the three programs keep: where they
// live on each OS, how configuration is read and how state is written.
//
// Configuration is YAML and read strictly. A key that means nothing is
// refused with file, line and key, because a setting that is silently not in
// force is worse than a program that does not start.
//
// State is written whole or not at all: into a new file beside the old one,
// to disk, then renamed over it. What is secret is private from the moment it
// exists, and is refused when it is read and turns out not to be.
package conf
