package e2e

import (
	"path/filepath"
	"testing"

	"gssproxyd/interposer"
	"gssproxyd/tests/lab"
)

// TestForest: a daemon initiates as a user of one realm and accepts with the keys of a service of
// another. A trusts B and B trusts C; A and C know nothing of each other.
func TestForest(t *testing.T) {
	const a, b, c = "A.TEST", "B.TEST", "SUB.C.TEST"
	f := lab.NewForest(t, a, b, c)
	f.Gssproxyd = realm(t).Gssproxyd
	check(t, f.Trust(a, b))
	check(t, f.Trust(b, c))
	check(t, f.Configure("[capaths]\n  "+a+" = {\n    "+c+" = "+b+"\n  }\n"))
	for _, m := range f.Members {
		check(t, m.Restart())
	}
	check(t, f.Member(a).AddPrincipal("user", "pw"))
	users, err := f.Member(a).Keytab("user.keytab", "user")
	check(t, err)
	check(t, f.Member(c).RandKey("HTTP/www.sub.c.test"))
	services, err := f.Member(c).Keytab("http.keytab", "HTTP/www.sub.c.test")
	check(t, err)
	overDaemons(t, func(t *testing.T, kind string) {
		dir := f.Path("daemon")
		sockets := []string{filepath.Join(dir, "init"), filepath.Join(dir, "accept")}
		d, err := f.Daemon(kind, lab.Options{Dir: dir, Keytab: services, RCache: "none:", Config: config(
			svc{"lab", 0, nil},
			svc{"init", 0, []string{"socket = " + sockets[0], "cred_store = client_keytab:" + users, "cred_usage = initiate"}},
			svc{"accept", 0, []string{"socket = " + sockets[1], "cred_store = keytab:" + services, "cred_usage = accept"}},
		)})
		check(t, err)
		t.Cleanup(func() {
			if err := d.Stop(); err != nil {
				t.Errorf("the daemon ended badly: %v", err)
			}
			if t.Failed() {
				t.Logf("log of the %s daemon:\n%s", kind, tail(d.Output(), 4<<10))
			}
		})
		var ends []*interposer.Client
		for _, socket := range sockets {
			end := interposer.New(socket, interposer.Options{})
			defer end.Close()
			ends = append(ends, end)
		}
		ctx := limited(t)
		speaks, token, err := ends[0].InitSecContext(ctx, interposer.InitRequest{
			Target: interposer.HostbasedName("HTTP", "www.sub.c.test"), Cred: interposer.ServiceCred, Flags: lab.Usual | lab.Mutual})
		check(t, err)
		defer speaks.Close()
		hears, reply, err := ends[1].AcceptSecContext(ctx, interposer.AcceptRequest{Token: token})
		check(t, err)
		defer hears.Close()
		if got := hears.Source().Display; got != "user@"+a {
			t.Errorf("the acceptor hears %s", got)
		}
		_, err = speaks.Step(ctx, reply)
		check(t, err)
		if got := speaks.Target().Display; got != "HTTP/www.sub.c.test@"+c {
			t.Errorf("the initiator speaks to %s", got)
		}
		sealed, err := speaks.Wrap(nil, []byte("from afar"), true)
		check(t, err)
		msg, _, err := hears.Unwrap(nil, sealed)
		check(t, err)
		if string(msg) != "from afar" {
			t.Errorf("%q came", msg)
		}
	})
}
