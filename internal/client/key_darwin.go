package client

func ringLikely(func(string) string) bool { return true } // the Keychain
