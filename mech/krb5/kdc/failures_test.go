package kdc

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jcmturner/gokrb5/v8/iana/errorcode"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// keytabOf gives a world's keys as of a keytab, which is told from others by its version.
type keytabOf struct {
	*world
	version string
}

func (k keytabOf) ID(krb5.Principal) []byte { return []byte(k.version) }

// refuse has a KDC refuse everything with a code, until it is to answer again.
func (k *fakeKDC) refuse(code int32) (again func()) {
	k.mutateReply = func([]byte) []byte {
		return errorMessage(refusal{code: code}, k.realm, k.last().server, unix(time.Now()))
	}
	return func() { k.mutateReply = nil }
}

// count is how often a KDC was asked.
func (k *fakeKDC) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.asked)
}

// A login that was refused is not tried with the same keys at every call, whoever calls: after a
// second, then after twice as long each time. With other keys, or another krb5.conf, it is tried at
// once.
func TestRefusedLogin(t *testing.T) {
	for _, r := range []struct {
		code    int32
		reason  reason.ID
		longest time.Duration
	}{
		{errorcode.KDC_ERR_PREAUTH_FAILED, reason.PreauthFailed, wrongKeyPause},
		{errorcode.KDC_ERR_C_PRINCIPAL_UNKNOWN, reason.ClientUnknown, longestPause},
		{errorcode.KDC_ERR_CLIENT_REVOKED, reason.ClientRevoked, longestPause},
		{errorcode.KDC_ERR_POLICY, reason.KDCRefused, longestPause},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, "A.TEST")
			c, k := w.client(), w.kdcs["A.TEST"]
			user := principal(t, "user@A.TEST")
			again := k.refuse(r.code)
			var tried []time.Duration
			start, keys := time.Now(), keytabOf{w, "1"}
			for time.Since(start) < 20*time.Minute {
				before := k.count()
				for range 3 {
					_, err := c.Login(t.Context(), user, keys, LoginOptions{})
					wantErr(t, err, mech.MinorKRB5+uint32(r.code), r.reason)
				}
				if n := k.count() - before; n > 1 {
					t.Fatalf("%d attempts at once", n)
				} else if n == 1 {
					tried = append(tried, time.Since(start))
				}
				time.Sleep(500 * time.Millisecond)
			}
			at := time.Duration(0)
			pause := firstPause
			for i, got := range tried {
				if got < at || got > at+time.Second {
					t.Fatalf("code %d: attempt %d is after %v, want %v", r.code, i, got, at)
				}
				at = got + pause
				pause = min(2*pause, r.longest)
			}
			if len(tried) > int(20*time.Minute/r.longest)+10 {
				t.Errorf("%d attempts", len(tried))
			}
			_, err := c.Login(t.Context(), user, keys, LoginOptions{})
			if !strings.Contains(err.Error(), "the KDC is asked again in ") {
				t.Errorf("the refusal does not say when it is tried again: %v", err)
			}
			again()
			if _, err := c.Login(t.Context(), user, keytabOf{w, "2"}, LoginOptions{}); err != nil {
				t.Errorf("another key is not tried: %v", err)
			}
			if _, err := w.client().Login(t.Context(), user, keys, LoginOptions{}); err != nil {
				t.Errorf("with another krb5.conf it is not tried: %v", err)
			}
			time.Sleep(r.longest)
			if _, err := c.Login(t.Context(), user, keys, LoginOptions{}); err != nil {
				t.Errorf("after the pause it is not tried: %v", err)
			}
			before := k.count()
			for range 3 {
				_, err := c.Login(t.Context(), user, keys, LoginOptions{})
				check(t, err)
			}
			if k.count() != before+3 {
				t.Error("what was mended is remembered still")
			}
			// What was refused long ago begins anew.
			k.refuse(r.code)
			for range 4 {
				before = k.count()
				for range 2 {
					_, err := c.Login(t.Context(), user, keys, LoginOptions{})
					wantErr(t, err, mech.MinorKRB5+uint32(r.code), r.reason)
					time.Sleep(firstPause)
				}
				if k.count() != before+2 {
					t.Errorf("%d attempts in two seconds, want 2", k.count()-before)
				}
				time.Sleep(time.Hour)
			}
		})
	}
}

