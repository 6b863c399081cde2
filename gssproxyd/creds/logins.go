package creds

import (
	"context"
	"fmt"
	"sync"
	"time"

	"gssproxyd/limits"
	"gssproxyd/mech/krb5"
)

// logins lets one exchange with the KDC serve every call of a payer that waits for the same
// credential. Nobody waits for an exchange of another payer's, who may have to wait for its turn,
// or be refused.
type logins struct {
	mu      sync.Mutex
	running map[loginKey]*login
	failed  map[loginKey]time.Time // the last exchange for the key, and when

	exchanges sync.WaitGroup
	ctx       context.Context // of the exchanges
	cancel    context.CancelFunc
}

func newLogins() *logins {
	l := &logins{running: make(map[loginKey]*login), failed: make(map[loginKey]time.Time)}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// loginKey is who pays and which credential it is for.
type loginKey struct {
	payer      uint32
	credential string
}

type login struct {
	begun time.Time
	done  chan struct{}
	cred  *krb5.Credential
	err   error
}

// kdcTimeout bounds one exchange with the KDCs of a realm, CallTimeout all that one call waits for.
// Clients give a call up after fifteen seconds.
const (
	kdcTimeout  = 10 * time.Second
	CallTimeout = 12 * time.Second
)

// Limits for callers whose ticket is still valid.
const (
	validWait  = time.Second      // how long they wait for an exchange
	validPause = 30 * time.Second // how long after one that failed there is no other
	maxFailed  = 1024             // beyond this any one makes room
)

// do calls get, or waits for the call of it for the same credential that is under way. A caller
// that goes away does not end the exchange for the others: it has a deadline of its own.
func (l *logins) do(ctx context.Context, credential string, get func(context.Context) (*krb5.Credential, error)) (*krb5.Credential, error) {
	l.mu.Lock()
	one := l.begin(loginKey{limits.Payer(ctx), credential}, get)
	l.mu.Unlock()
	limits.EndTurn(ctx)
	select {
	case <-one.done:
		return one.cred, one.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// try is do for a caller that can go on without, and does when it is nil that comes back: a KDC
// that does not answer must not hold up every call, nor one that refuses be asked at each.
func (l *logins) try(ctx context.Context, credential string, wait time.Duration, get func(context.Context) (*krb5.Credential, error)) *krb5.Credential {
	key := loginKey{limits.Payer(ctx), credential}
	l.mu.Lock()
	if at, ok := l.failed[key]; ok && l.running[key] == nil && time.Since(at) < validPause {
		l.mu.Unlock()
		return nil
	}
	one := l.begin(key, get)
	l.mu.Unlock()
	limits.EndTurn(ctx)
	timer := time.NewTimer(wait - time.Since(one.begun))
	defer timer.Stop()
	select {
	case <-one.done:
		return one.cred
	case <-timer.C:
	case <-ctx.Done():
	}
	return nil
}

// begin returns the exchange that is under way, or begins one. l.mu is held.
func (l *logins) begin(key loginKey, get func(context.Context) (*krb5.Credential, error)) *login {
	if one := l.running[key]; one != nil {
		return one
	}
	one := &login{begun: time.Now(), done: make(chan struct{})}
	l.running[key] = one
	l.exchanges.Go(func() {
		ctx, cancel := context.WithTimeout(limits.WithPayer(l.ctx, key.payer), 2*kdcTimeout)
		defer cancel()
		defer close(one.done)
		defer func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			delete(l.running, key)
			delete(l.failed, key)
			if one.err != nil {
				if len(l.failed) >= maxFailed {
					dropAny(l.failed)
				}
				l.failed[key] = time.Now()
			}
		}()
		// A fault here costs those who wait, as one in their own calls would.
		defer func() {
			if r := recover(); r != nil {
				one.cred, one.err = nil, fmt.Errorf("panic in an exchange with a KDC: %T", r)
			}
		}()
		one.cred, one.err = get(ctx)
	})
	return one
}

// close ends the exchanges under way. There are no new ones.
func (l *logins) close() {
	l.cancel()
	l.exchanges.Wait()
}
