package interposer

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/reason"
	"gssproxyd/mech/spnego"
	"gssproxyd/rpc"
	"gssproxyd/xdr"
)

// ChannelBindings say in which channel the tokens travel, for both ends to compare (RFC 2744 section
// 3.11). Mostly only AppData is set, such as to RFC 5929's bindings for TLS; package negotiate does
// that for HTTP.
type ChannelBindings struct {
	InitiatorAddrType uint32
	InitiatorAddr     []byte
	AcceptorAddrType  uint32
	AcceptorAddr      []byte
	AppData           []byte
}

func (b *ChannelBindings) wire() xdr.Opt[xdr.CB] {
	if b == nil {
		return xdr.Opt[xdr.CB]{}
	}
	return xdr.Some(xdr.CB{
		InitiatorAddrtype: uint64(b.InitiatorAddrType), InitiatorAddress: b.InitiatorAddr,
		AcceptorAddrtype: uint64(b.AcceptorAddrType), AcceptorAddress: b.AcceptorAddr,
		ApplicationData: b.AppData,
	})
}

// SecContext is one end of a security context. Client.InitSecContext and Client.AcceptSecContext
// begin one, Step goes on with the peer's tokens until it is Established. Messages are protected and
// verified here, without the daemon. All methods may be called from several goroutines: messages
// are taken one at a time, and none waits for a Step.
//
// Close a SecContext when it is done with. Printing one shows no keys.
type SecContext struct {
	client    *Client
	initiator bool

	// As long as the context is not established these belong to whoever takes a step; nobody else
	// looks at them.
	request  InitRequest      // what it was begun with; of an acceptor's Cred and Bindings alone
	delegate bool             // an acceptor's
	nego     spnego.Context   // nil: the mechanism is not negotiated
	half     xdr.Opt[xdr.Ctx] // what the daemon wants back with the peer's next token
	local    *krb5.Context    // the mechanism's context, whose negotiation may still go on
	inner    mech.OID         // the mechanism itself

	mu          sync.Mutex
	interrupt   context.CancelFunc // ends the Step in flight; nil: there is none
	established bool
	closed      bool
	mech        mech.OID // empty: not known yet
	source      Name
	target      Name
	flags       Flags
	expires     time.Time
	delegated   *Cred
	cred        *Cred // to initiate the next context with
}

// Established reports whether the context is established: the peer is known, and messages can be
// protected.
func (s *SecContext) Established() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.established
}

// Initiator reports whether this end initiated the context, for code that is given one.
func (s *SecContext) Initiator() bool { return s.initiator }

// Source returns the initiator's name, as far as it is known, for a log. Whether it is proven says
// Peer.
func (s *SecContext) Source() Name {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.source
}

// Target returns the acceptor's name, as Source does the initiator's: of a server with several it
// is the one that the client has asked for.
func (s *SecContext) Target() Name {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.target
}

// Mech returns the mechanism; of a negotiation it is mech.SPNEGO as long as that goes on, and the
// one agreed upon afterwards.
func (s *SecContext) Mech() mech.OID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mech
}

// Flags returns what was granted so far; of an established context it is final, and in Peer too.
func (s *SecContext) Flags() Flags {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flags
}

// Expires returns the end of the context's lifetime, Never if it has none or is not established.
// Messages can be exchanged after it; whether to is up to the program.
func (s *SecContext) Expires() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.expires
}

// Cred returns the credential to initiate the next context with: the one that this context was
// initiated with, or what the daemon has put in its place, with new tickets. It is nil for an
// acceptor's context.
func (s *SecContext) Cred() *Cred {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cred
}

// String says who is talking to whom.
func (s *SecContext) String() string {
	return fmt.Sprintf("context of %s with %s", s.Source(), s.Target())
}

// Format writes what String returns, whatever the verb.
func (s *SecContext) Format(f fmt.State, _ rune) { io.WriteString(f, s.String()) }

