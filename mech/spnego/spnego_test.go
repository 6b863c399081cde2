package spnego_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/reason"
	"gssproxyd/mech/spnego"
)

const integ = mech.FlagInteg

// fakeToken is the nth token of a fake, as a word for resp.
func fakeToken(oid mech.OID, n int) string {
	f := fake{oid: oid, at: n - 1}
	return "t=" + hex.EncodeToString(f.token())
}

// fakeMIC is an end's nth MIC over a list.
func fakeMIC(initiator bool, n int, list []byte) string {
	return fmt.Sprintf("MIC %v %d %x", initiator, n, list)
}

// micResp is resp with a MIC, which has blanks.
func micResp(words, mic string) []byte {
	r, err := spnego.ParseResp(resp(words))
	if err != nil {
		panic(err)
	}
	r.MechListMIC = []byte(mic)
	return r.Append(nil)
}

// wantError checks what a refusal says here and to the peer.
func wantError(t *testing.T, err error, major mech.Major, reason reason.ID, answer string) {
	t.Helper()
	var e *mech.Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want a *mech.Error", err)
	}
	if e.Major != major || e.Reason != reason {
		t.Errorf("got major %#x, reason %q (%v), want %#x, %q", e.Major, e.Reason, e, major, reason)
	}
	if got := describe(e.Token); got != answer {
		t.Errorf("the peer is told %q, want %q", got, answer)
	}
	for _, c := range e.Text {
		if c < ' ' || c == 0x7f {
			t.Errorf("control character in %q", e.Text)
		}
	}
	if e.Text == "" {
		t.Error("no text")
	}
}

// TestGolden reads and writes again what was exchanged with MIT's library.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob(golden + "/*.txt")
	check(t, err)
	if len(files) < 10 {
		t.Fatalf("%d files in %s", len(files), golden)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		check(t, err)
		for line := range strings.Lines(string(b)) {
			text, want, _ := strings.Cut(strings.TrimSpace(line), " ")
			token, err := hex.DecodeString(text)
			check(t, err)
			if got := describe(token); got != want {
				t.Errorf("%s: %s, want %s", file, got, want)
			}
		}
	}
}

func TestParseInit(t *testing.T) {
	good := spnego.NegTokenInit{MechTypes: list(mech.KRB5, spnego.NTLM), MechToken: []byte("token"), MechListMIC: []byte("mic")}
	framed := func(body string) []byte {
		b, err := hex.DecodeString(body)
		check(t, err)
		return der.AppendValue(nil, der.Application(0), append(der.AppendValue(nil, der.ObjectID, []byte(mech.SPNEGO)), b...))
	}
	for _, c := range []struct {
		name  string
		token []byte
		want  string // in the error, empty for none
	}{
		{"good", good.Append(nil), ""},
		{"reqFlags", framed("a00f300da0053003060129a10403020640"), ""},
		{"reqFlags too long", framed("a00f300da0053003060129a10503020640"), "NegTokenInit"},
		{"unknown field", framed("a00d300ba0053003060129a5020500"), ""},
		{"empty", nil, "overrun"},
		{"empty list", framed("a0063004a0023000"), ""},
		{"empty identifier", framed("a0083006a00430020600"), "list of mechanisms"},
		{"no list", framed("a0023000"), "missing"},
		{"list is no list", framed("a0073005a003020105"), "list of mechanisms"},
		{"two lists", framed("a00a3008a006300006003000"), "NegTokenInit"},
		{"trailing", append(good.Append(nil), 0), "length"},
		{"other mechanism", der.AppendValue(nil, der.Application(0), der.AppendValue(nil, der.ObjectID, []byte(mech.KRB5))), "Kerberos"},
		{"long list", (&spnego.NegTokenInit{MechTypes: list(slices.Repeat([]mech.OID{mech.KRB5}, 400)...)}).Append(nil), "4096"},
	} {
		t.Run(c.name, func(t *testing.T) {
			i, err := spnego.ParseInit(c.token)
			switch {
			case c.want == "" && err != nil:
				t.Fatal(err)
			case c.want == "" && i.MechTypes == nil:
				t.Error("no list")
			case c.want != "" && c.want != "overrun":
				wantError(t, err, mech.DefectiveToken, reason.DefectiveToken, "-")
				if !strings.Contains(err.Error(), c.want) {
					t.Errorf("%v, want %q in it", err, c.want)
				}
			case c.want != "" && err == nil:
				t.Error("taken")
			}
		})
	}
	// NegTokenInit2 of Windows: hints in the place of the MIC, which comes after them.
	two := good
	two.Hints = []byte{0x30, 0}
	got, err := spnego.ParseInit(two.Append(nil))
	if check(t, err); string(got.Hints) != string(two.Hints) || string(got.MechListMIC) != "mic" || string(got.MechToken) != "token" {
		t.Errorf("%+v", got)
	}
}

