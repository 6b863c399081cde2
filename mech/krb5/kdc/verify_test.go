package kdc

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/iana/errorcode"

	"gssproxyd/keytab"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// What a reply may get wrong, in the AS and in the TGS exchange alike unless it says otherwise.
var lies = []struct {
	name   string
	lie    func(*issue)
	minor  uint32
	reason reason.ID
}{
	{"nonce", func(i *issue) { i.nonce++ }, wire.MinorReplyModified, reason.KDCReply},
	{"client", func(i *issue) { i.client.Components = []string{"mallory"} }, wire.MinorReplyModified, reason.KDCReply},
	{"client's realm", func(i *issue) { i.client.Realm = "B.TEST" }, wire.MinorReplyModified, reason.KDCReply},
	{"server", func(i *issue) {
		i.server.Components = []string{"HTTP", "www.b.test"}
		i.inside = i.server
	}, wire.MinorReplyModified, reason.KDCReply},
	{"server's realm", func(i *issue) { i.server.Realm = "B.TEST"; i.inside = i.server }, wire.MinorReplyModified, reason.KDCReply},
	{"server in the ticket", func(i *issue) { i.server.Components = []string{"HTTP", "www.b.test"} }, wire.MinorReplyModified, reason.KDCReply},
	{"end", func(i *issue) { i.end += 3600 }, wire.MinorReplyModified, reason.KDCReply},
	{"end before start", func(i *issue) { i.end = i.start - 1 }, wire.MinorExpired, reason.TicketExpired},
	{"addresses", func(i *issue) { i.addresses = []krb5.Address{{Type: 2, Data: []byte{192, 0, 2, 1}}} }, wire.MinorReplyModified, reason.KDCReply},
	{"invalid", func(i *issue) { i.flags |= wire.FlagInvalid }, wire.MinorReplyModified, reason.KDCReply},
	{"forwarded", func(i *issue) { i.flags |= wire.FlagForwarded }, wire.MinorReplyModified, reason.KDCReply},
	{"anonymous", func(i *issue) { i.flags |= wire.FlagAnonymous }, wire.MinorReplyModified, reason.KDCReply},
	{"session key's type", func(i *issue) { i.sessionDER = typed(26, make([]byte, 32)) }, wire.MinorProgEtype, reason.EnctypeNotPermitted},
	{"session key not asked for", func(i *issue) { i.sessionDER = typed(23, make([]byte, 16)) }, wire.MinorNoPermEtype, reason.EnctypeNotPermitted},
	{"session key's length", func(i *issue) { i.sessionDER = typed(18, make([]byte, 31)) }, wire.MinorProgEtype, reason.EnctypeNotPermitted},
	{"version", func(i *issue) { i.version = 4 }, wire.MinorReplyModified, reason.KDCReply},
	{"type inside", func(i *issue) { i.msgType = 14 }, wire.MinorMsgType, reason.KDCReply},
}

