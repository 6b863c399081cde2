// Package gssproxyd_test holds the test of the project's shape: which package may import which.
package gssproxyd_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "gssproxyd"

// A room is a package, or with "/..." a package and all below it, and what its non-test files may
// import besides the standard library. The first room that fits a package is its room. "own" are
// packages of this project, "others" are modules.
type room struct {
	name   string
	own    string
	others string
}

// rooms is the project's plan. A request goes down it once and comes back up once; an import that
// would need a new arrow is a reason to think again, and then to write the reason here.
var rooms = []room{
	// The wire: knows neither sockets nor Kerberos.
	{"xdr/...", "xdr/...", ""},
	{"rpc/peer", "", "golang.org/x/sys"},
	{"rpc/gss", "rpc xdr mech mech/krb5", ""}, // over TCP, for servers that are not ours
	{"rpc/...", "xdr rpc/... limits phase openat mech/reason", "golang.org/x/sys"},
	// Who pays: knows not what is counted.
	{"limits", "", ""},
	// How long parts of calls take: knows not what they are.
	{"phase", "", ""},
	// Files: what is decided about one and what is done with it are about the same one.
	{"openat", "", "golang.org/x/sys"},
	// What happened: knows neither Kerberos nor who decides.
	{"audit", "openat", "golang.org/x/sys"},
	// The rules: who a peer is to us, decided without I/O on sockets and without Kerberos.
	{"conf", "openat rpc/peer mech/reason", ""},
	{"conf/gen", "conf mech/reason", ""}, // writes the manual page from the option table
	// Kerberos: knows no keytab files, no RPC, no configuration of the daemon.
	{"mech/krb5/etype", "", "github.com/jcmturner/gokrb5/v8/iana"},
	{"mech/krb5/der", "", ""},
	{"mech/krb5/localname", "mech mech/reason mech/krb5/krb5conf mech/krb5/wire", ""},
	{"mech/krb5/wire", "mech mech/krb5/etype mech/krb5/der", "github.com/jcmturner/gokrb5/v8/iana"},
	{"mech/krb5/krb5conf", "mech/krb5/etype", ""},
	{"mech/krb5/rcache", "", "golang.org/x/sys"},
	{"mech/krb5/ccache", "mech mech/reason mech/krb5 mech/krb5/etype openat", "golang.org/x/sys"},
	{"mech/krb5/kdc", "mech mech/reason mech/krb5 mech/krb5/wire mech/krb5/etype mech/krb5/der mech/krb5/krb5conf", "golang.org/x/crypto"},
	{"mech/spnego", "mech mech/reason mech/krb5/der", ""}, // around any mechanism: knows none
	{"mech/krb5", "mech mech/reason mech/krb5/wire mech/krb5/etype mech/krb5/der mech/krb5/krb5conf mech/krb5/rcache", ""},
	{"mech", "mech/reason", ""},
	// Ids of refusals, of all rooms: knows none.
	{"mech/reason", "", ""},
	// Keys: know not who asks.
	{"keytab", "mech/krb5/etype mech/krb5/wire openat", "github.com/fsnotify/fsnotify golang.org/x/sys"},
	{"keytab/seal", "mech/krb5/etype openat", "golang.org/x/crypto golang.org/x/sys"},
	// Changing keys at a KDC: knows not when, nor where they are kept.
	{"keystore/kadm", "mech mech/reason mech/krb5 mech/krb5/etype mech/krb5/kdc mech/krb5/wire rpc rpc/gss xdr", ""},
	{"keytab/sealed", "mech/krb5/etype openat", "filippo.io/age golang.org/x/sys"},
	// The client side: knows not the daemon. Adapters to other interfaces are beside it, and it
	// knows none of them.
	{"interposer", "rpc xdr mech mech/reason mech/krb5 mech/krb5/der mech/spnego", ""},
	{"interposer/interposertest", "interposer mech mech/reason mech/krb5/der rpc/... xdr", ""},
	{"interposer/sshgss", "interposer mech mech/reason", "golang.org/x/crypto"}, // whose types are in its face
	{"interposer/...", "interposer/... mech mech/reason", ""},
	// Files as another way in: knows neither configuration nor credentials, nor who decides.
	{"fuse", "interposer limits mech mech/reason rpc rpc/peer xdr", "github.com/hanwen/go-fuse/v2 golang.org/x/sys"},
	// What a call means; below it the credentials that it takes, which know no protocol.
	{"gssproxyd/proc", "audit gssproxyd/creds gssproxyd/nss conf keytab/seal limits mech mech/reason mech/krb5 mech/krb5/etype mech/krb5/kdc mech/krb5/krb5conf phase rpc rpc/peer xdr", ""},
	{"gssproxyd/admin", "rpc rpc/peer xdr limits", ""},
	{"gssproxyd/creds", "audit conf keytab/... limits mech mech/reason mech/krb5 mech/krb5/ccache mech/krb5/etype mech/krb5/kdc mech/krb5/krb5conf mech/krb5/localname mech/krb5/rcache phase rpc/peer", ""},
	// The kernel's NFS server: knows not who registers.
	{"gssproxyd/knfsd", "mech/krb5/etype", ""},
	// Keys from key stores: believes nothing of who asks them.
	{"gssproxyd/stores", "audit conf gssproxyd/nss keystore/crl keystore/delivery keytab limits mech/krb5/etype mech/reason openat", "golang.org/x/sys"},
	// What is counted, as text, and who serves that to strangers: know not each other.
	{"gssproxyd/metrics", "audit gssproxyd/creds gssproxyd/stores limits mech/reason phase xdr", "github.com/prometheus/client_golang github.com/prometheus/common"},
	{"gssproxyd/scrape", "gssproxyd/nss", "golang.org/x/sys"},
	// How a log is written: knows not what is logged.
	{"gssproxyd/logs", "", "github.com/coreos/go-systemd/v22/journal golang.org/x/sys"},
	// What stays root: knows neither keys nor configuration.
	{"gssproxyd/starter", "gssproxyd/nss gssproxyd/pods gssproxyd/scrape rpc", "golang.org/x/sys kernel.org/pub/linux/libs/security/libcap/cap"},
	// Pods that are registered, and their sockets: knows not what is asked for there.
	{"gssproxyd/pods", "audit limits mech/reason openat rpc rpc/peer xdr", "golang.org/x/sys"},
	// The CSI driver: shows pods their sockets, and knows nothing else of the daemon.
	{"gssproxyd-csi", "audit gssproxyd/pods mech/reason openat rpc rpc/peer", "golang.org/x/sys github.com/container-storage-interface/spec google.golang.org/grpc google.golang.org/protobuf"},
	// What programs have in common on their command lines: knows not what they do.
	{"command", "audit conf", "github.com/spf13/cobra"},
	// The C daemon beside ours: knows neither configuration nor Kerberos.
	{"gssproxyd/migrate", "openat rpc rpc/peer", "golang.org/x/sys"},
	// What travels in the clear, for who looks at it: has no keys, and none of the daemon's.
	{"gssproxyd/decode", "keytab/seal mech mech/krb5/der mech/krb5/wire mech/reason mech/spnego xdr", ""},
	// The daemon wires it all, and leaves wire bytes and DER to those below.
	{"gssproxyd/...", "audit command gssproxyd/... conf fuse interposer keytab/... limits mech mech/reason mech/krb5 mech/krb5/ccache mech/krb5/etype mech/krb5/kdc mech/krb5/krb5conf mech/krb5/localname mech/krb5/rcache openat phase rpc rpc/peer xdr",
		"github.com/spf13/cobra github.com/spf13/pflag github.com/coreos/go-systemd/v22 golang.org/x/sys kernel.org/pub/linux/libs/security/libcap/cap"},
	// Keys of a fleet. What a host gets of a store; where a store's records are, which knows not what is
	// in them; what is asked of a store over the network; the store itself, which knows no network.
	{"keystore/delivery", "mech/krb5/etype", ""},
	{"keystore/crl", "", ""},
	{"keystore/rotate", "audit keystore keystore/kadm keytab mech mech/reason mech/krb5 mech/krb5/etype mech/krb5/kdc", ""},
	{"keystore/bolt", "keystore openat", "go.etcd.io/bbolt golang.org/x/sys"},
	{"keystore/etcd", "keystore", "go.etcd.io/etcd go.uber.org/zap google.golang.org/grpc"},
	{"keystore/api", "audit conf keystore keystore/crl keystore/delivery limits mech/krb5 mech/krb5/etype mech/reason openat rpc rpc/peer", "golang.org/x/sys"},
	{"keystore", "audit keystore/delivery mech/krb5/etype mech/reason openat", "filippo.io/age golang.org/x/crypto golang.org/x/sys"},
	{"keystored", "audit command conf gssproxyd/logs keystore/... keytab/... limits mech mech/krb5/... mech/reason openat rpc rpc/peer", "github.com/spf13/cobra github.com/spf13/pflag github.com/coreos/go-systemd/v22 golang.org/x/sys"},
	{"tests/...", "...", "*"},
}

