package krb5

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"syscall"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/reason"
)

// importedToken is the token a context came from, mechanism OID included, and where in it the
// numbers are that change with every message.
type importedToken struct {
	etype.Redacted
	token    etype.Secret
	sendSeq  int
	seqState int
}

func (t *importedToken) append(dst []byte, c *Context) []byte {
	at := len(dst)
	dst = append(dst, t.token...)
	binary.BigEndian.PutUint64(dst[at+t.sendSeq:], c.SendSeq)
	// Of the state only these change; the rest stays as it was written, whatever a true is.
	state := dst[at+t.seqState:]
	binary.NativeEndian.PutUint64(state[24:], c.Window.Next)
	binary.NativeEndian.PutUint64(state[32:], c.Window.Seen)
	return dst
}

// ImportContext makes a context of a token of gss_export_sec_context, by MIT krb5 1.18 or later or
// by [Context.AppendExport], for Kerberos, IAKERB or Kerberos within SPNEGO. token may come from
// anyone; it is copied. The error is a *[mech.Error] that names the field and its place.
//
// Contexts with DES3 or Camellia keys, half-established ones, and tokens whose fields contradict
// each other are refused.
func ImportContext(token []byte) (*Context, error) {
	body, err := innerToken(token)
	if err != nil {
		return nil, err
	}
	// One piece of memory for both.
	all := new(struct {
		kept importedToken
		p    *importedToken
	})
	kept := &all.kept
	all.p, kept.token = kept, bytes.Clone(token)
	r := &tokenReader{b: kept.token, at: len(token) - len(body)}
	c := r.context(kept)
	if r.problem != "" {
		kept.token.Zero()
		return nil, mech.Errorf(mech.Failure, uint32(syscall.EINVAL), reason.BadContext, "exported context: %s at byte %d of %d", r.problem, r.at, len(token))
	}
	kept.token = kept.token[:r.at:r.at]
	c.imported = &all.p
	return c, nil
}

// innerToken takes the mechanism OIDs off a token.
func innerToken(token []byte) ([]byte, error) {
	body := token
	for depth := 0; ; depth++ {
		if len(body) < 4 {
			return nil, badWrapper("exported context: no mechanism OID")
		}
		n := binary.BigEndian.Uint32(body)
		if n == 0 || int64(n) > int64(len(body)-4) {
			return nil, badWrapper(fmt.Sprintf("exported context: mechanism OID of %d bytes in %d", n, len(body)-4))
		}
		oid := mech.OID(body[4 : 4+n])
		body = body[4+n:]
		switch {
		case oid == mech.KRB5 || oid == mech.KRB5Old || oid == mech.KRB5Wrong || oid == mech.IAKERB:
			return body, nil
		case oid == mech.SPNEGO && depth == 0:
		default:
			return nil, mech.Errorf(mech.BadMech, 0, reason.BadContext, "exported context of mechanism %v", oid).Of("")
		}
	}
}

func badWrapper(text string) error {
	return mech.Errorf(mech.CallBadStructure|mech.DefectiveToken, 0, reason.BadContext, "%s", text).Of("")
}

// tokenReader reads a mechanism token. After the first problem every read returns zero values and
// at stays where it was found.
type tokenReader struct {
	etype.Redacted
	b       []byte
	at      int
	problem string
}

func (r *tokenReader) fail(format string, args ...any) {
	if r.problem == "" {
		r.problem = fmt.Sprintf(format, args...)
	}
}

// next returns n bytes, which alias the token; nil if there are fewer.
func (r *tokenReader) next(n int, what string) []byte {
	if r.problem != "" {
		return nil
	}
	if n > len(r.b)-r.at {
		r.fail("%s: %d bytes wanted, %d left", what, n, len(r.b)-r.at)
		return nil
	}
	r.at += n
	return r.b[r.at-n : r.at : r.at]
}

