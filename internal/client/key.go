package client

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/zalando/go-keyring"

	"sft"
	"sft/internal/conf"
)

// A Ring says where device keys are kept.
type Ring string

// The Rings.
const (
	AnyRing    Ring = ""       // the system's key store if it works, else a file
	FileRing   Ring = "compat" // a private file
	SystemRing Ring = "system" // the system's key store, or not at all
)

// ringService is the name under which the system's key store keeps our keys.
const ringService = "ScaleFT device key"

// ringTime is how long the key store may take: it may be asking the person to
// unlock it, or be hung.
const ringTime = 60 * time.Second

// keys keeps device keys: in the system's key store, or as PKCS #8 in PEM in
// a file that only its owner can open, which on Windows is sealed by DPAPI
// besides.
type keys struct {
	dir  string
	ring Ring
}

// newKey makes a device key.
func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func (k keys) path(a Account) string { return filepath.Join(k.dir, "device-"+a.ClientID+".key") }

// save keeps key, and reports where.
func (k keys) save(a Account, key *ecdsa.PrivateKey) (inKeyring bool, err error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return false, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if k.ring != FileRing {
		_, err := inTime(func() (string, error) { return "", keyring.Set(ringService, a.ClientID, string(text)) })
		if err == nil {
			return true, nil
		}
		if k.ring == SystemRing {
			return false, &sft.Error{Code: sft.Invalid, Msg: "the system's key store does not take the device key: " + err.Error(), Err: err,
				Hint: "unlock it, or unset SFT_KEYRING to use a private file"}
		}
	}
	if text, err = sealKey(text, a.ClientID); err != nil {
		return false, err
	}
	return false, conf.WriteSecret(k.path(a), text)
}

func (k keys) load(a Account) (*ecdsa.PrivateKey, error) {
	var text []byte
	var err error
	if a.InKeyring {
		var s string
		if s, err = inTime(func() (string, error) { return keyring.Get(ringService, a.ClientID) }); err != nil {
			return nil, &sft.Error{Code: sft.SignIn, Msg: "the system's key store does not give out this device's key: " + err.Error(), Err: err,
				Hint: "unlock it and try again, or " + a.anew()}
		}
		text = []byte(s)
	} else if text, err = conf.ReadPrivate(k.path(a)); errors.Is(err, fs.ErrNotExist) {
		return nil, &sft.Error{Code: sft.SignIn, Msg: "this device's key for team " + a.Team + " is gone", Err: err,
			Hint: a.anew()}
	} else if err != nil {
		return nil, err
	} else if text, err = openKey(text, a.ClientID); err != nil {
		return nil, &sft.Error{Code: sft.SignIn, Msg: "this device's key for team " + a.Team + " cannot be opened: " + err.Error(), Err: err,
			Hint: a.anew()}
	}
	if block, _ := pem.Decode(text); block != nil {
		if key, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
			if ec, ok := key.(*ecdsa.PrivateKey); ok && ec.Curve == elliptic.P256() {
				return ec, nil
			}
		}
	}
	return nil, &sft.Error{Code: sft.SignIn, Msg: "this device's key for team " + a.Team + " is not readable",
		Hint: a.anew()}
}

func (k keys) remove(a Account) error {
	if a.InKeyring {
		_, err := inTime(func() (string, error) { return "", keyring.Delete(ringService, a.ClientID) })
		if errors.Is(err, keyring.ErrNotFound) {
			return nil
		}
		return err
	}
	if err := os.Remove(k.path(a)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// inTime calls the key store, which cannot be told to stop.
func inTime(call func() (string, error)) (string, error) {
	type result struct {
		s   string
		err error
	}
	done := make(chan result, 1)
	go func() {
		s, err := call()
		done <- result{s, err}
	}()
	select {
	case r := <-done:
		return r.s, r.err
	case <-time.After(ringTime):
		return "", errors.New("it did not answer")
	}
}
