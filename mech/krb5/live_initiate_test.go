package krb5_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gssproxyd/keytab"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/ccache"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/kdc"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/tests/lab"
)

// The tests in this file have the tickets of a real KDC, which MIT's tools put into a cache.

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// realm is a realm with services in one keytab.
type realm struct {
	*lab.Realm
	keytab string
	conf   *krb5conf.Config
}

func newRealm(t testing.TB, services ...[]string) *realm {
	t.Helper()
	r := &realm{Realm: lab.New(t)}
	var names []string
	for _, s := range services {
		check(t, r.RandKey(s[0], s[1:]...))
		names = append(names, s[0])
	}
	var err error
	r.keytab, err = r.Keytab("krb5.keytab", names...)
	check(t, err)
	r.conf, err = krb5conf.Load([]string{r.Conf})
	check(t, err)
	return r
}

// credential is what the cache of env has for a service.
func (r *realm) credential(t testing.TB, env []string, service string) *krb5.Credential {
	t.Helper()
	if !strings.HasPrefix(service, "krbtgt/") {
		_, err := r.Run(lab.Root, env, "/usr/bin/kvno", service)
		check(t, err)
	}
	server, err := krb5.ParsePrincipal(service, lab.Name)
	check(t, err)
	i := slices.IndexFunc(env, func(v string) bool { return strings.HasPrefix(v, "KRB5CCNAME=") })
	cache, err := new(ccache.Resolver).Open(context.Background(), strings.TrimPrefix(env[i], "KRB5CCNAME="))
	check(t, err)
	creds, err := cache.Credentials(context.Background())
	check(t, err)
	i = slices.IndexFunc(creds, func(c *krb5.Credential) bool { return c.Server.Equal(server) })
	if i < 0 {
		t.Fatalf("%s has no ticket for %s", cache.Name(), service)
	}
	return creds[i]
}

func (r *realm) acceptor(t testing.TB) *krb5.Acceptor {
	t.Helper()
	data, err := os.ReadFile(r.keytab)
	check(t, err)
	entries, err := keytab.Parse(data)
	check(t, err)
	return &krb5.Acceptor{Keys: keytab.Compile("FILE:"+r.keytab, entries), Conf: r.conf, DCEStyle: true}
}

const (
	common = mech.FlagMutual | mech.FlagReplay | mech.FlagSequence
	web    = "HTTP/www.example.test"
	old    = "old/www.example.test"
)

