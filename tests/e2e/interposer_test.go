package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gssproxyd/interposer"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/tests/lab"
)

// interpose is a Go client of the daemon.
func interpose(t *testing.T, d *lab.Daemon, o interposer.Options) *interposer.Client {
	t.Helper()
	c := interposer.New(d.Socket, o)
	t.Cleanup(func() { c.Close() })
	return c
}

// limited ends before the test's own patience does.
func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// exchangeMessages has the Go end and MIT's end of a context understand each other, both ways.
func exchangeMessages(t *testing.T, s *interposer.SecContext, mit lab.End) {
	t.Helper()
	for _, size := range []int{0, 1, 100, 70000} {
		msg := bytes.Repeat([]byte("message "), size/8+1)[:size]
		for _, conf := range []bool{false, true} {
			token, err := s.Wrap(nil, msg, conf)
			check(t, err)
			got, sealed, major, err := mit.Tool.Unwrap(mit.ID, token)
			if check(t, err); !bytes.Equal(got, msg) || sealed != conf || major != 0 {
				t.Errorf("%d bytes, conf %v: MIT unwrapped %d, sealed %v, major %#x", size, conf, len(got), sealed, major)
			}
			token, err = mit.Tool.Wrap(mit.ID, conf, msg)
			check(t, err)
			got, sealed, err = s.Unwrap(nil, token)
			if check(t, err); !bytes.Equal(got, msg) || sealed != conf {
				t.Errorf("%d bytes, conf %v: unwrapped %d, sealed %v", size, conf, len(got), sealed)
			}
		}
		mic, err := s.GetMIC(nil, msg)
		check(t, err)
		if major, err := mit.Tool.Verify(mit.ID, msg, mic); err != nil || major != 0 {
			t.Errorf("%d bytes: MIT verified our MIC with major %#x, %v", size, major, err)
		}
		mic, err = mit.Tool.MIC(mit.ID, msg)
		check(t, err)
		if err := s.VerifyMIC(msg, mic); err != nil {
			t.Errorf("%d bytes: MIT's MIC: %v", size, err)
		}
	}
	for _, partial := range []bool{false, true} {
		ours, err := s.PseudoRandom(partial, []byte("seed"), 40)
		check(t, err)
		theirs, err := mit.Tool.PRF(mit.ID, !partial, 40, []byte("seed"))
		check(t, err)
		if !bytes.Equal(ours, theirs) {
			t.Errorf("pseudo-random bytes differ (partial key: %v)", partial)
		}
	}
}

// TestGoAcceptor: a Go program without keys accepts MIT's initiator.
func TestGoAcceptor(t *testing.T) {
	overDaemons(t, func(t *testing.T, kind string) {
		c := interpose(t, daemon(t, kind, lab.Options{}), interposer.Options{})
		for _, n := range enctypes {
			client := tool(t, lab.Nobody, onlyEnctype(t, n)...)
			for _, tt := range []struct {
				name     string
				flags    uint32
				bindings []byte
			}{
				{"mutual", lab.Usual | lab.Mutual, nil},
				{"non-mutual", lab.Usual, nil},
				{"bindings", lab.Usual | lab.Mutual, []byte("tls-server-end-point:x")},
			} {
				t.Run(fmt.Sprintf("%d/%s", n, tt.name), func(t *testing.T) {
					id, token, err := client.Init(serviceOf(n), tt.flags, tt.bindings)
					check(t, err)
					r := interposer.AcceptRequest{Token: token}
					if tt.bindings != nil {
						r.Bindings = &interposer.ChannelBindings{AppData: tt.bindings}
					}
					s, reply, err := c.AcceptSecContext(limited(t), r)
					check(t, err)
					defer s.Close()
					if !s.Established() || s.Initiator() || s.Mech() != mech.KRB5 || s.Source().Display != "alice@"+lab.Name || s.Source().Type != mech.NTKrb5Principal {
						t.Errorf("%v: established %v, initiator %v, %v, %v", s, s.Established(), s.Initiator(), s.Mech(), s.Source().Type)
					}
					if got := s.Flags() & (lab.Usual | lab.Mutual); got != interposer.Flags(tt.flags) {
						t.Errorf("flags %v, want %v among them", s.Flags(), interposer.Flags(tt.flags))
					}
					if left := time.Until(s.Expires()); left < time.Hour || left > 48*time.Hour {
						t.Errorf("expires in %v", left)
					}
					if tt.flags&lab.Mutual != 0 {
						complete, _, err := client.Step(id, reply)
						if check(t, err); !complete {
							t.Fatal("the initiator wants to go on")
						}
					} else if len(reply) != 0 {
						t.Errorf("a token of %d bytes for an initiator that wants none", len(reply))
					}
					exchangeMessages(t, s, lab.End{Tool: client, ID: id})
				})
			}
		}
	})
}

