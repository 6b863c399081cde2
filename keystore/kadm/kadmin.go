package kadm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/kdc"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc"
	"gssproxyd/rpc/gss"
	"gssproxyd/xdr"
)

// Kadmin asks MIT krb5's kadmind: of the realm's admin_server lines in krb5.conf, or of DNS, the
// first that can be reached.
type Kadmin struct {
	Client *kdc.Client // finds the server, and gets the ticket for kadmin/admin
}

var kadmind = rpc.Program{Number: xdr.Kadm5Program, Version: xdr.Kadm5Version, Last: uint32(xdr.Kadm5ProcPurgekeys), Name: func(proc uint32) string { return xdr.Kadm5Proc(proc).String() }}

// Change implements [KDC]. Old keys are kept, the new ones have normal salts.
func (k *Kadmin) Change(ctx context.Context, self Self, password etype.Secret, enctypes []etype.ID) error {
	if err := checkPassword(password); err != nil {
		return err
	}
	if len(enctypes) == 0 { // else kadmind takes its supported_enctypes, with any salts
		return mech.Errorf(mech.Failure, 0, reason.Internal, "no types of keys are named")
	}
	arg := xdr.Kadm5ChangePassword{API: xdr.Kadm5API, Principal: cString(self.Principal.String()), KeepOld: true, Password: cString(password)}
	defer clear(arg.Password)
	for _, id := range enctypes {
		arg.Keys = append(arg.Keys, xdr.Kadm5KeySalt{Enctype: int32(id)})
	}
	return k.do(ctx, self, func(s *session) *mech.Error {
		err := s.execute(xdr.Kadm5ProcChpassPrincipal3, &arg)
		if err == nil || err.Minor != uint32(xdr.Kadm5AuthChangepw) {
			return err
		}
		// That is also what it answers where keys are locked down.
		if r, no := s.record(); no == nil && r.LockedDown {
			return s.refused(xdr.Kadm5ProcChpassPrincipal3, xdr.Kadm5ProtectKeys)
		}
		return err
	})
}

// Purge implements [KDC].
func (k *Kadmin) Purge(ctx context.Context, self Self, from uint32) error {
	arg := xdr.Kadm5PurgeKeys{API: xdr.Kadm5API, Principal: cString(self.Principal.String()), KeepKVNO: int32(from)}
	return k.do(ctx, self, func(s *session) *mech.Error {
		return s.execute(xdr.Kadm5ProcPurgekeys, &arg)
	})
}

// Record implements [KDC]. Versions of keys are told modulo 65,536.
func (k *Kadmin) Record(ctx context.Context, self Self) (r Record, err error) {
	err = k.do(ctx, self, func(s *session) (err *mech.Error) {
		r, err = s.record()
		return err
	})
	return r, err
}

// record reads the entry.
func (s *session) record() (Record, *mech.Error) {
	arg := xdr.Kadm5GetPrincipal{API: xdr.Kadm5API, Principal: cString(s.self.Principal.String()), Mask: xdr.Kadm5Fields}
	var res xdr.Kadm5PrincipalResult
	if err := s.call(xdr.Kadm5ProcGetPrincipal, &arg, &res); err != nil {
		return Record{}, err
	}
	if err := s.refused(xdr.Kadm5ProcGetPrincipal, res.Found.Code); err != nil {
		return Record{}, err
	}
	r := newRecord(&res.Found.Principal)
	r.Salt = kdc.Salt(s.self.Principal) // Change asks for it by name
	return r, nil
}