func TestParseResp(t *testing.T) {
	for _, c := range []struct {
		name, token string
		want        *spnego.NegTokenResp
	}{
		{"all", "a1163014a0030a0101a103060129a2030401aaa3030401bb",
			&spnego.NegTokenResp{State: spnego.AcceptIncomplete, SupportedMech: []byte{0x29}, ResponseToken: []byte{0xaa}, MechListMIC: []byte{0xbb}}},
		{"nothing", "a1023000", &spnego.NegTokenResp{State: spnego.StateAbsent}},
		{"no sequence", "a10aa0030a0100a2030401aa", &spnego.NegTokenResp{State: spnego.AcceptCompleted, ResponseToken: []byte{0xaa}}},
		{"Java", "a1073005a2030401aa", &spnego.NegTokenResp{State: spnego.StateAbsent, ResponseToken: []byte{0xaa}}},
		{"Windows 2000", "a111300fa0030a0100a2030401aaa3030401aa", &spnego.NegTokenResp{State: spnego.AcceptCompleted, ResponseToken: []byte{0xaa}}},
		{"IIS", "a10b3009a0030a0100a2020400", &spnego.NegTokenResp{State: spnego.AcceptCompleted, ResponseToken: []byte{}}},
		{"Sun", "601106062b0601050502a1073005a0030a0102", &spnego.NegTokenResp{State: spnego.Reject}},
		{"trailing", "a102300000", nil},
		{"state 4", "a1073005a0030a0104", nil},
		{"state of two octets", "a1083006a0040a020001", nil},
		{"state as an integer", "a1073005a003020101", nil},
		{"order", "a10c300aa2030401aaa0030a0101", &spnego.NegTokenResp{State: spnego.StateAbsent, ResponseToken: []byte{0xaa}}},
		{"init", "a0023000", nil},
		{"truncated", "a1073005a0030a01", nil},
		{"indefinite", "a1803005a0030a0102", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, err := hex.DecodeString(c.token)
			check(t, err)
			got, err := spnego.ParseResp(b)
			switch {
			case c.want == nil:
				wantError(t, err, mech.DefectiveToken, reason.DefectiveToken, "-")
			case err != nil:
				t.Fatal(err)
			case fmt.Sprint(got) != fmt.Sprint(*c.want) || (got.ResponseToken == nil) != (c.want.ResponseToken == nil) || (got.MechListMIC == nil) != (c.want.MechListMIC == nil):
				t.Errorf("%+v, want %+v", got, *c.want)
			}
		})
	}
}

