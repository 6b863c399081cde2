package nss

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gssproxyd/conf"
)

// direct answers with a shell script in place of getent, which is called with a database and the key.
// It leaves a line in calls for every call.
func direct(t *testing.T, script string) (d *Direct, calls func() int) {
	t.Helper()
	dir := t.TempDir()
	program, log := filepath.Join(dir, "getent"), filepath.Join(dir, "calls")
	text := "#!/bin/sh\necho \"$@\" >> " + log + "\n" + script + "\n"
	if err := os.WriteFile(program, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	d = NewDirect()
	d.sources.getent = program
	return d, func() int {
		data, _ := os.ReadFile(log)
		return strings.Count(string(data), "\n")
	}
}

const fakePasswd = `case "$1" in group) exit 3;; esac
case "$2" in
alice|1000) echo "alice:x:1000:1000:Alice:/home/alice:/bin/sh";;
ALICE) echo "alice:x:1000:1000::/:";;
odd) echo "even:x:7:7::/:";;
short) echo "short";;
big) echo "big:x:99999999999:1::/:";;
4712) echo "4712:x:4712:1::/:";;
"+1000") echo "alice:x:1000:1000::/:";;
broken) exit 1;;
*) exit 2;;
esac`

func TestDirect(t *testing.T) {
	d, _ := direct(t, fakePasswd)
	for name, want := range map[string]uint32{"alice": 1000, "ALICE": 1000, "4712": 4712} {
		if uid, err := d.UID(name); uid != want || err != nil {
			t.Errorf("UID(%q) = %d, %v", name, uid, err)
		}
	}
	for name, want := range map[string]string{
		"bob": "no such user", "": "no such user", "-i": "no such user", "1000": "no such user", "+1000": "no such user", strings.Repeat("x", 2000): "no such user", "a:b": "no such user", "a\nb": "no such user",
		"odd": `answers with "even"`, "short": "no passwd entry", "big": "no uid", "broken": "exit status 1",
	} {
		uid, err := d.UID(name)
		if err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, conf.ErrNoUser) != (want == "no such user") {
			t.Errorf("UID(%q) = %d, %v", name, uid, err)
		}
	}
}

const fakeGroups = `case "$1 $2" in
"group wheel") echo "wheel:x:10:alice,bob";;
"group WHEEL") echo "wheel:x:10:";;
"group alone") echo "alone:x:12";;
"group 10"|"group +10"|"group  10") echo "wheel:x:10:";;
"group 4712") echo "4712:x:4712:";;
"group odd") echo "even:x:7:";;
"group short") echo "short:x";;
"group nameless") echo ":x:0:";;
"group empty") echo "empty:x::";;
"group big") echo "big:x:99999999999:";;
"group none") echo "none:x:4294967295:";;
"group silent") exit 0;;
"group broken") exit 1;;
group\ *) exit 2;;
*) exit 3;;
esac`

// groupsOf tests what users answers from fakeGroups.
func groupsOf(t *testing.T, users conf.Users, calls func() int) {
	t.Helper()
	for name, want := range map[string]uint32{"wheel": 10, "WHEEL": 10, "alone": 12, "4712": 4712} {
		if gid, err := users.GID(name); gid != want || err != nil {
			t.Errorf("GID(%q) = %d, %v", name, gid, err)
		}
	}
	const absent = "no such group"
	for name, want := range map[string]string{
		"absent": absent, "10": absent, "+10": absent, " 10": absent, "odd": `group "odd": the name service answers with "even"`,
		"short": "no group entry", "nameless": "no group entry", "silent": "no group entry",
		"empty": "no uid or gid", "big": "no uid or gid", "none": "no uid or gid", "broken": "getent group: exit status 1",
	} {
		gid, err := users.GID(name)
		if err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, conf.ErrNoGroup) != (want == absent) || errors.Is(err, conf.ErrNoUser) {
			t.Errorf("GID(%q) = %d, %v", name, gid, err)
		}
	}
	before := calls()
	for _, name := range []string{"", "-i", "--service=x", "a:b", "a\nb", "a\x00b", strings.Repeat("x", maxKey+1)} {
		if gid, err := users.GID(name); !errors.Is(err, conf.ErrNoGroup) {
			t.Errorf("GID(%.20q) = %d, %v", name, gid, err)
		}
	}
	if n := calls() - before; n != 0 {
		t.Errorf("getent was called %d times with names that are none", n)
	}
}

