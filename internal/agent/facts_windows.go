package agent

import "golang.org/x/sys/windows/registry"

// osName is the system's name for people.
func osName() string {
	k, err := registry.OpenKey(registry.LOCAL_MACHINE, `SOFTWARE\Microsoft\Windows NT\CurrentVersion`, registry.QUERY_VALUE|registry.WOW64_64KEY)
	if err != nil {
		return windowsName("", "", "", 0)
	}
	defer k.Close()
	// What is missing is left out.
	product, _, _ := k.GetStringValue("ProductName")
	display, _, _ := k.GetStringValue("DisplayVersion")
	build, _, _ := k.GetStringValue("CurrentBuild")
	revision, _, _ := k.GetIntegerValue("UBR")
	return windowsName(product, display, build, revision)
}
