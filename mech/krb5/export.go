package krb5

import (
	"encoding/binary"
	"slices"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/etype"
)

// An exported context, as MIT krb5 writes and reads it: the mechanism's OID behind a 32-bit length,
// then one flat sequence of big-endian words and of objects, each between two copies of its magic
// number. An optional object is known by its magic alone; the reader that misses one goes on.
//
//	magic, initiator, established, have acceptor subkey, seed_init, flags, seed[16], signalg,
//	cksum_size, sealalg, authtime, starttime, endtime, renew_till, ticket flags,
//	send seq (64 bits), receive seq (64 bits),
//	OID, here, there, subkey, [enc key, seq key], sequence state, krb5_context, auth_context,
//	proto, cksumtype, [acceptor subkey], its cksumtype, cred_rcache,
//	count, authorization data ..., [authdata context], magic
//
// The sequence state alone is a C structure in host byte order. Only the krb5_context differs
// between releases; what is in it does not matter to an established context.
const (
	magicGSSContext  = 0x025EA108
	magicOID         = 0x970EA737
	magicSeqState    = 0x970EA738
	magicPrincipal   = 0x970EA701
	magicKeyblock    = 0x970EA703
	magicChecksum    = 0x970EA704
	magicAuthData    = 0x970EA70A
	magicAuthent     = 0x970EA70E
	magicAddress     = 0x970EA722
	magicContext     = 0x970EA724
	magicOSContext   = 0x970EA725
	magicAuthContext = 0x970EA729
	magicADContext   = 0x970EA73C
	magicProfile     = 0xAACA6012

	tokenRemoteAddr = 950916 // the first of seven tags in an auth_context
	tokenKey        = 950920 // the ticket's session key
)

// Fields of the part of fixed size, from the token's first magic number.
const (
	offSendSeq = 72
	fixedSize  = 88
)

const seqStateSize = 40

// RFC 1964 section 1.2.1 and RFC 4757 section 7: algorithm numbers of a context with RC4 keys.
const (
	signAlgHMACMD5 = 0x11
	sealAlgRC4     = 0x10
	rc4CksumSize   = 8
)

// contextWords is the krb5_context after its magic and the empty default realm, the one part of the
// token that differs between MIT releases: 1.18 and all later ones read this to its end. On 1.19
// and later an imported acceptor context counts 2 seconds of clock skew into its lifetime instead
// of 300. It names no configuration file: releases up to 1.22 fail to import a context that names
// one they cannot read.
//
// 1.19 reads: no TGS enctypes, clock skew 2, three options, ccache format, profile of no files.
// 1.18 reads: no ticket enctypes, two TGS enctypes, clock skew 300, four options.
var contextWords = words(0, 2, 0x10, 0, 300, 0x10, magicProfile, 0, magicProfile, magicContext)

func words(w ...uint32) (b []byte) {
	for _, v := range w {
		b = be32(b, v)
	}
	return b
}

func be32(b []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(b, v) }
func be64(b []byte, v uint64) []byte { return binary.BigEndian.AppendUint64(b, v) }

func beBool(b []byte, v bool) []byte {
	if v {
		return be32(b, 1)
	}
	return be32(b, 0)
}

// appendCounted appends a length and the bytes.
func appendCounted[T string | []byte](b []byte, v T) []byte {
	return append(be32(b, uint32(len(v))), v...)
}

// appendObject appends an object of one counted string.
func appendObject[T string | []byte](b []byte, magic uint32, v T) []byte {
	return be32(appendCounted(be32(b, magic), v), magic)
}

// appendTyped appends an object of a type number and a counted string.
func appendTyped[T string | []byte](b []byte, magic uint32, kind int32, v T) []byte {
	return be32(appendCounted(be32(be32(b, magic), uint32(kind)), v), magic)
}

func appendKeyblock(b []byte, k *etype.Key) []byte {
	return appendTyped(b, magicKeyblock, int32(k.Enctype()), []byte(k.Secret()))
}

// appendState appends the C structure of the sequence state.
func (w *Window) appendState(b []byte) []byte {
	host := binary.NativeEndian
	flag := func(b []byte, v bool) []byte {
		if v {
			return host.AppendUint32(b, 1)
		}
		return host.AppendUint32(b, 0)
	}
	b = flag(flag(b, w.Replay), w.Sequence)
	b = host.AppendUint64(b, w.Mask)
	b = host.AppendUint64(b, w.Base)
	b = host.AppendUint64(b, w.Next)
	return host.AppendUint64(b, w.Seen)
}

