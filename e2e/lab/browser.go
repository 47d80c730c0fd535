//go:build linux

package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// A Browser is a real Chromium without a window, on a host, as one of the
// host's people. It is driven over two pipes, so nothing listens anywhere.
type Browser struct {
	host *Host
	in   *os.File // commands, each ended by a zero byte

	mu     sync.Mutex
	last   int
	calls  map[int]chan<- reply
	closed error // why no more replies come
}

// A Page is a tab of a Browser.
type Page struct {
	browser *Browser
	session string
}

// A reply is the answer to a command of the DevTools protocol, or an event.
type reply struct {
	ID      int             `json:"id"`
	Session string          `json:"sessionId"`
	Method  string          `json:"method"`
	Params  json.RawMessage `json:"params"`
	Result  json.RawMessage `json:"result"`
	Error   *struct {
		Message string `json:"message"`
	} `json:"error"`
}

// maxReply bounds a message of the browser; a screenshot is the largest.
const maxReply = 64 << 20

// Trust makes the browsers of a user, those started later, trust a CA.
func (h *Host) Trust(user string, caPEM []byte) {
	h.lab.t.Helper()
	if _, err := exec.LookPath("certutil"); err != nil {
		h.lab.t.Skipf("SKIPPED: certutil is not installed; run make setup")
	}
	// One name a certificate: a second CA must not take the first one's place.
	cmd := h.Command(h.lab.t.Context(), user, "sh", "-ec", `
		db=$HOME/.pki/nssdb
		mkdir -p "$db"
		[ -e "$db/cert9.db" ] || certutil -d "sql:$db" -N --empty-password
		pem=$(mktemp)
		cat >"$pem"
		certutil -d "sql:$db" -A -t C,, -n "$(sha256sum <"$pem")" -i "$pem"
		rm "$pem"`)
	cmd.Stdin = bytes.NewReader(caPEM)
	if _, err := output(cmd); err != nil {
		h.lab.t.Fatalf("%s: trust a CA: %v", h.name, err)
	}
}

