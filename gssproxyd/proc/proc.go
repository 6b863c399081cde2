// Package proc is the procedures of the gssproxy protocol (program 400112, version 1): what each
// call means. One procedure is one file, which opens with its XDR and says where the C daemon does
// it differently.
//
// A procedure is a function from decoded arguments to a result; decoding, encoding, the GSS status
// of a refusal, its line in the log and the event of each call, for the audit log, the metrics and
// the last refusals, are the same for all of them and are done here. Which service a caller is, is
// decided by package conf from what the kernel says of the caller; a procedure only reads that
// service's rules. The credentials are package creds'.
//
// It has more lines than other packages, in many small files: there are fifteen procedures, and the
// XDR of each is in the comment that opens its file.
package proc

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"time"

	"gssproxyd/audit"
	"gssproxyd/conf"
	"gssproxyd/gssproxyd/creds"
	"gssproxyd/keytab/seal"
	"gssproxyd/limits"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/mech/reason"
	"gssproxyd/phase"
	"gssproxyd/rpc"
	"gssproxyd/rpc/peer"
	"gssproxyd/xdr"
)

// Options is what Procedures is made of.
type Options struct {
	Box    *seal.Box      // seals what clients keep for us
	Limits *limits.Limits // who pays for what a call takes; nil: what is usual

	// Users is the system's user database as callers ask it. With a method For, as *nss.Client has
	// one, each call asks what that returns for its context.
	Users conf.Users
	// Accounts says who initiators are, for the kernel's NFS server; nil: nobody.
	Accounts Accounts

	// Record is told of every call once it is decided, and of connections that are closed since no
	// service is for the caller. It must not keep the event. An error has a call refused that was
	// allowed; nil records nothing.
	Record func(context.Context, *audit.Event) error
	// Evidence is what events have of a caller, beside what rules are about, a label of a security module
	// for [peer.EvidenceAppArmor]. nil: nothing more.
	Evidence func() peer.Evidence

	// Stores are the key stores that configurations name; nil: there are none.
	Stores creds.Stores

	// Phases times the phases of calls; nil: nobody wants to know.
	Phases *phase.Clock
	// Skewed is told how far an initiator's clock is ahead of ours, by each authenticator that has
	// verified; nil: nobody is.
	Skewed func(time.Duration)

	// Unseal opens sealed keytabs, see [creds.Options]; nil: there are none.
	Unseal func(content []byte) (etype.Secret, error)

	Log   *slog.Logger // refusals, and with Debug each call
	Debug int          // 0 silent, 1 each call, 2 arguments and results too (never secrets)
	Now   func() time.Time
}