// MarshalText returns what String does.
func (s *SecContext) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue returns the two names.
func (s *SecContext) LogValue() slog.Value {
	return slog.GroupValue(slog.String("source", s.Source().Display), slog.String("target", s.Target().Display))
}

// noContext is for a context in the wrong state.
func (s *SecContext) noContext(text string) error {
	return mech.Errorf(mech.NoContext, 0, reason.BadContext, "%s", text).Of(s.mech)
}

// lock locks s.mu, for the caller to unlock in any case, and returns the local context.
func (s *SecContext) lock() (*krb5.Context, error) {
	s.mu.Lock()
	switch {
	case s.closed:
		return nil, s.noContext("the context is closed")
	case !s.established:
		return nil, s.noContext("the context is not established")
	}
	return s.local, nil
}

// Wrap appends to dst the token that carries msg, encrypted if conf, for the peer's Unwrap. The
// error is a *[mech.Error].
func (s *SecContext) Wrap(dst, msg []byte, conf bool) ([]byte, error) {
	c, err := s.lock()
	defer s.mu.Unlock()
	if err != nil {
		return dst, err
	}
	return c.Wrap(dst, msg, conf)
}

// Unwrap appends to dst the message in the peer's token and reports whether it came encrypted. The
// error is a *[mech.Error].
//
// A message that came before, too late or out of order, where the context detects that
// (mech.FlagReplay, mech.FlagSequence), is an error with the reason out-of-order, whose Major says
// which it is (mech.DuplicateToken, OldToken, UnseqToken, GapToken). The message is authentic and
// returned nonetheless, for a protocol that allows it.
func (s *SecContext) Unwrap(dst, token []byte) (msg []byte, conf bool, err error) {
	c, err := s.lock()
	defer s.mu.Unlock()
	if err != nil {
		return dst, false, err
	}
	msg, conf, order, err := c.Unwrap(dst, token)
	if err == nil {
		err = s.order(order)
	}
	return msg, conf, err
}

// GetMIC appends to dst the token that protects msg, for the peer's VerifyMIC, where the protocol
// has a place of its own for msg. The error is a *[mech.Error].
func (s *SecContext) GetMIC(dst, msg []byte) ([]byte, error) {
	c, err := s.lock()
	defer s.mu.Unlock()
	if err != nil {
		return dst, err
	}
	return c.GetMIC(dst, msg)
}

// VerifyMIC checks the peer's token over msg. The error is a *[mech.Error]; as with Unwrap one with
// the reason out-of-order says that the message is authentic but not the next one.
func (s *SecContext) VerifyMIC(msg, mic []byte) error {
	c, err := s.lock()
	defer s.mu.Unlock()
	if err != nil {
		return err
	}
	order, err := c.VerifyMIC(msg, mic)
	if err == nil {
		err = s.order(order)
	}
	return err
}

// order is what is wrong with the order of messages as an error.
func (s *SecContext) order(supplementary mech.Major) error {
	if supplementary == mech.Complete {
		return nil
	}
	return mech.Errorf(supplementary, 0, reason.OutOfOrder, "%s", supplementary.Text()).Of(s.mech)
}

// WrapSizeLimit returns the longest message whose Wrap token has at most size bytes, for protocols
// that limit their tokens; 0 if the context is not established.
func (s *SecContext) WrapSizeLimit(conf bool, size uint32) uint32 {
	c, err := s.lock()
	defer s.mu.Unlock()
	if err != nil {
		return 0
	}
	return c.WrapSizeLimit(conf, size)
}

// PseudoRandom returns n bytes that both ends derive of in (RFC 4401), of the initiator's key if
// partial, for a protocol that needs keys of its own. The error is a *[mech.Error].
func (s *SecContext) PseudoRandom(partial bool, in []byte, n int) ([]byte, error) {
	c, err := s.lock()
	defer s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return c.PseudoRandom(partial, in, n)
}

