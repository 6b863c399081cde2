package proc

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"strings"
	"syscall"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/reason"
	"gssproxyd/xdr"
)

// ACQUIRE_CRED (procedure 6)
//
//	struct gssx_arg_acquire_cred {
//		gssx_call_ctx call_ctx; gssx_cred *input_cred_handle; bool add_cred_to_input_handle;
//		gssx_name *desired_name; gssx_time time_req; gssx_OID_set desired_mechs; gssx_cred_usage cred_usage;
//		gssx_time initiator_time_req; gssx_time acceptor_time_req; gssx_option options<>; };
//	struct gssx_res_acquire_cred {
//		gssx_status status; gssx_cred *output_cred_handle; gssx_option options<>; };
//
// A handle that is sent along and still serves comes back byte for byte: the client compares name, elements and
// handle to decide whether to rewrite the copy it keeps. The times asked for are not looked at, as in the C daemon.
//
// With add_cred_to_input_handle the answer is what the handle has and an element more (GSS_Add_cred, RFC 2743 section
// 2.1.4); the C daemon refuses, or sends the handle back. Who impersonates has nothing to add to.
//
// With the option "acquire_type" the handle is an initiator's that the credential of another user is got with (S4U2Self),
// which the service must allow; the C daemon then goes on as if the option were not there, and fails for another reason.
func acquireCred(ctx context.Context, _ *Procedures, c *call, args *xdr.ArgAcquireCred, res *xdr.ResAcquireCred) (err error) {
	if err := wantsKRB5(args.DesiredMechs); err != nil {
		return err
	}
	usage, err := c.usage(args.CredUsage)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var desired *xdr.Name
	if args.DesiredName.Set {
		desired = &args.DesiredName.V
	}
	h := c.handle(&args.InputCredHandle)
	if usage != xdr.CredAccept {
		defer func() { c.leave(h, err) }()
	}
	if v, ok := option(args.Options, optAcquireType); ok && args.InputCredHandle.Set {
		if !bytes.Equal(v, valImpersonateName) {
			return mech.Errorf(mech.Failure, uint32(syscall.EINVAL), reason.BadOption, "acquire_type has a value that is not known")
		}
		i, err := c.impersonate(ctx, h.cred, desired)
		if err != nil {
			return err
		}
		defer i.drop(ctx)
		cr, err := c.credOf(ctx, i, xdr.CredInitiate)
		if err != nil {
			return err
		}
		c.answer(cr, i.expires, res)
		return nil
	}
	if h.cred != nil && args.AddCredToInputHandle {
		return c.addCred(ctx, h.cred, desired, usage, res)
	}
	var heir *successor
	if h.cred != nil {
		serves, err := c.serves(h.cred, desired, args.CredUsage, usage)
		switch {
		case err != nil:
			return err
		case serves:
			return c.sendAgain(ctx, h.cred, &args.InputCredHandle.V, usage, res)
		case h.usage == xdr.CredInitiate && usage == xdr.CredBoth:
			heir, err = c.sameInitiator(h.cred)
		case desired != nil:
			h = handle{} // nothing of it counts
		}
		if err != nil {
			return err
		}
	}
	env, err := c.environment(desired, usage)
	if err != nil {
		return err
	}
	asked := desired != nil && env.name == desired // it goes on as who was asked for, and as nobody else
	if h.lost != nil && !asked && env.usage != xdr.CredAccept {
		if heir, err = c.lostInitiator(h); err != nil {
			return err
		}
	}
	env.successor = heir
	var i *initiator
	if env.usage != xdr.CredAccept {
		if i, err = c.initiate(ctx, &env); err != nil {
			return err
		}
		defer i.drop(ctx)
		if env.impersonate && i.proxy() {
			env.usage = xdr.CredInitiate // there are no keys of the user to accept with
		}
	}
	var acceptor *cred
	if env.usage != xdr.CredInitiate {
		if name := h.accepts(); name != nil && !asked {
			env.name = name
		}
		if acceptor, err = c.acquireAcceptor(ctx, &env); err != nil {
			return err
		}
	}
	if i == nil {
		c.answer(acceptor, 0, res)
		return nil
	}
	cr, err := c.credOf(ctx, i, env.usage)
	if err != nil {
		return err
	}
	if acceptor != nil {
		cr.wanted, cr.wantedType = acceptor.wanted, acceptor.wantedType
	}
	c.answer(cr, i.expires, res)
	return nil
}

