package creds

import (
	"cmp"
	"context"
	"syscall"

	"gssproxyd/conf"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/reason"
)

// Request is what a client wants a credential for.
type Request struct {
	Input Input
	Name  *Name // nil: whoever the caller is
	Usage conf.Usage
	Add   bool // an element to the handle that was sent
	Type  AcquireType
}

// AcquireType is what the option acquire_type of a request with a handle says.
type AcquireType int

// Types of requests.
const (
	AcquirePlain        AcquireType = iota // nothing
	AcquireImpersonated                    // as the user of that name, with the credential that was sent
	AcquireUnknown                         // a value that is not known
)

// Acquire gets a credential: a new handle, or nil if the handle that was sent still serves. That one
// has the time then at which its tickets expire, if they were looked at.
func (c *Caller) Acquire(ctx context.Context, r *Request) (h *Handle, err error) {
	usage, err := c.Usage(r.Usage)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	in := &r.Input
	if usage != conf.UsageAccept {
		defer func() { c.leave(in, err) }()
	}
	switch {
	case r.Type == AcquireUnknown:
		return nil, mech.Errorf(mech.Failure, uint32(syscall.EINVAL), reason.BadOption, "acquire_type has a value that is not known").Of("")
	case r.Type == AcquireImpersonated:
		return c.impersonate(ctx, in.Handle, r.Name)
	case in.Handle != nil && r.Add:
		return c.add(ctx, in.Handle, r.Name, usage)
	}
	var heir *successor
	if h := in.Handle; h != nil {
		serves, err := c.serves(h, r.Name, r.Usage, usage)
		switch {
		case err != nil:
			return nil, err
		case serves:
			return c.again(ctx, h, usage)
		case h.Usage == conf.UsageInitiate && usage == conf.UsageBoth:
			heir, err = sameInitiator(h)
		case r.Name != nil:
			in = new(Input) // nothing of it counts
		}
		if err != nil {
			return nil, err
		}
	}
	t, err := c.target(r.Name, usage)
	if err != nil {
		return nil, err
	}
	asked := r.Name != nil && t.name == r.Name // it goes on as who was asked for, and as nobody else
	if in.Lost && !asked && t.usage != conf.UsageAccept {
		if heir, err = c.successorOfLost(in); err != nil {
			return nil, err
		}
	}
	t.successor = heir
	var cr *Credential
	if t.usage != conf.UsageAccept {
		if cr, err = c.acquire(ctx, &t); err != nil {
			return nil, err
		}
		defer cr.Drop(ctx)
		if t.impersonate && cr.proxy() {
			t.usage = conf.UsageInitiate // there are no keys of the user to accept with
		}
	}
	var toAccept *Handle
	if t.usage != conf.UsageInitiate {
		if name := in.accepts(); name != nil && !asked {
			t.name = name
		}
		if toAccept, err = c.acceptorHandle(ctx, &t); err != nil || cr == nil {
			return toAccept, err
		}
	}
	return cr.handleWith(ctx, t.usage, toAccept)
}

// handleWith makes the handle of a credential that accepts as another handle does, if there is one.
func (cr *Credential) handleWith(ctx context.Context, usage conf.Usage, toAccept *Handle) (*Handle, error) {
	h, err := cr.Handle(ctx, usage)
	if err == nil && toAccept != nil {
		h.wanted, h.wantedType = toAccept.wanted, toAccept.wantedType
	}
	return h, err
}

// impersonate is what acquire_type impersonate_name asks for: the caller has the service's
// credential and names the user. The service must be trusted or have allow_protocol_transition,
// which count for its own euid only.
func (c *Caller) impersonate(ctx context.Context, input *Handle, user *Name) (*Handle, error) {
	if err := c.mayImpersonate(); err != nil {
		return nil, err
	}
	if input == nil || input.Usage == conf.UsageAccept {
		return nil, mech.Errorf(mech.NoCred, 0, reason.CredMismatch, "impersonation needs a credential of the service to initiate with")
	}
	if user == nil {
		return nil, mech.Errorf(mech.BadName, 0, reason.BadArgument, "impersonation needs the name of a user")
	}
	service, _, err := c.resume(ctx, input, 0)
	if err != nil {
		return nil, err
	}
	defer service.Drop(ctx)
	name, err := c.initiatorName(user, nil)
	if err != nil {
		return nil, AsBadName(err)
	}
	if err := c.permitUser(name); err != nil {
		return nil, err
	}
	cr, err := c.s4u(ctx, service, name)
	if err != nil {
		return nil, err
	}
	defer cr.Drop(ctx)
	return cr.Handle(ctx, conf.UsageInitiate)
}

// mayImpersonate refuses a caller who may act for nobody else.
func (c *Caller) mayImpersonate() error {
	switch {
	case !c.Service.Trusted && !c.Service.AllowProtocolTransition:
		return mech.Errorf(mech.NoCred, 0, reason.NoTransition, "service %q has neither allow_protocol_transition nor trusted", c.Service.Name)
	case !c.own():
		return mech.Errorf(mech.NoCred, 0, reason.NoTransition, "only the euid %d of service %q may act for users, not uid %d", c.Service.EUID, c.Service.Name, c.Peer.UID)
	}
	_, err := c.Usage(conf.UsageInitiate)
	return err
}

