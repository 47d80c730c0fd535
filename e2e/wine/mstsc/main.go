// Command mstsc stands in for the RDP client of Windows where there is none:
// it reads a connection file or /v:, finds the password as mstsc does, goes
// through the connection sequence by code of our own, and says what came of
// it. What mstsc shows, and which dialogs, it knows nothing of.
//
// Or it leaves the connection to an RDP client outside of Windows, and is in
// the middle: SFT_STANDIN_MSTSC_RELAY is an address to listen on, for one
// client. What that needs to know is in the file of the result at once.
package main

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"

	"sft"
	"sft/internal/launch"
	"sft/internal/rdp/rdptest"
)

// A Result is what is written to the file that SFT_STANDIN_MSTSC_OUT names.
type Result struct {
	Args    []string `json:"args"`
	Address string   `json:"address"`
	User    string   `json:"user"`
	NLA     bool     `json:"nla"`
	Secret  string   `json:"secret"`             // where the password was: "file", "credential" or "none"
	Desktop bool     `json:"desktop"`            // a picture came
	Bytes   int64    `json:"bytes"`              // of the picture
	Relay   string   `json:"relay,omitempty"`    // it listens there
	Pass    string   `json:"password,omitempty"` // for the client that comes there
	Error   string   `json:"error,omitempty"`
}

const (
	// picture is how much counts as a desktop: more than signing in brings.
	picture = 8 << 10
	// patience is how long it may take.
	patience = 60 * time.Second
)

func main() { os.Exit(run(os.Args[1:], os.Getenv)) }

func run(args []string, getenv func(string) string) int {
	r := Result{Args: args}
	path := getenv("SFT_STANDIN_MSTSC_OUT")
	password, err := r.read()
	switch at := getenv("SFT_STANDIN_MSTSC_RELAY"); {
	case err != nil || getenv("SFT_STANDIN_MSTSC_READ") != "": // which makes it read the file and connect to nothing
	case at != "":
		err = r.relay(at, password, path)
	default:
		err = r.connect(password)
	}
	if err != nil {
		r.Error = err.Error()
	}
	if err := r.write(path); err != nil {
		fmt.Fprintln(os.Stderr, "mstsc:", err)
		return 1
	}
	return 0 // as mstsc, whatever happened
}

// write puts the result into a file, in one step, or on standard output.
func (r *Result) write(path string) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	b = append(b, '\n')
	if path == "" {
		_, err = os.Stdout.Write(b)
		return err
	}
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// connect is all that there is to do.
func (r *Result) connect(password sft.Secret) error {
	c, err := net.DialTimeout("tcp", r.Address, patience)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	client := rdptest.Client{User: r.User, Password: password, NLA: r.NLA}
	got, err := client.Connect(c)
	if err != nil {
		return err
	}
	r.Bytes, err = io.CopyN(io.Discard, got.Conn, picture)
	r.Desktop = err == nil
	return err
}

// relay says in a file where it listens, carries one connection, and ends with
// it.
func (r *Result) relay(at string, password sft.Secret, path string) error {
	l, err := net.Listen("tcp", at)
	if err != nil {
		return err
	}
	defer l.Close()
	r.Relay, r.Pass = l.Addr().String(), password.Reveal()
	err = r.write(path)
	r.Relay, r.Pass = "", ""
	if err != nil {
		return err
	}
	in, err := l.Accept()
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := net.DialTimeout("tcp", r.Address, patience)
	if err != nil {
		return err
	}
	defer out.Close()
	go func() {
		_, _ = io.Copy(out, in)
		out.Close()
	}()
	r.Bytes, _ = io.Copy(in, out) // until either has had enough
	r.Desktop = r.Bytes >= picture
	return nil
}

// read finds where to connect, and the password.
func (r *Result) read() (sft.Secret, error) {
	var none sft.Secret
	if len(r.Args) == 0 {
		return none, errors.New("no file and no /v:")
	}
	at, direct := strings.CutPrefix(r.Args[0], "/v:")
	if !direct {
		return r.readFile(r.Args[0])
	}
	for _, a := range r.Args[1:] {
		if !known(a) {
			return none, fmt.Errorf("there is no argument %q", a)
		}
	}
	r.NLA = true // the default
	host, err := netip.ParseAddrPort(at)
	if err != nil {
		return none, err
	}
	r.Address = at
	var blob []byte
	if r.User, blob, err = readCredential("TERMSRV/" + host.Addr().String()); err != nil {
		return none, fmt.Errorf("read the credential: %w", err)
	}
	r.Secret = "credential"
	return narrow(blob)
}

func known(arg string) bool {
	if arg == "/f" || arg == "/multimon" {
		return true
	}
	n, ok := strings.CutPrefix(arg, "/w:")
	if !ok {
		n, ok = strings.CutPrefix(arg, "/h:")
	}
	_, err := strconv.ParseUint(n, 10, 16)
	return ok && err == nil
}

func (r *Result) readFile(path string) (sft.Secret, error) {
	var none sft.Secret
	b, err := os.ReadFile(path)
	if err != nil {
		return none, err
	}
	f, err := launch.ParseRDPFile(b)
	if err != nil {
		return none, err
	}
	r.Address, _ = f.Get("full address")
	r.User, _ = f.Get("username")
	nla, _ := f.Get("enablecredsspsupport")
	r.NLA = nla != "0"
	r.Secret = "none"
	sealed, ok := f.Get("password 51")
	if !ok {
		return none, nil
	}
	r.Secret = "file"
	blob, err := hex.DecodeString(sealed)
	if err != nil {
		return none, err
	}
	if blob, err = unprotect(blob); err != nil {
		return none, fmt.Errorf("open the password of the file: %w", err)
	}
	return narrow(blob)
}

// narrow reads a password in UTF-16LE.
func narrow(b []byte) (sft.Secret, error) {
	if len(b)%2 != 0 {
		return sft.Secret{}, errors.New("the password is not in UTF-16")
	}
	units := make([]uint16, len(b)/2)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	return sft.NewSecret(string(utf16.Decode(units))), nil
}
