package spnego_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gssproxyd/keytab"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/ccache"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/reason"
	"gssproxyd/mech/spnego"
	"gssproxyd/tests/lab"
)

var update = flag.Bool("update", false, "write the tokens exchanged with MIT's library to testdata")

const (
	golden  = "testdata/mit"
	service = "svc@" + lab.Host
	usual   = mech.FlagReplay | mech.FlagSequence | mech.FlagConf | mech.FlagInteg
	mutual  = usual | mech.FlagMutual
	dce     = mutual | mech.FlagDCEStyle
)

// acceptor is the service side of the Kerberos of this project.
type acceptor struct {
	a   *krb5.Acceptor
	out krb5.Accepted
}

func (c *acceptor) Step(_ context.Context, token []byte) ([]byte, bool, error) {
	var err error
	if c.out.Partial == nil {
		err = c.a.Accept(&c.out, token, nil)
	} else {
		err = c.a.Continue(&c.out, c.out.Partial, token)
	}
	return bytes.Clone(c.out.Token), err == nil && c.out.Partial == nil, err
}
func (c *acceptor) Flags() uint32                          { return c.out.Context.Flags }
func (c *acceptor) GetMIC(dst, msg []byte) ([]byte, error) { return c.out.Context.GetMIC(dst, msg) }
func (c *acceptor) VerifyMIC(msg, mic []byte) (mech.Major, error) {
	return c.out.Context.VerifyMIC(msg, mic)
}

// initiator is the client side.
type initiator struct {
	i   *krb5.Initiator
	out krb5.Initiated
}

func (c *initiator) Step(_ context.Context, token []byte) ([]byte, bool, error) {
	var err error
	if c.out.Partial == nil {
		err = c.i.Init(&c.out)
	} else {
		err = c.i.Continue(&c.out, c.out.Partial, token)
	}
	return bytes.Clone(c.out.Token), err == nil && c.out.Partial == nil, err
}
func (c *initiator) Flags() uint32                          { return c.out.Context.Flags }
func (c *initiator) GetMIC(dst, msg []byte) ([]byte, error) { return c.out.Context.GetMIC(dst, msg) }
func (c *initiator) VerifyMIC(msg, mic []byte) (mech.Major, error) {
	return c.out.Context.VerifyMIC(msg, mic)
}

// peer is one end of MIT's Kerberos.
type peer struct {
	tool  *lab.SPNEGOTool
	flags uint32
	id    int // negative: not begun
	init  bool
}

func (p *peer) Step(_ context.Context, token []byte) (reply []byte, done bool, err error) {
	switch {
	case !p.init:
		n, err := p.tool.NegAccept(p.id, token) // mechglue sees that the token is Kerberos's
		if err != nil {
			return nil, false, status(err)
		}
		p.id, p.flags = n.ID, n.Flags
		return n.Token, n.Complete, nil
	case p.id < 0:
		p.id, reply, err = p.tool.Init(service, p.flags, nil)
		done = p.flags&mech.FlagMutual == 0
	default:
		done, reply, err = p.tool.Step(p.id, token)
	}
	return reply, done, status(err)
}
func (p *peer) Flags() uint32 { return p.flags }
func (p *peer) GetMIC(dst, msg []byte) ([]byte, error) {
	mic, err := p.tool.MIC(p.id, msg)
	return append(dst, mic...), status(err)
}
func (p *peer) VerifyMIC(msg, mic []byte) (mech.Major, error) {
	major, err := p.tool.Verify(p.id, msg, mic)
	return mech.Major(major), status(err)
}

// status makes of MIT's error one of ours.
func status(err error) error {
	var e *lab.GSSError
	if errors.As(err, &e) {
		return &mech.Error{Major: mech.Major(e.Major), Minor: e.Minor, Text: strings.TrimSpace(e.Text), Token: e.Token}
	}
	return err
}

// optimist has a first token and nothing else, like NTLM of somebody who cannot speak it.
type optimist struct{ token string }

