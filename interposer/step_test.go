package interposer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc"
	"gssproxyd/xdr"
)

// halfway returns a context whose second step has the daemon close begun and then wait for release.
func halfway(t *testing.T, begun chan<- struct{}, release <-chan struct{}) *SecContext {
	t.Helper()
	exported := unhex(t, vectors(t)[0].Initiator)
	leg := 0
	c := client(t, answer(t, xdr.ProcInitSecContext, func(arg *xdr.ArgInitSecContext) xdr.Message {
		w := xdr.Ctx{Mech: []byte(mech.KRB5), LocallyInitiated: true, ExportedContextToken: []byte("half of a key"), State: []byte("state")}
		if leg++; leg == 2 {
			close(begun)
			<-release
			w.Open, w.ExportedContextToken = true, exported
		}
		return &xdr.ResInitSecContext{ContextHandle: xdr.Some(w), OutputToken: xdr.Some([]byte("AP-REQ"))}
	}))
	s, _, err := c.InitSecContext(t.Context(), InitRequest{Target: HostbasedName("HTTP", "www"), Cred: ServiceCred, Flags: mech.FlagMutual})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// Who looks at a context does not wait for the daemon, nor does who closes it.
func TestCloseDuringStep(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	defer close(release) // before the daemon is stopped
	s := halfway(t, begun, release)
	key := s.half.V.ExportedContextToken
	done := make(chan error, 1)
	go func() {
		_, err := s.Step(t.Context(), []byte("AP-REP"))
		done <- err
	}()
	<-begun

	text, err := json.Marshal(s)
	if err != nil || !strings.Contains(string(text), "HTTP@www") || s.Established() || s.Target().Display != "HTTP@www" || s.Source().Display != "" || s.Mech() != mech.KRB5 ||
		s.Flags() != 0 || s.Expires() != Never || s.Cred() != ServiceCred || fmt.Sprint(s) == "" || s.LogValue().String() == "" || s.WrapSizeLimit(true, 1000) != 0 {
		t.Errorf("%s, %v: %v", text, err, s)
	}
	_, err = s.Step(t.Context(), []byte("AP-REP"))
	noContext(t, "another step", err)
	if !strings.Contains(err.Error(), "another call of Step") {
		t.Errorf("%v", err)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	noContext(t, "the step", <-done)
	useless(t, s)
	if strings.Trim(string(key), "\x00") != "" || s.local != nil || s.half.Set {
		t.Errorf("%q is left of the key", key)
	}
}

// The answer is there, but nobody wants it any more.
func TestCloseBeforeStepReturns(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	s := halfway(t, begun, release)
	var wg sync.WaitGroup
	wg.Go(func() {
		<-begun
		wg.Go(func() { s.Close() })
		wg.Go(func() { // who looks at it sees it before, after, or in between
			for range 100 {
				_ = fmt.Sprint(s, s.Established(), s.Flags(), s.Expires(), s.Mech(), s.Cred())
			}
		})
		close(release)
	})
	if _, err := s.Step(t.Context(), []byte("AP-REP")); err != nil {
		noContext(t, "the step", err)
	}
	wg.Wait()
	useless(t, s)
	if s.local != nil {
		t.Error("there are keys")
	}
}

func TestStepEndsWithContext(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	defer close(release) // before the daemon is stopped
	s := halfway(t, begun, release)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-begun
		cancel()
	}()
	if _, err := s.Step(ctx, []byte("AP-REP")); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	useless(t, s)
}

// A refused step ends the context; a token for a context that takes none does not.
func TestFailedStep(t *testing.T) {
	leg := 0
	c := client(t, answer(t, xdr.ProcInitSecContext, func(*xdr.ArgInitSecContext) xdr.Message {
		if leg++; leg == 2 {
			return &xdr.ResInitSecContext{Status: xdr.Status{MajorStatus: uint64(mech.DefectiveToken), MinorStatusString: []byte("[mutual-failed] not it\x00")}}
		}
		return &xdr.ResInitSecContext{ContextHandle: xdr.Some(xdr.Ctx{ExportedContextToken: []byte("half of a key")})}
	}))
	s, _, err := c.InitSecContext(t.Context(), InitRequest{Cred: ServiceCred})
	if err != nil {
		t.Fatal(err)
	}
	key := s.half.V.ExportedContextToken
	if _, err := s.Step(t.Context(), []byte("AP-REP")); mech.ReasonOf(err) != "mutual-failed" {
		t.Errorf("%v", err)
	}
	useless(t, s)
	if strings.Trim(string(key), "\x00") != "" {
		t.Errorf("%q is left of the key", key)
	}
	if leg != 2 {
		t.Errorf("%d calls, want 2", leg)
	}
}

// What is too long for a call is the peer's fault, which it can be told from the daemon's by.
func TestOversizedToken(t *testing.T) {
	c := client(t, half)
	begun := func() *SecContext {
		s, _, err := c.AcceptSecContext(t.Context(), AcceptRequest{Token: make([]byte, maxToken)})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := begun()
	_, err1 := s.Step(t.Context(), make([]byte, maxToken+1))
	useless(t, s)
	_, _, err2 := c.AcceptSecContext(t.Context(), AcceptRequest{Token: make([]byte, maxToken+1)})
	_, _, err3 := c.AcceptSecContext(t.Context(), AcceptRequest{Token: make([]byte, rpc.MaxRecord), Mech: mech.SPNEGO})
	for n, err := range []error{err1, err2, err3} {
		var e *mech.Error
		if !errors.As(err, &e) || e.Major != mech.DefectiveToken || e.Reason != reason.DefectiveToken {
			t.Errorf("%d: %v", n+1, err)
		}
	}
	s = begun()
	if _, err := s.Step(t.Context(), []byte("x")); err != nil {
		t.Errorf("the connection is of no use any more: %v", err)
	}
	s.Close()
}
