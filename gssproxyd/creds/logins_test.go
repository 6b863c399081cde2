package creds

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"gssproxyd/limits"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/reason"
	"gssproxyd/phase"
)

// TestLogins: one exchange serves all who wait, a caller that goes away does not end it, a fault in
// it is an error, and none outlives the daemon.
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

	// Nobody waits for another payer's, or is refused with it.
	stuck, goOn := make(chan struct{}), make(chan struct{})
	waiting.Go(func() {
		l.do(limits.WithPayer(t.Context(), 1000), "alice", func(context.Context) (*krb5.Credential, error) {
			close(stuck)
			<-goOn
			return nil, errors.New("too much")
		})
	})
	<-stuck
	if cred, err := l.do(limits.WithPayer(t.Context(), 1001), "alice", func(ctx context.Context) (*krb5.Credential, error) {
		if uid := limits.Payer(ctx); uid != 1001 {
			t.Errorf("uid %d pays for what 1001 asked for", uid)
		}
		return want, nil
	}); cred != want || err != nil {
		t.Errorf("beside another payer's: %v, %v", cred, err)
	}
	close(goOn)
	waiting.Wait()

	if cred, err := l.do(t.Context(), "bob", func(context.Context) (*krb5.Credential, error) { panic("fault") }); cred != nil || err == nil {
		t.Errorf("a fault in an exchange: %v, %v", cred, err)
	}

	// Who has a ticket that is still good waits for a second, and for a while not at all when an
	// exchange has failed.
	slow := func(context.Context) (*krb5.Credential, error) {
		time.Sleep(5 * time.Second)
		return want, nil
	}
	start := time.Now()
	for range 2 {
		if cred, took := l.try(t.Context(), "dave", validWait, slow), time.Since(start); cred != nil || took != time.Second {
			t.Errorf("an exchange that takes long: %v after %v", cred, took)
		}
	}
	if cred, err := l.do(t.Context(), "dave", slow); cred != want || err != nil || time.Since(start) != 5*time.Second {
		t.Errorf("who waited for it: %v, %v after %v", cred, err, time.Since(start))
	}
	exchanges.Store(0)
	refused := func(context.Context) (*krb5.Credential, error) {
		exchanges.Add(1)
		return nil, errors.New("refused")
	}
	for n := range int32(3) {
		for range 4 {
			l.try(t.Context(), "erin", validWait, refused)
		}
		if exchanges.Load() != n+1 {
			t.Errorf("%d exchanges in %v", exchanges.Load(), time.Duration(n)*validPause)
		}
		time.Sleep(validPause)
	}
	l.do(t.Context(), "erin", refused)
	if _, err := l.do(t.Context(), "erin", refused); err == nil || exchanges.Load() != 5 {
		t.Errorf("who needs a ticket: %v after %d exchanges", err, exchanges.Load())
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

// A request to KDCs is timed until it is known what came of it.
func TestExchangesAreTimed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var phases phase.Clock
		var took []time.Duration
		phases.Tell(func(p phase.Phase, d time.Duration) {
			if p == phase.KDC {
				took = append(took, d)
			}
		})
		all := limits.ForProcess()
		e := newExchanges(limits.NewGate(all.Exchanges, requestsAtOnce, requestEvery, requestWait), time.Now, &phases)
		for _, err := range []*mech.Error{nil, mech.Errorf(mech.Failure, 0, reason.KDCUnreachable, "silence")} {
			came, _ := e.Request(t.Context(), "A.TEST")
			time.Sleep(time.Second)
			came(err)
		}
		if _, refused := e.Request(t.Context(), "A.TEST"); refused == nil {
			t.Error("a realm that is not there is asked again at once")
		}
		if len(took) != 2 || took[0] != time.Second || took[1] != time.Second {
			t.Errorf("%v", took)
		}
	})
}

// Sockets and requests are charged to who pays for the exchange, and others get theirs.
func TestExchangesArePaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := limits.ForProcess()
		all.Reserve(33)
		e := newExchanges(limits.NewGate(all.Exchanges, requestsAtOnce, requestEvery, requestWait), time.Now, nil)
		as := func(uid uint32) context.Context { return limits.WithPayer(t.Context(), uid) }
		var closing []func()
		for {
			closed, err := e.Socket(as(1000))
			if err != nil {
				if err.Reason != reason.OverLimit {
					t.Errorf("refused with %v", err)
				}
				break
			}
			closing = append(closing, closed)
		}
		if n := all.Exchanges.Held(1000); n != len(closing) || n > 128 {
			t.Errorf("uid 1000 has %d sockets", n)
		}
		for _, uid := range []uint32{0, 33, 1001} {
			closed, err := e.Socket(as(uid))
			if err != nil {
				t.Fatalf("uid %d: %v", uid, err)
			}
			closed()
		}
		for _, closed := range closing {
			closed()
		}
		if n := all.Exchanges.Held(1000); n != 0 {
			t.Errorf("uid 1000 has %d sockets still", n)
		}

		start, n := time.Now(), 0
		for ; time.Since(start) < 10*time.Second; n++ {
			if err := e.Turn(as(1000), 1); err != nil {
				t.Fatal(err)
			}
		}
		if want := requestsAtOnce + int(10*time.Second/requestEvery); n > want+1 {
			t.Errorf("%d requests in ten seconds, want %d", n, want)
		}
		start = time.Now()
		if err := e.Turn(as(1001), 2); err != nil || time.Since(start) != 0 {
			t.Errorf("another user waits for %v: %v", time.Since(start), err)
		}
		for i := range 2 * maxOutages {
			if came, err := e.Request(as(0), fmt.Sprint("REALM", i)); err == nil {
				came(&mech.Error{Text: "none"})
			}
		}
		if len(e.dead) > maxOutages {
			t.Errorf("%d outages are remembered", len(e.dead))
		}
	})
}

// Who begins an exchange pays for it, when it goes on without him too.
func TestLoginsArePaid(t *testing.T) {
	l := newLogins()
	defer l.close()
	paid := make(chan uint32)
	gone, leave := context.WithCancel(limits.WithPayer(t.Context(), 7))
	left := make(chan struct{})
	go func() {
		defer close(left)
		l.do(gone, "alice", func(ctx context.Context) (*krb5.Credential, error) {
			<-left
			paid <- limits.Payer(ctx)
			return nil, errors.New("refused")
		})
	}()
	leave()
	if uid := <-paid; uid != 7 {
		t.Errorf("uid %d pays", uid)
	}
}