// fits says whether one of the patterns, separated by blanks, is path or a parent of it written
// with "/...".
func fits(patterns, path string) bool {
	for _, p := range strings.Fields(patterns) {
		base, tree := strings.CutSuffix(p, "/...")
		if p == "..." || path == p || tree && (path == base || strings.HasPrefix(path, base+"/")) {
			return true
		}
	}
	return false
}

// arrow returns why the package may not import the other; both are import paths.
func arrow(from, to string) error {
	inside := func(path string) (string, bool) { return strings.CutPrefix(path, module+"/") }
	name, _ := inside(from)
	for _, r := range rooms {
		if !fits(r.name, name) {
			continue
		}
		if own, ok := inside(to); ok {
			if !fits(r.own, own) {
				return fmt.Errorf("%s imports %s, but may import of this project only: %s", name, own, orNothing(r.own))
			}
			return nil
		}
		if first, _, _ := strings.Cut(to, "/"); !strings.Contains(first, ".") || r.others == "*" {
			return nil // the standard library
		}
		for _, m := range strings.Fields(r.others) {
			if to == m || strings.HasPrefix(to, m+"/") {
				return nil
			}
		}
		return fmt.Errorf("%s imports %s, but may import of other modules only: %s", name, to, orNothing(r.others))
	}
	return fmt.Errorf("%s has no room; give it one in this test, with its imports", from)
}

