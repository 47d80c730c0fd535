package launch

// systemClient returns nil: mstsc comes with Windows.
func systemClient() *Program { return nil }

// lastClient returns nil: there is nothing but FreeRDP that is known to work.
func lastClient() *Program { return nil }
