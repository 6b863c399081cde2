package main

import (
	"errors"
	"fmt"
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

// Somebody changes a key beside the store: the alarm says so in the list, and an import of the new keytab
// mends it; also while a rotation waits for a host, which ends then.
func TestImportOvertakes(t *testing.T) {
	r := lab.New(t)
	kadmind, err := r.Kadmind()
	if err != nil {
		t.Fatal(err)
	}
	const name = "HTTP/overtaken.lab.test"
	if err := errors.Join(r.RandKey(name), r.Kadmin("modprinc", "+requires_preauth", name)); err != nil {
		t.Fatal(err)
	}
	p := newProgram(t)
	t.Setenv("KRB5_CONFIG", kadmind.Conf)
	conf, err := os.ReadFile(filepath.Join(p.dir, "keystored.conf"))
	if err != nil {
		t.Fatal(err)
	}
	p.write("keystored.conf", string(conf)+"[realm/"+lab.Name+"]\nchange = kadmin\n")
	p.start("serve")
	p.entries(0)
	run := func(want string, args ...string) {
		t.Helper()
		out, _ := p.command(args...).CombinedOutput()
		if !strings.Contains(string(out), want) {
			t.Errorf("%q: want %q\n%s", args, want, out)
		}
	}
	files := 0
	keytab := func() string {
		t.Helper()
		files++
		file, err := r.Keytab(fmt.Sprintf("overtaken%d.keytab", files), name)
		if err != nil {
			t.Fatal(err)
		}
		return file
	}
	out, err := p.command("recipient").Output()
	if err != nil {
		t.Fatal(err)
	}
	run("web9.lab.test", "host", "add", "web9.lab.test", "--recipient", strings.TrimSpace(string(out)))
	run("written and read back", "import", "--write", "--hosts", "web9.lab.test", keytab())
	before := p.entries(1)[0]

	if err := r.Kadmin("cpw", "-randkey", name); err != nil {
		t.Fatal(err)
	}
	run("[key-changed-elsewhere]", "rotate", before.Principal)
	run("ALARM: [key-changed-elsewhere] ", "list")
	run("import the new keytab", "show", before.Principal)
	run("written and read back", "import", "--write", keytab())
	if now := p.entries(1)[0]; now.Alarm != "" || now.KVNO != before.KVNO+1 {
		t.Errorf("after the import: %+v", now)
	}

	rotating, _ := p.start("rotate", before.Principal)
	lab.Await(t, "the rotation waits for its host", func() bool { return p.entries(1)[0].Rotation == "stored" })
	if err := r.Kadmin("cpw", "-randkey", name); err != nil {
		t.Fatal(err)
	}
	file := keytab()
	run("the rotation: it ends without having changed the key", "import", file)
	run("written and read back", "import", "--write", file)
	if now := p.entries(1)[0]; now.Rotation != "" || now.Alarm != "" || now.KVNO != before.KVNO+2 {
		t.Errorf("after the import: %+v", now)
	}
	rotating.Wait()
	run(fmt.Sprintf("import of kvno %d", before.KVNO+2), "history", before.Principal)
}
