package proc

import (
	"context"
	"log/slog"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"gssproxyd/audit"
	"gssproxyd/conf"
	"gssproxyd/gssproxyd/creds"
	"gssproxyd/gssproxyd/nss"
	"gssproxyd/keytab/seal"
	"gssproxyd/limits"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/reason"
	"gssproxyd/phase"
	"gssproxyd/rpc"
	"gssproxyd/rpc/peer"
	"gssproxyd/xdr"
)

// Procedures answers calls. It is safe for concurrent use; Load replaces its configuration under
// running calls, which finish with the one they began with.
type Procedures struct {
	current  atomic.Pointer[served]
	creds    *creds.Holder
	box      *seal.Box // of contexts that are not established yet
	users    conf.Users
	accounts Accounts
	log      *creds.Log
	record   func(context.Context, *audit.Event) error
	evidence func() peer.Evidence // that events have
	minDebug int32                // the command line's level
	levels   map[string]int       // of services, by name, see Debug
	debugLog *slog.Logger         // for lines of a debug level
	phases   *phase.Clock
	skewed   func(time.Duration)

	traceFile *os.File

	kernelEnctypes atomic.Pointer[[]etype.ID]
}

// served is the configuration in force.
type served struct {
	conf     *conf.Config
	services map[*conf.Service]*Service
}

// Service executes the calls of its callers, an [rpc.Service].
type Service struct {
	*creds.Service
	p     *Procedures
	debug atomic.Int32 // the level in force
}

// Accounts says who a user is; *nss.Client does.
type Accounts interface {
	Account(ctx context.Context, name string) (nss.Account, error)
}

// call is one call in progress: who asks, as which service, and memory that lives as long as the
// call.
type call struct {
	creds.Caller
	p     *Procedures
	rpc   *rpc.Call
	debug int32        // the level
	event audit.Event  // what Event points to
	from  audit.Caller // of that
	buf   []byte       // what the result's slices point into
	begun []byte       // plaintext of the context that came with the call
}

// keep appends with f to the call's memory and returns the part appended.
func (c *call) keep(f func(b []byte) []byte) []byte {
	n := len(c.buf)
	c.buf = f(c.buf)
	return c.buf[n:len(c.buf):len(c.buf)]
}

// attrs says for the log whose call it is.
func (c *call) attrs() []any {
	return append(callerAttrs(c.rpc.Conn), "call", c.Event.CallID(), "procedure", xdr.Proc(c.rpc.Proc).String(), "service", c.Service.Name)
}

func callerAttrs(conn *rpc.Conn) []any {
	a := []any{"connection", conn.ID, "uid", conn.Peer.UID, "pid", conn.Peer.PID}
	if program, ok := conn.Peer.Program.Get(); ok {
		a = append(a, "program", program)
	}
	return a
}

// kernelRate is of lines about the kernel's calls. It asks eighteen times, over several seconds,
// for one mount that fails.
var kernelRate = limits.Rate{Burst: 5, Every: 5 * time.Second}

// note writes a line about a reason to the log, within the limits of lines for the caller, service
// and reason.
func (c *call) note(level slog.Level, id reason.ID, msg string, attrs ...any) {
	if level < slog.LevelInfo && c.debug >= 1 {
		c.p.debugLog.Log(c.Context, level, msg, append(append(c.attrs(), "reason", string(id)), attrs...)...)
		return
	}
	r := limits.UsualRate
	if c.Service.KernelNFSD {
		r = kernelRate
	}
	c.p.log.Line(level, c.Peer.UID, c.Service.Name+" "+string(id), r, msg, func() []any {
		return append(append(c.attrs(), "reason", string(id), "hint", id.Doc().Hint), attrs...)
	})
}

// format is which forms of the kernel's a call wants results in.
type format struct{ lucid, creds bool }

// requestedFormat reads the options that ask for a form.
func requestedFormat(options []xdr.Option) (f format, err error) {
	for _, o := range [...]struct {
		name, known []byte
		asked       *bool
	}{{optExportedContextType, valLucid, &f.lucid}, {optExportedCredsType, valLinuxCreds, &f.creds}} {
		v, ok := option(options, o.name)
		if ok && string(v) != string(o.known) {
			return f, badOption(o.name, v, o.known)
		}
		*o.asked = ok
	}
	return f, nil
}

