package interposer_test

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"gssproxyd/interposer"
	"gssproxyd/interposer/interposertest"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
)

// Who has the handle of a user's credential acts as that user, or not at all.
func TestDelegatedCred(t *testing.T) {
	d := interposertest.Start(t)
	c := d.Client(t)
	bob := delegated(t, d)
	for _, m := range []mech.OID{mech.KRB5, mech.SPNEGO} {
		i, token, err := c.InitSecContext(t.Context(), interposer.InitRequest{Target: target, Cred: bob, Mech: m})
		if err != nil {
			t.Fatal(err)
		}
		i.Close()
		a, _, err := c.AcceptSecContext(t.Context(), interposer.AcceptRequest{Token: token})
		if err != nil {
			t.Fatal(err)
		}
		if a.Source().Display != "bob@EXAMPLE.TEST" {
			t.Errorf("%v is initiated by %s", bob, a.Source())
		}
		a.Close()
	}
	same, err := c.AcquireCred(t.Context(), interposer.AcquireRequest{Input: bob})
	if err != nil || same.Name().Display != "bob@EXAMPLE.TEST" {
		t.Errorf("%v, %v; want bob's", same, err)
	}
	kept, err := bob.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	damaged := new(interposer.Cred)
	if err := damaged.UnmarshalBinary(bytes.Replace(kept, []byte("delegated by "), []byte("delegated bi "), 1)); err != nil {
		t.Fatal(err)
	}
	nobody(t, c, "a damaged handle", damaged)
	d.Forget()
	nobody(t, c, "a handle whose key is lost", bob)
}

