package kdc

import (
	"crypto/subtle"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/reason"
)

// FAST (RFC 6113 section 5.4) wraps an AS exchange in the protection of a ticket somebody else got, the armor:
// nobody can then try passwords on what is on the wire, and errors can be trusted.

// cf2 is KRB-FX-CF2 (RFC 6113 section 5.1): a key of the type of k1 that only who has both keys can make.
func cf2(k1, k2 *etype.Key, pepper1, pepper2 string) *etype.Key {
	n := k1.Enctype().KeySize()
	a, b := prfPlus(k1, pepper1, n), prfPlus(k2, pepper2, n)
	if a == nil || b == nil {
		return nil
	}
	subtle.XORBytes(a, a, b)
	k, err := etype.NewKey(k1.Enctype(), a) // random-to-key is the identity for the types there are
	clear(a)
	clear(b)
	if err != nil {
		return nil
	}
	return k
}

// prfPlus is PRF+ (RFC 6113 section 5.1), n octets.
func prfPlus(k *etype.Key, pepper string, n int) (out []byte) {
	for i := byte(1); len(out) < n; i++ {
		before := len(out)
		if out = k.PRF(out, append([]byte{i}, pepper...)); len(out) == before {
			return nil // no key
		}
	}
	return out[:n]
}

// armor is one FAST channel.
type armor struct {
	apReq []byte
	key   *etype.Key
}

// newArmor makes a channel of a ticket for the TGS of the client's realm.
func newArmor(tgt *krb5.Credential, now uint32, usec int64) (*armor, *mech.Error) {
	session, err := etype.NewKey(tgt.KeyType, tgt.Key)
	if err != nil {
		return nil, mech.Errorf(mech.Failure, mech.KRB5Minor(codeProgEtype), reason.EnctypeNotPermitted, ": Error constructing AP-REQ armor: %s", err)
	}
	defer session.Destroy()
	subkey, err := etype.GenerateKey(tgt.KeyType)
	if err != nil {
		return nil, mech.Errorf(mech.Failure, mech.KRB5Minor(codeProgEtype), reason.EnctypeNotPermitted, ": Error constructing AP-REQ armor: %s", err)
	}
	defer subkey.Destroy()
	return &armor{
		apReq: apReq(tgt, session, usageAPReqAuth, authenticator(tgt.Client, nil, now, usec, subkey)),
		key:   cf2(subkey, session, "subkeyarmor", "ticketarmor"),
	}, nil
}

// wrap returns the one element that goes into the outer request: the real padata, for a request with that body.
func (a *armor) wrap(padata []paData, body []byte) paData {
	inner := sequence(field(0, flags(0)), field(1, paDataList(padata)), field(2, body))
	req := sequence(
		field(0, sequence(field(0, integer(1)), field(1, octets(a.apReq)))),
		field(1, checksum(a.key, usageFastReqChecksum, body)),
		field(2, seal(a.key, usageFastEnc, inner)))
	clear(inner)
	return paData{paFXFast, field(0, req)}
}

// fastResponse is a KrbFastResponse.
type fastResponse struct {
	padata     []paData
	strengthen *etype.Key // nil when absent
	finished   bool
	client     krb5.Principal
	sumType    int32
	sum        []byte
	nonce      uint32
}