func TestLies(t *testing.T) {
	aes := []etype.ID{etype.AES256SHA1, etype.AES128SHA1}
	w := newWorld(t, "A.TEST")
	c, k := w.client("default_tkt_enctypes = aes256-cts aes128-cts"), w.kdcs["A.TEST"]
	user, http := principal(t, "user@A.TEST"), principal(t, "HTTP/www.a.test@A.TEST")
	s := w.login(c, "user@A.TEST")
	for _, l := range lies {
		k.mutateIssue = l.lie
		t.Run("AS/"+l.name, func(t *testing.T) {
			_, err := c.Login(t.Context(), user, w, LoginOptions{})
			wantErr(t, err, l.minor, l.reason)
		})
		t.Run("TGS/"+l.name, func(t *testing.T) {
			r, err := c.exchange(t.Context(), tgsRequest{tgt: s.creds[0], server: http, etypes: aes})
			if r != nil {
				t.Error("a reply with an error")
			}
			wantErr(t, err, l.minor, l.reason)
		})
	}
	asOnly := []struct {
		name   string
		lie    func(*issue)
		minor  uint32
		reason reason.ID
	}{
		{"type of the reply", func(i *issue) { i.encType = etype.AES256SHA384 }, wire.MinorConfigEtype, reason.EnctypeNotPermitted},
		{"key", func(i *issue) { i.key = i.session }, wire.MinorBadIntegrity, reason.PreauthFailed},
		{"usage", func(i *issue) { i.usage = wire.UsageTGSRepSession }, wire.MinorBadIntegrity, reason.PreauthFailed},
		{"TGS-REP", func(i *issue) { i.kind = wire.MsgTGSRep }, 0, reason.KDCReply},
		{"renewable", func(i *issue) { i.flags |= wire.FlagRenewable; i.renew = i.end + 1 }, wire.MinorReplyModified, reason.KDCReply},
		{"no checksum of the request", func(i *issue) { i.flags |= wire.FlagEncPARep }, wire.MinorReplyModified, reason.KDCReply},
		{"wrong checksum of the request", func(i *issue) {
			i.flags |= wire.FlagEncPARep
			i.encPadata = []paData{{wire.PAReqEncPARep, checksum(i.key, wire.UsageASReqChecksum, []byte("another"))}}
		}, wire.MinorReplyModified, reason.KDCReply},
		{"malformed checksum of the request", func(i *issue) {
			i.flags |= wire.FlagEncPARep
			i.encPadata = []paData{{wire.PAReqEncPARep, []byte{0x30, 0}}}
		}, 0, reason.KDCReply},
		{"malformed key info", func(i *issue) { i.padata = []paData{{wire.PAETypeInfo2, []byte{0x30, 1}}} }, 0, reason.KDCReply},
	}
	for _, l := range asOnly {
		k.mutateIssue = l.lie
		t.Run("AS/"+l.name, func(t *testing.T) {
			_, err := c.Login(t.Context(), user, w, LoginOptions{})
			wantErr(t, err, l.minor, l.reason)
		})
	}
	t.Run("AS/another server", func(t *testing.T) {
		k.mutateIssue = func(i *issue) { i.server = TGS("A.TEST", "A.TEST"); i.inside = i.server }
		_, err := c.Login(t.Context(), user, w, LoginOptions{Server: http})
		wantErr(t, err, wire.MinorReplyModified, reason.KDCReply)
	})
	for _, start := range []uint32{400, ^uint32(399)} {
		t.Run("TGS/start", func(t *testing.T) {
			k.mutateIssue = func(i *issue) { i.start += start }
			_, err := c.exchange(t.Context(), tgsRequest{tgt: s.creds[0], server: http, etypes: aes})
			wantErr(t, err, wire.MinorReplySkew, reason.ClockSkew)
		})
	}
	t.Run("TGS/renewable", func(t *testing.T) {
		k.mutateIssue = func(i *issue) { i.renew++ }
		_, err := c.exchange(t.Context(), tgsRequest{tgt: s.creds[0], server: http, etypes: aes, options: wire.FlagRenewable, renewTill: s.creds[0].EndTime})
		wantErr(t, err, wire.MinorReplyModified, reason.KDCReply)
	})

	k.mutateIssue = nil
	for name, change := range map[string]func([]byte) []byte{
		"garbage":            func(b []byte) []byte { return bytes.Repeat([]byte{0x42}, len(b)) },
		"empty":              func([]byte) []byte { return nil },
		"truncated":          func(b []byte) []byte { return b[:len(b)-1] },
		"trailing":           func(b []byte) []byte { return append(b, 0) },
		"indefinite":         func(b []byte) []byte { return []byte{b[0], 0x80, 0, 0} },
		"hollow":             func(b []byte) []byte { return []byte{b[0], 0} },
		"an empty error":     func([]byte) []byte { return []byte{0x7e, 0} },
		"a bit of the reply": func(b []byte) []byte { b[len(b)-20] ^= 1; return b },
	} {
		k.mutateReply = change
		t.Run(name, func(t *testing.T) {
			c := w.client()
			c.Timeout = 50 * time.Millisecond // datagrams that are no messages are waited out
			for _, err := range []error{
				func() error { _, err := c.Login(t.Context(), user, w, LoginOptions{}); return err }(),
				func() error { _, err := c.Ticket(t.Context(), s, user, http, TicketOptions{}); return err }(),
			} {
				e, ok := err.(*mech.Error)
				if !ok || e.Text == "" || !slices.Contains([]reason.ID{reason.KDCReply, reason.KDCUnreachable, reason.PreauthFailed}, e.Reason) {
					t.Errorf("%v", err)
				}
			}
		})
	}
	k.mutateReply = nil
	if _, err := c.Ticket(t.Context(), s, user, http, TicketOptions{}); err != nil {
		t.Errorf("after all the lies: %v", err)
	}
}

