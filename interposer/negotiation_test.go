package interposer_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"gssproxyd/interposer"
	"gssproxyd/interposer/interposertest"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/mech/spnego"
)

var target = interposer.Name{Display: "HTTP@www.example.test", Type: mech.NTHostbased}

func TestNegotiation(t *testing.T) {
	for _, tt := range []struct {
		name  string
		flags uint32
	}{
		{"mutual", mech.FlagMutual},
		{"non-mutual", 0},
		{"delegating", mech.FlagMutual | mech.FlagDeleg},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := interposertest.Start(t)
			c := d.Client(t)
			ir := interposer.InitRequest{Target: target, Mech: mech.SPNEGO, Flags: tt.flags}
			i, err := c.InitSecContext(t.Context(), ir)
			if err != nil {
				t.Fatal(err)
			}
			if i.Context.Open() || !i.Context.Initiator() || i.Context.Mech() != mech.SPNEGO {
				t.Errorf("after the first leg: %v, open %v, %v", i.Context, i.Context.Open(), i.Context.Mech())
			}
			if _, err := i.Context.Wrap(nil, nil, true); err == nil {
				t.Error("a negotiation wraps messages")
			}
			a, err := c.AcceptSecContext(t.Context(), interposer.AcceptRequest{Token: i.Token, Delegate: true})
			if err != nil {
				t.Fatal(err)
			}
			defer a.Context.Close()
			if !a.Context.Open() || a.Context.Mech() != mech.KRB5 || a.Context.Source().Display != "alice@EXAMPLE.TEST" {
				t.Errorf("accepted: %v, open %v, %v", a.Context, a.Context.Open(), a.Context.Mech())
			}
			if got := a.Delegated != nil; got != (tt.flags&mech.FlagDeleg != 0) {
				t.Errorf("delegated: %v", got)
			}
			ir.Context, ir.Token = i.Context, a.Token
			if i, err = c.InitSecContext(t.Context(), ir); err != nil {
				t.Fatal(err)
			}
			defer i.Context.Close()
			if !i.Context.Open() || i.Context.Mech() != mech.KRB5 || len(i.Token) != 0 {
				t.Errorf("after the second leg: %v, open %v, %v, a token of %d bytes", i.Context, i.Context.Open(), i.Context.Mech(), len(i.Token))
			}
			converse(t, i.Context, a.Context)

			// What is over does not begin again unasked.
			before := d.Initiated.Load()
			var e *mech.Error
			if _, err := c.InitSecContext(t.Context(), ir); !errors.As(err, &e) || e.Major != mech.NoContext || d.Initiated.Load() != before {
				t.Errorf("a third leg: %v", err)
			}
		})
	}
}

func converse(t *testing.T, from, to *interposer.SecContext) {
	t.Helper()
	token, err := from.Wrap(nil, []byte("message"), true)
	if err != nil {
		t.Fatal(err)
	}
	if msg, _, order, err := to.Unwrap(nil, token); string(msg) != "message" || order != mech.Complete || err != nil {
		t.Errorf("%q, order %#x, %v", msg, order, err)
	}
}

// kerberos is a mechanism of a negotiation that the test makes itself.
type kerberos struct {
	c *interposer.Client
	s *interposer.SecContext
}

func (k *kerberos) Step(ctx context.Context, token []byte) ([]byte, bool, error) {
	i, err := k.c.InitSecContext(ctx, interposer.InitRequest{Target: target, Flags: mech.FlagMutual | mech.FlagInteg, Context: k.s, Token: token})
	if err != nil {
		return nil, false, err
	}
	k.s = i.Context
	return i.Token, i.Context.Open(), nil
}
func (k *kerberos) Flags() uint32                          { return k.s.Flags() }
func (k *kerberos) GetMIC(dst, msg []byte) ([]byte, error) { return k.s.GetMIC(dst, msg) }
func (k *kerberos) VerifyMIC(msg, mic []byte) (mech.Major, error) {
	return k.s.VerifyMIC(msg, mic)
}

// ntlm has a first token and no more.
type ntlm struct{ kerberos }

func (*ntlm) Step(context.Context, []byte) ([]byte, bool, error) {
	return []byte("NTLMSSP\x00\x01"), false, nil
}

