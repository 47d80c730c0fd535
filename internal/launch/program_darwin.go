package launch

import "os"

// systemClient returns nil: mstsc comes with Windows.
func systemClient() *Program { return nil }

// lastClient returns Microsoft's client, if it is installed, on a connection
// file. "open" then waits for it to be quit.
func lastClient() *Program {
	for _, name := range []string{"Windows App", "Microsoft Remote Desktop"} {
		if i, err := os.Stat("/Applications/" + name + ".app"); err == nil && i.IsDir() {
			return &Program{Name: name, path: "/usr/bin/open", args: []string{"-W", "-a", name, "{file}"}, asks: true}
		}
	}
	return nil
}