// sendAgain answers with the credential of a handle: with the very handle, as it came, or with a new one where the tickets
// had to be got anew. To accept there is no need of them.
func (c *call) sendAgain(ctx context.Context, cr *cred, sent *xdr.Cred, usage xdr.CredUsage, res *xdr.ResAcquireCred) error {
	if usage != xdr.CredAccept {
		i, anew, err := c.continued(ctx, cr, c.svc.MinLifetime)
		if err != nil {
			return err
		}
		defer i.drop(ctx)
		if anew {
			fresh, err := c.credOf(ctx, i, cr.usage)
			if err != nil {
				return err
			}
			fresh.wanted, fresh.wantedType = cr.wanted, cr.wantedType
			c.answer(fresh, i.expires, res)
			return nil
		}
	}
	res.Status.Mech = oidKRB5
	res.OutputCredHandle = xdr.Some(*sent)
	return nil
}

// addCred answers with a credential that has input's element and one for another usage. There is one mechanism, and one
// name in a handle: to initiate and to accept under that name become both, and whatever else may be asked for is there.
func (c *call) addCred(ctx context.Context, input *cred, desired *xdr.Name, usage xdr.CredUsage, res *xdr.ResAcquireCred) error {
	switch {
	case desired != nil:
		if err := c.isOf(input, desired); err != nil {
			return err
		}
	case input.wanted != "":
		desired = input.wantedName()
	default:
		desired = &xdr.Name{DisplayName: []byte(cmp.Or(input.asked, input.name)), NameType: oidKrb5Principal}
	}
	env, err := c.environment(desired, usage)
	switch {
	case err != nil:
		return err
	case input.usage == xdr.CredBoth || env.usage == xdr.CredBoth || env.usage == input.usage:
		return mech.Errorf(mech.DuplicateElement, 0, reason.Duplicate, "the credential sent has a krb5 element of %s for that usage", input.name)
	case input.uid != env.uid:
		return mech.Errorf(mech.CredUnavail, 0, reason.CredMismatch, "the credential sent is from the store of uid %d, the one to add is from that of uid %d", input.uid, env.uid)
	}
	acceptor := input
	var i *initiator
	if env.usage == xdr.CredInitiate {
		i, err = c.initiate(ctx, &env)
	} else if acceptor, err = c.acquireAcceptor(ctx, &env); err == nil {
		i, _, err = c.continued(ctx, input, 0)
	}
	if err != nil {
		return err
	}
	defer i.drop(ctx)
	if i.proxy() || !input.isOf(i.client) && !input.isOf(i.login()) {
		return mech.Errorf(mech.CredUnavail, 0, reason.CredMismatch, "the credential sent is for %s, the one to add acts for %v", input.name, i.client)
	}
	cr, err := c.credOf(ctx, i, xdr.CredBoth)
	if err != nil {
		return err
	}
	cr.wanted, cr.wantedType = acceptor.wanted, acceptor.wantedType
	c.answer(cr, i.expires, res)
	return nil
}

// acquireAcceptor makes a credential to accept with, if there are keys for it.
func (c *call) acquireAcceptor(ctx context.Context, env *environment) (*cred, error) {
	var a krb5.Acceptor
	st, err := c.acceptor(&a, env.uid, env.name)
	if err != nil {
		return nil, err
	}
	ring := st.keytab.Ring()
	principal, err := a.Check(ring.All())
	if err != nil {
		if ring, newer := st.keytab.Refresh(ctx, ring); newer {
			principal, err = a.Check(ring.All())
		}
	}
	if err != nil {
		return nil, withKeytab(err, st.keytab)
	}
	cr := &cred{usage: xdr.CredAccept, name: principal, uid: env.uid}
	if env.name != nil {
		// A service without a host is shown as the one on this host, though it is accepted for any.
		p, err := c.importName(env.name)
		if err != nil {
			return nil, asBadName(err)
		}
		cr.name = p.String()
		display, nameType := nameOf(env.name)
		cr.wanted, cr.wantedType = string(display), string(nameType)
	}
	return cr, nil
}

// answer answers with a credential whose tickets, if it has any, end at a time.
func (c *call) answer(cr *cred, expires uint32, res *xdr.ResAcquireCred) {
	res.Status.Mech = oidKRB5
	res.OutputCredHandle = xdr.Some(c.wireCred(cr, expires))
	clear(cr.tickets)
}

