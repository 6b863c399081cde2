package mechglue

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/ccache"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// wrapped are the functions whose calls by the plugin csrc/plugin.c can let fail, or take their time.
var wrapped = []string{"malloc", "calloc", "strdup", "asprintf", "vasprintf", "gss_create_empty_oid_set",
	"gss_add_oid_set_member", "gss_import_name", "gss_canonicalize_name", "gss_import_sec_context", "krb5_init_context",
	"krb5_cc_resolve", "socket", "open", "clock_gettime"}

// loaded builds the plugin and csrc/plugin.c, with a sanitizer, and returns the directory of both.
func loaded(tb testing.TB, sanitizer string) string {
	tb.Helper()
	if _, err := exec.LookPath("gcc"); err != nil {
		lab.Lacking(tb, "gcc", err)
	}
	sources, err := filepath.Glob(plugin + "*.[ch]")
	if err != nil {
		tb.Fatal(err)
	}
	// The go command keeps a test's result until a file changes that the test itself has looked at.
	for _, f := range append(sources, "csrc/plugin.c", "../../Makefile") {
		if _, err := os.Stat(f); err != nil {
			tb.Fatal(err)
		}
	}
	dir := tb.TempDir()
	flags := "-fsanitize=" + sanitizer + " -fno-sanitize-recover=all -U_FORTIFY_SOURCE -Wl,-z,undefs"
	for _, f := range wrapped {
		flags += " -Wl,--wrap=" + f
	}
	build := exec.Command("make", "-C", "../..", "plugin", "MECH_OUT="+filepath.Join(dir, "plugin.so"), "MECH_CFLAGS="+flags)
	text, err := build.CombinedOutput()
	if err != nil {
		tb.Fatalf("make plugin: %v\n%s", err, text)
	}
	if made := filepath.Join(dir, "plugin.so"); !bytes.Contains(text, []byte(made)) {
		tb.Fatalf("make plugin does not say that it made %s:\n%s", made, text)
	}
	build = exec.Command("gcc", "-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-rdynamic", "-fsanitize="+sanitizer,
		"-fno-sanitize-recover=all", "-o", filepath.Join(dir, "program"), "csrc/plugin.c", "-lgssapi_krb5", "-lkrb5", "-pthread")
	if text, err := build.CombinedOutput(); err != nil || len(text) > 0 {
		tb.Fatalf("gcc: %v\n%s", err, text)
	}
	mech := "gssproxyd 2.16.840.1.113730.3.8.15.1 " + filepath.Join(dir, "plugin.so") + " <interposer>\n"
	conf := "[libdefaults]\ndefault_realm = EXAMPLE.TEST\ndns_canonicalize_hostname = false\nrdns = false\n"
	// What libkrb5 leaks: when a plugin is loaded for ever, and when a context's token is wrong.
	leaks := "leak:krb5int_open_plugin\nleak:gss_import_sec_context\n"
	for name, text := range map[string]string{"mech": mech, "krb5.conf": conf, "leaks": leaks} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			tb.Fatal(err)
		}
	}
	return dir
}

const half = xdr.Proc(1000) // in answers, what is said to the first token of two

// answers are what a daemon said to each procedure that the plugin calls, without the RPC header.
var answers = sync.OnceValues(func() (map[xdr.Proc][]byte, error) {
	all := map[xdr.Proc][]byte{}
	text, err := os.ReadFile("../../testdata/captures/plugin-calls.jsonl")
	for line := range bytes.Lines(text) {
		var l struct{ Call, Reply string }
		if err := json.Unmarshal(line, &l); err != nil {
			return nil, err
		}
		call, err1 := hex.DecodeString(l.Call)
		reply, err2 := hex.DecodeString(l.Reply)
		if err1 != nil || err2 != nil || len(call) < 28 || len(reply) < 36 {
			continue // a mark
		}
		p := xdr.Proc(binary.BigEndian.Uint32(call[24:]))
		switch major := binary.BigEndian.Uint64(reply[28:]); {
		case major == 1 && p == initiate:
			all[half] = reply[28:]
			continue
		case major != 0:
			continue
		}
		if len(reply[28:]) > len(all[p]) {
			all[p] = elsewhere(p, reply[28:])
		}
	}
	return all, err
})

