package nfsvm

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gssproxyd/tests/lab"
)

// A daemon under test: started with the same command line and the same configuration.
type daemon struct{ name, path string }

var daemons = []daemon{{"C", "/usr/sbin/gssproxy"}, {"ours", "/usr/sbin/gssproxyd"}}

const (
	socket = "/run/gssproxy.sock" // the kernel knows this name
	flag   = "/proc/net/rpc/use-gss-proxy"
)

// start starts the daemon; nfsd is what it announces itself to, "yes" or "no".
func (d daemon) start(t *testing.T, g *guest, socket, nfsd string) {
	t.Helper()
	g.sh(t, "rm -f "+socket)
	g.put(t, "/etc/gssproxy/gssproxy.conf", fmt.Sprintf(nfsServer, 1, socket, nfsd))
	g.start(t, d.name, nil, d.path, "-i", "-c", "/etc/gssproxy/gssproxy.conf", "-C", "/etc/gssproxy/conf.d", "-d")
	g.await(t, "/proc/net/unix", socket, 20*time.Second)
}

// up starts the daemon for the kernel and waits until the kernel knows it.
func (d daemon) up(t *testing.T, g *guest) {
	t.Helper()
	d.start(t, g, socket, "yes")
	g.await(t, flag, "1", 20*time.Second)
}

func TestNFS(t *testing.T) {
	if !*vmFlag {
		t.Skip("not run: it boots a virtual machine; make test-nfs runs it")
	}
	kinds := lab.Kinds
	if s := os.Getenv("LAB_DAEMONS"); s != "" {
		kinds = strings.Split(s, ",")
	}
	g := boot(t)
	g.sh(t, "modprobe auth_rpcgss; modprobe nfsd; modprobe rpcsec_gss_krb5; modprobe nfsv4; mkdir -p /etc/gssproxy/conf.d")
	g.trace(t)
	served := false
	for _, d := range daemons {
		if !slices.Contains(kinds, d.name) {
			continue
		}
		ok := t.Run(d.name, func(t *testing.T) {
			d.up(t, g)
			if !served {
				g.serve(t)
				served = true
			}
			for _, flavor := range []string{"krb5", "krb5i", "krb5p"} {
				t.Run(flavor, func(t *testing.T) { testFlavor(t, g, flavor) })
			}
			t.Run("8 users at once", func(t *testing.T) { testCrowd(t, g, 8) })
			t.Run("64 users at once", func(t *testing.T) { testCrowd(t, g, crowd) })
			t.Run("killed", func(t *testing.T) { testKilled(t, g, d) })
			t.Run("wrong keytab", func(t *testing.T) { testWrongKeytab(t, g, d) })
			g.stop(t, d.name, 15)
			t.Run("no daemon", func(t *testing.T) { g.refused(t) })
			t.Run("mutants", func(t *testing.T) { testMutants(t, g, d) })
		})
		if !ok && d.name == "C" {
			t.Fatal("the C daemon fails here: what is at fault is the kernel, QEMU or this test, so our daemon is not tried")
		}
	}
}

// mounted mounts the export for one test.
func (g *guest) mounted(t *testing.T, flavor string) {
	t.Helper()
	if p := g.mount(flavor); p.Err != "" {
		t.Fatalf("mount with sec=%s: %s\n%s\nthe kernel:\n%s", flavor, p.Err, p.Out, g.trace(t))
	}
	t.Cleanup(func() { g.umount(t) })
}

// does fails the test unless a user's request ends as it should.
func (g *guest) does(t *testing.T, q Request, want string) Response {
	t.Helper()
	p := g.Do(q)
	if p.Err != want {
		t.Errorf("uid %d: %s %s: %s, want %s", q.User.UID, q.Op, q.Path, result(p.Err), result(want))
	}
	return p
}

func result(err string) string {
	if err == "" {
		return "success"
	}
	return err
}

// owned fails the test unless the server has the file, with owner and content.
func (g *guest) owned(t *testing.T, path string, uid, gid uint32, written Response) {
	t.Helper()
	if p := g.does(t, Request{Op: "stat", Path: path}, ""); p.UID != uid || p.GID != gid {
		t.Errorf("the server's %s belongs to %d:%d, want %d:%d", path, p.UID, p.GID, uid, gid)
	}
	if p := g.does(t, Request{Op: "read", Path: path}, ""); p.Sum != written.Sum || p.Size != written.Size {
		t.Errorf("the server's %s is not what was written: %d bytes, want %d", path, p.Size, written.Size)
	}
}