// Object identifiers as results carry them; shared, never written to.
var (
	oidKRB5          = []byte(mech.KRB5)
	oidKrb5Principal = []byte(mech.NTKrb5Principal)
	oidAnonymous     = []byte(mech.NTAnonymous)
)

// wellKnownAnonymous is the principal of RFC 8062 whose display type is GSS_C_NT_ANONYMOUS.
const wellKnownAnonymous = "WELLKNOWN/ANONYMOUS@WELLKNOWN:ANONYMOUS"

// mechName makes a gssx_name of a mechanism name: display form, type, and both exported forms (RFC
// 2743 section 3.2, RFC 6680 section 8). attrs is the attribute part of the composite form, empty
// for a name without attributes.
func (c *call) mechName(principal string, attrs []byte) xdr.Name {
	n := xdr.Name{
		DisplayName:           c.keep(func(b []byte) []byte { return append(b, principal...) }),
		NameType:              oidKrb5Principal,
		ExportedName:          c.keep(func(b []byte) []byte { return mech.AppendExportedName(b, mech.KRB5, principal) }),
		ExportedCompositeName: c.keep(func(b []byte) []byte { return mech.AppendCompositeName(b, mech.KRB5, principal, attrs) }),
	}
	if principal == wellKnownAnonymous {
		n.NameType = oidAnonymous
	}
	return n
}

// fillContext makes the gssx_ctx of an established context: its exported form, which the client's
// library imports, and what a client may ask of it before.
func (c *call) fillContext(res *xdr.Opt[xdr.Ctx], ctx *krb5.Context) {
	res.Set = true
	x := &res.V
	initiator, acceptor := ctx.There, ctx.Here
	if ctx.Initiator {
		initiator, acceptor = ctx.Here, ctx.There
	}
	attrs := c.keep(ctx.AppendNameAttributes)
	x.ExportedContextToken = c.keep(ctx.AppendExport)
	x.Mech = oidKRB5
	x.SrcName = c.mechName(initiator, attrs)
	x.TargName = c.mechName(acceptor, nil)
	x.Lifetime = lifetime(ctx, c.Now, c.Service.Krb5.Clockskew)
	x.CtxFlags = uint64(ctx.Flags)
	x.LocallyInitiated = ctx.Initiator
	x.Open = true
}

// lifetime is how many seconds a context still lives: for an acceptor up to the ticket's end and
// the clock skew, as libkrb5 computes it; 0 when it has expired.
func lifetime(ctx *krb5.Context, now time.Time, skew time.Duration) uint64 {
	end := int64(ctx.EndTime)
	if !ctx.Initiator {
		end += int64(skew / time.Second)
	}
	return uint64(max(0, end-now.Unix()))
}

// Contexts whose exchange goes on travel with the client, sealed.

var continueText = []byte(mech.ContinueNeeded.Text() + "\x00")

// partialContext makes the gssx_ctx of a context that is not established yet.
func (c *call) partialContext(partial etype.Secret, ctx *krb5.Context) xdr.Opt[xdr.Ctx] {
	return xdr.Some(xdr.Ctx{
		ExportedContextToken: c.keep(func(b []byte) []byte { return c.p.box.Seal(b, partial, c.begunBy(), seal.KindContext) }),
		Mech:                 oidKRB5,
		CtxFlags:             uint64(ctx.Flags),
		LocallyInitiated:     ctx.Initiator,
	})
}

// begunBy is who may go on with a context: the same service and uid.
func (c *call) begunBy() string {
	return strconv.FormatUint(uint64(c.Peer.UID), 10) + " " + c.Service.Name
}

// partial opens the context that came with a call, if it is one that this caller has begun.
func (c *call) partial(x *xdr.Opt[xdr.Ctx]) (etype.Secret, bool) {
	if !x.Set || len(x.V.ExportedContextToken) == 0 {
		return nil, false
	}
	partial, err := c.p.box.Unseal(c.begun[:0], x.V.ExportedContextToken, c.begunBy(), seal.KindContext)
	if err != nil {
		c.note(slog.LevelDebug, reason.BadContext, "a context does not open: it counts as none")
		return nil, false
	}
	c.begun = partial // cleared when the call ends
	return partial, true
}