// TestLikeMIT gives tokens of MIT's initiator and of ours to one acceptor, which must see no
// difference.
func TestLikeMIT(t *testing.T) {
	r := newRealm(t, []string{web, "aes256-cts-hmac-sha1-96"}, []string{old, "aes128-cts-hmac-sha256-128"})
	for _, aware := range []bool{false, true} {
		conf, err := r.Krb5Conf(fmt.Sprintf("aware-%v.conf", aware), fmt.Sprintf("client_aware_channel_bindings = %v", aware))
		check(t, err)
		env, err := r.KinitEnv([]string{"KRB5_CONFIG=" + conf}, "alice", "alice", "-f")
		check(t, err)
		tool, err := r.Tool(lab.Root, env...)
		check(t, err)
		defer tool.Close()
		cfg, err := krb5conf.Load([]string{conf})
		check(t, err)
		a := r.acceptor(t)
		for _, service := range []string{web, old} {
			ticket := r.credential(t, env, service)
			tgt := r.credential(t, env, "krbtgt/"+lab.Name)
			for _, flags := range []uint32{0, common, mech.FlagMutual, mech.FlagSequence, mech.FlagDeleg, mech.FlagDeleg | common, mech.FlagDCEStyle | common,
				mech.FlagDelegPolicy | common, mech.FlagIdentify | mech.FlagAnon, mech.FlagExtendedError | mech.FlagMutual} {
				for _, bound := range [][]byte{nil, []byte("bound")} {
					t.Run(fmt.Sprintf("%s/%#x/%s/%v", service[:3], flags, bound, aware), func(t *testing.T) {
						i := &krb5.Initiator{Ticket: ticket, Flags: flags, Delegate: tgt, Conf: cfg}
						var cb *krb5.ChannelBindings
						if bound != nil {
							cb = &krb5.ChannelBindings{AppData: bound}
							i.Bindings = cb
						}
						var out krb5.Initiated
						check(t, i.Init(&out))
						var ours, theirs krb5.Accepted
						check(t, a.Accept(&ours, out.Token, cb))
						id, token, err := tool.Init(strings.Replace(service, "/", "@", 1), flags, bound)
						check(t, err)
						check(t, a.Accept(&theirs, token, cb))

						x, y := &ours.Context, &theirs.Context
						if x.Flags != y.Flags || x.Here != y.Here || x.There != y.There || x.EndTime != y.EndTime || x.TicketFlags != y.TicketFlags {
							t.Errorf("ours %v %#x, MIT's %v %#x", x, x.Flags, y, y.Flags)
						}
						if d := cmp.Diff(y.AuthData, x.AuthData); d != "" {
							t.Error("authorization data:", d)
						}
						if x.Subkey.Enctype() != y.Subkey.Enctype() || x.AcceptorSubkey.Enctype() != y.AcceptorSubkey.Enctype() {
							t.Errorf("subkeys %v %v, MIT's %v %v", x.Subkey, x.AcceptorSubkey, y.Subkey, y.AcceptorSubkey)
						}
						if (ours.Delegated != nil) != (theirs.Delegated != nil) {
							t.Errorf("delegated %v, MIT's %v", ours.Delegated, theirs.Delegated)
						}
						// The tokens are as long but for what is delegated and the digits of
						// numbers.
						if ours.Delegated == nil && !asLong(out.Token, token) {
							t.Errorf("token of %d octets, MIT's %d", len(out.Token), len(token))
						}

						// And so are the contexts that come of it.
						if out.Partial != nil {
							check(t, i.Continue(&out, out.Partial, ours.Token))
							done, last, err := tool.Step(id, theirs.Token)
							check(t, err)
							if !done || !asLong(last, out.Token) {
								t.Errorf("MIT done %v, with a token of %d octets, ours %d", done, len(last), len(out.Token))
							}
						}
						exported, err := tool.Export(id)
						check(t, err)
						mit, err := krb5.ImportContext(exported)
						check(t, err)
						want, got := fixed(mit), fixed(&out.Context)
						if d := cmp.Diff(want, got); d != "" {
							t.Error(d)
						}
						again, err := krb5.ImportContext(out.Context.AppendExport(nil))
						check(t, err)
						if d := cmp.Diff(want, fixed(again)); d != "" {
							t.Error("exported and imported:", d)
						}
					})
				}
			}
		}
	}
}

// asLong says whether two tokens are of one length but for the digits of the numbers in them,
// microseconds and sequence numbers, which are as long as they happen to be.
func asLong(x, y []byte) bool {
	n := len(x) - len(y)
	return (len(x) == 0) == (len(y) == 0) && -8 <= n && n <= 8
}

// fields are what the contexts of two runs have in common.
type fields struct {
	Initiator                               bool
	Flags                                   uint32
	Mech                                    mech.OID
	Here, There                             string
	AuthTime, StartTime, EndTime, RenewTill uint32
	TicketFlags                             uint32
	Subkey, AcceptorSubkey, Session         etype.ID
	SameNumbers                             bool
	Window                                  krb5.Window
}

func fixed(c *krb5.Context) fields {
	w := c.Window
	if w.Base != c.RecvSeq {
		w.Next = 99
	}
	w.Base = 0
	m := c.Mech
	if m == "" {
		m = mech.KRB5
	}
	return fields{c.Initiator, c.Flags, m, c.Here, c.There, c.AuthTime, c.StartTime, c.EndTime, c.RenewTill, c.TicketFlags,
		c.Subkey.Enctype(), c.AcceptorSubkey.Enctype(), c.SessionKey.Enctype(), c.SendSeq == c.RecvSeq, w}
}

