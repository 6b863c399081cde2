// Package crl says whether certificates were revoked, by lists that are in a file.
package crl

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// A List is a revocation list that can be searched.
type List struct {
	*x509.RevocationList
	revoked map[string]time.Time // by serial number
	by      []byte               // the public key of the authority that has signed it, if one that is known has
}

// Parse reads revocation lists in PEM, or one in DER; one at least. The authorities are those that have
// probably signed them.
func Parse(b []byte, authorities []*x509.Certificate) (lists []*List, err error) {
	if !bytes.Contains(b, []byte("-----BEGIN")) {
		one, err := x509.ParseRevocationList(b)
		if err != nil {
			return nil, err
		}
		return []*List{newList(one, authorities)}, nil
	}
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		one, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return nil, err
		}
		lists = append(lists, newList(one, authorities))
	}
	if len(lists) == 0 {
		return nil, errors.New("no revocation list is in it; PEM or DER is expected")
	}
	return lists, nil
}

func newList(l *x509.RevocationList, authorities []*x509.Certificate) *List {
	c := &List{RevocationList: l, revoked: make(map[string]time.Time, len(l.RevokedCertificateEntries))}
	for _, e := range l.RevokedCertificateEntries {
		c.revoked[string(e.SerialNumber.Bytes())] = e.RevocationTime
	}
	for _, a := range authorities {
		if bytes.Equal(l.RawIssuer, a.RawSubject) && l.CheckSignatureFrom(a) == nil {
			c.by = a.RawSubjectPublicKeyInfo
		}
	}
	return c
}

// of reports whether an authority has signed the list.
func (c *List) of(issuer *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, issuer.RawSubject) && (bytes.Equal(c.by, issuer.RawSubjectPublicKeyInfo) || c.CheckSignatureFrom(issuer) == nil)
}

// Check returns the first of the chains of a certificate that counts, or why none does.
func Check(lists []*List, chains [][]*x509.Certificate, now time.Time) ([]*x509.Certificate, error) {
	err := errors.New("its authority is not known")
	for _, chain := range chains {
		if err = revoked(lists, chain, now); err == nil {
			return chain, nil
		}
	}
	return nil, err
}

// revoked returns why one of a chain does not count. Of whoever has signed the first one there must be
// a list that is in date, of the others one if there is any.
func revoked(lists []*List, chain []*x509.Certificate, now time.Time) error {
	for i, c := range chain[:len(chain)-1] {
		issuer, known := chain[i+1], i > 0
		for _, l := range lists {
			if !l.of(issuer) {
				continue
			}
			if !l.NextUpdate.IsZero() && now.After(l.NextUpdate) {
				return fmt.Errorf("the revocation list of %q was to be replaced at %s; bring a newer one", issuer.Subject, l.NextUpdate.UTC().Format(time.RFC3339))
			}
			known = true
			if at, is := l.revoked[string(c.SerialNumber.Bytes())]; is {
				return fmt.Errorf("it was revoked at %s", at.UTC().Format(time.RFC3339))
			}
		}
		if !known {
			return fmt.Errorf("the file crl has no revocation list that %q has signed", issuer.Subject)
		}
	}
	return nil
}
