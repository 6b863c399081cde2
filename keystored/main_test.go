package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"gssproxyd/conf"
)

func TestMain(m *testing.M) {
	unix.Umask(0o022)
	testscript.Main(m, map[string]func(){"keystored": main})
}

// TestScripts runs the command line as the files in testdata/script say.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script", Cmds: map[string]func(*testscript.TestScript, bool, []string){"keytab": keytabFile, "identity": identityDir}})
}

// keytabFile writes a keytab: keytab FILE PRINCIPAL KVNO ENCTYPE SEED ..., where the bytes of a key are
// all SEED.
func keytabFile(ts *testscript.TestScript, _ bool, args []string) {
	b := []byte{5, 2}
	for rest := args[1:]; len(rest) >= 4; rest = rest[4:] {
		number := func(s string) int {
			n, err := strconv.Atoi(s)
			ts.Check(err)
			return n
		}
		b = append(b, keytabEntry(rest[0], number(rest[1]), number(rest[2]), byte(number(rest[3])))...)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o600))
}

// keytabEntry is a record of a keytab.
func keytabEntry(principal string, kvno, enctype int, seed byte) []byte {
	name, realm, _ := strings.Cut(principal, "@")
	var r []byte
	text := func(s string) { r = append(binary.BigEndian.AppendUint16(r, uint16(len(s))), s...) }
	components := strings.Split(name, "/")
	r = binary.BigEndian.AppendUint16(r, uint16(len(components)))
	text(realm)
	for _, c := range components {
		text(c)
	}
	r = binary.BigEndian.AppendUint32(r, 1)
	r = binary.BigEndian.AppendUint32(r, 1700000000)
	r = append(r, byte(kvno))
	r = binary.BigEndian.AppendUint16(r, uint16(enctype))
	size := map[int]int{17: 16, 18: 32, 23: 16, 3: 8}[enctype]
	text(string(bytes.Repeat([]byte{seed}, size)))
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(r))), r...)
}

// identityDir makes a directory for an identity.
func identityDir(ts *testscript.TestScript, _ bool, args []string) {
	for _, a := range args {
		ts.Check(os.Mkdir(ts.MkAbs(a), 0o700))
	}
}