// TestBothEnds has our two ends talk, over mechanisms of one to five tokens, with and without
// protection, with the mechanism in every place of the list.
func TestBothEnds(t *testing.T) {
	for tokens := 1; tokens <= 5; tokens++ {
		for _, flags := range []uint32{0, integ} {
			for _, offer := range [][]mech.OID{
				{mech.KRB5}, {mech.KRB5Wrong}, {mech.KRB5Wrong, mech.KRB5}, {spnego.NTLM, mech.KRB5}, {spnego.NTLM, mech.KRB5Wrong}, {spnego.NegoEx, spnego.NTLM, mech.KRB5},
			} {
				for _, hints := range []bool{false, true} {
					t.Run(fmt.Sprintf("%d/%#x/%d-%v/%v", tokens, flags, len(offer), offer[0], hints), func(t *testing.T) {
						i, a := ends(tokens, flags, offer...)
						if hints {
							reply, done, err := a.Step(t.Context(), nil)
							if check(t, err); done || describe(reply) != "init hints" {
								t.Fatal(describe(reply))
							}
						}
						log, _, err := exchange(t, func(in []byte) ([]byte, bool, error) {
							return i.Step(t.Context(), in)
						}, func(in []byte) ([]byte, bool, error) {
							return a.Step(t.Context(), in)
						})
						if err != nil {
							t.Fatal(log, err)
						}
						micsSeen := strings.Count(strings.Join(log, " "), "mic") - strings.Count(strings.Join(log, " "), "request-mic")
						first := offer[0] == mech.KRB5 || offer[0] == mech.KRB5Wrong
						if want := map[bool]int{true: 2, false: 0}[flags != 0 && !first]; micsSeen != want {
							t.Errorf("%d MICs, want %d: %q", micsSeen, want, log)
						}
						x, y := i.Inner().(*fake), a.Inner().(*fake)
						if x.at != tokens || y.at != tokens || !i.Established() || !a.Established() || i.Mech() != a.Mech() {
							t.Errorf("%+v %+v", x, y)
						}
						for _, end := range []spnego.Context{i, a} {
							if _, done, err := end.Step(t.Context(), []byte("more")); done || err == nil {
								t.Error("a step after the end")
							}
							if end.Flags() != flags {
								t.Errorf("flags %#x", end.Flags())
							}
						}
						mic, err := i.GetMIC(nil, []byte("m"))
						check(t, err)
						if _, err := a.VerifyMIC([]byte("m"), mic); err != nil {
							t.Error(err)
						}
					})
				}
			}
		}
	}
}

// ends are an initiator that offers mechs, and an acceptor of Kerberos.
func ends(tokens int, flags uint32, offer ...mech.OID) (*spnego.Initiator, *spnego.Acceptor) {
	i, a := new(spnego.Initiator), new(spnego.Acceptor)
	for _, m := range offer {
		i.Mechs = append(i.Mechs, fakeMech(m, tokens, flags, true))
	}
	a.Mechs = []spnego.Mech{fakeMech(mech.KRB5, tokens, flags, false)}
	return i, a
}

// TestTamperedList changes the list on its way wherever that could make a difference.
func TestTamperedList(t *testing.T) {
	for tokens := 1; tokens <= 4; tokens++ {
		for _, to := range [][]byte{list(spnego.NegoEx, mech.KRB5), list(spnego.NTLM, mech.KRB5, mech.IAKERB), list(mech.KRB5, spnego.NTLM), list(mech.KRB5)} {
			i, a := ends(tokens, integ, spnego.NTLM, mech.KRB5)
			token, _, err := i.Step(t.Context(), nil)
			check(t, err)
			init, err := spnego.ParseInit(token)
			check(t, err)
			init.MechTypes = to
			token = init.Append(nil)
			failed := false
			for legs := 0; legs < 8 && !failed; legs++ {
				token, _, err = a.Step(t.Context(), token)
				if err == nil {
					token, _, err = i.Step(t.Context(), token)
				}
				failed = err != nil
			}
			if !failed {
				t.Errorf("%d tokens: nobody notices the list %x", tokens, to)
			}
		}
	}
}

