package krb5

import (
	"bytes"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	gokeytab "github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"

	"gssproxyd/keytab"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
)

// TestGokrb5Initiator has another implementation issue the ticket, write the AP-REQ and open the
// AP-REP.
func TestGokrb5Initiator(t *testing.T) {
	for _, et := range testEtypes {
		t.Run(et.String(), func(t *testing.T) {
			kt := gokeytab.New()
			if err := kt.AddEntry("HTTP/www.example.test", testRealm, "secret", testNow, 3, int32(et)); err != nil {
				t.Fatal(err)
			}
			file, err := kt.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			entries, err := keytab.Parse(file)
			if err != nil {
				t.Fatal(err)
			}
			b := newBench(t)
			b.Keys = keytab.Compile("MEMORY:", entries)

			cname := types.PrincipalName{NameType: 1, NameString: []string{"alice"}}
			sname := types.PrincipalName{NameType: 3, NameString: []string{"HTTP", "www.example.test"}}
			tkt, key, err := messages.NewTicket(cname, testRealm, sname, testRealm, types.NewKrbFlags(), kt, int32(et), 3,
				testNow, testNow, testNow.Add(time.Hour), testNow.Add(2*time.Hour))
			if err != nil {
				t.Fatal(err)
			}
			if id := etype.ID(key.KeyType); len(key.KeyValue) != id.KeySize() {
				// This library makes keys of a wrong length for aes256-cts-hmac-sha384-192.
				service, _, err := kt.GetEncryptionKey(sname, testRealm, 3, int32(et))
				if err != nil {
					t.Fatal(err)
				}
				key = remadeTicket(t, &tkt, service)
			}
			auth, err := types.NewAuthenticator(testRealm, cname)
			if err != nil {
				t.Fatal(err)
			}
			auth.CTime, auth.SeqNumber = testNow, 1234
			auth.Cksum = types.Checksum{CksumType: wire.SumGSSAPI, Checksum: gssSum(nil, 0x13e, nil)}
			req, err := messages.NewAPReq(tkt, key, auth)
			if err != nil {
				t.Fatal(err)
			}
			types.SetFlag(&req.APOptions, 2)
			raw, err := req.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			var out Accepted
			if err := b.Accept(&out, frame(mech.KRB5, tokAPReq, raw), nil); err != nil {
				t.Fatal(err)
			}
			if out.Context.There != testClient || out.Context.Here != testService || out.Context.RecvSeq != 1234 {
				t.Errorf("%s at %s, %d", out.Context.There, out.Context.Here, out.Context.RecvSeq)
			}
			r := der.NewReader(out.Token)
			r.Enter(der.Application(0))
			r.Value(der.ObjectID)
			var rep messages.APRep
			if err := rep.Unmarshal(r.Rest()[2:]); err != nil {
				t.Fatal(err)
			}
			plain, err := crypto.DecryptEncPart(rep.EncPart, key, keyusage.AP_REP_ENCPART)
			if err != nil {
				t.Fatal(err)
			}
			var part messages.EncAPRepPart
			if err := part.Unmarshal(plain); err != nil {
				t.Fatal(err)
			}
			if !part.CTime.Equal(testNow) || uint64(part.SequenceNumber) != out.Context.SendSeq {
				t.Errorf("AP-REP %v %d, context %d", part.CTime, part.SequenceNumber, out.Context.SendSeq)
			}
			if sub := out.Context.AcceptorSubkey; sub != nil && !bytes.Equal(part.Subkey.KeyValue, sub.Secret()) {
				t.Error("subkeys differ")
			}
		})
	}
}

// remadeTicket gives the ticket a session key of the right length.
func remadeTicket(t *testing.T, tkt *messages.Ticket, service types.EncryptionKey) types.EncryptionKey {
	t.Helper()
	q := newRequest(t, nil, etype.ID(service.KeyType))
	var err error
	if tkt.EncPart, err = crypto.GetEncryptedData(q.encTicketPart(), service, keyusage.KDC_REP_TICKET, 3); err != nil {
		t.Fatal(err)
	}
	return types.EncryptionKey{KeyType: service.KeyType, KeyValue: q.session.Secret()}
}
