package files

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"gssproxyd/tests/lab"
)

// everybodys walks a mount, with an execution and both ends of a context alive, and prints path, mode
// and owner of each file.
const everybodys = `
fs=$1/modules/krb5/operations
exec 3<>$fs/init/transact 4<>$fs/accept/transact
step() { # FD JSON
	echo "$2" >&$1 && read -r answer <&$1
	token=$(sed -n 's/.*"token":"\([^"]*\)".*/\1/p' <<<"$answer")
}
step 3 '{"target":"HTTP@'$2'"}'
step 4 '{"token":"'$token'"}'
step 3 '{"token":"'$token'"}'
mkdir $fs/names/execution/one
find $1 -mindepth 1 -printf '%P %m %U\n'
`

// TestTree: gssproxyd-fs(5) has every file and directory of a mount, with its mode, and no others; and
// every operation.
func TestTree(t *testing.T) {
	m := newMount(t, "")
	b, err := os.ReadFile("../../docs/gssproxyd-fs.5")
	check(t, err)
	page := string(b)
	documented := map[string]string{}
	for _, row := range regexp.MustCompile(`(?m)^\.It Pa (\S+?)/? No (0[0-7]{3}|1[0-7]{3})$`).FindAllStringSubmatch(page, -1) {
		if _, twice := documented[row[1]]; twice {
			t.Errorf("the page has %s twice", row[1])
		}
		documented[row[1]] = row[2]
	}
	_, section, _ := strings.Cut(page, "\n.Sh OPERATIONS\n")
	section, _, _ = strings.Cut(section, "\n.Sh ")
	operations := map[string]bool{} // with true: and it is there
	for _, row := range regexp.MustCompile(`(?m)^\.It Cm (\w+)$`).FindAllStringSubmatch(section, -1) {
		operations[row[1]] = false
	}

	seen := map[string]string{}
	for _, walk := range []struct {
		user   lab.User
		script string
	}{
		{both, everybodys},
		{lab.Root, "find $1 -mindepth 1 -printf '%P %m %U\\n'"},
	} {
		out, err := m.run(t, walk.user, "/bin/bash", "-e", "-c", walk.script, "bash", m.dir, lab.Host)
		if err != nil {
			t.Fatalf("uid %d: %v\n%s", walk.user.UID, err, out)
		}
		for line := range strings.Lines(out) {
			var path, owner string
			var mode int
			if _, err := fmt.Sscanf(line, "%s %o %s", &path, &mode, &owner); err != nil {
				t.Fatalf("uid %d: %v\n%s", walk.user.UID, err, out)
			}
			parts, want := strings.Split(path, "/"), "0"
			switch {
			case len(parts) > 1 && parts[0] == "contexts":
				parts[1], want = "ID", strconv.Itoa(int(walk.user.UID))
			case len(parts) > 3:
				if _, known := operations[parts[3]]; !known {
					t.Errorf("the page does not say what the operation %s is", parts[3])
				}
				operations[parts[3]], parts[3] = true, "OPERATION"
				if len(parts) > 5 {
					parts[5], want = "TOKEN", strconv.Itoa(int(walk.user.UID))
				}
			}
			seen[filepath.Join(parts...)] = fmt.Sprintf("%04o", mode)
			if owner != want {
				t.Errorf("%s is uid %s's, not %s's", path, owner, want)
			}
		}
	}
	if !maps.Equal(documented, seen) {
		t.Errorf("the page has:\n%s\nthe mount has:\n%s", tabled(documented), tabled(seen))
	}
	for name, there := range operations {
		if !there {
			t.Errorf("the page has an operation %s, which the mount does not have", name)
		}
	}
}

// tabled is a tree as lines.
func tabled(tree map[string]string) string {
	var b strings.Builder
	for _, path := range slices.Sorted(maps.Keys(tree)) {
		fmt.Fprintln(&b, tree[path], path)
	}
	return b.String()
}

// TestOtherPIDNamespace: the kernel names callers by their numbers where it was mounted. A mount that
// was made elsewhere is not served: its callers would be taken for others.
func TestOtherPIDNamespace(t *testing.T) {
	m := newMount(t, "")
	dir := m.Path("elsewhere")
	check(t, os.Mkdir(dir, 0o755))
	cmd := exec.Command(m.Gssproxyd, "mount", "-c", filepath.Join(m.Options.Dir, "gssproxy.conf"), "-s", m.Socket, dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another pid namespace") {
		t.Errorf("gssproxyd mount: %v: %s", err, out)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("it is left mounted: %v", err)
	}
}
