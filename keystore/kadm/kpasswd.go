package kadm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/kdc"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// Kpasswd asks a password change server, over TCP, or over UDP where nobody answers there, as
// Heimdal's kpasswdd: of the realm's kpasswd_server lines in krb5.conf,
// or else of its admin_server and kdc lines, or of DNS, the first that can be reached.
//
// A request is, over TCP behind four octets of length as KDCs have them (RFC 3244 section 2; all
// numbers are big endian):
//
//	uint16  length of the message
//	uint16  version: 1
//	uint16  length of the AP-REQ
//	        AP-REQ, with a subkey and a sequence number
//	        KRB-PRIV of the new password, in the subkey
//
// The reply has an AP-REP in the place of the AP-REQ, and in the KRB-PRIV a result code of two octets
// and a text. It may have no AP-REP, and a KRB-ERROR behind it: that proves nothing.
//
// Version 0xff80 names whose password it is. Active Directory refuses it to who may change only his
// own.
type Kpasswd struct {
	Client *kdc.Client // finds the server, and gets the ticket for kadmin/changepw
}

const (
	kpasswdVersion = 1
	kpasswdHeader  = 6 // octets before the AP-REQ or AP-REP
	lengthSize     = 4 // octets of length in front, over TCP
)

// Change implements [KDC]. The KDC chooses the types of keys. MIT krb5 discards the old ones;
// Active Directory goes on to take the last one for tickets that are out.
func (k *Kpasswd) Change(ctx context.Context, self Self, password etype.Secret, _ []etype.ID) error {
	if err := checkPassword(password); err != nil {
		return err
	}
	cred, err := k.Client.Login(ctx, self.Principal, self.Keys, kdc.LoginOptions{Server: service("changepw")})
	if err != nil {
		return err
	}
	defer cred.Destroy()
	conn, done, err := k.Client.Connect(ctx, self.Principal.Realm, kdc.KpasswdService)
	if err != nil {
		return err
	}
	defer done()
	at := conn.RemoteAddr().String()
	x, err := newExchange(cred, now(k.Client, self.Principal.Realm)())
	if err != nil {
		return mech.Errorf(mech.Failure, 0, reason.Internal, ": %s", err)
	}
	defer x.destroy()
	request, err := x.request(cred, password, address(conn))
	if err != nil {
		return mech.Errorf(mech.Failure, 0, reason.Internal, ": %s", err)
	}
	udp := conn.RemoteAddr().Network() == "udp"
	if udp {
		request = request[lengthSize:]
	}
	if n, err := conn.Write(request); n < len(request) {
		return mech.Errorf(mech.Failure, 0, reason.AdminServerUnreachable, "the password server at %s cannot be asked about %s: %s", at, self.Principal.Shown(), wire.Shown(err.Error()))
	}
	var res result
	if udp {
		res, err = x.datagram(conn)
	} else {
		res, err = x.reply(conn)
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED): // of UDP: nobody has read it
		return mech.Errorf(mech.Failure, 0, reason.AdminServerUnreachable, "no password server answers at %s, over TCP or UDP, about %s", at, self.Principal.Shown())
	case err != nil:
		return mech.Errorf(mech.Failure, 0, reason.KeyChangeUnknown, "the request for %s went to the password server at %s, and may have been executed: %s%s", self.Principal.Shown(), at, wire.Shown(err.Error()), over(ctx))
	case res.code == 0:
		return nil
	}
	id := reason.KeyChangeRefused
	switch {
	case res.code == hardError:
		id = reason.KeyChangeUnknown
	case res.code == softError && res.age > 0:
		id = reason.KeyChangeTooSoon // a password that is new, long, and of four classes
	}
	return mech.Errorf(mech.Failure, uint32(res.code), id, "the password server at %s answers for %s with %v", at, self.Principal.Shown(), res)
}

// over says so if the caller's time is.
func over(ctx context.Context) string {
	if err := ctx.Err(); err != nil {
		return " (" + err.Error() + ")"
	}
	return ""
}

// Purge implements [KDC]: there is no such request. The error is errors.ErrUnsupported.
func (k *Kpasswd) Purge(context.Context, Self, uint32) error {
	return fmt.Errorf("kpasswd has no request to purge keys: %w", errors.ErrUnsupported)
}

