package nfsvm

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gssproxyd/tests/lab"
)

// A daemon under test: started with the same command line and the same configuration.
type daemon struct{ name, path string }

var (
	cDaemon = daemon{"C", "/usr/sbin/gssproxy"}
	ours    = daemon{"ours", "/usr/sbin/gssproxyd"}
)

const (
	socket = "/run/gssproxy.sock" // the kernel knows this name
	flag   = "/proc/net/rpc/use-gss-proxy"
)

// configDir is where a daemon in the guest has its configuration.
const configDir = "/etc/gssproxy/"

// configure puts the configuration in place: the service for the kernel as it is shipped, with
// changes (see shipped), and more if there is more.
func configure(t *testing.T, g *guest, more string, changes ...string) {
	t.Helper()
	g.put(t, configDir+"gssproxy.conf", "[gssproxy]\n  debug_level = 1\n")
	g.put(t, configDir+"24-nfs-server.conf", shipped(t, "24-nfs-server.conf", changes...))
	g.put(t, configDir+"99-network-fs-clients.conf", more)
}

// run starts the daemon, ours as its unit does, and waits until it listens.
func (d daemon) run(t *testing.T, g *guest, socket string) {
	t.Helper()
	g.sh(t, "rm -f "+socket+" /log/"+d.name) // what is read there is of this start
	q := Request{Op: "start", Name: d.name, Argv: []string{d.path, "-i", "-d"}}
	if d == ours {
		g.sh(t, "cd /var/lib/gssproxy; mkdir -p state; u=999; grep -q 'run_as_user = root' "+configDir+"gssproxy.conf && u=0; chown -R $u:$u state clients; chmod 700 state clients")
		q.unit(t)
	}
	g.must(t, q)
	g.await(t, "/log/"+d.name, "Initialization complete.", 20*time.Second)
}

// reload has the daemon read its configuration again.
func (d daemon) reload(t *testing.T, g *guest) {
	t.Helper()
	const done = "New config loaded successfully."
	before := strings.Count(g.sh(t, "cat /log/"+d.name), done)
	g.must(t, Request{Op: "signal", Name: d.name, Signal: 1})
	g.sh(t, fmt.Sprintf("until [ $(grep -c '%s' /log/%s) -gt %d ]; do usleep 10000; done", done, d.name, before))
}

// up starts the daemon for the kernel and waits until the kernel knows it.
func (d daemon) up(t *testing.T, g *guest) {
	t.Helper()
	configure(t, g, "")
	d.run(t, g, socket)
	g.await(t, flag, "1", 20*time.Second)
	if d == ours {
		// The flag may be an earlier daemon's. Registering with a kernel that has had one takes
		// seconds.
		g.await(t, "/log/"+d.name, "kernel NFS server: registered", 30*time.Second)
	}
}

// TestNFS is one virtual machine's life. The tests in it build on each other.
func TestNFS(t *testing.T) {
	if !*vmFlag {
		t.Skip("not run: it boots a virtual machine; make test-nfs runs it")
	}
	kinds := lab.Kinds
	if s := os.Getenv("LAB_DAEMONS"); s != "" {
		kinds = strings.Split(s, ",")
	}
	g := boot(t, slices.Contains(kinds, ours.name))
	g.kdc(t)

	g.step(t, "no daemon", testNoDaemon)
	if slices.Contains(kinds, ours.name) {
		g.step(t, "daemon comes late", testLateDaemon)
	}
	g.unserve(t)
	if slices.Contains(kinds, ours.name) {
		g.step(t, "module comes late", testLateModule)
		g.step(t, "network namespace", testNamespace)
	}
	g.sh(t, "modprobe nfsd; modprobe rpcsec_gss_krb5; modprobe nfsv4; modprobe cts")
	// The kernel runs modprobe for every context, whether the module is there or not. With an
	// emulated processor that takes longer than all the rest.
	g.sh(t, "echo >/proc/sys/kernel/modprobe")
	served := false
	for _, d := range []daemon{cDaemon, ours} {
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
				g.step(t, flavor, func(t *testing.T, g *guest) { testFlavor(t, g, flavor) })
			}
			g.step(t, "many groups", testManyGroups)
			if d == ours {
				g.step(t, "who a principal is", testMapping)
			}
			g.step(t, "8 users at once", func(t *testing.T, g *guest) { testCrowd(t, g, 8) })
			g.step(t, "64 users at once", func(t *testing.T, g *guest) { testCrowd(t, g, crowd) })
			g.step(t, "killed", func(t *testing.T, g *guest) { testKilled(t, g, d) })
			g.step(t, "wrong keytab", func(t *testing.T, g *guest) { testWrongKeytab(t, g, d) })
			g.stop(t, d.name, 15)
			g.step(t, "client side", func(t *testing.T, g *guest) { testClientSide(t, g, d) })
			configure(t, g, "", socket, "/run/daemon.sock", "kernel_nfsd = yes", "kernel_nfsd = no")
			d.run(t, g, "/run/daemon.sock")
			for _, m := range mutants {
				g.step(t, m.name, func(t *testing.T, g *guest) { testMutant(t, g, m) })
			}
			g.stop(t, d.name, 15)
		})
		if !ok && d == cDaemon {
			t.Fatal("the C daemon fails here: what is at fault is the kernel, QEMU or this test, so our daemon is not tried")
		}
	}
}

