package agent

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
)

// rdpStart is how the RDP service is started.
const rdpStart = "start the RDP service (in PowerShell, run: Start-Service TermService), or set RDPAddress in sftd.yaml"

// rdpDefault is where the RDP service is if sftd.yaml does not say.
func rdpDefault() string {
	port, _ := rdpPort(windowsRDP{}) // rdpStatus tells of what cannot be read
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port).String()
}

// configuredCertificate is the SHA-256 of the RDP service's certificate.
func configuredCertificate() (string, error) { return storedCertificate(windowsRDP{}) }

// readFacts reads the facts of this host. A certificate that sftd.yaml names
// is judged where it is used.
func (a *Agent) readFacts() RDPFacts {
	f := readRDPFacts(windowsRDP{})
	if a.conf.RDPCertificateFile != "" {
		f.Certificate, f.CertificateProblem = "", ""
		var err error
		if f.Certificate, err = a.rdpCertificate(); err != nil {
			f.CertificateProblem = err.Error()
		}
	}
	return f
}

// rdpFacts is what decides whether somebody can sign in to the RDP service,
// whatever the password. It is asked before an account is enabled.
func (a *Agent) rdpFacts() (RDPFacts, bool) { return a.readFacts(), true }

// rdpSettings lists what is wrong with the settings of the RDP service, each
// with what to do.
func (a *Agent) rdpSettings() []string { return rdpLines(judge(a.readFacts())) }

var getExtendedTCPTable = windows.NewLazySystemDLL("iphlpapi.dll").NewProc("GetExtendedTcpTable")

// ownerPIDListener is TCP_TABLE_OWNER_PID_LISTENER.
const ownerPIDListener = 3

// listeners are the TCP sockets of this host that listen.
func listeners() ([]netip.AddrPort, error) {
	v4, err := tcpTable(windows.AF_INET)
	if err != nil {
		return nil, err
	}
	v6, err := tcpTable(windows.AF_INET6)
	if err != nil {
		return nil, err
	}
	return append(tableListeners(v4, false), tableListeners(v6, true)...), nil
}

// tcpTable is what GetExtendedTcpTable says of the listeners of a family.
func tcpTable(family uintptr) ([]byte, error) {
	b := make([]byte, 16<<10)
	for range 8 {
		size := uint32(len(b))
		status, _, _ := getExtendedTCPTable.Call(uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&size)), 0, family, ownerPIDListener, 0)
		switch err := windows.Errno(status); err {
		case 0:
			return b, nil
		case windows.ERROR_INSUFFICIENT_BUFFER:
			b = make([]byte, int(size)+4<<10)
		default:
			return nil, err
		}
	}
	return nil, errors.New("the table of listeners does not stop growing")
}

// DesktopLocked takes the client away from the Windows sessions that are
// locked, if they are of people with open streams. It is to be called at each
// WTS_SESSION_LOCK (Microsoft, "WM_WTSSESSION_CHANGE message").
func (a *Agent) DesktopLocked() error { return a.lockedDesktops(windowsDesktops{}) }

// windowsRDP is the rdpHost of Windows.
type windowsRDP struct{}

// read opens a key and has get read a value of it.
func read[T any](key string, get func(registry.Key) (T, uint32, error)) (v T, ok bool, err error) {
	k, err := registry.OpenKey(registry.LOCAL_MACHINE, key, registry.QUERY_VALUE|registry.WOW64_64KEY)
	if err == nil {
		defer k.Close()
		v, _, err = get(k)
	}
	switch {
	case errors.Is(err, registry.ErrNotExist):
		return v, false, nil
	case errors.Is(err, registry.ErrUnexpectedType):
		return v, false, errValueType
	}
	return v, err == nil, err
}

func (windowsRDP) number(key, value string) (uint32, bool, error) {
	n, ok, err := read(key, func(k registry.Key) (uint64, uint32, error) { return k.GetIntegerValue(value) })
	return uint32(n), ok, err
}

func (windowsRDP) text(key, value string) (string, bool, error) {
	return read(key, func(k registry.Key) (string, uint32, error) { return k.GetStringValue(value) })
}

func (windowsRDP) bytes(key, value string) ([]byte, bool, error) {
	return read(key, func(k registry.Key) ([]byte, uint32, error) { return k.GetBinaryValue(value) })
}

