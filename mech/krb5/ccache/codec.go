package ccache

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
)

// The encoding of principals and credentials is that of FILE caches, versions 1 to 4 (MIT krb5's
// doc/formats/ccache_file_format.rst). KEYRING and KCM caches use version 4. Integers are
// big-endian, before version 3 in the host's order.
const version = 4

func order(version int) interface {
	binary.ByteOrder
	binary.AppendByteOrder
} {
	if version < 3 {
		return binary.NativeEndian
	}
	return binary.BigEndian
}

// reader reads the encoding, from memory (b) or, with a src, through a window on it; the first
// thing that does not fit is the last, and in err.
type reader struct {
	etype.Redacted
	b       []byte
	pos     int // in the whole input
	version int
	err     error
	// short says that err is for the end of the input, as when its writer was stopped.
	short bool
	// before are the names of the credential read last: a cache has the same ones over and over.
	before struct{ client, server krb5.Principal }

	src   io.ReaderAt
	size  int             // of src
	begin int             // of b in src
	entry int             // where the entry that is read began
	grow  func(int) error // asked before n bytes more of memory are taken for the window
}

const (
	window = 64 << 10
	// maxEntry is the most bytes of a file that may be one entry; what is in memory of one that is
	// being read is no more than twice that.
	maxEntry = 512 << 10
)

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("byte %d: %w", r.pos, fmt.Errorf(format, args...))
	}
}

// total is the length of the input.
func (r *reader) total() int {
	if r.src != nil {
		return r.size
	}
	return len(r.b)
}

func (r *reader) left() int { return r.total() - r.pos }

// take returns the next n bytes, nil if there are fewer. With a src they are good until the next
// take; else they alias the input.
func (r *reader) take(n int) []byte {
	if r.err != nil {
		return nil
	}
	if n > r.left() {
		r.short = n <= r.total() // else the length is nonsense
		r.fail("%d bytes expected, %d left", n, r.left())
		return nil
	}
	if r.src != nil && !r.fill(n) {
		return nil
	}
	at := r.pos - r.begin
	r.pos += n
	return r.b[at : at+n : at+n]
}

// fill has the window show the next n bytes, which are there.
func (r *reader) fill(n int) bool {
	if r.pos-r.entry+n > maxEntry {
		r.fail("an entry of more than %d bytes", maxEntry)
		return false
	}
	at := r.pos - r.begin
	if at+n <= len(r.b) {
		return true
	}
	if n > cap(r.b) {
		if err := r.grow(n - cap(r.b)); err != nil {
			r.fail("%w", err)
			return false
		}
		wider := append(make([]byte, 0, n), r.b[at:]...)
		clear(r.b)
		r.b = wider
	} else {
		kept := copy(r.b, r.b[at:])
		r.b = r.b[:kept]
	}
	r.begin = r.pos
	have := len(r.b)
	r.b = r.b[:min(cap(r.b), r.left())]
	if got, err := r.src.ReadAt(r.b[have:], int64(r.pos+have)); got < len(r.b)-have {
		r.b = r.b[:have+got]
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF // nobody cuts it who respects locks
		}
		r.fail("%w", err)
		return false
	}
	return true
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

// data returns length-prefixed bytes, as take.
func (r *reader) data() []byte {
	n := r.u32()
	if uint64(n) > uint64(r.total()) {
		r.fail("length %d is more than there is at all", n)
		return nil
	}
	return r.take(int(n))
}

// count returns a number of elements of at least size bytes.
func (r *reader) count(size int) int {
	n := r.u32()
	if uint64(n)*uint64(size) > uint64(r.left()) {
		r.short = uint64(n)*uint64(size) <= uint64(r.total())
		r.fail("%d elements of %d bytes or more expected, %d bytes left", n, size, r.left())
		return 0
	}
	return int(n)
}

// few returns the number of a ticket's addresses or authorization data, of which a KDC issues a
// handful.
func (r *reader) few() int {
	const most = 256
	n := r.count(6)
	if n > most {
		r.fail("%d elements, expected at most %d", n, most)
		return 0
	}
	return n
}

func (r *reader) principal() krb5.Principal { return r.principalLike(krb5.Principal{}) }

// principalLike reads a principal. What it has in common with one read before is not copied again.
func (r *reader) principalLike(before krb5.Principal) krb5.Principal {
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
	p.Realm = text(r.data(), before.Realm)
	if n > 0 {
		p.Components = make([]string, 0, n)
	}
	for i := range n {
		if r.err != nil {
			return p
		}
		old := ""
		if i < len(before.Components) {
			old = before.Components[i]
		}
		p.Components = append(p.Components, text(r.data(), old))
	}
	return p
}

// text is b as a string, which is old if that is the same.
func text(b []byte, old string) string {
	if string(b) == old {
		return old
	}
	return string(b)
}

// credential reads one. It aliases nothing. old is nil, or one that was destroyed, whose memory it
// may take.
func (r *reader) credential(old *krb5.Credential) *krb5.Credential {
	c := old
	if c == nil {
		c = new(krb5.Credential)
	}
	oldKey, ticket, second := c.Key, c.Ticket, c.SecondTicket
	*c = krb5.Credential{}
	c.Client, c.Server = r.principalLike(r.before.client), r.principalLike(r.before.server)
	r.before.client, r.before.server = c.Client, c.Server
	c.KeyType = etype.ID(int16(r.u16()))
	if r.version == 3 {
		r.u16()
	}
	key := copyInto(oldKey, r.data())
	c.AuthTime = r.u32()
	c.StartTime = r.u32()
	c.EndTime = r.u32()
	c.RenewTill = r.u32()
	c.IsSKey = r.u8() != 0
	c.Flags = r.u32()
	for range r.few() {
		kind := int32(r.u16())
		c.Addresses = append(c.Addresses, krb5.Address{Type: kind, Data: bytes.Clone(r.data())})
		if r.err != nil {
			break
		}
	}
	for range r.few() {
		kind := int32(int16(r.u16()))
		c.AuthData = append(c.AuthData, krb5.AuthData{Type: kind, Data: bytes.Clone(r.data())})
		if r.err != nil {
			break
		}
	}
	c.Ticket = copyInto(ticket, r.data())
	c.SecondTicket = copyInto(second, r.data())
	if r.err != nil {
		clear(key)
		return c
	}
	c.Key = key
	return c
}

// copyInto copies b, into the memory of old if that is enough, and not more than twice as much: what
// a credential weighs is about what it takes. Of no bytes it makes nil, as there is no difference in
// the encoding.
func copyInto(old, b []byte) []byte {
	if len(b) == 0 || cap(old) < len(b) || cap(old) > 2*len(b) {
		old = nil
	}
	return append(old[:0], b...)
}

// readPrincipal and readCredential read one in version 4; what follows it does not matter.
func readPrincipal(b []byte) (krb5.Principal, error) {
	r := reader{b: b, version: version}
	p := r.principal()
	return p, r.err
}

func readCredential(b []byte) (*krb5.Credential, error) {
	r := reader{b: b, version: version}
	c := r.credential(nil)
	return c, r.err
}

func appendData(b []byte, version int, data []byte) []byte {
	b = appendU32(b, version, uint32(len(data)))
	return append(b, data...)
}

func appendU16(b []byte, version int, n uint16) []byte {
	return order(version).AppendUint16(b, n)
}

func appendU32(b []byte, version int, n uint32) []byte {
	return order(version).AppendUint32(b, n)
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
