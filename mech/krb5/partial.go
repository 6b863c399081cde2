package krb5

import (
	"gssproxyd/mech"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/reason"
)

// A partial context is what one end keeps between two tokens, keys included, in a form that only
// this program reads: big-endian, with counted strings, keys as their type, 0 for none, and a
// counted string.
//
//	version, 1 for an initiator's and 0 for an acceptor's      8 bits each
//	ctime and cusec of the authenticator                       initiator's only
//	flags, ticket flags, authtime, starttime, endtime, renew_till, send seq, receive seq
//	mechanism, here, there
//	session key, subkey, acceptor subkey
//	count of authorization data, of each type and data; PAC; whether it is verified;
//	count of indicators, each
//
// What arrives in the window of an established context is not in it: nothing can have arrived.
const partialVersion = 1

// authenticatorTime is the time in an authenticator, which an AP-REP has to repeat.
type authenticatorTime struct {
	ctime uint32
	cusec int32
}

// appendPartial appends c, half established. at counts for an initiator.
func (c *Context) appendPartial(dst []byte, at authenticatorTime) []byte {
	if c.Initiator {
		dst = be32(be32(append(dst, partialVersion, 1), at.ctime), uint32(at.cusec))
	} else {
		dst = append(dst, partialVersion, 0)
	}
	for _, v := range [...]uint32{c.Flags, c.TicketFlags, c.AuthTime, c.StartTime, c.EndTime, c.RenewTill, uint32(c.SendSeq), uint32(c.RecvSeq)} {
		dst = be32(dst, v)
	}
	dst = appendCounted(appendCounted(appendCounted(dst, string(c.Mech)), c.Here), c.There)
	for _, k := range [...]*etype.Key{c.SessionKey, c.Subkey, c.AcceptorSubkey} {
		dst = appendCounted(be32(dst, uint32(k.Enctype())), []byte(k.Secret()))
	}
	dst = be32(dst, uint32(len(c.AuthData)))
	for _, a := range c.AuthData {
		dst = appendCounted(be32(dst, uint32(a.Type)), a.Data)
	}
	dst = beBool(appendCounted(dst, c.PAC), c.PACVerified)
	dst = be32(dst, uint32(len(c.Indicators)))
	for _, s := range c.Indicators {
		dst = appendCounted(dst, s)
	}
	return dst
}

// readPartial makes c, which is empty, the context that appendPartial wrote, with the keys given.
// Slices of c alias b.
func (c *Context) readPartial(b []byte, initiator bool, session, subkey, reply *etype.Key) (at authenticatorTime, err *mech.Error) {
	r := &tokenReader{b: b}
	head := r.next(2, "version")
	switch {
	case head == nil:
	case head[0] != partialVersion || head[1] > 1:
		r.fail("version %d.%d; expected %d", head[0], head[1], partialVersion)
	case (head[1] == 1) != initiator:
		r.fail("it is of the other end")
	}
	if c.Initiator = initiator; initiator {
		at = authenticatorTime{r.u32("ctime"), int32(r.u32("cusec"))}
	}
	for _, v := range [...]*uint32{&c.Flags, &c.TicketFlags, &c.AuthTime, &c.StartTime, &c.EndTime, &c.RenewTill} {
		*v = r.u32("flags and times")
	}
	c.SendSeq, c.RecvSeq = uint64(r.u32("send sequence")), uint64(r.u32("receive sequence"))
	c.Mech = mech.OID(r.counted("mechanism"))
	c.Here, c.There = string(r.counted("local name")), string(r.counted("peer name"))
	key := func(k *etype.Key, what string) *etype.Key {
		et, raw := etype.ID(r.u32(what)), r.counted(what)
		if r.problem != "" || et == 0 && len(raw) == 0 {
			return nil
		}
		if err := k.Init(et, raw); err != nil {
			r.fail("%s: %v", what, err)
		}
		return k
	}
	c.SessionKey, c.Subkey, c.AcceptorSubkey = key(session, "session key"), key(subkey, "subkey"), key(reply, "acceptor subkey")
	for n := r.count(8, "authorization data"); n > 0 && r.problem == ""; n-- {
		c.AuthData = append(c.AuthData, AuthData{int32(r.u32("authorization data")), r.counted("authorization data")})
	}
	if pac := r.counted("PAC"); len(pac) > 0 {
		c.PAC = pac
	}
	c.PACVerified = r.flag("PAC")
	for n := r.count(4, "indicators"); n > 0 && r.problem == ""; n-- {
		c.Indicators = append(c.Indicators, string(r.counted("indicators")))
	}
	switch {
	case r.problem != "":
	case r.at != len(b):
		r.fail("octets left over")
	case c.SessionKey == nil || c.Subkey == nil || (c.AcceptorSubkey == nil) != initiator:
		r.fail("a key is missing, or one too many")
	}
	if r.problem != "" {
		*c = Context{}
		return at, mech.Errorf(mech.NoContext, 0, reason.BadContext, "partial context: %s at octet %d of %d", r.problem, r.at, len(b))
	}
	return at, nil
}
