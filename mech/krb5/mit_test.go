package krb5

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"gssproxyd/keytab"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
	"gssproxyd/tests/lab"
)

// writeKeytab writes a keytab file (version 0502) with the bench's keys.
func (b *bench) writeKeytab(t testing.TB, file string) {
	t.Helper()
	out := []byte{5, 2}
	str := func(r []byte, s string) []byte {
		return append(binary.BigEndian.AppendUint16(r, uint16(len(s))), s...)
	}
	for _, k := range b.ring.All() {
		p := mustPrincipal(t, k.Principal)
		r := binary.BigEndian.AppendUint16(nil, uint16(len(p.Components)))
		r = str(r, p.Realm)
		for _, c := range p.Components {
			r = str(r, c)
		}
		r = binary.BigEndian.AppendUint32(r, 1)
		r = binary.BigEndian.AppendUint32(r, 0)
		r = append(r, byte(k.KVNO))
		r = binary.BigEndian.AppendUint16(r, uint16(k.Key.Enctype()))
		r = str(r, string(k.Key.Secret()))
		r = binary.BigEndian.AppendUint32(r, k.KVNO)
		out = append(binary.BigEndian.AppendUint32(out, uint32(len(r))), r...)
	}
	if err := os.WriteFile(file, out, 0o600); err != nil {
		t.Fatal(err)
	}
}

// mitAcceptor starts MIT's acceptor with the bench's keytab.
func mitAcceptor(t testing.TB, r *lab.Realm, b *bench) *lab.Tool {
	t.Helper()
	file := r.Path("keytab")
	b.writeKeytab(t, file)
	conf, err := r.Krb5Conf("krb5.conf",
		"permitted_enctypes = aes256-cts-hmac-sha1-96 aes128-cts-hmac-sha1-96 aes256-cts-hmac-sha384-192 aes128-cts-hmac-sha256-128 arcfour-hmac")
	if err != nil {
		t.Fatal(err)
	}
	// Both acceptors are to have the tests' time, however long these take.
	tool, err := r.Tool(lab.Root, append(r.StillEnv(testNow), "KRB5_CONFIG="+conf, "KRB5_KTNAME=FILE:"+file, "KRB5RCACHENAME=none:")...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tool.Close() })
	if err := tool.Acquire(""); err != nil {
		t.Fatal(err)
	}
	return tool
}

// minorUnset is what the mechglue makes of a minor status that a mechanism left at 0.
const minorUnset = 100001

// TestAgainstMIT gives the same tokens to MIT's gss_accept_sec_context and to ours, and compares
// status codes, context flags and error tokens.
func TestAgainstMIT(t *testing.T) {
	b := newBench(t)
	tool := mitAcceptor(t, lab.New(t), b)
	aes := b.keys[etype.AES256SHA1]

	differs := map[string]string{
		"microseconds":     "MIT takes any number",
		"deep containers":  "MIT has no limit",
		"IAKERB extension": "its number changed between MIT's releases",
	}
	for _, c := range badRequests(t) {
		if c.reason == reason.BadClient || strings.HasPrefix(c.name, "client of") {
			differs[c.name] = "MIT accepts clients of every name"
		}
	}
	compare := func(t *testing.T, q *request) { t.Helper(); compareMIT(t, &b.Acceptor, tool, q, q.token(t), nil) }
	for _, et := range testEtypes {
		for _, session := range testEtypes {
			t.Run("good/"+et.String()+"/"+session.String(), func(t *testing.T) {
				compare(t, newRequest(t, b.keys[et], session))
			})
		}
	}
	for _, c := range badRequests(t) {
		t.Run("bad/"+c.name, func(t *testing.T) {
			if why := differs[c.name]; why != "" {
				t.Log("not compared:", why)
				return
			}
			q := newRequest(t, aes, etype.AES256SHA1)
			c.change(q)
			compare(t, q)
		})
	}
	for _, c := range oddRequests() {
		t.Run("odd/"+c.name, func(t *testing.T) {
			q := newRequest(t, aes, etype.AES256SHA1)
			c.change(q)
			compare(t, q)
		})
	}
}

