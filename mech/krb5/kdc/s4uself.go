package kdc

import (
	"bytes"
	"context"
	"encoding/binary"
	"slices"
	"strings"

	"golang.org/x/crypto/md4" //lint:ignore SA1019 MS-SFU section 2.2.2 wants it for RC4 keys

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// s4uUseReplyUsage asks for a reply signed with a key usage of its own.
const s4uUseReplyUsage = 0x20000000

// S4U2Self gets a ticket for the service in the name of the user (MS-SFU section 3.1.5.1.1), with
// the service's TGT. The user may be of another realm, also one that is to be found: named by an
// enterprise name. The ticket's client is the user as the user's KDC has it. The ticket is not
// stored: the store is the service's.
func (c *Client) S4U2Self(ctx context.Context, tickets TicketStore, service, user krb5.Principal) (*krb5.Credential, error) {
	c.trace("S4U2Self: a ticket for %v in the name of %v", service, user)
	if len(user.Components) == 0 {
		return nil, mech.Errorf(mech.Failure, wire.MinorWrongPrincipal, reason.BadName, ": no user to act for")
	}
	id := s4uUser{user}
	if user.Type == krb5.NTEnterprise {
		id.name.Realm = service.Realm
		realm, err := c.identifyRealm(ctx, id.name)
		if err != nil {
			return nil, id.refused(err, service.Realm)
		}
		id.name.Realm = realm
	}
	found, e := c.Ticket(ctx, tickets, service, TGS(id.name.Realm, service.Realm), TicketOptions{})
	if e != nil {
		return nil, e
	}
	defer found.Destroy()
	key := keyOf([]byte("self"), service.AppendString(nil), user.AppendString(nil), []byte(id.name.Realm), found.Ticket)
	cred, err := c.asking(ctx, key, func() (*krb5.Credential, *mech.Error) { return c.forUser(ctx, found, service, &id) })
	if err != nil {
		return nil, err
	}
	return cred, nil
}

// forUser is [Client.S4U2Self] with a ticket-granting ticket for the user's realm.
func (c *Client) forUser(ctx context.Context, tgt *krb5.Credential, service krb5.Principal, id *s4uUser) (*krb5.Credential, *mech.Error) {
	var seen []string
	for hop := range maxHops {
		realm := tgt.Server.Components[1]
		server := service
		if realm != service.Realm {
			// Another realm knows the service by its enterprise name only.
			server = krb5.Principal{Realm: realm, Type: krb5.NTEnterprise,
				Components: []string{strings.Join(service.Components, "/") + "@" + service.Realm}}
		}
		var sum []byte
		r, err := c.exchange(ctx, tgsRequest{tgt: tgt, server: server, etypes: c.tgsEnctypes(nil), anyClient: true,
			options: wire.OptCanonicalize | tgt.Flags&inherited,
			padata: func(nonce uint32, subkey, session *etype.Key) (list []wire.PAData) {
				list, sum = id.padata(nonce, subkey, session)
				return list
			}})
		if err != nil {
			return nil, id.refused(err, realm)
		}
		defer r.subkey.Destroy()
		got := r.cred.Server
		if !isTGS(got) && r.cred.Client.Equal(server) {
			return nil, mech.Errorf(mech.Failure, wire.MinorPadataNoSupp, reason.KDCRefused, ": the KDC of realm '%s' does not support S4U2Self", wire.Shown(realm))
		}
		if err := id.verify(r, sum, hop == 0); err != nil {
			return nil, err
		}
		switch {
		case sameName(got, service):
			if !r.cred.Client.Equal(id.name) {
				return nil, mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the ticket is for the client %s, expected %s", r.cred.Client.Shown(), id.name.Shown())
			}
			return r.cred, nil
		case !isTGS(got):
			return nil, mech.Errorf(mech.Failure, wire.MinorWrongPrincipal, reason.KDCReply, ": the ticket is for %s, expected %s", got.Shown(), service.Shown())
		case got.Components[1] == realm:
			return nil, mech.Errorf(mech.Failure, wire.MinorHostRealm, reason.KDCReply, ": the KDC of realm '%s' refers to itself", wire.Shown(realm))
		case slices.Contains(seen, got.String()):
			return nil, loop(seen, got.String())
		}
		seen = append(seen, got.String())
		tgt = r.cred
		defer tgt.Destroy()
	}
	return nil, mech.Errorf(mech.Failure, wire.MinorUnreachable, reason.KDCReply, ": referred through more than %d realms", maxHops)
}

// s4uUser is who to act for.
type s4uUser struct{ name krb5.Principal }

// refused makes of a KDC's refusal one that names the user: the client it is about is not the
// service that asks.
func (u *s4uUser) refused(err *mech.Error, realm string) *mech.Error {
	user := "'" + u.name.Shown() + "'"
	c := minor(err)
	switch c {
	case wire.MinorClientUnknown:
		return mech.Errorf(mech.Failure, c, reason.UserUnknown, ": the KDC of realm '%s' knows no user %s to act for", wire.Shown(realm), user)
	case wire.MinorClientExpired, wire.MinorPolicy, wire.MinorClientRevoked, wire.MinorClientNotYet, wire.MinorKeyExpired: // Samba: wire.MinorPolicy for a disabled account
		err.Reason = reason.UserRefused
		err.Text += ", asked to act for the user " + user
	}
	return err
}

// padata names the user. sum is the checksum in the newer of the two.
func (u *s4uUser) padata(nonce uint32, subkey, session *etype.Key) (list []wire.PAData, sum []byte) {
	who := wire.S4UUserID{Nonce: nonce, User: u.name, Options: s4uUseReplyUsage}
	id := who.Append(nil)
	kind := subkey.Enctype().ChecksumType()
	if subkey.Enctype() == etype.RC4 {
		kind, sum = wire.SumRSAMD4, md4Sum(id)
	} else {
		sum = subkey.AppendChecksum(nil, wire.UsageS4URequest, id)
	}
	const pkg = "Kerberos"
	signed := binary.LittleEndian.AppendUint32(nil, uint32(u.name.Type))
	signed = append(signed, strings.Join(u.name.Components, "")+u.name.Realm+pkg...)
	return []wire.PAData{
		{Type: wire.PAS4UX509User, Value: wire.AppendS4UX509User(nil, id, kind, sum)},
		{Type: wire.PAForUser, Value: wire.AppendForUser(nil, &u.name, etype.ChecksumHMACMD5, session.AppendChecksumHMACMD5(nil, wire.UsageForUser, signed), pkg)},
	}, sum
}

func md4Sum(b []byte) []byte {
	h := md4.New()
	h.Write(b)
	return h.Sum(nil)
}

// verify checks what the reply says of the user; a KDC that knows the older padata only says
// nothing. The first KDC, that of the user's realm, has the say in what the user is called.
func (u *s4uUser) verify(rep *tgsReply, sum []byte, first bool) *mech.Error {
	inside, protected := wire.FindPAData(rep.encPadata, wire.PAS4UX509User)
	value, ok := wire.FindPAData(rep.padata, wire.PAS4UX509User)
	if !ok {
		if protected {
			return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": PA-S4U-X509-USER is in the encrypted part of the reply only")
		}
		return nil
	}
	var x wire.S4UX509User
	if err := malformed("PA-S4U-X509-USER", x.Parse(value)); err != nil {
		return err
	}
	who := x.User
	usage := uint32(wire.UsageS4URequest)
	if x.Options&s4uUseReplyUsage != 0 {
		usage = wire.UsageS4UReply
	}
	old := rep.subkey.Enctype() == etype.RC4
	switch {
	case x.Nonce != rep.nonce:
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the nonce beside the user's name is not the request's")
	case old && x.SumType == wire.SumRSAMD4 && bytes.Equal(x.Sum, md4Sum(x.ID)):
	case !rep.subkey.VerifyChecksumType(x.SumType, usage, x.Sum, x.ID):
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the user's name was changed")
	}
	if old {
		// Keyed or not, such checksums are repeated where the reply is encrypted, by KDCs that know
		// of the usage.
		if protected && !bytes.Equal(inside, append(bytes.Clone(sum), x.Sum...)) || !protected && (x.Options&s4uUseReplyUsage != 0 || x.SumType == wire.SumRSAMD4) {
			return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the user's name is not confirmed in the encrypted part")
		}
	}
	switch {
	case len(who.Components) == 0:
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the reply does not name the user")
	case first:
		u.name = who
	case !who.Equal(u.name):
		return mech.Errorf(mech.Failure, wire.MinorReplyModified, reason.KDCReply, ": the user %s became %s on the way", u.name.Shown(), who.Shown())
	}
	return nil
}
