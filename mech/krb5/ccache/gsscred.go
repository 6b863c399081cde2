package ccache

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
)

// GSSCred is a GSS-API credential of the krb5 mechanism as MIT's gss_export_cred writes it: where keys and
// tickets are, and of a cache in memory the content. An empty string, nil slice or nil pointer is null.
type GSSCred struct {
	Usage           int // 0 both, 1 initiate, 2 accept
	Name            *GSSName
	Impersonator    *krb5.Principal // of a credential for S4U2Proxy: the service the tickets are evidence for
	DefaultIdentity bool
	IAKERB          bool
	Keytab          string   // "FILE:/etc/krb5.keytab"
	Rcache          string   // "dfl:"
	CCache          string   // name of a cache that outlives the process
	Content         *Content // of a MEMORY cache, if there is no CCache
	ClientKeytab    string
	HaveTGT         bool
	Expire          int64 // Unix seconds; 0 when not known, as RefreshTime
	RefreshTime     int64 // when to get new tickets with the client keytab
	Enctypes        []etype.ID
	Password        etype.Secret
}

// GSSName is a name of the mechanism. Service and Host are how it was imported, if host-based.
type GSSName struct {
	Principal     *krb5.Principal
	Service, Host string
}

// Content is what a credential cache holds.
type Content struct {
	Principal   krb5.Principal
	Credentials []*krb5.Credential
}

// Destroy overwrites password and keys.
func (c *GSSCred) Destroy() {
	c.Password.Zero()
	if c.Content != nil {
		destroy(c.Content.Credentials)
	}
}

const gssCredMagic = "K5C1"

// Append appends the token of gss_export_cred: BE32 length and OID of the mechanism, BE32 length and the
// mechanism's token, which is JSON: ["K5C1", [14 values in the order of GSSCred's fields]]. The token has keys.
func (c *GSSCred) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(mech.KRB5)))
	b = append(b, mech.KRB5...)
	b = append(b, 0, 0, 0, 0)
	start := len(b)
	b = append(b, `["`+gssCredMagic+`",[`...)
	b = strconv.AppendInt(b, int64(c.Usage), 10)
	b = append(b, ',')
	if c.Name == nil {
		b = append(b, "null"...)
	} else {
		b = append(b, '[')
		b = appendJSONPrincipal(b, c.Name.Principal)
		b = appendJSONOptional(append(b, ','), c.Name.Service)
		b = appendJSONOptional(append(b, ','), c.Name.Host)
		b = append(b, ']')
	}
	b = appendJSONPrincipal(append(b, ','), c.Impersonator)
	b = strconv.AppendBool(append(b, ','), c.DefaultIdentity)
	b = strconv.AppendBool(append(b, ','), c.IAKERB)
	b = appendJSONOptional(append(b, ','), c.Keytab)
	b = appendJSONOptional(append(b, ','), c.Rcache)
	b = append(b, ',')
	if c.Content == nil {
		b = appendJSONOptional(b, c.CCache)
	} else {
		b = appendJSONPrincipal(append(b, '['), &c.Content.Principal)
		for _, cred := range c.Content.Credentials {
			b = appendJSONCredential(append(b, ','), cred)
		}
		b = append(b, ']')
	}
	b = appendJSONOptional(append(b, ','), c.ClientKeytab)
	b = strconv.AppendBool(append(b, ','), c.HaveTGT)
	b = strconv.AppendInt(append(b, ','), c.Expire, 10)
	b = strconv.AppendInt(append(b, ','), c.RefreshTime, 10)
	b = append(b, ',')
	if c.Enctypes == nil {
		b = append(b, "null"...)
	} else {
		b = append(b, '[')
		for i, e := range c.Enctypes {
			if i > 0 {
				b = append(b, ',')
			}
			b = strconv.AppendInt(b, int64(e), 10)
		}
		b = append(b, ']')
	}
	b = append(b, ',')
	if c.Password == nil {
		b = append(b, "null"...)
	} else {
		b = appendJSONString(b, c.Password)
	}
	b = append(b, "]]"...)
	binary.BigEndian.PutUint32(b[start-4:], uint32(len(b)-start))
	return b
}