// TestInitiator gives an initiator what acceptors of all kinds answer.
func TestInitiator(t *testing.T) {
	krb5 := []mech.OID{mech.KRB5}
	both := []mech.OID{spnego.NTLM, mech.KRB5}
	bothList := list(both...)
	second := fakeToken(mech.KRB5, 2)
	type answer struct {
		token []byte
		want  string // the reply; "done" at the end for an established context
	}
	for _, c := range []struct {
		name   string
		offer  []mech.OID
		tokens int
		in     []answer
		major  mech.Major // of the last answer
		reason reason.ID
		told   string
	}{
		{name: "plain", offer: krb5, tokens: 2, in: []answer{{resp("accept-completed krb5 " + second), "- done"}}},
		{name: "Java", offer: krb5, tokens: 2, in: []answer{{resp(second), "- done"}}},
		{name: "Samba", offer: krb5, tokens: 2, in: []answer{{resp("accept-completed old " + second), "- done"}}},
		{name: "microsoft's number", offer: krb5, tokens: 2, in: []answer{{resp("accept-completed ms " + second), "- done"}}},
		{name: "still incomplete", offer: krb5, tokens: 2, in: []answer{{resp("accept-incomplete krb5 " + second), "- done"}}},
		{name: "old IIS", offer: krb5, tokens: 1, in: []answer{{resp("accept-completed krb5 t="), "- done"}}},
		{name: "Windows 2000", offer: krb5, tokens: 2, in: []answer{{resp("accept-completed krb5 " + second + " mic=" + second[2:]), "- done"}}},
		{name: "MIC without need", offer: krb5, tokens: 2,
			in: []answer{{micResp("accept-incomplete krb5 "+second, fakeMIC(false, 1, list(mech.KRB5))), "accept-completed mic done"}}},
		{name: "MIC asked for the first choice", offer: krb5, tokens: 1, in: []answer{
			{resp("request-mic krb5"), "accept-incomplete mic"},
			{micResp("accept-completed", fakeMIC(false, 1, list(mech.KRB5))), "- done"}}},
		{name: "MIC asked and forgotten", offer: krb5, tokens: 2, in: []answer{{token: resp("request-mic krb5 " + second)}},
			major: mech.DefectiveToken, reason: reason.DefectiveToken, told: "reject"},
		{name: "NTLM of Windows 2003", offer: []mech.OID{mech.KRB5, spnego.NTLM}, tokens: 3, in: []answer{
			{resp("accept-incomplete ntlm"), "accept-incomplete token"},
			{resp("accept-incomplete " + fakeToken(spnego.NTLM, 2)), "accept-incomplete token"},
			{resp("accept-completed"), "- done"}}},
		{name: "counter-proposal without a MIC", offer: both, tokens: 2, in: []answer{{token: resp("accept-incomplete krb5")}},
			major: mech.DefectiveToken, reason: reason.DefectiveToken, told: "reject"},
		{name: "counter-proposal, accepted already", offer: both, tokens: 2, in: []answer{{token: resp("accept-completed krb5")}},
			major: mech.DefectiveToken, reason: reason.DefectiveToken, told: "reject"},
		{name: "not on offer", offer: both, tokens: 2, in: []answer{{token: resp("request-mic negoex")}},
			major: mech.DefectiveToken, reason: reason.WrongMech, told: "reject"},
		{name: "Kerberos by another number", offer: both, tokens: 1, in: []answer{
			{resp("request-mic ms"), "accept-incomplete token mic"},
			{micResp("accept-completed", fakeMIC(false, 1, bothList)), "- done"}}},
		{name: "choice changed", offer: both, tokens: 3, in: []answer{
			{resp("request-mic krb5"), "accept-incomplete token"},
			{token: resp("request-mic ntlm")}},
			major: mech.DefectiveToken, reason: reason.DefectiveToken, told: "reject"},
		{name: "choice repeated", offer: both, tokens: 2, in: []answer{
			{resp("request-mic krb5"), "accept-incomplete token"},
			{micResp("accept-incomplete krb5 "+second, fakeMIC(false, 1, bothList)), "accept-completed mic done"}}},
		{name: "MIC missing", offer: both, tokens: 2, in: []answer{
			{resp("request-mic krb5"), "accept-incomplete token"},
			{token: resp("accept-completed " + second)}},
			major: mech.DefectiveToken, reason: reason.DefectiveToken, told: "reject"},
		{name: "MIC of the acceptor missing", offer: both, tokens: 1, in: []answer{
			{resp("request-mic krb5"), "accept-incomplete token mic"},
			{token: resp("accept-completed")}},
			major: mech.DefectiveToken, reason: reason.DefectiveToken, told: "reject"},
		{name: "MIC wrong", offer: both, tokens: 2, in: []answer{
			{resp("request-mic krb5"), "accept-incomplete token"},
			{token: micResp("accept-incomplete "+second, fakeMIC(false, 1, list(mech.KRB5)))}},
			major: mech.BadMIC, reason: reason.BadMIC, told: "reject"},
		{name: "MIC our own", offer: both, tokens: 1, in: []answer{
			{resp("request-mic krb5"), "accept-incomplete token mic"},
			{token: micResp("accept-completed", fakeMIC(true, 1, bothList))}},
			major: mech.BadMIC, reason: reason.BadMIC, told: "reject"},
		{name: "MIC replayed", offer: both, tokens: 1, in: []answer{
			{resp("request-mic krb5"), "accept-incomplete token mic"},
			{token: micResp("accept-completed", "MIC again")}},
			major: mech.BadMIC, reason: reason.BadMIC, told: "reject"},
		{name: "token too many", offer: krb5, tokens: 1, in: []answer{{token: resp("accept-completed krb5 t=x")}},
			major: mech.DefectiveToken, reason: reason.DefectiveToken, told: "reject"},
		{name: "token missing", offer: krb5, tokens: 2, in: []answer{{token: resp("accept-completed krb5")}},
			major: mech.DefectiveToken, reason: reason.DefectiveToken, told: "reject"},
		{name: "token wrong", offer: krb5, tokens: 2, in: []answer{{token: resp("accept-completed krb5 t=x")}},
			major: mech.Failure, reason: reason.BadIntegrity, told: "reject token"},
		{name: "completed too early", offer: krb5, tokens: 4, in: []answer{{token: resp("accept-completed krb5 " + second)}},
			major: mech.DefectiveToken, reason: reason.DefectiveToken, told: "reject"},
		{name: "rejected", offer: krb5, tokens: 2, in: []answer{{token: resp("reject")}},
			major: mech.BadMech, reason: reason.WrongMech, told: "-"},
		{name: "rejected later", offer: krb5, tokens: 3, in: []answer{
			{resp("accept-incomplete krb5 " + second), "accept-incomplete token"},
			{token: resp("reject")}},
			major: mech.Failure, reason: reason.PeerError, told: "-"},
		{name: "rejected with an error", offer: krb5, tokens: 2, in: []answer{{token: resp("reject t=ERR")}},
			major: mech.Failure, reason: reason.BadIntegrity, told: "-"},
		{name: "rejected with a good token", offer: krb5, tokens: 2, in: []answer{{token: resp("reject " + second)}},
			major: mech.DefectiveToken, reason: reason.PeerError, told: "-"},
		{name: "rejected when established", offer: krb5, tokens: 1, in: []answer{{token: resp("reject t=ERR")}},
			major: mech.BadMech, reason: reason.WrongMech, told: "-"},
		{name: "garbage", offer: krb5, tokens: 2, in: []answer{{token: []byte("HTTP/1.1 401")}},
			major: mech.DefectiveToken, reason: reason.DefectiveToken, told: "reject"},
		{name: "nothing", offer: krb5, tokens: 2, in: []answer{{token: nil}},
			major: mech.DefectiveToken, reason: reason.DefectiveToken, told: "reject"},
	} {
		t.Run(c.name, func(t *testing.T) {
			i, _ := ends(c.tokens, integ, c.offer...)
			// What is given at the beginning, such as hints, does not matter.
			token, done, err := i.Step(t.Context(), []byte("hints"))
			if check(t, err); done || describe(token) != "init token" {
				t.Fatalf("begins with %s", describe(token))
			}
			for n, in := range c.in {
				reply, done, err := i.Step(t.Context(), in.token)
				if n == len(c.in)-1 && c.major != 0 {
					wantError(t, err, c.major, c.reason, c.told)
					if _, _, err := i.Step(t.Context(), in.token); err == nil {
						t.Error("a step after a failure")
					}
					return
				}
				check(t, err)
				got := describe(reply)
				if done {
					got += " done"
				}
				if got != in.want {
					t.Fatalf("answer %d: %q, want %q", n, got, in.want)
				}
			}
		})
	}
}

