package fuse

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"gssproxyd/interposer"
	"gssproxyd/limits"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc"
)

// An operation is what is asked with JSON and answered with it; docs/json.md has the fields.
type operation struct {
	name  string
	needs []string // operations of a service, in the words of explain, of which the caller must have one
	help  string
	do    func(ctx context.Context, x *exchange, input []byte) (any, error)
}

var operations = []*operation{
	{"init", []string{"initiate"}, helpInit, step((*exchange).initiate)},
	{"accept", []string{"accept"}, helpAccept, step((*exchange).accept)},
	{"wrap", []string{"accept", "initiate"}, helpWrap, step((*exchange).wrap)},
	{"unwrap", []string{"accept", "initiate"}, helpUnwrap, step((*exchange).unwrap)},
	{"getmic", []string{"accept", "initiate"}, helpGetMIC, step((*exchange).getMIC)},
	{"verifymic", []string{"accept", "initiate"}, helpVerifyMIC, step((*exchange).verifyMIC)},
	{"names", []string{"names"}, helpNames, step((*exchange).names)},
}

// step makes a function of bytes of one of fields.
func step[A, R any](f func(*exchange, context.Context, *A) (*R, error)) func(context.Context, *exchange, []byte) (any, error) {
	return func(ctx context.Context, x *exchange, input []byte) (any, error) {
		var args A
		d := json.NewDecoder(bytes.NewReader(input))
		d.DisallowUnknownFields()
		if err := d.Decode(&args); err != nil {
			return nil, badInput("%s", inJSON(err))
		}
		if _, err := d.Token(); err != io.EOF {
			return nil, badInput("something follows the JSON object")
		}
		return f(x, ctx, &args)
	}
}

// inJSON says what is wrong with JSON, without what is in it: it may be a token.
func inJSON(err error) string {
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &kind):
		if kind.Field != "" {
			return fmt.Sprintf("%s: a %s is not what is expected", kind.Field, kind.Value)
		}
	case strings.HasPrefix(err.Error(), "json: unknown field"):
		return strings.TrimPrefix(err.Error(), "json: ")
	case strings.Contains(err.Error(), "base64"):
		return "a field that is to be base64 is not"
	}
	return "it is no JSON object"
}

func badInput(format string, args ...any) error {
	return mech.Errorf(mech.Failure, 0, reason.BadArgument, format, args...)
}

// exchange is what there is of an execution, or of an open file, between its steps.
type exchange struct {
	server *Server
	owner  owner
	client *interposer.Client
	by     *caller                // who takes the present step
	half   *interposer.SecContext // not established yet; nil: there is none
}

func (s *Server) exchange(of owner) *exchange {
	x := &exchange{server: s, owner: of}
	x.client = interposer.New("", interposer.Options{
		MaxConns: 1,
		Dial:     x.dial,
	})
	return x
}

// dial has the calls of an exchange be those of whoever takes the step.
func (x *exchange) dial(context.Context) (interposer.Caller, error) {
	if x.by.calls == nil { // the former ones have failed
		calls, err := x.server.o.Caller(x.by.Info)
		if err != nil {
			return nil, err
		}
		x.by.calls = calls
	}
	return stepsCaller{x}, nil
}

type stepsCaller struct{ x *exchange }

// Call implements [interposer.Caller].
func (c stepsCaller) Call(ctx context.Context, proc uint32, args []byte) ([]byte, error) {
	limits.EndTurn(ctx) // the call has its own
	return c.x.by.calls.Call(ctx, proc, args)
}

// Close implements [interposer.Caller]. Without a step there is nothing to close: what is open is the
// file's.
func (c stepsCaller) Close() error {
	if by := c.x.by; by != nil && by.calls != nil {
		calls := by.calls
		by.calls = nil
		return calls.Close()
	}
	return nil
}

// run does an operation for a caller, and returns its answer.
func (x *exchange) run(op *operation, by *caller, input []byte) (answer []byte, err error) {
	ctx, cancel := context.WithTimeout(x.server.ctx, stepWithin)
	defer cancel()
	x.by = by
	defer func() { x.by = nil }()
	result, err := x.paidFor(ctx, by.UID, op, input)
	if err != nil {
		return nil, err
	}
	return append(marshal(result), '\n'), nil
}