// elsewhere lets the context in results be one that can be imported here: libkrb5 writes into it which configuration it had.
func elsewhere(p xdr.Proc, results []byte) []byte {
	res := p.Res()
	res.Decode(xdr.NewDecoder(results))
	there, here := "\x24/var/lib/gssproxy-v/lab/td/krb5.conf", "\x09/dev/null"
	change := func(x *xdr.Ctx) {
		x.ExportedContextToken = bytes.ReplaceAll(x.ExportedContextToken, []byte(there), []byte(here))
	}
	switch res := res.(type) {
	case *xdr.ResInitSecContext:
		change(&res.ContextHandle.V)
	case *xdr.ResAcceptSecContext:
		change(&res.ContextHandle.V)
	}
	return res.Append(nil)
}

func procOf(call []byte) xdr.Proc { return xdr.Proc(binary.BigEndian.Uint32(call[20:])) }

// good answers as the daemon did, but for procedures of which change has something else.
func good(tb testing.TB, change func(call []byte) []byte) func(net.Conn, int, []byte) bool {
	all, err := answers()
	if err != nil {
		tb.Fatal(err)
	}
	return func(c net.Conn, _ int, call []byte) bool {
		p := procOf(call)
		if p == initiate && firstOfTwo(call) {
			p = half
		}
		results := all[p]
		if change != nil {
			if b := change(call); b != nil {
				results = b
			}
		}
		c.Write(record(words(xid(call), 1, 0, 0, 0, 0), results))
		return true
	}
}

// contextOf returns the exported context in results, nil if there is none.
func contextOf(p xdr.Proc, results []byte) []byte {
	switch p {
	case half, initiate:
		var res xdr.ResInitSecContext
		res.Decode(xdr.NewDecoder(results))
		return res.ContextHandle.V.ExportedContextToken
	case accept:
		var res xdr.ResAcceptSecContext
		res.Decode(xdr.NewDecoder(results))
		return res.ContextHandle.V.ExportedContextToken
	}
	return nil
}

// firstOfTwo reports whether a call asks for mutual authentication and begins it.
func firstOfTwo(call []byte) bool {
	var arg xdr.ArgInitSecContext
	arg.Decode(xdr.NewDecoder(call[callHeader:]))
	return arg.ReqFlags&2 != 0 && !arg.ContextHandle.Set
}

// load starts csrc/plugin.c of dir.
func load(t testing.TB, dir, socket string, env ...string) *client {
	t.Helper()
	return startProgram(t, filepath.Join(dir, "program"), socket, func(cmd *exec.Cmd) {
		cmd.Env = append(cmd.Env, "GSS_MECH_CONFIG="+filepath.Join(dir, "mech"), "GSS_USE_PROXY=1",
			"UBSAN_OPTIONS=print_stacktrace=1", "KRB5_CONFIG="+filepath.Join(dir, "krb5.conf"), "KRB5CCNAME=FILE:"+filepath.Join(t.TempDir(), "cc"),
			"KRB5_KTNAME=FILE:"+filepath.Join(dir, "none"), "KRB5_CLIENT_KTNAME=FILE:"+filepath.Join(dir, "none"),
			"LSAN_OPTIONS=print_suppressions=0:suppressions="+filepath.Join(dir, "leaks"))
		cmd.Env = append(cmd.Env, env...)
	})
}

var orders = []string{"GSSPROXY_BEHAVIOR=LOCAL_ONLY", "GSSPROXY_BEHAVIOR=LOCAL_FIRST", "GSSPROXY_BEHAVIOR=REMOTE_FIRST",
	"GSSPROXY_BEHAVIOR=REMOTE_ONLY"}