// compareMIT gives one token to both acceptors.
func compareMIT(t *testing.T, a *Acceptor, tool *lab.Tool, q *request, token []byte, cb []byte) {
	t.Helper()
	var bindings *ChannelBindings
	if cb != nil {
		bindings = &ChannelBindings{AppData: cb}
	}
	var out Accepted
	ours := a.Accept(&out, token, bindings)
	theirs, err := tool.Accept(token, cb)
	var e *lab.GSSError
	switch {
	case err == nil && ours == nil:
		if out.Context.Flags != theirs.Flags || out.Context.There != theirs.Client {
			t.Errorf("ours %s %#x, MIT's %s %#x", out.Context.There, out.Context.Flags, theirs.Client, theirs.Flags)
		}
		if (len(out.Token) > 0) != (len(theirs.Token) > 0) {
			t.Errorf("our token has %d octets, MIT's %d", len(out.Token), len(theirs.Token))
		}
		if len(theirs.Token) > 0 {
			a, m := q.openAPRep(t, out.Token), q.openAPRep(t, theirs.Token)
			if a.Ctime != m.Ctime || a.Cusec != m.Cusec || (a.Subkey.Value == nil) != (m.Subkey.Value == nil) || a.Subkey.Etype != m.Subkey.Etype {
				t.Errorf("AP-REP: ours %+v, MIT's %+v", a, m)
			}
		}
	case errors.As(err, &e) && ours != nil:
		o := ours.(*mech.Error)
		if e.Minor == minorUnset {
			e.Minor = 0
		}
		if uint32(o.Major) != e.Major || o.Minor != e.Minor {
			t.Errorf("ours %#x %#x (%s), MIT's %#x %#x (%s)", o.Major, o.Minor, o.Text, e.Major, e.Minor, e.Text)
		}
		if (o.Token == nil) != (e.Token == nil) {
			t.Errorf("our error token has %d octets, MIT's %d", len(o.Token), len(e.Token))
		} else if o.Token != nil {
			a, as := errorCode(t, o.Token)
			m, ms := errorCode(t, e.Token)
			if a != m || as != ms {
				t.Errorf("KRB-ERROR: ours %d %s, MIT's %d %s", a, as, m, ms)
			}
		}
	default:
		t.Errorf("ours: %v; MIT's: %v", ours, err)
	}
}

// TestBindingsAgainstMIT has every combination of bindings, with and without the client insisting
// on them.
func TestBindingsAgainstMIT(t *testing.T) {
	b := newBench(t)
	tool := mitAcceptor(t, lab.New(t), b)
	for _, client := range []string{"", "same", "other"} {
		for _, here := range []string{"", "same"} {
			for _, insist := range []bool{false, true} {
				t.Run(fmt.Sprintf("%q/%q/%v", client, here, insist), func(t *testing.T) {
					q := newRequest(t, b.keys[18], 18)
					if client != "" {
						q.sum = gssSum(&ChannelBindings{AppData: []byte(client)}, 0x13e, nil)
					}
					if insist {
						q.authAD = []AuthData{ifRelevant(AuthData{wire.ADAPOptions, []byte{0, 0x40, 0, 0}})}
					}
					var cb []byte
					if here != "" {
						cb = []byte(here)
					}
					compareMIT(t, &b.Acceptor, tool, q, q.token(t), cb)
				})
			}
		}
	}
}

// TestKeysAgainstMIT compares which key is found, and what is said when none is.
func TestKeysAgainstMIT(t *testing.T) {
	b, keys := keyBench(t)
	tool := mitAcceptor(t, lab.New(t), b)
	for _, c := range keyCases() {
		t.Run(c.test, func(t *testing.T) {
			if strings.HasPrefix(c.acceptor, "principal:") || strings.Contains(c.acceptor, "/") {
				t.Log("not compared: MIT's tool takes host-based names")
				return
			}
			if err := tool.Acquire(c.acceptor); err != nil {
				t.Log("not compared: MIT has no credential of that name:", err)
				return
			}
			b.Name = c.name(t)
			q := c.request(t, keys)
			compareMIT(t, &b.Acceptor, tool, q, q.token(t), nil)
		})
	}
}

// TestFramingAgainstMIT damages the outside of a good token.
func TestFramingAgainstMIT(t *testing.T) {
	b := newBench(t)
	tool := mitAcceptor(t, lab.New(t), b)
	q := newRequest(t, b.keys[18], 18)
	good := q.token(t)
	compareMIT(t, &b.Acceptor, tool, q, good, nil)
	for _, c := range []struct {
		name  string
		token []byte
		major mech.Major
	}{
		{"garbage", []byte("GET / HTTP/1.1"), mech.DefectiveToken},
		{"other mechanism", frame("\x2a\x03", tokAPReq, q.apReq(t)), mech.BadMech},
		{"truncated", good[:len(good)-1], mech.Failure},
		{"trailing", append(bytes.Clone(good), 0), mech.Failure},
		{"raw", q.apReq(t), mech.DefectiveToken},
		{"raw garbage", []byte{0x6e, 3, 0x30, 1, 5}, mech.Failure},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := tool.Accept(c.token, nil)
			var e *lab.GSSError
			if !errors.As(err, &e) || e.Major != uint32(c.major) {
				t.Errorf("MIT: %v", err)
			}
			var out Accepted
			if o, ok := b.Accept(&out, c.token, nil).(*mech.Error); !ok || o.Major != c.major {
				t.Errorf("ours: %v", o)
			}
		})
	}
}