// step runs a test and says how long it took; when it fails, what is known in the guest.
func (g *guest) step(t *testing.T, name string, test func(*testing.T, *guest)) {
	t.Helper()
	begin := time.Now()
	ok := t.Run(name, func(t *testing.T) { test(t, g) })
	t.Logf("%-20s %6.1fs", name, time.Since(begin).Seconds())
	if !ok {
		g.dump(t)
	}
}

// testNoDaemon is a server nobody has announced himself to when the first client comes.
func testNoDaemon(t *testing.T, g *guest) {
	g.sh(t, "modprobe nfsd; modprobe rpcsec_gss_krb5; modprobe nfsv4")
	g.serve(t)
	g.await(t, flag, "-1", time.Second)
	expect(t, g.refused(t), nil, []string{"upcall"})
	g.await(t, flag, "0", time.Second)
}

// testLateDaemon starts the daemon when the kernel has chosen to do without. It has to say so, and
// how to get out of that; doing as it says is all that it takes.
func testLateDaemon(t *testing.T, g *guest) {
	configure(t, g, "")
	// Another user than root would have to be started again when the module comes.
	g.put(t, configDir+"gssproxy.conf", "[gssproxy]\n  debug_level = 1\n  run_as_user = root\n")
	ours.run(t, g, socket)
	g.await(t, "/log/ours", "until auth_rpcgss is unloaded", 10*time.Second)
	g.await(t, flag, "0", time.Second)
}

// testLateModule has a daemon that runs before there is something to announce itself to: it has had
// no module since the one that had chosen to do without was unloaded.
func testLateModule(t *testing.T, g *guest) {
	g.sh(t, "modprobe auth_rpcgss")
	took := g.await(t, flag, "1", time.Second)
	t.Logf("announced %v after the module was loaded", took)
	g.stop(t, ours.name, 15)
	g.sh(t, "rmmod auth_rpcgss")
}

// testNamespace has the daemon in a network namespace of its own, with a /run of its own: the
// kernel there asks it, and the kernel elsewhere does not.
func testNamespace(t *testing.T, g *guest) {
	g.sh(t, "modprobe auth_rpcgss")
	g.must(t, Request{Op: "start", Name: ours.name, Argv: []string{"/usr/local/bin/unshare", "-n", "-m", "/bin/sh", "-ec",
		"echo $$ >/log/pid; mount -t tmpfs run /run; exec " + ours.path + " -i -d"}})
	g.sh(t, "i=0; until [ \"$(nsenter -t $(cat /log/pid) -n cat "+flag+")\" = 1 ]; do usleep 10000; i=$((i+1)); [ $i -lt 1000 ]; done")
	g.await(t, flag, "-1", time.Second)
	g.stop(t, ours.name, 15)
}

