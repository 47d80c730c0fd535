package main

import (
	"fmt"

	"golang.org/x/sys/windows"
)

// system is the name and the version of this machine's system.
func system() string {
	v := windows.RtlGetVersion()
	return fmt.Sprintf("Windows %d.%d.%d, product type %d", v.MajorVersion, v.MinorVersion, v.BuildNumber, v.ProductType)
}