// delegated returns the credential that bob has delegated to d.
func delegated(t *testing.T, d *interposertest.Daemon) *interposer.Cred {
	t.Helper()
	token := interposertest.Token("bob@EXAMPLE.TEST", target.Display, mech.FlagDeleg, false)
	s, _, err := d.Client(t).AcceptSecContext(t.Context(), interposer.AcceptRequest{Token: token, Delegate: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p, err := s.Peer()
	if err != nil || p.Delegated == nil {
		t.Fatalf("%v, %v: nothing is delegated", p, err)
	}
	return p.Delegated
}

// nobody checks that with cred one is nobody, and above all not the service.
func nobody(t *testing.T, c *interposer.Client, what string, cred *interposer.Cred) {
	t.Helper()
	refused := func(call string, err error) {
		t.Helper()
		var e *mech.Error
		if !errors.As(err, &e) || e.Major != mech.DefectiveCredential || mech.ReasonOf(err) != reason.BadCredential || !errors.Is(err, reason.BadCredential) {
			t.Errorf("%s, %s: %v, want bad-credential", what, call, err)
		}
	}
	for _, m := range []mech.OID{"", mech.SPNEGO} {
		_, _, err := c.InitSecContext(t.Context(), interposer.InitRequest{Target: target, Cred: cred, Mech: m})
		refused("INIT", err)
	}
	if cred == nil {
		return // accepts as the service, and asks for a new credential
	}
	token := interposertest.Token("alice@EXAMPLE.TEST", target.Display, 0, false)
	_, _, err := c.AcceptSecContext(t.Context(), interposer.AcceptRequest{Token: token, Cred: cred})
	refused("ACCEPT", err)
	_, err = c.AcquireCred(t.Context(), interposer.AcquireRequest{Input: cred})
	refused("ACQUIRE", err)
}

// What is no credential is refused without a word to the daemon: the C daemon would take it for the
// service's own.
func TestNoCred(t *testing.T) {
	d := interposertest.Start(t)
	c := d.Client(t)
	nobody(t, c, "the zero Cred", &interposer.Cred{})
	nobody(t, c, "nil", nil)
	if _, _, err := c.AcceptSecContext(t.Context(), interposer.AcceptRequest{Cred: &interposer.Cred{}}); !errors.Is(err, reason.BadCredential) {
		t.Errorf("the zero Cred and no token: %v", err)
	}
	if i, a := d.Initiated.Load(), d.Accepted.Load(); i != 0 || a != 0 {
		t.Errorf("%d calls of INIT, %d of ACCEPT; want none", i, a)
	}
}

// As text a Cred would come back empty, and would get into logs.
func TestCredIsNoText(t *testing.T) {
	bob := delegated(t, interposertest.Start(t))
	type kept struct {
		Name string
		Cred *interposer.Cred
	}
	for what, v := range map[string]any{
		"a pointer": bob, "a value": *bob, "a field": kept{"bob", bob}, "a field by value": struct{ C interposer.Cred }{*bob},
		"a slice": []interposer.Cred{*bob}, "the service's": interposer.ServiceCred, "the zero Cred": interposer.Cred{},
	} {
		if text, err := json.Marshal(v); err == nil {
			t.Errorf("JSON of %s: %s", what, text)
		}
		if _, ok := v.(kept); ok {
			continue // XML has no embedding of what it does not know
		}
		if text, err := xml.Marshal(v); err == nil {
			t.Errorf("XML of %s: %s", what, text)
		}
	}
	for _, text := range []string{`{}`, `"bob"`, `[]`, `1`} {
		var c interposer.Cred
		if err := json.Unmarshal([]byte(text), &c); err == nil {
			t.Errorf("%s is %v", text, c)
		}
		if err := json.Unmarshal([]byte(text), interposer.ServiceCred); err == nil {
			t.Errorf("%s is %v", text, interposer.ServiceCred)
		}
	}
	// Absent and null is nil, which is refused.
	for _, text := range []string{`{"Name":"bob"}`, `{"Name":"bob","Cred":null}`} {
		var k kept
		if err := json.Unmarshal([]byte(text), &k); err != nil || k.Cred != nil {
			t.Errorf("%s: %v, %v", text, k.Cred, err)
		}
	}
}

func TestKeptCred(t *testing.T) {
	d := interposertest.Start(t)
	c := d.Client(t)
	bob := delegated(t, d)
	var file bytes.Buffer
	if err := gob.NewEncoder(&file).Encode(map[string]*interposer.Cred{"bob": bob}); err != nil {
		t.Fatal(err)
	}
	var back map[string]*interposer.Cred
	if err := gob.NewDecoder(&file).Decode(&back); err != nil {
		t.Fatal(err)
	}
	s, _, err := c.InitSecContext(t.Context(), interposer.InitRequest{Target: target, Cred: back["bob"]})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Source().Display != "bob@EXAMPLE.TEST" {
		t.Errorf("bob's credential initiates as %s", s.Source())
	}

	kept, err := bob.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if err := interposer.ServiceCred.UnmarshalBinary(kept); err == nil {
		t.Error("the service is somebody else now")
	}
	for what, cred := range map[string]*interposer.Cred{"the service's": interposer.ServiceCred, "the zero Cred": {}} {
		if b, err := cred.MarshalBinary(); err == nil {
			t.Errorf("%s is kept as %x", what, b)
		}
	}
	for n := range kept {
		if err := new(interposer.Cred).UnmarshalBinary(kept[:n]); err == nil {
			t.Errorf("%d bytes of %d are a credential", n, len(kept))
		}
	}
}

// Who acts for a user says for which, and never gets the program's own credential instead.
func TestImpersonate(t *testing.T) {
	d := interposertest.Start(t)
	c := d.Client(t)
	own, err := c.AcquireCred(t.Context(), interposer.AcquireRequest{Usage: interposer.Initiate})
	if err != nil {
		t.Fatal(err)
	}
	for _, input := range []*interposer.Cred{nil, interposer.ServiceCred, own} {
		bob, err := c.AcquireCred(t.Context(), interposer.AcquireRequest{
			Usage: interposer.Initiate, Name: interposer.Principal("bob@EXAMPLE.TEST"), Input: input, Impersonate: true,
		})
		if err != nil || bob.Name().Display != "bob@EXAMPLE.TEST" {
			t.Errorf("by %v: %v, %v; want bob's", input, bob, err)
		}
	}
	d.Forget()
	got, err := c.AcquireCred(t.Context(), interposer.AcquireRequest{Name: interposer.Principal("bob@EXAMPLE.TEST"), Input: own, Impersonate: true})
	if !errors.Is(err, reason.BadCredential) {
		t.Errorf("by a lost credential: %v, %v; want bad-credential", got, err)
	}
}

// print writes v in every way in which programs write values.
func print(t *testing.T, v any) string {
	t.Helper()
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&out, verb+"\n", v)
	}
	text, err := json.Marshal(v)
	fmt.Fprintln(&out, string(text), err)
	slog.New(slog.NewTextHandler(&out, nil)).Info("text", "value", v, slog.Group("group", "value", v))
	slog.New(slog.NewJSONHandler(&out, nil)).Info("json", "value", v, slog.Group("group", "value", v))
	return out.String()
}

