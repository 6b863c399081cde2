package nfsvm

import (
	"bytes"
	"encoding/binary"
	cmdline "flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kernel.org/pub/linux/libs/security/libcap/cap"

	"gssproxyd/tests/lab"
)

var vmFlag = cmdline.Bool("vm", false, "boot the virtual machine and run the tests that need it")

// The guest's users. Carol has no ticket; frank has none, but the daemon has his keytab; hank has
// neither, but the KDC knows him; stranger has a ticket, but no account at the server.
var (
	root     = User{}
	alice    = User{1000, 1000, []uint32{2000, 2001}}
	bob      = User{UID: 1001, GID: 1001}
	carol    = User{UID: 1002, GID: 1002}
	dave     = User{UID: 1003, GID: 1003}
	erin     = User{UID: 1004, GID: 1004}
	gina     = User{UID: 1006, GID: 1006}
	frank    = User{UID: 1005, GID: 1005}
	hank     = User{UID: 1007, GID: 1007}
	stranger = User{UID: 1666, GID: 1666}
)

// crowd is how many users there are to come at once.
const crowd = 64

func crowdUser(i int) User { return User{UID: uint32(3001 + i), GID: uint32(3001 + i)} }

const (
	passwd = `root:x:0:0::/root:/bin/sh
nobody:x:65534:65534::/nonexistent:/bin/false
statd:x:101:65534::/var/lib/nfs:/bin/false
alice:x:1000:1000::/:/bin/false
bob:x:1001:1001::/:/bin/false
carol:x:1002:1002::/:/bin/false
dave:x:1003:1003::/:/bin/false
erin:x:1004:1004::/:/bin/false
frank:x:1005:1005::/:/bin/false
hank:x:1007:1007::/:/bin/false
gssproxyd:x:999:999::/:/bin/false
`
	group = `root:x:0:
gssproxyd:x:999:
nogroup:x:65534:
alice:x:1000:
bob:x:1001:
carol:x:1002:
dave:x:1003:
erin:x:1004:
frank:x:1005:
hank:x:1007:
devs:x:2000:alice
ops:x:2001:alice
`
	idmapd = `[General]
Domain = ` + lab.Domain + `
Local-Realms = ` + lab.Name + `
[Mapping]
Nobody-User = nobody
Nobody-Group = nogroup
[Translation]
Method = nsswitch
`
	// Gina is in extrausers, in as many groups as a large directory gives.
	ginaPasswd = "gina:x:1006:1006::/:/bin/false\n"
	ginaGroups = 1500
	ginaGroup  = 10000
)

// shipped is a configuration file as it is shipped, with changes: pairs of what is there and what
// is there instead.
func shipped(t *testing.T, name string, changes ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../../dist", name))
	check(t, err)
	text := string(b)
	for i := 0; i < len(changes); i += 2 {
		if !strings.Contains(text, changes[i]) {
			t.Fatalf("dist/%s has no %q any more", name, changes[i])
		}
		text = strings.ReplaceAll(text, changes[i], changes[i+1])
	}
	return text
}

// unit has a request start the daemon as the unit that is shipped does: as whom, where it keeps what
// it keeps, and with which of root's privileges.
func (q *Request) unit(t *testing.T) {
	t.Helper()
	b, err := os.ReadFile("../../dist/gssproxyd.service")
	check(t, err)
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "ExecStart":
			q.Argv = append(q.Argv, strings.Fields(value)[1:]...)
		case "Environment":
			q.Env = append(q.Env, value)
		case "CapabilityBoundingSet", "AmbientCapabilities":
			list := &q.Bounding
			if key[0] == 'A' {
				list = &q.Ambient
			}
			for _, name := range strings.Fields(value) {
				v, err := cap.FromName(strings.ToLower(name))
				check(t, err)
				*list = append(*list, uintptr(v))
			}
		}
	}
	if len(q.Argv) < 4 || len(q.Env) < 2 || len(q.Bounding) == 0 || len(q.Ambient) == 0 {
		t.Fatalf("the unit says less than it did: %+v", q)
	}
}

// guest is the virtual machine as the tests use it: everything but try ends the test when it fails.
type guest struct {
	*VM
	realm *lab.Realm
}

