package krb5

import (
	"encoding/binary"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// Authorization data types (RFC 4120 section 7.5.4, RFC 4537, RFC 7751, RFC 8129, MS-KILE).
const (
	apOptionsCBT     = 0x4000 // KERB_AP_OPTIONS_CBT
	maxAuthDataDepth = 8
)

// adWalk visits authorization data elements in order, going into AD-IF-RELEVANT containers.
type adWalk struct {
	r     der.Reader
	depth int
	outer [maxAuthDataDepth][4]int // ends of the values around each level
}

// newADWalk walks list, the contents of an AuthorizationData sequence.
func newADWalk(list []byte) adWalk { return adWalk{r: der.NewReader(list)} }

// next returns the next element that is no container. ok is false at the end and after a failure,
// which w.r keeps.
func (w *adWalk) next() (kind int32, data []byte, ok bool) {
	for {
		for !w.r.More() {
			if w.r.Fault() != 0 || w.depth == 0 {
				return 0, nil, false
			}
			w.depth--
			o := &w.outer[w.depth]
			w.r.Leave(o[3])
			w.r.Leave(o[2])
			w.r.Leave(o[1])
			w.r.LeaveOpen(o[0])
		}
		element := w.r
		kind, data = wire.ReadTyped(&w.r)
		if w.r.Fault() != 0 {
			return 0, nil, false
		}
		if kind != wire.ADIfRelevant {
			return kind, data, true
		}
		if w.depth == maxAuthDataDepth {
			w.r.Fail(der.TooDeep)
			return 0, nil, false
		}
		// Read the element again, this time going into it.
		w.r = element
		o := &w.outer[w.depth]
		w.depth++
		o[0] = w.r.Enter(der.Sequence)
		f := w.r.Field(0)
		w.r.Int32()
		w.r.Leave(f)
		o[1] = w.r.Field(1)
		o[2] = w.r.Enter(der.OctetString)
		o[3] = w.r.Enter(der.Sequence)
	}
}

// err returns the failure of the walk, nil if there was none.
func (w *adWalk) err(what string) *mech.Error { return malformed(what, w.r.Err()) }

// appendAuthData appends the top-level elements of list as they are.
func appendAuthData(dst []AuthData, list []byte) []AuthData {
	r := der.NewReader(list)
	for r.More() {
		kind, data := wire.ReadTyped(&r)
		if r.Fault() == 0 {
			dst = append(dst, AuthData{kind, data})
		}
	}
	return dst
}

// clientAuthData is what the acceptor heeds of the authenticator's authorization data. The client
// can write there whatever it likes.
type clientAuthData struct {
	etypes []byte // contents of the EtypeList (RFC 4537), nil when absent
	cbt    bool   // the client insists on channel bindings where the acceptor has any (MS-KILE)
}

func (c *clientAuthData) read(list []byte) *mech.Error {
	*c = clientAuthData{}
	if list == nil {
		return nil
	}
	w := newADWalk(list)
	apOptions := 0
	for kind, data, ok := w.next(); ok; kind, data, ok = w.next() {
		switch kind {
		case wire.ADEtypeNegotiation:
			if c.etypes != nil {
				continue
			}
			r := der.NewReader(data)
			c.etypes = r.Value(der.Sequence)
			items := der.NewReader(c.etypes)
			for items.More() {
				items.Int32()
			}
			if r.Fault() == 0 {
				r = items
			}
			if err := malformed("encryption type list of the authenticator", r.Err()); err != nil {
				return err
			}
		case wire.ADAPOptions:
			if apOptions++; apOptions > 1 || len(data) != 4 {
				return mech.Errorf(mech.Failure, wire.MinorMsgType, reason.DefectiveToken, ": malformed AD-AP-OPTIONS in the authenticator")
			}
			c.cbt = binary.LittleEndian.Uint32(data)&apOptionsCBT != 0
		}
	}
	return w.err("authorization data of the authenticator")
}

// offers reports whether the client's list has et.
func (c *clientAuthData) offers(et etype.ID) bool {
	r := der.NewReader(c.etypes)
	for r.More() {
		if etype.ID(r.Int32()) == et {
			return true
		}
	}
	return false
}

// readTicketAuthData takes PAC and authentication indicators out of the ticket's authorization
// data. service is the key the ticket was encrypted in. Where MIT krb5 refuses the ticket for
// malformed authorization data, so does this; a PAC or CAMMAC that does not verify is merely not
// believed.
func readTicketAuthData(ctx *Context, t *wire.EncTicket, service *etype.Key, scratch []byte) ([]byte, *mech.Error) {
	if t.AuthData == nil {
		return scratch, nil
	}
	w := newADWalk(t.AuthData)
	for kind, data, ok := w.next(); ok; kind, data, ok = w.next() {
		switch {
		case kind == wire.ADWin2kPAC && ctx.PAC == nil:
			var p pac
			if err := p.parse(data); err != nil {
				return scratch, err
			}
			ctx.PAC = data
			ctx.PACVerified, scratch = p.verify(t, service, scratch)
		case kind == wire.ADCAMMAC:
			if err := readCAMMAC(ctx, data, service); err != nil {
				return scratch, err
			}
		}
	}
	return scratch, w.err("authorization data of the ticket")
}

// readCAMMAC adds the authentication indicators (RFC 8129) of a CAMMAC (RFC 7751) to ctx if its
// service verifier is good:
//
//	SEQUENCE {[0] elements, [1] kdc-verifier OPTIONAL, [2] svc-verifier OPTIONAL, …}
//	verifier: SEQUENCE {[0] identifier?, [1] kvno?, [2] enctype?, [3] Checksum}
func readCAMMAC(ctx *Context, data []byte, service *etype.Key) *mech.Error {
	r := der.NewReader(data)
	seq := r.Enter(der.Sequence)
	f := r.Field(0)
	elements := r.Raw()
	r.Leave(f)
	if r.Has(1) {
		f = r.Field(1)
		r.Rest()
		r.Leave(f)
	}
	var sumType int32
	var sum []byte
	if r.Has(2) {
		f = r.Field(2)
		verifier := r.Enter(der.Sequence)
		for r.Has(0) || r.Has(1) || r.Has(2) {
			r.Raw()
		}
		g := r.Field(3)
		sumType, sum = wire.ReadTyped(&r)
		r.Leave(g)
		r.LeaveOpen(verifier)
		r.Leave(f)
	}
	r.LeaveOpen(seq)
	if err := malformed("CAMMAC of the ticket", r.Err()); err != nil {
		return err
	}
	if sum == nil {
		return mech.Errorf(mech.Failure, minorEINVAL, reason.DefectiveToken, ": the ticket's CAMMAC has no service verifier")
	}
	if !service.VerifyChecksumType(sumType, wire.UsageCAMMAC, sum, elements) {
		return nil
	}
	list := der.NewReader(elements)
	w := newADWalk(list.Value(der.Sequence))
	for kind, data, ok := w.next(); ok; kind, data, ok = w.next() {
		if kind != wire.ADAuthIndicator {
			continue
		}
		r := der.NewReader(data)
		all := r.Enter(der.Sequence)
		for r.More() {
			ctx.Indicators = append(ctx.Indicators, string(r.Value(der.UTF8String)))
		}
		r.Leave(all)
		if err := malformed("authentication indicators of the ticket", r.Err()); err != nil {
			return err
		}
	}
	if list.Fault() != 0 {
		return malformed("CAMMAC of the ticket", list.Err())
	}
	return w.err("CAMMAC of the ticket")
}
