package launch

import (
	"fmt"
	"slices"
)

// A screen is the primary monitor as Windows has it, in pixels of its own and
// not in those that programs are shown which know nothing of scaling.
type screen struct {
	work, frame extent // what the taskbar leaves; what a window has around its inside
	dpi         int
}

// An extent is a width and a height.
type extent struct{ w, h int }

// The bounds of a desktop that is resized with its window (MS-RDPEDISP,
// 2.2.2.2.1). A width must be even, too.
const (
	minDesktop = 200
	maxDesktop = 8192
)

// scales are the values that desktopscalefactor may have ("Supported RDP
// properties").
var scales = []int{100, 125, 150, 175, 200, 250, 300, 400, 500}

// fit returns v with the size and the place of a window that fills the work
// area, if v leaves that open. A screen that cannot be is left to mstsc.
func (s screen) fit(v View) View {
	if v.Size != "" || v.Fullscreen || v.MultiMonitor {
		return v
	}
	in := extent{min(s.work.w-s.frame.w, maxDesktop) &^ 1, min(s.work.h-s.frame.h, maxDesktop)}
	if s.frame.w < 0 || s.frame.h < 0 || in.w < minDesktop || in.h < minDesktop {
		return v
	}
	v.Size = fmt.Sprintf("%dx%d", in.w, in.h)
	// A WINDOWPLACEMENT (winuser.h), whose coordinates begin where the work area
	// does: flags, SW_SHOWNORMAL, left, top, right, bottom. Not maximized: that is
	// the full screen in mstsc.
	v.place = fmt.Sprintf("0,1,0,0,%d,%d", in.w+s.frame.w, in.h+s.frame.h)
	v.scale = scaleFactor(s.dpi)
	return v
}

// scaleFactor is the value of desktopscalefactor that is nearest to how large a
// monitor shows things, the smaller of two.
func scaleFactor(dpi int) int {
	return slices.MinFunc(scales, func(a, b int) int { return abs(a*96-dpi*100) - abs(b*96-dpi*100) })
}

func abs(n int) int { return max(n, -n) }