func (r *tokenReader) u32(what string) uint32 {
	if b := r.next(4, what); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *tokenReader) u64(what string) uint64 {
	if b := r.next(8, what); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// flag reads a C boolean: anything but zero is true.
func (r *tokenReader) flag(what string) bool { return r.u32(what) != 0 }

// count reads the number of elements that take at least size bytes each, no more than there is room
// for.
func (r *tokenReader) count(size int, what string) int {
	n := r.u32(what)
	if r.problem == "" && int64(n)*int64(size) > int64(len(r.b)-r.at) {
		r.fail("%s: count %d, %d bytes left", what, n, len(r.b)-r.at)
		return 0
	}
	return int(n)
}

func (r *tokenReader) counted(what string) []byte { return r.next(r.count(1, what), what) }

// peek reports whether the next word is v.
func (r *tokenReader) peek(v uint32) bool {
	return r.problem == "" && len(r.b)-r.at >= 4 && binary.BigEndian.Uint32(r.b[r.at:]) == v
}

// magic reads the word v.
func (r *tokenReader) magic(v uint32, what string) {
	if !r.peek(v) {
		r.fail("%s: magic number %08X wanted", what, v)
		return
	}
	r.at += 4
}

// object reads an object of one counted string.
func (r *tokenReader) object(magic uint32, what string) []byte {
	r.magic(magic, what)
	v := r.counted(what)
	r.magic(magic, what)
	return v
}

// typed reads an object of a type number and a counted string.
func (r *tokenReader) typed(magic uint32, what string) (int32, []byte) {
	r.magic(magic, what)
	kind := int32(r.u32(what))
	v := r.counted(what)
	r.magic(magic, what)
	return kind, v
}

func (r *tokenReader) key(what string) *etype.Key {
	kind, raw := r.typed(magicKeyblock, what)
	if r.problem != "" {
		return nil
	}
	k, err := etype.NewKey(etype.ID(kind), raw)
	if err != nil {
		r.fail("%s: %v", what, err)
	}
	return k
}

// context reads the whole token. It notes in kept what AppendExport has to write anew.
func (r *tokenReader) context(kept *importedToken) *Context {
	c := new(Context)
	start := r.at
	r.magic(magicGSSContext, "context")
	c.Initiator = r.flag("initiator")
	if !r.flag("established") {
		r.fail("established: the context is not")
	}
	haveAcceptorSubkey := r.flag("have_acceptor_subkey")
	r.next(4, "seed_init")
	c.Flags = r.u32("flags")
	r.next(16, "seed")
	r.next(12, "algorithms")
	c.AuthTime, c.StartTime, c.EndTime, c.RenewTill = r.u32("times"), r.u32("times"), r.u32("times"), r.u32("times")
	c.TicketFlags = r.u32("ticket flags")
	c.SendSeq, c.RecvSeq = r.u64("send sequence"), r.u64("receive sequence")
	kept.sendSeq = start + offSendSeq

	c.Mech = mech.OID(r.object(magicOID, "mechanism"))
	if c.Mech == "" {
		r.fail("mechanism: empty")
	}
	c.Here = string(r.object(magicPrincipal, "local name"))
	c.There = string(r.object(magicPrincipal, "peer name"))
	c.Subkey = r.key("subkey")
	var rc4 []*etype.Key
	for r.peek(magicKeyblock) && len(rc4) < 2 {
		rc4 = append(rc4, r.key("RFC 1964 key"))
	}
	r.magic(magicSeqState, "sequence state")
	kept.seqState = r.at
	c.Window = r.window()
	r.magic(magicSeqState, "sequence state")
	r.k5context()
	c.SessionKey = r.authContext()

	cfx := r.flag("protocol")
	r.next(4, "checksum type")
	if haveAcceptorSubkey {
		c.AcceptorSubkey = r.key("acceptor subkey")
	} else if r.peek(magicKeyblock) {
		r.fail("acceptor subkey: there should be none")
	}
	r.next(4, "acceptor checksum type")
	r.next(4, "cred_rcache")
	for n := r.count(16, "authorization data"); n > 0 && r.problem == ""; n-- {
		kind, data := r.typed(magicAuthData, "authorization data")
		c.AuthData = append(c.AuthData, AuthData{Type: kind, Data: data})
	}
	if r.peek(magicADContext) {
		r.adContext(c)
	}
	r.magic(magicGSSContext, "end of context")
	if r.problem != "" {
		return nil
	}

	if c.cfx() != cfx {
		r.fail("protocol: does not go with %v", c.key().Enctype())
	}
	own := c.rc4Key()
	if (own != nil) != (len(rc4) == 2) {
		r.fail("RFC 1964 keys: %d of them", len(rc4))
	}
	for _, k := range rc4 {
		if own != nil && (k.Enctype() != own.Enctype() || !bytes.Equal(k.Secret(), own.Secret())) {
			r.fail("RFC 1964 keys: not the context's own")
		}
	}
	return c
}

func (r *tokenReader) window() Window {
	b := r.next(seqStateSize, "sequence state")
	if b == nil {
		return Window{}
	}
	host := binary.NativeEndian
	return Window{
		Replay:   host.Uint32(b) != 0,
		Sequence: host.Uint32(b[4:]) != 0,
		Mask:     host.Uint64(b[8:]),
		Base:     host.Uint64(b[16:]),
		Next:     host.Uint64(b[24:]),
		Seen:     host.Uint64(b[32:]),
	}
}

// k5context skips the krb5_context. Nothing says which release wrote it: 1.18 has one list of
// enctypes more than 1.19 and later.
func (r *tokenReader) k5context() {
	r.magic(magicContext, "krb5_context")
	r.counted("default realm")
	if r.problem != "" {
		return
	}
	later := *r
	if later.k5contextLists(1); later.problem == "" {
		*r = later
		return
	}
	r.k5contextLists(2)
}

func (r *tokenReader) k5contextLists(lists int) {
	for range lists {
		r.next(4*r.count(4, "enctypes"), "enctypes")
	}
	r.next(4*5, "krb5_context options")
	if r.peek(magicOSContext) {
		r.next(4*4, "os_context")
		r.magic(magicOSContext, "os_context")
	}
	if r.peek(magicProfile) {
		r.magic(magicProfile, "profile")
		for n := r.count(4, "profile"); n > 0 && r.problem == ""; n-- {
			r.counted("profile")
		}
		r.magic(magicProfile, "profile")
	}
	r.magic(magicContext, "krb5_context")
	if !r.peek(magicAuthContext) {
		r.fail("auth_context: magic number %08X wanted", uint32(magicAuthContext))
	}
}

// authContext skips the auth_context but for the session key, which may be missing.
func (r *tokenReader) authContext() (session *etype.Key) {
	r.magic(magicAuthContext, "auth_context")
	r.next(4*5, "auth_context")
	r.counted("cipher state")
	for tag := uint32(tokenRemoteAddr); tag < tokenRemoteAddr+7; tag++ {
		if !r.peek(tag) {
			continue
		}
		r.at += 4
		switch {
		case tag == tokenKey:
			session = r.key("session key")
		case tag < tokenKey:
			r.typed(magicAddress, "address")
		default:
			r.typed(magicKeyblock, "auth_context subkey")
		}
	}
	if r.peek(magicAuthent) {
		r.authenticator()
	}
	r.magic(magicAuthContext, "auth_context")
	return session
}

func (r *tokenReader) authenticator() {
	const what = "authenticator"
	r.magic(magicAuthent, what)
	r.next(4*3, what)
	if r.peek(magicPrincipal) {
		r.object(magicPrincipal, what)
	}
	if r.peek(magicChecksum) {
		r.typed(magicChecksum, what)
	}
	if r.peek(magicKeyblock) {
		r.typed(magicKeyblock, what)
	}
	for n := r.count(16, what); n > 0 && r.problem == ""; n-- {
		r.typed(magicAuthData, what)
	}
	r.magic(magicAuthent, what)
}

// adContext reads the attributes of the initiator's name.
func (r *tokenReader) adContext(c *Context) {
	const what = "authdata context"
	r.magic(magicADContext, what)
	for n := r.count(4, what); n > 0 && r.problem == ""; n-- {
		switch name := string(r.counted(what)); name {
		case modulePAC:
			if pac := r.counted(modulePAC); len(pac) > 0 {
				c.PAC = pac
			}
			c.PACVerified = r.flag(modulePAC)
		case moduleIndicators:
			for k := r.count(4, moduleIndicators); k > 0 && r.problem == ""; k-- {
				c.Indicators = append(c.Indicators, string(r.counted(moduleIndicators)))
			}
		default:
			r.fail("%s: unknown module %.32q", what, name)
		}
	}
	r.magic(magicADContext, what)
}