// newRecord is what counts of a principal's entry.
func newRecord(p *xdr.Kadm5Principal) Record {
	r := Record{
		MaxLife: time.Duration(p.MaxLife) * time.Second, MaxRenewable: time.Duration(p.MaxRenewable) * time.Second,
		LockedDown: p.Attributes&xdr.Kadm5LockdownKeys != 0,
	}
	if n := len(p.Policy); n > 0 {
		r.Policy = string(p.Policy[:n-1])
	}
	if p.Changed != 0 {
		r.Changed = time.Unix(int64(p.Changed), 0)
	}
	for _, key := range p.Keys {
		kvno, id := key.Plain.KVNO, key.Plain.Enctype
		if key.Version == 2 {
			kvno, id = key.Salted.KVNO, key.Salted.Enctype
		}
		r.Keys = append(r.Keys, KeyVersion{uint32(uint16(kvno)), etype.ID(id)})
		r.KVNO = max(r.KVNO, uint32(uint16(kvno)))
	}
	slices.SortStableFunc(r.Keys, func(a, b KeyVersion) int { return int(b.KVNO) - int(a.KVNO) })
	return r
}

// session is one with kadmind.
type session struct {
	ctx   context.Context
	self  Self
	calls *gss.Client
	at    string // where kadmind is
}

// do has something done in a session. The error is a *mech.Error.
func (k *Kadmin) do(ctx context.Context, self Self, what func(*session) *mech.Error) error {
	cred, err := k.Client.Login(ctx, self.Principal, self.Keys, kdc.LoginOptions{Server: service("admin")})
	if err != nil {
		return err
	}
	defer cred.Destroy()
	conn, done, err := k.Client.Connect(ctx, self.Principal.Realm, kdc.KadminService)
	if err != nil {
		return err
	}
	defer done()
	s := &session{ctx: ctx, self: self, at: conn.RemoteAddr().String()}
	s.calls, err = gss.New(ctx, conn, &kadmind, krb5.Initiator{Ticket: cred, Conf: k.Client.Conf, Now: now(k.Client, self.Principal.Realm)})
	if err != nil {
		return s.failed(err, false)
	}
	defer s.calls.Close()
	var res xdr.Kadm5Result
	err2 := s.call(xdr.Kadm5ProcInit, &xdr.Kadm5Init{API: xdr.Kadm5API}, &res)
	if err2 == nil {
		err2 = s.refused(xdr.Kadm5ProcInit, res.Code)
	}
	if err2 == nil {
		err2 = what(s)
	}
	if err2 != nil {
		return err2
	}
	return nil
}

// execute is call, for what has no other result than how it went.
func (s *session) execute(proc xdr.Kadm5Proc, arg xdr.Message) *mech.Error {
	var res xdr.Kadm5Result
	if err := s.call(proc, arg, &res); err != nil {
		return err
	}
	return s.refused(proc, res.Code)
}

// call makes a call, and decodes its results.
func (s *session) call(proc xdr.Kadm5Proc, arg, res xdr.Message) *mech.Error {
	args := arg.Append(make([]byte, 0, maxArgs)) // of which no copy is left behind
	defer clear(args[:cap(args)])
	results, err := s.calls.Call(s.ctx, uint32(proc), args)
	if err == nil {
		d := xdr.NewDecoder(results)
		if res.Decode(d); d.Err() != nil {
			err = fmt.Errorf("%v: the results: %w", proc, d.Err())
		}
	}
	if err != nil {
		return s.failed(err, changes(proc))
	}
	return nil
}

// maxArgs is more than the arguments of a call take: names and passwords are 4 KB at most.
const maxArgs = 16 << 10

// changes reports whether a procedure changes something.
func changes(proc xdr.Kadm5Proc) bool {
	return proc == xdr.Kadm5ProcChpassPrincipal3 || proc == xdr.Kadm5ProcPurgekeys
}

// failed makes the error of a call that has no results that prove themselves.
func (s *session) failed(err error, changes bool) *mech.Error {
	switch text := wire.Shown(err.Error()); {
	case errors.Is(err, rpc.ErrNotSent):
		return mech.Errorf(mech.Failure, 0, reason.AdminServerUnreachable, "kadmind at %s cannot be asked about %s: %s", s.at, s.self.Principal.Shown(), text)
	case changes:
		return mech.Errorf(mech.Failure, 0, reason.KeyChangeUnknown, "the request for %s went to kadmind at %s, and may have been executed: %s", s.self.Principal.Shown(), s.at, text)
	default:
		return mech.Errorf(mech.Failure, 0, reason.AdminServerReply, "kadmind at %s does not answer about %s as it should: %s", s.at, s.self.Principal.Shown(), text)
	}
}

