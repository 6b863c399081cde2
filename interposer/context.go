package interposer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/xdr"
)

// ChannelBindings are RFC 2744's, section 3.11.
type ChannelBindings = krb5.ChannelBindings

// SecContext is a security context, half established or established. Messages are protected and
// verified here, without the daemon; that may be done from several goroutines, one message at a
// time.
//
// Printing a SecContext shows no keys.
type SecContext struct {
	source, target Name
	mech           mech.OID
	flags          uint32
	expires        time.Time
	initiator      bool

	mu    sync.Mutex
	local *krb5.Context // when established
	half  *xdr.Ctx      // until then: what the daemon wants back with the peer's next token
	nego  *negotiation  // or, until then, how far the choice of the mechanism has come
}

// Open reports whether the context is established.
func (s *SecContext) Open() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.local != nil
}

// Initiator reports whether this end initiated the context.
func (s *SecContext) Initiator() bool { return s.initiator }

// Source returns the initiator's name, Target the acceptor's.
func (s *SecContext) Source() Name { return s.source }

// Target returns the acceptor's name.
func (s *SecContext) Target() Name { return s.target }

// Mech returns the mechanism; of a negotiation it is mech.SPNEGO as long as that goes on, and the
// one agreed upon afterwards.
func (s *SecContext) Mech() mech.OID { return s.mech }

// Flags returns mech.Flag bits.
func (s *SecContext) Flags() uint32 { return s.flags }

// Expires returns the end of the context's lifetime, the zero Time if it has none. Messages can be
// exchanged after it; whether to is up to the program.
func (s *SecContext) Expires() time.Time { return s.expires }

// String says who is talking to whom.
func (s *SecContext) String() string { return fmt.Sprintf("context of %s with %s", s.source, s.target) }

// Format writes what String returns, whatever the verb.
func (s *SecContext) Format(f fmt.State, _ rune) { io.WriteString(f, s.String()) }

// MarshalText returns what String does.
func (s *SecContext) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue returns the two names.
func (s *SecContext) LogValue() slog.Value {
	return slog.GroupValue(slog.String("source", s.source.Display), slog.String("target", s.target.Display))
}

// lock locks s.mu, for the caller to unlock in any case, and returns the local context.
func (s *SecContext) lock() (*krb5.Context, error) {
	s.mu.Lock()
	if s.local == nil {
		return nil, mech.Errorf(mech.NoContext, 0, "", "the context is not established").Of(s.mech)
	}
	return s.local, nil
}

// Wrap appends to dst the token that carries msg, encrypted if conf. The error is a *[mech.Error].
func (s *SecContext) Wrap(dst, msg []byte, conf bool) ([]byte, error) {
	c, err := s.lock()
	defer s.mu.Unlock()
	if err != nil {
		return dst, err
	}
	return c.Wrap(dst, msg, conf)
}

// Unwrap appends to dst the message in the peer's token and reports whether it came encrypted. The
// message is authentic; order says if it was seen before or is out of sequence, where the context
// detects that (mech.DuplicateToken, OldToken, UnseqToken, GapToken), and is mech.Complete
// otherwise. The error is a *[mech.Error].
func (s *SecContext) Unwrap(dst, token []byte) (msg []byte, conf bool, order mech.Major, err error) {
	c, err := s.lock()
	defer s.mu.Unlock()
	if err != nil {
		return dst, false, 0, err
	}
	return c.Unwrap(dst, token)
}

// GetMIC appends to dst the token that protects msg, which the peer gets beside it. The error is a
// *[mech.Error].
func (s *SecContext) GetMIC(dst, msg []byte) ([]byte, error) {
	c, err := s.lock()
	defer s.mu.Unlock()
	if err != nil {
		return dst, err
	}
	return c.GetMIC(dst, msg)
}

// VerifyMIC checks the peer's token over msg. order is as in Unwrap. The error is a *[mech.Error].
func (s *SecContext) VerifyMIC(msg, mic []byte) (order mech.Major, err error) {
	c, err := s.lock()
	defer s.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return c.VerifyMIC(msg, mic)
}

// WrapSizeLimit returns the longest message whose Wrap token has at most size bytes; 0 if the
// context is not established.
func (s *SecContext) WrapSizeLimit(conf bool, size uint32) uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.local == nil {
		return 0
	}
	return s.local.WrapSizeLimit(conf, size)
}

