package krb5

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// Keys is where service keys come from; *keytab.Ring is one. Its answers are read, never changed.
type Keys interface {
	// Lookup returns the key for a ticket of this server (an unparsed principal with realm),
	// version and encryption type, nil if there is none. A key whose version is the low 8 bits of
	// kvno will do; 0 asks for the newest. It keeps no reference to server.
	Lookup(server []byte, kvno uint32, et etype.ID) *etype.ServiceKey
	// ByEnctype returns every key of the type, ByPrincipal every key of the principal.
	ByEnctype(et etype.ID) []*etype.ServiceKey
	ByPrincipal(server []byte) []*etype.ServiceKey
	// Len returns how many keys there are, Name where they are from ("FILE:/etc/krb5.keytab").
	Len() int
	Name() string
}

// AcceptorName is [ImportName] for the name of an acceptor: a host-based name without a host is the
// service on any host, and not the one on this host.
func AcceptorName(display []byte, nameType mech.OID, cfg *krb5conf.Config, users Users) (Principal, error) {
	if nameType == mech.NTHostbased || nameType == mech.NTHostbasedX {
		if service, host := splitHostbased(string(display)); service != "" && host == "" {
			return Principal{Components: []string{service, ""}, Type: NTSrvHst}, nil
		}
	}
	return ImportName(display, nameType, cfg, users)
}

// openTicket decrypts the ticket of out.req into out.tkt and returns the key it did it with, which
// also says who the acceptor is. The order of the attempts and what failures are called follow MIT
// krb5:
//
// An acceptor of any name, or of a host-based one, tries the key of the ticket's server, version
// and encryption type, and then, as the server may go by several names, every other key of that
// type whose principal matches. Otherwise the named principal's key has to fit.
func (a *Acceptor) openTicket(out *Accepted) (*etype.ServiceKey, *mech.Error) {
	t := &out.req.Ticket
	permitted := slices.Contains(a.permitted(), t.Enc.Etype)
	if a.Name != nil && a.Name.Type != NTSrvHst {
		return a.openNamed(out, permitted)
	}
	if permitted {
		out.scratch = t.Server.AppendString(out.scratch[:0])
		first := a.Keys.Lookup(out.scratch, t.Enc.KVNO, t.Enc.Etype)
		if first != nil && a.matches(first.Principal) && out.tryKey(first) == nil {
			return first, a.readOpened(out)
		}
		for _, k := range a.Keys.ByEnctype(t.Enc.Etype) {
			if k != first && a.matches(k.Principal) && out.tryKey(k) == nil {
				return k, a.readOpened(out)
			}
		}
	}
	return nil, a.noKey(out, permitted)
}

// readOpened reads the plaintext. That it makes no sense is to MIT krb5, in this mode, the same as
// a key that does not fit.
func (a *Acceptor) readOpened(out *Accepted) *mech.Error {
	err := malformed("ticket (its encrypted part)", out.tkt.Parse(out.plain))
	if err != nil {
		err.Minor = wire.MinorBadIntegrity
		err.Text = mech.MinorText(err.Minor) + ": " + err.Text + a.keytab()
	}
	return err
}

// tryKey decrypts the ticket into out.plain.
func (out *Accepted) tryKey(k *etype.ServiceKey) (err error) {
	out.plain, err = k.Key.Decrypt(out.plain[:0], wire.UsageTicket, out.req.Ticket.Enc.Cipher)
	return err
}

// matches reports whether an acceptor of a.Name may use the keys of principal. As in MIT krb5 the
// realm of a host-based acceptor name does not count, nor does its host with
// ignore_acceptor_hostname.
func (a *Acceptor) matches(principal string) bool {
	if a.Name == nil {
		return true
	}
	service, host := a.hostBased()
	var buf [256]byte
	want := append(wire.AppendQuoted(buf[:0], service), '/')
	rest, ok := strings.CutPrefix(principal, string(want))
	if !ok {
		return false
	}
	if host == "" {
		// Any host, but no third component.
		for i := 0; i < len(rest); i++ {
			switch rest[i] {
			case '\\':
				i++
			case '/':
				return false
			case '@':
				return true
			}
		}
		return false
	}
	want = append(wire.AppendQuoted(buf[:0], host), '@')
	return strings.HasPrefix(rest, string(want))
}

// hostBased returns what a host-based acceptor name asks for; an empty host stands for any.
func (a *Acceptor) hostBased() (service, host string) {
	c := a.Name.Components
	if len(c) > 0 {
		service = c[0]
	}
	if len(c) > 1 && !(a.Conf != nil && a.Conf.IgnoreAcceptorHostname) {
		host = c[1]
	}
	return service, host
}