// words are what the codes of kadmind mean for who changes a key.
var words = map[xdr.Kadm5Code]string{
	xdr.Kadm5AuthGet:          "it may not read its entry",
	xdr.Kadm5AuthModify:       "it may not purge its keys",
	xdr.Kadm5AuthInsufficient: "it may not",
	xdr.Kadm5UnknownPrincipal: "there is no such principal",
	xdr.Kadm5PassTooShort:     "the password policy wants a longer password",
	xdr.Kadm5PassClasses:      "the password policy wants more classes of characters",
	xdr.Kadm5PassDictionary:   "the password is in the dictionary",
	xdr.Kadm5PassReuse:        "the password policy does not let a password come back",
	xdr.Kadm5PassTooSoon:      "the minimum life of the password policy is not over",
	xdr.Kadm5PassRejected:     "the password policy does not like the password",
	xdr.Kadm5BadKeySalts:      "the password policy does not allow keys of these types (allowed_keysalts)",
	xdr.Kadm5ProtectPrincipal: "it is a principal that must not be changed",
	xdr.Kadm5ProtectKeys:      "its keys are locked down (lockdown_keys)",
	xdr.Kadm5AuthChangepw:     "it may not change its password",
	xdr.Kadm5AuthInitial:      "the ticket is not one for kadmin/admin from the AS",
	xdr.Kadm5OldAPI:           "it speaks no version of the protocol that is as old",
	xdr.Kadm5NewAPI:           "it does not speak this version of the protocol yet: MIT krb5 1.12 does",
}

// lastCode is the last of the error table that kadmind's own refusals are from. It refuses with them
// before it changes anything; what comes of a database that fails is of other tables.
const lastCode = xdr.Kadm5Failure + 255

// refused makes the error of a code, nil for none.
func (s *session) refused(proc xdr.Kadm5Proc, code xdr.Kadm5Code) *mech.Error {
	if code == xdr.Kadm5Ok {
		return nil
	}
	why := words[code]
	if why == "" {
		why = "see its log"
	}
	id := reason.KeyChangeRefused
	switch {
	case code == xdr.Kadm5PassTooSoon:
		id = reason.KeyChangeTooSoon
	case changes(proc) && (code <= xdr.Kadm5Failure || code > lastCode):
		id = reason.KeyChangeUnknown
	}
	return mech.Errorf(mech.Failure, uint32(code), id, "kadmind at %s answers %v for %s with %d: %s", s.at, proc, s.self.Principal.Shown(), int32(code), why)
}

// cString is a string with a NUL, in memory of its own.
func cString[S ~string | ~[]byte](s S) []byte {
	b := make([]byte, len(s)+1)
	copy(b, s)
	return b
}

// service is kadmin/admin or kadmin/changepw, in the client's realm.
func service(name string) krb5.Principal {
	return krb5.Principal{Components: []string{"kadmin", name}, Type: krb5.NTSrvInst}
}

// now is the clock of a realm, as far as the client knows it.
func now(c *kdc.Client, realm string) func() time.Time {
	here := clock(c)
	return func() time.Time { return here().Add(c.Offset(realm)) }
}

// clock is the client's own clock.
func clock(c *kdc.Client) func() time.Time {
	if c.Now != nil {
		return c.Now
	}
	return time.Now
}

// checkPassword refuses what C strings and string-to-key functions do not take alike.
func checkPassword(password etype.Secret) error {
	if len(password) == 0 || slices.ContainsFunc(password, func(c byte) bool { return c < ' ' || c > '~' }) {
		return mech.Errorf(mech.Failure, 0, reason.Internal, "the new password is empty or not printable ASCII")
	}
	return nil
}
