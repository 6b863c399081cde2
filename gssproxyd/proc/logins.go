package proc

import (
	"context"
	"fmt"
	"sync"

	"gssproxyd/mech/krb5"
)

// logins lets one exchange with the KDC serve every call that waits for the same credential.
type logins struct {
	mu      sync.Mutex
	running map[string]*login

	exchanges sync.WaitGroup
	ctx       context.Context // of the exchanges
	cancel    context.CancelFunc
}

func newLogins() *logins {
	l := &logins{running: make(map[string]*login)}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

type login struct {
	done chan struct{}
	cred *krb5.Credential
	err  error
}

// do calls get, or waits for the call of it for the same key that is under way. A caller that goes away does not end the
// exchange for the others: it has a deadline of its own.
func (l *logins) do(ctx context.Context, key string, get func(context.Context) (*krb5.Credential, error)) (*krb5.Credential, error) {
	l.mu.Lock()
	one := l.running[key]
	if one == nil {
		one = &login{done: make(chan struct{})}
		l.running[key] = one
		l.exchanges.Go(func() {
			ctx, cancel := context.WithTimeout(l.ctx, 2*kdcTimeout)
			defer cancel()
			defer close(one.done)
			defer func() {
				l.mu.Lock()
				delete(l.running, key)
				l.mu.Unlock()
			}()
			// A fault here costs those who wait, as one in their own calls would.
			defer func() {
				if r := recover(); r != nil {
					one.cred, one.err = nil, fmt.Errorf("panic in an exchange with a KDC: %T", r)
				}
			}()
			one.cred, one.err = get(ctx)
		})
	}
	l.mu.Unlock()
	select {
	case <-one.done:
		return one.cred, one.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// close ends the exchanges under way. There are no new ones.
func (l *logins) close() {
	l.cancel()
	l.exchanges.Wait()
}
