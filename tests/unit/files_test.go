package unit

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"gssproxyd/conf"
	"gssproxyd/tests/lab"
)

const filesUnit = "gssproxyd-fs"

// acceptedThroughFiles has nobody accept a context through the file system.
func acceptedThroughFiles(t *testing.T, client *lab.Tool) error {
	t.Helper()
	tokens, err := client.Tokens(1, service, lab.Usual, nil)
	check(t, err)
	question := `{"token":"` + base64.StdEncoding.EncodeToString(tokens[0]) + `"}`
	cmd := exec.Command("/bin/bash", "-c", "exec 3<>"+conf.FilesPath+"/modules/krb5/operations/accept/transact; echo '"+question+"' >&3; read -r answer <&3; echo \"$answer\"")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: lab.Nobody.UID, Gid: lab.Nobody.GID}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	var answer struct{ Initiator string }
	if err := json.Unmarshal(out, &answer); err != nil || answer.Initiator != principal {
		return fmt.Errorf("%v: %s", err, out)
	}
	return nil
}

// mountsThere is how many file systems of gssproxyd's are mounted.
func mountsThere(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	check(t, err)
	n := 0
	for line := range strings.Lines(string(b)) { // others may have mounts of their own
		if strings.Contains(line, " /run/gssproxyd/fs ") && strings.Contains(line, " - fuse.gssproxyd ") {
			n++
		}
	}
	return n
}

// The daemon, which has no devices and is not root, serves what the command mounts; and it is mounted
// again whenever the daemon comes back.
func TestFiles(t *testing.T) {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		lab.Lacking(t, "/dev/fuse", err)
	}
	r := start(t, map[string]string{"/etc/gssproxy/10-files.conf": "[service/files]\n  mechs = krb5\n  cred_store = keytab:/etc/krb5.keytab\n  cred_usage = accept\n  euid = nobody\n"})
	t.Cleanup(func() { systemctl(t, "disable", "--now", filesUnit) })
	client := alice(t, r)
	served := func(when string) {
		t.Helper()
		var last error
		lab.Await(t, "an answer through files "+when, func() bool {
			last = acceptedThroughFiles(t, client)
			return last == nil
		})
		if n := mountsThere(t); n != 1 {
			t.Errorf("%s: %d mounts", when, n)
		}
	}
	systemctl(t, "enable", "--now", filesUnit)
	check(t, acceptedThroughFiles(t, client))
	systemctl(t, "restart", "gssproxyd")
	served("after a restart")
	d := one(t, "").pid
	check(t, unix.Kill(d, unix.SIGKILL))
	lab.Await(t, "another daemon", func() bool {
		return property(t, "MainPID") != strconv.Itoa(d) && property(t, "ActiveState") == "active"
	})
	served("after its end")
	systemctl(t, "stop", filesUnit)
	if n := mountsThere(t); n != 0 || property(t, "ActiveState") != "active" {
		t.Errorf("%d mounts are left, and the daemon is %s", n, property(t, "ActiveState"))
	}
	systemctl(t, "start", filesUnit)
	systemctl(t, "stop", "gssproxyd")
	lab.Await(t, "the end of the mount with the daemon's", func() bool { return mountsThere(t) == 0 })
}
