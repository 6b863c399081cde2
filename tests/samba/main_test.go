// Package samba tests the daemon against a domain controller of Active Directory: Samba's, which is
// provisioned anew for every run, in a network namespace of its own that has nothing but the
// loopback interface. It is for make nightly: -ad has it run.
package samba

import (
	"context"
	_ "embed"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/tests/lab"
)

var adFlag = flag.Bool("ad", false, "provision a domain controller and test against it (root only)")

const (
	realmName = "AD.TEST"
	password  = "Passw0rd!x"

	// controller is where the domain controller listens. Provisioning puts no 127.0.0.1 into the
	// DNS.
	controller = "127.0.0.2"
)

// inside says to a process that it is in the namespaces.
const inside = "SAMBA_TEST_INSIDE"

func TestMain(m *testing.M) {
	flag.Parse()
	unix.Umask(0o022)
	if !*adFlag {
		os.Exit(m.Run())
	}
	if os.Getenv(inside) == "" {
		os.Exit(again())
	}
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// again runs this program in namespaces of its own.
func again() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=yes")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// prepare has the loopback interface up, the domain controller as name server, and Samba's own
// directories empty.
func prepare() error {
	for _, args := range [][]string{{"link", "set", "lo", "up"}, {"address", "add", controller + "/8", "dev", "lo"}} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w %s", strings.Join(args, " "), err, out)
		}
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mount(2): %w", err)
	}
	for _, dir := range []string{"/run/samba", "/var/lib/samba", "/var/cache/samba", "/var/log/samba"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("none", dir, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("mount on %s: %w", dir, err)
		}
	}
	resolv := filepath.Join("/run/samba", "resolv.conf")
	if err := os.WriteFile(resolv, []byte("nameserver "+controller+"\n"), 0o644); err != nil {
		return err
	}
	if err := unix.Mount(resolv, "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount on /etc/resolv.conf: %w", err)
	}
	return nil
}

//go:embed directory.py
var directory []byte

// domain is a domain with its controller.
type domain struct {
	*lab.Realm
	smbConf string
	script  string
	groups  map[string][]string // the SIDs of users' groups in the domain, sorted
}

const krb5Conf = `[libdefaults]
  default_realm = AD.TEST
  dns_lookup_kdc = false
  dns_lookup_realm = false
  dns_canonicalize_hostname = false
  rdns = false
%s
[realms]
  AD.TEST = {
    kdc = ` + controller + `
  }

[domain_realm]
  .ad.test = AD.TEST
`

// up provisions a domain, fills it, and starts its controller.
func up(t *testing.T) *domain {
	t.Helper()
	r, err := lab.UpWithoutKDC(context.Background(), fmt.Sprintf(krb5Conf, "  forwardable = true\n"))
	check(t, err)
	t.Cleanup(func() { r.Close() })
	d := &domain{Realm: r, smbConf: filepath.Join(r.Dir, "dc/etc/smb.conf"), script: filepath.Join(r.Dir, "directory.py")}
	check(t, os.WriteFile(d.script, directory, 0o644))
	begin := time.Now()
	d.run(t, "/usr/bin/samba-tool", "domain", "provision", "--realm="+realmName, "--domain=AD", "--server-role=dc",
		"--dns-backend=SAMBA_INTERNAL", "--adminpass="+password, "--host-name=dc1", "--host-ip="+controller,
		"--targetdir="+filepath.Join(r.Dir, "dc"), "--use-rfc2307", "--option=interfaces=lo", "--option=bind interfaces only=yes")
	d.directory(t, "populate")
	d.groups = make(map[string][]string)
	for _, user := range []string{"alice", "many"} {
		sids := strings.Fields(d.directory(t, "groups", user))
		slices.Sort(sids)
		d.groups[user] = sids
	}
	t.Logf("provisioned in %v", time.Since(begin).Round(time.Second))
	// The services that the tests need, in one process.
	dc, err := r.Start(r.Command(lab.Root, nil, "/usr/sbin/samba", "-F", "-M", "single", "--debug-stdout", "-s", d.smbConf,
		"--option=server services=ldap cldap kdc dns", "--option=dns forwarder="), filepath.Join(r.Dir, "samba.log"))
	check(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the domain controller:\n%s", tail(dc.Output(), 8<<10))
		}
	})
	for deadline := time.Now().Add(lab.Patience); !lab.Listening(88) || !lab.Listening(53); {
		if time.Now().After(deadline) || dc.Err() != nil {
			t.Fatalf("the domain controller does not listen: %v\n%s", dc.Err(), dc.Output())
		}
	}
	return d
}

// run runs a program that must succeed, and returns what it writes to stdout and stderr.
func (d *domain) run(t *testing.T, path string, args ...string) string {
	t.Helper()
	out, err := d.Command(lab.Root, []string{"KRB5_CONFIG=" + filepath.Join(d.Dir, "none")}, path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", path, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// directory runs directory.py.
func (d *domain) directory(t *testing.T, args ...string) string {
	t.Helper()
	return d.run(t, "/usr/bin/python3", append([]string{d.script, d.smbConf}, args...)...)
}

// keytab is a keytab with the keys that the accounts have now.
func (d *domain) keytab(t *testing.T, accounts ...string) string {
	t.Helper()
	path := d.Path("keytab")
	for _, a := range accounts {
		d.directory(t, "keytab", path, a)
	}
	check(t, os.Chmod(path, 0o600))
	return path
}

// conf is another krb5.conf, with lines for [libdefaults].
func (d *domain) conf(t *testing.T, lines string) string {
	t.Helper()
	path := d.Path("krb5.conf")
	check(t, os.WriteFile(path, fmt.Appendf(nil, krb5Conf, lines), 0o644))
	return path
}

// tool starts a gsstool that ends with the test.
func (d *domain) tool(t *testing.T, u lab.User, env ...string) *lab.Tool {
	t.Helper()
	g, err := d.Tool(u, env...)
	check(t, err)
	t.Cleanup(func() { g.Close() })
	return g
}

// client is a gsstool of a user with fresh tickets.
func (d *domain) client(t *testing.T, user string, kinit ...string) *lab.Tool {
	t.Helper()
	env, err := d.Kinit(user, password, kinit...)
	check(t, err)
	return d.tool(t, lab.Nobody, env...)
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func tail(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return "...\n" + s[len(s)-n:]
}
