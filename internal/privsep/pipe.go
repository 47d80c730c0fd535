package privsep

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// A pipe is one end of a channel that is two streams of bytes: in each, every
// message comes after its length, 4 bytes, little-endian. No files go beside
// messages.
//
// The streams need no deadlines of their own. What is stuck in one when the
// time is over goes on when the other end has gone, so whoever got an error
// for a message that was late ends the peer.
type pipe struct {
	r        io.ReadCloser
	w        io.WriteCloser
	in       *bufio.Reader // r
	buf      []byte        // of the one reader
	until    time.Time     // of the next message
	writing  chan struct{} // has something while a message is being written
	patience time.Duration // for the peer to read
}

// newPipe makes a channel of two streams, which are closed with it.
func newPipe(r io.ReadCloser, w io.WriteCloser) *pipe {
	return &pipe{r: r, w: w, in: bufio.NewReaderSize(r, 64<<10), buf: make([]byte, MaxMessage), writing: make(chan struct{}, 1), patience: writeTimeout}
}

// prefix is the length of a message's length.
const prefix = 4

// appendFramed appends a message to b as it crosses the stream.
func appendFramed(b, message []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(message)))
	return append(b, message...)
}

// readFramed reads a message into buf, whose length is the cap. Of a longer
// message nothing but the length is read. A stream that ends within a message
// ends like any other: with io.EOF.
func readFramed(r io.Reader, buf []byte) ([]byte, error) {
	var head [prefix]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, ended(err)
	}
	n := binary.LittleEndian.Uint32(head[:])
	if uint64(n) > uint64(len(buf)) {
		return nil, fmt.Errorf("a message over the cap of %d bytes", len(buf))
	}
	if _, err := io.ReadFull(r, buf[:n]); err != nil {
		return nil, ended(err)
	}
	return buf[:n], nil
}

// ended returns err, and io.EOF for an end in the middle.
func ended(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return io.EOF
	}
	return err
}

func (p *pipe) send(v any, f *os.File) error {
	if f != nil {
		return errors.New("a pipe carries no files")
	}
	b, err := encode(v)
	if err != nil {
		return err
	}
	return p.sendRaw(appendFramed(make([]byte, 0, prefix+len(b)), b))
}

// sendRaw writes bytes as they are.
func (p *pipe) sendRaw(b []byte) error {
	late := time.NewTimer(p.patience)
	defer late.Stop()
	select {
	case p.writing <- struct{}{}:
	case <-late.C:
		return fmt.Errorf("write: %w", os.ErrDeadlineExceeded)
	}
	done := make(chan error, 1)
	go func() {
		_, err := p.w.Write(b)
		<-p.writing
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-late.C:
		return fmt.Errorf("write: %w", os.ErrDeadlineExceeded)
	}
}

func (p *pipe) receive() ([]byte, error) {
	if p.until.IsZero() {
		return readFramed(p.in, p.buf)
	}
	type result struct {
		b   []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		b, err := readFramed(p.in, p.buf)
		done <- result{b, err}
	}()
	late := time.NewTimer(time.Until(p.until))
	defer late.Stop()
	select {
	case r := <-done:
		return r.b, r.err
	case <-late.C:
		return nil, fmt.Errorf("read: %w", os.ErrDeadlineExceeded)
	}
}

func (p *pipe) receiveFile() ([]byte, *os.File, error) {
	b, err := p.receive()
	return b, nil, err
}

func (p *pipe) deadline(t time.Time) error {
	p.until = t
	return nil
}

func (p *pipe) files() bool { return false }

func (p *pipe) close() {
	p.w.Close()
	p.r.Close()
}