// chromium returns the browser's program, which has several names.
func chromium() (string, error) {
	for _, name := range []string{"chromium", "google-chrome-stable", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("chromium is not installed")
}

// StartBrowser starts a browser for a user of the host. It keeps cookies for
// as long as it runs.
func (h *Host) StartBrowser(user string) *Browser {
	h.lab.t.Helper()
	program, err := chromium()
	if err != nil {
		h.lab.t.Skipf("SKIPPED: %v; run make setup", err)
	}
	inR, inW, err := os.Pipe()
	if err != nil {
		h.lab.t.Fatalf("start a browser: %v", err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		h.lab.t.Fatalf("start a browser: %v", err)
	}
	// The lab's hosts are the sandbox: Chromium's own needs namespaces that
	// some systems keep from programs in namespaces.
	cmd := h.Command(h.lab.t.Context(), user, program,
		"--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--no-default-browser-check",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
		"--password-store=basic", "--window-size=1100,800", "--remote-debugging-pipe", "about:blank")
	cmd.ExtraFiles = []*os.File{inR, outW} // 3 and 4, as the flag says
	h.Start("browser-"+user, cmd)
	inR.Close()
	outW.Close()
	b := &Browser{host: h, in: inW, calls: map[int]chan<- reply{}}
	read := make(chan struct{})
	go func() {
		defer close(read)
		b.read(outR)
		outR.Close()
	}()
	h.lab.t.Cleanup(func() {
		b.Close()
		<-read
	})
	return b
}

// Close ends the browser.
func (b *Browser) Close() { b.in.Close() } // Chromium ends with its pipe

// read hands out replies until the browser is gone.
func (b *Browser) read(out *os.File) {
	s := bufio.NewScanner(out)
	s.Buffer(make([]byte, 64<<10), maxReply)
	s.Split(func(data []byte, atEOF bool) (int, []byte, error) {
		if i := bytes.IndexByte(data, 0); i >= 0 {
			return i + 1, data[:i], nil
		}
		return 0, nil, nil
	})
	for s.Scan() {
		var r reply
		if err := json.Unmarshal(s.Bytes(), &r); err != nil {
			continue
		}
		b.mu.Lock()
		if c := b.calls[r.ID]; r.ID != 0 && c != nil {
			delete(b.calls, r.ID)
			c <- r
		}
		b.mu.Unlock()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = errors.New("the browser has ended")
	for id, c := range b.calls {
		delete(b.calls, id)
		close(c)
	}
}

// call sends a command and waits for its result.
func (b *Browser) call(session, method string, params map[string]any) (json.RawMessage, error) {
	answer := make(chan reply, 1)
	b.mu.Lock()
	if b.closed != nil {
		b.mu.Unlock()
		return nil, b.closed
	}
	b.last++
	id := b.last
	b.calls[id] = answer
	b.mu.Unlock()
	message := map[string]any{"id": id, "method": method}
	if params != nil {
		message["params"] = params
	}
	if session != "" {
		message["sessionId"] = session
	}
	text, err := json.Marshal(message)
	if err != nil {
		return nil, err
	}
	if _, err := b.in.Write(append(text, 0)); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(b.host.lab.t.Context(), patience)
	defer cancel()
	select {
	case r, ok := <-answer:
		if !ok {
			return nil, errors.New("the browser has ended")
		}
		if r.Error != nil {
			return nil, fmt.Errorf("%s: %s", method, r.Error.Message)
		}
		return r.Result, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%s: %w", method, ctx.Err())
	}
}

// NewPage opens an address in a new tab and waits until it has loaded.
func (b *Browser) NewPage(url string) *Page {
	t := b.host.lab.t
	t.Helper()
	p, err := b.Open(url)
	if err != nil {
		t.Fatalf("%s: open %s: %v", b.host.name, url, err)
	}
	return p
}

// Open is NewPage for an address that may not open: its certificate may not
// be trusted, for one.
func (b *Browser) Open(url string) (*Page, error) {
	var target struct{ TargetID, SessionID string }
	into := func(raw json.RawMessage, err error) error {
		if err != nil {
			return err
		}
		return json.Unmarshal(raw, &target)
	}
	if err := into(b.call("", "Target.createTarget", map[string]any{"url": "about:blank"})); err != nil {
		return nil, err
	}
	if err := into(b.call("", "Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true})); err != nil {
		return nil, err
	}
	p := &Page{b, target.SessionID}
	if err := p.Go(url); err != nil {
		return nil, err
	}
	return p, nil
}

// Go leads the tab to another address and waits until that has loaded.
func (p *Page) Go(url string) error {
	raw, err := p.browser.call(p.session, "Page.navigate", map[string]any{"url": url})
	if err != nil {
		return err
	}
	var done struct{ ErrorText string }
	if err := json.Unmarshal(raw, &done); err != nil {
		return err
	}
	if done.ErrorText != "" {
		return errors.New(done.ErrorText)
	}
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if s, err := p.Eval("document.readyState"); err == nil && s == "complete" {
			return nil
		}
	}
	return errors.New("the page does not finish loading")
}

// Eval evaluates JavaScript on the page, waits if it is a promise, and returns
// a string as it is, anything else as JSON.
func (p *Page) Eval(js string) (string, error) {
	raw, err := p.browser.call(p.session, "Runtime.evaluate", map[string]any{"expression": js, "returnByValue": true, "awaitPromise": true})
	if err != nil {
		return "", err
	}
	var r struct {
		Result struct {
			Type  string
			Value json.RawMessage
		}
		ExceptionDetails *struct {
			Text      string
			Exception struct{ Description string }
		}
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		return "", err
	}
	if e := r.ExceptionDetails; e != nil {
		return "", fmt.Errorf("%s %s", e.Text, e.Exception.Description)
	}
	var s string
	if r.Result.Type == "string" && json.Unmarshal(r.Result.Value, &s) == nil {
		return s, nil
	}
	return string(r.Result.Value), nil
}

// WaitFor waits until a JavaScript condition holds.
func (p *Page) WaitFor(js string) {
	t := p.browser.host.lab.t
	t.Helper()
	var last error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		var s string
		// An error is likely while the page changes to another.
		if s, last = p.Eval("!!(" + js + ")"); last == nil && s == "true" {
			return
		}
	}
	text, _ := p.Eval("location.href + '\\n' + document.body.innerText")
	t.Fatalf("the page does not come to %s: not after %v (%v)\n%s", js, patience, last, text)
}

// Text returns what a person can read on the page.
func (p *Page) Text() string {
	t := p.browser.host.lab.t
	t.Helper()
	s, err := p.Eval("document.body.innerText")
	if err != nil {
		t.Fatalf("read the page: %v", err)
	}
	return s
}

// Click waits for the element that a CSS selector names and presses the mouse
// in its middle.
func (p *Page) Click(selector string) {
	t := p.browser.host.lab.t
	t.Helper()
	x, y := p.find(selector)
	for _, kind := range []string{"mouseMoved", "mousePressed", "mouseReleased"} {
		e := map[string]any{"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1}
		if _, err := p.browser.call(p.session, "Input.dispatchMouseEvent", e); err != nil {
			t.Fatalf("click %s: %v", selector, err)
		}
	}
}

// Type clicks the element and types text into it.
func (p *Page) Type(selector, text string) {
	t := p.browser.host.lab.t
	t.Helper()
	p.Click(selector)
	if _, err := p.browser.call(p.session, "Input.insertText", map[string]any{"text": text}); err != nil {
		t.Fatalf("type into %s: %v", selector, err)
	}
}

// find returns the middle of an element that is there, to be seen, and enabled.
func (p *Page) find(selector string) (x, y float64) {
	t := p.browser.host.lab.t
	t.Helper()
	quoted, _ := json.Marshal(selector)
	js := "document.querySelector(" + string(quoted) + ")"
	p.WaitFor(js + "?.getClientRects().length && !" + js + ".disabled")
	s, err := p.Eval("(e => { e.scrollIntoView({block: 'center', behavior: 'instant'}); const r = e.getBoundingClientRect(); return [r.x + r.width/2, r.y + r.height/2] })(" + js + ")")
	if err != nil {
		t.Fatalf("find %s: %v", selector, err)
	}
	var at [2]float64
	if err := json.Unmarshal([]byte(s), &at); err != nil {
		t.Fatalf("find %s: %v", selector, err)
	}
	return at[0], at[1]
}

// Screenshot writes a picture of the page to a PNG file.
func (p *Page) Screenshot(path string) {
	t := p.browser.host.lab.t
	t.Helper()
	raw, err := p.browser.call(p.session, "Page.captureScreenshot", nil)
	var shot struct{ Data string }
	if err == nil {
		err = json.Unmarshal(raw, &shot)
	}
	var b []byte
	if err == nil {
		b, err = base64.StdEncoding.DecodeString(shot.Data)
	}
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o755)
	}
	if err == nil {
		err = os.WriteFile(path, b, 0o644)
	}
	if err != nil {
		t.Fatalf("take a screenshot: %v", err)
	}
}

// Where a host keeps the addresses that programs wanted to open.
const (
	opener  = "/usr/local/bin/lab-browser"
	urlList = "/var/lib/lab-urls"
)

// CatchURLs makes the host note each address that a program opens in the
// default browser, through $BROWSER or xdg-open, for NextURL. It returns what
// a program needs in its environment.
func (h *Host) CatchURLs() []string {
	h.lab.t.Helper()
	script := []byte("#!/bin/sh\nprintf '%s\\n' \"$1\" >>" + urlList + "\n")
	h.Write(urlList, 0o666, nil)
	h.Write(opener, 0o755, script)
	h.Write("/usr/local/bin/xdg-open", 0o755, script)
	return []string{"BROWSER=" + opener}
}

// NextURL waits for the next address that a program has opened.
func (h *Host) NextURL() string {
	h.lab.t.Helper()
	var url string
	poll(h.lab.t, h.name+": no program opens the browser", func() bool {
		b, err := h.Read(urlList)
		lines := strings.Split(string(b), "\n") // the last is empty, or not yet whole
		if err != nil || len(lines)-1 <= h.urls {
			return false
		}
		url = lines[h.urls]
		return true
	})
	h.urls++
	return url
}