// However many callers want to log in with keys that are wrong, there is one attempt. If they are
// right none waits longer than for one.
func TestLoginsTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "A.TEST")
		c, k := w.client(), w.kdcs["A.TEST"]
		user, keys := principal(t, "user@A.TEST"), keytabOf{w, "1"}
		c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			select {
			case <-time.After(time.Second):
				return w.dial(ctx, network, address)
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		all := func(n int) (took time.Duration) {
			start := time.Now()
			var waiting sync.WaitGroup
			for range n {
				waiting.Go(func() {
					if _, err := c.Login(t.Context(), user, keys, LoginOptions{}); (err == nil) != (k.mutateReply == nil) {
						t.Error(err)
					}
				})
			}
			waiting.Wait()
			return time.Since(start)
		}
		again := k.refuse(errorcode.KDC_ERR_PREAUTH_FAILED)
		if all(100); k.count() != 1 {
			t.Errorf("%d attempts with a wrong key", k.count())
		}
		again()
		time.Sleep(time.Minute)
		if took := all(100); took != 2*time.Second || k.count() != 101 {
			t.Errorf("with the right key it took %v and %d attempts", took, k.count()-1)
		}

		// Who is the first to try and goes away is no reason for the others.
		gone, leave := context.WithCancel(t.Context())
		left := make(chan error)
		go func() {
			_, err := c.Login(gone, user, keys, LoginOptions{})
			left <- err
		}()
		synctest.Wait()
		done := make(chan error)
		go func() {
			_, err := c.Login(t.Context(), user, keys, LoginOptions{})
			done <- err
		}()
		synctest.Wait()
		leave()
		if err := <-left; err == nil {
			t.Error("who went away has a ticket")
		}
		if err := <-done; err != nil {
			t.Errorf("who waited: %v", err)
		}
	})
}

// A ticket that was refused is not asked for at every call; with a new ticket-granting ticket it
// is. What is remembered is bounded, and wrong keys are not forgotten for it.
func TestRefusedTicket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "A.TEST")
		c, k := w.client(), w.kdcs["A.TEST"]
		user, target := principal(t, "user@A.TEST"), principal(t, "HTTP/new.a.test@A.TEST")
		s := w.login(c, "user@A.TEST")
		before := k.count()
		for range 1000 {
			_, err := c.Ticket(t.Context(), s, user, target, TicketOptions{})
			wantErr(t, err, wire.MinorServerUnknown, reason.ServerUnknown)
			time.Sleep(5 * time.Millisecond)
		}
		if n := k.count() - before; n != 3 {
			t.Errorf("the KDC was asked %d times in 5 s, want after 0, 1 and 3", n)
		}
		w.add(target.String(), 18)
		if _, err := c.Ticket(t.Context(), w.login(w.client(), "user@A.TEST"), user, target, TicketOptions{}); err != nil {
			t.Errorf("a new ticket-granting ticket is not tried: %v", err)
		}
		time.Sleep(4 * time.Second)
		if _, err := c.Ticket(t.Context(), s, user, target, TicketOptions{}); err != nil {
			t.Errorf("after the pause: %v", err)
		}

		again := k.refuse(errorcode.KDC_ERR_PREAUTH_FAILED)
		for range 3 {
			_, err := c.Login(t.Context(), user, keytabOf{w, "1"}, LoginOptions{})
			wantErr(t, err, wire.MinorPreauthFailed, reason.PreauthFailed)
			time.Sleep(4 * time.Second)
		}
		_, err := c.Login(t.Context(), user, keytabOf{w, "1"}, LoginOptions{})
		wantErr(t, err, wire.MinorPreauthFailed, reason.PreauthFailed)
		again()
		for i := range 3 * maxFailures {
			_, err := c.Ticket(t.Context(), s, user, principal(t, fmt.Sprintf("HTTP/x%d.a.test@A.TEST", i)), TicketOptions{})
			wantErr(t, err, wire.MinorServerUnknown, reason.ServerUnknown)
		}
		if len(c.failures) > maxFailures {
			t.Errorf("%d refusals are remembered", len(c.failures))
		}
		before = k.count()
		if _, err := c.Login(t.Context(), user, keytabOf{w, "1"}, LoginOptions{}); err == nil || k.count() != before {
			t.Error("the wrong key is forgotten")
		}
	})
}

// A caller that asks for a ticket of no length does not have the others refused who ask for the
// same target.
func TestRefusedLength(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "A.TEST")
		c, k := w.client(), w.kdcs["A.TEST"]
		user, target := principal(t, "user@A.TEST"), principal(t, "HTTP/a.a.test@A.TEST")
		w.add(target.String(), 18)
		s := w.login(c, "user@A.TEST")
		again := k.refuse(errorcode.KDC_ERR_NEVER_VALID)
		_, err := c.Ticket(t.Context(), s, user, target, TicketOptions{Till: unix(time.Now()) + 1})
		wantErr(t, err, wire.MinorNeverValid, reason.KDCRefused)
		again()
		if _, err := c.Ticket(t.Context(), s, user, target, TicketOptions{}); err != nil {
			t.Error(err)
		}
	})
}