// paidFor does an operation in its caller's turn.
func (x *exchange) paidFor(ctx context.Context, uid uint32, op *operation, input []byte) (any, error) {
	l := x.server.o.Limits
	if err := l.Steps.Take(uid, 1); err != nil {
		return nil, over(err, reason.TooManyExecutions)
	}
	defer l.Steps.Give(uid, 1)
	ctx, turn, err := l.Turn(limits.WithPayer(ctx, uid), uid, len(input))
	if err != nil {
		return nil, over(err, reason.TooManyLargeCalls)
	}
	defer turn.End()
	return op.do(ctx, x, input)
}

// stepWithin is how long a step may take: the caller cannot be killed for so long.
const stepWithin = 20 * time.Second

// drop forgets what is not established.
func (x *exchange) drop() {
	if x.half != nil {
		x.half.Close()
		x.half = nil
	}
	x.client.Close()
}

// refusal is the answer to what is refused.
type refusal struct {
	Reason string `json:"reason"`
	Text   string `json:"text"`
	Hint   string `json:"hint,omitempty"`
}

// maxWords is the longest text of a refusal, in bytes: it may repeat what was written, and nobody pays for it.
const maxWords = 1 << 10

func refusalOf(err error) *refusal {
	id, text := reasonOf(err)
	if len(text) > maxWords {
		text = strings.ToValidUTF8(text[:maxWords], "") + "..."
	}
	return &refusal{string(id), text, id.Doc().Hint}
}

// reasonOf returns why something is refused, and in words.
func reasonOf(err error) (reason.ID, string) {
	if m, ok := errors.AsType[*mech.Error](err); ok {
		return m.Reason, m.MinorString()
	}
	if errors.Is(err, rpc.ErrNoAnswer) {
		return reason.NoServiceForUID, "the configuration has no service for the caller any more"
	}
	if f, ok := errors.AsType[*rpc.Fault](err); ok {
		return f.Reason, f.Text
	}
	switch {
	case errors.Is(err, errTooLong):
		return reason.BadArgument, err.Error()
	case timedOut(err):
		return reason.KDCUnreachable, fmt.Sprintf("it was not done in %v", stepWithin)
	}
	return reason.Internal, err.Error()
}

// answer is the refusal as it is read.
func (r *refusal) answer() []byte { return append(marshal(r), '\n') }

// String is the same in words.
func (r *refusal) String() string {
	return fmt.Sprintf("%s: %s\nhint: %s\n", r.Reason, r.Text, r.Hint)
}

// InitArgs are written for init: the first time all but Token, then Token alone.
type InitArgs struct {
	Target      string   `json:"target"`
	TargetType  string   `json:"target_type"` // hostbased or principal; empty: as it looks
	Mech        string   `json:"mech"`        // krb5 or spnego
	Flags       []string `json:"flags"`
	Lifetime    int      `json:"lifetime"` // seconds
	Bindings    []byte   `json:"bindings"`
	As          string   `json:"as"` // the id of a context whose initiator has delegated a credential
	Impersonate string   `json:"impersonate"`
	Token       []byte   `json:"token"` // the acceptor's answer
}

// ContextState is answered to init and accept.
type ContextState struct {
	Token       []byte   `json:"token,omitempty"` // for the peer
	Established bool     `json:"established"`
	Context     string   `json:"context,omitempty"` // its id, once it is
	Initiator   string   `json:"initiator,omitempty"`
	User        string   `json:"user,omitempty"` // of this host, who the initiator is
	Acceptor    string   `json:"acceptor,omitempty"`
	Flags       []string `json:"flags,omitempty"`
	Expires     string   `json:"expires,omitempty"`
	Delegated   bool     `json:"delegated,omitempty"`
}

func (x *exchange) initiate(ctx context.Context, a *InitArgs) (*ContextState, error) {
	if x.half != nil && a.Target == "" {
		token, err := x.half.Step(ctx, a.Token)
		return x.stepped(ctx, token, err)
	}
	if a.Target == "" {
		return nil, badInput("target is missing: whom to be authenticated to, such as HTTP@www.example.com")
	}
	if a.Token != nil {
		return nil, badInput("token: there is no context yet that would take one; the first step has a target and no token")
	}
	r := interposer.InitRequest{Cred: interposer.ServiceCred, Lifetime: time.Duration(max(0, a.Lifetime)) * time.Second, Bindings: bindings(a.Bindings)}
	var err error
	if r.Target, err = nameOf("target_type", a.Target, a.TargetType); err != nil {
		return nil, err
	}
	if r.Mech, err = mechOf(a.Mech); err != nil {
		return nil, err
	}
	if r.Flags, err = flagsOf(a.Flags); err != nil {
		return nil, err
	}
	switch {
	case a.As != "" && a.Impersonate != "":
		return nil, badInput("as, impersonate: only one of them")
	case a.As != "":
		k, err := x.kept(a.As)
		if err != nil {
			return nil, err
		}
		p, err := k.context.Peer()
		if err != nil {
			return nil, err
		}
		if r.Cred = p.Delegated; r.Cred == nil {
			return nil, mech.Errorf(mech.NoCred, 0, reason.NoCredential, "as: the initiator of context %s has delegated no credential, or accept was not asked to take it", a.As)
		}
	case a.Impersonate != "":
		r.Cred, err = x.client.AcquireCred(ctx, interposer.AcquireRequest{Usage: interposer.Initiate, Name: interposer.Principal(a.Impersonate), Impersonate: true})
		if err != nil {
			return nil, err
		}
	}
	s, token, err := x.client.InitSecContext(ctx, r)
	return x.begun(ctx, s, token, err)
}