func appendJSONCredential(b []byte, c *krb5.Credential) []byte {
	principal := func(p krb5.Principal) {
		if p.Realm == "" && p.Components == nil {
			b = append(b, "null"...)
		} else {
			b = appendJSONPrincipal(b, &p)
		}
	}
	b = append(b, '[')
	principal(c.Client)
	b = append(b, ',')
	principal(c.Server)
	b = appendJSONTyped(append(b, ','), int32(c.KeyType), c.Key)
	for _, t := range []uint32{c.AuthTime, c.StartTime, c.EndTime, c.RenewTill} {
		b = strconv.AppendInt(append(b, ','), int64(int32(t)), 10)
	}
	b = strconv.AppendBool(append(b, ','), c.IsSKey)
	b = strconv.AppendInt(append(b, ','), int64(int32(c.Flags)), 10)
	if c.Addresses == nil {
		b = append(b, ",null"...)
	} else {
		b = append(b, ",["...)
		for i, a := range c.Addresses {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendJSONTyped(b, a.Type, a.Data)
		}
		b = append(b, ']')
	}
	b = appendBase64(append(b, ','), c.Ticket)
	b = appendBase64(append(b, ','), c.SecondTicket)
	if c.AuthData == nil {
		return append(b, ",null]"...)
	}
	b = append(b, ",["...)
	for i, a := range c.AuthData {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendJSONTyped(b, a.Type, a.Data)
	}
	return append(b, "]]"...)
}

func appendJSONTyped(b []byte, kind int32, data []byte) []byte {
	b = strconv.AppendInt(append(b, '['), int64(kind), 10)
	b = appendBase64(append(b, ','), data)
	return append(b, ']')
}

func appendBase64(b, data []byte) []byte {
	b = append(b, '"')
	b = base64.StdEncoding.AppendEncode(b, data)
	return append(b, '"')
}

func appendJSONPrincipal(b []byte, p *krb5.Principal) []byte {
	if p == nil {
		return append(b, "null"...)
	}
	return appendJSONString(b, p.AppendString(nil))
}

func appendJSONOptional(b []byte, s string) []byte {
	if s == "" {
		return append(b, "null"...)
	}
	return appendJSONString(b, []byte(s))
}

const (
	escapes = `"\/bfnrt`
	escaped = "\"\\/\b\f\n\r\t"
)

