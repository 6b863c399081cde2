package interposer

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc"
	"gssproxyd/rpc/rpctest"
	"gssproxyd/xdr"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// answer makes a handler that decodes the arguments and answers with what f returns.
func answer[A any, PA interface {
	*A
	xdr.Message
}](t *testing.T, proc xdr.Proc, f func(arg PA) xdr.Message) rpctest.Handler {
	return func(_ context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
		if c.Proc != uint32(proc) {
			t.Errorf("procedure %v, want %v", xdr.Proc(c.Proc), proc)
			return reply, rpc.ProcUnavail
		}
		var arg A
		d := xdr.NewDecoder(c.Args)
		if PA(&arg).Decode(d); d.Err() != nil || d.Remaining() != 0 {
			t.Errorf("arguments: %v, %d bytes left", d.Err(), d.Remaining())
			return reply, rpc.GarbageArgs
		}
		return f(&arg).Append(reply), rpc.Success
	}
}

func client(t *testing.T, h rpctest.Handler) *Client {
	t.Helper()
	path, _ := rpctest.Start(t, h)
	return clientAt(t, path, Options{})
}

func clientAt(t *testing.T, path string, o Options) *Client {
	t.Helper()
	c := New(path, o)
	t.Cleanup(func() { c.Close() })
	return c
}

func socketDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "gp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// pong is a handler that answers whatever it is asked.
func pong(_ context.Context, _ *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
	return reply, rpc.Success
}

func TestSocket(t *testing.T) {
	path, stop := rpctest.Start(t, pong)
	t.Setenv("GSSPROXY_SOCKET", path)
	c := clientAt(t, "", Options{})
	if err := c.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	stop()
	if err := c.Ping(t.Context()); !errors.Is(err, syscall.ECONNREFUSED) || !strings.Contains(err.Error(), path) {
		t.Errorf("%v, want ECONNREFUSED and the path", err)
	}
	t.Setenv("GSSPROXY_SOCKET", "")
	if c := New("", Options{}); c.socket != DefaultSocket {
		t.Errorf("socket %s, want the default path", c.socket)
	}
}

// A Client that was not made is no reason to wait for ever, or to panic.
func TestNoClient(t *testing.T) {
	for _, c := range []*Client{nil, {}} {
		for _, err := range []error{c.Ping(t.Context()), accept(t, c), initiate(t, c)} {
			if err == nil || !strings.Contains(err.Error(), "interposer.New") {
				t.Errorf("%v", err)
			}
		}
	}
	if _, err := new(SecContext).Step(t.Context(), nil); err == nil {
		t.Error("the zero SecContext takes a step")
	}
}

