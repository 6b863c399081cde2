package files

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gssproxyd/tests/lab"
)

// Who initiates and who accepts below. The latter's own credential is HTTP's.
var (
	initiator = lab.User{UID: 2006, GID: 2006}
	acceptor  = lab.User{UID: 2007, GID: 2007}
)

// asking is one side of an exchange.
type asking func(fields) answer

// exchanged has two sides make a context: with what is asked first, and then with each other's tokens. It returns the last
// answers, and how many tokens there were.
func exchanged(ours, theirs asking, first, accept fields) (i, a answer, tokens int) {
	i = ours(first)
	for i.errno == "" && len(i.Token) > 0 {
		next := fields{"token": i.Token}
		if tokens == 0 {
			maps.Copy(next, accept)
		}
		tokens++
		if a = theirs(next); a.errno != "" || len(a.Token) == 0 {
			break
		}
		tokens++
		i = ours(fields{"token": a.Token})
	}
	return i, a, tokens
}

// TestFields: what docs/json.md says of the fields of init and accept, in exchanges of two users; through transact and through
// executions.
func TestFields(t *testing.T) {
	tickets := realm(t).Path("tickets")
	m := newMount(t, fmt.Sprintf(`
[service/initiator]
  mechs = krb5
  euid = %d
  cred_store = client_keytab:ALICE
  cred_store = ccache:FILE:%s-initiator
  cred_usage = initiate
  filter_flags = -DELEGATE
[service/acceptor]
  mechs = krb5
  euid = %d
  cred_store = keytab:SERVICES
  cred_store = client_keytab:SERVICES
  cred_store = ccache:FILE:%[2]s-acceptor
  cred_usage = both
  allow_protocol_transition = yes
`, initiator.UID, tickets, acceptor.UID))
	our, their := m.session(t, initiator), m.session(t, acceptor)
	service, alice := "HTTP/"+lab.Host+"@"+lab.Name, "alice@"+lab.Name
	usual := []string{"mutual", "replay", "sequence", "conf", "integ"}
	target := func(more fields) fields {
		f := fields{"target": "HTTP@" + lab.Host}
		maps.Copy(f, more)
		return f
	}
	data, other := []byte("tls-server-end-point:1"), []byte("tls-server-end-point:2")
	n := 0
	ways := []struct {
		name        string
		ours, their func() asking
	}{
		{"transact", func() asking {
			kept := fmt.Sprint("exchange ", n)
			return func(f fields) answer { return our.ask(kept, "init", f) }
		}, func() asking {
			kept := fmt.Sprint("exchange ", n)
			return func(f fields) answer { return their.ask(kept, "accept", f) }
		}},
		{"execution", func() asking {
			dir := our.execution("init", fmt.Sprint("exchange ", n))
			return func(f fields) answer { return our.step(dir, f) }
		}, func() asking {
			dir := their.execution("accept", fmt.Sprint("exchange ", n))
			return func(f fields) answer { return their.step(dir, f) }
		}},
	}
	// A context lasts as long as its ticket, which is got for as long as is asked, and is kept: so this is what comes first.
	ends := func(lifetime time.Duration) (at time.Time) {
		t.Helper()
		n++
		i, _, _ := exchanged(ways[0].ours(), ways[0].their(), target(fields{"lifetime": int(lifetime / time.Second)}), nil)
		at, err := time.Parse(time.RFC3339, i.Expires)
		if err != nil {
			t.Fatalf("%v: %+v", err, i)
		}
		if text := our.must("read", "contexts/"+i.Context+"/expires"); text != i.Expires+"\n" {
			t.Errorf("expires has %q, and the answer %s", text, i.Expires)
		}
		return at
	}
	begun := time.Now().Truncate(time.Second)
	if at := ends(10 * time.Minute); at.Before(begun.Add(10*time.Minute)) || at.After(time.Now().Add(10*time.Minute)) {
		t.Errorf("of ten minutes from %v, a context ends at %v", begun, at)
	}
	if at := ends(2 * time.Hour); at.Before(begun.Add(2 * time.Hour)) {
		t.Errorf("of two hours from %v, a context ends at %v", begun, at)
	}
	for _, way := range ways {
		for _, c := range []struct {
			name         string
			init, accept fields
			tokens       int
			flags        []string // of both sides; those of channel-bound are the acceptor's
			without      []string
			bound        bool
		}{
			{"nothing but a target", fields{}, nil, 2, usual, []string{"deleg", "dce-style", "channel-bound"}, false},
			{"krb5", fields{"mech": "krb5"}, nil, 2, usual, nil, false},
			{"spnego", fields{"mech": "spnego"}, nil, 2, usual, nil, false},
			{"spnego, one way", fields{"mech": "spnego", "flags": []string{"conf", "integ"}}, nil, 2, []string{"conf", "integ"}, []string{"mutual"}, false}, // the acceptor says that it agrees
			{"one way", fields{"flags": []string{"integ"}}, nil, 1, []string{"integ"}, []string{"mutual", "replay", "sequence", "dce-style"}, false},
			{"three tokens", fields{"flags": []string{"mutual", "conf", "integ", "dce-style"}}, nil, 3, []string{"mutual", "dce-style"}, []string{"sequence"}, false},
			{"four tokens", fields{"mech": "spnego", "flags": []string{"mutual", "conf", "integ", "dce-style"}}, nil, 4, []string{"mutual", "dce-style"}, nil, false},
			{"identify", fields{"flags": []string{"mutual", "identify"}}, nil, 2, []string{"mutual", "identify"}, []string{"sequence"}, false},
			{"a principal", fields{"target": service, "target_type": "principal"}, nil, 2, usual, nil, false},
			{"a principal, as it looks", fields{"target": service}, nil, 2, usual, nil, false},
			{"hostbased", fields{"target_type": "hostbased"}, nil, 2, usual, nil, false},
			{"bindings", fields{"bindings": data}, fields{"bindings": data}, 2, usual, nil, true},
			{"bindings, negotiated", fields{"bindings": data, "mech": "spnego"}, fields{"bindings": data}, 2, usual, nil, true},
			{"bindings that nobody looks at", fields{"bindings": data}, nil, 2, usual, []string{"channel-bound"}, false},
		} {
			n++
			name := way.name + ", " + c.name
			i, a, tokens := exchanged(way.ours(), way.their(), target(c.init), c.accept)
			if !i.Established || !a.Established || tokens != c.tokens {
				t.Errorf("%s: %d tokens, want %d: %+v, %+v", name, tokens, c.tokens, i, a)
				continue
			}
			for _, side := range []answer{i, a} {
				for _, f := range c.flags {
					if !slices.Contains(side.Flags, f) {
						t.Errorf("%s: no %s among %q", name, f, side.Flags)
					}
				}
				for _, f := range c.without {
					if slices.Contains(side.Flags, f) {
						t.Errorf("%s: %s among %q", name, f, side.Flags)
					}
				}
				if side.Initiator != alice || side.Acceptor != service || side.Delegated {
					t.Errorf("%s: %+v", name, side)
				}
			}
			if slices.Contains(a.Flags, "channel-bound") != c.bound {
				t.Errorf("%s: the acceptor's flags are %q", name, a.Flags)
			}
			m.talk(t, name, our, their, i.Context, a.Context)
		}
	}

	// What is refused, and by whom.
	for _, c := range []struct {
		name          string
		init, accept  fields
		errno, reason string
		text          string
	}{
		{"other bindings", fields{"bindings": data}, fields{"bindings": other}, "EKEYREJECTED", "bad-bindings", ""},
		{"an unknown flag", fields{"flags": []string{"fast"}}, nil, "EINVAL", "bad-argument", `"fast"`},
		{"an unknown mechanism", fields{"mech": "ntlm"}, nil, "EINVAL", "bad-argument", "mech"},
		{"an unknown type", fields{"target_type": "user"}, nil, "EINVAL", "bad-argument", "target_type"},
		{"an unknown field", fields{"flag": []string{"mutual"}}, nil, "EINVAL", "bad-argument", `"flag"`},
		{"a lifetime in words", fields{"lifetime": "long"}, nil, "EINVAL", "bad-argument", "lifetime"},
		{"bindings that are not base64", fields{"bindings": "-"}, nil, "EINVAL", "bad-argument", "base64"},
		{"as nobody", fields{"as": "NONE"}, nil, "EINVAL", "bad-context", "NONE"},
		{"as somebody, in the name of another", fields{"as": "NONE", "impersonate": "alice"}, nil, "EINVAL", "bad-argument", "only one of them"},
		{"in the name of another", fields{"impersonate": alice}, nil, "EACCES", "protocol-transition-not-allowed", ""},
	} {
		n++
		i, a, _ := exchanged(ways[0].ours(), ways[0].their(), target(c.init), c.accept)
		refused := i
		if i.errno == "" {
			refused = a
		}
		if refused.errno != c.errno || refused.Reason != c.reason || !strings.Contains(refused.Text, c.text) || refused.Hint == "" || refused.Established {
			t.Errorf("%s: %+v, %+v; want %s, %s, %q", c.name, i, a, c.errno, c.reason, c.text)
		}
	}

	// between has the acceptor initiate with itself.
	between := func(first fields) (i, a answer) {
		n++
		i, a, _ = exchanged(func(f fields) answer { return their.ask(fmt.Sprint("with itself ", n), "init", f) }, ways[0].their(), target(first), nil)
		return i, a
	}
	deleg := target(fields{"flags": append([]string{"deleg"}, usual...)})
	for _, c := range []struct {
		name      string
		first     fields
		delegate  bool
		delegated bool
	}{
		{"delegated and taken", deleg, true, true},
		{"delegated and not taken", deleg, false, false},
		{"wanted and not delegated", target(nil), true, false},
	} {
		n++
		i, a, _ := exchanged(ways[0].ours(), ways[0].their(), c.first, fields{"delegate": c.delegate})
		if !i.Established || !a.Established || a.Delegated != c.delegated || slices.Contains(a.Flags, "deleg") != (c.first["flags"] != nil) {
			t.Errorf("%s: %+v, %+v", c.name, i, a)
			continue
		}
		i, onward := between(fields{"as": a.Context})
		switch {
		case c.delegated && (!i.Established || onward.Initiator != alice):
			t.Errorf("%s: as the initiator: %+v, %+v", c.name, i, onward)
		case !c.delegated && (i.Reason != "no-credential" || i.errno == ""):
			t.Errorf("%s: as the initiator: %+v", c.name, i)
		}
	}
	if i, a := between(nil); !i.Established || a.Initiator != service {
		t.Errorf("as itself: %+v, %+v", i, a)
	}
	if i, a := between(fields{"impersonate": alice}); !i.Established || a.Initiator != alice {
		t.Errorf("in alice's name: %+v, %+v", i, a)
	}

	caches, err := filepath.Glob(tickets + "-*")
	check(t, err)
	keys := 0
	for _, c := range caches {
		n, err := m.SecretsOfCache(c)
		check(t, err)
		keys += n
	}
	if len(caches) != 2 || keys < 4 { // ticket-granting tickets, and for HTTP
		t.Errorf("%d tickets in %q", keys, caches)
	}
}

// talk has both sides of a context exchange messages.
func (m *mount) talk(t *testing.T, name string, our, their *session, ours, theirs string) {
	t.Helper()
	hello := []byte("hello")
	for _, public := range []bool{false, true} {
		w := our.ask("", "wrap", fields{"context": ours, "message": hello, "public": public})
		u := their.ask("", "unwrap", fields{"context": theirs, "token": w.Token})
		if string(u.Message) != "hello" || w.Encrypted == public || u.Encrypted == public {
			t.Errorf("%s: wrapped, public %v: %+v, %+v", name, public, w, u)
		}
	}
	mic := their.ask("", "getmic", fields{"context": theirs, "message": hello})
	if v := our.ask("", "verifymic", fields{"context": ours, "message": hello, "token": mic.Token}); !v.Verified {
		t.Errorf("%s: %+v", name, v)
	}
	if v := our.ask("", "verifymic", fields{"context": ours, "message": []byte("hallo"), "token": mic.Token}); v.errno != "EKEYREJECTED" || v.Verified {
		t.Errorf("%s: another message: %+v", name, v)
	}
}
