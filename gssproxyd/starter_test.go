package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gssproxyd/conf"
	"gssproxyd/rpc"
)

// TestSocketsOfNames: what the daemon takes, the starter takes, which asks for no user: services that
// only their users tell apart are not the same.
func TestSocketsOfNames(t *testing.T) {
	file := filepath.Join(t.TempDir(), "gssproxy.conf")
	const services = `[gssproxy]
  pod_socket = /run/gssproxyd/csi/register.sock
[service/web]
  mechs = krb5
  cred_store = keytab:/etc/web.keytab
  euid = wwwrun
  group = staff
  group = users
[service/mail]
  mechs = krb5
  cred_store = keytab:/etc/mail.keytab
  euid = postfix
[service/more]
  socket = /run/more.sock
  socket_owner = daemon
  socket_group = root
  socket_mode = 0660
  mechs = krb5
  cred_store = keytab:/etc/more.keytab
  euid = postfix
[service/clients]
  mechs = krb5
  cred_store = keytab:/etc/krb5.keytab
  allow_any_uid = yes
  cred_usage = initiate
  euid = 0
`
	if err := os.WriteFile(file, []byte(services), 0o600); err != nil {
		t.Fatal(err)
	}
	o := &options{config: file, socket: "/run/default.sock"}
	c, err := conf.Load(o.source(conf.FixedGroups{FixedUsers: conf.FixedUsers{"wwwrun": 30, "postfix": 51, "daemon": 1}, Groups: map[string]uint32{"root": 0, "staff": 50, "users": 100}}))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(c.Sockets(), "/run/else.sock") {
		n, err := o.named(path)
		if want := slices.Contains(c.Sockets(), path); err != nil || n.Socket != want || want && n.Access != socketAccess(c.AccessOf(path)) {
			t.Errorf("%s: %t, %+v, %v; want %t, %+v", path, n.Socket, n.Access, err, want, socketAccess(c.AccessOf(path)))
		}
	}
}

// TestSocketsOfUnknownGroup: a group that is not in the files is no group of a socket that the starter
// opens, and an error for no other.
func TestSocketsOfUnknownGroup(t *testing.T) {
	file := filepath.Join(t.TempDir(), "gssproxy.conf")
	const service = "[service/web]\nmechs = krb5\neuid = 0\nsocket = /run/web.sock\nsocket_group = no-such-group\n"
	if err := os.WriteFile(file, []byte("[gssproxy]\n"+service), 0o600); err != nil {
		t.Fatal(err)
	}
	o := &options{config: file, socket: "/run/default.sock"}
	if n, err := o.named("/run/default.sock"); err != nil || !n.Socket || n.Access != (rpc.Access{Mode: rpc.ForEverybody, Owner: -1, Group: -1}) {
		t.Errorf("%+v, %v", n, err)
	}
	if n, err := o.named("/run/web.sock"); err == nil || !strings.Contains(err.Error(), "socket_group = no-such-group is not in") {
		t.Errorf("%+v, %v", n, err)
	}
}
