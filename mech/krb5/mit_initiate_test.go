package krb5

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
	"gssproxyd/tests/lab"
)

// talkMIT sends messages both ways between c and the context id of MIT's.
func talkMIT(t testing.TB, c *Context, tool *lab.Tool, id int) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for n, size := range []int{1, 100, 5000} {
		msg := bytes.Repeat([]byte{byte(n + 1)}, size)
		for _, conf := range []bool{false, true} {
			token, err := c.Wrap(nil, msg, conf)
			check(err)
			got, sealed, major, err := tool.Unwrap(id, token)
			check(err)
			if major != 0 || sealed != conf || !bytes.Equal(got, msg) {
				t.Fatalf("MIT unwraps %d octets, confidentiality %v, major %#x", len(got), sealed, major)
			}
			token, err = tool.Wrap(id, conf, msg)
			check(err)
			got, sealed, supplementary, err := c.Unwrap(nil, token)
			check(err)
			if supplementary != 0 || sealed != conf || !bytes.Equal(got, msg) {
				t.Fatalf("we unwrap %d octets, confidentiality %v, major %#x", len(got), sealed, supplementary)
			}
		}
		mic, err := c.GetMIC(nil, msg)
		check(err)
		if major, err := tool.Verify(id, msg, mic); err != nil || major != 0 {
			t.Fatalf("MIT verifies: %#x, %v", major, err)
		}
		mic, err = tool.MIC(id, msg)
		check(err)
		if major, err := c.VerifyMIC(msg, mic); err != nil || major != 0 {
			t.Fatalf("we verify: %#x, %v", major, err)
		}
	}
	ours, err := c.PseudoRandom(false, []byte("in"), 50)
	check(err)
	theirs, err := tool.PRF(id, true, 50, []byte("in"))
	check(err)
	if !bytes.Equal(ours, theirs) {
		t.Error("pseudo-random octets differ")
	}
}

// TestInitiateToMIT establishes contexts with MIT's acceptor, for every type of ticket and session
// key.
func TestInitiateToMIT(t *testing.T) {
	b := newBench(t)
	tool := mitAcceptor(t, lab.New(t), b)
	const mutual, seq, dce = mech.FlagMutual, mech.FlagSequence | mech.FlagReplay, mech.FlagDCEStyle
	for _, ticket := range testEtypes {
		for _, session := range testEtypes {
			for _, c := range []struct {
				name  string
				flags uint32
				oid   mech.OID
				bound []byte
			}{
				{"one way", seq, "", nil},
				{"one way, bound", mech.FlagIdentify | mech.FlagChannelBound, mech.KRB5, []byte("bound")},
				{"mutual", mutual, "", nil},
				{"mutual, in order, bound", mutual | seq, mech.KRB5, []byte("bound")},
				{"DCE style", dce | seq, "", nil},
				{"DCE style, delegation", dce | mech.FlagDeleg, "", []byte("bound")},
				{"extended error", mutual | mech.FlagExtendedError, mech.KRB5, nil},
				{"delegation", mutual | mech.FlagDeleg, "", nil},
				{"one way, delegation", seq | mech.FlagDeleg, "", nil},
			} {
				t.Run(fmt.Sprintf("%v/%v/%s", ticket, session, c.name), func(t *testing.T) {
					i := newInitiator(t, b, ticket, session, c.flags)
					i.Delegate, i.Mech, i.Now = forwardedTGT(t), c.oid, func() time.Time { return testNow }
					if c.bound != nil {
						i.Bindings = &ChannelBindings{AppData: c.bound}
					}
					var out Initiated
					if err := i.Init(&out); err != nil {
						t.Fatal(err)
					}
					theirs, err := tool.Accept(out.Token, c.bound)
					if err != nil {
						t.Fatal(err)
					}
					id := theirs.ID
					defer tool.Delete(id)
					if out.Partial != nil {
						if err := i.Continue(&out, out.Partial, theirs.Token); err != nil {
							t.Fatal(err)
						}
					}
					if c.flags&dce != 0 {
						if theirs, err = tool.Resume(id, out.Token); err != nil {
							t.Fatal(err)
						}
					}
					if theirs.Major != 0 || theirs.Client != testClient {
						t.Errorf("%s, major %#x", theirs.Client, theirs.Major)
					}
					want := out.Context.Flags&^(mech.FlagProtReady|mech.FlagDeleg) | theirs.Flags&mech.FlagProtReady
					if c.bound != nil {
						want |= mech.FlagChannelBound
					}
					if deleg := c.flags&(mech.FlagDeleg|dce) == mech.FlagDeleg; deleg {
						want |= mech.FlagDeleg
					}
					if theirs.Flags != want || theirs.Delegated != (want&mech.FlagDeleg != 0) {
						t.Errorf("MIT has flags %#x, expected %#x; delegated %v", theirs.Flags, want, theirs.Delegated)
					}
					talkMIT(t, &out.Context, tool, id)
				})
			}
		}
	}
}

// TestErrorsFromMIT has the refusals of MIT's acceptor arrive at our initiator.
func TestErrorsFromMIT(t *testing.T) {
	b := newBench(t)
	tool := mitAcceptor(t, lab.New(t), b)
	for _, c := range []struct {
		name   string
		change func(*Initiator)
		bound  []byte
		minor  uint32
		reason reason.ID
	}{
		{"skew", func(i *Initiator) {
			i.Ticket.AuthTime, i.Ticket.StartTime = 1, 0
			i.Now = func() time.Time { return testNow.Add(-time.Hour) }
		}, nil, wire.MinorSkew, reason.ClockSkew},
		{"bindings", func(i *Initiator) { i.Bindings = &ChannelBindings{AppData: []byte("ours")} }, []byte("theirs"), wire.MinorGeneric, reason.PeerError},
		{"key", func(i *Initiator) { i.Ticket.Key[3] ^= 1 }, nil, wire.MinorBadIntegrity, reason.PeerError},
		{"client", func(i *Initiator) { i.Ticket.Client.Components = []string{"bob"} }, nil, wire.MinorBadMatch, reason.PeerError},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := newInitiator(t, b, 18, 18, mech.FlagMutual)
			i.Now = func() time.Time { return testNow }
			c.change(i)
			var out Initiated
			if err := i.Init(&out); err != nil {
				t.Fatal(err)
			}
			_, err := tool.Accept(out.Token, c.bound)
			var said *lab.GSSError
			if !errors.As(err, &said) || said.Token == nil {
				t.Fatal(err)
			}
			e := wantErr(t, i.Continue(&out, out.Partial, said.Token), mech.Failure, c.minor, c.reason)
			t.Log(e.Text)
		})
	}
	// The last message of DCE style, changed.
	i := newInitiator(t, b, 18, 18, mech.FlagDCEStyle)
	i.Now = func() time.Time { return testNow }
	var out Initiated
	if err := i.Init(&out); err != nil {
		t.Fatal(err)
	}
	theirs, err := tool.Accept(out.Token, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Continue(&out, out.Partial, theirs.Token); err != nil {
		t.Fatal(err)
	}
	out.Token[len(out.Token)-1] ^= 1
	var said *lab.GSSError
	if _, err := tool.Resume(theirs.ID, out.Token); !errors.As(err, &said) || said.Minor != wire.MinorBadIntegrity {
		t.Error(err)
	}
}
