package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"gssproxyd/interposer"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// TestGoDelegated: what a user has delegated to a service goes on as the user, for as long as the
// daemon can open it, and else not at all. The service has a key to initiate with, too: never is it
// the service that arrives in the user's place.
func TestGoDelegated(t *testing.T) {
	needOurs(t)
	r := realm(t)
	made(t, r.AddPrincipal("bob", "bob"))
	made(t, r.RandKey("front"))
	keys := func(principal string) string {
		path, err := r.Keytab("go-delegated.keytab", principal)
		check(t, err)
		return path
	}
	dir := r.Path("go-delegated")
	socket := func(name string) string { return filepath.Join(dir, name) }
	at := func(name string) *interposer.Client {
		c := interposer.New(socket(name), interposer.Options{})
		t.Cleanup(func() { c.Close() })
		return c
	}
	fronts := "cred_store = client_keytab:" + keys("front")
	d := daemon(t, "ours", lab.Options{Dir: dir, Config: config(
		svc{"lab", 0, nil},
		svc{"user", 0, []string{"socket = " + socket("user"), "cred_store = client_keytab:" + keys("bob"), "filter_flags = -DELEGATE"}},
		svc{"front", 0, []string{"socket = " + socket("front"), "cred_store = keytab:" + keys("svc/"+lab.Host), fronts}},
		svc{"other", 0, []string{"socket = " + socket("other"), "cred_store = keytab:" + keys("HTTP/"+lab.Host), fronts}},
		svc{"back", 0, []string{"socket = " + socket("back"), "cred_store = keytab:" + keys("HTTP/"+lab.Host), "cred_usage = accept"}},
	)})
	user, front, other, back := at("user"), at("front"), at("other"), at("back")
	ctx := limited(t)

	// login has bob delegate to the service, which keeps what it gets.
	login := func() (p *interposer.Peer, kept []byte) {
		t.Helper()
		i, token, err := user.InitSecContext(ctx, interposer.InitRequest{Target: interposer.HostbasedName("svc", lab.Host),
			Cred: interposer.ServiceCred, Flags: lab.Usual | lab.Deleg})
		check(t, err)
		defer i.Close()
		s, _, err := front.AcceptSecContext(ctx, interposer.AcceptRequest{Token: token, Delegate: true})
		check(t, err)
		defer s.Close()
		p, err = s.Peer()
		check(t, err)
		if p.Name.Display != "bob@"+lab.Name || p.Delegated == nil || !p.Flags.Has(lab.Deleg) {
			t.Fatalf("%v, flags %v, delegated: %v", p, p.Flags, p.Delegated)
		}
		kept, err = p.Delegated.MarshalBinary()
		check(t, err)
		return p, kept
	}
	restored := func(kept []byte) *interposer.Cred {
		t.Helper()
		cred := new(interposer.Cred)
		check(t, cred.UnmarshalBinary(kept))
		return cred
	}
	arrives := func(what string, c *interposer.Client, cred *interposer.Cred, want string) {
		t.Helper()
		if as, err := reach(ctx, c, back, "HTTP", cred); err != nil || as != want+"@"+lab.Name {
			t.Errorf("%s arrives as %q, %v; want %s", what, as, err, want)
		}
	}
	refused := func(what string, c *interposer.Client, cred *interposer.Cred) {
		t.Helper()
		if as, err := reach(ctx, c, back, "HTTP", cred); !errors.Is(err, reason.BadCredential) {
			t.Errorf("%s: arrives as %q, %v; want the reason %s", what, as, err, reason.BadCredential)
		}
		if cred == nil {
			return // for the calls below that is no mistake
		}
		if got, err := c.AcquireCred(ctx, interposer.AcquireRequest{Usage: interposer.Initiate, Input: cred}); !errors.Is(err, reason.BadCredential) {
			t.Errorf("%s, acquired again: %v, %v", what, got, err)
		}
		if _, _, err := c.AcceptSecContext(ctx, interposer.AcceptRequest{Token: []byte("never looked at"), Cred: cred}); !errors.Is(err, reason.BadCredential) {
			t.Errorf("%s, to accept with: %v", what, err)
		}
	}

	bob, kept := login()
	arrives("the service", front, interposer.ServiceCred, "front")
	arrives("another service", other, interposer.ServiceCred, "front")
	arrives("what bob has delegated", front, bob.Delegated, "bob")
	arrives("what bob has delegated, kept,", front, restored(kept), "bob")

	// Wherever it is damaged, the service does not arrive. In what it says in clear it may be.
	for i := 0; i < len(kept); i += 31 {
		damaged := append([]byte(nil), kept...)
		damaged[i] ^= 0x20
		cred := new(interposer.Cred)
		if cred.UnmarshalBinary(damaged) != nil {
			continue
		}
		if as, err := reach(ctx, front, back, "HTTP", cred); err == nil && as != bob.Name.Display {
			t.Errorf("damaged at %d it arrives as %s", i, as)
		}
	}
	var w xdr.Cred
	w.Decode(xdr.NewDecoder(append([]byte(nil), kept...)))
	w.CredHandleReference[len(w.CredHandleReference)/2]++
	refused("a damaged handle", front, restored(w.Append(nil)))
	w.CredHandleReference = []byte("somebody else's")
	refused("a foreign handle", front, restored(w.Append(nil)))
	w.Elements, w.DesiredName = nil, xdr.Name{DisplayName: []byte("front"), NameType: []byte(mech.NTUserName)}
	refused("one that says it is the service's", front, restored(w.Append(nil)))
	refused("another service's", other, restored(kept))

	// Through JSON and text it does not go.
	if b, err := json.Marshal(bob.Delegated); err == nil {
		t.Errorf("in JSON it is %s", b)
	}
	type session struct{ User *interposer.Cred }
	if b, err := json.Marshal(session{bob.Delegated}); err == nil {
		t.Errorf("in a session it is %s", b)
	}
	var s session
	if err := json.Unmarshal([]byte(`{"User":{}}`), &s); err == nil {
		t.Error("a credential comes out of JSON")
	}
	refused("what came out of JSON", front, s.User)
	refused("an empty one", front, new(interposer.Cred))
	refused("none", front, nil)

	// A key that is kept outlives the daemon, and a lost one takes the handles with it.
	check(t, d.Restart())
	arrives("what bob has delegated, after a restart,", front, restored(kept), "bob")
	check(t, d.Stop())
	check(t, os.Remove(filepath.Join(dir, "state", "handle.key")))
	check(t, d.Start())
	refused("a handle whose key is lost", front, restored(kept))
	arrives("the service, after all that,", front, interposer.ServiceCred, "front")
	bob, _ = login()
	arrives("what bob has delegated again", front, bob.Delegated, "bob")
	if out := d.Output(); !strings.Contains(out, "reason=bad-credential") {
		t.Error("the log says nothing of the refusals")
	}
}