// Record implements [KDC]: the version of the key and its type are those of a ticket for the
// principal, the salt is what the KDC asks for at the login. Nothing else is told. The salt has the
// name that an account had when its password was changed last: of one that was renamed since it is
// not that of the next password.
func (k *Kpasswd) Record(ctx context.Context, self Self) (Record, error) {
	p := Prober{Client: k.Client, Principal: self.Principal}
	defer p.Close()
	keys := &asked{KeySource: self.Keys}
	if err := p.Login(ctx, keys); err != nil {
		return Record{}, err
	}
	t, err := p.ticket(ctx)
	if err != nil {
		return Record{}, err
	}
	r := Record{Salt: kdc.Salt(self.Principal), KVNO: t.Enc.KVNO, Ticket: t.Enc.Etype}
	if keys.hint.Salt != nil {
		r.Salt = *keys.hint.Salt
	}
	if rfc3962(keys.hint.Enctype) {
		r.Params = keys.hint.Params
	}
	return r, nil
}

// asked gives the keys of a source, and knows which one the KDC has asked for last.
type asked struct {
	kdc.KeySource
	hint kdc.KeyHint
}

// Key implements [kdc.KeySource].
func (a *asked) Key(client krb5.Principal, h kdc.KeyHint) *etype.Key {
	a.hint = h
	return a.KeySource.Key(client, h)
}

// exchange is one request and its reply.
type exchange struct {
	etype.Redacted
	session, subkey *etype.Key
	ctime           uint32
	cusec           int32
	seq             uint32
}

func newExchange(cred *krb5.Credential, now time.Time) (*exchange, error) {
	session, err := etype.NewKey(cred.KeyType, cred.Key)
	if err != nil {
		return nil, err
	}
	subkey, err := etype.GenerateKey(cred.KeyType)
	if err != nil {
		session.Destroy()
		return nil, err
	}
	return &exchange{session: session, subkey: subkey, ctime: uint32(now.Unix()), cusec: int32(now.Nanosecond() / 1000), seq: rand.Uint32N(1<<30-1) + 1}, nil
}

func (x *exchange) destroy() {
	x.session.Destroy()
	x.subkey.Destroy()
}

// request makes the request, with the length in front.
func (x *exchange) request(cred *krb5.Credential, password etype.Secret, sender wire.HostAddress) ([]byte, error) {
	made := wire.NewAuthenticator{Client: &cred.Client, Ctime: x.ctime, Cusec: x.cusec, Subkey: x.subkey, Seq: x.seq}
	auth := made.Append(nil)
	defer clear(auth)
	apReq, err := wire.AppendAPReq(nil, wire.APMutualRequired, cred.Ticket, x.session, wire.UsageAPReq, auth)
	if err != nil {
		return nil, err
	}
	part := wire.EncPriv{Data: password, Seq: x.seq, Sender: sender}
	plain := part.Append(make([]byte, 0, len(password)+128)) // of which no copy is left behind
	defer clear(plain)
	priv, err := wire.AppendPriv(nil, x.subkey, plain)
	if err != nil {
		return nil, err
	}
	n := kpasswdHeader + len(apReq) + len(priv)
	if n > 1<<16-1 {
		return nil, fmt.Errorf("a request of %d octets, at most 65535 are possible", n)
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(n))
	b = binary.BigEndian.AppendUint16(b, uint16(n))
	b = binary.BigEndian.AppendUint16(b, kpasswdVersion)
	b = binary.BigEndian.AppendUint16(b, uint16(len(apReq)))
	return append(append(b, apReq...), priv...), nil
}

