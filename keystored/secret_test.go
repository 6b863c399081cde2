package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gssproxyd/tests/lab"
)

// What etcd is told of this instance is a secret: a file that others may read or put there is not used,
// and the error does not have what is in it.
func TestEtcdSecrets(t *testing.T) {
	dir := t.TempDir()
	ca := lab.NewAuthority(t, dir+"/ca")
	ca.Issue(t, dir)
	password := dir + "/password"
	const secret = "xyzzy-plugh"
	write := func(content string, mode os.FileMode) {
		t.Helper()
		if err := errors.Join(os.WriteFile(password, []byte(content), 0o600), os.Chmod(password, mode)); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "keystored.conf")
	text := "[keystored]\nbackend = etcd:https://a:2379\netcd_ca = " + ca.Dir + "/ca.pem\netcd_cert = " + dir + "/cert.pem\netcd_key = " + dir + "/key.pem\netcd_user = u\netcd_password_file = " + password + "\nstate_dir = " + dir + "\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	check := func(what, want string) {
		t.Helper()
		c, err := load(file)
		if err != nil {
			t.Fatal(err)
		}
		e, err := c.etcdConfig()
		if want == "" && (err != nil || e.Password != secret || e.TLS == nil) || want != "" && (err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), secret)) {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
		var out, stderr strings.Builder
		if status := run([]string{"check", "-c", file}, &out, &stderr); (status == 0) != (want == "") || want != "" && !strings.Contains(stderr.String(), want) {
			t.Errorf("%s: keystored check: %d, %s", what, status, &stderr)
		}
	}
	write(secret+"\n", 0o600)
	check("as it is to be", "")
	for mode, want := range map[os.FileMode]string{0o640: "", 0o400: "", 0o644: "with mode 0644", 0o660: "with mode 0660", 0o602: "with mode 0602", 0o601: "with mode 0601"} {
		write(secret+"\n", mode)
		check(mode.String(), want)
	}
	write("\n", 0o600)
	check("empty", password+" is empty; the password of etcd_user is expected, alone")
	write(strings.Repeat(secret, maxSecret/len(secret)+1), 0o600)
	check("long", "at most 65536 are expected")
	write(secret, 0o600)
	if os.Geteuid() == 0 {
		if err := os.Chown(password, 4711, 0); err != nil {
			t.Fatal(err)
		}
		check("somebody else's", "belongs to uid 4711")
		os.Chown(password, 0, 0)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	check("where others can write", "so others could put another file there")
	os.Chmod(dir, 0o700)
	os.Remove(password)
	if err := os.Mkdir(password, 0o700); err != nil {
		t.Fatal(err)
	}
	check("a directory", "is no regular file")
	os.Remove(password)
	check("not there", "no such file")

	write(secret, 0o600)
	if err := os.Chmod(dir+"/key.pem", 0o644); err != nil {
		t.Fatal(err)
	}
	check("a key that others can read", "etcd_key: "+dir+"/key.pem belongs to uid")
}
