package krb5

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// badRequest is a request with one fault.
type badRequest struct {
	name   string
	change func(*request)
	major  mech.Major
	minor  uint32
	reason reason.ID
	code   int32  // of the KRB-ERROR
	text   string // part of the message
}

func badRequests(t testing.TB) []badRequest {
	return []badRequest{
		{"skew ahead", func(q *request) { q.ctime = testNow.Add(400 * time.Second) }, mech.Failure, wire.MinorSkew, reason.ClockSkew, 37, "alice@EXAMPLE.TEST is 400s ahead, permitted are 300s"},
		{"skew behind", func(q *request) { q.ctime = testNow.Add(-400 * time.Second) }, mech.Failure, wire.MinorSkew, reason.ClockSkew, 37, "400s behind"},
		{"expired", func(q *request) { q.end = testNow.Add(-400 * time.Second) }, mech.Failure, wire.MinorExpired, reason.TicketExpired, 32, "ended at " + stamp(uint32(testNow.Unix()-400))},
		{"not yet valid", func(q *request) { q.start = testNow.Add(400 * time.Second) }, mech.Failure, wire.MinorNotYetValid, reason.TicketNotYetValid, 33, "starts at " + stamp(uint32(testNow.Unix()+400))},
		{"not yet valid by authtime", func(q *request) { q.auth, q.start = testNow.Add(400*time.Second), time.Time{} }, mech.Failure, wire.MinorNotYetValid, reason.TicketNotYetValid, 33, ""},
		{"invalid", func(q *request) { q.flags |= wire.FlagInvalid }, mech.Failure, wire.MinorTicketInvalid, reason.TicketInvalid, 60, "Ticket has invalid flag set"},
		{"other name", func(q *request) { q.authClient.Components = []string{"mallory"} }, mech.Failure, wire.MinorBadMatch, reason.BadMatch, 36, "mallory@EXAMPLE.TEST"},
		{"other realm", func(q *request) { q.authClient.Realm = "EVIL.TEST" }, mech.Failure, wire.MinorBadMatch, reason.BadMatch, 36, "alice@EVIL.TEST, the ticket of alice@EXAMPLE.TEST"},
		{"NUL in the client's name", func(q *request) { q.setClient("EVIL.TEST", "root@EXAMPLE.TEST\x00") }, mech.Failure, wire.MinorParseMalformed, reason.BadClient, 60, `root\@EXAMPLE.TEST\0@EVIL.TEST: there is a NUL`},
		{"NUL in a later component", func(q *request) { q.setClient("EXAMPLE.TEST", "", "a", "\x00b") }, mech.Failure, wire.MinorParseMalformed, reason.BadClient, 60, `/a/\0b@EXAMPLE.TEST: there is a NUL`},
		{"NUL in the client's realm", func(q *request) { q.setClient("EXAMPLE.TEST\x00.EVIL.TEST", "root") }, mech.Failure, wire.MinorParseMalformed, reason.BadClient, 60, `root@EXAMPLE.TEST\0.EVIL.TEST: there is a NUL`},
		{"client without a realm", func(q *request) { q.setClient("", "root") }, mech.Failure, wire.MinorParseMalformed, reason.BadClient, 60, "root@: the realm is empty"},
		{"client without a component", func(q *request) { q.setClient("EXAMPLE.TEST") }, mech.Failure, wire.MinorParseMalformed, reason.BadClient, 60, "@EXAMPLE.TEST: there is no component"},
		{"client of too many components", func(q *request) { q.setClient("EXAMPLE.TEST", make([]string, MaxComponents+1)...) }, mech.Failure, wire.MinorBadIntegrity, reason.DefectiveToken, 31, "malformed ticket"},
		{"component boundary", func(q *request) {
			q.client.Components, q.authClient.Components = []string{"a", "b"}, []string{"a/b"}
		}, mech.Failure, wire.MinorBadMatch, reason.BadMatch, 36, ""},
		{"version 4 authenticator", func(q *request) {
			q.mutateAuth = func(b []byte) []byte {
				return bytes.Replace(b, []byte{0xa0, 3, 2, 1, 5}, []byte{0xa0, 3, 2, 1, 4}, 1)
			}
		}, mech.Failure, wire.MinorBadPVNO, reason.DefectiveToken, 3, "authenticator is not of Kerberos version 5"},
		{"microseconds", func(q *request) { q.cusec = 1_000_000 }, mech.Failure, der.OutOfRange.Minor(), reason.DefectiveToken, 60, "authenticator"},
		{"sequence number of 33 bits", func(q *request) { n := int64(1 << 32); q.seq = &n }, mech.Failure, der.OutOfRange.Minor(), reason.DefectiveToken, 60, ""},
		{"short ticket", func(q *request) { q.mutateTicket = func([]byte) []byte { return nil } }, mech.Failure, wire.MinorBadIntegrity, reason.DefectiveToken, 31, "malformed ticket"},
		{"short authenticator", func(q *request) { q.mutateAuth = func([]byte) []byte { return []byte{0x62} } }, mech.Failure, der.Overrun.Minor(), reason.DefectiveToken, 60, ""},
		{"short checksum", func(q *request) { q.sum = q.sum[:23] }, mech.BadBindings, 0, reason.BadBindings, 60, ""},
		{"bindings length", func(q *request) { q.sum = append([]byte{15}, q.sum[1:]...) }, mech.Failure, minorBadLength, reason.DefectiveToken, 60, ""},
		{"delegation length", func(q *request) { q.sum = append(gssSum(nil, 0x13f, nil), 1, 0, 5, 0, 1, 2, 3, 4) }, mech.Failure, minorBadLength, reason.DefectiveToken, 60, ""},
		{"delegation option", func(q *request) { q.sum = append(gssSum(nil, 0x13f, nil), 2, 0, 0, 0) }, mech.Failure, 0, reason.BadDelegation, 60, ""},
		{"delegation garbage", func(q *request) { q.sum = gssSum(nil, 0x13f, []byte("garbage")) }, mech.Failure, der.Overrun.Minor(), reason.BadDelegation, 60, ""},
		{"extension length", func(q *request) { q.sum = append(gssSum(nil, 0x13e, nil), 0, 0, 0, 9, 0, 0, 0, 1) }, mech.Failure, minorBadLength, reason.DefectiveToken, 60, ""},
		{"extension header", func(q *request) { q.sum = append(gssSum(nil, 0x13e, nil), 0, 0, 0) }, mech.Failure, minorBadLength, reason.DefectiveToken, 60, ""},
		{"IAKERB extension", func(q *request) { q.sum = append(gssSum(nil, 0x13e, nil), 0, 0, 0, 2, 0, 0, 0, 0) }, mech.Failure, wire.MinorMsgType, reason.DefectiveToken, 40, ""},
		{"wrong checksum", func(q *request) { q.sumType, q.sum = 16, make([]byte, 12) }, mech.BadSig, 0, reason.BadChecksum, 60, ""},
		{"unkeyed checksum", func(q *request) { q.sumType, q.sum = 7, make([]byte, 16) }, mech.BadSig, 0, reason.BadChecksum, 60, ""},
		{"subkey size", func(q *request) {
			q.mutateAuth = func(b []byte) []byte {
				return bytes.Replace(b, keyDER(q.subkey), append(typed(18, make([]byte, 30)), 0x30, 0), 1)
			}
		}, mech.Failure, der.BadLength.Minor(), reason.DefectiveToken, 60, ""},
		{"user to user", func(q *request) { q.options |= wire.APUseSessionKey; q.ticketKey = mustKey(t, etype.AES256SHA1) }, mech.Failure, wire.MinorBadIntegrity, reason.UserToUser, 31, "cannot decrypt ticket"},
		{"malformed etype list", func(q *request) {
			q.authAD = []AuthData{ifRelevant(AuthData{wire.ADEtypeNegotiation, []byte{0x30, 1}})}
		}, mech.Failure, der.Overrun.Minor(), reason.DefectiveToken, 60, ""},
		{"two AP options", func(q *request) {
			ad := AuthData{wire.ADAPOptions, []byte{0, 0x40, 0, 0}}
			q.authAD = []AuthData{ifRelevant(ad), ifRelevant(ad)}
		}, mech.Failure, wire.MinorMsgType, reason.DefectiveToken, 40, ""},
		{"malformed container", func(q *request) { q.ticketAD = []AuthData{{wire.ADIfRelevant, []byte{0x30, 5, 1}}} }, mech.Failure, der.Overrun.Minor(), reason.DefectiveToken, 60, ""},
		{"deep containers", func(q *request) {
			ad := AuthData{99, nil}
			for range 40 {
				ad = ifRelevant(ad)
			}
			q.authAD = []AuthData{ad}
		}, mech.Failure, der.TooDeep.Minor(), reason.DefectiveToken, 60, "too deep"},
		{"hostile name", func(q *request) {
			q.authClient.Components = []string{"a\nb\x1b[31m\xff" + strings.Repeat("x", 5000)}
		}, mech.Failure, wire.MinorBadMatch, reason.BadMatch, 36, `a\nb?[31m`},
	}
}