// TestGoAcceptorOrder: the context notices what is repeated or out of order, and still does after
// it has been exported.
func TestGoAcceptorOrder(t *testing.T) {
	overDaemons(t, func(t *testing.T, kind string) {
		c := interpose(t, daemon(t, kind, lab.Options{}), interposer.Options{})
		client := alice(t)
		id, token, err := client.Init(service, lab.Usual|lab.Mutual|mech.FlagReplay|mech.FlagSequence, nil)
		check(t, err)
		s, reply, err := c.AcceptSecContext(limited(t), interposer.AcceptRequest{Token: token})
		check(t, err)
		defer s.Close()
		_, _, err = client.Step(id, reply)
		check(t, err)
		var tokens [][]byte
		for i := range 4 {
			token, err := client.Wrap(id, true, []byte{byte(i)})
			check(t, err)
			tokens = append(tokens, token)
		}
		for _, tt := range []struct {
			token int
			order mech.Major
		}{
			{0, mech.Complete}, {0, mech.DuplicateToken}, {2, mech.GapToken}, {1, mech.UnseqToken}, {1, mech.DuplicateToken},
		} {
			msg, _, err := s.Unwrap(nil, tokens[tt.token])
			var e *mech.Error
			switch {
			case !bytes.Equal(msg, []byte{byte(tt.token)}):
				t.Errorf("message %d: %q came", tt.token, msg)
			case tt.order == mech.Complete:
				check(t, err)
			case !errors.As(err, &e) || e.Major != tt.order || !errors.Is(err, reason.OutOfOrder):
				t.Errorf("message %d: %v; want %#x", tt.token, err, tt.order)
			}
		}
		exported, err := s.Export()
		check(t, err)
		mit := tool(t, lab.Nobody)
		heir, err := mit.Import(exported)
		check(t, err)
		for _, tt := range []struct {
			token int
			order mech.Major
		}{{2, mech.DuplicateToken}, {3, mech.Complete}} {
			if _, _, major, err := mit.Unwrap(heir, tokens[tt.token]); err != nil || mech.Major(major) != tt.order {
				t.Errorf("message %d at MIT's end: order %#x, %v; want %#x", tt.token, major, err, tt.order)
			}
		}
		check(t, lab.Converse(lab.End{Tool: client, ID: id}, lab.End{Tool: mit, ID: heir}))
	})
}

func TestGoMechsAndNames(t *testing.T) {
	overDaemons(t, func(t *testing.T, kind string) {
		c := interpose(t, daemon(t, kind, lab.Options{}), interposer.Options{})
		ctx := limited(t)
		mechs, err := c.IndicateMechs(ctx)
		check(t, err)
		i := slices.IndexFunc(mechs, func(m interposer.Mech) bool { return m.OID == mech.KRB5 })
		if i < 0 || mechs[i].SASLName != "GS2-KRB5" || mechs[i].Name != "krb5" || !slices.Contains(mechs[i].NameTypes, mech.NTHostbased) || len(mechs[i].Attributes) == 0 {
			t.Errorf("mechanisms %+v", mechs)
		}
		got, err := c.ImportName(ctx, interposer.HostbasedName("svc", lab.Host), mech.KRB5)
		check(t, err)
		want := "svc/" + lab.Host + "@" + lab.Name
		if got.Display != want || got.Type != mech.NTKrb5Principal || !bytes.Equal(got.Exported, mech.AppendExportedName(nil, mech.KRB5, want)) {
			t.Errorf("%+v, want %s", got, want)
		}
		local, err := c.LocalName(ctx, interposer.Name{Display: "alice@" + lab.Name, Type: mech.NTUserName}, mech.KRB5)
		if check(t, err); local != "alice" {
			t.Errorf("local name %q", local)
		}
		var e *mech.Error
		if _, err := c.LocalName(ctx, interposer.Name{Display: "bob@ELSEWHERE.TEST", Type: mech.NTUserName}, mech.KRB5); !errors.As(err, &e) {
			t.Errorf("a name of another realm: %v, want a *mech.Error", err)
		}
	})
}