// reply reads and verifies the reply. An error says that there is none that proves itself.
func (x *exchange) reply(r io.Reader) (res result, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return res, fmt.Errorf("no answer: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > 1<<16-1 {
		return res, fmt.Errorf("an answer of %d octets is announced, at most 65535 are possible", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return res, fmt.Errorf("the answer is not complete: %w", err)
	}
	return x.open(b)
}

// datagram is reply over UDP. A request that was lost is not sent again.
func (x *exchange) datagram(r io.Reader) (res result, err error) {
	b := make([]byte, 1<<16)
	n, err := r.Read(b)
	if err != nil {
		return res, fmt.Errorf("no answer: %w", err)
	}
	return x.open(b[:n])
}

// open verifies the message b.
func (x *exchange) open(b []byte) (res result, err error) {
	if wire.IsKRBError(b) {
		return res, krbError(b)
	}
	if len(b) < kpasswdHeader || int(binary.BigEndian.Uint16(b)) != len(b) {
		return res, errors.New("the answer is no message of the protocol")
	}
	n := int(binary.BigEndian.Uint16(b[4:]))
	b = b[kpasswdHeader:]
	switch {
	case n > len(b):
		return res, errors.New("the answer is shorter than its AP-REP")
	case n == 0:
		return res, krbError(b)
	}
	var rep wire.APRep
	if err := rep.Parse(b[:n]); err != nil {
		return res, fmt.Errorf("AP-REP: %w", err)
	}
	plain, err := open(x.session, &rep.Enc, wire.UsageAPRep)
	if err != nil {
		return res, fmt.Errorf("AP-REP: %w", err)
	}
	defer clear(plain)
	var part wire.EncAPRep
	if err := part.Parse(plain); err != nil {
		return res, fmt.Errorf("AP-REP: %w", err)
	}
	if part.Ctime != x.ctime || part.Cusec != x.cusec {
		return res, errors.New("the AP-REP answers another request")
	}
	var priv wire.Priv
	if err := priv.Parse(b[n:]); err != nil {
		return res, fmt.Errorf("KRB-PRIV: %w", err)
	}
	said, err := open(x.subkey, &priv.Enc, wire.UsageKRBPriv)
	if err != nil {
		return res, fmt.Errorf("KRB-PRIV: %w", err)
	}
	defer clear(said)
	var result wire.EncPriv
	if err := result.Parse(said); err != nil {
		return res, fmt.Errorf("KRB-PRIV: %w", err)
	}
	// Our own message has the same key. It has another number.
	if !result.HasSeq || result.Seq != part.Seq || part.Seq == x.seq {
		return res, errors.New("the KRB-PRIV does not have the number of the AP-REP")
	}
	return parseResult(result.Data)
}

// open decrypts what is encrypted in k.
func open(k *etype.Key, e *wire.Encrypted, usage uint32) ([]byte, error) {
	if e.Etype != k.Enctype() {
		return nil, fmt.Errorf("encrypted with %v, expected %v", e.Etype, k.Enctype())
	}
	return k.Decrypt(nil, usage, e.Cipher)
}

// krbError is the error of a KRB-ERROR.
func krbError(b []byte) error {
	var k wire.KRBError
	if err := k.Parse(b); err != nil {
		return fmt.Errorf("KRB-ERROR: %w", err)
	}
	text := string(k.Text)
	if res, err := parseResult(k.Data); err == nil {
		text = res.String()
	}
	return fmt.Errorf("an error that proves nothing: %s: %s", mech.MinorText(k.Minor()), wire.Shown(text))
}

// result is how it went, in words too.
type result struct {
	code resultCode
	text string
	age  time.Duration // that a password has to have, by the policy that the server tells
}

func (r result) String() string { return fmt.Sprintf("%d (%s): %s", r.code, r.code, r.text) }

// resultCode is how it went (RFC 3244 section 2).
type resultCode uint16

const (
	hardError resultCode = 2 // somewhere in the processing
	softError resultCode = 4 // the new password is refused
)

func (c resultCode) String() string {
	words := [...]string{"done", "malformed", "error", "not authenticated", "refused", "not permitted", "unknown version", "not a ticket from the AS"}
	if int(c) < len(words) {
		return words[c]
	}
	return "unknown code"
}

// parseResult reads a result code and its text, which for Active Directory is the domain's policy.
func parseResult(b []byte) (res result, err error) {
	if len(b) < 2 {
		return res, errors.New("there is no result code")
	}
	res.code, b = resultCode(binary.BigEndian.Uint16(b)), b[2:]
	if len(b) == policySize && b[0] == 0 && b[1] == 0 {
		res.policy(b)
	} else {
		res.text = wire.Shown(strings.Join(strings.Fields(string(b)), " "))
	}
	return res, nil
}

// policySize is what Active Directory sends in the place of a text: two octets of zero, then what
// DOMAIN_PASSWORD_INFORMATION has (MS-SAMR section 2.2.3.5), big endian: minimum length and history
// in passwords, properties, of four octets each, maximum and minimum age in 100 ns, of eight.
const policySize = 30

func (r *result) policy(b []byte) {
	length, history := binary.BigEndian.Uint32(b[2:]), binary.BigEndian.Uint32(b[6:])
	r.age = time.Duration(min(binary.BigEndian.Uint64(b[22:]), 1<<50)) * 100
	r.text = fmt.Sprintf("the domain's policy is a minimum length of %d, a minimum age of %v, and that none of the last %d comes back", length, r.age, history)
}

// address is that of our end.
func address(conn net.Conn) wire.HostAddress {
	a, err := netip.ParseAddrPort(conn.LocalAddr().String())
	if err != nil {
		a = netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	}
	kind := wire.AddrINET6
	if a.Addr().Unmap().Is4() {
		kind = wire.AddrINET
	}
	return wire.HostAddress{Type: kind, Data: a.Addr().Unmap().AsSlice()}
}