// wireCred makes the gssx_cred of a credential.
func (c *call) wireCred(cr *cred, expires uint32) xdr.Cred {
	mn := c.mechName(cr.name, nil)
	element := xdr.CredElement{MN: mn, Mech: oidKRB5, CredUsage: cr.usage}
	if cr.usage != xdr.CredAccept {
		element.InitiatorTimeRec = uint64(max(0, int64(expires)-c.now.Unix()))
	}
	if cr.usage != xdr.CredInitiate {
		element.AcceptorTimeRec = indefinite
	}
	return xdr.Cred{DesiredName: mn, Elements: []xdr.CredElement{element}, CredHandleReference: c.seal(cr)}
}

// indefinite is GSS_C_INDEFINITE: keys in a keytab do not expire.
const indefinite = 0xffffffff

// wantsKRB5 refuses a set of mechanisms without krb5; only its right OID counts, and the empty set is krb5. For each
// negotiation libgssapi tries all mechanisms that it knows, one by one, and does without those it does not get.
func wantsKRB5(mechs [][]byte) error {
	var others []string
	tried := true
	for _, m := range mechs {
		m := mech.OID(m)
		if m == mech.KRB5 {
			return nil
		}
		if len(others) < 4 {
			others = append(others, m.Mechanism())
		}
		tried = tried && (m == mech.IAKERB || m == mech.KRB5Old || m == mech.KRB5Wrong)
	}
	if len(mechs) == 0 {
		return nil
	}
	if n := len(mechs) - len(others); n > 0 {
		others = append(others, fmt.Sprintf("%d more", n))
	}
	err := mech.Errorf(mech.NoCred, 0, reason.MechNotAllowed, "krb5 is served, and not %s", strings.Join(others, ", "))
	if tried {
		return probe{err}
	}
	return err
}

// isOf refuses a name that is not the credential's: the client holds on to it for something else.
func (c *call) isOf(cr *cred, desired *xdr.Name) error {
	p, err := c.importName(desired)
	if err != nil {
		return asBadName(err)
	}
	if !cr.isOf(p) {
		return mech.Errorf(mech.CredUnavail, 0, reason.CredMismatch, "the credential sent is for %s", cr.name)
	}
	return nil
}

// acceptsFor reports whether a credential was asked for with a name as it would be now, and shows itself so: the name may
// have been of another host, or of any.
func (c *call) acceptsFor(cr *cred, desired *xdr.Name) (bool, error) {
	asked, err := c.acceptorName(desired)
	if err != nil {
		return false, asBadName(err)
	}
	if cr.wanted == "" {
		return false, nil
	}
	had, err := c.acceptorName(cr.wantedName())
	return err == nil && had.Equal(asked) && had.Type == asked.Type && c.isOf(cr, desired) == nil, nil
}

// serves reports whether a credential is one for the name and usage now asked for. One for another usage is not, and counts
// as none; so does an acceptor's where both are asked for and only one is allowed, as in the C daemon. One for another name
// counts as none to accept with: programs share the cache in which the plugin of the C project keeps the last one, and
// sends it whatever is asked for. Who initiates is not to become somebody else: that is refused.
func (c *call) serves(cr *cred, desired *xdr.Name, asked, usage xdr.CredUsage) (bool, error) {
	if desired != nil {
		if cr.usage == xdr.CredAccept || usage == xdr.CredAccept {
			if fits, err := c.acceptsFor(cr, desired); !fits {
				return false, err
			}
		} else if err := c.isOf(cr, desired); err != nil {
			return false, err
		}
	}
	return cr.usage == xdr.CredBoth || cr.usage == asked || cr.usage == xdr.CredInitiate && usage == xdr.CredInitiate, nil
}

// sameInitiator is what a credential for both usages must be that is asked for with one to initiate: the client has it for
// a user's, say, and the answer must not be the service's own.
func (c *call) sameInitiator(cr *cred) (*successor, error) {
	of, err := krb5.ParsePrincipal(cr.name, "")
	if err != nil {
		return nil, badCredential(err)
	}
	return &successor{client: of, uid: cr.uid, way: cr.way, refuse: func(instead krb5.Principal) error {
		return mech.Errorf(mech.CredUnavail, 0, reason.CredMismatch, "the credential sent is for %s, and one for both usages would be for %s", of, instead)
	}}, nil
}
