package krb5

import (
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
)

// appendKRBCred appends a KRB-CRED (RFC 4120 section 5.8) of one ticket, with its encrypted part plain
// encrypted in the key k: for GSS-API the session key of the ticket for the service (RFC 4121 section
// 4.1.1), not the subkey.
func appendKRBCred(dst, ticket []byte, k *etype.Key, plain []byte) ([]byte, error) {
	dst, app := der.Begin(dst, der.Application(22))
	dst, seq := der.Begin(dst, der.Sequence)
	dst = appendIntField(dst, 0, 5)
	dst = appendIntField(dst, 1, 22)
	dst, f := der.Begin(dst, der.Context(2))
	dst, list := der.Begin(dst, der.Sequence)
	dst = der.End(der.End(append(dst, ticket...), list), f)
	dst, err := appendEncrypted(dst, 3, k, wire.UsageKRBCred, plain)
	if err != nil {
		return nil, err
	}
	return der.End(der.End(dst, seq), app), nil
}

// appendEncKRBCredPart appends the EncKrbCredPart (RFC 4120 section 5.8.1) of the credential c.
func appendEncKRBCredPart(dst []byte, c *Credential, nonce uint32, at authenticatorTime) []byte {
	dst, app := der.Begin(dst, der.Application(29))
	dst, seq := der.Begin(dst, der.Sequence)
	dst, f := der.Begin(dst, der.Context(0))
	dst, list := der.Begin(dst, der.Sequence)
	dst = der.End(der.End(appendCredInfo(dst, c), list), f)
	dst = appendIntField(dst, 1, int64(nonce))
	dst = appendTimeField(dst, 2, at.ctime)
	dst = appendIntField(dst, 3, int64(at.cusec))
	return der.End(der.End(dst, seq), app)
}

// appendCredInfo appends a KrbCredInfo, which readCredEntry reads.
func appendCredInfo(dst []byte, c *Credential) []byte {
	dst, seq := der.Begin(dst, der.Sequence)
	dst, f := der.Begin(dst, der.Context(0))
	dst = der.End(appendTypedValue(dst, int32(c.KeyType), c.Key), f)
	dst = appendNameFields(dst, 1, &c.Client)
	dst = appendFlagsField(dst, 3, c.Flags)
	for n, t := range [...]uint32{c.AuthTime, c.StartTime, c.EndTime, c.RenewTill} {
		if t != 0 {
			dst = appendTimeField(dst, 4+n, t)
		}
	}
	dst = appendNameFields(dst, 8, &c.Server)
	if len(c.Addresses) > 0 {
		var list int
		dst, f = der.Begin(dst, der.Context(10))
		dst, list = der.Begin(dst, der.Sequence)
		for _, a := range c.Addresses {
			dst = appendTypedValue(dst, a.Type, a.Data)
		}
		dst = der.End(der.End(dst, list), f)
	}
	return der.End(dst, seq)
}
