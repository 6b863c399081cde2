package proc_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/nss"
	"gssproxyd/gssproxyd/proc"
	"gssproxyd/keytab/seal"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/rpc"
	"gssproxyd/rpc/rpctest"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

const captures = "../../testdata/kernel/"

// capture is one call of the kernel's, with the C daemon's reply and what was in them.
type capture struct {
	Request  string `json:"request_file"`
	Reply    string `json:"reply_file"`
	Proc     uint32
	Client   string
	Major    uint64
	Lucid    string
	Creds    string   `json:"linux_creds_v1"`
	Lifetime int64    `json:"lifetime"`
	End      int64    `json:"ticket_endtime"`
	AuthTime int64    `json:"auth_ctime"`
	Subkey   etype.ID `json:"aprep_subkey_etype"`
	dir      string
}

func capturesIn(t *testing.T, dir string) (list []capture) {
	t.Helper()
	b, err := os.ReadFile(captures + dir + "/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &list); err != nil || len(list) == 0 {
		t.Fatal(dir, err)
	}
	for i := range list {
		list[i].dir = captures + dir + "/"
	}
	return list
}

func (c *capture) bytes(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(c.dir + file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// now is when the C daemon answered.
func (c *capture) now() time.Time {
	if c.Lifetime != 0 {
		return time.Unix(c.End+300-c.Lifetime, 0)
	}
	return time.Unix(c.AuthTime, 0)
}

// people is a name service. A user whose channel is there is not answered before it is closed.
type people struct {
	users map[string]nss.Account
	slow  map[string]chan struct{}
	err   error
}

func (p *people) Account(ctx context.Context, name string) (nss.Account, error) {
	if wait := p.slow[name]; wait != nil {
		select {
		case <-wait:
		case <-ctx.Done():
			return nss.Account{}, ctx.Err()
		}
	}
	if p.err != nil {
		return nss.Account{}, p.err
	}
	a, ok := p.users[name]
	if !ok {
		return a, fmt.Errorf("user %q: %w", name, conf.ErrNoUser)
	}
	return a, nil
}

// server is the daemon as the kernel sees it.
type server struct {
	*proc.Procedures
	path string
	now  atomic.Int64
	log  *lab.LogBuffer
}

// serve serves the kernel with a keytab, more lines in the service, and a name service.
func serve(t *testing.T, keytab, lines string, accounts proc.Accounts) *server {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	k, err := krb5conf.Load([]string{write("krb5.conf", "[libdefaults]\ndefault_realm = NFSVM.TEST\n")})
	if err != nil {
		t.Fatal(err)
	}
	c, err := conf.Load(conf.Source{Users: conf.FixedUsers{"root": 0}, File: write("gssproxy.conf",
		"[service/nfs-server]\nmechs = krb5\neuid = 0\nallow_any_uid = yes\nkernel_nfsd = yes\n"+
			"cred_store = keytab:"+keytab+"\ncred_store = rcache:none:\ncred_usage = accept\n"+lines)})
	if err != nil {
		t.Fatal(err)
	}
	s := &server{log: new(lab.LogBuffer)}
	log := slog.New(slog.NewTextHandler(s.log, nil))
	s.Procedures = proc.New(proc.Options{
		Box: seal.New(), Users: conf.FixedUsers{}, Accounts: accounts, Log: log,
		Now: func() time.Time { return time.Unix(s.now.Load(), 0) },
	})
	if err := s.Load(c, k); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	short, err := os.MkdirTemp("", "nfs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(short) })
	s.path = filepath.Join(short, "s")
	rpctest.StartAt(t, s.path, &rpc.Server{
		Match: func(ctx context.Context, c *rpc.Conn, p uint32) (rpc.Service, bool) {
			if c.Socket != conf.SocketPath { // before calls run that read it
				c.Socket = conf.SocketPath
			}
			return s.Match(ctx, c, p)
		},
		Log: log,
	})
	return s
}

func (s *server) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", s.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	return c
}

func receive(t *testing.T, c net.Conn) []byte {
	t.Helper()
	head := make([]byte, 4)
	if _, err := io.ReadFull(c, head); err != nil {
		t.Fatal("no reply:", err)
	}
	b := make([]byte, 4+binary.BigEndian.Uint32(head)&^(1<<31))
	copy(b, head)
	if _, err := io.ReadFull(c, b[4:]); err != nil {
		t.Fatal("half a reply:", err)
	}
	return b
}

// ask sends one captured call as it was and returns the reply's record.
func (s *server) ask(t *testing.T, c *capture) []byte {
	t.Helper()
	s.now.Store(c.now().Unix())
	conn := s.dial(t)
	defer conn.Close()
	if _, err := conn.Write(c.bytes(t, c.Request)); err != nil {
		t.Fatal(err)
	}
	return receive(t, conn)
}

// result decodes a reply's record.
func result(t *testing.T, record []byte) (r xdr.ResAcceptSecContext) {
	t.Helper()
	if stat := binary.BigEndian.Uint32(record[24:]); stat != 0 {
		t.Fatalf("accept_stat %d", stat)
	}
	d := xdr.NewDecoder(record[28:])
	if r.Decode(d); d.Err() != nil || d.Remaining() != 0 {
		t.Fatalf("%v, %d bytes left", d.Err(), d.Remaining())
	}
	return r
}

// residents are the users of the captures, with what the kernel was told of them.
func residents(t *testing.T, list []capture) *people {
	p := &people{users: map[string]nss.Account{}}
	for _, c := range list {
		b, err := hex.DecodeString(c.Creds)
		name, _, _ := strings.Cut(c.Client, "@")
		if err != nil || len(b) < 12 || strings.Contains(name, "/") {
			continue
		}
		word := func(i int) uint32 { return binary.LittleEndian.Uint32(b[4*i:]) }
		a := nss.Account{Name: name, UID: word(0), GID: word(1)}
		for i := range int(word(2)) {
			a.Groups = append(a.Groups, word(3+i))
		}
		p.users[name] = a
	}
	if len(p.users) == 0 && strings.HasPrefix(list[0].dir, captures+"1") {
		t.Fatal("no users")
	}
	return p
}

var runs = []struct {
	dir, keytab string
	kernel      []etype.ID
}{
	{"1-accept-6.1", "server", nil},
	{"2-after-restart-6.1", "server", nil},
	{"3-wrong-key-6.1", "wrong", nil},
	{"4-no-keytab-6.1", "not-there", nil},
	{"5-aes256sha2-service-key-6.1", "server-run5", nil},
	{"6-aes256sha2-session-6.12", "server-run6", []etype.ID{20, 19, 18, 17}},
}

// Every captured call gets a reply of the same shape as the C daemon's: field by field the same,
// but for keys, numbers and ciphertexts that are new each time, and for texts.
func TestKernelReplay(t *testing.T) {
	for _, run := range runs {
		t.Run(run.dir, func(t *testing.T) {
			list := capturesIn(t, run.dir)
			s := serve(t, captures+"keys/"+run.keytab+".keytab", "", residents(t, list))
			if run.kernel != nil {
				s.SetKernelEnctypes(run.kernel)
			}
			for i := range list {
				c := &list[i]
				got, want := s.ask(t, c), c.bytes(t, c.Reply)
				if c.Proc == 0 {
					continue // C answers that there is no such procedure
				}
				if err := kernelDecode(got, run.kernel); err != nil && c.Major == 0 {
					t.Errorf("%s: the kernel would refuse it: %v", c.Request, err)
				}
				if err := kernelDecode(want, run.kernel); err != nil && c.Major == 0 {
					t.Fatalf("%s: the kernel took it: %v", c.Reply, err)
				}
				r, w := result(t, got), result(t, want)
				// A token's length varies with the size of numbers in DER.
				size := func(b []byte, x *xdr.ResAcceptSecContext) int {
					return len(b) - (len(x.OutputToken.V)+3)&^3
				}
				if g, w := size(got, &r), size(want, &w); c.Major == 0 && g != w {
					t.Errorf("%s: without the token the reply has %d bytes, C's %d", c.Request, g, w)
				}
				for _, x := range []*xdr.ResAcceptSecContext{&r, &w} {
					if frame := x.OutputToken.V; len(frame) > 20 {
						// The framing; its lengths vary with the size of numbers in DER.
						frame[2], frame[18] = 0, 0
						x.OutputToken.V = frame[:20]
					}
					if b := x.ContextHandle.V.ExportedContextToken; len(b) > 20 {
						if n := binary.NativeEndian.Uint64(b[8:]); n == 0 || n >= 1<<30 {
							t.Errorf("sequence number %d", n)
						}
						clear(b[8:16])
						clear(b[20:])
					}
					if x.Status.MajorStatus != 0 {
						for _, text := range []*[]byte{&x.Status.MajorStatusString, &x.Status.MinorStatusString} {
							if n := len(*text); n < 2 || n > 1024 || (*text)[n-1] != 0 {
								t.Errorf("%s: text %q", c.Request, *text)
							}
							*text = nil
						}
						x.Status.Mech = nil // empty in C's failures, krb5 in ours
					}
				}
				if d := cmp.Diff(w, r, cmpopts.EquateEmpty()); d != "" {
					t.Errorf("%s (-C +ours):\n%s", c.Request, d)
				}
			}
		})
	}
}

// One mount that fails does not fill the log: the kernel asks eighteen times, and a handful of
// lines says why.
func TestKernelFailedMountInLog(t *testing.T) {
	for dir, keytab := range map[string]string{"3-wrong-key-6.1": "wrong", "4-no-keytab-6.1": "not-there"} {
		t.Run(dir, func(t *testing.T) {
			list := capturesIn(t, dir)
			s := serve(t, captures+"keys/"+keytab+".keytab", "", nil)
			refused := 0
			for i := range list {
				if list[i].Proc != 0 {
					s.ask(t, &list[i])
					refused++
				}
			}
			if n := strings.Count(s.log.String(), "msg=refused"); refused != 18 || n < 1 || n > 5 {
				t.Errorf("%d refusals have %d lines in the log:\n%s", refused, n, s.log)
			}
		})
	}
}

// kernelDecode reads a reply's record as net/sunrpc/auth_gss/gss_rpc_xdr.c and gss_krb5_mech.c do,
// with their limits, and says why a COMPLETE result would be refused.
func kernelDecode(record []byte, enctypes []etype.ID) error {
	if enctypes == nil {
		enctypes = []etype.ID{18, 17}
	}
	var err error
	fail := func(format string, args ...any) {
		if err == nil {
			err = fmt.Errorf(format, args...)
		}
	}
	d := xdr.NewDecoder(record[28:])
	buffer := func(what string, limit int) []byte {
		b := d.Opaque()
		if len(b) > limit {
			fail("%s has %d bytes, there is room for %d", what, len(b), limit)
		}
		return b
	}
	skip := func(what string) { buffer(what, 4096) } // as much as fits into the scratch page
	if major := d.Uint64(); major != 0 {
		fail("major status %#x", major)
	}
	buffer("status mech", 4096)
	d.Uint64()
	skip("major string")
	skip("minor string")
	skip("server_ctx")
	if d.Uint32() != 0 {
		fail("options in the status")
	}
	if !d.Bool() {
		return errors.New("no context")
	}
	lucid := buffer("context", 128)
	skip("state")
	d.Uint32()
	if oid := buffer("mech", 32); string(oid) != "\x2a\x86\x48\x86\xf7\x12\x01\x02\x02" {
		fail("mech %x", oid)
	}
	for range 2 {
		if name := buffer("display name", 256); bytes.IndexByte(name, 0) >= 0 {
			fail("NUL in %q", name)
		}
		skip("name type")
		skip("exported name")
		if len(buffer("composite name", 4096)) > 0 {
			fail("composite name")
		}
		if attributes, extensions := d.Uint32(), d.Uint32(); attributes != 0 || extensions != 0 {
			fail("attributes or extensions")
		}
	}
	d.Uint64()
	d.Uint64()
	d.Uint32()
	d.Uint32()
	if d.Uint32() != 0 {
		fail("options in the context")
	}
	if !d.Bool() {
		return errors.New("PANIC: no output token")
	}
	buffer("output token", 1024)
	if d.Bool() {
		fail("delegated credential")
	}
	creds := 0
	for range d.Count(8) {
		if name := d.Opaque(); string(name) != "linux_creds_v1\x00" {
			d.Opaque()
			continue
		}
		creds++
		b := d.Opaque()
		if len(b) < 12 || len(b) > 4*(3+65536) || len(b) != int(4*(3+binary.NativeEndian.Uint32(b[8:]))) {
			return fmt.Errorf("credentials %x", b)
		}
		for i := 12; i < len(b); i += 4 {
			if binary.NativeEndian.Uint32(b[i:]) == 1<<32-1 {
				fail("a group is none")
			}
		}
	}
	if creds != 1 {
		fail("%d times linux_creds_v1", creds)
	}
	if d.Err() != nil {
		fail("%v", d.Err())
	}
	if len(record)-4 > 2048+64*4096 {
		fail("%d bytes", len(record))
	}
	if err != nil {
		return err
	}
	host := binary.NativeEndian
	et := etype.ID(0)
	if len(lucid) > 20 {
		et = etype.ID(host.Uint32(lucid[16:]))
	}
	if !slices.Contains(enctypes, et) || len(lucid) != 20+et.KeySize() {
		return fmt.Errorf("context of %d bytes, enctype %d", len(lucid), et)
	}
	if flags := host.Uint32(lucid); flags&^7 != 0 || flags&1 != 0 || flags&2 == 0 {
		return fmt.Errorf("flags %x", flags)
	}
	if host.Uint64(lucid[8:]) >= 1<<31 {
		return errors.New("sequence number")
	}
	return nil
}

// accept asks for alice's context, or for the machine's.
func accept(t *testing.T, s *server, client string) xdr.ResAcceptSecContext {
	t.Helper()
	list := capturesIn(t, "1-accept-6.1")
	i := slices.IndexFunc(list, func(c capture) bool { return strings.HasPrefix(c.Client, client) })
	record := s.ask(t, &list[i])
	r := result(t, record)
	if r.Status.MajorStatus == 0 {
		if err := kernelDecode(record, nil); err != nil {
			t.Error("the kernel would refuse it:", err)
		}
	}
	return r
}

// wantCreds compares who the kernel is told the initiator is.
func wantCreds(t *testing.T, r *xdr.ResAcceptSecContext, want ...uint32) {
	t.Helper()
	if r.Status.MajorStatus != 0 {
		t.Fatalf("refused: %s", r.Status.MinorStatusString)
	}
	var b []byte
	for _, w := range want {
		b = binary.NativeEndian.AppendUint32(b, w)
	}
	if len(r.Options) != 1 || !bytes.Equal(r.Options[0].Value, b) {
		t.Errorf("options %x, want %x", r.Options, b)
	}
}

// wantRefused wants a refusal for a reason, with nothing else in it.
func wantRefused(t *testing.T, s *server, r *xdr.ResAcceptSecContext, reason string) {
	t.Helper()
	if r.Status.MajorStatus == 0 || !strings.HasPrefix(string(r.Status.MinorStatusString), "["+reason+"] ") {
		t.Errorf("status %#x %q, want %s", r.Status.MajorStatus, r.Status.MinorStatusString, reason)
	}
	if r.ContextHandle.Set || r.OutputToken.Set || r.DelegatedCredHandle.Set || len(r.Options) > 0 {
		t.Error("a refusal has results")
	}
	if !strings.Contains(s.log.String(), "reason="+reason) {
		t.Errorf("the log does not have the reason:\n%s", s.log)
	}
}

const none = 1<<32 - 1

func TestKernelUsers(t *testing.T) {
	many := make([]uint32, 1501)
	for i := range many {
		many[i] = 5000 + uint32(rand.IntN(1e6))
	}
	users := map[string]nss.Account{
		"alice": {Name: "alice", UID: 1000, GID: 1000, Groups: []uint32{1000, 2000, 2001}},
		"root":  {Name: "root", Groups: []uint32{0}},
		"guest": {Name: "guest", UID: 99, GID: 98, Groups: []uint32{98}},
		"many":  {Name: "many", UID: 7, GID: many[0], Groups: many},
		"crowd": {Name: "crowd", UID: 8, GID: 9, Groups: make([]uint32, 65001)},
		"limit": {Name: "limit", UID: 8, GID: 9, Groups: make([]uint32, 65000)},
	}
	const alice, host = "alice@NFSVM.TEST", "host/nfs-vm.nfsvm.test@NFSVM.TEST"
	for _, test := range []struct {
		name, lines, client string
		want                []uint32
		reason              string // refused, or in the log
		err                 error  // of the name service
	}{
		{"a user", "", alice, []uint32{1000, 1000, 3, 1000, 2000, 2001}, "", nil},
		{"a machine is nobody", "", host, []uint32{none, none, 0}, "no-local-name", nil},
		{"a machine by map", "principal_map = " + host + ":root\n", host, []uint32{0, 0, 1, 0}, "", nil},
		{"the map comes first", "principal_map = " + alice + ":guest\n", alice, []uint32{99, 98, 1, 98}, "", nil},
		{"the map is for others", "principal_map = bob@NFSVM.TEST:guest\nprincipal_map = alice@OTHER.TEST:guest\n", alice, []uint32{1000, 1000, 3, 1000, 2000, 2001}, "", nil},
		{"the map names nobody we know", "principal_map = " + alice + ":ghost\n", alice, []uint32{none, none, 0}, "unknown-user", nil},
		{"unmapped is somebody", "unmapped_user = guest\n", host, []uint32{99, 98, 1, 98}, "", nil},
		{"unmapped is somebody, not for users", "unmapped_user = guest\n", alice, []uint32{1000, 1000, 3, 1000, 2000, 2001}, "", nil},
		{"unmapped is a ghost", "unmapped_user = ghost\n", host, []uint32{none, none, 0}, "user-lookup-failed", nil},
		{"unmapped is refused", "unmapped_user = refuse\n", host, nil, "no-local-name", nil},
		{"unknown is refused", "unmapped_user = refuse\nprincipal_map = " + alice + ":ghost\n", alice, nil, "unknown-user", nil},
		{"no answer", "", alice, []uint32{none, none, 0}, "user-lookup-failed", errors.New("getent passwd gave no answer within 4s")},
		{"no answer, for whom it does not matter", "", host, []uint32{none, none, 0}, "no-local-name", errors.New("getent passwd gave no answer within 4s")},
		{"no answer is refused", "unmapped_user = refuse\n", alice, nil, "user-lookup-failed", errors.New("getent passwd gave no answer within 4s")},
		{"no answer does not make a guest", "unmapped_user = guest\n", alice, []uint32{none, none, 0}, "user-lookup-failed", errors.New("getent passwd gave no answer within 4s")},
		{"1,501 groups", "principal_map = " + alice + ":many\n", alice, append([]uint32{7, many[0], 1501}, many...), "", nil},
		{"as many groups as fit", "principal_map = " + alice + ":limit\n", alice, append([]uint32{8, 9, 65000}, make([]uint32, 65000)...), "", nil},
		{"more groups than the kernel takes", "principal_map = " + alice + ":crowd\n", alice, []uint32{none, none, 0}, "user-lookup-failed", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := serve(t, captures+"keys/server.keytab", test.lines, &people{users: users, err: test.err})
			r := accept(t, s, test.client)
			if test.want == nil {
				wantRefused(t, s, &r, test.reason)
				return
			}
			wantCreds(t, &r, test.want...)
			// Who is nobody because nobody answered is not so for long.
			end := int64(binary.NativeEndian.Uint32(r.ContextHandle.V.ExportedContextToken[4:])) - s.now.Load()
			if brief := test.reason == "user-lookup-failed"; brief && end != 60 || !brief && end < 3600 {
				t.Errorf("the context lives for %d s", end)
			}
			if log := s.log.String(); test.reason != "" && !strings.Contains(log, "reason="+test.reason) || test.reason == "" && strings.Contains(log, "reason=") {
				t.Errorf("log:\n%s", log)
			}
		})
	}
	t.Run("no name service", func(t *testing.T) {
		s := serve(t, captures+"keys/server.keytab", "", nil)
		r := accept(t, s, alice)
		wantCreds(t, &r, none, none, 0)
	})
}

// A user whose look-up takes its time keeps nobody else waiting, although the kernel has one
// connection for all.
func TestKernelSlowUser(t *testing.T) {
	list := capturesIn(t, "1-accept-6.1")
	p := residents(t, list)
	answer := make(chan struct{})
	p.slow = map[string]chan struct{}{"alice": answer}
	s := serve(t, captures+"keys/server.keytab", "", p)
	s.now.Store(list[1].now().Unix())
	conn := s.dial(t)
	send := func(client string) uint32 {
		i := slices.IndexFunc(list, func(c capture) bool { return strings.HasPrefix(c.Client, client) })
		b := list[i].bytes(t, list[i].Request)
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
		return binary.BigEndian.Uint32(b[4:])
	}
	var alices []uint32
	for range 10 {
		alices = append(alices, send("alice"))
	}
	for _, other := range []string{"bob", "host", "bob"} {
		if want, got := send(other), binary.BigEndian.Uint32(receive(t, conn)[4:]); got != want {
			t.Errorf("%s waits: the answer is to %x", other, got)
		}
	}
	close(answer)
	for range alices {
		b := receive(t, conn)
		if xid := binary.BigEndian.Uint32(b[4:]); !slices.Contains(alices, xid) {
			t.Errorf("xid %x", xid)
		}
		r := result(t, b)
		wantCreds(t, &r, 1000, 1000, 3, 1000, 2000, 2001)
	}
}

// What the two options ask for, each for itself, and what they must be.
func TestKernelOptions(t *testing.T) {
	list := capturesIn(t, "1-accept-6.1")
	i := slices.IndexFunc(list, func(c capture) bool { return strings.HasPrefix(c.Client, "alice") })
	s := serve(t, captures+"keys/server.keytab", "", residents(t, list))
	lucid, creds := xdr.Option{Option: []byte("exported_context_type\x00"), Value: []byte("linux_lucid_v1\x00")}, xdr.Option{Option: []byte("exported_creds_type\x00"), Value: []byte("linux_creds_v1\x00")}
	ask := func(change func(*xdr.ArgAcceptSecContext)) xdr.ResAcceptSecContext {
		t.Helper()
		record := list[i].bytes(t, list[i].Request)
		d := xdr.NewDecoder(record[44:])
		var args xdr.ArgAcceptSecContext
		if args.Decode(d); d.Err() != nil {
			t.Fatal(d.Err())
		}
		change(&args)
		b := args.Append(slices.Clone(record[:44]))
		binary.BigEndian.PutUint32(b, 1<<31|uint32(len(b)-4))
		s.now.Store(list[i].now().Unix())
		conn := s.dial(t)
		defer conn.Close()
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
		return result(t, receive(t, conn))
	}

	r := ask(func(a *xdr.ArgAcceptSecContext) { a.CallCtx.Options = []xdr.Option{lucid} })
	if n := len(r.ContextHandle.V.ExportedContextToken); r.Status.MajorStatus != 0 || n != 52 || len(r.Options) != 0 {
		t.Errorf("context alone: %d bytes, options %v", n, r.Options)
	}
	r = ask(func(a *xdr.ArgAcceptSecContext) { a.CallCtx.Options = []xdr.Option{creds} })
	if n := len(r.ContextHandle.V.ExportedContextToken); r.Status.MajorStatus != 0 || n < 500 || len(r.ContextHandle.V.SrcName.ExportedCompositeName) == 0 {
		t.Errorf("credentials alone: %d bytes", n)
	}
	wantCreds(t, &r, 1000, 1000, 3, 1000, 2000, 2001)
	r = ask(func(a *xdr.ArgAcceptSecContext) { a.CallCtx.Options = nil })
	if len(r.Options) != 0 || len(r.ContextHandle.V.ExportedContextToken) < 500 {
		t.Error("without options it is not as usual")
	}
	r = ask(func(a *xdr.ArgAcceptSecContext) { a.CallCtx.Options = []xdr.Option{creds, lucid, creds, lucid} })
	wantCreds(t, &r, 1000, 1000, 3, 1000, 2000, 2001) // once
	for _, o := range []xdr.Option{lucid, creds} {
		for _, value := range []string{"", "linux_lucid_v2\x00", "linux_lucid_v1"} {
			r = ask(func(a *xdr.ArgAcceptSecContext) {
				a.CallCtx.Options = []xdr.Option{{Option: o.Option, Value: []byte(value)}}
			})
			if r.Status.MajorStatus != 0x000d0000 || r.Status.MinorStatus != 22 || r.ContextHandle.Set {
				t.Errorf("%q = %q: %#x %d", o.Option, value, r.Status.MajorStatus, r.Status.MinorStatus)
			}
		}
	}
	// Whatever else a caller of this kind asks for: no delegated credential, no context to go on
	// with.
	r = ask(func(a *xdr.ArgAcceptSecContext) {
		a.RetDelegCred = true
		a.ContextHandle = xdr.Some(xdr.Ctx{ExportedContextToken: []byte("none of ours")})
	})
	if r.Status.MajorStatus != 0 || r.DelegatedCredHandle.Set {
		t.Errorf("status %#x", r.Status.MajorStatus)
	}
	// A failure's token is of no use to the kernel.
	r = ask(func(a *xdr.ArgAcceptSecContext) { a.InputToken[len(a.InputToken)-1] ^= 1 })
	wantRefused(t, s, &r, "bad-integrity")
	// A kernel that knows nothing we have.
	s.SetKernelEnctypes([]etype.ID{26})
	r = ask(func(*xdr.ArgAcceptSecContext) {})
	wantRefused(t, s, &r, "context-enctype")
	s.SetKernelEnctypes([]etype.ID{17, 20})
	r = ask(func(*xdr.ArgAcceptSecContext) {})
	if b := r.ContextHandle.V.ExportedContextToken; r.Status.MajorStatus != 0 || len(b) != 36 && len(b) != 52 {
		t.Errorf("context of %d bytes", len(b))
	} else if et := binary.NativeEndian.Uint32(b[16:]); et != 17 && et != 20 {
		t.Errorf("enctype %d", et)
	}
	s.SetKernelEnctypes(nil)
	if r = ask(func(*xdr.ArgAcceptSecContext) {}); len(r.ContextHandle.V.ExportedContextToken) != 52 {
		t.Error("the default is not in force again")
	}
}

// The kernel repeats what failed; the log does not.
func TestKernelRefusalsAreFewInTheLog(t *testing.T) {
	list := capturesIn(t, "3-wrong-key-6.1")
	s := serve(t, captures+"keys/wrong.keytab", "", nil)
	s.now.Store(list[1].now().Unix())
	conn := s.dial(t)
	const calls = 300
	for range calls {
		if _, err := conn.Write(list[1].bytes(t, list[1].Request)); err != nil {
			t.Fatal(err)
		}
		r := result(t, receive(t, conn))
		if r.Status.MajorStatus == 0 {
			t.Fatal("accepted")
		}
	}
	if n := strings.Count(s.log.String(), "reason=bad-integrity"); n == 0 || n > 30 {
		t.Errorf("%d calls, %d lines", calls, n)
	}
}

func TestKernelPrincipalMapIsWrong(t *testing.T) {
	for _, principal := range []string{`a\@NFSVM.TEST`, `a\0@NFSVM.TEST`} {
		t.Run(principal, func(t *testing.T) { testPrincipalMapIsWrong(t, principal) })
	}
}

func testPrincipalMapIsWrong(t *testing.T, principal string) {
	dir := t.TempDir()
	path := filepath.Join(dir, "c")
	if err := os.WriteFile(path, []byte("[service/a]\nmechs = krb5\neuid = 0\ncred_store = rcache:none:\nprincipal_map = "+principal+":root\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := conf.Load(conf.Source{Users: conf.FixedUsers{"root": 0}, File: path})
	if err != nil {
		t.Fatal(err)
	}
	k, err := krb5conf.Load([]string{filepath.Join(dir, "none")})
	if err != nil {
		t.Fatal(err)
	}
	p := proc.New(proc.Options{Box: seal.New(), Users: conf.FixedUsers{}, Log: slog.New(slog.DiscardHandler)})
	defer p.Close()
	if err := p.Load(c, k); err == nil || !strings.Contains(err.Error(), "principal_map") {
		t.Errorf("loaded: %v", err)
	}
}
