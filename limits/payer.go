package limits

import (
	"context"
	"os"
)

// payer is the key of a context's payer.
type payer struct{}

// WithPayer returns a context for work that uid is to pay for, which may go on beyond the call that it was begun for.
func WithPayer(ctx context.Context, uid uint32) context.Context {
	return context.WithValue(ctx, payer{}, uid)
}

// Payer returns who pays for what is done under ctx: the daemon, if nobody else was named.
func Payer(ctx context.Context) uint32 {
	if uid, ok := ctx.Value(payer{}).(uint32); ok {
		return uid
	}
	return uint32(os.Geteuid())
}