// mounted mounts the export for one test.
func (g *guest) mounted(t *testing.T, flavor string) {
	t.Helper()
	p := g.mount(flavor)
	if p.Err != "" && strings.Contains(g.sh(t, "cat /log/gssd"), "handle_krb5_upcall") {
		// It looked for the kernel's pipe in the moment before that was made, and took the old kind,
		// which does not say what enctypes there are. With this mount's pipes that is over.
		g.sh(t, noPipes)
		p = g.mount(flavor)
	}
	if p.Err != "" {
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

	// Two contexts of the machine, one each of alice, bob and the stranger; all by way of the
	// daemon.
	if n := strings.Count(g.trace(t), "major_status=GSS_S_COMPLETE"); n < 4 {
		t.Errorf("the kernel asked the daemon for %d contexts, want at least 4", n)
	}
	g.sh(t, "rm -f /export/*/*")
}

// testManyGroups has a user who is not in /etc/passwd, and in more groups than a small answer
// holds.
func testManyGroups(t *testing.T, g *guest) {
	last := ginaGroup + ginaGroups - 1
	g.sh(t, fmt.Sprintf("mkdir /export/last; chown 0:%d /export/last; chmod 2770 /export/last", last))
	g.mounted(t, "krb5")
	w := g.does(t, Request{Op: "write", User: gina, Path: "/mnt/last/gina", Size: 1000}, "")
	g.owned(t, "/export/last/gina", gina.UID, uint32(last), w)
	g.does(t, Request{Op: "ls", User: alice, Path: "/mnt/last"}, "EACCES")
	g.sh(t, "rm -r /export/last")
}

// testMapping lets a machine's credential be root, and a principal that is no user be another user
// or be refused: what the configuration says of them holds from a reload on.
func testMapping(t *testing.T, g *guest) {
	g.put(t, "/etc/exports", exports(",no_root_squash"))
	g.sh(t, "exportfs -ra")
	const commented = "# principal_map = host/client.example.com@EXAMPLE.COM:root"
	machine := "principal_map = host/" + lab.Host + "@" + lab.Name + ":root"
	for _, c := range []struct {
		unmapped string
		want     User
		refused  string
	}{{"dave", dave, ""}, {"refuse", User{}, "EACCES"}} {
		configure(t, g, "", commented, machine, "# unmapped_user = nobody", "unmapped_user = "+c.unmapped)
		ours.reload(t, g)
		t.Run(c.unmapped, func(t *testing.T) {
			g.mounted(t, "krb5")
			w := g.does(t, Request{Op: "write", User: root, Path: "/mnt/alice/root", Size: 100}, "")
			g.owned(t, "/export/alice/root", 0, 0, w)
			w = g.does(t, Request{Op: "write", User: stranger, Path: "/mnt/public/stranger", Size: 100}, c.refused)
			if c.refused == "" {
				g.owned(t, "/export/public/stranger", c.want.UID, c.want.GID, w)
			}
		})
		g.sh(t, "rm -f /export/*/*")
	}
	g.await(t, "/log/ours", "reason=no-local-name", time.Second)
	g.put(t, "/etc/exports", exports(""))
	g.sh(t, "exportfs -ra")
	configure(t, g, "")
	ours.reload(t, g)
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
	// The kernel tries for ten seconds and more to reach the daemon; Dave comes while it is at it.
	pending := g.Go(Request{Op: "write", User: dave, Path: "/mnt/public/dave", Size: 1000})
	select {
	case p := <-pending:
		if p.Err == "" {
			t.Error("dave got a context without a daemon")
		}
	case <-time.After(2 * time.Second):
	}

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

// testWrongKeytab starts the daemon with a keytab whose keys are not the KDC's, and replaces it
// while it runs.
func testWrongKeytab(t *testing.T, g *guest, d daemon) {
	g.stop(t, d.name, 15)
	g.sh(t, "cp -p /etc/krb5.keytab /etc/right.keytab; cp -p /etc/wrong.keytab /etc/krb5.keytab")
	d.up(t, g)
	// KRB5KRB_AP_ERR_BAD_INTEGRITY, without its sign.
	expect(t, g.refused(t), []string{"decode: 0", "upcall: 0", "major_status=GSS_S_FAILURE (0x000d0000) minor_status=2529638943"}, []string{"COMPLETE"})
	if d == ours {
		g.await(t, "/log/ours", "reason=bad-integrity", time.Second)
	}
	g.sh(t, "mv /etc/right.keytab /etc/krb5.keytab")
	begin := time.Now()
	for p := g.mount("krb5"); p.Err != ""; p = g.mount("krb5") {
		if time.Since(begin) > 20*time.Second {
			t.Fatalf("with the right keytab again: %s\n%s", p.Err, p.Out)
		}
	}
	g.umount(t)
}

// testClientSide has the daemon at both ends: rpc.gssd gets the users' contexts from it, with keys
// it never sees. First with the users' own keytabs, as it is shipped; then with the server's, for
// any user (impersonate). The KDC's database here has no say about who may act for whom, so that is
// shown where the KDC need not be asked: the service that acts for the users is the one that they
// go to.
func testClientSide(t *testing.T, g *guest, d daemon) {
	const keytab, machine = "keytab:/etc/krb5.keytab", "keytab:/etc/nfs-client.keytab"
	recipe := "99-network-fs-clients.conf"
	// What another daemon has left: in the users' own caches handles of its credentials, and beside
	// the keytabs, if it is the C daemon, the service's tickets for a user whom it has
	// impersonated.
	for _, u := range []User{carol, frank, hank} {
		g.sh(t, fmt.Sprintf("rm -f /tmp/krb5cc_%d /var/lib/gssproxy/clients/krb5cc_%[1]d", u.UID))
	}
	configure(t, g, shipped(t, recipe, keytab, machine))
	d.run(t, g, socket)
	g.await(t, flag, "1", time.Second)
	g.stop(t, "gssd", 15)
	g.gssd(t, "GSS_USE_PROXY=yes")
	t.Cleanup(func() { // after the mount is gone
		g.stop(t, "gssd", 15)
		g.gssd(t)
		g.stop(t, d.name, 15)
	})

	t.Run("keytabs of users", func(t *testing.T) {
		g.mounted(t, "krb5p")
		// Frank has no ticket, but the daemon has his keytab.
		w := g.does(t, Request{Op: "write", User: frank, Path: "/mnt/public/frank", Size: 1000}, "")
		g.owned(t, "/export/public/frank", frank.UID, frank.GID, w)
		// Carol and hank have neither.
		for _, u := range []User{carol, hank} {
			g.does(t, Request{Op: "ls", User: u, Path: "/mnt/public"}, "EACCES")
		}
		// What the plugin keeps for him is a handle, no ticket.
		if got := g.sh(t, fmt.Sprintf("klist -c /tmp/krb5cc_%d", frank.UID)); !strings.Contains(got, "X-GSSPROXY") || strings.Contains(got, "krbtgt") {
			t.Errorf("frank's ccache:\n%s", got)
		}
		plugin := filepath.Base(g.realm.PluginPath(g.realm.Plugin))
		if maps := g.sh(t, "cat /proc/$(pidof rpc.gssd)/maps"); !strings.Contains(maps, plugin) {
			t.Errorf("rpc.gssd has not loaded %s", plugin)
		}
	})
	t.Run("impersonate", func(t *testing.T) {
		configure(t, g, shipped(t, recipe, "cred_usage = initiate", "cred_usage = initiate\n  impersonate = yes\n  krb5_principal = nfs/"+lab.Host))
		d.reload(t, g)
		g.mounted(t, "krb5p")
		w := g.does(t, Request{Op: "write", User: hank, Path: "/mnt/public/hank", Size: 1000}, "")
		g.owned(t, "/export/public/hank", hank.UID, hank.GID, w)
		// The KDC knows no carol.
		g.does(t, Request{Op: "ls", User: carol, Path: "/mnt/public"}, "EACCES")
	})
	g.sh(t, "rm -f /export/*/*")
}

// Mutants of a daemon's answers (package mutant), and what the kernel has to say about each: which
// of its functions that deal with an answer gives up, and how. The values are those of the pinned
// kernel.
type mutant struct {
	name     string
	has, not []string
}

const complete = "major_status=GSS_S_COMPLETE"

var mutants = []mutant{
	{name: "none"},
	{"missing-creds", []string{"decode: 0", "upcall: 0", complete, "save: -12"}, []string{"import:"}}, // ENOMEM
	{"oversized-token", []string{"decode: -28", "upcall: -28"}, []string{complete}},                   // ENOSPC
	{"sequence-2^31", []string{"decode: 0", complete, "import: -22", "seq_send64 80000000, seq_send 80000000 overflow?"}, nil},
	{"lucid-too-long", []string{"decode: 0", complete, "import: -22"}, []string{"overflow"}},
	{"lucid-too-short", []string{"decode: 0", complete, "import: -14"}, nil}, // EFAULT
}

func testMutant(t *testing.T, g *guest, m mutant) {
	g.sh(t, "rm -f /log/mutant")
	g.start(t, "mutant", nil, "/usr/bin/mutant", m.name, socket, "/run/daemon.sock")
	defer g.stop(t, "mutant", 15)
	g.await(t, "/log/mutant", "armed", 30*time.Second)
	if m.name == "none" {
		// The mutant itself is not what makes the others fail.
		g.mounted(t, "krb5")
	} else {
		expect(t, g.refused(t), m.has, m.not)
	}
	g.await(t, "/log/mutant", "spoiled: "+m.name, time.Second)
}

// refused fails the test unless the server refuses a mount. It returns what the kernel had to say.
func (g *guest) refused(t *testing.T) string {
	t.Helper()
	g.trace(t)
	g.sh(t, "dmesg -c >/dev/null; echo 16 >/proc/sys/sunrpc/rpc_debug")
	p := g.mount("krb5")
	got := g.trace(t) + g.sh(t, "echo 0 >/proc/sys/sunrpc/rpc_debug; dmesg -c")
	if p.Err == "" {
		g.umount(t)
		t.Error("the mount succeeded")
	} else if !strings.Contains(p.Out, "access denied by server") {
		t.Errorf("the mount failed: %s\n%s", p.Err, p.Out)
	}
	return got
}

// expect fails the test unless got has all of one list and nothing of the other.
func expect(t *testing.T, got string, has, not []string) {
	t.Helper()
	for _, s := range has {
		if !strings.Contains(got, s) {
			t.Errorf("the kernel did not say %q", s)
		}
	}
	for _, s := range not {
		if strings.Contains(got, s) {
			t.Errorf("the kernel said %q", s)
		}
	}
	if t.Failed() {
		t.Logf("the kernel said:\n%s", got)
	}
}

// probes make the kernel tell what its functions return that deal with an answer: they decode it,
// end the call, make it a context, and keep that.
const probes = `cd /sys/kernel/tracing
[ -d events/nfsvm ] || {
	echo 'r:nfsvm/decode gssx_dec_accept_sec_context ret=$retval:s32' >>kprobe_events
	echo 'r:nfsvm/upcall gssp_accept_sec_context_upcall ret=$retval:s32' >>kprobe_events
	echo 'r:nfsvm/import gss_import_sec_context ret=$retval:s32' >>kprobe_events
	echo 'r:nfsvm/save gss_proxy_save_rsc ret=$retval:s32' >>kprobe_events
	echo 1 >events/nfsvm/enable
	echo 1 >events/rpcgss/rpcgss_svc_accept_upcall/enable
}
grep -v '^#' trace || true
echo >trace
`

const noProbes = `cd /sys/kernel/tracing
[ ! -d events/nfsvm ] || { echo 0 >events/nfsvm/enable; echo 0 >events/rpcgss/rpcgss_svc_accept_upcall/enable; echo >kprobe_events; }
`

var (
	tracePrefix = regexp.MustCompile(`(?m)^\s*\S+\s+\[000\]\s+\S+\s+[0-9.]+: `)
	traceReturn = regexp.MustCompile(`: \(.*<- .*\) ret=`)
)

// trace returns what the kernel's probes have seen since the last call.
func (g *guest) trace(t *testing.T) string {
	t.Helper()
	out := tracePrefix.ReplaceAllString(g.sh(t, probes), "")
	return traceReturn.ReplaceAllString(out, ": ")
}
