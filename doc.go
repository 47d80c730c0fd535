// Package sft holds the nouns of the product: the things that the platform
// decides about, an agent makes real on a host and a client asks for. They go
// from HTTP to SQL unchanged, so their JSON is the wire format.
//
// The package imports nothing but the standard library, and everything else
// in the module may import it. It does no work: who may do what is in
// internal/policy, what happens is in internal/platform.
package sft
