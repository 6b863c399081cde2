package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gssproxyd/tests/lab"
)

// Keys are rotated in a realm of MIT krb5 that the configuration names, and no others.
func TestRotate(t *testing.T) {
	r := lab.New(t)
	kadmind, err := r.Kadmind()
	if err != nil {
		t.Fatal(err)
	}
	const name = "HTTP/rotate.lab.test"
	if err := r.RandKey(name); err != nil {
		t.Fatal(err)
	}
	file, err := r.Keytab("rotate.keytab", name)
	if err != nil {
		t.Fatal(err)
	}
	p := newProgram(t)
	t.Setenv("KRB5_CONFIG", kadmind.Conf)
	server, log := p.start("serve")
	p.entries(0)
	if out, err := p.command("import", "--write", file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	before := p.entries(1)[0]
	out, err := p.command("rotate", before.Principal).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "[store-unavailable] this keystored does not rotate") {
		t.Errorf("%v\n%s", err, out)
	}
	server.Process.Signal(os.Interrupt)
	if err := server.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, log)
	}

	conf, err := os.ReadFile(filepath.Join(p.dir, "keystored.conf"))
	if err != nil {
		t.Fatal(err)
	}
	_, realm, _ := strings.Cut(before.Principal, "@")
	for _, way := range []string{viaKadmin, viaKpasswd} {
		p.write("keystored.conf", string(conf)+"[realm/"+realm+"]\nchange = "+way+"\n")
		server, log = p.start("serve")
		before := p.entries(1)[0]
		out, err = p.command("rotate", before.Principal).CombinedOutput()
		if err != nil || !strings.Contains(string(out), before.Principal+": rotated") {
			t.Fatalf("%s: %v\n%s\n%s", way, err, out, log)
		}
		if after := p.entries(1)[0]; after.KVNO != before.KVNO+1 || after.Rotation != "" {
			t.Errorf("%s: %+v, before %+v", way, after, before)
		}
		server.Process.Signal(os.Interrupt)
		if err := server.Wait(); err != nil {
			t.Fatalf("%s: %v\n%s", way, err, log)
		}
	}
}
