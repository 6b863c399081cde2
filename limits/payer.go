package limits

import (
	"context"
	"os"
)

// payer is the key of a context's payer.
type payer struct{}

// paying is a context with a payer: one small allocation, as each call makes one.
type paying struct {
	context.Context
	uid uint32
}

// Value returns the context itself for its own key.
func (p *paying) Value(key any) any {
	if key == (payer{}) {
		return p
	}
	return p.Context.Value(key)
}

// WithPayer returns a context for work that uid is to pay for, which may go on beyond the call that
// it was begun for.
func WithPayer(ctx context.Context, uid uint32) context.Context { return &paying{ctx, uid} }

// Payer returns who pays for what is done under ctx: the daemon, if nobody else was named.
func Payer(ctx context.Context) uint32 {
	if p, ok := ctx.Value(payer{}).(*paying); ok {
		return p.uid
	}
	return uint32(os.Geteuid())
}