// AcceptArgs are written for accept: all the first time, then Token alone.
type AcceptArgs struct {
	Token    []byte `json:"token"`
	Bindings []byte `json:"bindings"`
	Delegate bool   `json:"delegate"` // take the credential that the initiator may delegate
}

func (x *exchange) accept(ctx context.Context, a *AcceptArgs) (*ContextState, error) {
	if len(a.Token) == 0 {
		return nil, badInput("token is missing: what the initiator has sent, in base64")
	}
	if x.half != nil {
		token, err := x.half.Step(ctx, a.Token)
		return x.stepped(ctx, token, err)
	}
	s, token, err := x.client.AcceptSecContext(ctx, interposer.AcceptRequest{Token: a.Token, Bindings: bindings(a.Bindings), Delegate: a.Delegate})
	return x.begun(ctx, s, token, err)
}

// begun takes a new context in the place of one that is not established.
func (x *exchange) begun(ctx context.Context, s *interposer.SecContext, token []byte, err error) (*ContextState, error) {
	if x.half != nil {
		x.half.Close()
		x.half = nil
	}
	if err != nil {
		return nil, err
	}
	x.half = s
	return x.stepped(ctx, token, nil)
}

// stepped says what has come of a step of the context. One that is established is kept.
func (x *exchange) stepped(ctx context.Context, token []byte, err error) (*ContextState, error) {
	s := x.half
	if err != nil {
		x.half = nil // it is closed
		return nil, err
	}
	state := &ContextState{Token: token, Established: s.Established()}
	if !state.Established {
		return state, nil
	}
	x.half = nil
	p, err := s.Peer()
	if err != nil {
		return nil, err
	}
	k, err := x.server.keep(x.owner, s)
	if err != nil {
		s.Close()
		return nil, err
	}
	state.Context, state.Initiator, state.Acceptor = k.id, s.Source().Display, s.Target().Display
	state.Flags, state.Expires, state.Delegated = namesOf(p.Flags), ends(p.Expires), p.Delegated != nil
	if !s.Initiator() {
		// Who it is on this host is not everybody's to ask, and nothing without it.
		state.User, _ = x.client.LocalName(ctx, s.Source(), mech.KRB5)
	}
	return state, nil
}

// MessageArgs are written for wrap, unwrap, getmic and verifymic.
type MessageArgs struct {
	Context string `json:"context"`
	Message []byte `json:"message"`
	Token   []byte `json:"token"`
	Public  bool   `json:"public"` // wrap: protected, and not encrypted
}

// Message is answered to them.
type Message struct {
	Token     []byte `json:"token,omitempty"`
	Message   []byte `json:"message,omitempty"`
	Encrypted bool   `json:"encrypted,omitempty"`
	Verified  bool   `json:"verified,omitempty"`
}

func (x *exchange) wrap(_ context.Context, a *MessageArgs) (*Message, error) {
	k, err := x.kept(a.Context)
	if err != nil {
		return nil, err
	}
	token, err := k.context.Wrap(nil, a.Message, !a.Public)
	return &Message{Token: token, Encrypted: !a.Public}, err
}

func (x *exchange) unwrap(_ context.Context, a *MessageArgs) (*Message, error) {
	k, err := x.kept(a.Context)
	if err != nil {
		return nil, err
	}
	msg, encrypted, err := k.context.Unwrap(nil, a.Token)
	return &Message{Message: msg, Encrypted: encrypted}, err
}

func (x *exchange) getMIC(_ context.Context, a *MessageArgs) (*Message, error) {
	k, err := x.kept(a.Context)
	if err != nil {
		return nil, err
	}
	token, err := k.context.GetMIC(nil, a.Message)
	return &Message{Token: token}, err
}

