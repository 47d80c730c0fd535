package launch

import (
	"runtime"
	"testing"

	"golang.org/x/sys/windows"
)

// The calls answer with a screen that can be, and the thread is as it was.
func TestScreen(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := threadDPI(t)
	s, err := windowsSystem{}.screen()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", s)
	if s.dpi < 72 || s.dpi > 960 || s.work.w < 320 || s.work.h < 200 || s.frame.w < 4 || s.frame.h <= s.frame.w || s.frame.h > 400 {
		t.Errorf("the screen is %+v", s)
	}
	if v := s.fit(View{}); v.Size == "" || v.place == "" || v.scale == 0 {
		t.Errorf("the window is %+v", v)
	}
	if after := threadDPI(t); after != before {
		t.Errorf("the thread's awareness of scaling is %#x, and was %#x", after, before)
	}
}

func threadDPI(t *testing.T) uintptr {
	t.Helper()
	p := windows.NewLazySystemDLL("user32.dll").NewProc("GetThreadDpiAwarenessContext")
	if p.Find() != nil {
		return 0
	}
	n, _, _ := p.Call()
	return n
}
