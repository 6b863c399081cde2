package creds_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"
	"go.uber.org/goleak"

	"gssproxyd/limits"
	"gssproxyd/rpc"
	"gssproxyd/rpc/peer"
	"gssproxyd/xdr"
)

// refuser is something in a KDC's place, over TCP, that refuses everything with a code, or closes
// connections without a word.
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

// impatient is a daemon whose clock stands still unless it is moved, with one service that anybody
// may use to initiate as user@A.TEST, whose KDC is r.
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
	d.daemon = &daemon{t: t}
	d.writeKeys("first")
	start := time.Now()
	d.start(func() time.Time { return start.Add(time.Duration(d.ahead.Load())) })
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

// A KDC that refuses a keytab's key is not asked at every call: the account would be locked. It is
// asked again after a second, then after two, and at once when the key or krb5.conf is another one.
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
	if text := d.as(1000); !strings.Contains(text, "the KDC is asked again in 1s, and at once when the keytab has another key or the daemon is reloaded (call ") {
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

// A KDC that does not answer is asked once a second for each user, and the rest of the calls fail
// at once. When it is back the next second's call is answered.
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
	if text := d.as(1000); !strings.Contains(text, "Cannot contact any KDC for realm 'A.TEST': ") || !strings.Contains(text, "; the KDCs are asked again in 1s (call ") {
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
