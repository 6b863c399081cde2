package krb5

import (
	"encoding/binary"
	"math"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// Flags of an exported context that the Linux kernel imports.
const (
	lucidInitiator      = 1
	lucidCFX            = 2
	lucidAcceptorSubkey = 4
)

// AppendLucid appends the context in the form that the Linux kernel imports ("linux_lucid_v1",
// gss_krb5_import_sec_context), all in host byte order and without padding:
//
//	u32 flags (1 initiator, 2 RFC 4121, 4 acceptor subkey), u32 end of the ticket (Unix seconds),
//	u64 next number to send, u32 enctype, the key
//
// There is one key for both directions: the acceptor's subkey, or without one the initiator's. The
// error is a *mech.Error: the kernel takes no context whose key is not one of RFC 3962, RFC 8009 or
// RFC 6803, nor one whose number does not fit into 31 bits. Which of these types a kernel knows is
// another matter: see [Acceptor.MessageEnctypes].
func (c *Context) AppendLucid(dst []byte) ([]byte, error) {
	key := c.key()
	if key == nil {
		return dst, mech.Errorf(mech.NoContext, 0, reason.BadContext, ": the context is not established")
	}
	if !key.Enctype().CFX() {
		return dst, mech.Errorf(mech.Unavailable, 0, reason.ContextEnctype, ": the kernel has no use for a context with a key of %v", key.Enctype())
	}
	if c.SendSeq > math.MaxInt32 {
		return dst, mech.Errorf(mech.Unavailable, 0, reason.ContextEnctype, ": the kernel refuses the sequence number %d, which %s chose", c.SendSeq, wire.Shown(c.There))
	}
	flags := uint32(lucidCFX)
	if c.Initiator {
		flags |= lucidInitiator
	}
	if c.AcceptorSubkey != nil {
		flags |= lucidAcceptorSubkey
	}
	host := binary.NativeEndian
	dst = host.AppendUint32(dst, flags)
	dst = host.AppendUint32(dst, c.EndTime)
	dst = host.AppendUint64(dst, c.SendSeq)
	dst = host.AppendUint32(dst, uint32(key.Enctype()))
	return append(dst, key.Secret()...), nil
}

// MessageEnctype is the type of the key that protects this end's messages, 0 for a context that is
// not established.
func (c *Context) MessageEnctype() etype.ID {
	if key := c.key(); key != nil {
		return key.Enctype()
	}
	return 0
}