func TestDirectGroups(t *testing.T) {
	d, calls := direct(t, fakeGroups)
	groupsOf(t, d, calls)
}

func TestDirectRemembers(t *testing.T) {
	d, calls := direct(t, fakePasswd)
	clock := time.Unix(1e9, 0)
	d.now = func() time.Time { return clock }
	for range 3 {
		if name, err := d.Name(1000); name != "alice" || err != nil {
			t.Fatal(name, err)
		}
		if name, err := d.Name(5); name != "" || !errors.Is(err, conf.ErrNoUser) {
			t.Fatal(name, err)
		}
	}
	if got := calls(); got != 2 {
		t.Errorf("%d look-ups, want one for each uid", got)
	}
	clock = clock.Add(nameExpiry)
	d.Name(1000)
	if got := calls(); got != 3 {
		t.Errorf("%d look-ups, want one more after the expiry", got)
	}
	for uid := range uint32(3 * maxNames) {
		d.remember(uid, "x")
	}
	if len(d.names) > maxNames {
		t.Errorf("%d names are remembered", len(d.names))
	}
}

func TestDirectDeadline(t *testing.T) {
	for timeout := 100 * time.Millisecond; !testDirectDeadline(t, timeout); timeout *= 4 {
		if timeout > time.Minute {
			t.Fatal("getent is not started in time")
		}
	}
}

// testDirectDeadline reports whether all look-ups began within their time.
func testDirectDeadline(t *testing.T, timeout time.Duration) bool {
	d, calls := direct(t, "exec sleep 600")
	d.timeout = timeout
	if _, err := d.Name(1000); err == nil || errors.Is(err, conf.ErrNoUser) || !strings.Contains(err.Error(), "no answer within ") {
		t.Error(err)
	}
	if _, err := d.UID("alice"); err == nil || errors.Is(err, conf.ErrNoUser) {
		t.Error(err)
	}
	if _, err := d.GID("wheel"); err == nil || isAbsent(err) {
		t.Error(err)
	}
	// A failure is not an answer and not remembered.
	d.Name(1000)
	return calls() == 4
}

func TestDirectWithoutGetent(t *testing.T) {
	d := NewDirect()
	d.sources.getent = ""
	if uid, err := d.UID("root"); uid != 0 || err != nil {
		t.Error(uid, err)
	}
	if name, err := d.Name(0); name != "root" || err != nil {
		t.Error(name, err)
	}
	if _, err := d.UID("no-such-user"); !errors.Is(err, conf.ErrNoUser) || !strings.Contains(err.Error(), "getent is not installed") {
		t.Error(err)
	}
	if gid, err := d.GID("root"); gid != 0 || err != nil {
		t.Error(gid, err)
	}
	if _, err := d.GID("no-such-group"); !errors.Is(err, conf.ErrNoGroup) || !strings.Contains(err.Error(), "/etc/group, and getent is not installed") {
		t.Error(err)
	}
	if _, err := d.Name(4294967290); !errors.Is(err, conf.ErrNoUser) {
		t.Error(err)
	}
}

func TestDirectSystem(t *testing.T) {
	if _, err := exec.LookPath("getent"); err != nil {
		t.Skip("no getent:", err)
	}
	d := NewDirect()
	if uid, err := d.UID("root"); uid != 0 || err != nil {
		t.Error(uid, err)
	}
	if name, err := d.Name(0); name != "root" || err != nil {
		t.Error(name, err)
	}
	if _, err := d.UID("no-such-user"); !errors.Is(err, conf.ErrNoUser) {
		t.Error(err)
	}
	if gid, err := d.GID("root"); gid != 0 || err != nil {
		t.Error(gid, err)
	}
	if _, err := d.GID("no-such-group"); !errors.Is(err, conf.ErrNoGroup) {
		t.Error(err)
	}
}
