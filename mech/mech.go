// Package mech holds what every GSS-API mechanism of this program shares: object identifiers,
// status codes with their texts, errors, context flags, and the two exported-name token formats
// (RFC 2743, RFC 2744, RFC 6680).
//
// It knows nothing of keys, files or the network.
package mech

import (
	"strconv"
	"strings"
)

// OID is an object identifier: the DER content octets, without tag and length. As a string it is
// comparable, usable as a map key, and immutable.
type OID string

// Mechanisms.
const (
	KRB5      OID = "\x2a\x86\x48\x86\xf7\x12\x01\x02\x02" // 1.2.840.113554.1.2.2, RFC 4121
	KRB5Old   OID = "\x2b\x05\x01\x05\x02"                 // 1.3.5.1.5.2, before RFC 1964
	KRB5Wrong OID = "\x2a\x86\x48\x82\xf7\x12\x01\x02\x02" // 1.2.840.48018.1.2.2, Windows 2000's mistake
	IAKERB    OID = "\x2b\x06\x01\x05\x02\x05"             // 1.3.6.1.5.2.5
	SPNEGO    OID = "\x2b\x06\x01\x05\x05\x02"             // 1.3.6.1.5.5.2, RFC 4178
)

// Name types (RFC 2744 section 4, RFC 1964 section 2.1, RFC 6680).
const (
	NTUserName             OID = "\x2a\x86\x48\x86\xf7\x12\x01\x02\x01\x01" // 1.2.840.113554.1.2.1.1
	NTMachineUID           OID = "\x2a\x86\x48\x86\xf7\x12\x01\x02\x01\x02" // a uid_t in native byte order
	NTStringUID            OID = "\x2a\x86\x48\x86\xf7\x12\x01\x02\x01\x03" // a uid in decimal digits
	NTHostbased            OID = "\x2a\x86\x48\x86\xf7\x12\x01\x02\x01\x04" // service or service@host
	NTHostbasedX           OID = "\x2b\x06\x01\x05\x06\x02"                 // 1.3.6.1.5.6.2, the older number of NTHostbased
	NTAnonymous            OID = "\x2b\x06\x01\x05\x06\x03"                 // 1.3.6.1.5.6.3
	NTExportName           OID = "\x2b\x06\x01\x05\x06\x04"                 // 1.3.6.1.5.6.4
	NTCompositeExport      OID = "\x2b\x06\x01\x05\x06\x06"                 // 1.3.6.1.5.6.6
	NTKrb5Principal        OID = "\x2a\x86\x48\x86\xf7\x12\x01\x02\x02\x01" // 1.2.840.113554.1.2.2.1
	NTKrb5PrincipalPointer OID = "\x2a\x86\x48\x86\xf7\x12\x01\x02\x02\x02" // a C pointer: meaningless outside its process
	NTKrb5Enterprise       OID = "\x2a\x86\x48\x86\xf7\x12\x01\x02\x02\x06"
	NTKrb5X509             OID = "\x2a\x86\x48\x86\xf7\x12\x01\x02\x02\x07" // a DER certificate
)

// String returns the dotted form. Octets that are no well-formed identifier come back as
// hexadecimal after "invalid:", and so do the first of more than 127, which no token has room for:
// the result is safe to log.
func (o OID) String() string {
	if o == "" {
		return ""
	}
	if len(o) > maxOID {
		return o[:maxOID].invalid() + "..."
	}
	var b strings.Builder
	var arc uint64
	first, fresh := true, true
	for i := 0; i < len(o); i++ {
		c := o[i]
		if arc>>57 != 0 || fresh && c == 0x80 {
			return o.invalid()
		}
		arc, fresh = arc<<7|uint64(c&0x7f), false
		if c&0x80 != 0 {
			continue
		}
		if first {
			top := min(arc/40, 2)
			b.WriteString(strconv.FormatUint(top, 10))
			arc -= 40 * top
			first = false
		}
		b.WriteByte('.')
		b.WriteString(strconv.FormatUint(arc, 10))
		arc, fresh = 0, true
	}
	if !fresh {
		return o.invalid()
	}
	return b.String()
}

// Mechanism returns the name of a mechanism that is known, with the dotted form in parentheses, and
// of others the dotted form: the result is safe to log.
func (o OID) Mechanism() string {
	if name := mechanisms[o]; name != "" {
		return name + " (" + o.String() + ")"
	}
	return o.String()
}

// mechanisms are the names of mechanisms, also of those that clients are only known to ask for.
var mechanisms = map[OID]string{
	KRB5:      "krb5",
	KRB5Old:   "the old krb5",
	KRB5Wrong: "Microsoft's krb5",
	IAKERB:    "IAKERB",
	SPNEGO:    "SPNEGO",
	"\x2b\x06\x01\x04\x01\x82\x37\x02\x02\x0a": "NTLM",   // 1.3.6.1.4.1.311.2.2.10
	"\x2b\x06\x01\x04\x01\x82\x37\x02\x02\x1e": "NegoEx", // 1.3.6.1.4.1.311.2.2.30
}

// maxOID is the longest that a one-octet DER length can tell.
const maxOID = 127

func (o OID) invalid() string {
	const hex = "0123456789abcdef"
	b := []byte("invalid:")
	for i := 0; i < len(o); i++ {
		b = append(b, hex[o[i]>>4], hex[o[i]&15])
	}
	return string(b)
}

// Context flags (RFC 2744 section 5.19, RFC 4121 section 4.1.1.1, RFC 4757 section 7.1; DelegPolicy
// from RFC 5896, ChannelBound from MIT krb5 1.19).
const (
	FlagDeleg         = 0x1
	FlagMutual        = 0x2
	FlagReplay        = 0x4
	FlagSequence      = 0x8
	FlagConf          = 0x10
	FlagInteg         = 0x20
	FlagAnon          = 0x40
	FlagProtReady     = 0x80
	FlagTrans         = 0x100
	FlagChannelBound  = 0x800
	FlagDCEStyle      = 0x1000
	FlagIdentify      = 0x2000
	FlagExtendedError = 0x4000
	FlagDelegPolicy   = 0x8000
)