// TestGoCred: a handle is given back unchanged, is good for accepting, and outlives its daemon
// process where the daemon can do that.
func TestGoCred(t *testing.T) {
	overDaemons(t, func(t *testing.T, kind string) {
		d := daemon(t, kind, lab.Options{})
		c := interpose(t, d, interposer.Options{})
		ctx := limited(t)
		cred, err := c.AcquireCred(ctx, interposer.AcquireRequest{Usage: interposer.Accept})
		check(t, err)
		if e := cred.Elements(); len(e) != 1 || e[0].Mech != mech.KRB5 || e[0].Usage != interposer.Accept || e[0].AcceptorExpires != interposer.Never {
			t.Errorf("elements %+v", e)
		}
		kept, err := cred.MarshalBinary()
		check(t, err)
		again, err := c.AcquireCred(ctx, interposer.AcquireRequest{Usage: interposer.Accept, Input: cred})
		check(t, err)
		if b, err := again.MarshalBinary(); err != nil || !bytes.Equal(b, kept) {
			t.Errorf("a good handle came back changed: %v", err)
		}
		check(t, d.Restart())
		var restored interposer.Cred
		check(t, restored.UnmarshalBinary(kept))
		client := alice(t)
		_, token, err := client.Init(service, lab.Usual, nil)
		check(t, err)
		s, _, err := c.AcceptSecContext(ctx, interposer.AcceptRequest{Token: token, Cred: &restored})
		check(t, err)
		s.Close()
	})
}

// TestGoRefusals: what the daemon refuses is a *mech.Error with its text.
func TestGoRefusals(t *testing.T) {
	overDaemons(t, func(t *testing.T, kind string) {
		d := daemon(t, kind, lab.Options{})
		c := interpose(t, d, interposer.Options{})
		ctx := limited(t)
		client := alice(t)
		_, token, err := client.Init(service, lab.Usual|lab.Mutual, nil)
		check(t, err)
		s, _, err := c.AcceptSecContext(ctx, interposer.AcceptRequest{Token: token})
		check(t, err)
		s.Close()
		for _, tt := range []struct {
			name   string
			r      interposer.AcceptRequest
			major  mech.Major
			text   string
			reason reason.ID // ours only
		}{
			{"replay", interposer.AcceptRequest{Token: token}, mech.DuplicateToken, "Request is a replay", reason.Replay},
			{"garbage", interposer.AcceptRequest{Token: []byte("garbage")}, mech.DefectiveToken, "", reason.DefectiveToken},
		} {
			_, _, err := c.AcceptSecContext(ctx, tt.r)
			var e *mech.Error
			if !errors.As(err, &e) || !e.Major.Failed() {
				t.Errorf("%s: %v, want a *mech.Error", tt.name, err)
				continue
			}
			if e.Major&^0xffff0000 != 0 || tt.major.Failed() && e.Major != tt.major {
				t.Errorf("%s: major %#x, want %#x", tt.name, e.Major, tt.major)
			}
			if !strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), "\x00") {
				t.Errorf("%s: %q, want %q", tt.name, err, tt.text)
			}
			if kind == "ours" && e.Reason != tt.reason {
				t.Errorf("%s: reason %q, want %q", tt.name, e.Reason, tt.reason)
			}
		}
		// A second socket, for a program that this is not.
		other := realm(t).Path("other.sock")
		daemon(t, kind, lab.Options{Config: lab.DefaultConfig(d.Options.Keytab) + `
[service/other]
  mechs = krb5
  euid = 0
  program = /nowhere
  socket = ` + other + `
  cred_store = keytab:` + d.Options.Keytab + `
`, Keytab: d.Options.Keytab})
		c2 := interposer.New(other, interposer.Options{})
		defer c2.Close()
		if _, err := c2.IndicateMechs(ctx); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("service for uid %d and this program on %s", os.Geteuid(), other)) {
			t.Errorf("no service: %v", err)
		}
	})
}