// Export returns the context, keys and all, as gss_export_sec_context of MIT krb5 would, for a
// program in C that gets the connection and imports it. This one is closed. The error is a
// *[mech.Error].
func (s *SecContext) Export() ([]byte, error) {
	c, err := s.lock()
	defer s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	token := c.AppendExport(nil)
	s.established, s.closed = false, true
	s.destroy()
	return token, nil
}

// Close overwrites the keys. The context is of no use afterwards; what Peer has returned stays good.
// A Step that waits for the daemon ends at once, with mech.NoContext.
func (s *SecContext) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.established, s.closed = false, true
	if s.interrupt != nil {
		s.interrupt() // the Step overwrites what it has
	} else {
		s.destroy()
	}
	return nil
}

// destroy overwrites and forgets what only an open context needs.
func (s *SecContext) destroy() {
	if s.local != nil {
		s.local.Destroy()
	}
	s.setHalf(xdr.Opt[xdr.Ctx]{})
	s.local, s.nego, s.request = nil, nil, InitRequest{}
}

// setHalf replaces the half established context, which may have keys.
func (s *SecContext) setHalf(half xdr.Opt[xdr.Ctx]) {
	clear(s.half.V.ExportedContextToken)
	clear(s.half.V.State)
	s.half = half
}

// AcceptRequest says which context to accept. Most programs set Token alone.
type AcceptRequest struct {
	Token    []byte           // the initiator's first
	Mech     mech.OID         // mech.KRB5: do without negotiation; empty: as the token says
	Cred     *Cred            // an acceptor's; nil: the service's, as ServiceCred
	Bindings *ChannelBindings // nil: the channel is not to be checked
	Delegate bool             // take the credential that the initiator may delegate: Peer.Delegated
}

// AcceptSecContext has the daemon accept a context. Tokens of SPNEGO are understood: the mechanism
// is negotiated here, and accepted by the daemon. As with gss_accept_sec_context, an empty first
// token asks for what is on offer. reply is to be sent to the initiator if it is not empty; until the
// context is established, Step takes the initiator's next token.
//
// If the daemon refuses, the error is a *[mech.Error], and if that has a Token it tells the
// initiator why. There is no context then.
func (c *Client) AcceptSecContext(ctx context.Context, r AcceptRequest) (s *SecContext, reply []byte, err error) {
	if r.Cred != nil {
		if err := r.Cred.usable(); err != nil {
			return nil, nil, err
		}
	}
	s = &SecContext{client: c, mech: r.Mech, request: InitRequest{Cred: r.Cred, Bindings: r.Bindings}, delegate: r.Delegate, expires: Never}
	if r.Mech == mech.SPNEGO || r.Mech == "" && (len(r.Token) == 0 || isSPNEGO(r.Token)) {
		s.mech, s.nego = mech.SPNEGO, &spnego.Acceptor{Mechs: s.offer()}
	}
	if reply, err = s.step(ctx, r.Token); err != nil {
		return nil, nil, err
	}
	return s, reply, nil
}

// offer is what is negotiated.
func (s *SecContext) offer() []spnego.Mech {
	return []spnego.Mech{{OID: mech.KRB5, New: func() spnego.Context { return leg{s} }}}
}

// InitRequest says which context to initiate. Target and Cred are required.
type InitRequest struct {
	Target   Name             // see HostbasedName
	Cred     *Cred            // as whom: ServiceCred, or a user's; nil is an error
	Mech     mech.OID         // empty: mech.KRB5; mech.SPNEGO: negotiated, which is to say Kerberos all the same
	Flags    Flags            // wanted; what is granted says Peer.Flags
	Lifetime time.Duration    // of the ticket, at least; 0: as long as there is one
	Bindings *ChannelBindings // nil: none
}