// TestTruth: what is unusual but right.
func TestTruth(t *testing.T) {
	w := newWorld(t, "A.TEST", "B.TEST")
	w.trust("A.TEST", "B.TEST")
	c, k := w.client(), w.kdcs["A.TEST"]
	user, http := principal(t, "user@A.TEST"), principal(t, "HTTP/www.a.test@A.TEST")

	t.Run("reply of the TGS kind", func(t *testing.T) {
		k.mutateIssue = func(i *issue) { i.partTag = 26 }
		w.login(c, "user@A.TEST")
	})
	t.Run("no start time", func(t *testing.T) {
		k.mutateIssue = func(i *issue) { i.start = 0 }
		if s := w.login(c, "user@A.TEST"); s.creds[0].StartTime != s.creds[0].AuthTime {
			t.Errorf("starts at %d, authenticated at %d", s.creds[0].StartTime, s.creds[0].AuthTime)
		}
	})
	t.Run("renewable in place of long", func(t *testing.T) {
		k.mutateIssue = func(i *issue) { i.flags |= wire.FlagRenewable; i.renew = i.end; i.end -= 3600 }
		w.login(c, "user@A.TEST")
	})
	k.mutateIssue = nil
	s := w.login(c, "user@A.TEST")
	t.Run("session key for the TGS reply", func(t *testing.T) {
		k.mutateIssue = func(i *issue) {
			i.key, i.usage = k.last().session, wire.UsageTGSRepSession
		}
		_, err := c.Ticket(t.Context(), s.copy(), user, http, TicketOptions{})
		check(t, err)
	})
	t.Run("canonical name", func(t *testing.T) {
		rename := func(i *issue) { i.client.Components = []string{"User"} }
		k.mutateIssue, k.confirms = rename, true
		defer func() { k.confirms = false }()
		cred, err := c.Login(t.Context(), user, w, LoginOptions{Options: wire.OptCanonicalize})
		check(t, err)
		checkCred(t, cred, "User@A.TEST", "krbtgt/A.TEST@A.TEST", 0)
		// It was not asked for; the KDC has not seen that it was; somebody has changed the request,
		// or the flag.
		_, err = c.Login(t.Context(), user, w, LoginOptions{})
		wantErr(t, err, wire.MinorReplyModified, reason.KDCReply, "the ticket is for the client User@A.TEST, expected user@A.TEST")
		k.confirms = false
		_, err = c.Login(t.Context(), user, w, LoginOptions{Options: wire.OptCanonicalize})
		wantErr(t, err, wire.MinorReplyModified, reason.KDCReply, "the ticket is for the client User@A.TEST, expected user@A.TEST", "does not confirm")
		k.confirms = true
		k.mutateIssue = func(i *issue) {
			rename(i)
			i.flags &^= wire.FlagEncPARep
		}
		_, err = c.Login(t.Context(), user, w, LoginOptions{Options: wire.OptCanonicalize})
		wantErr(t, err, wire.MinorReplyModified, reason.KDCReply, "does not confirm")
		k.mutateIssue = func(i *issue) {
			rename(i)
			i.encPadata = []paData{{wire.PAReqEncPARep, checksum(i.key, wire.UsageASReqChecksum, []byte("another request"))}}
		}
		_, err = c.Login(t.Context(), user, w, LoginOptions{Options: wire.OptCanonicalize})
		wantErr(t, err, wire.MinorReplyModified, reason.KDCReply, "the request was changed")
	})
	t.Run("canonical realm", func(t *testing.T) {
		// The realm in small letters is the same realm to Active Directory, and its clock is one.
		w := newWorld(t, "A.TEST")
		k := w.kdcs["A.TEST"]
		k.confirms, k.alias = true, map[string]string{"web1$@a.test": "WEB1$@A.TEST"}
		w.now = func() time.Time { return time.Now().Add(time.Hour) }
		w.add("web1$@a.test", 18)
		w.add("krbtgt/a.test@a.test", 18)
		c := w.client()
		c.Conf = config(t, "[libdefaults]\n canonicalize = true\n dns_lookup_kdc = false\n[realms]\n A.TEST = {\n  kdc = a.test\n }\n a.test = {\n  kdc = a.test\n }\n")
		s := w.login(c, "web1$@a.test")
		if got := s.creds[0]; got.Client.String() != "WEB1$@A.TEST" || got.Server.String() != "krbtgt/A.TEST@A.TEST" {
			t.Errorf("got %v", got)
		}
		_, err := c.Ticket(t.Context(), s, s.creds[0].Client, http, TicketOptions{})
		check(t, err)
		if offset := c.Offset("A.TEST"); offset < 50*time.Minute {
			t.Errorf("the clock of the realm is %v ahead", offset)
		}
		// Nothing protects the client's realm in a reply: it does not tell whose clock that is.
		k.mutateIssue = func(i *issue) { i.client.Realm = "ELSEWHERE.TEST" }
		_, err = c.Login(t.Context(), principal(t, "web1$@a.test"), w, LoginOptions{})
		check(t, err)
		if offset := c.Offset("ELSEWHERE.TEST"); offset != 0 {
			t.Errorf("the clock of another realm is %v ahead", offset)
		}
	})
	t.Run("ok-as-delegate", func(t *testing.T) {
		for _, kdc := range w.kdcs {
			kdc.mutateIssue = func(i *issue) {
				if !isTGS(i.server) {
					i.flags |= wire.FlagOKAsDelegate
				}
			}
		}
		for realm, want := range map[string]uint32{"A.TEST": wire.FlagOKAsDelegate, "B.TEST": 0} {
			name := map[string]string{"A.TEST": "www.a.test", "B.TEST": "www.b.test"}[realm]
			cred, err := c.Ticket(t.Context(), s.copy(), user, principal(t, "HTTP/"+name+"@"+realm), TicketOptions{})
			check(t, err)
			if cred.Flags&wire.FlagOKAsDelegate != want {
				t.Errorf("%v has flags %#x", cred, cred.Flags)
			}
		}
	})
	t.Run("no enctype", func(t *testing.T) {
		_, err := c.Ticket(t.Context(), s, user, http, TicketOptions{Enctypes: []etype.ID{etype.DES3}})
		wantErr(t, err, wire.MinorConfigEtype, reason.EnctypeNotPermitted)
	})
}