// TestAcceptor gives an acceptor what initiators of all kinds send.
func TestAcceptor(t *testing.T) {
	init := func(mechs []mech.OID, token string) []byte {
		i := spnego.NegTokenInit{MechTypes: list(mechs...)}
		if token != "" {
			i.MechToken = octets(token)
		}
		return i.Append(nil)
	}
	first, third := fakeToken(mech.KRB5, 1), fakeToken(mech.KRB5, 3)
	windows := []mech.OID{mech.KRB5Wrong, mech.KRB5, spnego.NegoEx, spnego.NTLM}
	both := []mech.OID{spnego.NTLM, mech.KRB5}
	withMIC := spnego.NegTokenInit{MechTypes: list(mech.KRB5), MechToken: octets(first), MechListMIC: []byte(fakeMIC(true, 1, list(mech.KRB5)))}
	type leg struct {
		token []byte
		want  string
	}
	const ms, krb5 = " " + msOID, " " + krb5OID
	for _, c := range []struct {
		name   string
		tokens int
		in     []leg
		major  mech.Major
		reason reason.ID
		told   string
	}{
		{name: "Windows", tokens: 2, in: []leg{{init(windows, first), "accept-completed" + ms + " token done"}}},
		{name: "Windows, one token", tokens: 1, in: []leg{{init(windows, first), "accept-completed" + ms + " done"}}},
		{name: "three tokens", tokens: 3, in: []leg{
			{init(windows, first), "accept-incomplete" + ms + " token"},
			{resp("accept-incomplete " + third), "accept-completed done"}}},
		{name: "no token yet", tokens: 2, in: []leg{
			{init(windows, ""), "accept-incomplete" + ms},
			{resp(first), "accept-completed token done"}}},
		{name: "empty token", tokens: 2, in: []leg{
			{init(windows, "t="), "accept-incomplete" + ms},
			{resp("accept-incomplete " + first), "accept-completed token done"}}},
		{name: "MIC without need", tokens: 2, in: []leg{{withMIC.Append(nil), "accept-completed" + krb5 + " token mic done"}}},
		{name: "NTLM's token is for nobody", tokens: 2, in: []leg{
			{init(both, "t=NTLMSSP\x00"), "request-mic" + krb5},
			{resp("accept-incomplete " + first), "accept-incomplete token mic"},
			{micResp("accept-completed", fakeMIC(true, 1, list(both...))), "- done"}}},
		{name: "a second MIC", tokens: 3, in: []leg{
			{init(both, ""), "request-mic" + krb5},
			{resp(first), "accept-incomplete token"},
			{micResp(third, fakeMIC(true, 1, list(both...))), "accept-completed mic done"},
			{token: micResp("", fakeMIC(true, 2, list(both...)))}},
			major: mech.Failure, reason: reason.BadContext, told: "-"},
		{name: "MIC missing", tokens: 1, in: []leg{
			{init(both, ""), "request-mic" + krb5},
			{token: resp("accept-incomplete " + first)}},
			major: mech.DefectiveToken, reason: reason.DefectiveToken, told: "reject"},
		{name: "MIC instead of a token", tokens: 1, in: []leg{
			{init(both, ""), "request-mic" + krb5},
			{token: micResp("accept-incomplete", fakeMIC(true, 1, list(both...)))}},
			major: mech.DefectiveToken, reason: reason.DefectiveToken, told: "reject"},
		{name: "MIC wrong", tokens: 2, in: []leg{
			{init(both, ""), "request-mic" + krb5},
			{resp(first), "accept-incomplete token mic"},
			{token: micResp("accept-completed", fakeMIC(true, 1, list(mech.KRB5)))}},
			major: mech.BadMIC, reason: reason.BadMIC, told: "reject"},
		{name: "neither token nor MIC", tokens: 2, in: []leg{
			{init(both, ""), "request-mic" + krb5},
			{resp(first), "accept-incomplete token mic"},
			{token: resp("accept-completed")}},
			major: mech.DefectiveToken, reason: reason.DefectiveToken, told: "reject"},
		{name: "token when established", tokens: 2, in: []leg{
			{init(both, ""), "request-mic" + krb5},
			{resp(first), "accept-incomplete token mic"},
			{token: resp("accept-completed t=x")}},
			major: mech.DefectiveToken, reason: reason.DefectiveToken, told: "reject"},
		{name: "the initiator chooses", tokens: 3, in: []leg{
			{init(windows, first), "accept-incomplete" + ms + " token"},
			{token: resp("accept-incomplete krb5 " + third)}},
			major: mech.DefectiveToken, reason: reason.DefectiveToken, told: "reject"},
		{name: "the initiator rejects", tokens: 3, in: []leg{
			{init(windows, first), "accept-incomplete" + ms + " token"},
			{token: resp("reject")}},
			major: mech.Failure, reason: reason.PeerError, told: "-"},
		{name: "again from the beginning", tokens: 3, in: []leg{
			{init(windows, first), "accept-incomplete" + ms + " token"},
			{token: init(windows, first)}},
			major: mech.DefectiveToken, reason: reason.DefectiveToken, told: "reject"},
		{name: "nothing in common", tokens: 2, in: []leg{{token: init([]mech.OID{spnego.NTLM, spnego.NegoEx}, "t=NTLMSSP\x00")}},
			major: mech.BadMech, reason: reason.WrongMech, told: "reject"},
		{name: "old number alone", tokens: 2, in: []leg{{token: init([]mech.OID{mech.KRB5Old}, "")}},
			major: mech.BadMech, reason: reason.WrongMech, told: "reject"},
		{name: "another mechanism's token", tokens: 2, in: []leg{{token: init([]mech.OID{mech.KRB5}, fakeToken(mech.IAKERB, 1))}},
			major: mech.BadMech, reason: reason.WrongMech, told: "reject"},
		{name: "the mechanism fails", tokens: 2, in: []leg{{token: init([]mech.OID{mech.KRB5}, fakeToken(mech.KRB5, 2))}},
			major: mech.Failure, reason: reason.BadIntegrity, told: "reject token"},
		{name: "hints twice", tokens: 2, in: []leg{{nil, "init hints"}, {token: nil}},
			major: mech.DefectiveToken, reason: reason.DefectiveToken, told: "reject"},
		{name: "raw", tokens: 2, in: []leg{{octets(first), "raw done"}}},
		{name: "raw, three tokens", tokens: 3, in: []leg{{octets(first), "raw"}, {octets(third), "- done"}}},
		{name: "raw of another number", tokens: 2, in: []leg{{token: octets(fakeToken(mech.KRB5Old, 1))}},
			major: mech.Failure, reason: reason.BadIntegrity, told: "raw"}, // the fake wants its own
		{name: "raw NTLM", tokens: 2, in: []leg{{token: []byte("NTLMSSP\x00\x01")}},
			major: mech.BadMech, reason: reason.WrongMech, told: "-"},
		{name: "raw IAKERB", tokens: 2, in: []leg{{token: octets(fakeToken(mech.IAKERB, 1))}},
			major: mech.BadMech, reason: reason.WrongMech, told: "-"},
		{name: "garbage", tokens: 2, in: []leg{{token: []byte("GET / HTTP/1.1")}},
			major: mech.DefectiveToken, reason: reason.DefectiveToken, told: "reject"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, a := ends(c.tokens, integ)
			for n, in := range c.in {
				reply, done, err := a.Step(t.Context(), in.token)
				if n == len(c.in)-1 && c.major != 0 {
					wantError(t, err, c.major, c.reason, c.told)
					if _, _, err := a.Step(t.Context(), in.token); err == nil {
						t.Error("a step after a failure")
					}
					return
				}
				check(t, err)
				got := describe(reply)
				if done {
					got += " done"
				}
				if got != in.want {
					t.Fatalf("token %d: %q, want %q", n, got, in.want)
				}
			}
		})
	}
}