// Memory, descriptors and what else there may be too little of: every single thing that is refused makes a call fail, or it
// does without; nothing crashes, and nothing is lost.
func TestPluginStarved(t *testing.T) {
	dir := loaded(t, "address,undefined")
	for _, order := range orders[1:3] {
		t.Run(order, func(t *testing.T) {
			d := serve(t, good(t, nil))
			c := load(t, dir, d.path, order)
			c.want(c.do("all"), "ok")
			n := 0
			if _, err := fmt.Sscanf(c.do("starve"), "ok %d", &n); err != nil || n < 100 {
				t.Errorf("%d things were refused: %v", n, err)
			}
		})
	}
}

func TestPluginThreads(t *testing.T) {
	for name, s := range map[string]string{"address": "address,undefined", "thread": "thread"} {
		t.Run(name, func(t *testing.T) {
			dir := loaded(t, s)
			d := serve(t, good(t, nil))
			c := load(t, dir, d.path, "GSSPROXY_BEHAVIOR=REMOTE_FIRST")
			c.want(c.do("threads 6"), "ok")
		})
	}
}

// Who has a handle is nobody else when there is no descriptor left to look for it, though there is a connection.
func TestPluginHandleUnseen(t *testing.T) {
	dir := loaded(t, "address,undefined")
	for _, order := range orders[1:] {
		t.Run(order, func(t *testing.T) {
			d := serve(t, good(t, func(call []byte) []byte {
				if procOf(call) == initiate {
					var arg xdr.ArgInitSecContext
					if arg.Decode(xdr.NewDecoder(call[callHeader:])); !arg.CredHandle.Set {
						t.Error("a context is asked for without the handle")
					}
				}
				return nil
			}))
			c := load(t, dir, d.path, order)
			c.want(c.do("store"), "0")
			c.want(c.do("init"), "0x1")
			calls := d.seen()
			c.want(c.do("descriptors 0"), "0")
			if got := c.do("init"); got == "0x1" {
				t.Errorf("init without descriptors: %s", got)
			}
			if n := d.seen(); n != calls {
				t.Errorf("%d calls without descriptors", n-calls)
			}
			c.want(c.do("descriptors 100"), "0")
			c.want(c.do("init"), "0x1")
		})
	}
}

// All mechanisms of one credential have the same user: where the daemon has krb5's and serves no other, there is no other, though
// the cache of somebody else would do for it.
func TestPluginOneIdentity(t *testing.T) {
	dir := loaded(t, "address,undefined")
	bob, err := krb5.ParsePrincipal("bob@EXAMPLE.TEST", "")
	if err != nil {
		t.Fatal(err)
	}
	tgt := krb5.Principal{Type: 2, Components: []string{"krbtgt", "EXAMPLE.TEST"}, Realm: "EXAMPLE.TEST"}
	ticket := &krb5.Credential{Client: bob, Server: tgt, KeyType: 18, Key: make([]byte, 32), EndTime: 1<<31 - 1, Ticket: []byte("ticket")}
	cache := filepath.Join(t.TempDir(), "cc")
	if err := os.WriteFile(cache, ccache.AppendContent(nil, bob, []*krb5.Credential{ticket}), 0o600); err != nil {
		t.Fatal(err)
	}
	refusal := xdr.ResAcquireCred{Status: xdr.Status{MajorStatus: 7 << 16}}
	for name, test := range map[string]struct {
		served bool // krb5
		want   string
	}{
		"the daemon's": {true, "host/kdc.gssproxy.dev@GSSPROXY.DEV, , "},
		"the cache's":  {false, "bob@EXAMPLE.TEST, bob@EXAMPLE.TEST, bob@EXAMPLE.TEST"},
	} {
		t.Run(name, func(t *testing.T) {
			d := serve(t, good(t, func(call []byte) []byte {
				if procOf(call) != xdr.ProcAcquireCred {
					return nil
				}
				var arg xdr.ArgAcquireCred
				arg.Decode(xdr.NewDecoder(call[callHeader:]))
				if test.served && string(arg.DesiredMechs[0]) == string(mech.KRB5) {
					return nil
				}
				return refusal.Append(nil)
			}))
			c := load(t, dir, d.path, "GSSPROXY_BEHAVIOR=REMOTE_FIRST", "KRB5CCNAME=FILE:"+cache)
			c.want(c.do("mechs"), test.want)
		})
	}
}