// TestIndicatorsAgainstMIT has MIT's acceptor read the indicators that the same tickets have for
// ours, and its importer those in the context that we export.
func TestIndicatorsAgainstMIT(t *testing.T) {
	b := newBench(t)
	tool := mitAcceptor(t, lab.New(t), b)
	// seen are the indicators in MIT's view of the initiator of a context.
	seen := func(t *testing.T, id int) (list []string) {
		t.Helper()
		attrs, err := tool.Attributes(id)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range attrs {
			if a.Name != "auth-indicators" {
				continue
			}
			if !a.Authenticated || !a.Complete {
				t.Errorf("MIT has doubts about %q", a.Value)
			}
			list = append(list, string(a.Value))
		}
		return list
	}
	for _, et := range testEtypes {
		q := newRequest(t, b.keys[et], 18)
		for _, c := range indicatorCases(t, q.ticketKey) {
			t.Run(et.String()+"/"+c.name, func(t *testing.T) {
				q.ticketAD = c.ad
				q.authAD = []AuthData{ifRelevant(cammac(q.ticketKey, indicators("client")))}
				token := q.token(t)
				theirs, err := tool.Accept(token, nil)
				if err != nil {
					t.Fatal(err)
				}
				var out Accepted
				if err := b.Accept(&out, token, nil); err != nil {
					t.Fatal(err)
				}
				imported, err := tool.Import(out.Context.AppendExport(nil))
				if err != nil {
					t.Fatal(err)
				}
				for what, got := range map[string][]string{
					"MIT's acceptor": seen(t, theirs.ID), "ours": out.Context.Indicators, "our context, imported": seen(t, imported),
				} {
					if !slices.Equal(got, c.want) {
						t.Errorf("%s: indicators %q, want %q", what, got, c.want)
					}
				}
			})
		}
	}
	q := newRequest(t, b.keys[18], 18)
	for name, ad := range badIndicators(q.ticketKey) {
		t.Run(name, func(t *testing.T) {
			q.ticketAD = []AuthData{ifRelevant(ad)}
			compareMIT(t, &b.Acceptor, tool, q, q.token(t), nil)
		})
	}
}

// TestMITInitiator establishes contexts between MIT's initiator and our acceptor, with tickets of a
// real KDC.
func TestMITInitiator(t *testing.T) {
	r := lab.New(t)
	for _, et := range testEtypes[:4] {
		t.Run(et.String(), func(t *testing.T) {
			service := "svc" + et.String() + "/www.example.test"
			if err := r.RandKey(service, et.String()); err != nil {
				t.Fatal(err)
			}
			file, err := r.Keytab("keytab", service)
			if err != nil {
				t.Fatal(err)
			}
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			entries, err := keytab.Parse(data)
			if err != nil {
				t.Fatal(err)
			}
			a := Acceptor{Keys: keytab.Compile(file, entries), Conf: testConf(), Replay: &memoryReplay{}}
			env, err := r.Kinit("alice", "alice", "-f")
			if err != nil {
				t.Fatal(err)
			}
			tool, err := r.Tool(lab.Root, env...)
			if err != nil {
				t.Fatal(err)
			}
			defer tool.Close()
			for _, flags := range []uint32{mech.FlagMutual | mech.FlagSequence | mech.FlagReplay, mech.FlagSequence, mech.FlagMutual | mech.FlagDeleg} {
				id, token, err := tool.Init("svc"+et.String()+"@www.example.test", flags, []byte("bound"))
				if err != nil {
					t.Fatal(err)
				}
				var out Accepted
				if err := a.Accept(&out, token, &ChannelBindings{AppData: []byte("bound")}); err != nil {
					t.Fatal(err)
				}
				c := &out.Context
				if c.There != testClient || c.Here != service+"@EXAMPLE.TEST" || c.Flags&mech.FlagChannelBound == 0 || !c.PACVerified {
					t.Errorf("%s at %s, flags %#x, PAC %d verified %v", c.There, c.Here, c.Flags, len(c.PAC), c.PACVerified)
				}
				if (flags&mech.FlagDeleg != 0) != (out.Delegated != nil) {
					t.Errorf("delegated %v", out.Delegated)
				}
				if out.Delegated != nil && (out.Delegated.Client.String() != testClient || out.Delegated.Server.String() != "krbtgt/EXAMPLE.TEST@EXAMPLE.TEST" || len(out.Delegated.Key) == 0) {
					t.Errorf("delegated %v", out.Delegated)
				}
				if flags&mech.FlagMutual != 0 {
					if done, _, err := tool.Step(id, out.Token); err != nil || !done {
						t.Fatalf("MIT refuses our AP-REP: %v", err)
					}
				}
				// The two ends share keys and numbers.
				mic, err := tool.MIC(id, []byte("hello"))
				if err != nil {
					t.Fatal(err)
				}
				if major, err := c.VerifyMIC([]byte("hello"), mic); err != nil || major != 0 {
					t.Errorf("%#x %v", major, err)
				}
				ours, err := c.GetMIC(nil, []byte("there"))
				if err != nil {
					t.Fatal(err)
				}
				if major, err := tool.Verify(id, []byte("there"), ours); err != nil || major != 0 {
					t.Errorf("%#x %v", major, err)
				}
				wantErr(t, a.Accept(&out, token, nil), mech.Failure, wire.MinorReplay, reason.Replay)
			}
		})
	}
}
