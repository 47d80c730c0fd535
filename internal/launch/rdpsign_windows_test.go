package launch

import (
	"crypto/x509"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/windows"
)

var cryptVerifyDetached = windows.NewLazySystemDLL("crypt32.dll").NewProc("CryptVerifyDetachedMessageSignature")

// verifyPara is CRYPT_VERIFY_MESSAGE_PARA (wincrypt.h).
type verifyPara struct {
	size, encoding    uint32
	provider          uintptr
	getSigner, getArg uintptr
}

// TestWindowsVerifies has CryptoAPI verify the signature of a file.
func TestWindowsVerifies(t *testing.T) {
	p := newPublisher(t, x509.ExtKeyUsageCodeSigning)
	lines, scope, der := opened(t, signedFile(t, StartFile, p))
	verifies := func(lines []string) bool {
		var text string
		for _, name := range scope {
			for _, l := range lines {
				if strings.HasPrefix(l, strings.ToLower(name)+":") {
					text += l + "\r\n"
				}
			}
		}
		message := utf16le(text + "signscope:s:" + strings.Join(scope, ",") + "\r\n\x00")
		para := verifyPara{encoding: windows.X509_ASN_ENCODING | windows.PKCS_7_ASN_ENCODING}
		para.size = uint32(unsafe.Sizeof(para))
		data, size := uintptr(unsafe.Pointer(&message[0])), uint32(len(message))
		ok, _, err := cryptVerifyDetached.Call(uintptr(unsafe.Pointer(&para)), 0, uintptr(unsafe.Pointer(&der[0])), uintptr(len(der)), 1,
			uintptr(unsafe.Pointer(&data)), uintptr(unsafe.Pointer(&size)), 0)
		t.Logf("%d, %v", ok, err)
		return ok != 0
	}
	if !verifies(lines) {
		t.Error("CryptoAPI does not take it")
	}
	for i, l := range lines {
		if strings.HasPrefix(l, "redirectclipboard:") {
			lines[i] = "redirectclipboard:i:0"
		}
	}
	if verifies(lines) {
		t.Error("CryptoAPI takes a file that was changed")
	}
}