func testFlavor(t *testing.T, g *guest, flavor string) {
	g.trace(t)
	g.mounted(t, flavor)
	if got := g.sh(t, "grep ' /mnt ' /proc/mounts"); !strings.Contains(got, "sec="+flavor+",") {
		t.Errorf("mounted: %s", got)
	}

	// Alice writes and reads what is hers, over the wire, and is alice at both ends.
	name := "/alice/" + flavor
	w := g.does(t, Request{Op: "write", User: alice, Path: "/mnt" + name, Size: 256 << 10}, "")
	g.owned(t, "/export"+name, alice.UID, alice.GID, w)
	g.sh(t, "echo 3 >/proc/sys/vm/drop_caches")
	if p := g.does(t, Request{Op: "read", User: alice, Path: "/mnt" + name}, ""); p.Sum != w.Sum {
		t.Errorf("alice reads %d bytes that are not the %d she wrote", p.Size, w.Size)
	}
	if p := g.does(t, Request{Op: "stat", User: alice, Path: "/mnt" + name}, ""); p.UID != alice.UID || p.GID != alice.GID {
		t.Errorf("alice's file belongs to %d:%d for her, want %d:%d", p.UID, p.GID, alice.UID, alice.GID)
	}

	// Her supplementary groups are with the server: the client has none of them in this thread.
	lonely := User{UID: alice.UID, GID: alice.GID}
	name = "/devs/" + flavor
	w = g.does(t, Request{Op: "write", User: lonely, Path: "/mnt" + name, Size: 100}, "")
	g.owned(t, "/export"+name, alice.UID, 2000, w)
	g.does(t, Request{Op: "write", User: bob, Path: "/mnt/devs/bob", Size: 100}, "EACCES")

	g.does(t, Request{Op: "read", User: bob, Path: "/mnt/alice/" + flavor}, "EACCES")
	g.does(t, Request{Op: "ls", User: carol, Path: "/mnt/public"}, "EACCES")

	// The machine's principal, and one without an account, are nobody.
	for _, u := range []struct {
		name string
		User
	}{{"root", root}, {"stranger", stranger}} {
		name := "/public/" + u.name + "-" + flavor
		w := g.does(t, Request{Op: "write", User: u.User, Path: "/mnt" + name, Size: 100}, "")
		g.owned(t, "/export"+name, 65534, 65534, w)
		g.does(t, Request{Op: "ls", User: u.User, Path: "/mnt/alice"}, "EACCES")
	}

	// Two contexts of the machine, one each of alice, bob and the stranger; all by way of the daemon.
	if n := strings.Count(g.trace(t), "major_status=GSS_S_COMPLETE"); n < 4 {
		t.Errorf("the kernel asked the daemon for %d contexts, want at least 4", n)
	}
	g.sh(t, "rm -f /export/*/*")
}

// testCrowd lets many users come at once, none of whom has a context.
func testCrowd(t *testing.T, g *guest, n int) {
	g.mounted(t, "krb5")
	begin := time.Now()
	answers := make([]<-chan Response, n)
	for i := range answers {
		answers[i] = g.Go(Request{Op: "write", User: crowdUser(i), Path: fmt.Sprintf("/mnt/public/u%d", i), Size: 1000})
	}
	var slowest time.Duration
	for i := range answers {
		p := g.Await(answers[i])
		if p.Err != "" {
			t.Errorf("user %d of %d: %s after %v", i+1, n, p.Err, p.Took)
			continue
		}
		slowest = max(slowest, p.Took)
		g.owned(t, fmt.Sprintf("/export/public/u%d", i), crowdUser(i).UID, crowdUser(i).GID, p)
	}
	t.Logf("%d users done after %v, the slowest waited %v", n, time.Since(begin).Round(time.Millisecond), slowest.Round(time.Millisecond))
	g.sh(t, "rm -f /export/*/*")
}

