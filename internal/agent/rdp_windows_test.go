package agent

import (
	"bytes"
	"net"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
)

// The registry as Windows answers it: there, not there, and of another type.
func TestWindowsRDPRegistry(t *testing.T) {
	const key = `SOFTWARE\sftd-test`
	k, _, err := registry.CreateKey(registry.LOCAL_MACHINE, key, registry.ALL_ACCESS|registry.WOW64_64KEY)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		k.Close()
		if err := registry.DeleteKey(registry.LOCAL_MACHINE, key); err != nil {
			t.Error(err)
		}
	})
	for _, err := range []error{k.SetDWordValue("n", 0xd3d), k.SetStringValue("s", "RDP"), k.SetBinaryValue("b", []byte{1, 2})} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var h windowsRDP
	if n, ok, err := h.number(key, "n"); n != 0xd3d || !ok || err != nil {
		t.Errorf("a number: got %d, %t, %v", n, ok, err)
	}
	if s, ok, err := h.text(key, "s"); s != "RDP" || !ok || err != nil {
		t.Errorf("a text: got %q, %t, %v", s, ok, err)
	}
	if b, ok, err := h.bytes(key, "b"); string(b) != "\x01\x02" || !ok || err != nil {
		t.Errorf("bytes: got %x, %t, %v", b, ok, err)
	}
	if _, ok, err := h.number(key, "none"); ok || err != nil {
		t.Errorf("no value: got %t, %v", ok, err)
	}
	if _, ok, err := h.number(key+`\none`, "n"); ok || err != nil {
		t.Errorf("no key: got %t, %v", ok, err)
	}
	if _, ok, err := h.number(key, "s"); ok || err != errValueType {
		t.Errorf("another type: got %t, %v", ok, err)
	}
}

// What is asked of Windows beside the registry is asked so that it answers.
func TestWindowsRDPAnswers(t *testing.T) {
	var h windowsRDP
	if _, err := h.certificates("My"); err != nil {
		t.Errorf("certificates: %v", err)
	}
	if sids, err := h.holders(rightDenyNetwork); err != nil {
		t.Errorf("holders: %v (%q)", err, sids)
	}
	if list, err := h.templates(); err != nil {
		t.Errorf("templates: %v of %d", err, len(list))
	}
	if n, err := h.desktops(); err != nil {
		t.Errorf("desktops: %v (%d)", err, n)
	}
	if got := h.product(); got < 1 || got > 3 {
		t.Errorf("product: got %d", got)
	}
	if got := rdpDefault(); got != "127.0.0.1:3389" {
		t.Errorf("rdpDefault: got %s", got)
	}
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		at := l.Addr().(*net.TCPAddr).AddrPort()
		if list, err := listeners(); err != nil || !slices.Contains(list, at) {
			t.Errorf("listeners: %v, %v; want %v among them", list, err, at)
		}
		l.Close()
		if list, err := listeners(); err != nil || slices.Contains(list, at) {
			t.Errorf("listeners after %v has closed: %v, %v", at, list, err)
		}
	}
	if name, err := (windowsDesktops{}).computer(); err != nil || name == "" {
		t.Errorf("computer: got %q, %v", name, err)
	}
}

// A certificate in a store of the machine comes back as it is.
func TestWindowsRDPCertificates(t *testing.T) {
	const store = "sftd-test"
	if list, err := (windowsRDP{}).certificates("sftd-none"); err != nil || len(list) > 0 {
		t.Errorf("a store that is not there: got %d, %v", len(list), err)
	}
	name, err := windows.UTF16PtrFromString(store)
	if err != nil {
		t.Fatal(err)
	}
	h, err := windows.CertOpenStore(windows.CERT_STORE_PROV_SYSTEM_W, 0, 0, windows.CERT_SYSTEM_STORE_LOCAL_MACHINE, uintptr(unsafe.Pointer(name)))
	if err != nil {
		t.Fatal(err)
	}
	want := [][]byte{certificate(t, 1), certificate(t, 2)}
	for _, der := range want {
		c, err := windows.CertCreateCertificateContext(windows.X509_ASN_ENCODING, &der[0], uint32(len(der)))
		if err != nil {
			t.Fatal(err)
		}
		defer windows.CertFreeCertificateContext(c)
		if err := windows.CertAddCertificateContextToStore(h, c, windows.CERT_STORE_ADD_ALWAYS, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := windows.CertCloseStore(h, 0); err != nil {
		t.Fatal(err)
	}
	got, err := windowsRDP{}.certificates(store)
	if err != nil || len(got) != 2 || !(bytes.Equal(got[0], want[0]) && bytes.Equal(got[1], want[1]) || bytes.Equal(got[0], want[1]) && bytes.Equal(got[1], want[0])) {
		t.Errorf("got %d certificates, %v, want the two that were put in", len(got), err)
	}
}