// TestMITInitiatorDCE has MIT's initiator and our acceptor hold the conversation of DCE RPC.
func TestMITInitiatorDCE(t *testing.T) {
	r := newRealm(t, []string{web})
	env, err := r.Kinit("alice", "alice", "-f")
	check(t, err)
	tool, err := r.Tool(lab.Root, env...)
	check(t, err)
	defer tool.Close()
	a := r.acceptor(t)
	for _, flags := range []uint32{mech.FlagDCEStyle, mech.FlagDCEStyle | common | mech.FlagDeleg} {
		id, token, err := tool.Init("HTTP@www.example.test", flags, nil)
		check(t, err)
		var first, last krb5.Accepted
		check(t, a.Accept(&first, token, nil))
		done, third, err := tool.Step(id, first.Token)
		check(t, err)
		if !done || first.Partial == nil {
			t.Fatalf("done %v, partial %v", done, first.Partial)
		}
		check(t, a.Continue(&last, first.Partial, third))
		c := &last.Context
		if c.There != "alice@EXAMPLE.TEST" || c.Flags != flags&^mech.FlagDeleg|mech.FlagMutual|mech.FlagTrans|mech.FlagConf|mech.FlagInteg || !c.PACVerified {
			t.Errorf("%v, flags %#x, PAC verified %v", c, c.Flags, c.PACVerified)
		}
		mic, err := tool.MIC(id, []byte("hello"))
		check(t, err)
		if major, err := c.VerifyMIC([]byte("hello"), mic); err != nil || major != 0 {
			t.Errorf("%#x, %v", major, err)
		}
		// What was exported works in MIT's library.
		token2, err := c.Wrap(nil, []byte("there"), true)
		check(t, err)
		if msg, conf, major, err := tool.Unwrap(id, token2); err != nil || major != 0 || !conf || !bytes.Equal(msg, []byte("there")) {
			t.Errorf("%q, %v, %#x, %v", msg, conf, major, err)
		}
		again, err := tool.Import(c.AppendExport(nil))
		check(t, err)
		check(t, lab.Converse(lab.End{Tool: tool, ID: id}, lab.End{Tool: tool, ID: again}))
	}
}

// TestDelegateToMIT forwards a ticket that MIT's acceptor then uses, and exports our end to MIT's
// library.
func TestDelegateToMIT(t *testing.T) {
	r := newRealm(t, []string{web}, []string{old, "aes128-cts-hmac-sha1-96"})
	env, err := r.Kinit("alice", "alice", "-f")
	check(t, err)
	client, err := r.Tool(lab.Root, env...)
	check(t, err)
	defer client.Close()
	server, err := r.Tool(lab.Root, "KRB5_KTNAME=FILE:"+r.keytab, "KRB5RCACHENAME=none:")
	check(t, err)
	defer server.Close()
	check(t, server.Acquire(""))
	tgt := r.credential(t, env, "krbtgt/"+lab.Name)
	k := &kdc.Client{Conf: r.conf}
	for _, service := range []string{web, old} {
		ticket := r.credential(t, env, service)
		forwarded, err := k.Forward(context.Background(), tgt, ticket.KeyType)
		check(t, err)
		for _, flags := range []uint32{mech.FlagDeleg, mech.FlagDeleg | common} {
			i := &krb5.Initiator{Ticket: ticket, Flags: flags, Delegate: forwarded, Conf: r.conf, Target: service + "@"}
			if !i.Delegates() {
				t.Fatal("delegation was asked for")
			}
			var out krb5.Initiated
			check(t, i.Init(&out))
			theirs, err := server.Accept(out.Token, nil)
			check(t, err)
			if out.Partial != nil {
				check(t, i.Continue(&out, out.Partial, theirs.Token))
			}
			if !theirs.Delegated || theirs.Flags&mech.FlagDeleg == 0 {
				t.Fatalf("flags %#x", theirs.Flags)
			}
			name, token, err := server.UseDelegated(theirs.ID, "HTTP@www.example.test")
			check(t, err)
			var seen krb5.Accepted
			check(t, r.acceptor(t).Accept(&seen, token, nil))
			if name != "alice@EXAMPLE.TEST" || seen.Context.There != name {
				t.Errorf("the delegated ticket is of %s, used as %s", name, seen.Context.There)
			}
			id, err := client.Import(out.Context.AppendExport(nil))
			check(t, err)
			q, err := client.Inquire(id)
			check(t, err)
			if !q.Local || !q.Open || q.Source != "alice@EXAMPLE.TEST" || q.Target != service+"@" || q.Flags != out.Context.Flags || q.Lifetime == 0 {
				t.Errorf("MIT sees %+v", q)
			}
			check(t, lab.Converse(lab.End{Tool: client, ID: id}, lab.End{Tool: server, ID: theirs.ID}))
		}
	}
}
