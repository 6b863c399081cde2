package unit

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"gssproxyd/tests/lab"
)

// run runs a command, which must succeed, and returns what it says.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	said, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, said)
	}
	return string(said)
}

// storesTimeout is how long the daemon waits for what a store says first.
const storesTimeout = 5 * time.Second

// delay is a way to an address on which nothing goes before it is opened.
type delay struct {
	port  string
	asked chan struct{} // closed when somebody wants to go it
	gate  chan struct{}
	open  func()
}

func newDelay(t *testing.T, to string) *delay {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	d := &delay{port: strconv.Itoa(l.Addr().(*net.TCPAddr).Port), asked: make(chan struct{}), gate: make(chan struct{})}
	d.open = sync.OnceFunc(func() { close(d.gate) })
	asked := sync.OnceFunc(func() { close(d.asked) })
	var going sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		l.Close()
		d.open()
		going.Wait()
	})
	going.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			asked()
			going.Go(func() {
				defer from.Close()
				<-d.gate
				to, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer to.Close()
				defer context.AfterFunc(ctx, func() { from.Close(); to.Close() })()
				going.Go(func() {
					io.Copy(to, from)
					to.Close()
				})
				io.Copy(from, to)
			})
		}
	})
	return d
}

// certificates writes what a store and a host know each other by below dir, for users of these names, and
// a revocation list that has nobody in it.
func certificates(t *testing.T, dir string) {
	t.Helper()
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		check(t, err)
		return k
	}
	put := func(name, kind string, der []byte, err error, user string) {
		check(t, err)
		path := filepath.Join(dir, name)
		check(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		check(t, os.Chown(path, account(t, user), -1))
	}
	now := time.Now()
	ca, caKey := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "key store"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte{1},
	}, key()
	for i, user := range []string{"keystored", "gssproxyd"} {
		der, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
		put(user+"-ca.pem", "CERTIFICATE", der, err, user)
		own := key()
		der, err = x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(int64(2 + i)), DNSNames: []string{map[string]string{"keystored": "localhost", "gssproxyd": lab.Host}[user]}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}, ca, &own.PublicKey, caKey)
		put(user+".pem", "CERTIFICATE", der, err, user)
		der, err = x509.MarshalPKCS8PrivateKey(own)
		put(user+".key", "PRIVATE KEY", der, err, user)
		der, err = x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: ca.NotBefore, NextUpdate: ca.NotAfter}, ca, caKey)
		put(user+"-crl.pem", "X509 CRL", der, err, user)
	}
}