// openNamed is openTicket for an acceptor that is one principal.
func (a *Acceptor) openNamed(out *Accepted, permitted bool) (*etype.ServiceKey, *mech.Error) {
	t := &out.req.Ticket
	name := *a.Name
	if name.Realm == "" && a.Conf != nil {
		name.Realm = a.Conf.DefaultRealm
	}
	out.scratch = name.AppendString(out.scratch[:0])
	k := a.Keys.Lookup(out.scratch, t.Enc.KVNO, t.Enc.Etype)
	own := string(out.scratch)
	out.scratch = t.Server.AppendString(out.scratch[:0])
	same := string(out.scratch) == own
	server, where := wire.Shown(out.scratch), a.keytab()
	if k == nil {
		if a.Keys.Len() == 0 {
			return nil, mech.Errorf(mech.Failure, wire.MinorNoKey, reason.NoKeytab, "No keys in keytab%s", where)
		}
		entries := a.Keys.ByPrincipal([]byte(own))
		otherVersion := slices.ContainsFunc(entries, func(k *etype.ServiceKey) bool { return k.Key.Enctype() == t.Enc.Etype })
		has := keyList(t.Enc.Etype, entries)
		switch {
		case !otherVersion && !permitted:
			return nil, mech.Errorf(mech.Failure, wire.MinorNoKey, reason.EnctypeNotPermitted, "No key table entry found for %s with enctype %v (request ticket server %s kvno %d), and encryption type not permitted%s%s", own, t.Enc.Etype, server, t.Enc.KVNO, has, where)
		case !otherVersion:
			return nil, mech.Errorf(mech.Failure, wire.MinorNoKey, reason.NoKey, "No key table entry found for %s with enctype %v (request ticket server %s kvno %d)%s%s", own, t.Enc.Etype, server, t.Enc.KVNO, has, where)
		case same:
			return nil, mech.Errorf(mech.Failure, wire.MinorBadKeyVer, reason.KVNOMismatch, "Cannot find key for %s kvno %d in keytab (enctype %v)%s%s", own, t.Enc.KVNO, t.Enc.Etype, has, where)
		}
		return nil, mech.Errorf(mech.Failure, wire.MinorNotUs, reason.WrongPrincipal, "Cannot find key for %s kvno %d in keytab (request ticket server %s)%s%s", own, t.Enc.KVNO, server, has, where)
	}
	if !permitted {
		return nil, notPermitted(t.Enc.Etype, "the ticket for "+server)
	}
	switch err := out.tryKey(k); {
	case err == nil:
		return k, malformed("ticket (its encrypted part)", out.tkt.Parse(out.plain))
	case errors.Is(err, etype.ErrShort):
		return nil, mech.Errorf(mech.Failure, wire.MinorBadMsgSize, reason.DefectiveToken, ": the ticket is too short to be encrypted with %v", t.Enc.Etype)
	}
	minor, why := wire.MinorBadIntegrity, reason.BadIntegrity
	if !same {
		minor, why = wire.MinorNotUs, reason.WrongPrincipal
	}
	return nil, mech.Errorf(mech.Failure, uint32(minor), out.orUserToUser(why), "Cannot decrypt ticket for %s using keytab key for %s (kvno %d, enctype %v)%s", server, own, t.Enc.KVNO, t.Enc.Etype, where)
}