// A handle, and what a PAC has about a user, are for nobody's log.
func TestNothingPrints(t *testing.T) {
	cred := delegated(t, interposertest.Start(t))
	pac := interposer.Attribute{Name: interposer.PAC, Value: []byte("S-1-5-21-1234"), Authenticated: true}
	name := interposer.Name{Display: "bob@R", Exported: []byte("exported S-1-5-21-1234"), Composite: []byte("composite S-1-5-21-1234")}
	peer := &interposer.Peer{Name: name, Flags: mech.FlagMutual, Expires: interposer.Never, Attributes: []interposer.Attribute{pac}, Delegated: cred}
	for what, v := range map[string]any{
		"peer": peer, "peer by value": *peer, "peers": []interposer.Peer{*peer}, "struct of a peer": struct{ P interposer.Peer }{*peer},
		"struct of a peer's pointer": struct{ P *interposer.Peer }{peer}, "embedded": struct{ interposer.Peer }{*peer},
		"map": map[string]interposer.Peer{"bob": *peer}, "attribute": pac, "attribute's pointer": &pac, "attributes": peer.Attributes,
		"struct of an attribute": struct{ A interposer.Attribute }{pac}, "name": name, "names": []interposer.Name{name},
		"struct of a name": struct{ N interposer.Name }{name}, "cred": cred, "cred by value": *cred, "struct of a cred": struct{ C interposer.Cred }{*cred},
		"element": interposer.Element{Name: name},
	} {
		for _, secret := range []string{"S-1-5", "delegated by"} {
			forms := []string{secret, fmt.Sprintf("%x", secret), fmt.Sprintf("%d", []byte(secret)), fmt.Sprintf("%#v", []byte(secret))}
			for i, form := range forms {
				forms[i] = strings.Trim(strings.TrimSuffix(strings.TrimPrefix(form, "[]byte{"), "}"), "[]")
			}
			base64, err := json.Marshal([]byte(secret)[:len(secret)/3*3])
			if err != nil {
				t.Fatal(err)
			}
			got := print(t, v)
			for _, form := range append(forms, strings.Trim(string(base64), `"`)) {
				if strings.Contains(got, form) {
					t.Errorf("%s prints %q:\n%s", what, form, got)
				}
			}
		}
	}
	text, err := json.Marshal(map[string]any{"peer": peer, "value": *peer, "name": name, "attributes": peer.Attributes})
	if want := `{"attributes":["urn:mspac:"],"name":"bob@R","peer":"bob@R","value":"bob@R"}`; string(text) != want || err != nil {
		t.Errorf("%s, %v; want %s", text, err, want)
	}
	for want, v := range map[string]any{"bob@R": peer, "credential of bob@EXAMPLE.TEST": cred, "no credential": interposer.Cred{}, "the service's credential": interposer.ServiceCred} {
		if got := fmt.Sprint(v); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	// Absence is no panic, in a log as elsewhere.
	if got := print(t, (*interposer.Peer)(nil)) + print(t, (*interposer.Cred)(nil)); strings.Contains(strings.ToLower(got), "panic") || !strings.Contains(got, "no credential") {
		t.Error(got)
	}
}
