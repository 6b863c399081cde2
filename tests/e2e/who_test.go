package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"gssproxyd/mech/reason"
	"gssproxyd/tests/lab"
)

// TestWho: a service that is for a group, a unit, a container or trusted programs serves unmodified
// programs that are, and no others, whatever those make of what is theirs.
func TestWho(t *testing.T) {
	needOurs(t)
	r := realm(t)
	keys := keytab(t)
	alices, err := r.Keytab("alice.keytab", "alice")
	check(t, err)
	threads := filepath.Join(r.Dir, "threads")
	id := strings.Repeat("0a", 32)
	unit := fmt.Sprintf("gssproxyd-lab-%d.service", os.Getpid())
	inUnit, inContainer := controlGroup(t, "/system.slice/"+unit), controlGroup(t, "/system.slice/docker-"+id+".scope")
	forged := controlGroup(t, "/gssproxyd-lab.service/system.slice/"+unit)
	below := controlGroup(t, "/system.slice/"+unit+"/docker-"+id+".scope")

	// A program that is not root's alone.
	dir, err := r.MkdirFor(lab.Root, "programs")
	check(t, err)
	text, err := os.ReadFile(threads)
	check(t, err)
	others := filepath.Join(dir, "others")
	check(t, os.WriteFile(others, text, 0o755))
	check(t, os.Chown(others, int(lab.Nobody.UID), 0))

	plain := func(*exec.Cmd) {}
	group := func(gid uint32, more ...uint32) func(*exec.Cmd) {
		return func(cmd *exec.Cmd) {
			cmd.SysProcAttr.Credential.Gid, cmd.SysProcAttr.Credential.Groups = gid, more
		}
	}
	in := func(group *os.File) func(*exec.Cmd) {
		return func(cmd *exec.Cmd) {
			cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(group.Fd())
		}
	}
	runs := func(program string) func(*exec.Cmd) { return func(cmd *exec.Cmd) { cmd.Path = program } }
	for _, test := range []struct {
		rule    string
		reason  reason.ID
		served  []func(*exec.Cmd)
		refused []func(*exec.Cmd)
	}{
		{"allow_any_uid = yes\ngroup = 4711\ngroup = 4712", reason.GroupMismatch,
			[]func(*exec.Cmd){group(4711), group(1, 2, 4712)}, []func(*exec.Cmd){plain, group(1, 2, 4713)}},
		{"unit = gssproxyd-lab-*.service", reason.UnitMismatch,
			[]func(*exec.Cmd){in(inUnit), in(below)}, []func(*exec.Cmd){plain, in(inContainer), in(forged)}},
		{"container = " + id, reason.ContainerMismatch,
			[]func(*exec.Cmd){in(inContainer)}, []func(*exec.Cmd){plain, in(below)}},
		{"program_trusted = yes", reason.ProgramUntrusted,
			[]func(*exec.Cmd){plain}, []func(*exec.Cmd){runs(others)}},
	} {
		if lab.UnderUnit() && (test.reason == reason.UnitMismatch || test.reason == reason.ContainerMismatch) {
			continue // its systemd has a namespace of control groups, in which nobody's place is known
		}
		d := daemon(t, "ours", lab.Options{Keytab: keys, Config: config(
			svc{"web", lab.Nobody.UID, append([]string{"cred_store = client_keytab:" + alices}, strings.Split(test.rule, "\n")...)},
			svc{"lab", 0, nil},
		)})
		run := func(change func(*exec.Cmd)) string {
			cmd := r.Command(lab.Nobody, append(d.PluginEnvOf(lab.Ours), "GSSPROXY_BEHAVIOR=REMOTE_ONLY"), threads, "cold", "1", service)
			change(cmd)
			out, err := cmd.CombinedOutput()
			check(t, err)
			return string(out)
		}
		for i, change := range test.served {
			if out := run(change); out != "0\n" {
				t.Errorf("%s: %d: %s", test.rule, i, out)
			}
		}
		for i, change := range test.refused {
			before := strings.Count(d.Output(), "reason="+string(test.reason))
			if out := run(change); out == "0\n" {
				t.Errorf("%s: served: %d", test.rule, i)
			}
			if strings.Count(d.Output(), "reason="+string(test.reason)) == before {
				t.Errorf("%s: no reason in the log: %d", test.rule, i)
			}
		}
	}
}

// controlGroup makes a control group of version 2.
func controlGroup(t *testing.T, path string) *os.File {
	t.Helper()
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var fs unix.Statfs_t
		if unix.Statfs(root, &fs) != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		check(t, os.MkdirAll(root+path, 0o755))
		t.Cleanup(func() {
			for dir := path; dir != "/"; dir = filepath.Dir(dir) {
				syscall.Rmdir(root + dir) // those that others are in stay
			}
		})
		f, err := os.Open(root + path)
		check(t, err)
		t.Cleanup(func() { f.Close() })
		return f
	}
	lab.Lacking(t, "control groups of version 2", os.ErrNotExist)
	return nil
}