// noKey says why no key opened the ticket.
func (a *Acceptor) noKey(out *Accepted, permitted bool) *mech.Error {
	t := &out.req.Ticket
	out.scratch = t.Server.AppendString(out.scratch[:0])
	server, kvno, where := wire.Shown(out.scratch), t.Enc.KVNO, a.keytab()

	own := ""
	if a.Name != nil {
		service, host := a.hostBased()
		own = service + "/" + host + "@"
		if host == "" {
			own = service + "/*@"
		}
	}
	matched := a.Name == nil && a.Keys.Len() > 0
	for et := etype.ID(0); et < 32 && !matched; et++ {
		matched = slices.ContainsFunc(a.Keys.ByEnctype(et), func(k *etype.ServiceKey) bool { return a.matches(k.Principal) })
	}
	entries := a.Keys.ByPrincipal(out.scratch)
	has := keyList(t.Enc.Etype, entries)
	haveKVNO, haveHigher, haveEnctype := false, false, false
	for _, k := range entries {
		switch {
		case k.KVNO == kvno:
			haveKVNO = true
			haveEnctype = haveEnctype || k.Key.Enctype() == t.Enc.Etype
		case k.KVNO > kvno:
			haveHigher = true
		}
	}
	switch {
	case !matched && a.Name == nil:
		return mech.Errorf(mech.Failure, wire.MinorNoKey, reason.NoKeytab, "No keys in keytab%s", where)
	case !matched:
		return mech.Errorf(mech.Failure, wire.MinorNoKey, reason.NoKey, "Server principal %s does not match any keys in keytab (request ticket server %s)%s", own, server, where)
	case len(entries) > 0 && !a.matches(entries[0].Principal):
		return mech.Errorf(mech.Failure, wire.MinorNotUs, reason.WrongPrincipal, "Request ticket server %s found in keytab but does not match server principal %s%s", server, own, where)
	case len(entries) == 0:
		// The server may be one of several names of an account, whose keys are here under another
		// one.
		has = a.otherKeys(t.Enc.Etype)
		if !permitted {
			return mech.Errorf(mech.Failure, wire.MinorNotUs, reason.EnctypeNotPermitted, "Request ticket server %s not found in keytab (ticket kvno %d, enctype %v), and encryption type not permitted%s%s", server, kvno, t.Enc.Etype, has, where)
		}
		return mech.Errorf(mech.Failure, wire.MinorNotUs, out.orUserToUser(reason.NoKey), "Request ticket server %s not found in keytab (ticket kvno %d, enctype %v)%s%s", server, kvno, t.Enc.Etype, has, where)
	case !haveKVNO && haveHigher:
		return mech.Errorf(mech.Failure, wire.MinorBadKeyVer, reason.KVNOMismatch, "Request ticket server %s kvno %d not found in keytab; ticket is likely out of date (enctype %v)%s%s", server, kvno, t.Enc.Etype, has, where)
	case !haveKVNO:
		return mech.Errorf(mech.Failure, wire.MinorBadKeyVer, reason.KVNOMismatch, "Request ticket server %s kvno %d not found in keytab; keytab is likely out of date (enctype %v)%s%s", server, kvno, t.Enc.Etype, has, where)
	case !haveEnctype && !permitted:
		return mech.Errorf(mech.Failure, wire.MinorBadKeyVer, reason.EnctypeNotPermitted, "Request ticket server %s kvno %d found in keytab but not with enctype %v, and encryption type not permitted%s%s", server, kvno, t.Enc.Etype, has, where)
	case !haveEnctype:
		return mech.Errorf(mech.Failure, wire.MinorBadKeyVer, reason.NoKey, "Request ticket server %s kvno %d found in keytab but not with enctype %v%s%s", server, kvno, t.Enc.Etype, has, where)
	case !permitted:
		return mech.Errorf(mech.Failure, wire.MinorBadIntegrity, reason.EnctypeNotPermitted, "Request ticket server %s kvno %d enctype %v found in keytab but cannot decrypt ticket: encryption type not permitted%s", server, kvno, t.Enc.Etype, where)
	}
	return mech.Errorf(mech.Failure, wire.MinorBadIntegrity, out.orUserToUser(reason.BadIntegrity), "Request ticket server %s kvno %d enctype %v found in keytab but cannot decrypt ticket%s", server, kvno, t.Enc.Etype, where)
}

// otherKeys is keyList of the keys that an acceptor of a.Name may use, of the encryption type if
// there are any.
func (a *Acceptor) otherKeys(et etype.ID) string {
	var usable []*etype.ServiceKey
	for id := etype.ID(0); id < 32; id++ {
		for _, k := range a.Keys.ByEnctype(id) {
			if a.matches(k.Principal) {
				usable = append(usable, k)
			}
		}
	}
	return keyList(et, usable)
}

// keyList writes for messages what keys of the encryption type are in the keytab, or, without one,
// those of others.
func keyList(et etype.ID, keys []*etype.ServiceKey) string {
	const limit = 6
	other := !slices.ContainsFunc(keys, func(k *etype.ServiceKey) bool { return k.Key.Enctype() == et })
	var list []string
	for _, k := range keys {
		text := fmt.Sprintf("%s kvno %d", wire.Shown(k.Principal), k.KVNO)
		switch id := k.Key.Enctype(); {
		case other:
			text += " " + id.String()
		case id != et:
			continue
		}
		if slices.Contains(list, text) {
			continue
		}
		if len(list) == limit {
			list = append(list, "...")
			break
		}
		list = append(list, text)
	}
	if len(list) == 0 {
		return ""
	}
	return "; the keytab has " + strings.Join(list, ", ")
}

// orUserToUser replaces a reason when the client says that the ticket is not encrypted in a service
// key.
func (out *Accepted) orUserToUser(r reason.ID) reason.ID {
	if out.req.Options&wire.APUseSessionKey != 0 {
		return reason.UserToUser
	}
	return r
}

// keytab returns where the keys are from, for the end of a message.
func (a *Acceptor) keytab() string { return fmt.Sprintf(" [keytab %s]", a.Keys.Name()) }

// notPermitted says that the encryption type of what is not permitted.
func notPermitted(et etype.ID, what string) *mech.Error {
	return mech.Errorf(mech.Failure, wire.MinorConfigEtype, reason.EnctypeNotPermitted, "Encryption type %v not permitted (%s)", et, what)
}