// again returns a new handle where the tickets of one had to be replaced, else nil. To accept there
// is no need of them.
func (c *Caller) again(ctx context.Context, h *Handle, usage conf.Usage) (*Handle, error) {
	if usage == conf.UsageAccept {
		return nil, nil
	}
	cr, fresh, err := c.resume(ctx, h, c.Service.MinLifetime)
	if err != nil {
		return nil, err
	}
	defer cr.Drop(ctx)
	if !fresh {
		h.Expires = cr.expires
		return nil, nil
	}
	return cr.handleWith(ctx, h.Usage, h)
}

// add returns a handle that has input's element and one for another usage. There is one mechanism,
// and one name in a handle: to initiate and to accept under that name become both, and whatever
// else may be asked for is there.
func (c *Caller) add(ctx context.Context, input *Handle, desired *Name, usage conf.Usage) (*Handle, error) {
	switch {
	case desired != nil:
		if err := c.isOf(input, desired); err != nil {
			return nil, err
		}
	case input.wanted != "":
		desired = input.wantedName()
	default:
		desired = principalName(cmp.Or(input.asked, input.Name))
	}
	t, err := c.target(desired, usage)
	switch {
	case err != nil:
		return nil, err
	case input.Usage == conf.UsageBoth || t.usage == conf.UsageBoth || t.usage == input.Usage:
		return nil, mech.Errorf(mech.DuplicateElement, 0, reason.Duplicate, "the credential sent has a krb5 element of %s for that usage", input.Name)
	case input.uid != t.uid:
		return nil, mech.Errorf(mech.CredUnavail, 0, reason.CredMismatch, "the credential sent is from the store of uid %d, the one to add is from that of uid %d", input.uid, t.uid)
	}
	toAccept := input
	var cr *Credential
	if t.usage == conf.UsageInitiate {
		cr, err = c.acquire(ctx, &t)
	} else if toAccept, err = c.acceptorHandle(ctx, &t); err == nil {
		cr, _, err = c.resume(ctx, input, 0)
	}
	if err != nil {
		return nil, err
	}
	defer cr.Drop(ctx)
	if cr.proxy() || !input.isOf(cr.Client) && !input.isOf(cr.login()) {
		return nil, mech.Errorf(mech.CredUnavail, 0, reason.CredMismatch, "the credential sent is for %s, the one to add acts for %v", input.Name, cr.Client)
	}
	return cr.handleWith(ctx, conf.UsageBoth, toAccept)
}

// isOf refuses a name that is not the credential's: the client holds on to it for something else.
func (c *Caller) isOf(h *Handle, desired *Name) error {
	p, err := c.Principal(*desired)
	if err != nil {
		return AsBadName(err)
	}
	if !h.isOf(p) {
		return mech.Errorf(mech.CredUnavail, 0, reason.CredMismatch, "the credential sent is for %s", h.Name)
	}
	return nil
}

// acceptsFor reports whether a credential was asked for with a name as it would be now, and shows
// itself so: the name may have been of another host, or of any.
func (c *Caller) acceptsFor(h *Handle, desired *Name) (bool, error) {
	asked, err := c.acceptorName(desired)
	if err != nil {
		return false, AsBadName(err)
	}
	if h.wanted == "" {
		return false, nil
	}
	had, err := c.acceptorName(h.wantedName())
	return err == nil && had.Equal(asked) && had.Type == asked.Type && c.isOf(h, desired) == nil, nil
}

// serves reports whether a credential is one for the name and usage now asked for. One for another
// usage is not, and counts as none; so does an acceptor's where both are asked for and only one is
// allowed, as in the C daemon. One for another name counts as none to accept with: programs share
// the cache in which the plugin of the C project keeps the last one, and sends it whatever is asked
// for. Who initiates is not to become somebody else: that is refused.
func (c *Caller) serves(h *Handle, desired *Name, asked, usage conf.Usage) (bool, error) {
	if desired != nil {
		if h.Usage == conf.UsageAccept || usage == conf.UsageAccept {
			if fits, err := c.acceptsFor(h, desired); !fits {
				return false, err
			}
		} else if err := c.isOf(h, desired); err != nil {
			return false, err
		}
	}
	return h.Usage == conf.UsageBoth || h.Usage == asked || h.Usage == conf.UsageInitiate && usage == conf.UsageInitiate, nil
}

// sameInitiator is what a credential for both usages must be that is asked for with one to
// initiate: the client has it for a user's, say, and the answer must not be the service's own.
func sameInitiator(h *Handle) (*successor, error) {
	of, err := krb5.ParsePrincipal(h.Name, "")
	if err != nil {
		return nil, badCredential(err)
	}
	return &successor{client: of, uid: h.uid, way: h.way, refuse: func(instead krb5.Principal) error {
		return mech.Errorf(mech.CredUnavail, 0, reason.CredMismatch, "the credential sent is for %s, and one for both usages would be for %s", of, instead)
	}}, nil
}
