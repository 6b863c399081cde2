package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"gssproxyd/conf"
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
	c, err := conf.Load(o.source(conf.FixedGroups{FixedUsers: conf.FixedUsers{"wwwrun": 30, "postfix": 51}, Groups: map[string]uint32{"staff": 50, "users": 100}}))
	if err != nil {
		t.Fatal(err)
	}
	named, err := o.named()
	if err != nil || !slices.Equal(named.Sockets, c.Sockets()) || named.Pods != c.PodSocket {
		t.Errorf("%q, %v; want %q and %q", named, err, c.Sockets(), c.PodSocket)
	}
}
