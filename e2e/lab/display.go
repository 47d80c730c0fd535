//go:build linux

package lab

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"time"
)

// A display is an X server without a screen. It keeps its picture in a file,
// so that looking at a pixel starts no program.
type display struct {
	file *os.File
	shot xwd
}

// StartDisplay gives the host a display of the given size. Programs find it
// with the environment of Display.
func (h *Host) StartDisplay(width, height int) {
	h.lab.t.Helper()
	if _, err := os.Stat("/usr/bin/Xvfb"); err != nil {
		h.lab.t.Skipf("SKIPPED: Xvfb is not installed; run make setup")
	}
	h.Must("", "mkdir", "-p", "/run/display")
	h.Start("xvfb", h.Command(h.lab.t.Context(), "", "Xvfb", ":0", "-screen", "0", fmt.Sprintf("%dx%dx24", width, height),
		"-noreset", "-nolisten", "tcp", "-ac", "-fbdir", "/run/display"))
	poll(h.lab.t, h.name+": the display does not come up", func() bool {
		f, err := os.Open(fmt.Sprintf("/proc/%d/root/run/display/Xvfb_screen0", h.pid))
		if err != nil {
			return false
		}
		head := make([]byte, xwdHead)
		if _, err := f.ReadAt(head, 0); err == nil {
			if shot, err := parseXWD(head); err == nil {
				h.display = &display{f, shot}
				return true
			}
		}
		f.Close()
		return false
	})
	h.lab.t.Cleanup(func() { h.display.file.Close() })
	poll(h.lab.t, h.name+": the display does not answer", func() bool {
		_, err := h.Run("", "xset", "-display", ":0", "q")
		return err == nil
	})
}

// Display is the environment of programs that draw on the host's display.
func (h *Host) Display() []string { return []string{"DISPLAY=:0"} }

// Pixel returns the colour at a place of the host's display.
func (h *Host) Pixel(x, y int) color.RGBA {
	h.lab.t.Helper()
	if h.display == nil {
		h.lab.t.Fatalf("%s has no display; call StartDisplay first", h.name)
	}
	c, err := h.display.pixel(x, y)
	if err != nil {
		h.lab.t.Fatalf("%s: look at the display: %v", h.name, err)
	}
	return c
}

func (d *display) pixel(x, y int) (color.RGBA, error) {
	if !image.Pt(x, y).In(d.shot.bounds()) {
		return color.RGBA{}, fmt.Errorf("%d,%d is not on the display", x, y)
	}
	var b [4]byte
	if _, err := d.file.ReadAt(b[:], d.shot.offset(x, y)); err != nil {
		return color.RGBA{}, err
	}
	return d.shot.colour(b), nil
}

// WaitPixel waits until the place has a colour such as "#204060".
func (h *Host) WaitPixel(x, y int, colour string) {
	h.lab.t.Helper()
	want, err := ParseColour(colour)
	if err != nil {
		h.lab.t.Fatalf("%v", err)
	}
	poll(h.lab.t, fmt.Sprintf("%s: the display at %d,%d is not %s", h.name, x, y, colour), func() bool {
		return h.Pixel(x, y) == want
	})
}

// WaitPixelNear is WaitPixel for a picture that has been through a codec with
// losses: each of red, green and blue may be off by at most 6 of 255.
func (h *Host) WaitPixelNear(x, y int, colour string) {
	h.lab.t.Helper()
	want, err := ParseColour(colour)
	if err != nil {
		h.lab.t.Fatalf("%v", err)
	}
	poll(h.lab.t, fmt.Sprintf("%s: the display at %d,%d is nothing like %s", h.name, x, y, colour), func() bool {
		return Near(h.Pixel(x, y), want)
	})
}

// Near reports whether a colour may be another that has been through a codec
// with losses.
func Near(a, b color.RGBA) bool {
	off := func(x, y uint8) bool { return max(x, y)-min(x, y) > 6 }
	return !off(a.R, b.R) && !off(a.G, b.G) && !off(a.B, b.B)
}

