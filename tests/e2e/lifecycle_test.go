package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	keytabs "github.com/jcmturner/gokrb5/v8/keytab"

	"gssproxyd/tests/lab"
)

// TestLifecycle: the C daemon's command line, the texts its scripts wait for, a reload under a
// connection that goes on, a handle that outlives a restart, and a good end.
func TestLifecycle(t *testing.T) {
	overDaemons(t, func(t *testing.T, kind string) {
		d := daemon(t, kind, lab.Options{})
		check(t, d.WaitOutput("Initialization complete.", lab.Patience))
		w := wire(t, d)
		client := alice(t)
		acceptor := tool(t, lab.Nobody, append(d.PluginEnv(), "KRB5CCNAME=FILE:"+filepath.Join(nobodyDir(t), "cc"))...)
		accept := func(when string) {
			t.Helper()
			check(t, lab.AcceptOne(client, service, w))
			_, token, err := client.Init(service, lab.Usual, nil)
			check(t, err)
			a, err := acceptor.Accept(token, nil)
			if err != nil {
				t.Fatalf("%s: %v", when, err)
			}
			check(t, acceptor.Delete(a.ID))
		}
		check(t, acceptor.Acquire(service)) // Debian's plugin keeps the sealed handle in the ccache from here on
		accept("before")
		check(t, d.Configure(d.Options.Config+"\n[service/more]\n  mechs = krb5\n  euid = 4711\n  cred_store = keytab:"+d.Options.Keytab+"\n  socket = "+d.Socket+"2\n"))
		check(t, d.Reload())
		accept("after a reload")
		if _, err := os.Stat(d.Socket + "2"); err != nil {
			t.Errorf("the new service has no socket: %v", err)
		}
		check(t, d.Restart())
		w = wire(t, d)
		accept("after a restart")
		check(t, d.Stop())
	})
}

// TestRejectedConfiguration: what cannot be served is said, with file and line, and the exit status
// is 2.
func TestRejectedConfiguration(t *testing.T) {
	needOurs(t)
	r := realm(t)
	_, err := r.Ours(lab.Options{Config: "[gssproxy]\n[service/x]\n  mechs = krb5\n  euid = 0\n  cred_usage = acept\n"})
	if err == nil {
		t.Fatal("the daemon starts")
	}
	for _, want := range []string{"exit status 2", "gssproxy.conf:5", "acept"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in: %v", want, err)
		}
	}
}

// nobodyDir is a new directory that belongs to nobody.
func nobodyDir(t *testing.T) string {
	t.Helper()
	dir, err := realm(t).MkdirFor(lab.Nobody, "nobody")
	check(t, err)
	return dir
}

// TestRC4: enctype 23 is for those who ask for it in krb5.conf.
func TestRC4(t *testing.T) {
	needOurs(t)
	r := realm(t)
	rc4 := lab.EnctypeName(23)
	made(t, r.RandKey("e23/"+lab.Host, rc4))
	path, err := r.Keytab("rc4-keytab", "e23/"+lab.Host)
	check(t, err)
	weak, err := r.Krb5Conf("krb5-rc4.conf", "allow_rc4 = true", "permitted_enctypes = "+strings.Join(lab.AES, " ")+" "+rc4)
	check(t, err)
	strong, err := r.Krb5Conf("krb5-aes.conf", "permitted_enctypes = "+strings.Join(lab.AES, " "))
	check(t, err)
	env, err := r.KinitEnv([]string{"KRB5_CONFIG=" + weak}, "alice", "alice")
	check(t, err)
	client := tool(t, lab.Nobody, env...)
	check(t, client.Enctypes(23))

	d := daemon(t, "ours", lab.Options{Keytab: path, Krb5Conf: weak})
	acceptor := tool(t, lab.Nobody, append(d.PluginEnv(), "KRB5_CONFIG="+weak)...)
	id, token, err := client.Init(serviceOf(23), lab.Usual|lab.Mutual, nil)
	check(t, err)
	a, err := acceptor.Accept(token, nil)
	check(t, err)
	if complete, _, err := client.Step(id, a.Token); err != nil || !complete {
		t.Errorf("complete %v, %v", complete, err)
	}
	check(t, lab.Converse(lab.End{Tool: client, ID: id}, lab.End{Tool: acceptor, ID: a.ID}))
	if n, _, err := acceptor.Key(a.ID); err != nil || n != 23 {
		t.Errorf("enctype %d, %v", n, err)
	}

	d = daemon(t, "ours", lab.Options{Keytab: path, Krb5Conf: strong})
	_, token, err = client.Init(serviceOf(23), lab.Usual|lab.Mutual, nil)
	check(t, err)
	res, err := wire(t, d).Accept(token, nil)
	check(t, err)
	if res.Status.MajorStatus == 0 || !strings.Contains(string(res.Status.MinorStatusString), "[enctype-not-permitted]") {
		t.Errorf("where krb5.conf does not permit it: %v", lab.StatusError(res.Status))
	}
}

// TestKeysUnderAnotherName: the keytab has an account's keys under one name and the ticket is for
// another, as in Active Directory. The keys count, and a refusal says which there are.
func TestKeysUnderAnotherName(t *testing.T) {
	needOurs(t)
	r := realm(t)
	rc4 := lab.EnctypeName(23)
	made(t, r.RandKey("alias23/"+lab.Host, rc4))
	made(t, r.RandKey("alias/"+lab.Host))
	weak, err := r.Krb5Conf("krb5-rc4.conf", "allow_rc4 = true", "permitted_enctypes = "+strings.Join(lab.AES, " ")+" "+rc4)
	check(t, err)
	// account is a keytab whose keys are another's.
	account := func(principal string) string {
		path, err := r.Keytab("account-keytab", principal)
		check(t, err)
		kt, err := keytabs.Load(path)
		check(t, err)
		for i := range kt.Entries {
			p := &kt.Entries[i].Principal
			p.NumComponents, p.Components = 1, []string{"WEB1$"}
		}
		b, err := kt.Marshal()
		check(t, err)
		check(t, os.WriteFile(path, b, 0o600))
		return path
	}
	token := func(service string) []byte {
		env, err := r.KinitEnv([]string{"KRB5_CONFIG=" + weak}, "alice", "alice")
		check(t, err)
		_, token, err := tool(t, lab.Nobody, env...).Init(service+"@"+lab.Host, lab.Usual, nil)
		check(t, err)
		return token
	}
	accept := func(keytab string, token []byte) string {
		res, err := wire(t, daemon(t, "ours", lab.Options{Keytab: keytab})).Accept(token, nil)
		check(t, err)
		return fmt.Sprint(lab.StatusError(res.Status))
	}
	const has = "; the keytab has WEB1$@" + lab.Name + " kvno 1 ["
	text := accept(account("alias23/"+lab.Host), token("alias23"))
	if !strings.Contains(text, has) || !strings.Contains(text, "[enctype-not-permitted]") || !strings.Contains(text, "arcfour-hmac") {
		t.Errorf("an RC4 ticket: %s", text)
	}
	before := account("alias/" + lab.Host)
	if text := accept(before, token("alias")); text != "<nil>" {
		t.Error(text)
	}
	check(t, r.Rotate("alias/"+lab.Host))
	text = accept(before, token("alias"))
	if !strings.Contains(text, has) || !strings.Contains(text, "[no-key]") || !strings.Contains(text, "ticket kvno 2") {
		t.Errorf("a ticket of another version: %s", text)
	}
}
