package interposer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"gssproxyd/interposer"
	"gssproxyd/interposer/interposertest"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/mech/spnego"
)

var target = interposer.HostbasedName("HTTP", "www.example.test")

func TestNegotiation(t *testing.T) {
	for _, tt := range []struct {
		name  string
		flags interposer.Flags
	}{
		{"mutual", mech.FlagMutual},
		{"non-mutual", 0},
		{"delegating", mech.FlagMutual | mech.FlagDeleg},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := interposertest.Start(t)
			c := d.Client(t)
			i, token, err := c.InitSecContext(t.Context(), interposer.InitRequest{Target: target, Cred: interposer.ServiceCred, Mech: mech.SPNEGO, Flags: tt.flags})
			if err != nil {
				t.Fatal(err)
			}
			defer i.Close()
			if i.Established() || !i.Initiator() || i.Mech() != mech.SPNEGO {
				t.Errorf("after the first leg: %v, established %v, %v", i, i.Established(), i.Mech())
			}
			if _, err := i.Wrap(nil, nil, true); err == nil {
				t.Error("a negotiation wraps messages")
			}
			a, reply, err := c.AcceptSecContext(t.Context(), interposer.AcceptRequest{Token: token, Delegate: true})
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			if !a.Established() || a.Mech() != mech.KRB5 || a.Source().Display != "alice@EXAMPLE.TEST" {
				t.Errorf("accepted: %v, established %v, %v", a, a.Established(), a.Mech())
			}
			if token, err = i.Step(t.Context(), reply); err != nil {
				t.Fatal(err)
			}
			if !i.Established() || i.Mech() != mech.KRB5 || len(token) != 0 || !i.Flags().Has(tt.flags|mech.FlagInteg) {
				t.Errorf("after the second leg: %v, established %v, %v, %v, a token of %d bytes", i, i.Established(), i.Mech(), i.Flags(), len(token))
			}
			converse(t, i, a)

			// What is over does not begin again.
			before := d.Initiated.Load()
			var e *mech.Error
			if _, err := i.Step(t.Context(), reply); !errors.As(err, &e) || e.Major != mech.NoContext || d.Initiated.Load() != before {
				t.Errorf("a third leg: %v", err)
			}
			converse(t, i, a)
		})
	}
}

func converse(t *testing.T, from, to *interposer.SecContext) {
	t.Helper()
	token, err := from.Wrap(nil, []byte("message"), true)
	if err != nil {
		t.Fatal(err)
	}
	if msg, _, err := to.Unwrap(nil, token); string(msg) != "message" || err != nil {
		t.Errorf("%q, %v", msg, err)
	}
}

// kerberos is a mechanism of a negotiation that the test makes itself.
type kerberos struct {
	c *interposer.Client
	s *interposer.SecContext
}

func (k *kerberos) Step(ctx context.Context, token []byte) (reply []byte, established bool, err error) {
	if k.s == nil {
		k.s, reply, err = k.c.InitSecContext(ctx, interposer.InitRequest{Target: target, Cred: interposer.ServiceCred, Flags: mech.FlagMutual | mech.FlagInteg})
	} else {
		reply, err = k.s.Step(ctx, token)
	}
	return reply, err == nil && k.s.Established(), err
}
func (k *kerberos) Flags() uint32                          { return uint32(k.s.Flags()) }
func (k *kerberos) GetMIC(dst, msg []byte) ([]byte, error) { return k.s.GetMIC(dst, msg) }
func (k *kerberos) VerifyMIC(msg, mic []byte) (mech.Major, error) {
	return mech.Complete, k.s.VerifyMIC(msg, mic)
}

// ntlm has a first token and no more.
type ntlm struct{ kerberos }

func (*ntlm) Step(context.Context, []byte) ([]byte, bool, error) {
	return []byte("NTLMSSP\x00\x01"), false, nil
}

// An initiator that prefers another mechanism needs more legs, and both ends prove what was on the
// list.
func TestNegotiationWithMICs(t *testing.T) {
	for _, tampered := range []bool{false, true} {
		t.Run(fmt.Sprintf("tampered=%v", tampered), func(t *testing.T) { negotiateWithMICs(t, tampered) })
	}
}