// boot raises a realm and a guest that has it, and our daemon if it is wanted.
func boot(t *testing.T, withOurs bool) *guest {
	t.Helper()
	lab.Require(t)
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Fatal("no QEMU: run tests/nfsvm/install-deps")
	}
	packages, err := FindPackages()
	check(t, err)
	dir := t.TempDir()
	begin := time.Now()
	built := make(chan error, 1)
	go func() { built <- build(dir, withOurs) }()
	r := newRealm(t)
	t.Logf("realm after %v", time.Since(begin).Round(time.Millisecond))
	check(t, <-built)
	t.Logf("programs after %v", time.Since(begin).Round(time.Millisecond))

	begin = time.Now()
	vm, err := Boot(dir, packages, func(add Adder) error { return payload(add, dir, r) })
	check(t, err)
	t.Logf("booted in %v", time.Since(begin).Round(time.Millisecond))
	g := &guest{VM: vm, realm: r}
	t.Cleanup(func() {
		vm.Close()
	})
	return g
}

// build builds what runs in the guest and is the project's, static as it is shipped.
func build(dir string, withOurs bool) error {
	if withOurs {
		if err := lab.Build(filepath.Join(dir, "gssproxyd"), false); err != nil {
			return err
		}
	}
	cmd := exec.Command("go", "build", "-trimpath", "-o", dir+"/", "./guest", "./mutant")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// accounts are the users with a ticket.
func accounts() map[string]User {
	all := map[string]User{"alice": alice, "bob": bob, "dave": dave, "erin": erin, "gina": gina, "stranger": stranger}
	for i := range crowd {
		all[fmt.Sprintf("u%d", i+1)] = crowdUser(i)
	}
	return all
}

// newRealm has the principals of the guest, whose KDC takes over its database, and their keytabs.
// Users have random keys as services do: a password's key takes long to compute.
func newRealm(t *testing.T) *lab.Realm {
	t.Helper()
	r := lab.New(t)
	var queries strings.Builder
	for name := range accounts() {
		if name != "alice" { // the lab has made her
			fmt.Fprintf(&queries, "addprinc -randkey %s\n", name)
		}
		fmt.Fprintf(&queries, "ktadd -norandkey -k %s/users.keytab %s\n", r.Dir, name)
	}
	for _, s := range []string{"nfs", "host"} {
		fmt.Fprintf(&queries, "addprinc -randkey %s/%s\n", s, lab.Host)
		fmt.Fprintf(&queries, "ktadd -norandkey -k %s/%s.keytab %s/%s\n", r.Dir, s, s, lab.Host)
	}
	fmt.Fprintf(&queries, "addprinc -randkey frank\nktadd -norandkey -k %s/frank.keytab frank\naddprinc -randkey hank\n", r.Dir)
	interact(t, r, queries.String(), "/usr/sbin/kadmin.local", "-r", lab.Name)

	keytab, err := os.ReadFile(filepath.Join(r.Dir, "nfs.keytab"))
	check(t, err)
	check(t, os.WriteFile(filepath.Join(r.Dir, "wrong.keytab"), otherKeys(keytab), 0o600))
	return r
}

// otherKeys is a keytab (version 0502) with the same principals, kvnos and enctypes and with other
// keys.
func otherKeys(keytab []byte) []byte {
	out := bytes.Clone(keytab)
	for b := out[2:]; len(b) > 4; {
		size := binary.BigEndian.Uint32(b)
		entry := b[4 : 4+size]
		b = b[4+size:]
		// Components, realm and the components; then name type, time and kvno (9 bytes), enctype,
		// and the key.
		at := 2
		for range 1 + binary.BigEndian.Uint16(entry) {
			at += 2 + int(binary.BigEndian.Uint16(entry[at:]))
		}
		at += 9 + 2
		n := int(binary.BigEndian.Uint16(entry[at:]))
		for i := range entry[at+2:][:n] {
			entry[at+2+i] ^= 0x5a
		}
	}
	return out
}

// interact runs one of MIT's programs that read commands.
func interact(t *testing.T, r *lab.Realm, input, program string, args ...string) {
	t.Helper()
	cmd := r.Command(lab.Root, []string{"KRB5_KDC_PROFILE=" + filepath.Join(r.Dir, "kdc.conf")}, program, args...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil || bytes.Contains(out, []byte(" while ")) {
		t.Fatalf("%s: %v\n%s", program, err, out)
	}
}

// payload is what the guest has on top of Debian's packages.
func payload(add Adder, dir string, r *lab.Realm) error {
	for _, f := range []struct {
		from, to string
		mode     os.FileMode
	}{
		{filepath.Join(dir, "guest"), "usr/bin/guest", 0o755},
		{filepath.Join(dir, "mutant"), "usr/bin/mutant", 0o755},
		{r.Conf, "etc/krb5.conf", 0o644},
		{filepath.Join(r.Dir, "nfs.keytab"), "etc/krb5.keytab", 0o600},
		{filepath.Join(r.Dir, "wrong.keytab"), "etc/wrong.keytab", 0o600},
		{filepath.Join(r.Dir, "frank.keytab"), fmt.Sprintf("var/lib/gssproxy/clients/%d.keytab", frank.UID), 0o600},
		{filepath.Join(r.Dir, "host.keytab"), "etc/nfs-client.keytab", 0o600},
		// The KDC's configuration names its files by their paths on the host.
		{filepath.Join(r.Dir, "kdc.conf"), filepath.Join(r.Dir, "kdc.conf")[1:], 0o644},
	} {
		if err := add.Copy(f.from, f.to, f.mode, 0); err != nil {
			return err
		}
	}
	if err := add.Tree(filepath.Join(r.Dir, "kdc"), filepath.Join(r.Dir, "kdc")[1:]); err != nil {
		return err
	}
	if r.Plugin == lab.Ours {
		// Debian's is there too, and has the earlier line.
		plugin := r.PluginPath(lab.Ours)
		if err := add.Copy(plugin, plugin[1:], 0o644, 0); err != nil {
			return err
		}
		add.File("etc/gss/mech.d/zz-gssproxyd.conf", 0o644, 0, []byte(r.MechLine(lab.Ours)))
	}
	if _, err := os.Stat(filepath.Join(dir, "gssproxyd")); err == nil {
		if err := add.Copy(filepath.Join(dir, "gssproxyd"), "usr/sbin/gssproxyd", 0o755, 0); err != nil {
			return err
		}
	}

	users, groups := passwd, group
	for name, u := range accounts() {
		if u.UID > 3000 {
			users += fmt.Sprintf("%s:x:%d:%d::/:/bin/false\n", name, u.UID, u.GID)
			groups += fmt.Sprintf("%s:x:%d:\n", name, u.GID)
		}
		ccache := filepath.Join(r.Dir, "cc-"+name)
		if _, err := r.Run(lab.Root, nil, "/usr/bin/kinit", "-k", "-t", filepath.Join(r.Dir, "users.keytab"), "-c", "FILE:"+ccache, name); err != nil {
			return err
		}
		// The service's ticket too: who comes at once comes with it. The enctype is one the kernel
		// knows, or rpc.gssd would ask for another.
		if _, err := r.Run(lab.Root, nil, "/usr/bin/kvno", "-q", "-c", "FILE:"+ccache, "-e", lab.EnctypeName(18), "nfs/"+lab.Host); err != nil {
			return err
		}
		if err := add.Copy(ccache, fmt.Sprintf("tmp/krb5cc_%d", u.UID), 0o600, u.UID); err != nil {
			return err
		}
	}
	var extraGroups strings.Builder
	for i := range ginaGroups {
		fmt.Fprintf(&extraGroups, "g%d:x:%d:gina\n", i, ginaGroup+i)
	}
	for name, text := range map[string]string{
		"var/lib/extrausers/passwd": ginaPasswd,
		"var/lib/extrausers/group":  "gina:x:1006:\n" + extraGroups.String(),
		"etc/passwd":                users, "etc/group": groups, "etc/idmapd.conf": idmapd,
		"etc/hosts":         "127.0.0.1 " + lab.Host + " lab localhost\n",
		"etc/nsswitch.conf": "passwd: files extrausers\ngroup: files extrausers\nhosts: files\n",
		"etc/services":      "nfs 2049/tcp\nnfs 2049/udp\nsunrpc 111/tcp\nsunrpc 111/udp\n",
		"etc/protocols":     "tcp 6 TCP\nudp 17 UDP\n",
		"etc/exports":       exports(""),
		"etc/nfs.conf":      "",
	} {
		add.File(name, 0o644, 0, []byte(text))
	}
	return nil
}

// exports is the server's /etc/exports, with more options.
func exports(more string) string {
	return "/export *(rw,fsid=0,sec=krb5:krb5i:krb5p,no_subtree_check" + more + ")\n"
}

// kdc starts the KDC.
func (g *guest) kdc(t *testing.T) {
	t.Helper()
	g.start(t, "krb5kdc", []string{"KRB5_KDC_PROFILE=" + filepath.Join(g.realm.Dir, "kdc.conf")}, "/usr/sbin/krb5kdc", "-n")
}

// serve starts both ends of NFS. The modules are loaded.
func (g *guest) serve(t *testing.T) {
	t.Helper()
	g.sh(t, `mount -t rpc_pipefs rpc_pipefs /run/rpc_pipefs
mount -t nfsd nfsd /proc/fs/nfsd
cd /export
chmod 755 .
[ -d public ] || { mkdir public alice devs; chmod 1777 public; chmod 700 alice; chown 1000:1000 alice; chown 0:2000 devs; chmod 2770 devs; }
exportfs -r`)
	g.start(t, "mountd", nil, "/usr/sbin/rpc.mountd", "-F", "-N", "2", "-N", "3")
	// At both ends: there is no request-key in the guest, or the client would run two programs for
	// every user's name.
	g.start(t, "idmapd", nil, "/usr/sbin/rpc.idmapd", "-f")
	// No client is waited for that would want its locks back.
	g.sh(t, "rpc.nfsd -N 3 -G 10 -L 10 8; echo Y >/proc/fs/nfsd/v4_end_grace")
	g.gssd(t)
}

// gssd starts rpc.gssd. Its keytab is not the server's: who takes one away leaves the other.
func (g *guest) gssd(t *testing.T, env ...string) {
	t.Helper()
	g.start(t, "gssd", env, "/usr/sbin/rpc.gssd", "-f", "-vv", "-k", "/etc/nfs-client.keytab")
	// Until it looks at the kernel's pipes a mount finds no rpc.gssd and asks for no context.
	g.sh(t, "until ls -l /proc/$(pidof rpc.gssd)/fd | grep -q 'rpc_pipefs/gssd/.*/gssd$'; do usleep 10000; done")
}

// unserve undoes serve, and unloads the modules.
func (g *guest) unserve(t *testing.T) {
	t.Helper()
	g.sh(t, noProbes+"rpc.nfsd 0")
	for _, name := range []string{"gssd", "idmapd", "mountd"} {
		g.stop(t, name, 15)
	}
	g.sh(t, `exportfs -au
umount /proc/fs/nfsd /run/rpc_pipefs
for m in nfsd nfsv4 nfs rpcsec_gss_krb5 auth_rpcgss; do rmmod $m || { lsmod >&2; exit 1; }; done
[ ! -e `+flag+` ]`)
}

// dump shows what is known in the guest when something went wrong.
func (g *guest) dump(t *testing.T) {
	p := g.Do(Request{Op: "run", Argv: []string{"/bin/sh", "-c", "dmesg | tail -20; tail -n 25 /log/*; cat /proc/mounts | tail -5"}})
	t.Logf("the guest (%s):\n%s", p.Err, p.Out)
}

func (g *guest) must(t *testing.T, q Request) Response {
	t.Helper()
	p := g.Do(q)
	if p.Took > 2*time.Second {
		t.Logf("%s %s%s took %v", q.Op, strings.Join(q.Argv, " "), q.Path+q.Name, p.Took.Round(time.Millisecond))
	}
	if p.Err != "" {
		t.Fatalf("%s %s%s: %s\n%s", q.Op, strings.Join(q.Argv, " "), q.Path+q.Name, p.Err, p.Out)
	}
	return p
}

// sh runs a shell script as root.
func (g *guest) sh(t *testing.T, script string) string {
	t.Helper()
	return g.must(t, Request{Op: "run", Argv: []string{"/bin/sh", "-ec", script}}).Out
}

func (g *guest) start(t *testing.T, name string, env []string, argv ...string) {
	t.Helper()
	g.must(t, Request{Op: "start", Name: name, Argv: argv, Env: env})
}

func (g *guest) stop(t *testing.T, name string, signal int) {
	t.Helper()
	g.must(t, Request{Op: "stop", Name: name, Signal: signal})
}

// await waits until a file of the guest has a text.
func (g *guest) await(t *testing.T, path, text string, limit time.Duration) time.Duration {
	t.Helper()
	return g.must(t, Request{Op: "wait", Path: path, Text: text, Limit: limit}).Took
}

func (g *guest) put(t *testing.T, path, text string) {
	t.Helper()
	g.must(t, Request{Op: "put", Path: path, Text: text, Mode: 0o644})
}

// mount tries to mount the export with a flavor of security.
func (g *guest) mount(flavor string) Response {
	return g.Do(Request{Op: "run", Limit: time.Minute,
		Argv: []string{"/usr/sbin/mount.nfs4", lab.Host + ":/", "/mnt", "-o", "vers=4.2,sec=" + flavor}})
}

func (g *guest) umount(t *testing.T) {
	t.Helper()
	// The pipes go a little later. An rpc.gssd that starts meanwhile finds the old kind only, of
	// those that are still there, and from then on the kernel uses that kind for all.
	g.sh(t, "umount /mnt; "+noPipes)
}

const noPipes = "while ls /run/rpc_pipefs/nfs | grep -q clnt; do usleep 10000; done"

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
