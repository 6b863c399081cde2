package ccache

import (
	"fmt"

	"gssproxyd/mech/krb5"
)

// AppendContent appends what a FILE cache of client with creds would hold: header, principal and credentials in version 4.
// There are keys in it.
func AppendContent(b []byte, client krb5.Principal, creds []*krb5.Credential) []byte {
	b = append(b, 5, version, 0, 0)
	b = appendPrincipal(b, version, client)
	for _, c := range creds {
		b = appendCredential(b, version, c)
	}
	return b
}

// ParseContent reads what AppendContent has written. The credentials alias nothing; they are the caller's to destroy. It
// fails where an entry is cut short; that none is missing at the end is for the seal around it to say.
func ParseContent(b []byte) (krb5.Principal, []*krb5.Credential, error) {
	l, err := (&file{name: "content"}).parse(b)
	if err == nil {
		err = l.damage
	}
	if err == nil && l.version != version {
		err = fmt.Errorf("version %d of a credential cache, expected %d", l.version, version)
	}
	if err != nil {
		if l != nil {
			destroy(l.creds)
		}
		return krb5.Principal{}, nil, err
	}
	return l.principal, l.creds, nil
}
