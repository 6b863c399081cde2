package creds

import (
	"cmp"
	"encoding/binary"
	"fmt"

	"gssproxyd/conf"
	"gssproxyd/keytab/seal"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/reason"
)

// Handle is what a credential handle says. The handle is sealed with a key of the daemon's own and
// kept by the client. For an acceptor it names keys and holds none, so it stays good while keytabs
// rotate. For an initiator it names a credential cache, or holds the tickets of one in memory, so
// that any instance of the daemon can go on with it.
//
// A credential is only ever replaced, renewed or continued by one of the same principal that the
// daemon itself once obtained in the same way. So a handle says which way that was.
type Handle struct {
	etype.Redacted
	Usage   conf.Usage
	Name    string // principal shown to the client
	Expires uint32 // of the tickets, where a call has just got them; not sealed

	asked string // by which name its tickets were asked for, where the KDC has that one for it; "" if that is Name
	uid   uint32 // whose store it is from
	way   way

	maker maker

	// To accept: the name the client asked for, as it gave it; none when any key of the service
	// will do.
	wantedType, wanted string

	// To initiate.
	cache   string       // name of the credential cache
	tickets etype.Secret // the content of one in memory (ccache.AppendContent); none otherwise
	service string       // the service whose evidence tickets these are, if any

	// lent says that another service made the handle. Its tickets live in a cache of the call's
	// own: never does one service open a cache that another's handle names.
	lent bool
}

// Destroy overwrites the tickets.
func (h *Handle) Destroy() { clear(h.tickets) }

// isOf reports whether a credential to initiate with is of a principal, by the name that the KDC
// has for it or the one it was asked for by.
func (h *Handle) isOf(p krb5.Principal) bool {
	for _, name := range []string{h.Name, h.asked} {
		if of, err := krb5.ParsePrincipal(name, ""); name != "" && err == nil && sameName(p, of) {
			return true
		}
	}
	return false
}

// wantedName returns the name to accept for that a credential was asked for with, nil if it was
// asked for without.
func (h *Handle) wantedName() *Name {
	if h.wanted == "" {
		return nil
	}
	return &Name{[]byte(h.wanted), mech.OID(h.wantedType)}
}

// maker is for whom a handle was made.
type maker struct {
	service string
	caller  uint32
	own     bool   // the caller's uid was the service's euid
	keytab  string // name of the one that cred_store names as the service's, as [keytab.Ring.Name] has it; empty if it names none
}

// made returns what a handle that is made in this call says of that.
func (c *Caller) made() maker {
	m := maker{service: c.Service.Name, caller: c.Peer.UID, own: c.own()}
	if st, err := c.store(m.caller); err == nil && st.keytabNamed {
		m.keytab = st.keytab.Ring().Name()
	}
	return m
}

// mayOpen reports whether this call may use a handle: one made for the same service and uid, which
// has to be trusted still to use another uid's store, or one that another service with the same
// keytab lends. Who has the keytab's keys could make the same; so both have to be the services
// themselves, and the handle has to carry what it stands for.
func (c *Caller) mayOpen(h *Handle) (may, lent bool) {
	now := c.made()
	if h.maker.service == now.service && h.maker.caller == now.caller {
		return h.uid == now.caller || now.own && c.Service.Trusted, false
	}
	return h.maker.own && now.own && now.keytab != "" && h.maker.keytab == now.keytab && len(h.tickets) > 0, true
}

const handleVersion = 4

// handleHead is what a handle begins with, as it is sealed.
type handleHead struct {
	Version, Usage, UID uint32
	Way                 way
	Caller              uint32
	_                   [3]byte
	Own                 bool
}

// Usages are numbered as in the protocol.
const numberOfBoth = 3

// Seal appends the sealed handle to b.
func (c *Caller) Seal(b []byte, h *Handle) []byte {
	m := c.made()
	usage := cmp.Or(uint32(h.Usage), numberOfBoth)
	head := handleHead{Version: handleVersion, Usage: usage, UID: h.uid, Way: h.way, Caller: m.caller, Own: m.own}
	plain, _ := binary.Append(make([]byte, 0, 256+len(h.tickets)), binary.BigEndian, &head)
	for _, s := range []string{m.service, m.keytab, h.Name, h.wantedType, h.wanted, h.cache, h.service, h.asked} {
		plain = appendField(plain, s)
	}
	plain = appendField(plain, h.tickets)
	defer clear(plain)
	kind := seal.KindCred
	if h.wanted != "" {
		kind = seal.KindNamedCred
	}
	return c.Service.box.Seal(b, plain, "", kind)
}

