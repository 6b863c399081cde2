package proc

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"

	"gssproxyd/mech/krb5"
)

// TestLogins: one exchange serves all who wait, a caller that goes away does not end it, a fault in it is an error, and
// none outlives the daemon.
func TestLogins(t *testing.T) {
	defer goleak.VerifyNone(t)
	synctest.Test(t, testLogins)
}

func testLogins(t *testing.T) {
	l := newLogins()
	want := new(krb5.Credential)
	started, proceed := make(chan struct{}), make(chan struct{})
	var exchanges atomic.Int32
	get := func(ctx context.Context) (*krb5.Credential, error) {
		exchanges.Add(1)
		close(started)
		<-proceed
		return want, ctx.Err()
	}

	gone, leave := context.WithCancel(t.Context())
	left := make(chan error)
	go func() {
		_, err := l.do(gone, "alice", get)
		left <- err
	}()
	<-started
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("who went away: %v", err)
	}
	var waiting sync.WaitGroup
	for range 8 {
		waiting.Go(func() {
			if cred, err := l.do(t.Context(), "alice", get); cred != want || err != nil {
				t.Errorf("who waited: %v, %v", cred, err)
			}
		})
	}
	synctest.Wait() // all of them wait for the exchange that there is
	close(proceed)
	waiting.Wait()
	if n := exchanges.Load(); n != 1 {
		t.Errorf("%d exchanges for nine callers", n)
	}

	if cred, err := l.do(t.Context(), "bob", func(context.Context) (*krb5.Credential, error) { panic("fault") }); cred != nil || err == nil {
		t.Errorf("a fault in an exchange: %v, %v", cred, err)
	}

	begun := make(chan struct{})
	ended := make(chan error)
	go func() {
		_, err := l.do(t.Context(), "carol", func(ctx context.Context) (*krb5.Credential, error) {
			close(begun)
			<-ctx.Done()
			return nil, ctx.Err()
		})
		ended <- err
	}()
	<-begun
	l.close()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("an exchange when the daemon ends: %v", err)
	}
}