// WaitStill waits until nothing on the host's display has moved for a while,
// so that a picture of it shows the whole of what was drawn.
func (h *Host) WaitStill(while time.Duration) {
	h.lab.t.Helper()
	var last [sha256.Size]byte
	since := time.Now()
	poll(h.lab.t, h.name+": the display does not come to rest", func() bool {
		b, err := h.display.pixels()
		if err != nil {
			h.lab.t.Fatalf("%s: look at the display: %v", h.name, err)
		}
		if sum := sha256.Sum256(b); sum != last {
			last, since = sum, time.Now()
		}
		return time.Since(since) >= while
	})
}

// Screenshot writes a picture of the host's display to a PNG file.
func (h *Host) Screenshot(path string) {
	h.lab.t.Helper()
	if h.display == nil {
		h.lab.t.Fatalf("%s has no display; call StartDisplay first", h.name)
	}
	if err := h.display.save(path); err != nil {
		h.lab.t.Fatalf("%s: take a screenshot: %v", h.name, err)
	}
}

// pixels returns the whole picture, as it is in the file.
func (d *display) pixels() ([]byte, error) {
	b := make([]byte, d.shot.stride*d.shot.height)
	_, err := d.file.ReadAt(b, d.shot.start)
	return b, err
}

func (d *display) save(path string) error {
	b, err := d.pixels()
	if err != nil {
		return err
	}
	bounds := d.shot.bounds()
	m := image.NewRGBA(bounds)
	for y := range bounds.Dy() {
		for x := range bounds.Dx() {
			o := y*d.shot.stride + 4*x
			m.SetRGBA(x, y, d.shot.colour([4]byte(b[o:o+4])))
		}
	}
	return savePNG(path, m)
}

func savePNG(path string, m image.Image) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := png.Encode(f, m); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// ParseColour reads "#rrggbb".
func ParseColour(s string) (color.RGBA, error) {
	c := color.RGBA{A: 255}
	if n, err := fmt.Sscanf(s, "#%02x%02x%02x", &c.R, &c.G, &c.B); err != nil || n != 3 || len(s) != 7 {
		return c, fmt.Errorf("%q is not a colour; write it as #rrggbb", s)
	}
	return c, nil
}

// An xwd is the head of a file in the format of xwd(1), version 7, with 32
// bits a pixel: what Xvfb writes for a screen of depth 24.
type xwd struct {
	width, height, stride int
	start                 int64 // of the first pixel
	order                 binary.ByteOrder
}

// xwdHead is the length of the fixed part.
const xwdHead = 100

var errXWD = errors.New("not an X window dump with 32 bits a pixel")

func parseXWD(b []byte) (xwd, error) {
	if len(b) < xwdHead {
		return xwd{}, errXWD
	}
	field := func(n int) int { return int(binary.BigEndian.Uint32(b[4*n:])) }
	x := xwd{width: field(4), height: field(5), stride: field(12), order: binary.LittleEndian}
	const colour = 12 // bytes of an entry of the colour map
	x.start = int64(field(0)) + int64(field(19))*colour
	if field(7) == 1 {
		x.order = binary.BigEndian
	}
	const most = 1 << 15
	ok := field(0) >= xwdHead && field(0) < most && field(19) < most && field(1) == 7 && field(11) == 32 &&
		x.width > 0 && x.width < most && x.height > 0 && x.height < most && x.stride >= 4*x.width && x.stride < 8*most
	if !ok {
		return xwd{}, errXWD
	}
	return x, nil
}

func (x xwd) bounds() image.Rectangle { return image.Rect(0, 0, x.width, x.height) }

func (x xwd) offset(px, py int) int64 { return x.start + int64(py)*int64(x.stride) + 4*int64(px) }

func (x xwd) colour(b [4]byte) color.RGBA {
	v := x.order.Uint32(b[:])
	return color.RGBA{R: byte(v >> 16), G: byte(v >> 8), B: byte(v), A: 255}
}
