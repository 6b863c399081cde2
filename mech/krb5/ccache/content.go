package ccache

import (
	"bytes"
	"fmt"

	"gssproxyd/mech/krb5"
)

// AppendContent appends what a FILE cache of client with creds would hold: header, principal and
// credentials in version 4. There are keys in it.
func AppendContent(b []byte, client krb5.Principal, creds []*krb5.Credential) []byte {
	b = append(b, 5, version, 0, 0)
	b = appendPrincipal(b, version, client)
	for _, c := range creds {
		b = appendCredential(b, version, c)
	}
	return b
}

// ParseContent reads what AppendContent has written. The credentials alias nothing; they are the
// caller's to destroy. It fails where an entry is cut short; that none is missing at the end is for
// the seal around it to say.
func ParseContent(b []byte) (krb5.Principal, []*krb5.Credential, error) {
	p, err := (&file{name: "content"}).parse(bytes.NewReader(b), len(b), window)
	if err != nil {
		return krb5.Principal{}, nil, err
	}
	defer p.close()
	var creds []*krb5.Credential
	for c := p.next(nil); c != nil; c = p.next(nil) {
		creds = append(creds, c)
	}
	if err = p.damage; err == nil && p.r.version != version {
		err = fmt.Errorf("version %d of a credential cache, expected %d", p.r.version, version)
	}
	if err != nil {
		destroy(creds)
		return krb5.Principal{}, nil, err
	}
	return p.principal, creds, nil
}
