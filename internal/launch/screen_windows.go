package launch

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/windows"
)

var (
	user32  = windows.NewLazySystemDLL("user32.dll")
	gdi32   = windows.NewLazySystemDLL("gdi32.dll")
	shcore  = windows.NewLazySystemDLL("shcore.dll")
	getArea = user32.NewProc("SystemParametersInfoW")

	setThreadDPI     = user32.NewProc("SetThreadDpiAwarenessContext") // from Windows 10 1607 on, as the next three
	getDPIForSystem  = user32.NewProc("GetDpiForSystem")
	getMetricsForDPI = user32.NewProc("GetSystemMetricsForDpi")
	getDPIForMonitor = shcore.NewProc("GetDpiForMonitor")
	monitorFromPoint = user32.NewProc("MonitorFromPoint")
	getMetrics       = user32.NewProc("GetSystemMetrics")
	getDC            = user32.NewProc("GetDC")
	releaseDC        = user32.NewProc("ReleaseDC")
	getDeviceCaps    = gdi32.NewProc("GetDeviceCaps")
)

// Constants of winuser.h, wingdi.h, windef.h and shellscalingapi.h.
const (
	spiGetWorkArea   = 0x30
	smCYCaption      = 4
	smCXSizeFrame    = 32
	smCYSizeFrame    = 33
	smCXPaddedBorder = 92
	logPixelsX       = 88
	monitorPrimary   = 1           // MONITOR_DEFAULTTOPRIMARY
	mdtEffective     = 0           // MDT_EFFECTIVE_DPI
	perMonitorAware  = ^uintptr(3) // DPI_AWARENESS_CONTEXT_PER_MONITOR_AWARE_V2, -4
)

// screen asks for the primary monitor in its own pixels, which mstsc counts in.
// This program says nothing of scaling, so Windows shows it smaller ones, but
// for a thread that says otherwise.
func (windowsSystem) screen() (screen, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if setThreadDPI.Find() == nil {
		if before, _, _ := setThreadDPI.Call(perMonitorAware); before != 0 {
			defer setThreadDPI.Call(before)
		}
	}
	var r windows.Rect
	if ok, _, err := getArea.Call(spiGetWorkArea, 0, uintptr(unsafe.Pointer(&r)), 0); ok == 0 {
		return screen{}, fmt.Errorf("read the work area: %w", err)
	}
	dpi := primaryDPI()
	if dpi == 0 {
		return screen{}, errors.New("the monitor's resolution is not known")
	}
	metric := func(index uintptr) int {
		if getMetricsForDPI.Find() == nil {
			n, _, _ := getMetricsForDPI.Call(index, uintptr(dpi))
			return int(int32(n))
		}
		n, _, _ := getMetrics.Call(index)
		return int(int32(n))
	}
	pad := metric(smCXPaddedBorder)
	return screen{
		work:  extent{int(r.Right - r.Left), int(r.Bottom - r.Top)},
		frame: extent{2 * (metric(smCXSizeFrame) + pad), 2*(metric(smCYSizeFrame)+pad) + metric(smCYCaption)},
		dpi:   dpi,
	}, nil
}

// primaryDPI is what the primary monitor is set to now, or was when the person
// signed in. 96 is a scale of 100%.
func primaryDPI() int {
	if getDPIForMonitor.Find() == nil {
		// The point 0,0 by value: one word on all that is built for.
		if m, _, _ := monitorFromPoint.Call(0, monitorPrimary); m != 0 {
			var x, y uint32
			if hr, _, _ := getDPIForMonitor.Call(m, mdtEffective, uintptr(unsafe.Pointer(&x)), uintptr(unsafe.Pointer(&y))); hr == 0 {
				return int(x)
			}
		}
	}
	if getDPIForSystem.Find() == nil {
		if n, _, _ := getDPIForSystem.Call(); n != 0 {
			return int(n)
		}
	}
	dc, _, _ := getDC.Call(0)
	if dc == 0 {
		return 0
	}
	defer releaseDC.Call(0, dc)
	n, _, _ := getDeviceCaps.Call(dc, logPixelsX)
	return int(int32(n))
}