func orNothing(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}

func TestImports(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("not run: the go command is not in PATH")
	}
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	seen := make(map[string]bool)
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		seen[p.ImportPath] = true
		if p.ImportPath == module {
			continue // this directory: no code but this test
		}
		if err := arrow(p.ImportPath, "fmt"); err != nil {
			t.Error(err)
			continue
		}
		for _, to := range p.Imports {
			if err := arrow(p.ImportPath, to); err != nil {
				t.Error(err)
			}
		}
	}
	for _, name := range []string{"xdr", "rpc", "rpc/peer", "conf", "mech", "mech/krb5", "keytab", "keytab/seal", "gssproxyd"} {
		if !seen[module+"/"+name] {
			t.Errorf("package %s was not looked at", name)
		}
	}
}

// What one program takes, those that do not need it are not to carry: gRPC is for the CSI driver, and
// for keystored, which talks to etcd by it; no host has a store's backends.
func TestLinked(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("not run: the go command is not in PATH")
	}
	modules := map[string][]string{
		"google.golang.org/grpc":                      {"./gssproxyd-csi", "./keystored"},
		"github.com/container-storage-interface/spec": {"./gssproxyd-csi"},
		"go.etcd.io/etcd":                             {"./keystored"},
		"go.etcd.io/bbolt":                            {"./keystored"},
		"github.com/hanwen/go-fuse/v2":                {"./gssproxyd"},
	}
	for _, program := range []string{"./gssproxyd", "./interposer/...", "./gssproxyd-csi", "./keystored"} {
		out, err := exec.Command("go", "list", "-deps", program).Output()
		if err != nil {
			t.Fatal(err)
		}
		for module, programs := range modules {
			got := bytes.Contains(out, []byte("\n"+module+"/")) || bytes.Contains(out, []byte("\n"+module+"\n"))
			if want := slices.Contains(programs, program); got != want {
				t.Errorf("%s has %s linked: %t", program, module, got)
			}
		}
	}
}