// Every connection of the pool is stale after a restart, and no call notices.
func TestRestart(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	stop := rpctest.StartAt(t, path, &rpc.Server{Match: rpctest.Everybody(pong)})
	c := clientAt(t, path, Options{})
	for range 3 {
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if err := c.Ping(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		stop()
		stop = rpctest.StartAt(t, path, &rpc.Server{Match: rpctest.Everybody(pong)})
	}
	stop()
	if err := c.Ping(t.Context()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%v, want ECONNREFUSED", err)
	}
	rpctest.StartAt(t, path, &rpc.Server{Match: rpctest.Everybody(pong)})
	if err := c.Ping(t.Context()); err != nil {
		t.Errorf("after a failure: %v", err)
	}
}

func TestPool(t *testing.T) {
	var now, most atomic.Int32
	release := make(chan struct{})
	full := sync.OnceFunc(func() { close(release) })
	conns := make(map[string]bool)
	var mu sync.Mutex
	path, _ := rpctest.Start(t, func(_ context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
		n := now.Add(1)
		defer now.Add(-1)
		mu.Lock()
		conns[c.Conn.ID] = true
		mu.Unlock()
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		if n == 3 {
			full() // as many as there may be; they may be so many again
		}
		<-release
		return reply, rpc.Success
	})
	c := clientAt(t, path, Options{MaxConns: 3})
	var wg sync.WaitGroup
	for range 30 {
		wg.Go(func() {
			if err := c.exchange(t.Context(), xdr.ProcWrap, nil, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if most.Load() != 3 || len(conns) != 3 {
		t.Errorf("%d calls at once on %d connections, want 3 and 3", most.Load(), len(conns))
	}
}

func TestWaitForSlot(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	path, _ := rpctest.Start(t, func(_ context.Context, _ *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
		close(begun)
		<-release
		return reply, rpc.Success
	})
	c := clientAt(t, path, Options{MaxConns: 1})
	done := make(chan error)
	go func() {
		done <- c.exchange(t.Context(), xdr.ProcWrap, nil, nil)
	}()
	<-begun
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := c.Ping(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want the deadline", err)
	}
	c.Close() // the call in flight ends as it would have
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := c.Ping(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// Who gives up root must not go on with root's connections.
func TestChangedUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to become somebody else")
	}
	var uid atomic.Uint32
	path, _ := rpctest.Start(t, func(_ context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
		uid.Store(c.Conn.Peer.UID)
		return reply, rpc.Success
	})
	for file, mode := range map[string]os.FileMode{filepath.Dir(path): 0o755, path: 0o666} {
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
	}
	c := clientAt(t, path, Options{})
	call := func(want uint32) {
		t.Helper()
		if err := c.exchange(t.Context(), xdr.ProcWrap, nil, nil); err != nil {
			t.Error(err)
		}
		if got := uid.Load(); got != want {
			t.Errorf("the daemon saw uid %d, want %d", got, want)
		}
	}
	call(0)
	if err := syscall.Seteuid(65534); err != nil {
		t.Fatal(err)
	}
	call(65534)
	if err := syscall.Seteuid(0); err != nil {
		t.Fatal(err)
	}
	call(0)
}

func TestNoService(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	rpctest.StartAt(t, path, &rpc.Server{
		Match: func(context.Context, *rpc.Conn, uint32) (rpc.Service, bool) { return nil, false },
	})
	c := clientAt(t, path, Options{})
	for range 2 { // on the first connection and on a new one
		_, err := c.IndicateMechs(t.Context())
		if !errors.Is(err, rpc.ErrNoAnswer) || !strings.Contains(err.Error(), fmt.Sprintf("service for uid %d and this program on %s", os.Geteuid(), path)) {
			t.Errorf("%v", err)
		}
	}
}

func TestUndecodableResults(t *testing.T) {
	c := client(t, pong)
	if _, err := c.IndicateMechs(t.Context()); err == nil || !strings.Contains(err.Error(), "INDICATE_MECHS: the results: xdr: byte 0") {
		t.Errorf("%v", err)
	}
}

func TestFailure(t *testing.T) {
	for _, tt := range []struct {
		status xdr.Status
		want   *mech.Error
		text   string
	}{
		{xdr.Status{}, nil, ""},
		{xdr.Status{MajorStatus: 1, MajorStatusString: []byte("go on\x00")}, nil, ""},
		{
			xdr.Status{MajorStatus: uint64(mech.DuplicateToken | mech.Failure), MinorStatus: 7, Mech: []byte(mech.KRB5),
				MinorStatusString: []byte("[replay] Request is a replay\x00")},
			&mech.Error{Major: mech.DuplicateToken | mech.Failure, Minor: 7, Mech: mech.KRB5, Text: "Request is a replay", Reason: "replay"},
			"[replay] Request is a replay",
		},
		{ // of a daemon's first builds
			xdr.Status{MajorStatus: uint64(mech.Failure), MinorStatus: 7, MinorStatusString: []byte("Request is a replay [replay]\x00")},
			&mech.Error{Major: mech.Failure, Minor: 7, Text: "Request is a replay", Reason: "replay"},
			"[replay] Request is a replay",
		},
		{ // what looks like a reason at the other end is the text's
			xdr.Status{MajorStatus: uint64(mech.BadName), MinorStatus: 7, MinorStatusString: []byte("[bad-name] no name: a [b]\x00")},
			&mech.Error{Major: mech.BadName, Minor: 7, Text: "no name: a [b]", Reason: "bad-name"},
			"[bad-name] no name: a [b]",
		},
		{
			xdr.Status{MajorStatus: uint64(mech.Unavailable), MajorStatusString: []byte("not today\x00"), MinorStatusString: []byte("[internal]\x00")},
			&mech.Error{Major: mech.Unavailable, Text: "not today", Reason: "internal"},
			"[internal] not today",
		},
		{ // the C daemon's; brackets that are no reason stay
			xdr.Status{MajorStatus: uint64(mech.NoCred), MinorStatus: 1, MinorStatusString: []byte("[FILE:/etc] no key [keytab FILE:/etc/krb5.keytab]\x00")},
			&mech.Error{Major: mech.NoCred, Minor: 1, Text: "[FILE:/etc] no key [keytab FILE:/etc/krb5.keytab]"},
			"[FILE:/etc] no key [keytab FILE:/etc/krb5.keytab]",
		},
		{
			xdr.Status{MajorStatus: uint64(mech.Unavailable), MajorStatusString: []byte("not today\x00")},
			&mech.Error{Major: mech.Unavailable, Text: "not today"},
			"not today",
		},
	} {
		err := failure(&tt.status, nil)
		if tt.want == nil {
			if err != nil {
				t.Errorf("%+v: %v", tt.status, err)
			}
			continue
		}
		var got *mech.Error
		if !errors.As(err, &got) || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%#v, want %#v", got, tt.want)
		} else if err.Error() != tt.text {
			t.Errorf("%q, want %q", err, tt.text)
		}
	}
}

func TestNames(t *testing.T) {
	c := client(t, answer(t, xdr.ProcImportAndCanonName, func(arg *xdr.ArgImportAndCanonName) xdr.Message {
		if string(arg.InputName.DisplayName) != "HTTP@www" || mech.OID(arg.InputName.NameType) != mech.NTHostbased || mech.OID(arg.Mech) != mech.KRB5 {
			t.Errorf("arguments %+v", arg)
		}
		if len(arg.Options) == 1 && string(arg.Options[0].Option) == "localname\x00" {
			return &xdr.ResImportAndCanonName{Options: []xdr.Option{{Option: []byte("localname\x00"), Value: []byte("www-data")}}}
		}
		return &xdr.ResImportAndCanonName{OutputName: xdr.Some(xdr.Name{
			DisplayName: []byte("HTTP/www@R\x00"), NameType: []byte(mech.NTKrb5Principal), ExportedName: []byte("exp"),
		})}
	}))
	n := Name{Display: "HTTP@www", Type: mech.NTHostbased}
	got, err := c.ImportName(t.Context(), n, mech.KRB5)
	if want := (Name{Display: "HTTP/www@R", Type: mech.NTKrb5Principal, Exported: []byte("exp")}); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if local, err := c.LocalName(t.Context(), n, mech.KRB5); err != nil || local != "www-data" {
		t.Errorf("%q, %v", local, err)
	}
}

func TestAcquireCred(t *testing.T) {
	var arg xdr.ArgAcquireCred
	c := client(t, answer(t, xdr.ProcAcquireCred, func(a *xdr.ArgAcquireCred) xdr.Message {
		arg = xdr.ArgAcquireCred{}
		d := xdr.NewDecoder(a.Append(nil)) // a aliases the record
		arg.Decode(d)
		if a.InputCredHandle.Set {
			return &xdr.ResAcquireCred{OutputCredHandle: a.InputCredHandle}
		}
		return &xdr.ResAcquireCred{OutputCredHandle: xdr.Some(xdr.Cred{
			DesiredName: xdr.Name{DisplayName: []byte("HTTP/www@R")}, CredHandleReference: []byte("S3ALED"),
			Elements: []xdr.CredElement{{Mech: []byte(mech.KRB5), CredUsage: xdr.CredAccept, InitiatorTimeRec: 90, AcceptorTimeRec: 0xffffffff}},
		})}
	}))
	before := time.Now()
	cred, err := c.AcquireCred(t.Context(), AcquireRequest{Usage: Accept})
	if err != nil {
		t.Fatal(err)
	}
	if arg.CredUsage != xdr.CredAccept || arg.DesiredName.Set || arg.InputCredHandle.Set || len(arg.DesiredMechs) != 0 || arg.TimeReq != 0 || len(arg.Options) != 0 {
		t.Errorf("arguments %+v", arg)
	}
	if n := cred.Name().Display; n != "HTTP/www@R" {
		t.Errorf("name %q", n)
	}
	e := cred.Elements()
	if len(e) != 1 || e[0].Mech != mech.KRB5 || e[0].Usage != Accept || e[0].AcceptorExpires != Never ||
		e[0].InitiatorExpires.Before(before.Add(90*time.Second)) || e[0].InitiatorExpires.After(time.Now().Add(90*time.Second)) {
		t.Errorf("%+v", e)
	}

	kept, err := cred.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	var again Cred
	if err := again.UnmarshalBinary(kept); err != nil {
		t.Fatal(err)
	}
	if e := again.Elements(); len(e) != 1 || !e[0].InitiatorExpires.IsZero() || !e[0].AcceptorExpires.IsZero() {
		t.Errorf("nobody knows since when these lifetimes count: %+v", e)
	}
	same, err := c.AcquireCred(t.Context(), AcquireRequest{
		Input: &again, Usage: Initiate, Name: Name{Display: "bob", Type: mech.NTUserName}, Impersonate: true,
		Mechs: []mech.OID{mech.KRB5}, Lifetime: 90*time.Second - 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	if !arg.InputCredHandle.Set || string(arg.DesiredName.V.DisplayName) != "bob" || arg.TimeReq != 90 || len(arg.DesiredMechs) != 1 ||
		!reflect.DeepEqual(options(arg.Options), []string{"refuse_stale_handle\x00=yes\x00", "acquire_type\x00=impersonate_name\x00"}) {
		t.Errorf("arguments %+v", arg)
	}
	if _, err := c.AcquireCred(t.Context(), AcquireRequest{}); err != nil || arg.CredUsage != xdr.CredBoth {
		t.Errorf("of no usage: %v, %v", arg.CredUsage, err)
	}
	if b, _ := same.MarshalBinary(); string(b) != string(kept) {
		t.Error("the handle has changed on its way")
	}
	if err := again.UnmarshalBinary(kept[:20]); err == nil {
		t.Error("half a credential is one")
	}
}

// TestImpersonateByService: what impersonates is a handle, which the service's own credential has
// only once it is acquired. Without one the daemon would take the call for one of another kind.
func TestImpersonateByService(t *testing.T) {
	var calls []string
	c := client(t, answer(t, xdr.ProcAcquireCred, func(a *xdr.ArgAcquireCred) xdr.Message {
		calls = append(calls, fmt.Sprintf("%s for %q, %d options, usage %d", a.InputCredHandle.V.CredHandleReference, a.DesiredName.V.DisplayName, len(a.Options), a.CredUsage))
		return &xdr.ResAcquireCred{OutputCredHandle: xdr.Some(xdr.Cred{CredHandleReference: []byte("S3ALED")})}
	}))
	for _, input := range []*Cred{nil, ServiceCred} {
		calls = nil
		if _, err := c.AcquireCred(t.Context(), AcquireRequest{Usage: Initiate, Name: Principal("bob@R"), Impersonate: true, Input: input}); err != nil {
			t.Fatal(err)
		}
		if want := []string{` for "", 0 options, usage 1`, `S3ALED for "bob@R", 2 options, usage 1`}; !slices.Equal(calls, want) {
			t.Errorf("%v: %q, want %q", input, calls, want)
		}
	}
}

// TestAcquireForNobody: a user whose name is missing is not the service.
func TestAcquireForNobody(t *testing.T) {
	calls := 0
	c := client(t, answer(t, xdr.ProcAcquireCred, func(*xdr.ArgAcquireCred) xdr.Message {
		calls++
		return &xdr.ResAcquireCred{OutputCredHandle: xdr.Some(xdr.Cred{CredHandleReference: []byte("the service's")})}
	}))
	for _, r := range []AcquireRequest{
		{Impersonate: true},
		{Impersonate: true, Input: ServiceCred},
		{Impersonate: true, Name: Principal("")},
		{Name: Principal("")},
		{Name: Name{Composite: []byte("alice")}},
	} {
		cred, err := c.AcquireCred(t.Context(), r)
		if e, ok := errors.AsType[*mech.Error](err); cred != nil || !ok || e.Major != mech.BadName || e.Reason != reason.BadArgument {
			t.Errorf("%+v: %v, %v", r, cred, err)
		}
	}
	if calls > 0 {
		t.Errorf("%d calls of the daemon", calls)
	}
}

func TestLifetimes(t *testing.T) {
	for _, tt := range []struct {
		d    time.Duration
		wire uint64
	}{
		{0, 0}, {-1, 0}, {1, 1}, {time.Second, 1}, {time.Second + 1, 2}, {24 * time.Hour, 86400}, {math.MaxInt64, 0xffffffff},
	} {
		if got := seconds(tt.d); got != tt.wire {
			t.Errorf("seconds(%v) = %d, want %d", tt.d, got, tt.wire)
		}
	}
	at := time.Now()
	for wire, want := range map[uint64]time.Time{0: at, 300: at.Add(5 * time.Minute), 0xfffffffe: at.Add(0xfffffffe * time.Second), 0xffffffff: Never, 1 << 63: Never} {
		if got := end(at, wire); !got.Equal(want) {
			t.Errorf("end(%d) = %v, want %v", wire, got, want)
		}
	}
	if text, err := json.Marshal(Never); err != nil {
		t.Errorf("%s, %v", text, err)
	}
}

// options lists options as they are on the wire.
func options(w []xdr.Option) []string {
	var list []string
	for _, o := range w {
		list = append(list, string(o.Option)+"="+string(o.Value))
	}
	return list
}

// vector is a pair of exported contexts that MIT krb5 made.
type vector struct {
	Name      string `json:"name"`
	Initiator string `json:"initiator_ctx"`
	Acceptor  string `json:"acceptor_ctx"`
}

func vectors(t testing.TB) []vector {
	t.Helper()
	text, err := os.ReadFile("../testdata/mit-context-vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var all []vector
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	return all
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// accepted has the fake daemon answer with an exported context.
func accepted(t *testing.T, exported string) *SecContext {
	t.Helper()
	token := unhex(t, exported)
	c := client(t, answer(t, xdr.ProcAcceptSecContext, func(arg *xdr.ArgAcceptSecContext) xdr.Message {
		if string(arg.InputToken) != "AP-REQ" || !arg.InputCB.Set || string(arg.InputCB.V.ApplicationData) != "tls" || !arg.RetDelegCred || arg.ContextHandle.Set {
			t.Errorf("arguments %+v", arg)
		}
		return &xdr.ResAcceptSecContext{
			ContextHandle: xdr.Some(xdr.Ctx{
				ExportedContextToken: token, Mech: []byte(mech.KRB5), Open: true, CtxFlags: uint64(mech.FlagMutual | mech.FlagConf), Lifetime: 300,
				SrcName: xdr.Name{DisplayName: []byte("alice@R")}, TargName: xdr.Name{DisplayName: []byte("HTTP/www@R")},
			}),
			OutputToken:         xdr.Some([]byte("AP-REP")),
			DelegatedCredHandle: xdr.Some(xdr.Cred{DesiredName: xdr.Name{DisplayName: []byte("alice@R")}, CredHandleReference: []byte("S3ALED")}),
		}
	}))
	before := time.Now()
	s, reply, err := c.AcceptSecContext(t.Context(), AcceptRequest{Token: []byte("AP-REQ"), Bindings: &ChannelBindings{AppData: []byte("tls")}, Delegate: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if string(reply) != "AP-REP" {
		t.Errorf("reply %q", reply)
	}
	if !s.Established() || s.Initiator() || s.Source().Display != "alice@R" || s.Target().Display != "HTTP/www@R" || s.Mech() != mech.KRB5 ||
		s.Flags() != mech.FlagMutual|mech.FlagConf {
		t.Errorf("%v: established %v, initiator %v, %v, flags %v", s, s.Established(), s.Initiator(), s.Mech(), s.Flags())
	}
	if e := s.Expires(); e.Before(before.Add(300*time.Second)) || e.After(time.Now().Add(300*time.Second)) {
		t.Errorf("expires %v", e)
	}
	return s
}

func TestMessages(t *testing.T) {
	for _, v := range vectors(t) {
		t.Run(v.Name, func(t *testing.T) {
			i, a := accepted(t, v.Initiator), accepted(t, v.Acceptor)
			for _, way := range []struct{ from, to *SecContext }{{i, a}, {a, i}} {
				for _, conf := range []bool{true, false} {
					token, err := way.from.Wrap(nil, []byte("message"), conf)
					if err != nil {
						t.Fatal(err)
					}
					msg, sealed, err := way.to.Unwrap(nil, token)
					if string(msg) != "message" || sealed != conf || err != nil {
						t.Errorf("%q, sealed %v, %v", msg, sealed, err)
					}
					msg, _, err = way.to.Unwrap(nil, token)
					repeated(t, err)
					if string(msg) != "message" {
						t.Errorf("the second time: %q", msg)
					}
					limit := way.from.WrapSizeLimit(conf, 1000)
					if token, err := way.from.Wrap(nil, make([]byte, limit), conf); err != nil || len(token) > 1000 || limit == 0 {
						t.Errorf("%d bytes wrapped are %d, %v", limit, len(token), err)
					} else if _, _, err := way.to.Unwrap(nil, token); err != nil {
						t.Error(err)
					}
				}
				mic, err := way.from.GetMIC(nil, []byte("message"))
				if err != nil {
					t.Fatal(err)
				}
				if err := way.to.VerifyMIC([]byte("message"), mic); err != nil {
					t.Errorf("MIC: %v", err)
				}
				repeated(t, way.to.VerifyMIC([]byte("message"), mic))
				var e *mech.Error
				if err := way.to.VerifyMIC([]byte("massage"), mic); !errors.As(err, &e) || e.Major != mech.BadSig {
					t.Errorf("MIC of another message: %v", err)
				}
			}
			x, err := i.PseudoRandom(false, []byte("seed"), 32)
			if err != nil {
				t.Fatal(err)
			}
			if y, err := a.PseudoRandom(false, []byte("seed"), 32); err != nil || string(x) != string(y) || len(x) != 32 {
				t.Errorf("%x, %x, %v", x, y, err)
			}

			// What has passed is remembered in an exported context.
			last, err := i.Wrap(nil, []byte("last"), true)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := a.Unwrap(nil, last); err != nil {
				t.Error(err)
			}
			exported, err := a.Export()
			if err != nil {
				t.Fatal(err)
			}
			_, _, err = accepted(t, hex.EncodeToString(exported)).Unwrap(nil, last)
			repeated(t, err)
		})
	}
}

// repeated checks that err says so.
func repeated(t *testing.T, err error) {
	t.Helper()
	var e *mech.Error
	if !errors.Is(err, reason.OutOfOrder) || !errors.As(err, &e) || e.Major != mech.DuplicateToken {
		t.Errorf("the second time: %v, want a duplicate", err)
	}
}

// Readers and writers of one connection share its context.
func TestConcurrentMessages(t *testing.T) {
	v := vectors(t)[0]
	i, a := accepted(t, v.Initiator), accepted(t, v.Acceptor)
	var wg sync.WaitGroup
	for _, way := range []struct{ from, to *SecContext }{{i, a}, {a, i}} {
		for range 4 {
			wg.Go(func() {
				for range 50 {
					token, err := way.from.Wrap(nil, []byte("m"), true)
					if err == nil {
						_, _, err = way.to.Unwrap(nil, token)
					}
					if err != nil && !errors.Is(err, reason.OutOfOrder) {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
}

func TestContextDoesNotPrint(t *testing.T) {
	s := accepted(t, vectors(t)[0].Acceptor)
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	want := "context of alice@R with HTTP/www@R"
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		if got := fmt.Sprintf(verb, s); got != want {
			t.Errorf("%s: %s", verb, got)
		}
	}
	if string(text) != `"`+want+`"` {
		t.Errorf("JSON: %s", text)
	}
}

func TestClosedContext(t *testing.T) {
	s := accepted(t, vectors(t)[0].Acceptor)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s.Established() || s.WrapSizeLimit(true, 1000) != 0 {
		t.Error("open")
	}
	useless(t, s)
}

// useless checks that a context takes neither messages nor tokens, and tells nothing.
func useless(t *testing.T, s *SecContext) {
	t.Helper()
	_, err1 := s.Wrap(nil, nil, true)
	_, _, err2 := s.Unwrap(nil, nil)
	_, err3 := s.GetMIC(nil, nil)
	err4 := s.VerifyMIC(nil, nil)
	_, err5 := s.PseudoRandom(true, nil, 1)
	_, err6 := s.Export()
	_, err7 := s.Peer()
	_, err8 := s.Step(t.Context(), []byte("x"))
	for n, err := range []error{err1, err2, err3, err4, err5, err6, err7, err8} {
		noContext(t, fmt.Sprintf("%v, method %d", s, n+1), err)
	}
}

func noContext(t *testing.T, what string, err error) {
	t.Helper()
	var e *mech.Error
	if !errors.As(err, &e) || e.Major != mech.NoContext || e.Reason != reason.BadContext {
		t.Errorf("%s: %v, want NO_CONTEXT", what, err)
	}
}

func TestRefusedAccept(t *testing.T) {
	c := client(t, answer(t, xdr.ProcAcceptSecContext, func(*xdr.ArgAcceptSecContext) xdr.Message {
		return &xdr.ResAcceptSecContext{
			Status:      xdr.Status{MajorStatus: uint64(mech.Failure), MinorStatus: 1, MinorStatusString: []byte("[clock-skew] Clock skew too great\x00")},
			OutputToken: xdr.Some([]byte("KRB-ERROR")),
		}
	}))
	s, _, err := c.AcceptSecContext(t.Context(), AcceptRequest{Token: []byte("x")})
	if s != nil {
		t.Errorf("%v", s)
	}
	var e *mech.Error
	if !errors.As(err, &e) || e.Reason != reason.ClockSkew || string(e.Token) != "KRB-ERROR" {
		t.Errorf("%#v", err)
	}
}

func TestBadContext(t *testing.T) {
	for name, h := range map[string]xdr.Opt[xdr.Ctx]{
		"absent":    {},
		"truncated": xdr.Some(xdr.Ctx{Open: true, ExportedContextToken: unhex(t, vectors(t)[0].Acceptor)[:100]}),
	} {
		c := client(t, answer(t, xdr.ProcAcceptSecContext, func(*xdr.ArgAcceptSecContext) xdr.Message {
			return &xdr.ResAcceptSecContext{ContextHandle: h}
		}))
		if s, _, err := c.AcceptSecContext(t.Context(), AcceptRequest{Token: []byte("x")}); err == nil || s != nil {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
}

// A credential without a handle is none, and not one that cannot be used.
func TestCredWithoutHandle(t *testing.T) {
	token := unhex(t, vectors(t)[0].Acceptor)
	nameOnly := xdr.Some(xdr.Cred{DesiredName: xdr.Name{DisplayName: []byte("alice@R")}})
	c := client(t, answer(t, xdr.ProcAcceptSecContext, func(*xdr.ArgAcceptSecContext) xdr.Message {
		return &xdr.ResAcceptSecContext{ContextHandle: xdr.Some(xdr.Ctx{ExportedContextToken: token, Open: true}), DelegatedCredHandle: nameOnly}
	}))
	s, _, err := c.AcceptSecContext(t.Context(), AcceptRequest{Token: []byte("AP-REQ"), Delegate: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if p, err := s.Peer(); err != nil || p.Delegated != nil {
		t.Errorf("%v, %v has delegated %v", p, err, p.Delegated)
	}
	c = client(t, answer(t, xdr.ProcAcquireCred, func(*xdr.ArgAcquireCred) xdr.Message {
		return &xdr.ResAcquireCred{OutputCredHandle: nameOnly}
	}))
	if cred, err := c.AcquireCred(t.Context(), AcquireRequest{Usage: Both}); err == nil {
		t.Errorf("acquired %v", cred)
	}
}

// The daemon keeps nothing, so everything travels with the context.
func TestInitSecContext(t *testing.T) {
	exported := unhex(t, vectors(t)[0].Initiator)
	name := xdr.Name{DisplayName: []byte("bob@R")}
	stale := "refuse_stale_handle\x00=yes\x00"
	leg := 0
	c := client(t, answer(t, xdr.ProcInitSecContext, func(arg *xdr.ArgInitSecContext) xdr.Message {
		leg++
		if string(arg.TargetName.V.DisplayName) != "HTTP@www" || mech.OID(arg.MechType) != mech.KRB5 || arg.ReqFlags != uint64(mech.FlagMutual) || arg.TimeReq != 60 ||
			string(arg.CredHandle.V.CredHandleReference) != "old" || !reflect.DeepEqual(options(arg.Options), []string{stale, "sync_modified_creds\x00=default\x00"}) {
			t.Errorf("leg %d: %+v", leg, arg)
		}
		if leg == 1 {
			if arg.ContextHandle.Set || arg.InputToken.Set {
				t.Errorf("leg 1: %+v", arg)
			}
			return &xdr.ResInitSecContext{
				Status:        xdr.Status{MajorStatus: uint64(mech.ContinueNeeded), MajorStatusString: []byte("go on\x00")},
				ContextHandle: xdr.Some(xdr.Ctx{ExportedContextToken: []byte("half"), State: []byte("state"), Mech: []byte(mech.KRB5), LocallyInitiated: true}),
				OutputToken:   xdr.Some([]byte("AP-REQ")),
			}
		}
		if string(arg.ContextHandle.V.State) != "state" || string(arg.ContextHandle.V.ExportedContextToken) != "half" || string(arg.InputToken.V) != "AP-REP" {
			t.Errorf("leg 2: %+v", arg)
		}
		cred := xdr.Cred{DesiredName: name, CredHandleReference: []byte("new"), Elements: []xdr.CredElement{{InitiatorTimeRec: 60}}}
		return &xdr.ResInitSecContext{
			ContextHandle: xdr.Some(xdr.Ctx{ExportedContextToken: exported, Mech: []byte(mech.KRB5), LocallyInitiated: true, Open: true, Lifetime: 0xffffffff}),
			Options:       []xdr.Option{{Option: []byte("sync_creds\x00"), Value: cred.Append(nil)}},
		}
	}))
	bob := &Cred{w: xdr.Cred{DesiredName: name, CredHandleReference: []byte("old")}}
	target := HostbasedName("HTTP", "www")
	s, token, err := c.InitSecContext(t.Context(), InitRequest{Target: target, Cred: bob, Flags: mech.FlagMutual, Lifetime: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	// The daemon has not said how long, and for whom: that is no reason to look expired or nameless.
	if s.Established() || !s.Initiator() || string(token) != "AP-REQ" || s.Cred() != bob || s.Expires() != Never || s.Target().Display != target.Display || s.Mech() != mech.KRB5 {
		t.Errorf("leg 1: %v, token %q, %v, expires %v", s, token, s.Cred(), s.Expires())
	}
	_, err = s.Peer()
	noContext(t, "half established", err)
	if token, err = s.Step(t.Context(), []byte("AP-REP")); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if !s.Established() || token != nil || s.Expires() != Never {
		t.Errorf("leg 2: %v, token %q, expires %v", s, token, s.Expires())
	}
	renewed := s.Cred()
	if string(renewed.w.CredHandleReference) != "new" || renewed.Elements()[0].InitiatorExpires.Before(time.Now()) {
		t.Errorf("renewed: %v, %+v", renewed, renewed.Elements())
	}
	_, err = s.Step(t.Context(), []byte("AP-REP"))
	noContext(t, "established", err)
	if !s.Established() {
		t.Error("a token too many has closed the context")
	}
}

func TestIndicateMechs(t *testing.T) {
	c := client(t, answer(t, xdr.ProcIndicateMechs, func(*xdr.ArgIndicateMechs) xdr.Message {
		return &xdr.ResIndicateMechs{Mechs: []xdr.MechInfo{{
			Mech: []byte(mech.KRB5), NameTypes: [][]byte{[]byte(mech.NTHostbased)}, SaslnameSaslMechName: []byte("GS2-KRB5"),
			SaslnameMechName: []byte("krb5"), SaslnameMechDesc: []byte("Kerberos\x00"),
		}}}
	}))
	got, err := c.IndicateMechs(t.Context())
	want := []Mech{{OID: mech.KRB5, NameTypes: []mech.OID{mech.NTHostbased}, Attributes: []mech.OID{}, SASLName: "GS2-KRB5", Name: "krb5", Description: "Kerberos"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
}
