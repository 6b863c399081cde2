package e2e

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"gssproxyd/tests/lab"
)

// Users of sockets that not everybody may connect to.
var (
	member   = lab.User{UID: 4711, GID: 4713}
	owner    = lab.User{UID: 4712, GID: 4712}
	stranger = lab.User{UID: 4714, GID: 4714}
)

// TestSocketAccess: who may connect to a service's socket, when it is opened and after each reload, to
// a daemon that is root and to one that is another user by now. Whom the kernel keeps out has its
// error; whom it lets in is served, and whoever is connected stays.
func TestSocketAccess(t *testing.T) {
	needOurs(t)
	t.Run("root", func(t *testing.T) {
		path := keytab(t)
		socketAccess(t, path, daemon(t, "ours", lab.Options{Keytab: path, RCache: "none:"}))
	})
	t.Run("run_as_user", func(t *testing.T) {
		path, d := nobodysDaemon(t)
		check(t, os.Chmod(filepath.Join(d.Options.Dir, "gssproxy.conf"), 0o644))
		socketAccess(t, path, d)
	})
}

func socketAccess(t *testing.T, path string, d *lab.Daemon) {
	socket := filepath.Join(d.Options.Dir, "access")
	reload := func(lines string) {
		t.Helper()
		text := "[service/more]\n  mechs = krb5\n  cred_store = keytab:" + path + "\n  euid = 4711\n  allow_any_uid = yes\n  socket = " + socket + "\n" + lines
		check(t, os.WriteFile(filepath.Join(d.Options.Dir, "conf.d", "10-more.conf"), []byte(text), 0o644))
		check(t, d.Reload())
	}
	initiator := alice(t)
	var connected *lab.Wire
	for i, test := range []struct {
		lines    string
		mode     fs.FileMode
		uid, gid uint32
		in, out  []lab.User
	}{
		{"socket_group = 4713\nsocket_mode = 0660\n", 0o660, 0, 4713, []lab.User{member, lab.Root}, []lab.User{owner, stranger, lab.Nobody}},
		{"socket_group = 4713\nsocket_mode = 0606\n", 0o606, 0, 4713, []lab.User{owner, stranger}, []lab.User{member}},
		{"socket_owner = 4712\nsocket_group = 4713\nsocket_mode = 0600\n", 0o600, 4712, 4713, []lab.User{owner, lab.Root}, []lab.User{member, stranger}},
		{"socket_owner = 4712\nsocket_group = nogroup\nsocket_mode = 0660\n", 0o660, 4712, 65534, []lab.User{owner, lab.Nobody}, []lab.User{member, stranger}},
		{"", 0o666, 0, 0, []lab.User{owner, member, stranger}, nil},
	} {
		reload(test.lines)
		st, err := os.Stat(socket)
		check(t, err)
		if sys := st.Sys().(*syscall.Stat_t); st.Mode().Perm() != test.mode || sys.Uid != test.uid || sys.Gid != test.gid {
			t.Errorf("%q: the socket is %v, of %d:%d", test.lines, st.Mode(), sys.Uid, sys.Gid)
		}
		for _, u := range test.in {
			w, err := d.WireAs(u, socket)
			if err != nil {
				t.Errorf("%q: uid %d: %v", test.lines, u.UID, err)
				continue
			}
			t.Cleanup(func() { w.Close() })
			check(t, lab.AcceptOne(initiator, service, w))
			if i == 0 && u == member {
				connected = w
			}
		}
		for _, u := range test.out {
			if w, err := d.WireAs(u, socket); !errors.Is(err, syscall.EACCES) {
				t.Errorf("%q: uid %d: %v", test.lines, u.UID, err)
				if err == nil {
					w.Close()
				}
			}
		}
		if connected == nil {
			t.Fatal("the first one is not connected")
		}
		check(t, lab.AcceptOne(initiator, service, connected))
		if i > 0 {
			continue
		}
		for u, may := range map[lab.User]bool{member: true, stranger: false} {
			g, err := realm(t).Tool(u, realm(t).PluginEnv(socket)...)
			check(t, err)
			t.Cleanup(func() { g.Close() })
			if err := g.Acquire(""); (err == nil) != may {
				t.Errorf("an unmodified program of uid %d: %v", u.UID, err)
			}
		}
	}

	// After a restart it takes its former place, whoever the file belongs to, and whatever that one has made of it.
	reload("socket_owner = 4712\nsocket_mode = 0600\n")
	check(t, d.Stop())
	check(t, os.Chmod(socket, 0))
	check(t, d.Start())
	w, err := d.WireAs(owner, socket)
	check(t, err)
	defer w.Close()
	check(t, lab.AcceptOne(initiator, service, w))
	if strings.Contains(d.Output(), "not all sockets could be opened") {
		t.Error("a reload has failed")
	}
	if !strings.Contains(d.Output(), `msg="changed who may connect to a socket" path=`+socket) {
		t.Error("the log does not say that a socket has changed")
	}
}