// open decrypts the response in the padata of a reply or an error; nil without an error when there is none.
func (a *armor) open(outer []paData, nonce uint32) (*fastResponse, *mech.Error) {
	value, ok := find(outer, paFXFast)
	if !ok {
		return nil, nil
	}
	r := der.NewReader(value)
	f := r.Field(0)
	seq := r.Enter(der.Sequence)
	g := r.Field(0)
	enc := readEncrypted(&r)
	r.Leave(g)
	r.LeaveOpen(seq)
	r.Leave(f)
	if err := malformed("FAST reply", &r); err != nil {
		return nil, err
	}
	plain, err := enc.open(a.key, usageFastRep)
	if err != nil {
		return nil, mech.Errorf(mech.Failure, mech.KRB5Minor(codeBadIntegrity), reason.KDCReply, ": Failed to decrypt FAST reply")
	}
	defer clear(plain)
	p := new(fastResponse)
	r = der.NewReader(plain)
	seq = r.Enter(der.Sequence)
	f = r.Field(0)
	p.padata = readPAData(&r)
	r.Leave(f)
	var keyType int32
	var key []byte
	if r.Has(1) {
		f = r.Field(1)
		keyType, key = readTyped(&r)
		r.Leave(f)
	}
	if r.Has(2) {
		p.finished = true
		f = r.Field(2)
		fin := r.Enter(der.Sequence)
		readTime(&r, 0)
		readInt(&r, 1)
		p.client = readRealmAndName(&r, 2)
		g = r.Field(4)
		kind, sum := readTyped(&r)
		p.sumType, p.sum = kind, append([]byte{}, sum...)
		r.Leave(g)
		r.LeaveOpen(fin)
		r.Leave(f)
	}
	f = r.Field(3)
	p.nonce = r.Uint32()
	r.Leave(f)
	r.LeaveOpen(seq)
	if err := malformed("FAST reply (its encrypted part)", &r); err != nil {
		return nil, err
	}
	if p.nonce != nonce {
		return nil, mech.Errorf(mech.Failure, mech.KRB5Minor(codeReplyModified), reason.KDCReply, ": nonce modified in FAST response")
	}
	if key != nil {
		if p.strengthen, err = etype.NewKey(etype.ID(keyType), key); err != nil {
			return nil, mech.Errorf(mech.Failure, mech.KRB5Minor(codeProgEtype), reason.EnctypeNotPermitted, ": the strengthening key cannot be used: %s", err)
		}
	}
	return p, nil
}

// finish checks what protects the outer reply, and gives the reply the padata and client from inside.
func (a *armor) finish(rep *kdcRep, p *fastResponse) *mech.Error {
	if !p.finished {
		return mech.Errorf(mech.Failure, mech.KRB5Minor(codeReplyModified), reason.KDCReply, ": FAST response missing finish message in KDC reply")
	}
	if !a.key.VerifyChecksumType(p.sumType, usageFastFinished, p.sum, rep.ticket.raw) {
		return mech.Errorf(mech.Failure, mech.KRB5Minor(codeReplyModified), reason.KDCReply, ": Ticket modified in KDC reply")
	}
	rep.client, rep.padata = p.client, p.padata
	return nil
}

// clientChallenge returns PA-ENCRYPTED-CHALLENGE (RFC 6113 section 5.4.6): the time, in a key of armor and client.
func (a *armor) clientChallenge(key *etype.Key, now uint32, usec int64) paData {
	k := cf2(a.key, key, "clientchallengearmor", "challengelongterm")
	defer k.Destroy()
	return paData{paEncryptedChallenge, seal(k, usageChallengeClient, encTimestamp(now, usec))}
}

// checkChallenge verifies that the KDC knows the client's key.
func (a *armor) checkChallenge(key *etype.Key, value []byte) *mech.Error {
	r := der.NewReader(value)
	enc := readEncrypted(&r)
	if err := malformed("encrypted challenge", &r); err != nil {
		return err
	}
	k := cf2(a.key, key, "kdcchallengearmor", "challengelongterm")
	defer k.Destroy()
	plain, err := enc.open(k, usageChallengeKDC)
	if err != nil {
		return mech.Errorf(mech.Failure, mech.KRB5Minor(codeBadIntegrity), reason.KDCReply, ": the KDC does not know the client's key")
	}
	clear(plain)
	return nil
}

// encTimestamp returns a PA-ENC-TS-ENC (RFC 4120 section 5.2.7.2).
func encTimestamp(now uint32, usec int64) []byte {
	return sequence(field(0, timestamp(now)), field(1, integer(usec)))
}