// AppendExport appends the token gss_import_sec_context of MIT krb5 makes a context of. It holds
// keys.
//
// A context that was imported goes out as it came in, but for the numbers of messages sent and
// received since.
func (c *Context) AppendExport(dst []byte) []byte {
	if c.imported != nil {
		return (*c.imported).append(dst, c)
	}
	if c.Subkey == nil {
		return dst
	}
	dst = slices.Grow(dst, c.exportSize())
	// The token is for the mechanism as C callers know it; what the initiator called it is inside.
	if c.mech() == mech.IAKERB {
		dst = appendCounted(dst, string(mech.IAKERB))
	} else {
		dst = appendCounted(dst, string(mech.KRB5))
	}
	rc4 := c.rc4Key()

	dst = be32(dst, magicGSSContext)
	dst = beBool(dst, c.Initiator)
	dst = be32(dst, 1) // established
	dst = beBool(dst, c.AcceptorSubkey != nil)
	dst = be32(dst, 0) // seed_init
	dst = be32(dst, c.Flags)
	dst = append(dst, make([]byte, 16)...) // seed
	if rc4 != nil {
		dst = be32(be32(be32(dst, signAlgHMACMD5), rc4CksumSize), sealAlgRC4)
	} else {
		dst = be32(be32(be32(dst, 0xFFFFFFFF), 0), 0xFFFFFFFF)
	}
	dst = be32(be32(be32(be32(dst, c.AuthTime), c.StartTime), c.EndTime), c.RenewTill)
	dst = be32(dst, c.TicketFlags)
	dst = be64(be64(dst, c.SendSeq), c.RecvSeq)

	dst = appendObject(dst, magicOID, string(c.mech()))
	dst = appendObject(dst, magicPrincipal, c.Here)
	dst = appendObject(dst, magicPrincipal, c.There)
	dst = appendKeyblock(dst, c.Subkey)
	if rc4 != nil {
		dst = appendKeyblock(appendKeyblock(dst, rc4), rc4)
	}
	dst = be32(c.Window.appendState(be32(dst, magicSeqState)), magicSeqState)

	dst = be32(be32(dst, magicContext), 0) // default realm: none
	dst = append(dst, contextWords...)

	// Importers use nothing of the auth_context but the session key, which some crash without.
	dst = be32(be32(be32(be32(be32(be32(be32(dst, magicAuthContext), 0), 0), 0), 0), 0), 0)
	if c.SessionKey != nil {
		dst = appendKeyblock(be32(dst, tokenKey), c.SessionKey)
	}
	dst = be32(dst, magicAuthContext)

	dst = beBool(dst, c.cfx())
	dst = be32(dst, uint32(c.Subkey.Enctype().ChecksumType()))
	if c.AcceptorSubkey != nil {
		dst = appendKeyblock(dst, c.AcceptorSubkey)
		dst = be32(dst, uint32(c.AcceptorSubkey.Enctype().ChecksumType()))
	} else {
		dst = be32(dst, 0)
	}
	dst = be32(dst, 0) // cred_rcache
	dst = be32(dst, uint32(len(c.AuthData)))
	for _, a := range c.AuthData {
		dst = appendTyped(dst, magicAuthData, a.Type, a.Data)
	}
	if !c.Initiator {
		dst = c.appendADContext(dst)
	}
	return be32(dst, magicGSSContext)
}

// Modules of the authdata context, which carries the attributes of the initiator's name. An
// importer that does not know a module fails, so there are no others.
const (
	modulePAC        = "mspac"
	moduleIndicators = "authentication-indicators"
)

// appendADContext appends the authdata context as MIT's acceptor fills it.
func (c *Context) appendADContext(dst []byte) []byte {
	return be32(c.AppendNameAttributes(be32(dst, magicADContext)), magicADContext)
}

// AppendNameAttributes appends the attributes of the initiator's name in the form that its
// composite exported name carries: a big-endian count of modules, then each module's name and
// content with big-endian lengths.
func (c *Context) AppendNameAttributes(dst []byte) []byte {
	dst = be32(dst, 2)
	dst = appendCounted(dst, modulePAC)
	dst = beBool(appendCounted(dst, c.PAC), c.PACVerified)
	dst = appendCounted(dst, moduleIndicators)
	dst = be32(dst, uint32(len(c.Indicators)))
	for _, s := range c.Indicators {
		dst = appendCounted(dst, s)
	}
	return dst
}

// exportSize returns a little more than the length of the token, so that dst grows once.
func (c *Context) exportSize() int {
	n := 700 + len(c.Here) + len(c.There) + len(c.PAC)
	for _, a := range c.AuthData {
		n += 20 + len(a.Data)
	}
	for _, s := range c.Indicators {
		n += 4 + len(s)
	}
	return n
}