// An initiator that prefers another mechanism needs more legs, and both ends prove what was on the
// list.
func TestNegotiationWithMICs(t *testing.T) {
	d := interposertest.Start(t)
	c := d.Client(t)
	k := &kerberos{c: c}
	i := &spnego.Initiator{Mechs: []spnego.Mech{
		{OID: spnego.NTLM, New: func() spnego.Context { return new(ntlm) }},
		{OID: mech.KRB5, New: func() spnego.Context { return k }},
	}}
	token, _, err := i.Step(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var a *interposer.Accepted
	ar := interposer.AcceptRequest{Token: token}
	done := false
	for leg := 1; ; leg++ {
		if a, err = c.AcceptSecContext(t.Context(), ar); err != nil {
			t.Fatal(leg, err)
		}
		if len(a.Token) > 0 {
			if ar.Token, done, err = i.Step(t.Context(), a.Token); err != nil {
				t.Fatal(leg, err)
			}
		}
		if a.Context.Open() {
			if leg < 3 || !done {
				t.Errorf("open after %d legs, the initiator's end %v", leg, done)
			}
			break
		}
		ar.Context = a.Context
	}
	defer a.Context.Close()
	converse(t, k.s, a.Context)
}

func TestNegotiationHints(t *testing.T) {
	a, err := interposertest.Start(t).Client(t).AcceptSecContext(t.Context(), interposer.AcceptRequest{})
	if err != nil || a.Context.Open() || len(a.Token) == 0 {
		t.Errorf("%+v, %v; want a token that says what is on offer", a, err)
	}
}

func TestRefusedNegotiation(t *testing.T) {
	d := interposertest.Start(t)
	c := d.Client(t)
	start := func() (interposer.InitRequest, *interposer.Initiated) {
		r := interposer.InitRequest{Target: target, Mech: mech.SPNEGO, Flags: mech.FlagMutual}
		i, err := c.InitSecContext(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return r, i
	}
	refused := func(what string, err error, major mech.Major, text string) *mech.Error {
		t.Helper()
		var e *mech.Error
		if !errors.As(err, &e) || e.Major != major || !strings.Contains(err.Error(), text) {
			t.Fatalf("%s: %v, want major %#x and %q", what, err, major, text)
		}
		return e
	}
	r, i := start()
	broken := bytes.Replace(i.Token, []byte(`"Broken":false`), []byte(`"Broken":true `), 1)
	_, err := c.AcceptSecContext(t.Context(), interposer.AcceptRequest{Token: broken})
	e := refused("a broken token", err, mech.Failure, "Clock skew")
	if resp, err := spnego.ParseResp(e.Token); err != nil || resp.State != spnego.Reject || string(resp.ResponseToken) != "KRB-ERROR" {
		t.Errorf("the initiator is told %x, %v", e.Token, err)
	}
	r.Context, r.Token = i.Context, e.Token
	_, err = c.InitSecContext(t.Context(), r)
	refused("the initiator", err, mech.DefectiveToken, "")
	_, err = c.InitSecContext(t.Context(), r)
	refused("what has failed", err, mech.NoContext, "")

	_, err = c.AcceptSecContext(t.Context(), interposer.AcceptRequest{Token: i.Token, Mech: mech.KRB5})
	refused("where there is to be no negotiation", err, mech.DefectiveToken, "")

	d.Services = []string{"another"}
	_, err = c.InitSecContext(t.Context(), interposer.InitRequest{Target: target, Mech: mech.SPNEGO})
	if e := refused("an unknown service", err, mech.Failure, "Server not found"); e.Reason != reason.ServerUnknown {
		t.Errorf("reason %q", e.Reason)
	}
	d.Stop()
	if _, err = c.InitSecContext(t.Context(), interposer.InitRequest{Target: target, Mech: mech.SPNEGO}); err == nil || errors.As(err, new(*mech.Error)) {
		t.Errorf("without the daemon: %v", err)
	}
}

func TestPeer(t *testing.T) {
	d := interposertest.Start(t)
	c := d.Client(t)
	i, err := c.InitSecContext(t.Context(), interposer.InitRequest{Target: target})
	if err != nil {
		t.Fatal(err)
	}
	a, err := c.AcceptSecContext(t.Context(), interposer.AcceptRequest{Token: i.Token})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		s    *interposer.SecContext
		want string
	}{{i.Context, target.Display}, {a.Context, "alice@EXAMPLE.TEST"}} {
		p, err := tt.s.Peer()
		if err != nil || p.Name.Display != tt.want || p.Flags != mech.FlagTrans || !p.Expires.Equal(tt.s.Expires()) || p.Expires.IsZero() {
			t.Errorf("%+v, %v; want %s", p, err, tt.want)
		}
		tt.s.Close()
		if p, err := tt.s.Peer(); err == nil {
			t.Errorf("of a closed context: %+v", p)
		}
	}
}

func TestFlagNames(t *testing.T) {
	for flags, want := range map[uint32]string{
		0: "", mech.FlagMutual | mech.FlagInteg: "mutual, integrity", mech.FlagChannelBound | 1<<20: "channel-bound, 0x100000",
	} {
		if got := interposer.FlagNames(flags); got != want {
			t.Errorf("%#x: %q, want %q", flags, got, want)
		}
	}
}
