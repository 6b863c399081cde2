package creds

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"gssproxyd/audit"
	"gssproxyd/conf"
	"gssproxyd/limits"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc/peer"
)

// Caller is on whose behalf a call acts: a peer, as a service. Done ends the call.
type Caller struct {
	etype.Redacted
	Peer    *peer.Info
	Service *Service
	Now     time.Time
	Event   *audit.Event // the call, for what is recorded of it

	Context context.Context // ends with the call, and names the caller as who pays
	Left    *atomic.Value   // what calls of the connection leave for later ones

	observed *[]conf.Refusal // takes what is only observed, where nothing is done: else nil
	charged  int             // bytes of credential caches that were read, to the caller until the call ends
	opened   []byte          // plaintext of the handle that came with the call
}

// Done gives back what the call has read of caches, and clears all but memory for the next call's
// handle.
func (c *Caller) Done() {
	if c.charged > 0 {
		c.Service.room.Give(c.Peer.UID, c.charged)
	}
	*c = Caller{opened: Emptied(c.opened)}
}

// Emptied clears a buffer for the next call, and lets go of one that has become large, as after a
// call with unusually many tickets.
func Emptied(b []byte) []byte {
	clear(b)
	if cap(b) > 64<<10 {
		return nil
	}
	return b[:0]
}

// own reports whether the caller is the service itself, not one of the users it lets in.
func (c *Caller) own() bool { return c.Peer.UID == c.Service.EUID }

// Usage narrows the usage asked for to what the service's cred_usage allows, and operations.
func (c *Caller) Usage(asked conf.Usage) (conf.Usage, error) {
	usage := asked
	switch allowed := c.Service.CredUsage; {
	case allowed == conf.UsageBoth || allowed == asked:
	case asked == conf.UsageBoth:
		usage = allowed
	default:
		return 0, mech.Errorf(mech.CredUnavail, 0, reason.UsageNotAllowed, "service %q has cred_usage = %s", c.Service.Name, allowed)
	}
	if !c.Service.restricted {
		return usage, nil
	}
	var accept, initiate error
	if usage != conf.UsageInitiate {
		accept = c.Permit(&conf.Act{Operation: conf.OpAccept, Enquiry: true})
	}
	if usage != conf.UsageAccept {
		initiate = c.Permit(&conf.Act{Operation: conf.OpInitiate, Enquiry: true})
	}
	switch {
	case accept == nil && initiate == nil:
		return usage, nil
	case usage == conf.UsageBoth && accept == nil:
		return conf.UsageAccept, nil
	case usage == conf.UsageBoth && initiate == nil:
		return conf.UsageInitiate, nil
	}
	return 0, cmp.Or(accept, initiate)
}

// store returns the service's credential store for a target uid.
func (c *Caller) store(uid uint32) (*store, error) {
	if st := c.Service.fixed; st != nil {
		return st, nil
	}
	st, err := c.Service.store(uid, c.users())
	if err == nil {
		return st, nil
	}
	if e, ok := errors.AsType[*mech.Error](err); ok {
		e.Major = mech.CredUnavail
		return nil, e
	}
	return nil, mech.Errorf(mech.CredUnavail, 0, reason.CredStore, "%v", err)
}

// target is whom a call without a handle acts for, under which name and with which keys.
type target struct {
	usage         conf.Usage
	uid           uint32
	name          *Name // none: as the keys or the cache say
	serviceKeytab bool  // the service's keytab is used to initiate, too
	impersonate   bool  // on behalf of the user with the service's own credential
	configured    bool  // to initiate as krb5_principal: the request names nobody

	successor *successor // what the credential must be, if it is to take the place of another one
}

// way is how the tickets of a credential to initiate with were obtained.
type way uint32

const (
	wayKeytab    way = iota + 1 // with a key of the service's keytabs
	wayCache                    // they were in the cache that cred_store names
	wayDelegated                // an initiator forwarded them
	wayS4U                      // in the name of a user who is not there, by S4U
	wayEvidence                 // with the ticket of an initiator that was accepted
)

// successor is what a credential must be that takes the place of another one.
type successor struct {
	client krb5.Principal
	uid    uint32 // whose store it is from
	way    way    // 0: whichever, and from whichever store
	refuse func(instead krb5.Principal) error
}

// admit refuses what is not the successor of a credential; without one anything is admitted.
func (s *successor) admit(client krb5.Principal, uid uint32, way way) error {
	if s == nil || client.Equal(s.client) && (s.way == 0 || s.way == way && s.uid == uid) {
		return nil
	}
	return s.refuse(client)
}

// target decides that from who the caller is, whether the service trusts it, and the name it gave:
//
//	name given:  by a trusted service, as a uid   acts for that user
//	             by another uid than the service  acts for the caller
//	             by the service itself            takes that name from the service's keytab
//	no name:     by a trusted service             acts for itself with the service's keytab
//	             by another uid than the service  acts for the caller
//	             by the service itself            takes the store as it is configured
//
// A service that acts for itself and names nobody initiates as krb5_principal, which may be in
// either of its keytabs.
//
// With impersonate a caller who acts for a user, or gives a name, gets that user's credential by
// S4U with the service's keytab.
func (c *Caller) target(asked *Name, usage conf.Usage) (t target, err error) {
	if usage, err = c.Usage(usage); err != nil {
		return t, err
	}
	svc, own := c.Service, c.own()
	t = target{usage: usage, uid: c.Peer.UID, name: asked, configured: asked == nil && own && svc.Krb5Principal != ""}
	forUser := false
	switch {
	case asked != nil && own && svc.Trusted && asked.UID():
		if t.uid, err = parseUID(asked.Text); err != nil {
			return t, err
		}
		t.name, forUser = nil, true
	case asked != nil && own:
		t.serviceKeytab = true
	case asked == nil && own && svc.Trusted:
		t.serviceKeytab = true
	case !own:
		forUser = true
	}
	if forUser && svc.Impersonate && usage != conf.UsageAccept {
		if t.name, err = c.userName(t.uid); err != nil {
			return t, err
		}
		t.serviceKeytab = true
	}
	if t.name != nil && svc.Impersonate && usage != conf.UsageAccept {
		t.impersonate = true
	}
	if t.serviceKeytab {
		if t.name == nil && svc.Krb5Principal != "" {
			t.name = c.configuredName()
		}
		if len(svc.CredStore) > 0 && !namesKeytab(svc.CredStore) {
			return t, mech.Errorf(mech.CredUnavail, 0, reason.CredStore, "cred_store names neither keytab nor client_keytab")
		}
	}
	return t, nil
}