// New returns Procedures without a configuration: until Load has succeeded it matches no one.
func New(o Options) *Procedures {
	if o.Limits == nil {
		o.Limits = limits.ForProcess()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Record == nil {
		o.Record = func(context.Context, *audit.Event) error { return nil }
	}
	if o.Evidence == nil {
		o.Evidence = func() peer.Evidence { return 0 }
	}
	if o.Skewed == nil {
		o.Skewed = func(time.Duration) {}
	}
	p := &Procedures{
		record: o.Record, evidence: o.Evidence, phases: o.Phases, skewed: o.Skewed, box: o.Box, users: o.Users, accounts: o.Accounts, minDebug: int32(o.Debug),
		debugLog: slog.New(unfiltered{o.Log.Handler()}),
		log:      &creds.Log{Logger: o.Log, Lines: o.Limits.Lines, Now: o.Now},
	}
	p.openTrace(os.Getenv("KRB5_TRACE"))
	p.creds = creds.New(creds.Options{Box: o.Box, Limits: o.Limits, Users: o.Users, Log: p.log, Record: o.Record, Stores: o.Stores, Phases: o.Phases, Unseal: o.Unseal})
	return p
}

// Load puts a configuration and a krb5.conf in force, see [creds.Holder.Load]. On an error nothing
// changes.
func (p *Procedures) Load(c *conf.Config, k *krb5conf.Config) error {
	if err := p.creds.Load(c, k); err != nil {
		return err
	}
	in := &served{conf: c, services: make(map[*conf.Service]*Service, len(c.Services))}
	for cs, s := range p.creds.Current().Services {
		in.services[cs] = &Service{Service: s, p: p}
	}
	p.setDebug(in)
	p.current.Store(in)
	return nil
}

// Keytabs returns how the keytabs are that services have open, see [creds.Holder.Keytabs].
func (p *Procedures) Keytabs() []creds.KeytabState { return p.creds.Keytabs() }

// Close releases what there is of credentials. No call may be in flight.
func (p *Procedures) Close() {
	p.current.Store(nil)
	p.creds.Close()
	p.traceFile.Close() // nil if nothing is traced, which is an error and nothing else
}

// ReplayBytes returns how long the replay caches are, see [creds.Holder.ReplayBytes].
func (p *Procedures) ReplayBytes() int64 { return p.creds.ReplayBytes() }

// Match decides which service a connection belongs to, for each call, so that a reload holds for
// connections that are open. It is the Match of an rpc.Server.
func (p *Procedures) Match(ctx context.Context, conn *rpc.Conn, procedure uint32) (rpc.Service, bool) {
	g := p.current.Load()
	if g == nil {
		return nil, false
	}
	span := p.phases.Begin()
	d := g.conf.Decide(conn.Peer, conn.Socket)
	span.End(phase.Match)
	if conn.Peer.Err() != nil { // nothing is decided by what is not known: the server says so
		return nil, false
	}
	if d.Service == nil {
		p.log.Line(slog.LevelWarn, conn.Peer.UID, string(d.Reason), limits.UsualRate, "connection closed: no service matches the caller", func() []any {
			about := []any{"reason", string(d.Reason), "error", d.Conclusion(), "hint", d.Reason.Doc().Hint}
			return append(append(about, callerAttrs(conn)...), "socket", conn.Socket, "procedure", xdr.Proc(procedure).String())
		})
		p.deny(ctx, conn, procedure, d.Reason, d.Conclusion(), d.Trace) // with the program, where a line has it
		return nil, false
	}
	return g.services[d.Service], true
}

// Needs returns what services that a connection may be for have rules about of the caller's process,
// and what events have of it. It is the Needs of an rpc.Server.
func (p *Procedures) Needs(conn *rpc.Conn) peer.Evidence {
	g := p.current.Load()
	if g == nil {
		return 0
	}
	return g.conf.Needs(conn.Peer, conn.Socket) | p.evidence()
}

// Parallel implements [rpc.Service].
func (s *Service) Parallel() int {
	if s.KernelNFSD {
		return kernelCalls
	}
	return 1
}

// Handle implements [rpc.Service]: it executes one call and appends its result to reply.
func (s *Service) Handle(ctx context.Context, r *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
	if r.Proc >= uint32(len(table)) || table[r.Proc] == nil {
		return reply, rpc.ProcUnavail
	}
	return table[r.Proc](ctx, s, r, reply)
}

// table holds the procedures by number.
var table = [...]func(context.Context, *Service, *rpc.Call, []byte) ([]byte, rpc.AcceptStat){
	xdr.ProcIndicateMechs:      procedure(indicateMechs, func(r *xdr.ResIndicateMechs) *xdr.Status { return &r.Status }),
	xdr.ProcGetCallContext:     procedure(getCallContext, func(r *xdr.ResGetCallContext) *xdr.Status { return &r.Status }),
	xdr.ProcImportAndCanonName: procedure(counted(importAndCanonName), func(r *xdr.ResImportAndCanonName) *xdr.Status { return &r.Status }),
	xdr.ProcExportCred:         procedure(refused[xdr.ArgExportCred], func(r *xdr.ResExportCred) *xdr.Status { return &r.Status }),
	xdr.ProcImportCred:         procedure(refused[xdr.ArgImportCred], func(r *xdr.ResImportCred) *xdr.Status { return &r.Status }),
	xdr.ProcAcquireCred:        procedure(counted(acquireCred), func(r *xdr.ResAcquireCred) *xdr.Status { return &r.Status }),
	xdr.ProcStoreCred:          procedure(refused[xdr.ArgStoreCred], func(r *xdr.ResStoreCred) *xdr.Status { return &r.Status }),
	xdr.ProcInitSecContext:     procedure(counted(initSecContext), func(r *xdr.ResInitSecContext) *xdr.Status { return &r.Status }),
	xdr.ProcAcceptSecContext:   procedure(counted(acceptSecContext), func(r *xdr.ResAcceptSecContext) *xdr.Status { return &r.Status }),
	xdr.ProcReleaseHandle:      procedure(releaseHandle, func(r *xdr.ResReleaseHandle) *xdr.Status { return &r.Status }),
	xdr.ProcGetMic:             procedure(counted(getMIC), func(r *xdr.ResGetMic) *xdr.Status { return &r.Status }),
	xdr.ProcVerify:             procedure(counted(verifyMIC), func(r *xdr.ResVerifyMic) *xdr.Status { return &r.Status }),
	xdr.ProcWrap:               procedure(counted(wrap), func(r *xdr.ResWrap) *xdr.Status { return &r.Status }),
	xdr.ProcUnwrap:             procedure(counted(unwrap), func(r *xdr.ResUnwrap) *xdr.Status { return &r.Status }),
	xdr.ProcWrapSizeLimit:      procedure(counted(wrapSizeLimit), func(r *xdr.ResWrapSizeLimit) *xdr.Status { return &r.Status }),
}

// counted is a procedure whose calls count for the limit of calls per second: those that do something
// for the caller.
func counted[A, R any](f func(context.Context, *Procedures, *call, *A, *R) error) func(context.Context, *Procedures, *call, *A, *R) error {
	return func(ctx context.Context, p *Procedures, c *call, args *A, res *R) error {
		if err := c.Count(); err != nil {
			return err
		}
		return f(ctx, p, c, args, res)
	}
}

// message is an argument or a result as package xdr generates them.
type message[T any] interface {
	*T
	xdr.Message
}

// procedure makes a table entry of a procedure: decode the arguments, execute, encode the result.
// An error that f returns becomes the result's status; what f has put in the result besides stays.
func procedure[A, R any, PA message[A], PR message[R]](
	f func(context.Context, *Procedures, *call, *A, *R) error, status func(*R) *xdr.Status,
) func(context.Context, *Service, *rpc.Call, []byte) ([]byte, rpc.AcceptStat) {
	type frame struct {
		call
		dec  xdr.Decoder
		args A
		res  R
	}
	// Frames are used again, since the arguments of one accept are large and the path is hot.
	// Nothing of one call is visible to the next: every field is zeroed, and the buffer's old bytes
	// are cleared with it.
	pool := sync.Pool{New: func() any { return new(frame) }}

	return func(ctx context.Context, svc *Service, r *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
		p := svc.p
		fr, concluded := pool.Get().(*frame), false
		defer func() {
			if !concluded { // a panic, which is the server's to deal with
				fr.fail(ctx, reason.Internal, "the call has failed for a fault of the program, which its log has")
			}
			fr.Done()
			caller, buf, begun := fr.Caller, creds.Emptied(fr.buf), creds.Emptied(fr.begun)
			*fr = frame{}
			fr.Caller, fr.buf, fr.begun = caller, buf, begun
			pool.Put(fr)
		}()
		fr.p, fr.rpc, fr.debug = p, r, svc.debug.Load()
		fr.Peer, fr.Service, fr.Now = r.Conn.Peer, svc.Service, p.log.Now()
		fr.Context, fr.Left = ctx, &r.Conn.Left
		fr.describe()

		fr.dec.Reset(r.Args)
		if PA(&fr.args).Decode(&fr.dec); fr.dec.Err() != nil {
			fr.note(slog.LevelWarn, reason.BadArgument, "arguments do not decode", "error", fr.dec.Err())
			concluded = true
			fr.fail(ctx, reason.BadArgument, "arguments do not decode: "+fr.dec.Err().Error())
			return reply, rpc.GarbageArgs
		}
		if fr.debug >= 1 {
			p.debugLog.Debug("executing", append(fr.attrs(), "socket", r.Conn.Socket)...)
		}
		if fr.debug >= 2 {
			p.debugLog.Debug("arguments", append(fr.attrs(), "args", xdr.Sprint(PA(&fr.args)))...)
		}
		err := f(ctx, p, &fr.call, &fr.args, &fr.res)
		if err != nil {
			*status(&fr.res) = fr.refuse(err)
		}
		concluded = true
		if failed := fr.conclude(ctx); failed != nil && err == nil {
			fr.res = *new(R)
			*status(&fr.res) = fr.refuse(failed)
		}
		if fr.debug >= 2 {
			p.debugLog.Debug("result", append(fr.attrs(), "res", xdr.Sprint(PR(&fr.res)))...)
		}
		return PR(&fr.res).Append(reply), rpc.Success
	}
}