// testKilled kills the daemon while the export is mounted.
func testKilled(t *testing.T, g *guest, d daemon) {
	g.mounted(t, "krb5i")
	g.does(t, Request{Op: "write", User: alice, Path: "/mnt/alice/before", Size: 1000}, "")
	g.stop(t, d.name, 9)

	w := g.does(t, Request{Op: "write", User: alice, Path: "/mnt/alice/meanwhile", Size: 1000}, "")
	g.owned(t, "/export/alice/meanwhile", alice.UID, alice.GID, w)
	p := g.does(t, Request{Op: "write", User: dave, Path: "/mnt/public/dave", Size: 1000}, "EACCES")
	t.Logf("without a daemon a new user waited %v", p.Took.Round(time.Millisecond))

	begin := time.Now()
	d.up(t, g)
	for _, u := range []struct {
		name string
		User
	}{{"erin", erin}, {"dave", dave}} {
		path := "/public/" + u.name
		for {
			w := g.Do(Request{Op: "write", User: u.User, Path: "/mnt" + path, Size: 1000})
			if w.Err == "" {
				g.owned(t, "/export"+path, u.UID, u.GID, w)
				break
			}
			if time.Since(begin) > time.Minute {
				t.Fatalf("%s is not served a minute after the restart: %s", u.name, w.Err)
			}
			time.Sleep(200 * time.Millisecond)
		}
		t.Logf("%s was served %v after the restart", u.name, time.Since(begin).Round(time.Millisecond))
	}
	g.does(t, Request{Op: "write", User: alice, Path: "/mnt/alice/after", Size: 1000}, "")
	g.sh(t, "rm -f /export/*/*")
}

// testWrongKeytab gives the daemon a keytab whose keys are not the KDC's, and then the right one.
func testWrongKeytab(t *testing.T, g *guest, d daemon) {
	g.sh(t, "cp -p /etc/krb5.keytab /etc/right.keytab; mv /etc/wrong.keytab /etc/krb5.keytab")
	got := g.refused(t)
	g.sh(t, "mv /etc/krb5.keytab /etc/wrong.keytab; mv /etc/right.keytab /etc/krb5.keytab")
	t.Log(got)
	g.mounted(t, "krb5")
}

// refused fails the test unless a mount is refused by the server. It returns what the kernel's server had to say.
func (g *guest) refused(t *testing.T) string {
	t.Helper()
	g.trace(t)
	p := g.mount("krb5")
	if p.Err == "" {
		g.umount(t)
		t.Error("the mount succeeded")
	} else if !strings.Contains(p.Out, "access denied by server") {
		t.Errorf("the mount failed: %s\n%s", p.Err, p.Out)
	}
	got := g.trace(t)
	t.Logf("refused after %v\n%s\n%s", p.Took, got, g.sh(t, "dmesg | tail -30"))
	return got
}

func testMutants(t *testing.T, g *guest, d daemon) {
	d.start(t, g, "/run/daemon.sock", "no")
	defer g.stop(t, d.name, 15)
	for _, m := range []string{"none", "missing-creds", "oversized-token", "sequence-2^31", "lucid-too-long", "lucid-too-short"} {
		t.Run(m, func(t *testing.T) {
			g.sh(t, "rm -f /log/mutant")
			g.start(t, "mutant", nil, "/usr/bin/mutant", m, socket, "/run/daemon.sock")
			defer g.stop(t, "mutant", 15)
			g.await(t, "/log/mutant", "armed", 30*time.Second)
			if m == "none" {
				g.mounted(t, "krb5")
				return
			}
			g.refused(t)
		})
	}
}

// probes make the kernel tell what its functions return that deal with an answer: they decode it, they make it a
// context, and the whole.
const probes = `cd /sys/kernel/tracing
[ -d events/nfsvm ] || {
	echo 'r:nfsvm/decode gssx_dec_accept_sec_context ret=$retval:s32' >>kprobe_events
	echo 'r:nfsvm/import gss_import_sec_context ret=$retval:s32' >>kprobe_events
	echo 'r:nfsvm/upcall gssp_accept_sec_context_upcall ret=$retval:s32' >>kprobe_events
	echo 1 >events/nfsvm/enable
	echo 1 >events/rpcgss/rpcgss_svc_accept_upcall/enable
	echo 16 >/proc/sys/sunrpc/rpc_debug
}
grep -v '^#' trace || true
echo >trace
`

var traceNoise = regexp.MustCompile(`(?m)^\s*\S+\s+\[000\]\s+\S+\s+`)

// trace returns what the kernel's probes have seen since the last call.
func (g *guest) trace(t *testing.T) string {
	t.Helper()
	return traceNoise.ReplaceAllString(g.sh(t, probes), "")
}