func namesKeytab(elements []conf.KeyValue) bool {
	return slices.ContainsFunc(elements, func(e conf.KeyValue) bool { return strings.HasSuffix(e.Key, "keytab") })
}

// userName is the name of a user of this host.
func (c *Caller) userName(uid uint32) (*Name, error) {
	user, err := c.users().Name(uid)
	if e, ok := errors.AsType[*mech.Error](err); ok {
		return nil, e
	}
	if err != nil {
		return nil, mech.Errorf(mech.CredUnavail, 0, reason.CredStore, "uid %d: %v", uid, err)
	}
	return &Name{[]byte(user), mech.NTUserName}, nil
}

// Principal makes a principal of a name that a client sent.
func (c *Caller) Principal(n Name) (krb5.Principal, error) {
	if len(n.Text) == 0 {
		return krb5.Principal{}, mech.Errorf(mech.Failure, uint32(syscall.EINVAL), reason.BadArgument, "the name is empty").Of("")
	}
	p, err := krb5.ImportName(n.Text, n.Type, c.Service.Krb5, c.users())
	if n.Exported() && namesMech(n.Text) {
		err = AsBadName(err)
	}
	return p, err
}

// acceptorName makes a principal of a name to accept for.
func (c *Caller) acceptorName(n *Name) (krb5.Principal, error) {
	return krb5.AcceptorName(n.Text, n.Type, c.Service.Krb5, c.users())
}

// Name is a name as a client sends it.
type Name struct {
	Text []byte
	Type mech.OID
}

// Exported reports whether it is an exported name, which says itself for which mechanism.
func (n *Name) Exported() bool {
	return n.Type == mech.NTExportName || n.Type == mech.NTCompositeExport
}

// UID reports whether it is a uid.
func (n *Name) UID() bool { return n.Type == mech.NTStringUID || n.Type == mech.NTMachineUID }

// principalName is the name of a principal written out.
func principalName(principal string) *Name { return &Name{[]byte(principal), mech.NTKrb5Principal} }

// configuredName is krb5_principal.
func (c *Caller) configuredName() *Name { return principalName(c.Service.Krb5Principal) }

// parseUID reads the decimal uid of a STRING_UID or MACHINE_UID name as clients send it: text in
// both cases.
func parseUID(b []byte) (uint32, error) {
	b = bytes.TrimSuffix(b, []byte{0})
	uid, err := strconv.ParseUint(string(b), 10, 32)
	if err != nil || uid == 1<<32-1 {
		return 0, mech.Errorf(mech.CredUnavail, 0, reason.BadArgument, "%.32q is not a uid: decimal digits below 4294967295 expected", b)
	}
	return uint32(uid), nil
}

// namesMech reports whether an exported name is whole up to its mechanism. As with libgssapi one
// that is not is a defective token, and what is wrong behind it a bad name.
func namesMech(exported []byte) bool {
	return len(exported) >= 4 && exported[0] == 4 && len(exported) >= 4+int(binary.BigEndian.Uint16(exported[2:]))
}

// sameName reports whether two names are the same; one without a realm is that in any.
func sameName(a, b krb5.Principal) bool {
	return slices.Equal(a.Components, b.Components) && (a.Realm == b.Realm || a.Realm == "" || b.Realm == "")
}

// users is the user database as this call asks it: the caller pays, and waits no longer than the
// call lasts.
func (c *Caller) users() conf.Users { return (*callUsers)(c) }

// callUsers is a call as who asks the user database. A failure to ask is the refusal of the call;
// that there is no such user or group is left to who asked.
type callUsers Caller

func (c *callUsers) database() conf.Users {
	limits.EndTurn(c.Context) // the answer may take seconds
	users := c.Service.shared.users
	if each, ok := users.(interface {
		For(context.Context) conf.Users
	}); ok {
		return each.For(c.Context)
	}
	return users
}

// UID implements conf.Users.
func (c *callUsers) UID(name string) (uint32, error) {
	uid, err := c.database().UID(name)
	return uid, asLookUp(err)
}

// Name implements conf.Users.
func (c *callUsers) Name(uid uint32) (string, error) {
	name, err := c.database().Name(uid)
	return name, asLookUp(err)
}

// GID implements conf.Users.
func (c *callUsers) GID(name string) (uint32, error) {
	gid, err := c.database().GID(name)
	return gid, asLookUp(err)
}

func asLookUp(err error) error {
	switch {
	case err == nil, errors.Is(err, conf.ErrNoUser), errors.Is(err, conf.ErrNoGroup):
		return err
	case limits.Refused(err):
		return overLimit(err)
	}
	return mech.Errorf(mech.Failure, uint32(syscall.EAGAIN), reason.UserLookup, "%v", err)
}