// TestBegin is about initiators that cannot.
func TestBegin(t *testing.T) {
	none := &spnego.Initiator{}
	_, _, err := none.Step(t.Context(), nil)
	wantError(t, err, mech.Failure, reason.WrongMech, "-")

	broken := func(oid mech.OID) spnego.Mech {
		return spnego.Mech{OID: oid, New: func() spnego.Context { return &fake{broken: true} }}
	}
	i := &spnego.Initiator{Mechs: []spnego.Mech{broken(mech.KRB5), broken(spnego.NTLM)}}
	_, _, err = i.Step(t.Context(), nil)
	wantError(t, err, mech.Failure, reason.BadIntegrity, "-")

	i = &spnego.Initiator{Mechs: []spnego.Mech{broken(spnego.NTLM), fakeMech(mech.KRB5, 2, integ, true)}}
	token, _, err := i.Step(t.Context(), nil)
	check(t, err)
	if init, err := spnego.ParseInit(token); err != nil || !bytes.Equal(init.MechTypes, list(mech.KRB5)) {
		t.Errorf("offered is %x, %v", init.MechTypes, err)
	}

	// Not begun.
	i = &spnego.Initiator{}
	if _, err := i.GetMIC(nil, nil); err == nil || i.Flags() != 0 {
		t.Error("a MIC of nothing")
	}
	if _, err := i.VerifyMIC(nil, nil); err == nil {
		t.Error("a MIC of nothing")
	}
}