func TestRefusals(t *testing.T) {
	w := newWorld(t, "A.TEST")
	c, k := w.client(), w.kdcs["A.TEST"]
	user, http := principal(t, "user@A.TEST"), principal(t, "HTTP/www.a.test@A.TEST")
	s := w.login(c, "user@A.TEST")
	for _, r := range []struct {
		code   int32
		text   string
		minor  uint32
		reason reason.ID
		words  string
	}{
		{errorcode.KDC_ERR_C_PRINCIPAL_UNKNOWN, "CLIENT_NOT_FOUND", 6, reason.ClientUnknown, "Client 'user@A.TEST' not found in Kerberos database"},
		{errorcode.KDC_ERR_S_PRINCIPAL_UNKNOWN, "", 7, reason.ServerUnknown, "not found in Kerberos database"},
		{errorcode.KDC_ERR_POLICY, "NOT_ALLOWED", 12, reason.KDCRefused, "KDC policy rejects request: the KDC of realm 'A.TEST' says NOT_ALLOWED"},
		{errorcode.KDC_ERR_ETYPE_NOSUPP, "", 14, reason.EnctypeNotPermitted, "KDC has no support for encryption type"},
		{errorcode.KDC_ERR_CLIENT_REVOKED, "", 18, reason.ClientRevoked, "Client's credentials have been revoked"},
		{errorcode.KDC_ERR_KEY_EXPIRED, "", 23, reason.ClientRevoked, "Password has expired"},
		{errorcode.KDC_ERR_PREAUTH_FAILED, "", 24, reason.PreauthFailed, "Preauthentication failed"},
		{errorcode.KRB_AP_ERR_TKT_EXPIRED, "", 32, reason.TicketExpired, "Ticket expired"},
		{errorcode.KRB_ERR_GENERIC, "out of cheese\x00\n\x1b[31m", 60, reason.KDCRefused, "KDC returned error string: out of cheese??"},
		{errorcode.KRB_ERR_GENERIC, "", 60, reason.KDCRefused, "Generic error"},
		{4711, "", 60, reason.KDCRefused, "4711"},
		{-1, "", 60, reason.KDCRefused, "-1"},
		{0, "", 60, reason.KDCRefused, "0"},
	} {
		k.mutateReply = func([]byte) []byte {
			return errorMessage(refusal{code: r.code, text: r.text}, k.realm, k.last().server, unix(time.Now()))
		}
		c := w.client() // one that remembers no refusal
		_, err := c.Login(t.Context(), user, w, LoginOptions{})
		wantErr(t, err, mech.MinorKRB5+r.minor, r.reason, r.words)
		_, err = c.Ticket(t.Context(), s, user, http, TicketOptions{})
		wantErr(t, err, mech.MinorKRB5+r.minor, r.reason, r.words)
	}
}

