package e2e

import (
	"context"
	"testing"

	"gssproxyd/interposer"
	"gssproxyd/mech"
	"gssproxyd/mech/spnego"
	"gssproxyd/tests/lab"
)

// proxied is one end of a Kerberos context whose keys only the daemon has, for a negotiation around
// it.
type proxied struct {
	*interposer.SecContext
	client *interposer.Client
	init   *interposer.InitRequest // nil: an acceptor
}

func (p *proxied) Step(ctx context.Context, token []byte) (reply []byte, established bool, err error) {
	switch {
	case p.SecContext != nil:
		reply, err = p.SecContext.Step(ctx, token)
	case p.init != nil:
		p.SecContext, reply, err = p.client.InitSecContext(ctx, *p.init)
	default:
		p.SecContext, reply, err = p.client.AcceptSecContext(ctx, interposer.AcceptRequest{Token: token, Mech: mech.KRB5})
	}
	if err != nil {
		return nil, false, err
	}
	return reply, p.Established(), nil
}

func (p *proxied) Flags() uint32 { return uint32(p.SecContext.Flags()) }

func (p *proxied) VerifyMIC(msg, mic []byte) (mech.Major, error) {
	return mech.Complete, p.SecContext.VerifyMIC(msg, mic)
}

// unsupported has a first token of a mechanism that nobody takes.
type unsupported struct{ spnego.Context }

func (unsupported) Step(context.Context, []byte) ([]byte, bool, error) {
	return []byte("NTLMSSP\x00\x01"), false, nil
}

// spnegoTool starts a spnegotool that ends with the test.
func spnegoTool(t *testing.T, u lab.User, env ...string) *lab.SPNEGOTool {
	t.Helper()
	g, err := realm(t).SPNEGOTool(u, env...)
	check(t, err)
	t.Cleanup(func() { g.Close() })
	return g
}

var negotiations = []struct {
	name  string
	flags uint32
	offer []mech.OID
}{
	{"mutual", lab.Usual | lab.Mutual, []mech.OID{mech.KRB5}},
	{"non-mutual", lab.Usual, []mech.OID{mech.KRB5}},
	{"second choice mutual", lab.Usual | lab.Mutual, []mech.OID{spnego.NTLM, mech.KRB5}},
	{"second choice non-mutual", lab.Usual, []mech.OID{spnego.NTLM, mech.KRB5}},
}

// TestNegotiateAcceptor: a Go program without keys negotiates with MIT's initiator.
func TestNegotiateAcceptor(t *testing.T) {
	check(t, realm(t).RandKey("nobodys/"+lab.Host))
	overDaemons(t, func(t *testing.T, kind string) {
		c := interpose(t, daemon(t, kind, lab.Options{}), interposer.Options{})
		env, err := realm(t).Kinit("alice", "alice")
		check(t, err)
		client := spnegoTool(t, lab.Nobody, env...)
		for _, tt := range negotiations {
			t.Run(tt.name, func(t *testing.T) {
				inner := &proxied{client: c}
				a := &spnego.Acceptor{Mechs: []spnego.Mech{{OID: mech.KRB5, New: func() spnego.Context { return inner }}}}
				n, err := client.NegInit(tt.offer, service, tt.flags)
				check(t, err)
				for done := false; ; {
					var reply []byte
					if !done {
						reply, done, err = a.Step(limited(t), n.Token)
						check(t, err)
					}
					if n.Complete {
						break
					}
					n, err = client.NegStep(n.ID, reply)
					check(t, err)
					if done && !n.Complete {
						t.Fatal("the initiator wants to go on")
					}
				}
				s := inner.SecContext
				defer s.Close()
				if n.Mech != mech.KRB5 || s.Source().Display != "alice@"+lab.Name {
					t.Errorf("%v by %v", s, n.Mech)
				}
				exchangeMessages(t, s, lab.End{Tool: client.Tool, ID: n.ID})
			})
		}
		t.Run("refused", func(t *testing.T) {
			a := &spnego.Acceptor{Mechs: []spnego.Mech{{OID: mech.KRB5, New: func() spnego.Context { return &proxied{client: c} }}}}
			n, err := client.NegInit(nil, "nobodys@"+lab.Host, lab.Usual|lab.Mutual)
			check(t, err)
			_, _, err = a.Step(limited(t), n.Token)
			e, ok := err.(*mech.Error)
			if !ok || e.Major != mech.Failure {
				t.Fatalf("%v, want what the daemon says", err)
			}
			if r, err := spnego.ParseResp(e.Token); err != nil || r.State != spnego.Reject {
				t.Errorf("the initiator is told %x, %v", e.Token, err)
			}
			if _, err := client.NegStep(n.ID, e.Token); err == nil {
				t.Error("the initiator takes a rejection")
			}
		})
	})
}

// TestNegotiateInitiator: a Go program without keys negotiates with MIT's acceptor.
func TestNegotiateInitiator(t *testing.T) {
	overDaemons(t, func(t *testing.T, kind string) {
		r := realm(t)
		alices, err := r.Keytab("alice.keytab", "alice")
		check(t, err)
		services := keytab(t)
		d := daemon(t, kind, lab.Options{Keytab: services, Config: config(svc{"alice", 0, []string{
			"cred_store = client_keytab:" + alices, "cred_store = ccache:FILE:" + r.Path("alice-negotiates.cc"), "cred_usage = initiate"}})})
		c := interpose(t, d, interposer.Options{})
		server := spnegoTool(t, lab.Root, "KRB5_KTNAME=FILE:"+services)
		for _, tt := range negotiations {
			t.Run(tt.name, func(t *testing.T) {
				i := new(spnego.Initiator)
				inner := &proxied{client: c, init: &interposer.InitRequest{
					Target: interposer.HostbasedName("svc", lab.Host), Cred: interposer.ServiceCred, Flags: interposer.Flags(tt.flags)}}
				for _, m := range tt.offer {
					begin := func() spnego.Context { return unsupported{} }
					if m == mech.KRB5 {
						begin = func() spnego.Context { return inner }
					}
					i.Mechs = append(i.Mechs, spnego.Mech{OID: m, New: begin})
				}
				n := lab.Negotiated{ID: -1}
				for done := false; !done; {
					var token []byte
					token, done, err = i.Step(limited(t), n.Token)
					check(t, err)
					if len(token) > 0 {
						if n.Complete {
							t.Fatal("the acceptor is done")
						}
						n, err = server.NegAccept(n.ID, token)
						check(t, err)
					}
				}
				s := inner.SecContext
				defer s.Close()
				if !n.Complete || n.Mech != mech.KRB5 || n.Client != "alice@"+lab.Name {
					t.Errorf("MIT accepted %q by %v, complete %v", n.Client, n.Mech, n.Complete)
				}
				if !s.Flags().Has(interposer.Flags(tt.flags)) {
					t.Errorf("flags %v", s.Flags())
				}
				exchangeMessages(t, s, lab.End{Tool: server.Tool, ID: n.ID})
			})
		}
	})
}