// appendJSONString leaves bytes from 0x20 on as they are, whether they are UTF-8 or not.
func appendJSONString(b, s []byte) []byte {
	b = append(b, '"')
	for _, c := range s {
		switch i := strings.IndexByte(escaped, c); {
		case i >= 0 && c != '/':
			b = append(b, '\\', escapes[i])
		case c < 0x20:
			b = fmt.Appendf(b, `\u00%02X`, c)
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}

// ParseGSSCred reads a token of gss_export_cred. Of several mechanisms' credentials in it the first of krb5 is
// read. Nothing returned aliases the token. The error says where the token makes no sense, and nothing of it.
func ParseGSSCred(token []byte) (*GSSCred, error) {
	element := func(what string) ([]byte, error) {
		if len(token) < 4 {
			return nil, fmt.Errorf("exported credential: the length of the %s is cut short", what)
		}
		n := binary.BigEndian.Uint32(token)
		if uint64(n) > uint64(len(token)-4) {
			return nil, fmt.Errorf("exported credential: %s of %d bytes, but %d are left", what, n, len(token)-4)
		}
		b := token[4 : 4+n]
		token = token[4+n:]
		return b, nil
	}
	for len(token) > 0 {
		oid, err := element("mechanism")
		if err != nil {
			return nil, err
		}
		b, err := element("mechanism's token")
		if err != nil {
			return nil, err
		}
		if mech.OID(oid) == mech.KRB5 {
			return parseGSSCred(b)
		}
	}
	return nil, fmt.Errorf("exported credential: none of the mechanism %s in it", mech.KRB5)
}

func parseGSSCred(b []byte) (*GSSCred, error) {
	r := jsonReader{b: b}
	c := new(GSSCred)
	r.expect('[')
	if r.string() != gssCredMagic {
		r.fail(`expected "` + gssCredMagic + `"`)
	}
	r.expect(',')
	r.expect('[')
	c.Usage = int(r.number(0, 2))
	r.expect(',')
	if !r.null() {
		c.Name = new(GSSName)
		r.expect('[')
		c.Name.Principal = r.principal()
		r.expect(',')
		c.Name.Service = r.optional()
		r.expect(',')
		c.Name.Host = r.optional()
		r.expect(']')
	}
	r.expect(',')
	c.Impersonator = r.principal()
	r.expect(',')
	c.DefaultIdentity = r.bool()
	r.expect(',')
	c.IAKERB = r.bool()
	r.expect(',')
	c.Keytab = r.optional()
	r.expect(',')
	c.Rcache = r.optional()
	r.expect(',')
	if r.peek() == '[' {
		c.Content = r.content()
	} else {
		c.CCache = r.optional()
	}
	r.expect(',')
	c.ClientKeytab = r.optional()
	r.expect(',')
	c.HaveTGT = r.bool()
	r.expect(',')
	c.Expire = r.number(-1<<63, 1<<63-1)
	r.expect(',')
	c.RefreshTime = r.number(-1<<63, 1<<63-1)
	r.expect(',')
	if !r.null() {
		c.Enctypes = []etype.ID{}
		r.list(func() { c.Enctypes = append(c.Enctypes, etype.ID(r.number(-1<<31, 1<<31-1))) })
	}
	r.expect(',')
	if !r.null() {
		c.Password = r.text()
	}
	r.expect(']')
	r.expect(']')
	r.end()
	if r.err != nil {
		c.Destroy()
		return nil, fmt.Errorf("exported credential: %w", r.err)
	}
	return c, nil
}

// content reads [principal, credential...].
func (r *jsonReader) content() *Content {
	c := new(Content)
	first := true
	r.list(func() {
		if first {
			first = false
			p := r.principal()
			if p == nil {
				r.fail("expected the cache's principal")
				return
			}
			c.Principal = *p
			return
		}
		c.Credentials = append(c.Credentials, r.credential())
	})
	if first {
		r.fail("expected the cache's principal")
	}
	return c
}

func (r *jsonReader) credential() *krb5.Credential {
	c := new(krb5.Credential)
	r.expect('[')
	if p := r.principal(); p != nil {
		c.Client = *p
	}
	r.expect(',')
	if p := r.principal(); p != nil {
		c.Server = *p
	}
	r.expect(',')
	kind, key := r.typed()
	c.KeyType, c.Key = etype.ID(kind), key
	for _, t := range []*uint32{&c.AuthTime, &c.StartTime, &c.EndTime, &c.RenewTill} {
		r.expect(',')
		*t = uint32(r.number(-1<<31, 1<<32-1))
	}
	r.expect(',')
	c.IsSKey = r.bool()
	r.expect(',')
	c.Flags = uint32(r.number(-1<<31, 1<<32-1))
	r.expect(',')
	if !r.null() {
		c.Addresses = []krb5.Address{}
		r.list(func() {
			kind, data := r.typed()
			c.Addresses = append(c.Addresses, krb5.Address{Type: kind, Data: data})
		})
	}
	r.expect(',')
	c.Ticket = r.base64()
	r.expect(',')
	c.SecondTicket = r.base64()
	r.expect(',')
	if !r.null() {
		c.AuthData = []krb5.AuthData{}
		r.list(func() {
			kind, data := r.typed()
			c.AuthData = append(c.AuthData, krb5.AuthData{Type: kind, Data: data})
		})
	}
	r.expect(']')
	return c
}