// unreachable is a mechanism whose daemon does not answer.
type unreachable struct{ fake }

var errUnreachable = errors.New("connection refused")

func (*unreachable) Step(context.Context, []byte) ([]byte, bool, error) {
	return nil, false, errUnreachable
}

// TestOtherErrors: what is not a mechanism's refusal comes back as it is, and nobody is told.
func TestOtherErrors(t *testing.T) {
	m := []spnego.Mech{{OID: mech.KRB5, New: func() spnego.Context { return new(unreachable) }}}
	i := &spnego.Initiator{Mechs: m}
	if _, _, err := i.Step(t.Context(), nil); err != errUnreachable {
		t.Error(err)
	}
	a := &spnego.Acceptor{Mechs: m}
	if _, _, err := a.Step(t.Context(), (&spnego.NegTokenInit{MechTypes: list(mech.KRB5), MechToken: octets(fakeToken(mech.KRB5, 1))}).Append(nil)); err != errUnreachable {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	i = &spnego.Initiator{Mechs: append(m, fakeMech(spnego.NTLM, 1, 0, true))}
	if _, _, err := i.Step(ctx, nil); err != errUnreachable {
		t.Error("the next mechanism is tried although nobody waits:", err)
	}
}

func TestNegStateString(t *testing.T) {
	for s, want := range map[spnego.NegState]string{0: "accept-completed", 1: "accept-incomplete", 2: "reject", 3: "request-mic", 4: "negState 4", 255: "absent"} {
		if s.String() != want {
			t.Errorf("%d is %s", s, s)
		}
	}
}