// TestGoRestarts: two hundred goroutines share a client, and the daemon is replaced under them. In
// good order nobody notices. If it is killed, what is lost are tokens that it may have accepted, one
// for a connection, and nothing else.
func TestGoRestarts(t *testing.T) {
	needOurs(t)
	const (
		goroutines = 200
		each       = 20
		restarts   = 3
		conns      = 16
	)
	r := realm(t)
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, leaks) }) // after the daemon's and the tool's
	alices, err := r.Keytab("alice.keytab", "alice")
	check(t, err)
	d := daemon(t, "ours", lab.Options{Quiet: true, Config: config(svc{"both", 0, []string{
		"cred_store = keytab:" + keytab(t), "cred_store = client_keytab:" + alices}})})
	client := alice(t)

	// once makes one call, and says whether it brought a token to be accepted.
	once := func(ctx context.Context, c *interposer.Client, n int, tokens <-chan []byte) (accept bool, err error) {
		switch n % 4 {
		case 0:
			s, token, err := c.InitSecContext(ctx, interposer.InitRequest{Target: interposer.HostbasedName("svc", lab.Host), Cred: interposer.ServiceCred, Flags: lab.Usual})
			if err != nil {
				return false, err
			}
			defer s.Close()
			if !s.Established() || len(token) == 0 || s.Source().Display != "alice@"+lab.Name {
				return false, fmt.Errorf("%v, established %v, a token of %d bytes", s, s.Established(), len(token))
			}
		case 1:
			got, err := c.ImportName(ctx, interposer.HostbasedName("svc", lab.Host), mech.KRB5)
			if err != nil {
				return false, err
			}
			if want := "svc/" + lab.Host + "@" + lab.Name; got.Display != want {
				return false, fmt.Errorf("the name is %q, want %s", got, want)
			}
		default:
			s, _, err := c.AcceptSecContext(ctx, interposer.AcceptRequest{Token: <-tokens})
			if err != nil {
				return true, err
			}
			defer s.Close()
			if s.Source().Display != "alice@"+lab.Name {
				return true, fmt.Errorf("%v", s)
			}
		}
		return false, nil
	}

	for _, tt := range []struct {
		name    string
		restart func() error
		lost    int // accepts at most
	}{
		{"in good order", d.Restart, 0},
		{"killed", d.Crash, restarts * conns},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			list, err := client.Tokens(goroutines*each/2, service, lab.Usual, nil)
			check(t, err)
			tokens := make(chan []byte, len(list))
			for _, token := range list {
				tokens <- token
			}
			c := interposer.New(d.Socket, interposer.Options{MaxConns: conns, WaitForDaemon: time.Minute})
			defer c.Close()

			// Each restart begins when so many calls more are done, with others under way.
			var done, lost atomic.Int32
			var reached [restarts]chan struct{}
			for k := range reached {
				reached[k] = make(chan struct{})
			}
			const apart = goroutines * each / (restarts + 1)
			var wg sync.WaitGroup
			for g := range goroutines {
				wg.Go(func() {
					for i := range each {
						accept, err := once(ctx, c, g+i, tokens)
						switch {
						case err == nil:
						case accept && (errors.Is(err, rpc.ErrNoAnswer) || errors.Is(err, syscall.ECONNRESET)):
							lost.Add(1)
						default:
							t.Errorf("goroutine %d, call %d: %v", g, i, err)
						}
						if n := done.Add(1); n%apart == 0 && n/apart <= restarts {
							close(reached[n/apart-1])
						}
					}
				})
			}
			for k := range reached {
				<-reached[k]
				if err := tt.restart(); err != nil {
					t.Errorf("restart %d: %v", k+1, err)
				}
			}
			wg.Wait()
			if n := int(lost.Load()); n > tt.lost {
				t.Errorf("%d accepts are lost, at most %d may be", n, tt.lost)
			}
			check(t, c.Ping(ctx))
		})
	}
}
