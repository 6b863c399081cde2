package ccache

import (
	"encoding/binary"
	"fmt"

	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
)

// The encoding of principals and credentials is that of FILE caches, versions 1 to 4 (MIT krb5's
// doc/formats/ccache_file_format.rst). KEYRING and KCM caches use version 4. Integers are big-endian,
// before version 3 in the host's order.
const version = 4

func order(version int) binary.ByteOrder {
	if version < 3 {
		return binary.NativeEndian
	}
	return binary.BigEndian
}

// reader reads the encoding; the first thing that does not fit is the last, and in err.
type reader struct {
	etype.Redacted
	b       []byte
	pos     int
	version int
	err     error
	// short says that err is for the end of the input, as when its writer was stopped.
	short bool
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("byte %d: %s", r.pos, fmt.Sprintf(format, args...))
	}
}

func (r *reader) left() int { return len(r.b) - r.pos }

// take returns the next n bytes, nil if there are fewer. They alias the input.
func (r *reader) take(n int) []byte {
	if r.err != nil {
		return nil
	}
	if n > r.left() {
		r.short = n <= len(r.b) // else the length is nonsense
		r.fail("%d bytes expected, %d left", n, r.left())
		return nil
	}
	b := r.b[r.pos : r.pos+n : r.pos+n]
	r.pos += n
	return b
}

func (r *reader) u8() uint8 {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if b := r.take(2); b != nil {
		return order(r.version).Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.take(4); b != nil {
		return order(r.version).Uint32(b)
	}
	return 0
}

// data returns length-prefixed bytes, which alias the input.
func (r *reader) data() []byte {
	n := r.u32()
	if uint64(n) > uint64(len(r.b)) {
		r.fail("length %d is more than there is at all", n)
		return nil
	}
	return r.take(int(n))
}

// count returns a number of elements of at least size bytes.
func (r *reader) count(size int) int {
	n := r.u32()
	if uint64(n)*uint64(size) > uint64(r.left()) {
		r.short = uint64(n)*uint64(size) <= uint64(len(r.b))
		r.fail("%d elements of %d bytes or more expected, %d bytes left", n, size, r.left())
		return 0
	}
	return int(n)
}

// few returns the number of a ticket's addresses or authorization data, of which a KDC issues a handful.
func (r *reader) few() int {
	const most = 256
	n := r.count(6)
	if n > most {
		r.fail("%d elements, expected at most %d", n, most)
		return 0
	}
	return n
}

func (r *reader) principal() krb5.Principal {
	var p krb5.Principal
	if r.version > 1 {
		p.Type = int32(r.u32())
	}
	n := r.count(4)
	if r.version == 1 { // the realm counts
		if n == 0 {
			r.fail("principal without realm")
		}
		n--
	}
	if n > krb5.MaxComponents {
		r.fail("a name of %d components, expected at most %d", n, krb5.MaxComponents)
		return p
	}
	p.Realm = string(r.data())
	for range n {
		if r.err != nil {
			return p
		}
		p.Components = append(p.Components, string(r.data()))
	}
	return p
}

// credential reads one. It aliases nothing.
func (r *reader) credential() *krb5.Credential {
	c := new(krb5.Credential)
	c.Client = r.principal()
	c.Server = r.principal()
	c.KeyType = etype.ID(int16(r.u16()))
	if r.version == 3 {
		r.u16()
	}
	key := r.data()
	c.AuthTime = r.u32()
	c.StartTime = r.u32()
	c.EndTime = r.u32()
	c.RenewTill = r.u32()
	c.IsSKey = r.u8() != 0
	c.Flags = r.u32()
	for range r.few() {
		kind := int32(r.u16())
		c.Addresses = append(c.Addresses, krb5.Address{Type: kind, Data: clone(r.data())})
		if r.err != nil {
			break
		}
	}
	for range r.few() {
		kind := int32(int16(r.u16()))
		c.AuthData = append(c.AuthData, krb5.AuthData{Type: kind, Data: clone(r.data())})
		if r.err != nil {
			break
		}
	}
	c.Ticket = clone(r.data())
	c.SecondTicket = clone(r.data())
	if r.err == nil {
		c.Key = clone(key)
	}
	return c
}

// clone copies b; of no bytes it makes nil, as there is no difference in the encoding.
func clone(b []byte) []byte { return append([]byte(nil), b...) }

// readPrincipal and readCredential read one in version 4; what follows it does not matter.
func readPrincipal(b []byte) (krb5.Principal, error) {
	r := reader{b: b, version: version}
	p := r.principal()
	return p, r.err
}

func readCredential(b []byte) (*krb5.Credential, error) {
	r := reader{b: b, version: version}
	c := r.credential()
	return c, r.err
}

func appendData(b []byte, version int, data []byte) []byte {
	b = appendU32(b, version, uint32(len(data)))
	return append(b, data...)
}

func appendU16(b []byte, version int, n uint16) []byte {
	var buf [2]byte
	order(version).PutUint16(buf[:], n)
	return append(b, buf[:]...)
}

func appendU32(b []byte, version int, n uint32) []byte {
	var buf [4]byte
	order(version).PutUint32(buf[:], n)
	return append(b, buf[:]...)
}

func appendPrincipal(b []byte, version int, p krb5.Principal) []byte {
	n := uint32(len(p.Components))
	if version == 1 {
		n++
	} else {
		b = appendU32(b, version, uint32(p.Type))
	}
	b = appendU32(b, version, n)
	b = appendData(b, version, []byte(p.Realm))
	for _, c := range p.Components {
		b = appendData(b, version, []byte(c))
	}
	return b
}

func appendKey(b []byte, version int, c *krb5.Credential) []byte {
	b = appendU16(b, version, uint16(c.KeyType))
	if version == 3 {
		b = appendU16(b, version, uint16(c.KeyType))
	}
	return appendData(b, version, c.Key)
}

func appendTimes(b []byte, version int, c *krb5.Credential) []byte {
	for _, t := range []uint32{c.AuthTime, c.StartTime, c.EndTime, c.RenewTill} {
		b = appendU32(b, version, t)
	}
	skey := byte(0)
	if c.IsSKey {
		skey = 1
	}
	b = append(b, skey)
	return appendU32(b, version, c.Flags)
}

func appendCredential(b []byte, version int, c *krb5.Credential) []byte {
	b = appendPrincipal(b, version, c.Client)
	b = appendPrincipal(b, version, c.Server)
	b = appendKey(b, version, c)
	b = appendTimes(b, version, c)
	b = appendU32(b, version, uint32(len(c.Addresses)))
	for _, a := range c.Addresses {
		b = appendU16(b, version, uint16(a.Type))
		b = appendData(b, version, a.Data)
	}
	b = appendU32(b, version, uint32(len(c.AuthData)))
	for _, a := range c.AuthData {
		b = appendU16(b, version, uint16(a.Type))
		b = appendData(b, version, a.Data)
	}
	b = appendData(b, version, c.Ticket)
	return appendData(b, version, c.SecondTicket)
}

// size is the length of a credential in version 4.
func size(c *krb5.Credential) int {
	principal := func(p krb5.Principal) int {
		n := 12 + len(p.Realm)
		for _, s := range p.Components {
			n += 4 + len(s)
		}
		return n
	}
	n := principal(c.Client) + principal(c.Server) + 6 + len(c.Key) + 16 + 5 + 8 + 8 + len(c.Ticket) + len(c.SecondTicket)
	for _, a := range c.Addresses {
		n += 6 + len(a.Data)
	}
	for _, a := range c.AuthData {
		n += 6 + len(a.Data)
	}
	return n
}
