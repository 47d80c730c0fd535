package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"

	"sft"
	"sft/internal/conf"
)

// docs/operating.md has the settings as they are.
func TestSettingsAreInTheManual(t *testing.T) {
	var s settings
	s.Options = conf.Options{Prefix: prefix, Flags: serveCommand(&s).Flags()}
	b, err := os.ReadFile("../../docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	if want := s.Table(); !strings.Contains(string(b), want+"\n") {
		t.Errorf("docs/operating.md does not have this table:\n%s", want)
	}
}

// What the system or the database says is said with what to do.
func TestWhatToDo(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{&sft.Error{Msg: "x", Hint: "its own", Err: syscall.ENOSPC}, "its own"},
		{fmt.Errorf("write b: %w", &fs.PathError{Op: "write", Path: "b", Err: syscall.ENOSPC}), "make room"},
		{errors.New("database or disk is full (13)"), "make room"},
		{fmt.Errorf("open database: %w", &fs.PathError{Op: "open", Path: "d/platform.db", Err: syscall.EROFS}), "have the file system mounted for writing"},
		{errors.New("attempt to write a readonly database (8)"), "have the file system mounted for writing"},
		{&fs.PathError{Op: "open", Path: "d/serve.lock", Err: syscall.EACCES}, "run this as the account"},
		{os.NewSyscallError("bind", syscall.EADDRINUSE), "stop what has the address"},
		{&fs.PathError{Op: "open", Path: "x", Err: syscall.ENOENT}, "check the path"},
		{errors.New("open database: failed to connect to `user=sft`: dial tcp 127.0.0.1:5432: connect: connection refused"), "check --database"},
		{errors.New("there is no platform in d; run \"sft-platform init\" first"), ""},
	} {
		if got := whatToDo(tt.err); !strings.HasPrefix(got, tt.want) || tt.want == "" && got != "" {
			t.Errorf("%v: %q, want %q", tt.err, got, tt.want)
		}
	}
}
