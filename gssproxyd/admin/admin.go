// Package admin is the way from gssproxyd's commands to a running daemon: a program of its own
// (xdr/admin.x) on a socket of its own, for root.
//
// It is not served on the sockets of callers: who may ask a daemon to do something is one thing, and
// who may ask what it has done is another. That the peer is root is what the kernel says; the socket
// is in a directory that is root's besides, so that nobody else gets as far as being asked.
package admin

import (
	"context"
	"iter"
	"log/slog"
	"os"
	"time"

	"gssproxyd/limits"
	"gssproxyd/rpc"
	"gssproxyd/rpc/peer"
	"gssproxyd/xdr"
)

// Procedure executes one call: it appends the result to reply.
type Procedure func(ctx context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat)

// Procedures are those of the program, by number.
type Procedures map[xdr.AdminProc]Procedure

// message is an argument or a result as package xdr generates them.
type message[T any] interface {
	*T
	xdr.Message
}

// Answer makes a procedure of a function from arguments to a result. An error of its becomes the
// result's, with which a result begins.
func Answer[A, R any, PA message[A], PR message[R]](failed func(*R) *string, f func(context.Context, *A, *R) error) Procedure {
	return AnswerFile[A, R, PA, PR](failed, func(ctx context.Context, _ *peer.Info, args *A, file *os.File, res *R) error {
		if file != nil {
			file.Close()
		}
		return f(ctx, args, res)
	})
}

// AnswerFile is [Answer] for a function that gets who calls, and the open file which the call has
// brought, nil if it has brought none. The function closes it.
func AnswerFile[A, R any, PA message[A], PR message[R]](failed func(*R) *string, f func(context.Context, *peer.Info, *A, *os.File, *R) error) Procedure {
	return func(ctx context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
		var args A
		d := xdr.NewDecoder(c.Args)
		if PA(&args).Decode(d); d.Err() != nil {
			return reply, rpc.GarbageArgs
		}
		file := c.File
		c.File = nil
		var res R
		if err := f(ctx, c.Conn.Peer, &args, file, &res); err != nil {
			res = *new(R)
			*failed(&res) = err.Error()
		}
		return PR(&res).Append(reply), rpc.Success
	}
}

// Fitting returns as many entries, from the first on, as there is room for in a result beside a few
// other fields.
func Fitting[T any, P message[T]](entries iter.Seq[T]) (list []T) {
	const room = rpc.MaxRecord - 64<<10
	var scratch []byte
	used := 0
	for e := range entries {
		scratch = P(&e).Append(scratch[:0])
		if used += len(scratch); used > room {
			break
		}
		list = append(list, e)
	}
	return list
}

// None is the arguments of a procedure without.
type None struct{}

// Decode implements [xdr.Message].
func (*None) Decode(*xdr.Decoder) {}

// Append implements [xdr.Message].
func (*None) Append(b []byte) []byte { return b }

// Print implements [xdr.Message].
func (*None) Print(*xdr.Printer) {}

// Server returns a server of the procedures, for root and for uid owner. Whoever else connects is
// refused, and that is in the log.
func Server(p Procedures, owner uint32, l *limits.Limits, log *slog.Logger) *rpc.Server {
	return &rpc.Server{
		Program: &rpc.Admin, Limits: l, Log: log, Files: true,
		Match: func(_ context.Context, c *rpc.Conn, _ uint32) (rpc.Service, bool) {
			if c.Peer.UID != 0 && c.Peer.UID != owner {
				l.Lines.Log(log, slog.LevelWarn, c.Peer.UID, "admin socket", limits.UsualRate, time.Now(), "connection to the admin socket closed", func() []any {
					return []any{"uid", c.Peer.UID, "pid", c.Peer.PID, "socket", c.Socket}
				})
				return nil, false
			}
			return service(p), true
		},
	}
}

type service Procedures

// Handle implements [rpc.Service].
func (s service) Handle(ctx context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
	f := s[xdr.AdminProc(c.Proc)]
	if f == nil {
		return reply, rpc.ProcUnavail
	}
	limits.EndTurn(ctx) // what an administrator asks may take its time
	return f(ctx, c, reply)
}

// Parallel implements [rpc.Service].
func (service) Parallel() int { return 1 }
