package files

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"gssproxyd/tests/lab"
)

// TestKeys: the file keys has what gssproxyd keytabs prints.
func TestKeys(t *testing.T) {
	m := newMount(t, "")
	root, user := m.session(t, lab.Root), m.session(t, both)
	if a := user.ask("", "init", fields{"target": "HTTP@" + lab.Host}); a.errno != "" { // so that a key has been used
		t.Fatalf("init: %+v", a)
	}
	age := regexp.MustCompile(`^\d+[smhd]$`) // of which one may be older than the other
	words := func(text string) (list []string) {
		for _, w := range strings.Fields(text) {
			list = append(list, age.ReplaceAllString(w, "AGE"))
		}
		return list
	}
	out, err := m.Administer(lab.Root, "keytabs")
	check(t, err)
	keys := root.must("read", "keys")
	if !reflect.DeepEqual(words(keys), words(out)) {
		t.Errorf("keys has:\n%s\ngssproxyd keytabs prints:\n%s", keys, out)
	}
	for _, part := range []string{"HTTP/" + lab.Host, "alice@" + lab.Name, "both (client_keytab)", "root (keytab)", " ago"} {
		if !strings.Contains(keys, part) {
			t.Errorf("keys has no %q:\n%s", part, keys)
		}
	}
}

// TestCtl: what root writes to ctl is done, or refused in words.
func TestCtl(t *testing.T) {
	m := newMount(t, "")
	root, user := m.session(t, lab.Root), m.session(t, both)
	ctl := func(lines string) (answer, errno string) {
		t.Helper()
		b, errno := root.do("talk", "ctl", lines)
		return string(b), errno
	}
	done := func(lines, want string) {
		t.Helper()
		if answer, errno := ctl(lines); errno != "" || answer != want {
			t.Errorf("%q: %s: %q, want %q", lines, errno, answer, want)
		}
	}
	refused := func(lines, want string) {
		t.Helper()
		if answer, errno := ctl(lines); errno != "EINVAL" || !strings.Contains(answer, want) {
			t.Errorf("%q: %s: %q, want EINVAL and %q", lines, errno, answer, want)
		}
	}
	for lines, want := range map[string]string{
		"nonsense\n": `"nonsense": reload, debug SERVICE LEVEL or drop ID is expected`, "reload now\n": "is expected", "debug\n": "is expected", "debug both\n": "is expected",
		"debug both loud\n": `level "loud"`, "debug both -1\n": `level "-1"`, "debug nobody 1\n": `no service "nobody"`,
		"drop\n": "the id of a context is expected", "drop NONE\n": "there is no context", "drop A B\n": "the id of a context is expected",
		"debug both off\nnonsense\n": "nonsense",
	} {
		refused(lines, want)
	}

	newcomer := m.session(t, stranger)
	names := fields{"name": "alice@" + lab.Name}
	asks := func(when, want string) {
		t.Helper()
		if a := newcomer.ask("", "names", names); a.errno != want {
			t.Errorf("%s uid %d is answered %+v, want %q", when, stranger.UID, a, want)
		}
	}
	asks("at first", "EACCES")
	config := m.Options.Config + fmt.Sprintf("[service/newcomer]\n  mechs = krb5\n  euid = %d\n  cred_store = keytab:%s\n  cred_usage = accept\n", stranger.UID, m.Options.Keytab)
	check(t, m.Configure(config))
	asks("before the reload", "EACCES")
	done("reload\n", "reloaded\n")
	asks("after the reload", "")
	check(t, m.Configure(config+"[service/another]\n  euid = no number\n"))
	refused("reload\n", filepath.Join(m.Options.Dir, "gssproxy.conf"))
	asks("after one that was refused", "")
	check(t, m.Configure(m.Options.Config))
	done("\n  reload  \n\n", "reloaded\n")
	asks("in the end", "EACCES")

	var set struct {
		Services []struct {
			Service string
			Level   int
			Until   time.Time
		}
	}
	// logged is how many calls of the service were logged with their arguments, after one more.
	logged := func() int {
		t.Helper()
		if a := user.ask("", "names", names); a.errno != "" {
			t.Fatalf("names: %+v", a)
		}
		return len(regexp.MustCompile(`(?m)^.*msg=arguments .*service=both .*$`).FindAllString(m.Output(), -1))
	}
	before := logged()
	begun := time.Now()
	done("debug both 2\n", "set for 5m0s\n")
	check(t, m.AsJSON(&set, "debug"))
	if len(set.Services) != 1 || set.Services[0].Service != "both" || set.Services[0].Level != 2 ||
		set.Services[0].Until.Before(begun.Add(5*time.Minute-time.Second)) || set.Services[0].Until.After(time.Now().Add(5*time.Minute)) {
		t.Errorf("with debug both 2: %+v", set)
	}
	after := logged()
	if before != 0 || after == 0 {
		t.Errorf("%d calls of both are logged with their arguments, and with debug both 2 %d", before, after)
	}
	done("debug service/both off\n", "off\n")
	set.Services = nil
	check(t, m.AsJSON(&set, "debug"))
	if again := logged(); len(set.Services) != 0 || again != after {
		t.Errorf("with debug both off: %+v, and %d more calls are logged", set, again-after)
	}

	oneWay := fields{"target": "HTTP@" + lab.Host, "flags": []string{"conf", "integ"}}
	dropped, kept := user.ask("", "init", oneWay), user.ask("", "init", oneWay)
	wraps := func(a answer) answer {
		return user.ask("", "wrap", fields{"context": a.Context, "message": []byte("hello")})
	}
	for _, a := range []answer{wraps(dropped), wraps(kept)} {
		if a.errno != "" || len(a.Token) == 0 {
			t.Fatalf("wrap: %+v", a)
		}
	}
	done("drop "+dropped.Context+"\n", "dropped\n")
	refused("drop "+dropped.Context+"\n", "there is no context")
	if a := wraps(dropped); a.errno != "EINVAL" || a.Reason != "bad-context" {
		t.Errorf("wrap with a context that root has dropped: %+v", a)
	}
	if _, errno := user.do("read", "contexts/"+dropped.Context+"/peer"); errno != "ENOENT" {
		t.Errorf("the peer of a context that root has dropped: %q", errno)
	}
	var list []string
	check(t, json.Unmarshal([]byte(user.must("list", "contexts")), &list))
	if a := wraps(kept); a.errno != "" || !reflect.DeepEqual(list, []string{kept.Context}) {
		t.Errorf("of %s and %s, the first one dropped, there are %q: %+v", dropped.Context, kept.Context, list, a)
	}
}