// TestRefusalDetails: a refusal says for whom, which target and with which keys it was, and what
// Active Directory says in an NTSTATUS beside Kerberos's code.
func TestRefusalDetails(t *testing.T) {
	w := newWorld(t, "A.TEST")
	k := w.kdcs["A.TEST"]
	user, http := principal(t, "user@A.TEST"), principal(t, "HTTP/www.a.test@A.TEST")
	s := w.login(w.client(), "user@A.TEST")
	key := w.keys["user@A.TEST"]
	ring := Keytab(keytab.Compile("FILE:/k", []keytab.Entry{
		{Principal: "user@A.TEST", KVNO: 6, Enctype: key.Enctype(), Key: key.Secret()},
		{Principal: "user@A.TEST", KVNO: 7, Enctype: key.Enctype(), Key: key.Secret()},
		{Principal: "other@A.TEST", KVNO: 8, Enctype: key.Enctype(), Key: key.Secret()},
	}))
	// What Windows sends, and Samba: [MS-KILE] section 2.2.2, and a list of one.
	extended := func(status uint32) []byte {
		b := binary.LittleEndian.AppendUint32(nil, status)
		return append(b, 0, 0, 0, 0, 1, 0, 0, 0)
	}
	windows := func(status uint32) []byte {
		return sequence(field(1, integer(errDataExtended)), field(2, octets(extended(status))))
	}
	samba := func(status uint32) []byte { return paDataList([]paData{{errDataExtended, extended(status)}}) }
	const keys = "key of FILE:/k, kvno 7"
	for _, r := range []struct {
		code   int32
		data   []byte
		login  string // the whole text of a login
		ticket string // and of a request for a ticket; not tried if empty
		reason reason.ID
	}{
		{errorcode.KDC_ERR_C_PRINCIPAL_UNKNOWN, nil, "Client 'user@A.TEST' not found in Kerberos database (" + keys + ")", "", reason.ClientUnknown},
		{errorcode.KDC_ERR_S_PRINCIPAL_UNKNOWN, nil, "Server krbtgt/A.TEST@A.TEST not found in Kerberos database (client user@A.TEST, " + keys + ")",
			"Server HTTP/www.a.test@A.TEST not found in Kerberos database (client user@A.TEST)", reason.ServerUnknown},
		{errorcode.KDC_ERR_PREAUTH_FAILED, nil, "Preauthentication failed: says the KDC of realm 'A.TEST' (client user@A.TEST, target krbtgt/A.TEST@A.TEST, " + keys + ")", "", reason.PreauthFailed},
		{errorcode.KDC_ERR_BADOPTION, nil, "KDC can't fulfill requested option: says the KDC of realm 'A.TEST' (client user@A.TEST, target krbtgt/A.TEST@A.TEST, " + keys + ")",
			"KDC can't fulfill requested option: says the KDC of realm 'A.TEST' (client user@A.TEST, target HTTP/www.a.test@A.TEST)", reason.KDCRefused},
		{errorcode.KDC_ERR_ETYPE_NOSUPP, nil, "KDC has no support for encryption type: says the KDC of realm 'A.TEST' (client user@A.TEST, target krbtgt/A.TEST@A.TEST, asked for aes256-cts-hmac-sha1-96, " + keys + ")",
			"KDC has no support for encryption type: says the KDC of realm 'A.TEST' (client user@A.TEST, target HTTP/www.a.test@A.TEST, asked for aes256-cts-hmac-sha1-96)", reason.EnctypeNotPermitted},
		{errorcode.KDC_ERR_CLIENT_REVOKED, windows(0xc0000072), "Client's credentials have been revoked: says the KDC of realm 'A.TEST'; the account is disabled (NTSTATUS 0xc0000072) (client user@A.TEST, target krbtgt/A.TEST@A.TEST, " + keys + ")", "", reason.ClientRevoked},
		{errorcode.KDC_ERR_CLIENT_REVOKED, samba(0xc0000234), "Client's credentials have been revoked: says the KDC of realm 'A.TEST'; the account is locked out (NTSTATUS 0xc0000234) (client user@A.TEST, target krbtgt/A.TEST@A.TEST, " + keys + ")", "", reason.ClientRevoked},
		{errorcode.KDC_ERR_KEY_EXPIRED, samba(0xc0000224), "Password has expired: says the KDC of realm 'A.TEST'; the account's password must be changed first (NTSTATUS 0xc0000224) (client user@A.TEST, target krbtgt/A.TEST@A.TEST, " + keys + ")", "", reason.ClientRevoked},
		{errorcode.KDC_ERR_POLICY, windows(0xc0001234), "KDC policy rejects request: says the KDC of realm 'A.TEST'; NTSTATUS 0xc0001234 (client user@A.TEST, target krbtgt/A.TEST@A.TEST, " + keys + ")", "", reason.KDCRefused},
		// A salt, and what is none of this.
		{errorcode.KDC_ERR_POLICY, paDataList([]paData{{errDataExtended, []byte("A.TESTuserxy")}}), "KDC policy rejects request: says the KDC of realm 'A.TEST' (client user@A.TEST, target krbtgt/A.TEST@A.TEST, " + keys + ")", "", reason.KDCRefused},
		{errorcode.KDC_ERR_POLICY, windows(0x00000000), "KDC policy rejects request: says the KDC of realm 'A.TEST' (client user@A.TEST, target krbtgt/A.TEST@A.TEST, " + keys + ")", "", reason.KDCRefused},
		{errorcode.KDC_ERR_POLICY, []byte{0x30, 0x80, 1}, "KDC policy rejects request: says the KDC of realm 'A.TEST' (client user@A.TEST, target krbtgt/A.TEST@A.TEST, " + keys + ")", "", reason.KDCRefused},
	} {
		k.mutateReply = func([]byte) []byte {
			return errorMessage(refusal{code: r.code, data: r.data}, k.realm, k.last().server, unix(time.Now()))
		}
		c, aes := w.client("default_tkt_enctypes = aes256-cts"), []etype.ID{etype.AES256SHA1}
		_, err := c.Login(t.Context(), user, ring, LoginOptions{})
		wantErr(t, err, mech.MinorKRB5+uint32(r.code), r.reason)
		if got := err.(*mech.Error).Text; got != r.login {
			t.Errorf("login: %q\nwant %q", got, r.login)
		}
		if r.ticket == "" {
			continue
		}
		_, err = c.Ticket(t.Context(), s, user, http, TicketOptions{Enctypes: aes})
		wantErr(t, err, mech.MinorKRB5+uint32(r.code), r.reason)
		if got := err.(*mech.Error).Text; got != r.ticket {
			t.Errorf("ticket: %q\nwant %q", got, r.ticket)
		}
	}
	_, err := w.client("default_tkt_enctypes = aes128-sha2").Login(t.Context(), user, ring, LoginOptions{})
	wantErr(t, err, wire.MinorNotInKeytab, reason.NoKey, "Keytab contains no suitable keys for user@A.TEST ("+keys+", asked for aes128-cts-hmac-sha256-128)")
}

