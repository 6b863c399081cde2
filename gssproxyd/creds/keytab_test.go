package creds_test

import (
	"encoding/base64"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gssproxyd/gssproxyd/creds"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/xdr"
)

// Who is refused for a keytab that cannot be used is told why, whatever was asked for.
func TestWhyNoKeytab(t *testing.T) {
	good, err := os.ReadFile("../../testdata/kernel/keys/server.keytab")
	must(t, err)
	base := t.TempDir()
	files := map[string]struct {
		content []byte // nil: as it is
		says    string
	}{
		"missing":   {nil, "is nonexistent or empty: there is no such file"},
		"none":      {good[:2], "is nonexistent or empty: the file has no entries"},
		"empty":     {[]byte{}, "cannot be used: byte 0: the file is empty"},
		"version1":  {append([]byte{5, 1}, good[2:]...), "cannot be used: byte 1: old keytab format 05 01"},
		"truncated": {good[:len(good)-9], "the file is cut short"},
		"base64":    {[]byte(base64.StdEncoding.EncodeToString(good)), "cannot be used: byte 0: text in base64"},
		"directory": {nil, "cannot be used: it is a directory"},
		"foreign":   {[]byte{5, 2, 0, 0, 0, 22, 0, 1, 0, 1, 'R', 0, 1, 'a', 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 1, 0, 1, 9}, "has no usable keys: of its 1 entries, the first is skipped because encryption type"},
	}
	must(t, os.Mkdir(filepath.Join(base, "directory"), 0o700))
	services := map[string]string{}
	for name, f := range files {
		path := filepath.Join(base, name)
		if f.content != nil {
			must(t, os.WriteFile(path, f.content, 0o600))
		}
		services[name] = "cred_store = keytab:" + path + "\ncred_store = client_keytab:FILE:" + path
	}
	d := newDirect(t, filepath.Join(base, "no-krb5.conf"), services)
	for name, f := range files {
		target := "HTTP@www.example.test"
		_, acquireAccept := d.acquire(name, xdr.ArgAcquireCred{CredUsage: xdr.CredAccept})
		_, acquireInit := d.acquire(name, xdr.ArgAcquireCred{CredUsage: xdr.CredInitiate})
		_, acquireNamed := d.acquire(name, xdr.ArgAcquireCred{CredUsage: xdr.CredInitiate, DesiredName: xdr.Some(named("alice@R", mech.NTKrb5Principal))})
		_, begin := d.init(name, nil, target)
		var res xdr.ResAcceptSecContext
		acc := d.call(name, xdr.ProcAcceptSecContext, &xdr.ArgAcceptSecContext{InputToken: []byte("x")}, &res, &res.Status)
		for what, err := range map[string]error{"acquire to accept": acquireAccept, "acquire to initiate": acquireInit, "acquire to initiate as alice": acquireNamed, "initiate": begin, "accept": acc} {
			want := reason.NoKeytab
			if strings.Contains(what, "init") {
				want = reason.NoCredential
			}
			if err == nil || !strings.Contains(err.Error(), f.says) || !strings.Contains(err.Error(), "FILE:"+base+"/"+name+" ") || !strings.Contains(err.Error(), string(want)) {
				t.Errorf("%s, %s: %v; want %q and %s", name, what, err, f.says, want)
			}
		}
	}
}

// So is who is refused for want of one key while the file is broken and the keys of before are in
// use.
func TestWhyNoKey(t *testing.T) {
	good, err := os.ReadFile("../../testdata/kernel/keys/server.keytab")
	must(t, err)
	path := filepath.Join(t.TempDir(), "a.keytab")
	must(t, os.WriteFile(path, good, 0o600))
	d := newDirect(t, filepath.Join(t.TempDir(), "none"), map[string]string{"a": "cred_store = keytab:" + path})
	must(t, os.WriteFile(path, good[:len(good)-9], 0o600))
	kt := creds.KeytabOf(d.of("a").Service)
	for kt.Err() == nil {
		kt.Refresh(t.Context(), kt.Ring())
		time.Sleep(time.Millisecond)
	}
	other := named("other/host@NFSVM.TEST", mech.NTKrb5Principal)
	_, err = d.acquire("a", xdr.ArgAcquireCred{CredUsage: xdr.CredAccept, DesiredName: xdr.Some(other)})
	if err == nil || !strings.Contains(err.Error(), "no-key") || !strings.Contains(err.Error(), "its former keys are in use: byte ") || !strings.Contains(err.Error(), "cut short") {
		t.Errorf("%v", err)
	}
}

// Which keytabs are open for users of their own only: those that the configuration names differently for
// each.
func TestWhoseKeytabs(t *testing.T) {
	good, err := os.ReadFile("../../testdata/kernel/keys/server.keytab")
	must(t, err)
	dir := t.TempDir()
	t.Setenv("KRB5_KTNAME", dir+"/default")
	for _, name := range []string{"one", "of-0"} {
		must(t, os.WriteFile(filepath.Join(dir, name), good, 0o600))
	}
	services := map[string]string{
		"one": "cred_store = keytab:" + dir + "/one", "again": "cred_store = keytab:FILE:" + dir + "/one",
		"missing": "cred_store = keytab:" + dir + "/missing",
		"users":   "cred_store = keytab:" + dir + "/of-%U\ncred_store = client_keytab:" + dir + "/one\ncred_store = ccache:FILE:" + dir + "/cc-%U",
		"default": "cred_usage = accept",
	}
	d := newDirect(t, filepath.Join(dir, "no-krb5.conf"), services)
	var res xdr.ResAcceptSecContext
	d.call("users", xdr.ProcAcceptSecContext, &xdr.ArgAcceptSecContext{InputToken: []byte("x")}, &res, &res.Status)
	perUser := map[string]bool{}
	for _, k := range d.Keytabs() {
		perUser[strings.TrimPrefix(k.Source, "FILE:"+dir)] = k.PerUser
	}
	if want := map[string]bool{"/one": false, "/missing": false, "/of-0": true, "/default": false}; !maps.Equal(perUser, want) {
		t.Errorf("%v, want %v", perUser, want)
	}
}
