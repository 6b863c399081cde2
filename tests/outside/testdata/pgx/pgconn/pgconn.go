// Package pgconn has the declarations of pgx's package of that name that docs/go.md uses.
package pgconn

// GSS is what a provider makes.
type GSS interface {
	GetInitToken(host string, service string) ([]byte, error)
	GetInitTokenFromSPN(spn string) ([]byte, error)
	Continue(inToken []byte) (done bool, outToken []byte, err error)
}

// NewGSSFunc is a provider.
type NewGSSFunc func() (GSS, error)

// RegisterGSSProvider does nothing.
func RegisterGSSProvider(NewGSSFunc) {}