func (windowsRDP) certificates(store string) (list [][]byte, err error) {
	name, err := windows.UTF16PtrFromString(store)
	if err != nil {
		return nil, err
	}
	h, err := windows.CertOpenStore(windows.CERT_STORE_PROV_SYSTEM_W, 0, 0,
		windows.CERT_SYSTEM_STORE_LOCAL_MACHINE|windows.CERT_STORE_READONLY_FLAG|windows.CERT_STORE_OPEN_EXISTING_FLAG, uintptr(unsafe.Pointer(name)))
	runtime.KeepAlive(name)
	if errors.Is(err, windows.ERROR_FILE_NOT_FOUND) { // nothing was ever put into it
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer windows.CertCloseStore(h, 0)
	var c *windows.CertContext
	for {
		// It frees the one before.
		c, err = windows.CertEnumCertificatesInStore(h, c)
		if err != nil {
			if errors.Is(err, windows.Errno(windows.CRYPT_E_NOT_FOUND)) || errors.Is(err, windows.ERROR_NO_MORE_FILES) {
				return list, nil
			}
			return nil, err
		}
		list = append(list, slices.Clone(unsafe.Slice(c.EncodedCert, c.Length)))
	}
}

var (
	wtsapi32                   = windows.NewLazySystemDLL("wtsapi32.dll")
	wtsQuerySessionInformation = wtsapi32.NewProc("WTSQuerySessionInformationW")
	wtsDisconnectSession       = wtsapi32.NewProc("WTSDisconnectSession")
)

// templates are the files that the client-side extension for security
// settings keeps of each policy.
func (windowsRDP) templates() ([][]byte, error) {
	dir, err := windows.GetSystemWindowsDirectory()
	if err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(dir, `security\templates\policies\gpt*`))
	if err != nil {
		return nil, err
	}
	var list [][]byte
	for _, f := range files {
		b, err := readCapped(f)
		if errors.Is(err, os.ErrNotExist) { // a refresh of the policies is on
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, b)
	}
	return list, nil
}

func (windowsRDP) desktops() (int, error) {
	states, err := sessionStates()
	return people(states), err
}

// sessionStates returns the state of each session, by its number.
func sessionStates() (map[uint32]uint32, error) {
	var first *windows.WTS_SESSION_INFO
	var n uint32
	if err := windows.WTSEnumerateSessions(0, 0, 1, &first, &n); err != nil {
		return nil, err
	}
	defer windows.WTSFreeMemory(uintptr(unsafe.Pointer(first)))
	states := map[uint32]uint32{}
	for _, s := range unsafe.Slice(first, n) {
		states[s.SessionID] = s.State
	}
	return states, nil
}

func (windowsRDP) product() uint8 { return windows.RtlGetVersion().ProductType }

// windowsDesktops is the desktops of Windows.
type windowsDesktops struct{}

// Members of WTS_INFO_CLASS, wtsapi32.h.
const (
	wtsUserName     = 5
	wtsDomainName   = 7
	wtsConnectState = 8
	wtsSessionInfo  = 25 // WTSSessionInfoEx
)

// wtsInfoEx is the beginning of WTSINFOEXW, whose union is WTSINFOEX_LEVEL1_W.
type wtsInfoEx struct {
	level uint32
	_     uint32 // the union has 64-bit members
	id    uint32
	state uint32
	flags int32
}

// wtsLocked is WTS_SESSIONSTATE_LOCK.
const wtsLocked = 0

func (windowsDesktops) locked() (ids []uint32, err error) {
	states, err := sessionStates()
	errs := []error{err}
	for id, state := range states {
		if state != wtsActive {
			continue
		}
		var info wtsInfoEx
		err := query(id, wtsSessionInfo, unsafe.Sizeof(info), func(b unsafe.Pointer) { info = *(*wtsInfoEx)(b) })
		if err == nil && info.level == 1 && info.flags == wtsLocked {
			ids = append(ids, id)
		}
		errs = append(errs, err)
	}
	if len(ids) > 0 { // one that has just ended is no reason to leave these
		return ids, nil
	}
	return nil, errors.Join(errs...)
}

func (windowsDesktops) owner(id uint32) (domain, login string, connected bool, err error) {
	var state uint32
	if err = query(id, wtsConnectState, unsafe.Sizeof(state), func(b unsafe.Pointer) { state = *(*uint32)(b) }); err == nil {
		err = query(id, wtsDomainName, 2, func(b unsafe.Pointer) { domain = windows.UTF16PtrToString((*uint16)(b)) })
	}
	if err == nil {
		err = query(id, wtsUserName, 2, func(b unsafe.Pointer) { login = windows.UTF16PtrToString((*uint16)(b)) })
	}
	return domain, login, state == wtsActive, err
}

// query hands what is known of a session, at least so many bytes, to take.
func query(id, class uint32, least uintptr, take func(unsafe.Pointer)) error {
	var b unsafe.Pointer
	var n uint32
	if r, _, err := wtsQuerySessionInformation.Call(0, uintptr(id), uintptr(class), uintptr(unsafe.Pointer(&b)), uintptr(unsafe.Pointer(&n))); r == 0 {
		return err
	}
	defer windows.WTSFreeMemory(uintptr(b))
	if uintptr(n) < least {
		return errors.New("WTSQuerySessionInformation returned too little")
	}
	take(b)
	return nil
}

func (windowsDesktops) computer() (string, error) { return windows.ComputerName() }

func (windowsDesktops) disconnect(id uint32) error {
	if r, _, err := wtsDisconnectSession.Call(0, uintptr(id), 0); r == 0 {
		return err
	}
	return nil
}
