package main

import "golang.org/x/sys/windows"

// dropTyped drops what was typed at a console and not read yet.
func dropTyped(fd uintptr) error { return windows.FlushConsoleInputBuffer(windows.Handle(fd)) }
