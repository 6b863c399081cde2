package e2e

import (
	"bytes"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// The differential tests make the same calls to the C daemon and to ours, with handshake tokens
// made fresh for each, and compare every field of the replies. The daemons have the same
// configuration and keytab; each has its own replay cache.
//
// What may differ is written down in two places and nowhere else: reconcile says what of a reply
// differs from call to call, or is the daemon's own business, and what is compared of it; the table
// deviations says which replies differ on purpose, and why. With LAB_DAEMONS=C the C daemon is
// compared with a second one: then only reconcile is at work.

// reply is the answer to one call: the header says whether there are results.
type reply struct {
	Header xdr.Reply
	Res    xdr.Message
	Status *xdr.Status // in Res
}

// side is one of the two daemons, and what a test has got from it.
type side struct {
	kind string
	*lab.Wire
	daemon *lab.Daemon
	ctx    xdr.Ctx // of the tests of messages
	id     int     // its initiator's
}

func (r *reply) String() string {
	if !lab.Success(r.Header) {
		return fmt.Sprintf("%v %v", r.Header.Stat, r.Header.Accepted.Outcome.Stat)
	}
	return fmt.Sprint(lab.StatusError(*r.Status))
}

type pair struct{ c, ours *side }

// newPair starts two daemons with the options, and connects to both as root.
func newPair(t *testing.T, o lab.Options) *pair {
	t.Helper()
	other := "ours"
	if os.Getenv("LAB_DAEMONS") == "C" {
		other = "C"
	}
	if o.Keytab == "" {
		o.Keytab = keytab(t)
	}
	connect := func(kind string) *side {
		d := daemon(t, kind, o)
		return &side{kind: kind, daemon: d, Wire: wire(t, d)}
	}
	return &pair{connect("C"), connect(other)}
}

// compare makes one call to each daemon, arg making its arguments, and compares the replies. It
// returns whether they were the same.
func (p *pair) compare(t *testing.T, name string, proc xdr.Proc, arg func(s *side) xdr.Message) (c, ours xdr.Message) {
	t.Helper()
	answer := func(s *side) *reply {
		r := &reply{Res: proc.Res()}
		r.Status = statusOf(r.Res)
		var err error
		if r.Header, err = s.Exchange(proc, arg(s), r.Res); err != nil {
			t.Fatalf("%s: %s daemon: %v (%v)", name, s.kind, err, s.daemon.Process.Err())
		}
		return r
	}
	a, b := answer(p.c), answer(p.ours)
	if verbose {
		t.Logf("%s: %v", name, a)
	}
	c, ours = proc.Res(), proc.Res()
	c.Decode(xdr.NewDecoder(a.Res.Append(nil)))
	ours.Decode(xdr.NewDecoder(b.Res.Append(nil)))

	if p.ours.kind != "C" {
		for _, d := range deviations {
			if d.call.MatchString(name) {
				if err := d.same(a, b); err != nil {
					t.Errorf("%s: deviates (%s), but ours: %v", name, d.why, err)
				}
			}
		}
	}
	if err := reconcile(a, b); err != nil {
		t.Errorf("%s: %v", name, err)
	}
	var diff fieldDiff
	cmp.Equal(a.Header, b.Header, cmp.Comparer(bytes.Equal), cmp.Reporter(&diff))
	cmp.Equal(a.Res, b.Res, cmp.Comparer(bytes.Equal), cmp.Reporter(&diff))
	for _, line := range diff.lines {
		t.Errorf("%s: %s", name, line)
	}
	return c, ours
}

// fieldDiff reports unequal fields, one a line.
type fieldDiff struct {
	path  cmp.Path
	lines []string
}

func (d *fieldDiff) PushStep(s cmp.PathStep) { d.path = append(d.path, s) }
func (d *fieldDiff) PopStep()                { d.path = d.path[:len(d.path)-1] }

func (d *fieldDiff) Report(r cmp.Result) {
	if !r.Equal() {
		c, ours := d.path.Last().Values()
		d.lines = append(d.lines, fmt.Sprintf("%v: C %s, ours %s", d.path, show(c), show(ours)))
	}
}

// show writes bytes as text.
func show(v reflect.Value) string {
	if !v.IsValid() {
		return "absent"
	}
	if b, ok := v.Interface().([]byte); ok {
		return fmt.Sprintf("%q", b)
	}
	return fmt.Sprintf("%+v", v.Interface())
}

// verbose shows every status of the C daemon.
var verbose = os.Getenv("LAB_VERBOSE") != ""

// statusOf is the status in the results of a procedure: their first field.
func statusOf(res xdr.Message) *xdr.Status {
	switch r := res.(type) {
	case *xdr.ResIndicateMechs:
		return &r.Status
	case *xdr.ResGetCallContext:
		return &r.Status
	case *xdr.ResImportAndCanonName:
		return &r.Status
	case *xdr.ResExportCred:
		return &r.Status
	case *xdr.ResImportCred:
		return &r.Status
	case *xdr.ResAcquireCred:
		return &r.Status
	case *xdr.ResStoreCred:
		return &r.Status
	case *xdr.ResInitSecContext:
		return &r.Status
	case *xdr.ResAcceptSecContext:
		return &r.Status
	case *xdr.ResReleaseHandle:
		return &r.Status
	case *xdr.ResGetMic:
		return &r.Status
	case *xdr.ResVerifyMic:
		return &r.Status
	case *xdr.ResWrap:
		return &r.Status
	case *xdr.ResUnwrap:
		return &r.Status
	case *xdr.ResWrapSizeLimit:
		return &r.Status
	}
	panic(fmt.Sprintf("no results %T", res))
}

// reconcile takes out of two replies what differs between any two calls, even to one daemon, and
// checks what can be checked of it instead.
func reconcile(c, ours *reply) error {
	// The minor status is a number of the daemon's own mechglue, made up as errors come; it means
	// something only beside its text, which is compared. Zero or not is kept.
	if c.Status.MinorStatus != 0 && ours.Status.MinorStatus != 0 {
		ours.Status.MinorStatus = c.Status.MinorStatus
	}
	switch a := c.Res.(type) {
	case *xdr.ResAcquireCred:
		return sameCred(&a.OutputCredHandle, &ours.Res.(*xdr.ResAcquireCred).OutputCredHandle)
	case *xdr.ResAcceptSecContext:
		b := ours.Res.(*xdr.ResAcceptSecContext)
		// An AP-REP has a new key in it and the client's own time; whether it is one is the
		// initiator's to say, in the tests of contexts. Its length varies by what DER needs for the
		// sequence number.
		if a.OutputToken.Set && b.OutputToken.Set {
			if x, y := len(a.OutputToken.V), len(b.OutputToken.V); !sameLength(a.OutputToken.V, b.OutputToken.V) {
				return fmt.Errorf("output tokens of %d and %d bytes", x, y)
			}
			b.OutputToken = a.OutputToken
		}
		if err := sameCred(&a.DelegatedCredHandle, &b.DelegatedCredHandle); err != nil {
			return err
		}
		return sameCtx(&a.ContextHandle, &b.ContextHandle)
	case *xdr.ResGetMic:
		b := ours.Res.(*xdr.ResGetMic)
		// Different keys: the initiator verifies each.
		if len(a.TokenBuffer) == len(b.TokenBuffer) {
			b.TokenBuffer = a.TokenBuffer
		}
		return sameCtx(&a.ContextHandle, &b.ContextHandle)
	case *xdr.ResVerifyMic:
		return sameCtx(&a.ContextHandle, &ours.Res.(*xdr.ResVerifyMic).ContextHandle)
	case *xdr.ResWrap:
		b := ours.Res.(*xdr.ResWrap)
		if len(a.TokenBuffer) == 1 && len(b.TokenBuffer) == 1 && len(a.TokenBuffer[0]) == len(b.TokenBuffer[0]) {
			b.TokenBuffer = a.TokenBuffer
		}
		return sameCtx(&a.ContextHandle, &b.ContextHandle)
	case *xdr.ResUnwrap:
		return sameCtx(&a.ContextHandle, &ours.Res.(*xdr.ResUnwrap).ContextHandle)
	}
	return nil
}

// sameCred: a handle is sealed, its bytes are the daemon's own.
func sameCred(c, ours *xdr.Opt[xdr.Cred]) error {
	if !c.Set || !ours.Set {
		return nil
	}
	if len(c.V.CredHandleReference) == 0 || len(ours.V.CredHandleReference) == 0 {
		return fmt.Errorf("handles of %d and %d bytes", len(c.V.CredHandleReference), len(ours.V.CredHandleReference))
	}
	ours.V.CredHandleReference = c.V.CredHandleReference
	return nil
}

// sameCtx: the lifetime may tick between the two calls. Of an exported context all is compared but
// what is its own, see ownNumbers and ownKeys: both were made with one ticket, by one client that
// asked for the same, and have come through the same messages.
func sameCtx(c, ours *xdr.Opt[xdr.Ctx]) error {
	if !c.Set || !ours.Set {
		return nil
	}
	if d := int64(c.V.Lifetime) - int64(ours.V.Lifetime); d >= -2 && d <= 2 {
		ours.V.Lifetime = c.V.Lifetime
	}
	if bytes.Equal(c.V.ExportedContextToken, ours.V.ExportedContextToken) {
		return nil // there is none, or a deviation took ours for both
	}
	if !c.V.Open && !ours.V.Open && min(len(c.V.ExportedContextToken), len(ours.V.ExportedContextToken)) > 0 {
		ours.V.ExportedContextToken = c.V.ExportedContextToken // half a context is the daemon's own business
		return nil
	}
	a, err := krb5.ImportContext(c.V.ExportedContextToken)
	if err != nil {
		return fmt.Errorf("C's context: %w", err)
	}
	b, err := krb5.ImportContext(ours.V.ExportedContextToken)
	if err != nil {
		return fmt.Errorf("our context: %w", err)
	}
	ours.V.ExportedContextToken = c.V.ExportedContextToken
	ownNumbers(a)
	ownNumbers(b)
	var diff fieldDiff
	if !cmp.Equal(a, b, ownKeys, cmpopts.IgnoreUnexported(krb5.Context{}), cmp.Reporter(&diff)) {
		return fmt.Errorf("exported contexts: %s", strings.Join(diff.lines, "; "))
	}
	return nil
}

// ownNumbers takes out the number with which each end begins, which is made up for the context.
// What is counted from it stays: the client's first number is 0 then, and the acceptor's without an
// AP-REP, where it has the client's.
func ownNumbers(c *krb5.Context) {
	c.RecvSeq -= c.Window.Base
	c.SendSeq -= c.Window.Base
	if c.Flags&mech.FlagMutual != 0 {
		c.SendSeq = 0 // of what is sent the initiator sees the order
	}
	c.Window.Base = 0
}

// ownKeys: keys are made up for the context. There are as many and of the same types; that they
// work is the initiator's to say.
var ownKeys = cmp.Comparer(func(a, b *etype.Key) bool {
	return (a == nil) == (b == nil) && (a == nil || a.Enctype() == b.Enctype())
})

func oids(list ...mech.OID) [][]byte {
	var out [][]byte
	for _, o := range list {
		out = append(out, []byte(o))
	}
	return out
}

func name(display string, typ mech.OID) xdr.Name {
	return xdr.Name{DisplayName: []byte(display), NameType: []byte(typ)}
}

// TestDifferentialMechs: INDICATE_MECHS, and the procedures the C daemon has not implemented.
func TestDifferentialMechs(t *testing.T) {
	p := newPair(t, lab.Options{})
	p.compare(t, "INDICATE_MECHS", xdr.ProcIndicateMechs, func(*side) xdr.Message { return &xdr.ArgIndicateMechs{} })
	for _, proc := range []xdr.Proc{xdr.ProcGetCallContext, xdr.ProcExportCred, xdr.ProcImportCred, xdr.ProcStoreCred} {
		p.compare(t, "unimplemented "+proc.String(), proc, func(*side) xdr.Message { return proc.Arg() })
	}
	for _, h := range []xdr.Handle{
		{HandleType: xdr.HandleSecCtx}, {HandleType: xdr.HandleCred}, {HandleType: 7, Extensions: []byte("x")},
	} {
		p.compare(t, fmt.Sprintf("RELEASE_HANDLE %d", h.HandleType), xdr.ProcReleaseHandle, func(*side) xdr.Message {
			return &xdr.ArgReleaseHandle{CredHandle: h}
		})
	}
}

// TestDifferentialNames: IMPORT_AND_CANON_NAME with every name type and mechanism, good names and
// bad, and localname.
func TestDifferentialNames(t *testing.T) {
	p := newPair(t, lab.Options{})
	exported := string(mech.AppendExportedName(nil, mech.KRB5, "alice@"+lab.Name))
	names := []xdr.Name{
		name("alice", mech.NTUserName), name("alice@"+lab.Name, mech.NTUserName), name("alice@OTHER.TEST", mech.NTUserName),
		name("alice\x00", mech.NTUserName), name(`al\@ice`, mech.NTUserName), name(`al\/ice/a`, mech.NTUserName), name(`a\tb\nc\\`, mech.NTUserName),
		name("alice@", mech.NTUserName), name("@"+lab.Name, mech.NTUserName), name("a@b@c", mech.NTUserName), name("a/b/c/d", mech.NTUserName), name(`alice\`, mech.NTUserName),
		name("a b", mech.NTUserName), name("ål", mech.NTUserName), name("", mech.NTUserName),
		name("alice", ""), name(service, ""),
		name(service, mech.NTHostbased), name(service+"\x00", mech.NTHostbased), name("svc", mech.NTHostbased), name("svc@", mech.NTHostbased), name("@"+lab.Host, mech.NTHostbased),
		name("SVC@LAB.EXAMPLE.TEST", mech.NTHostbased), name("svc@lab.example.test.", mech.NTHostbased), name("svc@elsewhere.test", mech.NTHostbased),
		name("svc@a@b", mech.NTHostbased), name("svc/x@"+lab.Host, mech.NTHostbased), name("svc@10.0.0.1", mech.NTHostbased), name("svc@localhost:80", mech.NTHostbased),
		name(service, mech.NTHostbasedX), name("svc", mech.NTHostbasedX),
		name("svc/"+lab.Host+"@"+lab.Name, mech.NTKrb5Principal), name("svc/"+lab.Host, mech.NTKrb5Principal), name("alice\x00", mech.NTKrb5Principal), name("a@b@c", mech.NTKrb5Principal), name("WELLKNOWN/ANONYMOUS@WELLKNOWN:ANONYMOUS", mech.NTKrb5Principal),
		name("alice@corp.test", mech.NTKrb5Enterprise), name("alice", mech.NTKrb5Enterprise), name("alice@corp.test@"+lab.Name, mech.NTKrb5Enterprise),
		name("0", mech.NTStringUID), name("65534", mech.NTStringUID), name("65534\x00", mech.NTStringUID), name("12345678", mech.NTStringUID), name("x", mech.NTStringUID), name("-1", mech.NTStringUID), name("", mech.NTStringUID),
		name("\x00\x00\x00\x00", mech.NTMachineUID), name("\xfe\xff\x00\x00", mech.NTMachineUID), name("\xfe\xff", mech.NTMachineUID),
		name("", mech.NTAnonymous), name("x", mech.NTAnonymous),
		name(exported, mech.NTExportName), name(exported[:20], mech.NTExportName), name("x", mech.NTExportName),
		name(string(mech.AppendCompositeName(nil, mech.KRB5, "alice@"+lab.Name, nil)), mech.NTCompositeExport),
		name(string(mech.AppendExportedName(nil, mech.SPNEGO, "alice@"+lab.Name)), mech.NTExportName),
		name("alice", "\x2a\x03\x04"), name("cert", mech.NTKrb5X509),
		{ExportedName: []byte(exported)}, {ExportedName: []byte(exported[:9])}, {ExportedName: []byte("garbage")},
		{DisplayName: []byte("bob"), NameType: []byte(mech.NTUserName), ExportedName: []byte(exported)}, // display wins
		{},
	}
	for _, n := range names {
		for _, m := range []mech.OID{"", mech.KRB5, mech.KRB5Old, mech.KRB5Wrong, mech.IAKERB, mech.SPNEGO, "\x2a\x03\x04"} {
			p.compare(t, fmt.Sprintf("name %q exported %q type %v mech %v", n.DisplayName, n.ExportedName, mech.OID(n.NameType), m),
				xdr.ProcImportAndCanonName, func(*side) xdr.Message {
					return &xdr.ArgImportAndCanonName{InputName: n, Mech: []byte(m)}
				})
		}
	}
	if p.ours.kind != "C" { // it aborts the C daemon
		var res xdr.ResImportAndCanonName
		check(t, p.ours.Call(xdr.ProcImportAndCanonName, &xdr.ArgImportAndCanonName{InputName: name(exported+"x", mech.NTExportName)}, &res))
		if res.Status.MajorStatus != uint64(mech.BadName) {
			t.Errorf("exported name with a byte after it: %v", lab.StatusError(res.Status))
		}
	}
	local := []xdr.Option{{Option: []byte("localname\x00")}}
	for _, n := range []xdr.Name{
		name("alice", mech.NTUserName), name("alice@"+lab.Name, mech.NTKrb5Principal), name("root@"+lab.Name, mech.NTKrb5Principal),
		name("nobody@"+lab.Name+"\x00", mech.NTKrb5Principal), name("alice@OTHER.TEST", mech.NTKrb5Principal), name("alice/admin@"+lab.Name, mech.NTKrb5Principal),
		name(service, mech.NTHostbased), name("", mech.NTAnonymous), name("", mech.NTUserName), name(exported, mech.NTExportName), name("0", mech.NTStringUID),
	} {
		for _, m := range []mech.OID{"", mech.KRB5, mech.SPNEGO} {
			p.compare(t, fmt.Sprintf("localname %q type %v mech %v", n.DisplayName, mech.OID(n.NameType), m),
				xdr.ProcImportAndCanonName, func(*side) xdr.Message {
					return &xdr.ArgImportAndCanonName{InputName: n, Mech: []byte(m), Options: local}
				})
		}
	}
}

// TestDifferentialLocalNames: auth_to_local and auth_to_local_names of krb5.conf decide about
// localname.
func TestDifferentialLocalNames(t *testing.T) {
	conf := realm(t).Path("krb5-local.conf")
	text, err := os.ReadFile(realm(t).Conf)
	check(t, err)
	rules := "[realms]\n  " + lab.Name + ` = {
    auth_to_local_names = {
      carol = nobody
    }
    auth_to_local = RULE:[2:$1.$2@$0](^.*\.admin@.*$)s/\.admin@.*//
    auth_to_local = RULE:[1:x$1](xroot)s/^x//g
    auth_to_local = DEFAULT
`
	check(t, os.WriteFile(conf, []byte(strings.Replace(string(text), "[realms]\n  "+lab.Name+" = {\n", rules, 1)), 0o644))
	p := newPair(t, lab.Options{Krb5Conf: conf})
	for _, n := range []string{"alice", "carol", "dave/admin", "dave/other", "root", "a/b/c", "alice@OTHER.TEST", "dave/admin@OTHER.TEST"} {
		p.compare(t, "localname by rules "+n, xdr.ProcImportAndCanonName, func(*side) xdr.Message {
			return &xdr.ArgImportAndCanonName{InputName: name(n, mech.NTKrb5Principal), Mech: []byte(mech.KRB5),
				Options: []xdr.Option{{Option: []byte("localname\x00")}}}
		})
	}
}

// indefinite is how a time that has no end is written.
const indefinite = 1<<32 - 1

// acquire are the arguments the plugin sends for an acceptor.
func acquire(change func(*xdr.ArgAcquireCred)) func(*side) xdr.Message {
	return func(*side) xdr.Message {
		a := &xdr.ArgAcquireCred{TimeReq: indefinite, DesiredMechs: oids(mech.KRB5), CredUsage: xdr.CredAccept}
		if change != nil {
			change(a)
		}
		return a
	}
}

// TestDifferentialAcquire: ACQUIRE_CRED for acceptors, with and without a name and a handle; as the
// service's own user (the tests are root) and as another.
func TestDifferentialAcquire(t *testing.T) {
	for _, c := range []struct{ name, euid, usage string }{
		{"own", "0", "accept"}, {"other", "65534", "accept"}, {"own both", "0", "both"}, {"own initiate", "0", "initiate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := keytab(t)
			config := lab.DefaultConfig(path)
			config = strings.Replace(config, "euid = 0", "euid = "+c.euid, 1)
			config = strings.Replace(config, "cred_usage = accept", "cred_usage = "+c.usage, 1)
			p := newPair(t, lab.Options{Keytab: path, Config: config})
			testAcquire(t, p, c.name)
		})
	}
}

func testAcquire(t *testing.T, p *pair, who string) {
	call := func(what string, change func(*xdr.ArgAcquireCred)) (c, ours *xdr.ResAcquireCred) {
		t.Helper()
		a, b := p.compare(t, "ACQUIRE_CRED "+who+": "+what, xdr.ProcAcquireCred, acquire(change))
		return a.(*xdr.ResAcquireCred), b.(*xdr.ResAcquireCred)
	}
	handles := func(c, ours *xdr.ResAcquireCred) [2]xdr.Cred {
		return [2]xdr.Cred{c.OutputCredHandle.V, ours.OutputCredHandle.V}
	}
	anyone := handles(call("no name", nil))
	named := handles(call("hostbased", func(a *xdr.ArgAcquireCred) { a.DesiredName = xdr.Some(name(service, mech.NTHostbased)) }))
	for _, n := range []struct {
		what string
		name xdr.Name
	}{
		{"hostbased with NUL", name(service+"\x00", mech.NTHostbased)},
		{"hostbased without host", name("svc", mech.NTHostbased)},
		{"hostbased, not in there", name("absent@"+lab.Host, mech.NTHostbased)},
		{"hostbased, another host", name("svc@elsewhere.test", mech.NTHostbased)},
		{"hostbased, upper case", name("svc@LAB.EXAMPLE.TEST", mech.NTHostbased)},
		{"principal", name("svc/"+lab.Host+"@"+lab.Name, mech.NTKrb5Principal)},
		{"principal, no realm", name("svc/"+lab.Host, mech.NTKrb5Principal)},
		{"principal, other realm", name("svc/"+lab.Host+"@OTHER.TEST", mech.NTKrb5Principal)},
		{"user", name("alice", mech.NTUserName)},
		{"exported", name(string(mech.AppendExportedName(nil, mech.KRB5, "svc/"+lab.Host+"@"+lab.Name)), mech.NTExportName)},
		{"string uid", name("65534", mech.NTStringUID)},
		{"unparsable", name("a@b@c", mech.NTKrb5Principal)},
		{"unknown type", name("svc", "\x2a\x03\x04")},
		{"empty", xdr.Name{}},
	} {
		call(n.what, func(a *xdr.ArgAcquireCred) { a.DesiredName = xdr.Some(n.name) })
	}
	for _, m := range []struct {
		what string
		list [][]byte
	}{
		{"none", nil}, {"SPNEGO", oids(mech.SPNEGO)}, {"old krb5", oids(mech.KRB5Old)}, {"wrong krb5", oids(mech.KRB5Wrong)}, {"IAKERB", oids(mech.IAKERB)},
		{"SPNEGO and krb5", oids(mech.SPNEGO, mech.KRB5)}, {"unknown", oids("\x2a\x03\x04")}, {"krb5 twice", oids(mech.KRB5, mech.KRB5)}, {"empty", [][]byte{{}}},
	} {
		call("mechanisms "+m.what, func(a *xdr.ArgAcquireCred) { a.DesiredMechs = m.list })
	}
	option := func(name, value string) func(*xdr.ArgAcquireCred) {
		return func(a *xdr.ArgAcquireCred) {
			a.Options = []xdr.Option{{Option: []byte(name + "\x00"), Value: []byte(value + "\x00")}}
		}
	}
	for _, c := range []struct {
		what   string
		change func(*xdr.ArgAcquireCred)
	}{
		{"usage both", func(a *xdr.ArgAcquireCred) { a.CredUsage = xdr.CredBoth }},
		{"usage 0", func(a *xdr.ArgAcquireCred) { a.CredUsage = 0 }},
		{"usage 9", func(a *xdr.ArgAcquireCred) { a.CredUsage = 9 }},
		{"times 0", func(a *xdr.ArgAcquireCred) { a.TimeReq = 0 }},
		{"times 60", func(a *xdr.ArgAcquireCred) { a.TimeReq, a.InitiatorTimeReq, a.AcceptorTimeReq = 60, 60, 60 }},
		{"an unknown option", option("x", "y")},
		{"an unknown acquire_type", option("acquire_type", "y")},
	} {
		call(c.what, c.change)
	}

	// Handles go back to the daemon they came from.
	const anyForOne = "unnamed, asked for a name"
	with := func(what string, h [2]xdr.Cred, change func(*xdr.ArgAcquireCred)) {
		t.Helper()
		if len(h[0].CredHandleReference) == 0 || len(h[1].CredHandleReference) == 0 {
			return // there was none to be had: compared above
		}
		c, ours := p.compare(t, "ACQUIRE_CRED "+who+": handle: "+what, xdr.ProcAcquireCred, func(s *side) xdr.Message {
			a := acquire(change)(s).(*xdr.ArgAcquireCred)
			a.InputCredHandle = xdr.Some(h[0])
			if s == p.ours {
				a.InputCredHandle = xdr.Some(h[1])
			}
			return a
		})
		// A good handle comes back byte for byte, or it does not, from both; but one for any name
		// not in place of one for the name that is asked for.
		back := [2]*xdr.ResAcquireCred{c.(*xdr.ResAcquireCred), ours.(*xdr.ResAcquireCred)}
		same := [2]bool{}
		for i, r := range back {
			same[i] = r.OutputCredHandle.Set && cmp.Equal(r.OutputCredHandle.V, h[i])
		}
		if want := same[0] && what != anyForOne; same[1] != want {
			t.Errorf("%s: the handle comes back unchanged: C %v, ours %v", what, same[0], same[1])
		}
	}
	with("again", anyone, nil)
	with("named again", named, nil)
	with("named, asked for the same", named, func(a *xdr.ArgAcquireCred) { a.DesiredName = xdr.Some(name(service, mech.NTHostbased)) })
	with("named, asked for another", named, func(a *xdr.ArgAcquireCred) { a.DesiredName = xdr.Some(name(serviceOf(17), mech.NTHostbased)) })
	with(anyForOne, anyone, func(a *xdr.ArgAcquireCred) { a.DesiredName = xdr.Some(name(service, mech.NTHostbased)) })
	with("to initiate", anyone, func(a *xdr.ArgAcquireCred) { a.CredUsage = xdr.CredInitiate })
	with("for both", anyone, func(a *xdr.ArgAcquireCred) { a.CredUsage = xdr.CredBoth })
	with("for SPNEGO", anyone, func(a *xdr.ArgAcquireCred) { a.DesiredMechs = oids(mech.SPNEGO) })
	garbage := func(h [2]xdr.Cred, change func([]byte) []byte) [2]xdr.Cred {
		for i := range h {
			h[i].CredHandleReference = change(append([]byte{}, h[i].CredHandleReference...))
		}
		return h
	}
	with("one bit wrong", garbage(anyone, func(b []byte) []byte {
		if len(b) > 0 {
			b[len(b)/2] ^= 4
		}
		return b
	}), nil)
	with("noise", garbage(anyone, func([]byte) []byte { return []byte("not a handle at all, but as long as some are") }), nil)
	with("one byte", garbage(anyone, func([]byte) []byte { return []byte{1} }), nil)
	// The one with no bytes is absent in all but form.
	p.compare(t, "ACQUIRE_CRED "+who+": handle: empty", xdr.ProcAcquireCred, func(s *side) xdr.Message {
		a := acquire(nil)(s).(*xdr.ArgAcquireCred)
		a.InputCredHandle = xdr.Some(xdr.Cred{})
		return a
	})
}