func TestPreauth(t *testing.T) {
	w := newWorld(t, "A.TEST")
	c, k := w.client(), w.kdcs["A.TEST"]
	k.preauth = true
	user := principal(t, "user@A.TEST")
	w.login(c, "user@A.TEST")
	if len(k.asked) != 2 || len(k.asked[1].padata) != 3 || k.asked[1].padata[0].kind != wire.PAEncTimestamp || k.asked[1].padata[1].kind != wire.PAFXCookie ||
		string(k.asked[1].padata[1].value) != "MIT" || k.asked[0].nonce == k.asked[1].nonce {
		t.Errorf("requests %v", k.asked)
	}
	offer := func(list ...paData) {
		k.mutateReply = func(b []byte) []byte {
			return errorMessage(refusal{code: errorcode.KDC_ERR_PREAUTH_REQUIRED, data: paDataList(list)}, k.realm, k.last().server, unix(time.Now()))
		}
	}
	info := func(id etype.ID) paData {
		return paData{wire.PAETypeInfo2, sequence(sequence(field(0, integer(int64(id)))))}
	}
	for _, o := range []struct {
		name   string
		list   []paData
		minor  uint32
		reason reason.ID
		words  string
	}{
		{"only PKINIT", []paData{info(18), {16, nil}, {17, nil}}, wire.MinorNoPreauth, reason.PreauthFailed, "offers the types 16, 17"},
		{"only a challenge", []paData{info(18), {138, nil}}, wire.MinorNoPreauth, reason.PreauthFailed, "138"},
		{"nothing", nil, wire.MinorNoPreauth, reason.PreauthFailed, "Generic preauthentication failure"},
		{"another type", []paData{info(17), {wire.PAEncTimestamp, nil}}, wire.MinorNotInKeytab, reason.NoKey, "Keytab contains no suitable keys"},
		{"empty key info", []paData{{wire.PAETypeInfo2, sequence()}, {wire.PAEncTimestamp, nil}}, wire.MinorNotInKeytab, reason.NoKey, ""},
		{"malformed key info", []paData{{wire.PAETypeInfo2, []byte{0x30, 3, 1, 1}}, {wire.PAEncTimestamp, nil}}, 0, reason.KDCReply, "PA-ETYPE-INFO2"},
		{"never satisfied", []paData{info(18), {wire.PAEncTimestamp, nil}}, wire.MinorLoop, reason.KDCReply, "Looping detected"},
	} {
		t.Run(o.name, func(t *testing.T) {
			offer(o.list...)
			_, err := c.Login(t.Context(), user, w, LoginOptions{})
			wantErr(t, err, o.minor, o.reason, o.words)
		})
	}
	t.Run("e-data that is none", func(t *testing.T) {
		k.mutateReply = func([]byte) []byte {
			return errorMessage(refusal{code: errorcode.KDC_ERR_PREAUTH_REQUIRED, data: []byte("nonsense")}, k.realm, k.last().server, unix(time.Now()))
		}
		_, err := c.Login(t.Context(), user, w, LoginOptions{})
		wantErr(t, err, wire.MinorNoPreauth, reason.PreauthFailed)
	})
	t.Run("as many iterations as fit", func(t *testing.T) {
		offer(paData{wire.PAETypeInfo2, sequence(sequence(field(0, integer(18)), field(1, text("salt")), field(2, octets([]byte{0xff, 0xff, 0xff, 0xff}))))}, paData{wire.PAEncTimestamp, nil})
		_, err := c.Login(t.Context(), user, Password(etype.Secret("x")), LoginOptions{}) // 2^32 of them would take an hour
		wantErr(t, err, wire.MinorNotInKeytab, reason.NoKey)
	})
	k.mutateReply = nil
	t.Run("disabled", func(t *testing.T) {
		c := w.client()
		c.Conf = config(t, "[realms]\n A.TEST = {\n  kdc = a.test\n  disable_encrypted_timestamp = true\n }\n")
		_, err := c.Login(t.Context(), user, w, LoginOptions{})
		wantErr(t, err, wire.MinorNoPreauth, reason.PreauthFailed)
	})
}