// oddRequest is a request that looks odd and is fine.
type oddRequest struct {
	name   string
	change func(*request)
	check  func(*testing.T, *Accepted)
}

func oddRequests() []oddRequest {
	return []oddRequest{
		{"skew within", func(q *request) { q.ctime = testNow.Add(200 * time.Second) }, nil},
		{"expired within skew", func(q *request) { q.end = testNow.Add(-200 * time.Second) }, nil},
		{"starting within skew", func(q *request) { q.start = testNow.Add(200 * time.Second) }, nil},
		{"negative sequence number", func(q *request) { n := int64(-2); q.seq = &n }, func(t *testing.T, out *Accepted) {
			if out.Context.RecvSeq != 0xfffffffe {
				t.Errorf("%#x", out.Context.RecvSeq)
			}
		}},
		{"large sequence number", func(q *request) { n := int64(1<<32 - 1); q.seq = &n }, func(t *testing.T, out *Accepted) {
			if out.Context.RecvSeq != 0xffffffff {
				t.Errorf("%#x", out.Context.RecvSeq)
			}
		}},
		{"no sequence number", func(q *request) { q.seq = nil }, func(t *testing.T, out *Accepted) {
			if out.Context.RecvSeq != 0 {
				t.Errorf("%#x", out.Context.RecvSeq)
			}
		}},
		{"name types", func(q *request) { q.client.Type, q.authClient.Type = 1, 10 }, nil},
		{"no checksum", func(q *request) { q.noChecksum = true }, func(t *testing.T, out *Accepted) {
			if out.Context.Flags != mech.FlagTrans || len(out.Token) != 0 {
				t.Errorf("flags %#x", out.Context.Flags)
			}
		}},
		{"ordinary checksum", func(q *request) {
			q.sumType, q.sum = 16, q.session.AppendChecksum(nil, wire.UsageAPReqChecksum)
		}, func(t *testing.T, out *Accepted) {
			if out.Context.Flags != mech.FlagTrans|mech.FlagReplay|mech.FlagSequence|mech.FlagMutual|mech.FlagProtReady {
				t.Errorf("flags %#x", out.Context.Flags)
			}
		}},
		{"ordinary checksum without mutual", func(q *request) {
			q.options = 0
			q.sumType, q.sum = 16, q.session.AppendChecksum(nil, wire.UsageAPReqChecksum)
		}, func(t *testing.T, out *Accepted) {
			if out.Context.Flags != mech.FlagTrans|mech.FlagReplay|mech.FlagSequence {
				t.Errorf("flags %#x", out.Context.Flags)
			}
		}},
		{"delegation flag alone", func(q *request) { q.sum = gssSum(nil, 0x13f, nil) }, func(t *testing.T, out *Accepted) {
			if out.Context.Flags&mech.FlagDeleg != 0 || out.Delegated != nil {
				t.Errorf("flags %#x", out.Context.Flags)
			}
		}},
		{"unknown extension", func(q *request) {
			q.sum = append(gssSum(nil, 0x13e, nil), 0, 0, 0, 99, 0, 0, 0, 3, 1, 2, 3)
		}, nil},
		{"all flags", func(q *request) { q.sum = gssSum(nil, 0xffffefff&^1, nil) }, func(t *testing.T, out *Accepted) {
			if out.Context.Flags != 0x703e&^mech.FlagDCEStyle|mech.FlagTrans|mech.FlagProtReady {
				t.Errorf("flags %#x", out.Context.Flags)
			}
		}},
		{"later fields", func(q *request) {
			extend := func(b []byte) []byte {
				r := der.NewReader(b)
				tag := r.Peek()
				o := r.Enter(tag)
				inner := r.Value(der.Sequence)
				r.Leave(o)
				return tlv(tag, tlv(der.Sequence, inner, field(20, integer(1))))
			}
			q.mutateTicket, q.mutateAuth = extend, extend
		}, nil},
		{"ticket kvno absent", func(q *request) { q.kvno = 0 }, nil},
		{"ticket kvno with high bits", func(q *request) { q.kvno = 0x10003 }, nil},
		{"anonymous realm is not transited", func(q *request) {
			q.client = wire.Anonymous()
			q.authClient, q.transited = q.client, "ANY.WHERE"
		}, nil},
	}
}