func (o optimist) Step(context.Context, []byte) ([]byte, bool, error) {
	if o.token == "" {
		return nil, false, errors.New("no credentials")
	}
	return []byte(o.token), false, nil
}
func (optimist) Flags() uint32                                 { return 0 }
func (optimist) GetMIC(dst, _ []byte) ([]byte, error)          { return dst, errors.New("no MIC") }
func (optimist) VerifyMIC(_, _ []byte) (mech.Major, error)     { return 0, errors.New("no MIC") }
func offering(m mech.OID, c func() spnego.Context) spnego.Mech { return spnego.Mech{OID: m, New: c} }

// bench is a realm with MIT's two ends in it, and ours of the same service.
type bench struct {
	client, server *lab.SPNEGOTool
	acceptor       krb5.Acceptor
	ticket         *krb5.Credential
}

func newBench(t *testing.T) *bench {
	r := lab.New(t)
	check(t, r.RandKey("svc/"+lab.Host))
	file, err := r.Keytab("keytab", "svc/"+lab.Host)
	check(t, err)
	data, err := os.ReadFile(file)
	check(t, err)
	entries, err := keytab.Parse(data)
	check(t, err)
	b := &bench{acceptor: krb5.Acceptor{Keys: keytab.Compile(file, entries), DCEStyle: true}}
	env, err := r.Kinit("alice", "alice")
	check(t, err)
	_, err = r.Run(lab.Root, env, "/usr/bin/kvno", "svc/"+lab.Host)
	check(t, err)
	name, _ := strings.CutPrefix(env[len(env)-1], "KRB5CCNAME=")
	cache, err := new(ccache.Resolver).Open(t.Context(), name)
	check(t, err)
	creds, err := cache.Credentials(t.Context())
	check(t, err)
	i := slices.IndexFunc(creds, func(c *krb5.Credential) bool { return c.Server.Components[0] == "svc" })
	b.ticket = creds[i]
	b.client, err = r.SPNEGOTool(lab.Root, env...)
	check(t, err)
	t.Cleanup(func() { b.client.Close() })
	b.server, err = r.SPNEGOTool(lab.Root, "KRB5_KTNAME=FILE:"+file, "KRB5RCACHENAME=none:")
	check(t, err)
	t.Cleanup(func() { b.server.Close() })
	return b
}

func (b *bench) ours() spnego.Context { return &acceptor{a: &b.acceptor} }

func (b *bench) ourInitiator(flags uint32) func() spnego.Context {
	return func() spnego.Context {
		return &initiator{i: &krb5.Initiator{Ticket: b.ticket, Flags: flags}}
	}
}

func (b *bench) mitAcceptor() spnego.Context { return &peer{tool: b.server, id: -1} }

