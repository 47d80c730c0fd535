package main

import (
	"runtime/debug"
	"time"
)

// beThrifty makes the monitor small rather than quick: it has next to nothing
// to do most of the time, on machines that are there for other work.
func beThrifty() {
	debug.SetGCPercent(40)
	go func() {
		for range time.Tick(time.Minute) {
			debug.FreeOSMemory()
		}
	}()
}