// Every error of a configuration names its place, what is expected and what to do.
func TestConfigErrors(t *testing.T) {
	const good = "[keystored]\nbackend = bolt:/s\n"
	for _, test := range []struct{ text, want string }{
		{"", ": there is no section [keystored]; write it, with backend = bolt:/var/lib/keystored/store.db"},
		{"[keystored]\n", ":1: [keystored] has no backend; add backend = ..."},
		{"x = y\n" + good, ":1: a key before the first section; [keystored], [admin/NAME] or [realm/NAME] is expected; put it into a section"},
		{"[keystore]\n" + good, ":1: unknown section [keystore]; [keystored], [admin/NAME] or [realm/NAME] is expected; did you mean keystored?"},
		{"[keystored\n" + good, `:1: the section header "[keystored" has no ] at its end; [keystored], [admin/NAME] or [realm/NAME] is expected; end it with ]; a comment must have a line of its own`},
		{good + "[keystored]\n", ":3: [keystored] is there twice: line 1 already begins it; each section is expected once; put its lines there"},
		{good + "listn = :1\n", `:3: unknown key "listn" in [keystored]; did you mean listen?`},
		{good + "backend = bolt:/t\n", ":3: backend is there twice: line 2 already sets it; one line is expected; remove one of them"},
		{good + "audit =\n", `:3: audit = "" has no value; write one, or remove the line`},
		{good + "audit = x.log\n", `:3: audit = "x.log" is not absolute; a path that begins with / is expected`},
		{good + "audit = /x # here\n", ":3: audit has a comment behind its value; a value alone is expected; there are no comments behind a value: give the comment a line of its own"},
		{"[keystored]\nbackend = sqlite:/s\n", `:2: backend = "sqlite:/s" is no backend; bolt:/FILE or etcd:URL,URL is expected`},
		{"[keystored]\nbackend = bolt:s\n", `:2: backend = "bolt:s" is not absolute; a path that begins with / is expected`},
		{"[keystored]\nbackend = etcd:etcd1:2379\n", `:2: backend = "etcd:etcd1:2379" has "etcd1:2379" in it; URLs are expected, separated by commas, as in etcd:https://etcd1.example.com:2379`},
		{"[keystored]\nbackend = etcd:https://a:2379\n", ":1: etcd_ca is missing: who answers at an https URL would not be known; add etcd_ca = /FILE"},
		{"[keystored]\nbackend = etcd:http://a:2379\netcd_user = x\n", ":1: etcd_user and etcd_password_file go together, and one of them is missing; add it"},
		{good + "etcd_user = x\netcd_password_file = /x\n", ":1: etcd_user has no effect without backend = etcd:...; remove the line"},
		{good + "listen = 8443\n", `:3: listen = "8443" is no address; ADDRESS:PORT is expected, as in 192.0.2.1:8443, or :8443 for all addresses`},
		{good + "listen = :8443\ncert = /c\nkey = /k\n", ":1: listen is set, and client_ca is not; cert, key and client_ca are expected with it; add client_ca = /FILE"},
		{good + "cert = /c\n", ":1: cert has no effect without listen; add listen = :8443, or remove the line"},
		{good + "signer = ed25519:abc\n", `:3: signer = "ed25519:abc" is no signer; what keystored init or keystored master show prints is expected`},
		{good + "[admin/a]\nuid = 0\n", ":3: [admin/a] has no verbs; add verbs = ..."},
		{good + "[admin/a]\nverbs = hosts\n", ":3: [admin/a] names nobody; certificate or uid is expected; add certificate = NAME, the DNS or URI name in it, or uid = N"},
		{good + "[admin/a]\nuid = 0\nverbs = show\n", ":3: [admin/a] has no principals; the verbs are about some; add principals = HTTP/*@EXAMPLE.COM; * stands for any characters"},
		{good + "[admin/a]\nuid = 0\nverbs = show, see\nprincipals = *\n", `:5: verbs = "show, see" has "see" in it; import, policy, rotate, disable, delete, history, show, list, hosts, master are expected`},
		{good + "[admin/a]\nuid = nobody-here\nverbs = hosts\n", `:4: uid = "nobody-here" is no user of this host; a uid or a name is expected`},
		{good + "[realm/A]\n", ":3: [realm/A] has no change; add change = ..."},
		{good + "[realm/A]\nchange = ldap\n", `:4: change = "ldap" is no way to change keys; kadmin, the protocol of MIT krb5, or kpasswd, which Active Directory has, is expected`},
		{good + "[realm/A]\nchange = kadmin\nlag = 5\n", `:5: lag = "5" is no time; a number with a unit is expected, as in 90s, 10h`},
		{good + "[realm/A]\nchange = kadmin\nenctypes = aes999\n", `:5: enctypes = "aes999" has "aes999" in it; names such as aes256-cts-hmac-sha1-96 are expected`},
		{good + "[admin/]\nuid = 0\n", ":3: unknown section [admin/]; [keystored], [admin/NAME] or [realm/NAME] is expected; known are keystored, admin/NAME, realm/NAME"},
	} {
		file := t.TempDir() + "/keystored.conf"
		if err := os.WriteFile(file, []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := load(file)
		errs, ok := err.(*conf.Errors)
		if !ok {
			t.Errorf("%q: %v", test.text, err)
			continue
		}
		if got := strings.TrimPrefix(errs.Problems[0].String(), file); got != test.want {
			t.Errorf("%q:\n%s, want\n%s", test.text, got, test.want)
		}
	}
	file := t.TempDir() + "/keystored.conf"
	text := "# All.\n[keystored]\nbackend = etcd:https://a:2379, https://b:2379\netcd_ca = /ca\netcd_cert = /c\netcd_key = /k\netcd_user = u\netcd_password_file = /p\netcd_prefix = /keys\n" +
		"name = one\nlisten = :8443\ncert = /c\nkey = /k\nclient_ca = /a\ncrl = /r\nsigner = ed25519:" + strings.Repeat("A", 43) + "\nstate_dir = /d\nsocket = /run/s\naudit = /log\n" +
		"[admin/web]\ncertificate = admin.example.com\nuid = 0\nprincipals = HTTP/*@A, host/*@A\nprincipals = x@A\nverbs = show list\n[realm/A]\nchange = kadmin\nenctypes = aes256-cts aes128-cts\nlag = 1m\nmax_life = 10h\nmax_renewable = 48h\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := load(file)
	if err != nil || len(c.warnings) > 0 {
		t.Fatal(err, c.warnings)
	}
	if got := fmt.Sprintln(c.etcd, c.name, c.listen, c.tls, len(c.signers), c.stateDir, c.socket, c.audit, c.admins[0].Principals, c.admins[0].Verbs, *c.admins[0].UID, *c.realms["A"]); got !=
		"{[https://a:2379 https://b:2379] /ca /c /k u /p /keys} one :8443 {/c /k /a /r} 1 /d /run/s /log [HTTP/*@A host/*@A x@A] [show list] 0 {kadmin [18 17] 60000000000 36000000000000 172800000000000}\n" {
		t.Error(got)
	}
}
