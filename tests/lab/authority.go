package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Authority issues certificates, and revokes them.
type Authority struct {
	Dir string // ca.pem and crl.pem are there

	cert    *x509.Certificate
	key     *ecdsa.PrivateKey
	serial  int64
	revoked []x509.RevocationListEntry
}

// NewAuthority makes an authority, in a directory that is not there yet, which has revoked nothing.
func NewAuthority(t testing.TB, dir string) *Authority {
	t.Helper()
	a := &Authority{Dir: dir}
	_, key, der, err := a.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "the lab's"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign})
	if err == nil {
		a.key = key
		a.cert, err = x509.ParseCertificate(der)
	}
	if err := errors.Join(err, os.Mkdir(dir, 0o755), writePEM(dir+"/ca.pem", "CERTIFICATE", der, 0o644)); err != nil {
		t.Fatal(err)
	}
	a.Revoke(t, 0)
	return a
}

// Issue puts cert.pem and key.pem for DNS names and addresses, of servers and clients, into a directory,
// and returns the serial number.
func (a *Authority) Issue(t testing.TB, dir string, names ...string) int64 {
	t.Helper()
	tmpl := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, n)
		}
	}
	serial, key, der, err := a.sign(tmpl)
	var keyDER []byte
	if err == nil {
		keyDER, err = x509.MarshalPKCS8PrivateKey(key)
	}
	if err := errors.Join(err, writePEM(filepath.Join(dir, "cert.pem"), "CERTIFICATE", der, 0o644), writePEM(filepath.Join(dir, "key.pem"), "PRIVATE KEY", keyDER, 0o600)); err != nil {
		t.Fatal(err)
	}
	return serial
}

// sign makes a key, and a certificate of it: the authority's own if it has none yet.
func (a *Authority) sign(tmpl *x509.Certificate) (serial int64, key *ecdsa.PrivateKey, der []byte, err error) {
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return 0, nil, nil, err
	}
	a.serial++
	tmpl.SerialNumber, tmpl.NotBefore, tmpl.NotAfter = big.NewInt(a.serial), time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = tmpl, key
	}
	der, err = x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	return a.serial, key, der, err
}

// Revoke writes a new list, with one more certificate in it; 0: with none more.
func (a *Authority) Revoke(t testing.TB, serial int64) {
	t.Helper()
	if serial != 0 {
		a.revoked = append(a.revoked, x509.RevocationListEntry{SerialNumber: big.NewInt(serial), RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(int64(len(a.revoked)) + 1), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour), RevokedCertificateEntries: a.revoked,
	}, a.cert, a.key)
	if err == nil {
		err = errors.Join(writePEM(a.Dir+"/crl.new", "X509 CRL", der, 0o644), os.Rename(a.Dir+"/crl.new", a.Dir+"/crl.pem"))
	}
	if err != nil {
		t.Fatal(err)
	}
}

func writePEM(file, kind string, der []byte, mode os.FileMode) error {
	return os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode)
}
