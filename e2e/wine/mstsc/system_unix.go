//go:build unix

package main

import "errors"

var errWindows = errors.New("this is not Windows")

func unprotect([]byte) ([]byte, error) { return nil, errWindows }

func readCredential(string) (string, []byte, error) { return "", nil, errWindows }
