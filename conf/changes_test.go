package conf

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What is different is said by option, with where it is now, or was.
func TestChanges(t *testing.T) {
	const before = `[gssproxy]
  debug_level = 1
[service/a]
  mechs = krb5
  euid = 1
  cred_store = keytab:/a
  cred_store = ccache:/c
  trusted = yes
[service/b]
  mechs = krb5
  euid = 2
[service/gone]
  mechs = krb5
  euid = 3
  socket = /run/gone
`
	const after = `[gssproxy]
[service/b]
  mechs = krb5
  euid = 4
  targets = HTTP/*@A
  targets = host/*@A
[service/new]
  mechs = krb5
  euid = 3
  socket = /run/new
[service/a]
  mechs = krb5
  euid = 1
  cred_store = ccache:/c
  cred_store = keytab:/other
`
	was, is := load(t, before), load(t, after)
	at := func(c *Config) string { return c.Files[0] }
	if got := was.Changes(load(t, before)); got != nil {
		t.Errorf("of the same text: %q", got)
	}
	want := strings.NewReplacer("OLD", at(was), "NEW", at(is)).Replace(`[gssproxy]: debug_level = 0, was 1
service/gone: removed (OLD:12)
service/b: euid = 4 (NEW:4), was 2
service/b: targets = HTTP/*@A (NEW:5)
service/b: targets = host/*@A (NEW:6)
service/new: added (NEW:7)
service/a: cred_store = keytab:/other (NEW:15)
service/a: no longer cred_store = keytab:/a (OLD:6)
service/a: trusted = no, was yes
services: matched in the order b, a, was a, b
socket /run/new: opened
socket /run/gone: closed`)
	if diff := cmp.Diff(strings.Split(want, "\n"), is.Changes(was)); diff != "" {
		t.Error(diff)
	}
	// The order of values, and what is not set any more.
	swapped := load(t, strings.NewReplacer("keytab:/a", "ccache:/c", "ccache:/c", "keytab:/a").Replace(before))
	if got := swapped.Changes(was); len(got) != 1 || got[0] != "service/a: cred_store in another order" {
		t.Errorf("%q", got)
	}
	with := load(t, strings.Replace(before, "trusted = yes", "trusted = yes\n  krb5_principal = a@B", 1))
	if got := was.Changes(with); len(got) != 1 || got[0] != "service/a: no longer krb5_principal = a@B ("+at(with)+":9)" {
		t.Errorf("%q", got)
	}
}

func TestChangesOfStores(t *testing.T) {
	const service = "[service/a]\nmechs = krb5\neuid = 1\ncred_store = keytab:STORE:a:a@A\n"
	store := func(name, more string) string {
		return "[store/" + name + "]\nca = /ca\ncert = /c\nkey = /k\nsigner = ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n" + more
	}
	former, r := interpret(service + store("a", "url = https://a\n") + store("b", "url = https://b\n"))
	now, r2 := interpret(service + store("a", "url = https://a\nurl = https://a2\nhost = web\n") + store("c", "url = https://c\n"))
	if len(r.errors)+len(r2.errors) > 0 {
		t.Fatal(r.errors, r2.errors)
	}
	want := []string{
		"store/b: removed (main.conf:11)",
		"store/a: url = https://a2 (main.conf:11)",
		"store/a: host = web (main.conf:12)",
		"store/c: added (main.conf:13)",
	}
	if diff := cmp.Diff(want, now.Changes(former)); diff != "" {
		t.Error(diff)
	}
}
