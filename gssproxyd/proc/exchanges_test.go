package proc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"
	"go.uber.org/goleak"

	"gssproxyd/conf"
	"gssproxyd/keytab/seal"
	"gssproxyd/limits"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc"
	"gssproxyd/rpc/peer"
	"gssproxyd/xdr"
)

// refuser is something in a KDC's place, over TCP, that refuses everything with a code, or closes connections without a
// word.
type refuser struct {
	port  int
	asked atomic.Int32
	code  atomic.Int32 // 0: no answer
}

func newRefuser(t *testing.T) *refuser {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	r := &refuser{port: l.Addr().(*net.TCPAddr).Port}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			r.asked.Add(1)
			var head [4]byte
			if code := r.code.Load(); code != 0 {
				io.ReadFull(conn, head[:])
				e := messages.NewKRBError(types.PrincipalName{NameType: 2, NameString: []string{"krbtgt", "A.TEST"}}, "A.TEST", code, "")
				b, _ := e.Marshal()
				conn.Write(append([]byte{0, 0, byte(len(b) >> 8), byte(len(b))}, b...))
				io.Copy(io.Discard, conn) // until it has been read
			}
			conn.Close()
		}
	})
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	return r
}

// impatient is a daemon whose clock stands still unless it is moved, with one service that anybody may use to initiate as
// user@A.TEST, whose KDC is r.
type impatient struct {
	direct
	keys string // its keytab
	load func()
}

func newImpatient(t *testing.T, r *refuser) *impatient {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	dir := t.TempDir()
	krb5Conf := filepath.Join(dir, "krb5.conf")
	must(t, os.WriteFile(krb5Conf, fmt.Appendf(nil, "[libdefaults]\ndefault_realm = A.TEST\nudp_preference_limit = 1\n[realms]\nA.TEST = {\nkdc = 127.0.0.1:%d\n}\n", r.port), 0o600))
	d := &impatient{keys: filepath.Join(dir, "keytab")}
	d.t = t
	d.writeKeys("first")
	start := time.Now()
	d.Procedures = New(Options{
		Box: seal.New(), Users: conf.FixedUsers{"root": 0}, Log: slog.New(slog.DiscardHandler),
		Now: func() time.Time { return start.Add(time.Duration(d.ahead.Load())) },
	})
	t.Cleanup(d.Close)
	d.load = func() {
		d.direct.load(krb5Conf, map[string]string{"svc": "allow_any_uid = yes\ncred_usage = initiate\ncred_store = client_keytab:" + d.keys})
	}
	d.load()
	return d
}

// writeKeys makes a keytab with a version of the key for each password.
func (d *impatient) writeKeys(passwords ...string) {
	kt := keytab.New()
	for i, password := range passwords {
		must(d.t, kt.AddEntry("user", "A.TEST", password, time.Unix(1e9, 0), uint8(i+1), 18))
	}
	b, err := kt.Marshal()
	must(d.t, err)
	must(d.t, os.WriteFile(d.keys+".new", b, 0o600))
	must(d.t, os.Rename(d.keys+".new", d.keys))
}

// as acquires a credential for a uid and returns why that fails.
func (d *impatient) as(uid uint32) string {
	d.t.Helper()
	arg := xdr.ArgAcquireCred{CredUsage: xdr.CredInitiate}
	r := &rpc.Call{Conn: &rpc.Conn{Peer: &peer.Info{UID: uid}}, Proc: uint32(xdr.ProcAcquireCred), Args: arg.Append(nil)}
	reply, stat := d.of("svc").Handle(limits.WithPayer(d.t.Context(), r.Conn.Peer.UID), r, nil)
	if stat != rpc.Success {
		d.t.Fatal(stat)
	}
	var res xdr.ResAcquireCred
	res.Decode(xdr.NewDecoder(reply))
	if res.Status.MajorStatus == 0 {
		d.t.Fatal("there is a credential")
	}
	return strings.TrimRight(string(res.Status.MinorStatusString), "\x00")
}

// A KDC that refuses a keytab's key is not asked at every call: the account would be locked. It is asked again after a
// second, then after two, and at once when the key or krb5.conf is another one.
func TestRefusingKDC(t *testing.T) {
	kdc := newRefuser(t)
	kdc.code.Store(24)
	d := newImpatient(t, kdc)
	crowd := func(want int32) {
		t.Helper()
		kdc.asked.Store(0)
		for range 20 {
			var calling sync.WaitGroup
			for uid := range uint32(10) {
				calling.Go(func() {
					if text := d.as(1000 + uid); !strings.HasPrefix(text, "[preauth-failed] ") {
						t.Errorf("refused with %q", text)
					}
				})
			}
			calling.Wait()
		}
		if n := kdc.asked.Load(); n != want {
			t.Errorf("200 calls of ten users ask the KDC %d times, want %d", n, want)
		}
	}
	crowd(1)
	if text := d.as(1000); !strings.HasSuffix(text, "the KDC is asked again in 1s, and at once when the keytab has another key or the daemon is reloaded") {
		t.Errorf("refused with %q", text)
	}
	crowd(0)
	for pause := time.Second; pause <= 4*time.Second; pause *= 2 {
		d.ahead.Add(int64(pause))
		crowd(1)
	}
	d.writeKeys("first", "second")
	crowd(1)
	d.load()
	crowd(1)
}

