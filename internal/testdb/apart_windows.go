package testdb

import (
	"os/user"
	"syscall"
)

// apart says that there is no PostgreSQL for tests on Windows.
func apart(*user.User) (*syscall.SysProcAttr, error) { return nil, errMissing }
