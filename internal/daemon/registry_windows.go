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