// An option that is set while the daemon makes a newer credential of the one that was sent is not lost with that.
func TestPluginOptionStays(t *testing.T) {
	dir := loaded(t, "address,undefined")
	all, err := answers()
	if err != nil {
		t.Fatal(err)
	}
	set := make(chan bool)
	sent := make(chan xdr.Cred, 4)
	d := serve(t, good(t, func(call []byte) []byte {
		if procOf(call) != initiate {
			return nil
		}
		var arg xdr.ArgInitSecContext
		arg.Decode(xdr.NewDecoder(call[callHeader:]))
		sent <- arg.CredHandle.V
		if len(sent) == 2 {
			<-set
		}
		newer := arg.CredHandle.V
		newer.CredHandleReference = fmt.Appendf(nil, "newer %d", len(sent))
		var res xdr.ResInitSecContext
		res.Decode(xdr.NewDecoder(all[half]))
		res.Options = []xdr.Option{{Option: []byte("sync_creds\x00"), Value: newer.Append(nil)}}
		return res.Append(nil)
	}))
	c := load(t, dir, d.path, "GSSPROXY_BEHAVIOR=REMOTE_ONLY")
	c.want(c.do("acquire"), "0")
	c.want(c.do("init"), "0x1")
	c.want(c.do("begin"), "ok")
	d.until("a second context", func() bool { return d.calls == 3 })
	c.want(c.do("option"), "0")
	close(set)
	c.want(c.do("end"), "0x1")
	c.want(c.do("init"), "0x1")
	c.want(c.do("init"), "0x1")
	for i, want := range []string{"first", "newer 1", "newer 1, option", "newer 3, option"} {
		cred, got := <-sent, "first"
		if bytes.HasPrefix(cred.CredHandleReference, []byte("newer")) {
			got = string(cred.CredHandleReference)
		}
		for _, o := range cred.Elements[0].Options {
			if string(o.Option) == "krb5_set_allowed_enctype_values\x00" {
				got += ", option"
			}
		}
		if got != want {
			t.Errorf("context %d with %q, want %q", i, got, want)
		}
	}
}

// Two names of one call, which only the daemon understands, have one deadline: fifteen seconds, of which the first takes
// sixteen and leaves none for the second.
func TestPluginCompares(t *testing.T) {
	dir := loaded(t, "address,undefined")
	d := serve(t, good(t, nil))
	c := load(t, dir, d.path, "KRB5_CONFIG=/dev/null") // no default realm
	c.want(c.do("compare"), "0")
	if n := d.seen(); n != 1 {
		t.Errorf("%d calls", n)
	}
}

// Who has no right password has nothing, whatever the daemon would give: programs look whether a password is right so.
func TestPluginPassword(t *testing.T) {
	dir := loaded(t, "address,undefined")
	for _, order := range orders {
		t.Run(order, func(t *testing.T) {
			d := serve(t, good(t, nil))
			c := load(t, dir, d.path, order)
			if got := c.do("password"); got == "0" {
				t.Error("a wrong password serves")
			}
			if n := d.seen(); n != 0 {
				t.Errorf("the daemon was called %d times", n)
			}
		})
	}
}

// What GSSPROXY_BEHAVIOR cannot mean is said, since it is taken for another thing.
func TestPluginBehavior(t *testing.T) {
	dir := loaded(t, "address,undefined")
	for value, told := range map[string]int{"REMOTE": 1, "remote_only": 1, "REMOTE_ONLY": 0, "": 0} {
		c := load(t, dir, serve(t, good(t, nil)).path, "GSSPROXY_BEHAVIOR="+value)
		c.do("password")
		trace, err := os.ReadFile(c.trace)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(trace), "GSSPROXY_BEHAVIOR is "+value+", which means nothing"); n != told {
			t.Errorf("%q: told %d times, want %d:\n%s", value, n, told, trace)
		}
	}
}