// The plan itself: arrows that must stay and arrows that must never be.
func TestPlan(t *testing.T) {
	for _, test := range []struct {
		from, to string
		ok       bool
	}{
		{"xdr", "encoding/binary", true},
		{"xdr", "gssproxyd/rpc", false},
		{"xdr", "golang.org/x/sys/unix", false},
		{"rpc", "gssproxyd/xdr", true},
		{"rpc", "gssproxyd/rpc/peer", true},
		{"rpc", "gssproxyd/conf", false},
		{"rpc", "gssproxyd/openat", true},
		{"rpc/gss", "gssproxyd/mech/krb5", true},
		{"rpc", "gssproxyd/mech/krb5", false},
		{"keystore/kadm", "gssproxyd/keytab", false},
		{"openat", "gssproxyd/rpc", false},
		{"audit", "gssproxyd/mech/reason", false},
		{"rpc/peer", "gssproxyd/rpc", false},
		{"rpc/peer", "golang.org/x/sys/unix", true},
		{"conf", "gssproxyd/rpc/peer", true},
		{"conf", "gssproxyd/rpc", false},
		{"conf", "gssproxyd/mech", false},
		{"mech", "gssproxyd/mech/krb5", false},
		{"mech/krb5", "gssproxyd/mech/krb5/der", true},
		{"mech/krb5", "gssproxyd/keytab", false},
		{"mech/krb5", "gssproxyd/mech/krb5/kdc", false},
		{"mech/krb5", "github.com/jcmturner/gokrb5/v8/types", false}, // its tests only
		{"mech/krb5", "gssproxyd/conf", false},
		{"mech/krb5/etype", "gssproxyd/mech", false},
		{"mech/krb5/wire", "gssproxyd/mech/krb5", false},
		{"mech/krb5/wire", "github.com/jcmturner/gokrb5/v8/iana/nametype", true},
		{"mech/krb5/wire", "github.com/jcmturner/gokrb5/v8/messages", false},
		{"gssproxyd/proc", "gssproxyd/mech/krb5/wire", false},
		{"mech/krb5/etype", "golang.org/x/crypto/md4", false},
		{"mech/spnego", "gssproxyd/mech/krb5/der", true},
		{"mech/spnego", "gssproxyd/mech/krb5", false},
		{"keytab", "gssproxyd/mech/krb5/etype", true},
		{"keytab", "gssproxyd/mech/krb5", false},
		{"keytab", "gssproxyd/rpc/peer", false},
		{"keytab/seal", "gssproxyd/keytab", false},
		{"keytab", "filippo.io/age", false},
		{"keytab/sealed", "filippo.io/age/armor", true},
		{"keytab/sealed", "gssproxyd/keytab", false},
		{"interposer", "gssproxyd/keytab", false},
		{"interposer", "gssproxyd/interposer/negotiate", false},
		{"interposer/negotiate", "gssproxyd/interposer", true},
		{"interposer/negotiate", "gssproxyd/xdr", false},
		{"interposer/sshgss", "golang.org/x/crypto/ssh", true},
		{"interposer", "golang.org/x/crypto/ssh", false},
		{"interposer", "gssproxyd/gssproxyd/proc", false},
		{"fuse", "gssproxyd/interposer", true},
		{"fuse", "gssproxyd/conf", false},
		{"fuse", "gssproxyd/gssproxyd/proc", false},
		{"fuse", "github.com/hanwen/go-fuse/v2/fs", true},
		{"gssproxyd/proc", "gssproxyd/fuse", false},
		{"gssproxyd", "gssproxyd/keytab/seal", true},
		{"gssproxyd/proc", "gssproxyd/gssproxyd/creds", true},
		{"gssproxyd/creds", "gssproxyd/gssproxyd/proc", false},
		{"gssproxyd/creds", "gssproxyd/xdr", false},
		{"gssproxyd/creds", "gssproxyd/rpc", false},
		{"gssproxyd/proc", "gssproxyd/mech/krb5/der", false},
		{"gssproxyd/proc", "gssproxyd/tests/lab", false},
		{"gssproxyd", "google.golang.org/grpc", false},
		{"gssproxyd/pods", "audit google.golang.org/grpc", false},
		{"gssproxyd-csi", "google.golang.org/grpc", true},
		{"gssproxyd-csi", "gssproxyd/conf", false},
		{"keystore", "gssproxyd/keystore/api", false},
		{"keystore/api", "gssproxyd/keystore/bolt", false},
		{"keystore/delivery", "gssproxyd/keystore", false},
		{"gssproxyd", "gssproxyd/keystore", false},
		{"gssproxyd", "example.com/other", false},
		{"tests/lab", "gssproxyd/mech/krb5/der", true},
		{"nowhere", "fmt", false},
	} {
		if err := arrow(module+"/"+test.from, test.to); (err == nil) != test.ok {
			t.Errorf("%s to %s: %v", test.from, test.to, err)
		}
	}
}