// counted is an Admission that counts.
type counted struct {
	mu                             sync.Mutex
	turns, requests, sockets, most int
	turn                           func(context.Context) // what a turn waits for
	came                           []*mech.Error
	noRequest, noSocket            *mech.Error
}

func (a *counted) Turn(ctx context.Context, requests int) *mech.Error {
	if a.turn != nil {
		a.turn(ctx)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.turns += requests
	return nil
}

func (a *counted) Request(context.Context, string) (func(*mech.Error), *mech.Error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.requests++
	return func(err *mech.Error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.came = append(a.came, err)
	}, a.noRequest
}

func (a *counted) Socket(context.Context) (func(), *mech.Error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.noSocket != nil {
		return nil, a.noSocket
	}
	a.sockets++
	a.most = max(a.most, a.sockets)
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.sockets--
	}, nil
}

// Every request and every socket is asked for and given back, and what came of a request is told.
// Who is not let in is told why, and that says nothing of the KDC.
func TestAdmission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "A.TEST")
		c := w.client()
		a := new(counted)
		c.Admission = a
		s := w.login(c, "user@A.TEST")
		user, target := principal(t, "user@A.TEST"), principal(t, "HTTP/www.a.test@A.TEST")
		_, err := c.Ticket(t.Context(), s.copy(), user, target, TicketOptions{})
		check(t, err)
		if a.turns != 3 || a.requests != 2 || len(a.came) != 2 || a.came[0] != nil || a.came[1] != nil || a.most != 1 || a.sockets != 0 {
			t.Errorf("two exchanges: %+v", a)
		}

		dead := &Client{Conf: config(t, "[realms]\nA.TEST = {\n kdc = one\n kdc = two\n}\n"), Admission: a, Timeout: 3 * time.Second,
			Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}}
		*a = counted{}
		_, err = dead.Ticket(t.Context(), s.copy(), user, target, TicketOptions{})
		wantErr(t, err, wire.MinorUnreachable, reason.KDCUnreachable)
		if a.requests != 1 || len(a.came) != 1 || a.came[0] == nil || a.most != 4 || a.sockets != 0 {
			t.Errorf("two KDCs that do not answer, over two networks: %+v", a)
		}

		*a = counted{}
		gone, leave := context.WithTimeout(t.Context(), time.Second)
		defer leave()
		if _, err = dead.Ticket(gone, s.copy(), user, target, TicketOptions{}); err == nil || len(a.came) != 0 {
			t.Errorf("%v; the caller's end is told of the KDC: %+v", err, a)
		}

		no := mech.Errorf(mech.Failure, 0, "no", "not now")
		for _, refusing := range []*counted{{noRequest: no}, {noSocket: no}} {
			c.Admission = refusing
			for range 2 {
				if _, err := c.Ticket(t.Context(), s.copy(), user, target, TicketOptions{}); err != error(no) || len(refusing.came) != 0 {
					t.Errorf("%v; %+v", err, refusing)
				}
				if _, err := c.Login(t.Context(), user, keytabOf{w, "1"}, LoginOptions{}); err != error(no) {
					t.Errorf("%v", err)
				}
			}
			if len(c.failures) != 0 || len(c.trials) != 0 {
				t.Errorf("%d refusals are remembered, %d trials", len(c.failures), len(c.trials))
			}
		}
	})
}

// Who tries a key while others wait has had its turn: nobody waits for the turn of somebody else.
// What was refused is refused again without one.
func TestTurnBeforeTrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "A.TEST")
		user, keys := principal(t, "user@A.TEST"), keytabOf{w, "1"}
		type slow struct{}
		turn := make(chan struct{})
		c := w.client()
		c.Admission = &counted{turn: func(ctx context.Context) {
			if ctx.Value(slow{}) != nil {
				<-turn
			}
		}}
		first := make(chan error)
		go func() {
			_, err := c.Login(context.WithValue(t.Context(), slow{}, true), user, keys, LoginOptions{})
			first <- err
		}()
		synctest.Wait()
		if _, err := c.Login(t.Context(), user, keys, LoginOptions{}); err != nil {
			t.Error(err)
		}
		close(turn)
		check(t, <-first)
	})
}
