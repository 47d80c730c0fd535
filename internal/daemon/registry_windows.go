package daemon

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
	"golang.org/x/sys/windows/svc/eventlog"
	"golang.org/x/sys/windows/svc/mgr"
)

// change is ChangeServiceConfig2, of which info is one of the structures.
func change[T any](service *mgr.Service, level uint32, info *T) error {
	return windows.ChangeServiceConfig2(service.Handle, level, (*byte)(unsafe.Pointer(info)))
}

// maxConfig is the most that QueryServiceConfig returns, in bytes: Microsoft,
// "QueryServiceConfigW function".
const maxConfig = 8 << 10

// toldCommand is the command line that QueryServiceConfig tells.
func toldCommand(service *mgr.Service) (string, error) {
	b := new([maxConfig / 8]uint64) // aligned
	c := (*windows.QUERY_SERVICE_CONFIG)(unsafe.Pointer(b))
	var needed uint32
	if err := windows.QueryServiceConfig(service.Handle, c, maxConfig, &needed); err != nil {
		return "", err
	}
	return windows.UTF16PtrToString(c.BinaryPathName), nil
}

// keptCommand is the command line in the registry.
func keptCommand(name string) (string, error) {
	k, err := registry.OpenKey(registry.LOCAL_MACHINE, `SYSTEM\CurrentControlSet\Services\`+name, registry.QUERY_VALUE)
	if err != nil {
		return "", err
	}
	defer k.Close()
	s, _, err := k.GetStringValue("ImagePath")
	return s, err
}

func eventsInstalled(source string) bool {
	k, err := registry.OpenKey(registry.LOCAL_MACHINE, `SYSTEM\CurrentControlSet\Services\EventLog\Application\`+source, registry.QUERY_VALUE)
	if err != nil {
		return false
	}
	return k.Close() == nil
}

func removeEvents(source string) error {
	if err := eventlog.Remove(source); err != nil && !errors.Is(err, registry.ErrNotExist) {
		return err
	}
	return nil
}