func TestClientReferral(t *testing.T) {
	w := newWorld(t, "A.TEST", "B.TEST", "C.TEST")
	c := w.client()
	w.add("roamer@C.TEST", 18)
	w.kdcs["A.TEST"].referUser["roamer"] = "B.TEST"
	w.kdcs["B.TEST"].referUser["roamer"] = "C.TEST"
	w.keys["roamer@A.TEST"] = nil
	w.kdcs["C.TEST"].confirms = true
	anyKey := Password(etype.Secret("x"))
	roamer := principal(t, "roamer@A.TEST")
	_, err := c.Login(t.Context(), roamer, anyKey, LoginOptions{})
	wantErr(t, err, wire.MinorWrongRealm, reason.KDCRefused)
	_, err = c.Login(t.Context(), roamer, anyKey, LoginOptions{Options: wire.OptCanonicalize})
	wantErr(t, err, wire.MinorBadIntegrity, reason.PreauthFailed, "roamer@C.TEST") // it got there, with the wrong password
	source := &movedKeys{w}
	cred, err := c.Login(t.Context(), roamer, source, LoginOptions{Options: wire.OptCanonicalize})
	check(t, err)
	checkCred(t, cred, "roamer@C.TEST", "krbtgt/C.TEST@C.TEST", 0)
	w.kdcs["C.TEST"].referUser["lost"] = "A.TEST"
	w.kdcs["A.TEST"].referUser["lost"] = "C.TEST"
	_, err = c.Login(t.Context(), principal(t, "lost@A.TEST"), anyKey, LoginOptions{Options: wire.OptCanonicalize})
	wantErr(t, err, wire.MinorLoop, reason.KDCReply, "referral loop between realms")
	realm, fault := c.identifyRealm(t.Context(), roamer)
	if fault != nil || realm != "C.TEST" {
		t.Errorf("realm %q, %v", realm, fault)
	}
}