// Open opens a sealed handle, nil if it does not open for this call. Its tickets last as long as
// the call.
func (c *Caller) Open(sealed []byte) *Handle {
	kind := seal.KindOf(sealed)
	if kind != seal.KindCred && kind != seal.KindNamedCred {
		return nil
	}
	plain, err := c.Service.box.Unseal(c.opened[:0], sealed, "", kind)
	if err != nil {
		return nil
	}
	c.opened = plain // cleared when the call ends
	var head handleHead
	n, err := binary.Decode(plain, binary.BigEndian, &head)
	if err != nil || head.Version != handleVersion {
		return nil
	}
	h := &Handle{Usage: conf.Usage(head.Usage), uid: head.UID, way: head.Way, maker: maker{caller: head.Caller, own: head.Own}}
	if h.Usage == numberOfBoth {
		h.Usage = conf.UsageBoth
	}
	left := plain[n:]
	for _, s := range []*string{&h.maker.service, &h.maker.keytab, &h.Name, &h.wantedType, &h.wanted, &h.cache, &h.service, &h.asked} {
		var field []byte
		field, left, _ = cutField(left)
		*s = string(field)
	}
	tickets, _, ok := cutField(left)
	if !ok { // or what came before, of which nothing is left then
		return nil
	}
	h.tickets = tickets
	may, lent := c.mayOpen(h)
	if !may {
		return nil
	}
	if h.lent = lent; lent {
		h.uid = c.Peer.UID // each has a store of its own
	}
	return h
}

// appendField appends bytes with their length before them, and zeros up to a multiple of four.
func appendField[T ~string | ~[]byte](b []byte, v T) []byte {
	b = append(binary.BigEndian.AppendUint32(b, uint32(len(v))), v...)
	return append(b, "\x00\x00\x00"[:-len(v)&3]...)
}

// cutField cuts off what appendField has appended first.
func cutField(b []byte) (v, left []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	n := int(binary.BigEndian.Uint32(b))
	if b = b[4:]; n+-n&3 > len(b) {
		return nil, nil, false
	}
	return b[:n:n], b[n+-n&3:], true
}

// Input is the credential handle that came with a call.
//
// One that does not open was made by another daemon, for another service or under a key long gone.
// The call goes on as if none had been sent, but neither to initiate nor to accept as somebody else
// than the handle says in clear. Of a client that is strict the call is refused before it is an
// Input.
type Input struct {
	Handle *Handle // nil if there is none, or it does not open
	Lost   bool    // it does not open, or is empty and a name stands in its place
	Strict bool    // the client knows what a refusal means, and starts nothing without the handle

	// Of one that is lost, as it says in clear: the name of what it was there to initiate with, nil
	// if it was there to accept only, and the name to accept for, nil unless it was asked for with
	// one.
	Initiates, Accepts *Name
}

// initiates returns the name of what a handle was there to initiate with. nil if it was there to
// accept only, or there is none.
func (in *Input) initiates() *Name {
	if h := in.Handle; h != nil && h.Usage != conf.UsageAccept {
		return principalName(h.Name)
	}
	return in.Initiates
}

// accepts returns the name to accept for that a handle was asked for with. nil if there is none:
// then any will do, as without a handle.
func (in *Input) accepts() *Name {
	if in.Handle != nil {
		return in.Handle.wantedName()
	}
	return in.Accepts
}

// successorOfLost returns what a credential that is got in place of one whose handle does not open
// must be of: the principal that the handle names in clear. nil if there is none such, as when it
// was there to accept only.
func (c *Caller) successorOfLost(in *Input) (*successor, error) {
	name := in.Initiates
	if !in.Lost || name == nil {
		return nil, nil
	}
	says := fmt.Sprintf("%.256q", name.Text) // now: an exchange with a KDC may outlast the call, and its arguments
	refuse := func(instead string) error {
		return mech.Errorf(mech.DefectiveCredential, 0, reason.BadCredential, "the credential handle does not open; it says that it is of %s, and the call would go on %s", says, instead)
	}
	of, err := c.Principal(*name)
	if err != nil {
		return nil, refuse("as whoever the service is")
	}
	return &successor{client: of, refuse: func(instead krb5.Principal) error { return refuse("as " + instead.String()) }}, nil
}

// leave leaves for later calls of the connection what has become of an attempt to acquire a
// credential to initiate with. The plugin of the C project sends the handle that it finds in a
// program's cache, and if that is refused starts the context without one: it would be the service's
// own. See [Caller.left]. Who is strict shares the connection among users, and one's refusal is not
// another's.
func (c *Caller) leave(in *Input, err error) {
	if err == nil && c.left() == nil {
		return
	}
	name := in.initiates()
	switch {
	case err != nil && name != nil && !in.Strict:
		s := &successor{refuse: func(krb5.Principal) error { return err }}
		s.client, _ = c.Principal(*name) // nobody, if it is no name
		c.Left.Store(s)
	case err == nil && name == nil:
		c.Left.Store((*successor)(nil)) // the caller has one of its own now
	}
}

// left returns what a credential must be that is got without a handle on a connection where one was
// refused before: what that one was. nil if there is none such.
func (c *Caller) left() *successor {
	s, _ := c.Left.Load().(*successor)
	return s
}