func negotiateWithMICs(t *testing.T, tampered bool) {
	d := interposertest.Start(t)
	c := d.Client(t)
	k := &kerberos{c: c}
	defer func() { k.s.Close() }()
	i := &spnego.Initiator{Mechs: []spnego.Mech{
		{OID: spnego.NTLM, New: func() spnego.Context { return new(ntlm) }},
		{OID: mech.KRB5, New: func() spnego.Context { return k }},
	}}
	token, _, err := i.Step(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	a, reply, err := c.AcceptSecContext(t.Context(), interposer.AcceptRequest{Token: token})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	legs, done := 1, false
	for ; !a.Established(); legs++ {
		if token, done, err = i.Step(t.Context(), reply); err != nil {
			t.Fatal(legs, err)
		}
		mechanismEstablished := d.Accepted.Load() > 0
		if mechanismEstablished && tampered {
			token[len(token)-1] ^= 1
		}
		reply, err = a.Step(t.Context(), token)
		if mechanismEstablished && tampered {
			// The mechanism's context is established, and must not be used.
			var e *mech.Error
			if _, werr := a.Wrap(nil, nil, true); err == nil || !errors.As(werr, &e) || e.Major != mech.NoContext || a.Established() {
				t.Errorf("a list that somebody has changed: %v; established %v; %v", err, a.Established(), werr)
			}
			return
		}
		if err != nil {
			t.Fatal(legs, err)
		}
	}
	if len(reply) > 0 {
		if _, done, err = i.Step(t.Context(), reply); err != nil {
			t.Fatal(err)
		}
	}
	if legs < 3 || !done || tampered {
		t.Errorf("established after %d legs, the initiator's end %v", legs, done)
	}
	converse(t, k.s, a)
}

func TestNegotiationHints(t *testing.T) {
	s, reply, err := interposertest.Start(t).Client(t).AcceptSecContext(t.Context(), interposer.AcceptRequest{})
	if err != nil || s.Established() || len(reply) == 0 {
		t.Fatalf("%v, %q, %v; want a token that says what is on offer", s, reply, err)
	}
	s.Close()
}

func TestRefusedNegotiation(t *testing.T) {
	d := interposertest.Start(t)
	c := d.Client(t)
	refused := func(what string, err error, major mech.Major, text string) *mech.Error {
		t.Helper()
		var e *mech.Error
		if !errors.As(err, &e) || e.Major != major || !strings.Contains(err.Error(), text) {
			t.Fatalf("%s: %v, want major %#x and %q", what, err, major, text)
		}
		return e
	}
	request := interposer.InitRequest{Target: target, Cred: interposer.ServiceCred, Mech: mech.SPNEGO, Flags: mech.FlagMutual}
	i, token, err := c.InitSecContext(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	broken := bytes.Replace(token, []byte(`"Broken":false`), []byte(`"Broken":true `), 1)
	s, _, err := c.AcceptSecContext(t.Context(), interposer.AcceptRequest{Token: broken})
	e := refused("a broken token", err, mech.Failure, "Clock skew")
	if s != nil {
		t.Errorf("a context of a broken token: %v", s)
	}
	if resp, err := spnego.ParseResp(e.Token); err != nil || resp.State != spnego.Reject || string(resp.ResponseToken) != "KRB-ERROR" {
		t.Errorf("the initiator is told %x, %v", e.Token, err)
	}
	_, err = i.Step(t.Context(), e.Token)
	refused("the initiator", err, mech.DefectiveToken, "")
	before := d.Initiated.Load()
	_, err = i.Step(t.Context(), e.Token)
	refused("what has failed", err, mech.NoContext, "closed")
	_, err = i.Wrap(nil, nil, true)
	refused("what has failed", err, mech.NoContext, "closed")
	if d.Initiated.Load() != before {
		t.Error("a context that has failed is begun anew")
	}

	_, _, err = c.AcceptSecContext(t.Context(), interposer.AcceptRequest{Token: token, Mech: mech.KRB5})
	refused("where there is to be no negotiation", err, mech.DefectiveToken, "")

	d.Services = []string{"another"}
	s, _, err = c.InitSecContext(t.Context(), request)
	if e := refused("an unknown service", err, mech.Failure, "Server not found"); e.Reason != reason.ServerUnknown || s != nil {
		t.Errorf("reason %q, %v", e.Reason, s)
	}
	d.Stop()
	if _, _, err = c.InitSecContext(t.Context(), request); err == nil || errors.As(err, new(*mech.Error)) {
		t.Errorf("without the daemon: %v", err)
	}
}

func TestPeer(t *testing.T) {
	c := interposertest.Start(t).Client(t)
	for _, tt := range []struct {
		name      string
		flags     interposer.Flags
		delegate  bool
		delegated bool
	}{
		{"not delegating", 0, true, false},
		{"delegating", mech.FlagDeleg, true, true},
		{"not asked for", mech.FlagDeleg, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			i, token, err := c.InitSecContext(t.Context(), interposer.InitRequest{Target: target, Cred: interposer.ServiceCred, Flags: tt.flags})
			if err != nil {
				t.Fatal(err)
			}
			a, _, err := c.AcceptSecContext(t.Context(), interposer.AcceptRequest{Token: token, Delegate: tt.delegate})
			if err != nil {
				t.Fatal(err)
			}
			for _, end := range []struct {
				s         *interposer.SecContext
				want      string
				delegated bool
			}{{i, target.Display, false}, {a, "alice@EXAMPLE.TEST", tt.delegated}} {
				p, err := end.s.Peer()
				if err != nil || p.Name.Display != end.want || p.Flags != tt.flags|mech.FlagTrans || !p.Expires.Equal(end.s.Expires()) || !p.Expires.After(time.Now()) {
					t.Errorf("%v, %v; want %s", p, err, end.want)
				}
				if p.Delegated != nil != end.delegated {
					t.Errorf("%v has delegated %v", p, p.Delegated)
				}
				end.s.Close()
				if end.delegated && p.Delegated.Name().Display != end.want {
					t.Errorf("after Close: %v", p.Delegated)
				}
			}
		})
	}
}

func TestFlags(t *testing.T) {
	for flags, want := range map[interposer.Flags]string{
		0: "", mech.FlagMutual | mech.FlagInteg: "mutual, integrity", mech.FlagChannelBound | 1<<20: "channel-bound, 0x100000",
	} {
		if got := flags.String(); got != want {
			t.Errorf("%#x: %q, want %q", uint32(flags), got, want)
		}
	}
	f := interposer.Flags(mech.FlagMutual | mech.FlagInteg)
	if !f.Has(mech.FlagMutual) || !f.Has(0) || f.Has(mech.FlagMutual|mech.FlagConf) {
		t.Errorf("%v", f)
	}
}