// InitSecContext has the daemon initiate a context. token is to be sent to the acceptor; until the
// context is established, Step takes the acceptor's answer. What the daemon refuses, or the
// acceptor, is a *[mech.Error].
func (c *Client) InitSecContext(ctx context.Context, r InitRequest) (s *SecContext, token []byte, err error) {
	if err := r.Cred.usable(); err != nil {
		return nil, nil, err
	}
	s = &SecContext{client: c, initiator: true, mech: r.Mech, request: r, target: r.Target, cred: r.Cred, expires: Never}
	switch r.Mech {
	case "":
		s.mech, s.request.Mech = mech.KRB5, mech.KRB5
	case mech.SPNEGO:
		s.request.Mech = mech.KRB5
		s.request.Flags |= mech.FlagInteg // protects the negotiation
		s.nego = &spnego.Initiator{Mechs: s.offer()}
	}
	if token, err = s.step(ctx, nil); err != nil {
		return nil, nil, err
	}
	return s, token, nil
}

// Step goes on with a context that is not established, with the peer's token, and returns the next
// one for the peer, which is to be sent if it is not empty. After an error the context is closed; a
// *[mech.Error] may have a Token that tells an initiator why. A context that is established or
// closed takes no token: mech.NoContext. The same is said to who calls Step while another Step has
// not returned, without harm to that.
func (s *SecContext) Step(ctx context.Context, token []byte) (reply []byte, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := s.enter(cancel); err != nil {
		return nil, err
	}
	return s.step(ctx, token)
}

// enter makes the caller the one that takes a step.
func (s *SecContext) enter(interrupt context.CancelFunc) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.client == nil:
		return s.noContext("there is no context: InitSecContext or AcceptSecContext begins one")
	case s.closed:
		return s.noContext("the context is closed, and takes no token")
	case s.established:
		return s.noContext("the context is established, and takes no token")
	case s.interrupt != nil:
		return s.noContext("the context takes one token after the other, and another call of Step has not returned")
	}
	s.interrupt = interrupt
	return nil
}

// step is Step for the one who may take it.
func (s *SecContext) step(ctx context.Context, token []byte) (reply []byte, err error) {
	established := false
	switch {
	case len(token) > maxToken:
		err = mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, "the token has %d bytes, at most %d can be sent to the daemon", len(token), maxToken).Of(s.mech)
	case s.nego != nil:
		reply, established, err = s.nego.Step(ctx, token)
	default:
		reply, established, err = leg{s}.Step(ctx, token)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.interrupt = nil
	if s.closed {
		err = s.noContext("the context was closed while it took a token")
	}
	if err != nil {
		s.closed = true
		s.destroy()
		return nil, err
	}
	if established {
		s.established, s.mech = true, s.inner
		s.nego, s.request = nil, InitRequest{}
	}
	return reply, nil
}

// maxToken leaves room for the rest of a call.
const maxToken = rpc.MaxRecord - 64<<10

// leg is the Kerberos context of a SecContext, for who takes a step: its only one, or the one inside
// a negotiation (RFC 4178). That takes place in this process: the daemon makes and takes the tokens
// of Kerberos, and knows nothing of what is around them.
type leg struct{ s *SecContext }

// Step makes a call to the daemon.
func (l leg) Step(ctx context.Context, token []byte) (reply []byte, established bool, err error) {
	if l.s.initiator {
		return l.s.initiate(ctx, token)
	}
	return l.s.accept(ctx, token)
}

// Flags implements spnego.Context.
func (l leg) Flags() uint32 { return uint32(l.s.Flags()) }

// GetMIC implements spnego.Context.
func (l leg) GetMIC(dst, msg []byte) ([]byte, error) { return l.s.local.GetMIC(dst, msg) }

// VerifyMIC implements spnego.Context.
func (l leg) VerifyMIC(msg, mic []byte) (mech.Major, error) { return l.s.local.VerifyMIC(msg, mic) }