func (x *exchange) verifyMIC(_ context.Context, a *MessageArgs) (*Message, error) {
	k, err := x.kept(a.Context)
	if err != nil {
		return nil, err
	}
	return &Message{Verified: true}, k.context.VerifyMIC(a.Message, a.Token)
}

// kept returns a context of the caller's.
func (x *exchange) kept(id string) (*kept, error) {
	if id == "" {
		return nil, badInput("context is missing: the id that init or accept has answered")
	}
	if k := x.server.contexts.find(x.owner.uid, id); k != nil && k.owner == x.owner {
		k.use(x.server.o.Now())
		return k, nil
	}
	return nil, mech.Errorf(mech.NoContext, 0, reason.BadContext, "there is no context %.40q of this user and session: contexts end with their session, with ten idle minutes, and when they are dropped", id)
}

// NamesArgs are written for names.
type NamesArgs struct {
	Name string `json:"name"`
	Type string `json:"type"` // hostbased or principal; empty: as it looks
}

// Names is answered.
type Names struct {
	Name string `json:"name"`           // as Kerberos writes it
	User string `json:"user,omitempty"` // of this host, that the name is
}

func (x *exchange) names(ctx context.Context, a *NamesArgs) (*Names, error) {
	if a.Name == "" {
		return nil, badInput("name is missing: such as alice@EXAMPLE.COM or HTTP@www.example.com")
	}
	n, err := nameOf("type", a.Name, a.Type)
	if err != nil {
		return nil, err
	}
	canonical, err := x.client.ImportName(ctx, n, mech.KRB5)
	if err != nil {
		return nil, err
	}
	answer := &Names{Name: canonical.Display}
	answer.User, err = x.client.LocalName(ctx, canonical, mech.KRB5)
	if errors.Is(err, reason.NoLocalName) || errors.Is(err, reason.UnknownUser) {
		err = nil
	}
	return answer, err
}

// nameOf reads a name. A type that is not given is that of the name's form: SERVICE@HOST has no slash
// and a host in lower case behind the @, where a realm is in upper case. field is the one that the type is in.
func nameOf(field, name, kind string) (interposer.Name, error) {
	switch kind {
	case "principal":
		return interposer.Principal(name), nil
	case "hostbased":
		return interposer.HostbasedName(name, ""), nil
	case "":
		_, behind, at := strings.Cut(name, "@")
		if at && !strings.Contains(name, "/") && behind == strings.ToLower(behind) {
			return interposer.HostbasedName(name, ""), nil
		}
		return interposer.Principal(name), nil
	}
	return interposer.Name{}, badInput("%s: hostbased or principal is expected", field)
}

func mechOf(name string) (mech.OID, error) {
	switch name {
	case "", "krb5":
		return mech.KRB5, nil
	case "spnego":
		return mech.SPNEGO, nil
	}
	return "", badInput("mech: krb5 or spnego is expected")
}

// flags are the names of flags that can be asked for, in the order of their bits.
var flags = []struct {
	name string
	flag interposer.Flags
}{
	{"deleg", mech.FlagDeleg}, {"mutual", mech.FlagMutual}, {"replay", mech.FlagReplay}, {"sequence", mech.FlagSequence},
	{"conf", mech.FlagConf}, {"integ", mech.FlagInteg}, {"channel-bound", mech.FlagChannelBound}, {"dce-style", mech.FlagDCEStyle},
	{"identify", mech.FlagIdentify}, {"deleg-policy", mech.FlagDelegPolicy},
}

// usual are the flags where none are given.
const usual = mech.FlagMutual | mech.FlagReplay | mech.FlagSequence | mech.FlagConf | mech.FlagInteg

func flagsOf(names []string) (f interposer.Flags, err error) {
	if names == nil {
		return usual, nil
	}
	for _, name := range names {
		i := slices.IndexFunc(flags, func(one struct {
			name string
			flag interposer.Flags
		}) bool {
			return one.name == name
		})
		if i < 0 {
			return 0, badInput("flags: there is no flag %.40q", name)
		}
		f |= flags[i].flag
	}
	return f, nil
}

func namesOf(f interposer.Flags) (names []string) {
	for _, one := range flags {
		if f.Has(one.flag) {
			names = append(names, one.name)
		}
	}
	return names
}

func bindings(data []byte) *interposer.ChannelBindings {
	if data == nil {
		return nil
	}
	return &interposer.ChannelBindings{AppData: data}
}

// ends is when something ends, empty for never.
func ends(at time.Time) string {
	if at.IsZero() || at.Equal(interposer.Never) {
		return ""
	}
	return at.UTC().Format(time.RFC3339)
}