// PseudoRandom returns n bytes that both ends derive of in (RFC 4401), of the initiator's key if
// partial. The error is a *[mech.Error].
func (s *SecContext) PseudoRandom(partial bool, in []byte, n int) ([]byte, error) {
	c, err := s.lock()
	defer s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return c.PseudoRandom(partial, in, n)
}

// Export returns the context, keys and all, as gss_export_sec_context of MIT krb5 would, for a
// program that imports it. This one must be used no more. The error is a *[mech.Error].
func (s *SecContext) Export() ([]byte, error) {
	c, err := s.lock()
	defer s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return c.AppendExport(nil), nil
}

// Close overwrites the keys. The context is of no use afterwards.
func (s *SecContext) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.close()
	return nil
}

// close is Close. s.mu is held.
func (s *SecContext) close() {
	if s.local != nil {
		s.local.Destroy()
	}
	if s.nego != nil && s.nego.leg.sec != nil {
		s.nego.leg.sec.Close()
	}
	s.local, s.half, s.nego = nil, nil, nil
}

// handle returns what the daemon wants back of a half established context.
func (s *SecContext) handle() xdr.Opt[xdr.Ctx] {
	if s == nil {
		return xdr.Opt[xdr.Ctx]{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.half == nil {
		return xdr.Opt[xdr.Ctx]{}
	}
	return xdr.Some(*s.half)
}

// contextOf takes a context out of results; where keys were it leaves zeros.
func contextOf(w *xdr.Ctx) (*SecContext, error) {
	s := &SecContext{
		source: nameOf(&w.SrcName), target: nameOf(&w.TargName),
		mech: mech.OID(w.Mech), flags: uint32(w.CtxFlags), initiator: w.LocallyInitiated,
	}
	if d := lifetime(w.Lifetime); d != Indefinite {
		s.expires = time.Now().Add(d)
	}
	if !w.Open {
		s.half = w
		return s, nil
	}
	var err error
	s.local, err = krb5.ImportContext(w.ExportedContextToken)
	clear(w.ExportedContextToken)
	return s, err
}

// AcceptRequest is one token of an initiator.
type AcceptRequest struct {
	Token    []byte
	Mech     mech.OID         // mech.KRB5: do without negotiation; empty: as the first token says
	Context  *SecContext      // nil for the first token
	Cred     *Cred            // nil: the service's
	Bindings *ChannelBindings // nil: the channel is not to be checked
	Delegate bool             // take the credential that the initiator may delegate
}

// Accepted is the outcome of one token.
type Accepted struct {
	Context   *SecContext // established or not: see Open
	Token     []byte      // to be sent to the initiator if it is not empty
	Delegated *Cred       // nil: none
}

// AcceptSecContext has the daemon accept a context. Tokens of SPNEGO are understood: the mechanism
// is negotiated here, and accepted by the daemon. As with gss_accept_sec_context, an empty first
// token asks for what is on offer.
//
// If the daemon refuses, the error is a *[mech.Error], and if that has a Token it tells the
// initiator why.
func (c *Client) AcceptSecContext(ctx context.Context, r AcceptRequest) (*Accepted, error) {
	if !r.Context.negotiates() {
		if r.Context != nil || r.Mech == mech.KRB5 || len(r.Token) > 0 && tokenMech(r.Token) != mech.SPNEGO {
			return c.acceptSecContext(ctx, r)
		}
		r.Context = negotiating(false)
	}
	a, n := new(Accepted), r.Context.nego
	var err error
	a.Context, a.Token, err = r.Context.negotiate(ctx, r.Token, func(ctx context.Context, half *SecContext, token []byte) (*SecContext, []byte, error) {
		inner := r
		inner.Context, inner.Token = half, token
		b, err := c.acceptSecContext(ctx, inner)
		if err != nil {
			return nil, nil, err
		}
		n.delegated = b.Delegated
		return b.Context, b.Token, nil
	})
	if err != nil {
		return nil, err
	}
	if a.Context.Open() {
		a.Delegated = n.delegated
	}
	return a, nil
}

func (c *Client) acceptSecContext(ctx context.Context, r AcceptRequest) (*Accepted, error) {
	arg := xdr.ArgAcceptSecContext{
		ContextHandle: r.Context.handle(), CredHandle: r.Cred.wire(),
		InputToken: r.Token, InputCB: bindings(r.Bindings), RetDelegCred: r.Delegate,
	}
	var res xdr.ResAcceptSecContext
	err := c.call(ctx, xdr.ProcAcceptSecContext, &arg, &res, &res.Status, &res.OutputToken.V)
	if err != nil {
		return nil, err
	}
	if !res.ContextHandle.Set {
		return nil, errors.New("gssproxy: ACCEPT_SEC_CONTEXT: there is no context in the results")
	}
	a := &Accepted{Token: some(res.OutputToken.V)}
	if a.Context, err = contextOf(&res.ContextHandle.V); err != nil {
		return nil, err
	}
	if res.DelegatedCredHandle.Set {
		a.Delegated = &Cred{res.DelegatedCredHandle.V}
	}
	return a, nil
}

// InitRequest starts a context, or goes on with one when the acceptor's token has arrived.
type InitRequest struct {
	Target   Name          // such as {"HTTP@www.example.com", mech.NTHostbased}
	Mech     mech.OID      // empty: mech.KRB5; mech.SPNEGO: negotiated, which is to say Kerberos all the same
	Flags    uint32        // mech.Flag bits wanted
	Lifetime time.Duration // of the ticket, at least; 0: as long as there is one
	Cred     *Cred         // nil: the service's
	Bindings *ChannelBindings
	Context  *SecContext // nil at the start
	Token    []byte      // the acceptor's; nil at the start
}

// Initiated is the outcome of one step.
type Initiated struct {
	Context *SecContext // established or not: see Open
	Token   []byte      // to be sent to the acceptor if it is not empty
	Cred    *Cred       // the credential to use from now on in place of the one given; nil: that one
}

// InitSecContext has the daemon initiate a context. What the daemon refuses, or the acceptor, is a
// *[mech.Error].
func (c *Client) InitSecContext(ctx context.Context, r InitRequest) (*Initiated, error) {
	if !r.Context.negotiates() {
		if r.Context != nil || r.Mech != mech.SPNEGO {
			return c.initSecContext(ctx, r)
		}
		r.Context = negotiating(true)
	}
	i := new(Initiated)
	var err error
	i.Context, i.Token, err = r.Context.negotiate(ctx, r.Token, func(ctx context.Context, half *SecContext, token []byte) (*SecContext, []byte, error) {
		inner := r
		inner.Mech, inner.Context, inner.Token = mech.KRB5, half, token
		inner.Flags |= mech.FlagInteg // protects the negotiation
		b, err := c.initSecContext(ctx, inner)
		if err != nil {
			return nil, nil, err
		}
		i.Cred = b.Cred
		return b.Context, b.Token, nil
	})
	if err != nil {
		return nil, err
	}
	return i, nil
}

func (c *Client) initSecContext(ctx context.Context, r InitRequest) (*Initiated, error) {
	if r.Mech == "" {
		r.Mech = mech.KRB5
	}
	arg := xdr.ArgInitSecContext{
		ContextHandle: r.Context.handle(), CredHandle: r.Cred.wire(), TargetName: xdr.Some(r.Target.wire()),
		MechType: []byte(r.Mech), ReqFlags: uint64(r.Flags), TimeReq: seconds(r.Lifetime), InputCB: bindings(r.Bindings),
	}
	if r.Token != nil {
		arg.InputToken = xdr.Some(r.Token)
	}
	if r.Cred != nil {
		arg.Options = []xdr.Option{{Option: []byte("sync_modified_creds\x00"), Value: []byte("default\x00")}}
	}
	var res xdr.ResInitSecContext
	err := c.call(ctx, xdr.ProcInitSecContext, &arg, &res, &res.Status, &res.OutputToken.V)
	if err != nil {
		return nil, err
	}
	if !res.ContextHandle.Set {
		return nil, errors.New("gssproxy: INIT_SEC_CONTEXT: there is no context in the results")
	}
	i := &Initiated{Token: some(res.OutputToken.V)}
	if i.Context, err = contextOf(&res.ContextHandle.V); err != nil {
		return nil, err
	}
	for _, o := range res.Options {
		if string(o.Option) == "sync_creds\x00" {
			i.Cred = new(Cred)
			if err := i.Cred.UnmarshalBinary(o.Value); err != nil {
				return nil, err
			}
		}
	}
	return i, nil
}

func bindings(b *ChannelBindings) xdr.Opt[xdr.CB] {
	if b == nil {
		return xdr.Opt[xdr.CB]{}
	}
	return xdr.Some(xdr.CB{
		InitiatorAddrtype: uint64(b.InitiatorAddrType), InitiatorAddress: b.InitiatorAddr,
		AcceptorAddrtype: uint64(b.AcceptorAddrType), AcceptorAddress: b.AcceptorAddr,
		ApplicationData: b.AppData,
	})
}