// A socket of the program's own that has the number of a connection that is waited at is left alone.
func TestPluginForeignSocket(t *testing.T) {
	dir := loaded(t, "address,undefined")
	taken := make(chan bool)
	whole := good(t, nil)
	d := serve(t, func(c net.Conn, n int, call []byte) bool {
		if n == 1 {
			<-taken
			time.Sleep(1100 * time.Millisecond) // the timeouts are in whole seconds
			c.Write([]byte{0x80, 0})
			return true
		}
		return whole(c, n, call)
	})
	c := load(t, dir, d.path, "GSSPROXY_BEHAVIOR=REMOTE_ONLY")
	c.want(c.do("begin"), "ok")
	d.until("a call", func() bool { return d.calls == 1 })
	c.want(c.do("take"), "ok")
	close(taken)
	c.want(c.do("end"), "0x1")
	c.want(c.do("timeout"), "0.000000")
}

// A thread that is cancelled while it waits loses no connection.
func TestPluginCancelled(t *testing.T) {
	dir := loaded(t, "undefined")
	canceled := make(chan bool)
	whole := good(t, nil)
	d := serve(t, func(c net.Conn, n int, call []byte) bool {
		if n == 1 {
			<-canceled
		}
		return whole(c, n, call)
	})
	c := load(t, dir, d.path, "GSSPROXY_BEHAVIOR=REMOTE_ONLY")
	c.want(c.do("begin"), "ok")
	d.until("a call", func() bool { return d.calls == 1 })
	c.want(c.do("cancel"), "ok")
	close(canceled)
	c.hear() // it may be cancelled afterwards
	c.want(c.do("init"), "0x1")
	if n := len(d.by()); n != 1 {
		t.Errorf("%d connections, want the first one again", n)
	}
}

// FuzzAnswer lets a program go on with whatever the daemon says to one of its calls, but for other exported contexts: libkrb5
// believes in those, and crashes later.
func FuzzAnswer(f *testing.F) {
	all, err := answers()
	if err != nil {
		f.Fatal(err)
	}
	for p, results := range all {
		f.Add(uint32(p), results)
		f.Add(uint32(p), append(words(0, 2), results[8:]...)) // a status that is neither done nor failed
	}
	dir := loaded(f, "address,undefined")
	var proc xdr.Proc
	var results []byte
	d := serve(f, good(f, func(call []byte) []byte {
		p := procOf(call)
		if p == initiate && firstOfTwo(call) {
			p = half
		}
		if p == proc {
			return results
		}
		return nil
	}))
	c := load(f, dir, d.path, "GSSPROXY_BEHAVIOR=REMOTE_FIRST", "GSSPROXY_TRACE=",
		"ASAN_OPTIONS=fast_unwind_on_malloc=0")
	n := 0
	f.Fuzz(func(t *testing.T, p uint32, b []byte) {
		if x := contextOf(xdr.Proc(p), b); len(b) > 1<<20 || len(x) > 0 && !bytes.Equal(x, contextOf(xdr.Proc(p), all[xdr.Proc(p)])) {
			return
		}
		proc, results = xdr.Proc(p), b
		c.t = t
		c.kill.Reset(2 * time.Minute)
		t.Cleanup(func() {
			if t.Failed() {
				c.in.Close()
				c.cmd.Wait()
				t.Logf("the program: %s", &c.errors)
			}
		})
		c.want(c.do("all"), "ok")
		n++
		if n%20 != 0 { // it takes ten times as long as the rest
			return
		}
		if got := c.do("leaks"); got != "0" {
			t.Errorf("leaks: %s", got)
		}
	})
}