// TestReferredToNamesake: nothing protects an error by which a KDC refers a client to another
// realm. It makes nobody the one of the same name in another realm, also where the keytab has that
// one's keys, too.
func TestReferredToNamesake(t *testing.T) {
	w := newWorld(t, "A.TEST", "B.TEST")
	w.kdcs["A.TEST"].referUser["web"] = "B.TEST"
	w.kdcs["B.TEST"].confirms = true
	w.keys["web@A.TEST"] = nil
	ours, err := etype.GenerateKey(18)
	check(t, err)
	ring := Keytab(keytab.Compile("FILE:/k", []keytab.Entry{
		{Principal: "web@A.TEST", KVNO: 1, Enctype: 18, Key: ours.Secret()},
		{Principal: "web@B.TEST", KVNO: 1, Enctype: 18, Key: w.add("web@B.TEST", 18).Secret()},
	}))
	cred, err := w.client().Login(t.Context(), principal(t, "web@A.TEST"), ring, LoginOptions{Options: wire.OptCanonicalize})
	if err == nil {
		t.Fatalf("web@A.TEST has become %v", cred.Client)
	}
	wantErr(t, err, wire.MinorBadIntegrity, reason.PreauthFailed, "web@B.TEST")
}

// movedKeys has keys of every realm for who is in C.
type movedKeys struct{ *world }

func (m *movedKeys) Enctypes(client krb5.Principal, among []etype.ID) []etype.ID {
	client.Realm = "C.TEST"
	return m.world.Enctypes(client, among)
}

func (m *movedKeys) Key(client krb5.Principal, h KeyHint) *etype.Key {
	client.Realm = "C.TEST"
	return m.world.Key(client, h)
}

// TestRequestedEnctypes: the AS is asked for what default_tkt_enctypes has and the TGS for what
// default_tgs_enctypes has, in that order; without anything left neither is asked.
func TestRequestedEnctypes(t *testing.T) {
	w := newWorld(t, "A.TEST")
	lists := func(tkt, tgs string) *Client {
		c := w.client()
		c.Conf = config(t, "[libdefaults]\n dns_lookup_kdc = false\n permitted_enctypes = aes256-cts aes128-cts aes256-sha2\n default_tkt_enctypes = "+tkt+
			"\n default_tgs_enctypes = "+tgs+"\n[realms]\n A.TEST = {\n  kdc = a.test\n }\n")
		return c
	}
	asked := func(want ...etype.ID) {
		t.Helper()
		if got := w.kdcs["A.TEST"].last().etypes; !slices.Equal(got, want) {
			t.Errorf("asked for %v, want %v", got, want)
		}
	}
	http := principal(t, "HTTP/www.a.test@A.TEST")

	c := lists("aes256-cts aes128-cts aes128-sha2", "aes256-sha2 aes256-cts")
	s := w.login(c, "user@A.TEST")
	asked(18, 17)
	cred, err := c.Ticket(t.Context(), s, s.creds[0].Client, http, TicketOptions{})
	check(t, err)
	asked(20, 18)
	if cred.KeyType != 20 {
		t.Errorf("a session key of type %v", cred.KeyType)
	}
	_, err = c.Ticket(t.Context(), s, s.creds[0].Client, http, TicketOptions{Enctypes: []etype.ID{17, 23}})
	check(t, err)
	asked(17) // what a caller wants beats the list

	_, err = lists("rc4-hmac", "aes").Login(t.Context(), s.creds[0].Client, w, LoginOptions{})
	wantErr(t, err, wire.MinorConfigEtype, reason.EnctypeNotPermitted, "default_tkt_enctypes")
	_, err = lists("aes", "rc4-hmac").Ticket(t.Context(), &store{s.creds[:1]}, s.creds[0].Client, http, TicketOptions{})
	wantErr(t, err, wire.MinorConfigEtype, reason.EnctypeNotPermitted, "default_tgs_enctypes")
}