// The daemon of the unit gets keys of a keystored of its unit, by a helper that is nobody and has nothing
// but its two sockets; no call notices that they come from there now, that the store ends, or that the
// daemon is started without it.
func TestStores(t *testing.T) {
	const socket, dir, file = "/run/stored/sock", "/etc/gssproxy/keystored.d", "/etc/gssproxy/10-stored.conf"
	r := host(t)
	tree := installed
	check(t, lab.BuildProgram("./keystored", filepath.Join(tree, "bin/keystored"), false))
	run(t, "make", "-s", "-C", tree, "install-keystored", "PREFIX=/usr")
	run(t, "systemd-sysusers", "keystored.conf")
	run(t, "systemd-tmpfiles", "--create", "keystored.conf")
	check(t, os.MkdirAll("/run/stored", 0o755))
	check(t, os.MkdirAll(dir, 0o755))
	certificates(t, dir)
	free, err := lab.FreePort()
	check(t, err)
	port := strconv.Itoa(free)
	config := "[keystored]\nbackend = bolt:/var/lib/keystored/store.db\nlisten = 127.0.0.1:" + port + "\naudit = /var/log/keystored/audit.log\n" +
		strings.ReplaceAll("cert = DIR.pem\nkey = DIR.key\nclient_ca = DIR-ca.pem\ncrl = DIR-crl.pem\n", "DIR", dir+"/keystored")
	write(t, "/etc/gssproxy/keystored.conf", config)
	signer := ""
	for line := range strings.Lines(run(t, "runuser", "-u", "keystored", "--", "keystored", "init", "--without-recovery")) {
		if strings.Contains(line, "signer =") {
			signer = strings.TrimSpace(line) + "\n"
		}
	}
	write(t, "/etc/gssproxy/keystored.conf", config+signer)
	systemctl(t, "daemon-reload")
	systemctl(t, "start", "keystored")
	t.Cleanup(func() {
		exec.Command("systemctl", "stop", "keystored").Run()
		if t.Failed() {
			out, _ := exec.Command("journalctl", "--no-pager", "--output=cat", "--unit=keystored").CombinedOutput()
			t.Logf("the store's journal:\n%s", out)
		}
	})

	section := func(from string) string {
		return "[service/stored]\n  mechs = krb5\n  cred_store = keytab:" + from + "\n  cred_usage = accept\n  euid = nobody\n  socket = " + socket + "\n"
	}
	start(t, map[string]string{file: section("/etc/krb5.keytab")})
	run(t, "keystored", "host", "add", lab.Host, "--recipient", strings.TrimSpace(run(t, "gssproxyd", "keytab", "recipient")))
	run(t, "keystored", "import", "/etc/krb5.keytab", "--hosts", lab.Host, "--write")

	acceptor, client := program(t, r, lab.Nobody, socket), alice(t, r)
	accepts(t, acceptor, client, service, principal)
	// The store answers once a call that came after it was asked is done.
	way := newDelay(t, "127.0.0.1:"+port)
	loaded := make(chan string)
	write(t, file, section("STORE:main:host/"+lab.Host+"@"+lab.Name)+"[store/main]\nurl = https://localhost:"+way.port+"\n"+signer+
		strings.ReplaceAll("ca = DIR-ca.pem\ncert = DIR.pem\nkey = DIR.key\ncrl = DIR-crl.pem\n", "DIR", dir+"/gssproxyd")+"host = "+lab.Host+"\n")
	go func() {
		said, err := exec.Command("gssproxyd", "reload").CombinedOutput()
		loaded <- fmt.Sprintf("%s%v", said, err)
	}()
	<-way.asked
	timer := time.AfterFunc(storesTimeout/2, way.open) // a busy machine's call may take as long as the daemon waits
	defer timer.Stop()
	accepts(t, acceptor, client, service, principal)
	way.open()
	if said := <-loaded; !strings.HasSuffix(said, "loaded\n<nil>") || strings.Contains(said, "warning") {
		t.Errorf("gssproxyd reload: %s", said)
	}
	accepts(t, acceptor, client, service, principal)
	if said := run(t, "gssproxyd", "keytabs", "stored"); !strings.HasPrefix(said, "STORE:main:host/") || strings.Contains(said, "krb5.keytab") {
		t.Errorf("%s", said)
	}
	if said := run(t, "gssproxyd", "status"); !strings.Contains(said, "key store main: answered ") {
		t.Errorf("%s", said)
	}
	if said := run(t, "gssproxyd", "check"); strings.Contains(said, "warning") { // of keystored.conf beside it neither
		t.Errorf("%s", said)
	}

	h := one(t, "store-helper")
	nobodys(t, h)
	for name, want := range map[string]string{"CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapAmb": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2", "Groups": ""} {
		if got := h.status[name]; got != want {
			t.Errorf("the helper's %s is %q, not %q", name, got, want)
		}
	}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", h.pid))
	check(t, err)
	for _, f := range files {
		at, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", h.pid, f.Name()))
		if f.Name() == "3" && strings.HasPrefix(at, "pipe:") {
			continue // go-fuse holds the number in each process of the program, with a pipe that nobody writes to
		}
		if !strings.HasPrefix(at, "socket:") && !strings.HasPrefix(at, "anon_inode:") && at != "/dev/null" && at != "" {
			t.Errorf("the helper has %s open", at)
		}
	}

	systemctl(t, "stop", "keystored")
	accepts(t, acceptor, client, service, principal)
	systemctl(t, "restart", "gssproxyd") // with what was kept
	accepts(t, program(t, r, lab.Nobody, socket), client, service, principal)
	systemctl(t, "start", "keystored")
	lab.Await(t, "contact", func() bool {
		return strings.Contains(run(t, "gssproxyd", "status"), "key store main: answered ")
	})
	if state := systemctl(t, "show", "--value", "--property=NRestarts,Result", "keystored", "gssproxyd"); strings.Join(strings.Fields(state), " ") != "0 success 0 success" && strings.Join(strings.Fields(state), " ") != "success 0 success 0" {
		t.Errorf("the units: %s", state)
	}
}