// A KDC that does not answer is asked once a second for each user, and the rest of the calls fail at once. When it is back
// the next second's call is answered.
func TestDeadKDC(t *testing.T) {
	kdc := newRefuser(t)
	d := newImpatient(t, kdc)
	crowd := func(uid uint32, want int32) {
		t.Helper()
		kdc.asked.Store(0)
		for range 100 {
			if text := d.as(uid); !strings.HasPrefix(text, "[kdc-unreachable] ") {
				t.Errorf("refused with %q", text)
			}
		}
		if n := kdc.asked.Load(); n != want {
			t.Errorf("100 calls of uid %d ask the KDC %d times, want %d", uid, n, want)
		}
	}
	crowd(1000, 1)
	if text := d.as(1000); !strings.Contains(text, "Cannot contact any KDC for realm 'A.TEST': ") || !strings.HasSuffix(text, "; the KDCs are asked again in 1s") {
		t.Errorf("refused with %q", text)
	}
	crowd(1001, 1) // who does not suffer from what the other one asks
	d.ahead.Add(int64(time.Second))
	crowd(1000, 1)
	kdc.code.Store(6)
	if text := d.as(1000); !strings.HasPrefix(text, "[kdc-unreachable] ") {
		t.Errorf("within the second: %q", text)
	}
	d.ahead.Add(int64(time.Second))
	if text := d.as(1000); !strings.HasPrefix(text, "[client-unknown] ") {
		t.Errorf("when the KDC is back: %q", text)
	}
}

// Sockets and requests are charged to who pays for the exchange, and others get theirs.
func TestExchangesArePaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := limits.New(16)
		all.Reserve(33)
		e := newExchanges(limits.NewGate(all.Exchanges, requestsAtOnce, requestEvery, requestPatience), time.Now)
		as := func(uid uint32) context.Context { return limits.WithPayer(t.Context(), uid) }
		var closing []func()
		for {
			closed, err := e.Socket(as(1000))
			if err != nil {
				if err.Reason != reason.OverLimit {
					t.Errorf("refused with %v", err)
				}
				break
			}
			closing = append(closing, closed)
		}
		if n := all.Exchanges.Held(1000); n != len(closing) || n > 128 {
			t.Errorf("uid 1000 has %d sockets", n)
		}
		for _, uid := range []uint32{0, 33, 1001} {
			closed, err := e.Socket(as(uid))
			if err != nil {
				t.Fatalf("uid %d: %v", uid, err)
			}
			closed()
		}
		for _, closed := range closing {
			closed()
		}
		if n := all.Exchanges.Held(1000); n != 0 {
			t.Errorf("uid 1000 has %d sockets still", n)
		}

		start, n := time.Now(), 0
		for ; time.Since(start) < 10*time.Second; n++ {
			if err := e.Turn(as(1000), 1); err != nil {
				t.Fatal(err)
			}
		}
		if want := requestsAtOnce + int(10*time.Second/requestEvery); n > want+1 {
			t.Errorf("%d requests in ten seconds, want %d", n, want)
		}
		start = time.Now()
		if err := e.Turn(as(1001), 2); err != nil || time.Since(start) != 0 {
			t.Errorf("another user waits for %v: %v", time.Since(start), err)
		}
		for i := range 2 * maxOutages {
			if came, err := e.Request(as(0), fmt.Sprint("REALM", i)); err == nil {
				came(&mech.Error{Text: "none"})
			}
		}
		if len(e.dead) > maxOutages {
			t.Errorf("%d outages are remembered", len(e.dead))
		}
	})
}

// Who begins an exchange pays for it, when it goes on without him too.
func TestLoginsArePaid(t *testing.T) {
	l := newLogins()
	defer l.close()
	paid := make(chan uint32)
	gone, leave := context.WithCancel(limits.WithPayer(t.Context(), 7))
	left := make(chan struct{})
	go func() {
		defer close(left)
		l.do(gone, "alice", func(ctx context.Context) (*krb5.Credential, error) {
			<-left
			paid <- limits.Payer(ctx)
			return nil, errors.New("refused")
		})
	}()
	leave()
	if uid := <-paid; uid != 7 {
		t.Errorf("uid %d pays", uid)
	}
}