// TestGoDaemonRestart: nobody notices that the daemon was replaced between two calls.
func TestGoDaemonRestart(t *testing.T) {
	overDaemons(t, func(t *testing.T, kind string) {
		d := daemon(t, kind, lab.Options{})
		c := interpose(t, d, interposer.Options{})
		client := alice(t)
		for range 4 {
			var wg sync.WaitGroup
			for range 8 {
				_, token, err := client.Init(service, lab.Usual, nil)
				check(t, err)
				wg.Go(func() {
					s, _, err := c.AcceptSecContext(limited(t), interposer.AcceptRequest{Token: token})
					if err != nil {
						t.Error(err)
						return
					}
					s.Close()
				})
			}
			wg.Wait()
			check(t, d.Restart())
		}
	})
}

// TestGoConcurrent: many goroutines, few connections, and each gets the answer to its own token.
func TestGoConcurrent(t *testing.T) {
	overDaemons(t, func(t *testing.T, kind string) {
		c := interpose(t, daemon(t, kind, lab.Options{}), interposer.Options{MaxConns: 4})
		client := alice(t)
		const n = 200
		ids, tokens := make([]int, n), make([][]byte, n)
		for i := range n {
			var err error
			ids[i], tokens[i], err = client.Init(service, lab.Usual|lab.Mutual, nil)
			check(t, err)
		}
		var next atomic.Int32
		var wg sync.WaitGroup
		for range 32 {
			wg.Go(func() {
				for i := next.Add(1) - 1; i < n; i = next.Add(1) - 1 {
					s, reply, err := c.AcceptSecContext(limited(t), interposer.AcceptRequest{Token: tokens[i]})
					if err != nil {
						t.Error(err)
						return
					}
					complete, _, err := client.Step(ids[i], reply)
					if err != nil || !complete {
						t.Errorf("token %d: complete %v, %v", i, complete, err)
					}
					msg, err := s.Wrap(nil, []byte("yours"), true)
					if err == nil {
						_, _, _, err = client.Unwrap(ids[i], msg)
					}
					if err != nil {
						t.Errorf("token %d: %v", i, err)
					}
					s.Close()
				}
			})
		}
		wg.Wait()
	})
}

// TestGoInitiator: a Go program without keys initiates towards MIT's acceptor. The half established
// context travels with the client: the daemon that ends the exchange is not the process that began
// it.
func TestGoInitiator(t *testing.T) {
	overDaemons(t, func(t *testing.T, kind string) {
		r := realm(t)
		clientKeytab, err := r.Keytab("alice.keytab", "alice")
		check(t, err)
		ccache := r.Path("alice-proxy.cc")
		acceptorKeytab := keytab(t)
		d := daemon(t, kind, lab.Options{Keytab: acceptorKeytab, Config: `[gssproxy]
[service/init]
  mechs = krb5
  euid = 0
  cred_store = client_keytab:` + clientKeytab + `
  cred_store = ccache:FILE:` + ccache + `
  cred_usage = initiate
`})
		c := interpose(t, d, interposer.Options{})
		s, token, err := c.InitSecContext(limited(t), interposer.InitRequest{
			Target: interposer.HostbasedName("svc", lab.Host), Cred: interposer.ServiceCred,
			Flags: lab.Usual | lab.Mutual, Bindings: &interposer.ChannelBindings{AppData: []byte("b")},
		})
		check(t, err)
		defer s.Close()
		if s.Established() || !s.Initiator() || len(token) == 0 {
			t.Fatalf("first leg: established %v, token of %d bytes", s.Established(), len(token))
		}
		mit := tool(t, lab.Root, "KRB5_KTNAME="+acceptorKeytab)
		check(t, mit.Acquire(""))
		a, err := mit.Accept(token, []byte("b"))
		check(t, err)
		if a.Client != "alice@"+lab.Name {
			t.Errorf("accepted %s", a.Client)
		}
		check(t, d.Restart())
		reply, err := s.Step(limited(t), a.Token)
		check(t, err)
		if !s.Established() || len(reply) > 0 || !s.Initiator() || s.Target().Display != "svc/"+lab.Host+"@"+lab.Name || s.Source().Display != "alice@"+lab.Name {
			t.Errorf("second leg: established %v, %v, a token of %d bytes", s.Established(), s, len(reply))
		}
		exchangeMessages(t, s, lab.End{Tool: mit, ID: a.ID})
	})
}
