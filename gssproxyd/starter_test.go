package main

import (
	"os"
	"path/filepath"
	"testing"

	"gssproxyd/conf"
)

// TestSocketsOfNames: what the daemon takes, the starter takes, which asks for no user: services that
// only their users tell apart are not the same.
func TestSocketsOfNames(t *testing.T) {
	file := filepath.Join(t.TempDir(), "gssproxy.conf")
	const services = `[gssproxy]
  metrics = unix:/run/metrics.sock
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
	for _, path := range c.Sockets() {
		if mode, named, err := o.sockets(path); err != nil || !named || mode != 0o666 {
			t.Errorf("%s: %v, named %t, %v", path, mode, named, err)
		}
	}
	if mode, named, err := o.sockets("/run/metrics.sock"); err != nil || !named || mode != 0o660 {
		t.Errorf("the socket of the metrics: %v, named %t, %v", mode, named, err)
	}
	for _, path := range []string{"", "/run/other.sock"} {
		if _, named, err := o.sockets(path); err != nil || named {
			t.Errorf("%q: named %t, %v", path, named, err)
		}
	}
}
