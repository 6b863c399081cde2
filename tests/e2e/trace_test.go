package e2e

import (
	"os"
	"regexp"
	"testing"

	"gssproxyd/tests/lab"
)

// TestTrace: KRB5_TRACE of the daemon shows the whole way of a context, from the initiator's key to
// the acceptor's replay cache, with a real KDC.
func TestTrace(t *testing.T) {
	needOurs(t)
	r := realm(t)
	alices, err := r.Keytab("alice.keytab", "alice")
	check(t, err)
	path, cache := r.Path("trace"), r.Path("traced.cc")
	keys := keytab(t)
	d := daemon(t, "ours", lab.Options{Keytab: keys, Env: []string{"KRB5_TRACE=" + path}, Config: config(svc{"lab", 0, []string{
		"cred_store = keytab:" + keys, "cred_store = client_keytab:" + alices, "cred_store = ccache:FILE:" + cache,
	}})})
	w, err := d.Wire()
	check(t, err)
	defer w.Close()
	out := initContext(t, w, nil, service, lab.Usual|lab.Mutual, nil)
	if out.OutputToken.V == nil {
		t.Fatal(lab.StatusError(out.Status))
	}
	for _, want := range []bool{true, false} {
		res, err := w.Accept(out.OutputToken.V, nil)
		check(t, err)
		if err := lab.StatusError(res.Status); (err == nil) != want {
			t.Fatalf("want success %v: %v", want, err)
		}
	}

	b, err := os.ReadFile(path)
	check(t, err)
	rest := string(b)
	for _, want := range []string{
		`Initiating as alice@EXAMPLE.TEST, credential cache FILE:` + cache + `, FILE:` + alices + `\n`,
		`Getting new credentials of alice@EXAMPLE.TEST for FILE:` + cache + ` with the keys of FILE:` + alices + `\n`,
		`Sending a request \(\d+ bytes\) to realm EXAMPLE.TEST\n`,
		`The KDC of realm EXAMPLE.TEST at udp (127.0.0.1|localhost):\d+ answers: an AS-REP\n`,
		`Got a ticket of alice@EXAMPLE.TEST for krbtgt/EXAMPLE.TEST@EXAMPLE.TEST, session key aes256-\S+\n`,
		`answers: a TGS-REP\n`,
		`Got a ticket of alice@EXAMPLE.TEST for svc/\S+@EXAMPLE.TEST, session key aes256-\S+\n`,
		`Storing the credential of alice@EXAMPLE.TEST for svc/\S+@\S* in the cache\n`,
		`Made an AP-REQ of alice@EXAMPLE.TEST for svc/\S+, session key aes256-\S+\n`,
		`AP-REQ with a ticket for svc/\S+@EXAMPLE.TEST, kvno 1, aes256-\S+: decrypted with the key of svc/\S+@EXAMPLE.TEST, kvno 1, in keytab FILE:` + keys + `\n`,
		`The ticket is of alice@EXAMPLE.TEST, session key aes256-\S+\n`,
		`The authenticator of alice@EXAMPLE.TEST made at \S+ is new to the replay cache\n`,
		`Accepted a context as svc/\S+@EXAMPLE.TEST, the peer is alice@EXAMPLE.TEST; session key `,
		`ACCEPT_SEC_CONTEXT of service lab refused: .* \[replay\]\n`,
	} {
		at := regexp.MustCompile(`\[\d+\] \d+\.\d{6}: .*` + want).FindStringIndex(rest)
		if at == nil {
			t.Fatalf("no line %s after what came before in:\n%s", want, b)
		}
		rest = rest[at[1]:]
	}
}
