package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gssproxyd/tests/lab"
)

// TestVariables: the variables of libkrb5 mean here what they mean there, for a service that names
// nothing itself.
func TestVariables(t *testing.T) {
	needOurs(t)
	r := realm(t)
	anyone := config(svc{"lab", 0, []string{"allow_any_uid = yes"}})
	start := func(t *testing.T, o lab.Options) *lab.Daemon {
		t.Helper()
		o.Config = anyone
		return daemon(t, "ours", o)
	}
	accept := func(t *testing.T, o lab.Options) error {
		t.Helper()
		return lab.AcceptOne(alice(t), service, wire(t, start(t, o)))
	}
	refused := func(t *testing.T, err error, reason string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), "["+reason+"]") {
			t.Errorf("%v, want a refusal with [%s]", err, reason)
		}
	}

	t.Run("KRB5_CONFIG", func(t *testing.T) {
		// A file that is not there is passed over, and an earlier one counts before a later one.
		narrow := r.Path("narrow.conf")
		check(t, os.WriteFile(narrow, []byte("[libdefaults]\npermitted_enctypes = aes128-cts-hmac-sha1-96\n"), 0o644))
		w := wire(t, start(t, lab.Options{Krb5Conf: "/nonexistent/krb5.conf:" + narrow + ":" + r.Conf}))
		check(t, lab.AcceptOne(alice(t), serviceOf(17), w))
		refused(t, lab.AcceptOne(alice(t), serviceOf(18), w), "enctype-not-permitted")
		w = wire(t, start(t, lab.Options{Krb5Conf: r.Conf + ":" + narrow}))
		refused(t, lab.AcceptOne(alice(t), serviceOf(18), w), "enctype-not-permitted") // what the first one does not say
	})

	t.Run("KRB5_KTNAME", func(t *testing.T) {
		path := keytab(t)
		check(t, accept(t, lab.Options{Env: []string{"KRB5_KTNAME=" + path}}))
		check(t, accept(t, lab.Options{Env: []string{"KRB5_KTNAME=WRFILE:" + path}}))
		refused(t, accept(t, lab.Options{Env: []string{"KRB5_KTNAME=/nonexistent/keytab"}}), "no-keytab")
		// One that is set and empty counts as not set.
		krb5, err := r.Krb5Conf("krb5-keytab.conf", "default_keytab_name = FILE:"+path)
		check(t, err)
		check(t, accept(t, lab.Options{Krb5Conf: krb5, Env: []string{"KRB5_KTNAME="}}))
		_, err = r.Ours(lab.Options{Config: anyone, Keytab: path, Env: []string{"KRB5_KTNAME=MEMORY:x"}})
		if err == nil || !strings.Contains(err.Error(), "exit status 2") || !strings.Contains(err.Error(), "gssproxy.conf:4: [service/lab] has no keytab") {
			t.Errorf("with a keytab that cannot be: %v", err)
		}
	})

	t.Run("KRB5CCNAME", func(t *testing.T) {
		env, err := r.Kinit("alice", "alice") // KRB5CCNAME=FILE:...
		check(t, err)
		for _, test := range []struct {
			env  []string
			good bool
		}{{env, true}, {[]string{"KRB5CCNAME=FILE:/nonexistent/cc"}, false}} {
			d := start(t, lab.Options{Env: test.env})
			out, err := r.Run(lab.Root, nil, d.Cmd.Path, "init", "-s", d.Socket, service)
			if (err == nil) != test.good || !test.good && !strings.Contains(out, "/nonexistent/cc") {
				t.Errorf("%s: %v\n%s", test.env, err, out)
			}
		}
	})

	// Where authenticators are remembered, if at all: a token that comes twice shows that, and the
	// file where.
	rcaches := daemonsDir(t, "rcaches")
	owner, err := lab.OursRunsAs()
	check(t, err)
	ofOwner := fmt.Sprintf("krb5_%d.rcache2", owner.UID)
	in := func(name string) string { return filepath.Join(rcaches, name) }
	for _, test := range []struct {
		env  string // separated by blanks
		file string // "": none
	}{
		{"KRB5RCACHENAME=none:", ""},
		{"KRB5RCACHENAME=file2:" + in("named"), in("named")},
		{"KRB5RCACHENAME=file2:" + in("both") + " KRB5RCACHETYPE=none", in("both")},
		{"KRB5RCACHENAME=dfl: KRB5RCACHEDIR=" + in("."), in(ofOwner)},
		{"KRB5RCACHENAME= KRB5RCACHETYPE=none", ""},
		{"KRB5RCACHENAME= KRB5RCACHETYPE=dfl KRB5RCACHEDIR=" + in("."), in(ofOwner)},
		{"KRB5RCACHENAME= KRB5RCACHEDIR=" + in("."), in(ofOwner)},
		{"KRB5RCACHENAME= TMPDIR=" + in("."), in(ofOwner)},
	} {
		t.Run(strings.ReplaceAll(test.env, rcaches, "DIR"), func(t *testing.T) {
			w := wire(t, start(t, lab.Options{Env: strings.Fields(test.env)}))
			_, token, err := alice(t).Init(service, lab.Usual, nil)
			check(t, err)
			if !accepts(t, w, token) {
				t.Fatal("refused the first time")
			}
			if again := accepts(t, w, bytes.Clone(token)); again != (test.file == "") {
				t.Errorf("accepted a second time: %v", again)
			}
			left, err := filepath.Glob(in("*"))
			check(t, err)
			if test.file == "" {
				if len(left) != 0 {
					t.Errorf("left %s", left)
				}
				return
			}
			if len(left) != 1 || left[0] != test.file {
				t.Fatalf("left %s, want %s", left, test.file)
			}
			if st, err := os.Stat(test.file); err != nil || st.Mode().Perm() != 0o600 || st.Size() == 0 {
				t.Errorf("%v, %v", st, err)
			}
			check(t, os.Remove(test.file))
		})
	}
	for _, test := range []string{"KRB5RCACHENAME=bogus", "KRB5RCACHENAME= KRB5RCACHETYPE=bogus"} {
		_, err := r.Ours(lab.Options{Config: anyone, Keytab: keytab(t), Env: strings.Fields(test)})
		if err == nil || !strings.Contains(err.Error(), "exit status 2") || !strings.Contains(err.Error(), "none:, dfl: or file2:PATH") {
			t.Errorf("%s: %v", test, err)
		}
	}
}