func (b *bench) mitInitiator(flags uint32) func() spnego.Context {
	return func() spnego.Context { return &peer{tool: b.client, flags: flags, id: -1, init: true} }
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// exchange carries tokens between two ends, at least one of which is MIT's, until both are done.
// Every token is written down in words.
func exchange(t *testing.T, initiator, acceptor func([]byte) ([]byte, bool, error)) (log []string, tokens [][]byte, err error) {
	t.Helper()
	var token []byte
	var initDone, acceptDone bool
	for legs := 0; !initDone || !acceptDone; legs++ {
		if legs > 12 {
			t.Fatal("no end in sight:", log)
		}
		end, done, who := initiator, &initDone, "initiator"
		if legs%2 == 1 {
			end, done, who = acceptor, &acceptDone, "acceptor"
		}
		if *done {
			t.Fatalf("the %s is done and is to take a token: %s", who, log)
		}
		if token, *done, err = end(token); err != nil {
			return log, tokens, err
		}
		log = append(log, describe(token))
		if len(token) > 0 {
			tokens = append(tokens, token)
		} else if !initDone || !acceptDone {
			t.Fatalf("the %s has no token, but the other end is not done: %s", who, log)
		}
	}
	return log, tokens, nil
}

// describe says what is in a token, and checks that it is written as we would write it.
func describe(token []byte) string {
	if len(token) == 0 {
		return "-"
	}
	var s []string
	has := func(b []byte, name string) {
		if b != nil {
			s = append(s, name)
		}
	}
	var again []byte
	if i, err := spnego.ParseInit(token); err == nil {
		s = append(s, "init")
		has(i.MechToken, "token")
		has(i.Hints, "hints")
		has(i.MechListMIC, "mic")
		again = i.Append(nil)
	} else if r, err := spnego.ParseResp(token); err == nil {
		s = append(s, r.State.String())
		if r.SupportedMech != nil {
			s = append(s, mech.OID(r.SupportedMech).String())
		}
		has(r.ResponseToken, "token")
		has(r.MechListMIC, "mic")
		again = r.Append(nil)
	} else {
		return "raw"
	}
	if !bytes.Equal(again, token) {
		s = append(s, fmt.Sprintf("(not as we write it: %x, %x)", token, again))
	}
	return strings.Join(s, " ")
}

// record writes tokens down for TestGolden, with -update.
func record(t *testing.T, log []string, tokens [][]byte) {
	t.Helper()
	if !*update || strings.Contains(t.Name(), "ours_inside") { // the tokens are as MIT's, whose end is the same
		return
	}
	var out []byte
	for n, token := range tokens {
		out = append(append(hex.AppendEncode(out, token), ' '), log[n]...)
		out = append(out, '\n')
	}
	name := strings.NewReplacer("/", "-", "_", "-").Replace(strings.TrimPrefix(t.Name(), "Test")) + ".txt"
	check(t, os.MkdirAll(golden, 0o755))
	check(t, os.WriteFile(filepath.Join(golden, name), out, 0o644))
}

// converse has the two ends, one of them MIT's, understand each other.
func converse(t *testing.T, c spnego.Context, tool *lab.SPNEGOTool, id int) {
	t.Helper()
	msg := []byte("negotiated")
	mic, err := c.GetMIC(nil, msg)
	check(t, err)
	if major, err := tool.Verify(id, msg, mic); err != nil || major != 0 {
		t.Errorf("MIT verifies our MIC with %#x, %v", major, err)
	}
	mic, err = tool.MIC(id, msg)
	check(t, err)
	if order, err := c.VerifyMIC(msg, mic); err != nil || order != mech.Complete {
		t.Errorf("MIT's MIC: order %#x, %v", order, err)
	}
}

const (
	krb5OID = "1.2.840.113554.1.2.2"
	msOID   = "1.2.840.48018.1.2.2"
)

// TestMITInitiator has our acceptor answer MIT's gss_init_sec_context.
func TestMITInitiator(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct {
		name    string
		offer   []mech.OID
		rewrite []mech.OID // the list that arrives instead
		flags   uint32
		inner   func() spnego.Context
		log     []string
	}{
		{name: "mutual", flags: mutual, inner: b.ours,
			log: []string{"init token", "accept-completed " + krb5OID + " token", "-"}},
		{name: "non-mutual", flags: usual, inner: b.ours,
			log: []string{"init token", "accept-completed " + krb5OID, "-"}},
		{name: "microsoft first mutual", rewrite: []mech.OID{mech.KRB5Wrong, mech.KRB5, spnego.NTLM}, flags: mutual, inner: b.ours,
			log: []string{"init token", "accept-completed " + msOID + " token", "-"}},
		{name: "microsoft first non-mutual", rewrite: []mech.OID{mech.KRB5Wrong, mech.KRB5, spnego.NTLM}, flags: usual, inner: b.ours,
			log: []string{"init token", "accept-completed " + msOID, "-"}},
		{name: "NTLM first mutual", offer: []mech.OID{spnego.NTLM, mech.KRB5}, flags: mutual, inner: b.ours,
			log: []string{"init token", "request-mic " + krb5OID, "accept-incomplete token", "accept-incomplete token mic", "accept-completed mic", "-"}},
		{name: "NTLM first non-mutual", offer: []mech.OID{spnego.NTLM, mech.KRB5}, flags: usual, inner: b.ours,
			log: []string{"init token", "request-mic " + krb5OID, "accept-incomplete token mic", "accept-completed mic", "-"}},
		{name: "DCE", flags: dce, inner: b.ours,
			log: []string{"init token", "accept-incomplete " + krb5OID + " token", "accept-incomplete token", "accept-completed", "-"}},
		{name: "DCE MIT inside", flags: dce, inner: b.mitAcceptor,
			log: []string{"init token", "accept-incomplete " + krb5OID + " token", "accept-incomplete token", "accept-completed", "-"}},
		{name: "NTLM first DCE", offer: []mech.OID{spnego.NTLM, mech.KRB5}, flags: dce, inner: b.ours,
			log: []string{"init token", "request-mic " + krb5OID, "accept-incomplete token", "accept-incomplete token", "accept-incomplete token mic", "accept-completed mic", "-"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			id := -1
			a := &spnego.Acceptor{Mechs: []spnego.Mech{offering(mech.KRB5, c.inner)}}
			log, tokens, err := exchange(t, func(in []byte) ([]byte, bool, error) {
				if id >= 0 {
					n, err := b.client.NegStep(id, in)
					return n.Token, n.Complete, err
				}
				n, err := b.client.NegInit(c.offer, service, c.flags)
				id = n.ID
				if c.rewrite != nil {
					n.Token = rewrite(t, n.Token, c.rewrite)
				}
				return n.Token, false, err
			}, func(in []byte) ([]byte, bool, error) {
				return a.Step(t.Context(), in)
			})
			check(t, err)
			if !slices.Equal(log, c.log) {
				t.Errorf("the tokens are\n%q, want\n%q", log, c.log)
			}
			if !a.Established() || a.Raw() {
				t.Errorf("established %v, raw %v", a.Established(), a.Raw())
			}
			record(t, log, tokens)
			converse(t, a.Inner(), b.client, id)
			if _, done, err := a.Step(t.Context(), tokens[0]); done || err == nil {
				t.Error("a token was taken after the end")
			}
		})
	}
}

// TestMITAcceptor has our initiator talk to MIT's gss_accept_sec_context, with either Kerberos
// inside.
func TestMITAcceptor(t *testing.T) {
	b := newBench(t)
	t.Run("ours inside", func(t *testing.T) { testMITAcceptor(t, b, b.ourInitiator) })
	t.Run("MIT inside", func(t *testing.T) { testMITAcceptor(t, b, b.mitInitiator) })
}

func testMITAcceptor(t *testing.T, b *bench, inner func(flags uint32) func() spnego.Context) {
	ntlm := offering(spnego.NTLM, func() spnego.Context { return optimist{"NTLMSSP\x00\x01"} })
	broken := offering(spnego.NTLM, func() spnego.Context { return optimist{} })
	for _, c := range []struct {
		name  string
		flags uint32
		first []spnego.Mech // before Kerberos
		log   []string
	}{
		{"mutual", mutual, nil,
			[]string{"init token", "accept-completed " + krb5OID + " token", "-"}},
		{"non-mutual", usual, nil,
			[]string{"init token", "accept-completed " + krb5OID, "-"}},
		{"microsoft first mutual", mutual, []spnego.Mech{offering(mech.KRB5Wrong, inner(mutual))},
			[]string{"init token", "accept-completed " + msOID + " token", "-"}},
		{"microsoft first non-mutual", usual, []spnego.Mech{offering(mech.KRB5Wrong, inner(usual))},
			[]string{"init token", "accept-completed " + msOID, "-"}},
		{"NTLM first mutual", mutual, []spnego.Mech{ntlm},
			[]string{"init token", "request-mic " + krb5OID, "accept-incomplete token", "accept-incomplete token mic", "accept-completed mic", "-"}},
		{"NTLM first non-mutual", usual, []spnego.Mech{ntlm},
			[]string{"init token", "request-mic " + krb5OID, "accept-incomplete token mic", "accept-completed mic", "-"}},
		{"NTLM does not begin", mutual, []spnego.Mech{broken},
			[]string{"init token", "accept-completed " + krb5OID + " token", "-"}},
		{"DCE", dce, nil,
			[]string{"init token", "accept-incomplete " + krb5OID + " token", "accept-incomplete token", "accept-completed", "-"}},
		{"NTLM first DCE", dce, []spnego.Mech{ntlm},
			[]string{"init token", "request-mic " + krb5OID, "accept-incomplete token", "accept-incomplete token", "accept-incomplete token mic", "accept-completed mic", "-"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			id := -1
			var last lab.Negotiated
			i := &spnego.Initiator{Mechs: append(slices.Clone(c.first), offering(mech.KRB5, inner(c.flags)))}
			log, tokens, err := exchange(t, func(in []byte) ([]byte, bool, error) {
				return i.Step(t.Context(), in)
			}, func(in []byte) (_ []byte, _ bool, err error) {
				last, err = b.server.NegAccept(id, in)
				id = last.ID
				return last.Token, last.Complete, err
			})
			check(t, err)
			if !slices.Equal(log, c.log) {
				t.Errorf("the tokens are\n%q, want\n%q", log, c.log)
			}
			if last.Mech != mech.KRB5 || last.Client != "alice@"+lab.Name {
				t.Errorf("MIT accepts %q by %v", last.Client, last.Mech)
			}
			record(t, log, tokens)
			converse(t, i.Inner(), b.server, id)
		})
	}
}

// rewrite replaces the list of a NegTokenInit.
func rewrite(t *testing.T, token []byte, mechs []mech.OID) []byte {
	t.Helper()
	i, err := spnego.ParseInit(token)
	check(t, err)
	var list []byte
	for _, m := range mechs {
		list = der.AppendValue(list, der.ObjectID, []byte(m))
	}
	i.MechTypes = der.AppendValue(nil, der.Sequence, list)
	return i.Append(nil)
}

// TestDowngrade takes a mechanism off MIT's list, which the MIC shows.
func TestDowngrade(t *testing.T) {
	b := newBench(t)
	for _, flags := range []uint32{mutual, usual} {
		a := &spnego.Acceptor{Mechs: []spnego.Mech{offering(mech.KRB5, b.ours)}}
		n, err := b.client.NegInit([]mech.OID{spnego.NTLM, mech.KRB5}, service, flags)
		check(t, err)
		reply, _, err := a.Step(t.Context(), rewrite(t, n.Token, []mech.OID{spnego.NegoEx, mech.KRB5}))
		check(t, err)
		n, err = b.client.NegStep(n.ID, reply)
		check(t, err)
		reply, _, err = a.Step(t.Context(), n.Token)
		if flags == usual {
			// MIT's MIC is here first.
			var e *mech.Error
			if !errors.As(err, &e) || e.Major != mech.BadMIC || e.Reason != reason.BadMIC || describe(e.Token) != "reject" {
				t.Errorf("%v", err)
			}
			continue
		}
		check(t, err)
		var e *lab.GSSError
		if _, err = b.client.NegStep(n.ID, reply); !errors.As(err, &e) || mech.Major(e.Major) != mech.BadMIC {
			t.Errorf("MIT says %v", err)
		}
		if describe(e.Token) != "reject" {
			t.Errorf("MIT's answer is %s", describe(e.Token))
		}
		if _, _, err = a.Step(t.Context(), e.Token); err == nil {
			t.Error("a rejection was taken")
		}
	}
}

// TestRawKerberos leaves the negotiation out, and has the acceptor begin it.
func TestRawKerberos(t *testing.T) {
	b := newBench(t)
	for _, flags := range []uint32{mutual, usual} {
		i := b.mitInitiator(flags)().(*peer)
		token, _, err := i.Step(t.Context(), nil)
		check(t, err)
		a := &spnego.Acceptor{Mechs: []spnego.Mech{offering(mech.KRB5, b.ours)}}
		reply, done, err := a.Step(t.Context(), token)
		check(t, err)
		if !done || !a.Raw() {
			t.Errorf("done %v, raw %v", done, a.Raw())
		}
		if flags == mutual {
			if _, done, err := i.Step(t.Context(), reply); !done || err != nil {
				t.Errorf("MIT does not take the answer: %v", err)
			}
		}
		converse(t, a.Inner(), b.client, i.id)
	}
	a := &spnego.Acceptor{Mechs: []spnego.Mech{offering(mech.KRB5, b.mitAcceptor)}}
	i := b.mitInitiator(dce)().(*peer)
	_, _, err := exchange(t, func(in []byte) ([]byte, bool, error) { return i.Step(t.Context(), in) },
		func(in []byte) ([]byte, bool, error) {
			return a.Step(t.Context(), in)
		})
	check(t, err)
	if !a.Raw() {
		t.Error("not raw")
	}
}

// TestHints compares the answer to nothing with MIT's, and goes on.
func TestHints(t *testing.T) {
	b := newBench(t)
	theirs, err := b.server.NegAccept(-1, nil)
	check(t, err)
	record(t, []string{"init hints"}, [][]byte{theirs.Token})
	a := &spnego.Acceptor{Mechs: []spnego.Mech{offering(mech.KRB5, b.ours)}}
	reply, done, err := a.Step(t.Context(), nil)
	if check(t, err); done || !bytes.Equal(reply, theirs.Token) {
		t.Errorf("%v %x, MIT's %x", done, reply, theirs.Token)
	}
	n, err := b.client.NegInit(nil, service, mutual)
	check(t, err)
	if reply, done, err = a.Step(t.Context(), n.Token); err != nil || !done {
		t.Fatal(done, err)
	}
	if n, err = b.client.NegStep(n.ID, reply); err != nil || !n.Complete {
		t.Error(n, err)
	}
}

// TestRefusals compares what is said to whom when it does not work out.
func TestRefusals(t *testing.T) {
	b := newBench(t)
	good, err := b.client.NegInit(nil, service, mutual)
	check(t, err)
	parsed, err := spnego.ParseInit(good.Token)
	check(t, err)
	change := func(f func(*spnego.NegTokenInit)) []byte {
		c := parsed
		f(&c)
		return c.Append(nil)
	}
	damaged := bytes.Clone(parsed.MechToken)
	damaged[len(damaged)-1] ^= 1 // the authenticator
	for _, c := range []struct {
		name   string
		token  []byte
		major  mech.Major
		same   bool // MIT says the same, but for the number: mechglue gives out its own
		answer string
	}{
		{"nothing in common", rewrite(t, good.Token, []mech.OID{spnego.NTLM, spnego.NegoEx}), mech.BadMech, true, "reject"},
		{"empty list", rewrite(t, good.Token, nil), mech.BadMech, true, "reject"},
		{"token of another mechanism", change(func(i *spnego.NegTokenInit) { i.MechToken = []byte("NTLMSSP\x00\x01\x00\x00\x00") }), mech.BadMech, true, "reject"},
		{"damaged token", change(func(i *spnego.NegTokenInit) { i.MechToken = damaged }), mech.Failure, true, "reject token"},
		{"garbage inside", change(func(i *spnego.NegTokenInit) { i.MechToken = []byte("GET /") }), mech.DefectiveToken, false, "reject"},
		{"trailing in the list", change(func(i *spnego.NegTokenInit) { i.MechTypes = append(bytes.Clone(i.MechTypes), 5, 0) }), mech.DefectiveToken, false, "reject"},
		{"response first", (&spnego.NegTokenResp{State: spnego.AcceptCompleted}).Append(nil), mech.DefectiveToken, false, "reject"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := &spnego.Acceptor{Mechs: []spnego.Mech{offering(mech.KRB5, b.ours)}}
			_, _, err := a.Step(t.Context(), c.token)
			var e *mech.Error
			if !errors.As(err, &e) || e.Major != c.major || describe(e.Token) != c.answer || e.Text == "" || e.Reason == "" {
				t.Fatalf("%#x %v, answer %s", e.Major, err, describe(e.Token))
			}
			_, err = b.server.NegAccept(-1, c.token)
			var m *lab.GSSError
			if !errors.As(err, &m) {
				if c.same {
					t.Error("MIT takes it")
				}
				return
			}
			if _, text, _ := strings.Cut(m.Text, ": "); c.same && (m.Major != uint32(e.Major) || e.Minor != 0 && !strings.HasPrefix(e.Text, text)) {
				t.Errorf("ours %#x %s, MIT's %#x %s", e.Major, e.Text, m.Major, text)
			}
			if c.same && describe(m.Token) != c.answer {
				t.Errorf("MIT's answer is %s", describe(m.Token))
			}
		})
	}
}