func (s *SecContext) accept(ctx context.Context, token []byte) (reply []byte, established bool, err error) {
	// One piece of memory for both.
	var call struct {
		arg xdr.ArgAcceptSecContext
		res xdr.ResAcceptSecContext
	}
	arg, res := &call.arg, &call.res
	*arg = xdr.ArgAcceptSecContext{ContextHandle: s.half, InputToken: token, InputCB: s.request.Bindings.wire(), RetDelegCred: s.delegate}
	if cred := s.request.Cred; cred != nil {
		arg.CredHandle, arg.Options = cred.handle()
	}
	if err := s.client.call(ctx, xdr.ProcAcceptSecContext, arg, res, &res.Status, &res.OutputToken.V); err != nil {
		return nil, false, err
	}
	established, err = s.take(xdr.ProcAcceptSecContext, &res.ContextHandle, credOf(&res.DelegatedCredHandle))
	return res.OutputToken.V, established, err
}

func (s *SecContext) initiate(ctx context.Context, token []byte) (reply []byte, established bool, err error) {
	r := &s.request
	arg := xdr.ArgInitSecContext{
		ContextHandle: s.half, TargetName: xdr.Some(r.Target.wire()), MechType: []byte(r.Mech),
		ReqFlags: uint64(r.Flags), TimeReq: seconds(r.Lifetime), InputCB: r.Bindings.wire(),
	}
	if token != nil || s.half.Set {
		arg.InputToken = xdr.Some(token)
	}
	if arg.CredHandle, arg.Options = r.Cred.handle(); arg.CredHandle.Set {
		arg.Options = append(arg.Options, xdr.Option{Option: []byte("sync_modified_creds\x00"), Value: []byte("default\x00")})
	}
	var res xdr.ResInitSecContext
	if err := s.client.call(ctx, xdr.ProcInitSecContext, &arg, &res, &res.Status, &res.OutputToken.V); err != nil {
		return nil, false, err
	}
	var renewed *Cred
	for _, o := range res.Options {
		if string(o.Option) == "sync_creds\x00" {
			if renewed, err = readCred(o.Value); err != nil {
				clear(res.ContextHandle.V.ExportedContextToken)
				return nil, false, err
			}
			renewed.got = time.Now()
		}
	}
	established, err = s.take(xdr.ProcInitSecContext, &res.ContextHandle, renewed)
	return res.OutputToken.V, established, err
}

// take takes a context out of results; where keys were it leaves zeros. cred came with it: it is
// delegated, or in the place of the initiator's. nil: none did.
func (s *SecContext) take(proc xdr.Proc, h *xdr.Opt[xdr.Ctx], cred *Cred) (established bool, err error) {
	if !h.Set {
		return false, fmt.Errorf("gssproxy: %v: there is no context in the results", proc)
	}
	w := &h.V
	if s.inner = oidOf(w.Mech); w.Open {
		s.setHalf(xdr.Opt[xdr.Ctx]{})
		s.local, err = krb5.ImportContext(w.ExportedContextToken)
		if clear(w.ExportedContextToken); err != nil {
			return false, err
		}
	} else {
		s.setHalf(*h)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flags = Flags(w.CtxFlags); w.Open {
		s.expires = end(time.Now(), w.Lifetime)
	}
	if len(w.SrcName.DisplayName) > 0 {
		s.source = nameOf(&w.SrcName)
	}
	if len(w.TargName.DisplayName) > 0 {
		s.target = nameOf(&w.TargName)
	}
	switch {
	case cred == nil:
	case s.initiator:
		s.cred = cred
	default:
		s.delegated = cred
	}
	return w.Open, nil
}

// isSPNEGO reports whether a first token names SPNEGO (RFC 2743 section 3.1).
func isSPNEGO(token []byte) bool {
	r := der.NewReader(token)
	r.Enter(der.Application(0))
	return string(r.Value(der.ObjectID)) == string(mech.SPNEGO)
}