// TestLog: the file log has what gssproxyd denials --json has, and while it is open the calls that are allowed.
func TestLog(t *testing.T) {
	m := newMount(t, "")
	root, user := m.session(t, lab.Root), m.session(t, both)
	type event = map[string]any
	events := func(text string) (refused, allowed []event) {
		t.Helper()
		for line := range strings.Lines(text) {
			if !strings.HasSuffix(line, "\n") { // it is being written
				break
			}
			var e event
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatalf("%v: %s", err, line)
			}
			if e["kind"] == "call-allowed" {
				allowed = append(allowed, e)
			} else {
				refused = append(refused, e)
			}
		}
		return refused, allowed
	}
	asks := func() {
		t.Helper()
		if a := user.ask("", "names", fields{"name": "alice@" + lab.Name}); a.errno != "" {
			t.Fatalf("names: %+v", a)
		}
	}
	asks()
	for _, u := range []lab.User{client, stranger} {
		if a := m.session(t, u).ask("", "accept", fields{"token": []byte("no token")}); a.errno != "EACCES" {
			t.Errorf("accept by uid %d: %+v", u.UID, a)
		}
	}
	refused, allowed := events(root.must("read", "log"))
	var denials struct{ Denials []event }
	check(t, m.AsJSON(&denials, "denials"))
	if len(refused) != 2 || len(denials.Denials) != 1 || !reflect.DeepEqual(refused[0], denials.Denials[0]) {
		t.Fatalf("log has:\n%v\ngssproxyd denials --json has:\n%v", refused, denials.Denials)
	}
	// The second one is refused when he opens the file, which is a NULL call: denials leaves these out.
	for i, want := range []struct {
		user                    lab.User
		kind, procedure, reason string
	}{{client, "call-denied", "ACCEPT_SEC_CONTEXT", "usage-not-allowed"}, {stranger, "connection-denied", "NULL", "no-service-for-uid"}} {
		e := refused[i]
		if e["kind"] != want.kind || e["procedure"] != want.procedure || e["reason"] != want.reason || e["caller"].(event)["uid"] != float64(want.user.UID) || e["text"] == nil || e["hint"] == nil {
			t.Errorf("line %d of log is not of uid %d's %s: %v", i, want.user.UID, want.reason, e)
		}
	}
	if len(allowed) != 0 {
		t.Errorf("nobody has followed log, and it has %v", allowed)
	}

	tail, said := m.start(t, lab.Root, "/", "/usr/bin/tail", "-f", "-n", "+1", filepath.Join(m.dir, "log"))
	lab.Await(t, "tail has what there is", func() bool { refused, _ := events(said.String()); return len(refused) == 2 })
	asks()
	lab.Await(t, "tail has a call that was allowed", func() bool { _, allowed := events(said.String()); return len(allowed) > 0 })
	_, allowed = events(said.String())
	if e := allowed[0]; e["service"] != "both" || e["caller"].(event)["uid"] != float64(both.UID) || e["caller"].(event)["pid"] != float64(user.pid) || e["procedure"] == nil || e["reason"] != nil {
		t.Errorf("a call that was allowed: %v", e)
	}
	check(t, tail.Process.Kill())
	tail.Wait()
	// The kernel tells the daemon later that log was closed.
	lab.Await(t, "a call is not in log when nobody follows it", func() bool {
		_, before := events(root.must("read", "log"))
		asks()
		_, after := events(root.must("read", "log"))
		return len(before) == len(after)
	})
}
