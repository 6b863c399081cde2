package conf

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fakeNSS answers with a shell script in place of getent, which is called with
// "passwd" and the key. It leaves a line in calls for every call.
func fakeNSS(t *testing.T, script string) (n *NSS, calls func() int) {
	t.Helper()
	dir := t.TempDir()
	program, log := filepath.Join(dir, "getent"), filepath.Join(dir, "calls")
	text := "#!/bin/sh\necho \"$@\" >> " + log + "\n" + script + "\n"
	if err := os.WriteFile(program, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	n = NewNSS()
	n.program = program
	return n, func() int {
		data, _ := os.ReadFile(log)
		return strings.Count(string(data), "\n")
	}
}

const fakePasswd = `case "$2" in
alice|1000) echo "alice:x:1000:1000:Alice:/home/alice:/bin/sh";;
ALICE) echo "alice:x:1000:1000::/:";;
odd) echo "even:x:7:7::/:";;
short) echo "short";;
big) echo "big:x:99999999999:1::/:";;
broken) exit 1;;
*) exit 2;;
esac`

func TestNSS(t *testing.T) {
	n, _ := fakeNSS(t, fakePasswd)
	for name, want := range map[string]uint32{"alice": 1000, "ALICE": 1000} {
		if uid, err := n.UID(name); uid != want || err != nil {
			t.Errorf("UID(%q) = %d, %v", name, uid, err)
		}
	}
	for name, want := range map[string]string{
		"bob": "no such user", "": "no such user", "-i": "no such user", "1000": "no such user", "a:b": "no such user", "a\nb": "no such user",
		"odd": `answers with "even"`, "short": "no passwd entry", "big": "no uid", "broken": "exit status 1",
	} {
		uid, err := n.UID(name)
		if err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, ErrNoUser) != (want == "no such user") {
			t.Errorf("UID(%q) = %d, %v", name, uid, err)
		}
	}
}

func TestNSSRemembers(t *testing.T) {
	n, calls := fakeNSS(t, fakePasswd)
	clock := time.Unix(1e9, 0)
	n.now = func() time.Time { return clock }
	for range 3 {
		if name, err := n.Name(1000); name != "alice" || err != nil {
			t.Fatal(name, err)
		}
		if name, err := n.Name(5); name != "" || !errors.Is(err, ErrNoUser) {
			t.Fatal(name, err)
		}
	}
	if got := calls(); got != 2 {
		t.Errorf("%d look-ups, want one for each uid", got)
	}
	clock = clock.Add(nssExpiry)
	n.Name(1000)
	if got := calls(); got != 3 {
		t.Errorf("%d look-ups, want one more after the expiry", got)
	}
	for uid := range uint32(3 * nssNames) {
		n.cache(uid, "x")
	}
	if len(n.names) > nssNames {
		t.Errorf("%d names are remembered", len(n.names))
	}
}

func TestNSSDeadline(t *testing.T) {
	n, calls := fakeNSS(t, "exec sleep 600")
	n.timeout = 100 * time.Millisecond
	if _, err := n.Name(1000); err == nil || errors.Is(err, ErrNoUser) || !strings.Contains(err.Error(), "no answer within 100ms") {
		t.Error(err)
	}
	if _, err := n.UID("alice"); err == nil || errors.Is(err, ErrNoUser) {
		t.Error(err)
	}
	// A failure is not an answer and not remembered.
	if n.Name(1000); calls() != 3 {
		t.Errorf("%d look-ups, want 3", calls())
	}
}

func TestNSSWithoutGetent(t *testing.T) {
	n := NewNSS()
	n.program = ""
	if uid, err := n.UID("root"); uid != 0 || err != nil {
		t.Error(uid, err)
	}
	if name, err := n.Name(0); name != "root" || err != nil {
		t.Error(name, err)
	}
	if _, err := n.UID("no-such-user"); !errors.Is(err, ErrNoUser) || !strings.Contains(err.Error(), "getent is not installed") {
		t.Error(err)
	}
	if _, err := n.Name(4294967290); !errors.Is(err, ErrNoUser) {
		t.Error(err)
	}
}

func TestSystemNSS(t *testing.T) {
	if _, err := exec.LookPath("getent"); err != nil {
		t.Skip("no getent:", err)
	}
	n := NewNSS()
	if uid, err := n.UID("root"); uid != 0 || err != nil {
		t.Error(uid, err)
	}
	if name, err := n.Name(0); name != "root" || err != nil {
		t.Error(name, err)
	}
	if _, err := n.UID("no-such-user"); !errors.Is(err, ErrNoUser) {
		t.Error(err)
	}
}

func TestFixedUsers(t *testing.T) {
	f := FixedUsers{"b": 1, "a": 1}
	for range 20 {
		if name, err := f.Name(1); name != "a" || err != nil {
			t.Fatal(name, err)
		}
	}
	if _, err := f.Name(2); !errors.Is(err, ErrNoUser) {
		t.Error(err)
	}
}
