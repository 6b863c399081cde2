package interposer

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"gssproxyd/rpc"
	"gssproxyd/rpc/rpctest"
)

// TestHiddenRoot: in a user namespace without root, root's daemon runs as the uid of everybody else
// outside. It is believed there, and there only, and at a socket that was named. The test's program
// is the client, in namespaces of its own.
func TestHiddenRoot(t *testing.T) {
	if socket := os.Getenv("INTERPOSER_TEST_SOCKET"); socket != "" {
		pingFrom(t, socket, os.Getenv("INTERPOSER_TEST_HOW"))
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root to be the daemon, and to make user namespaces of others")
	}
	dir := socketDir(t)
	socket, setuid := filepath.Join(dir, "s"), filepath.Join(dir, "setuid")
	rpctest.StartAt(t, socket, &rpc.Server{Match: rpctest.Everybody(pong)})
	program(t, setuid, other)
	for _, err := range []error{os.Chmod(dir, 0o755), os.Chmod(socket, 0o666)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	const refused = "runs as uid 65534, like everybody who does not belong to this user namespace; only root"
	alone := []syscall.SysProcIDMap{{ContainerID: own, HostID: own, Size: 2}}
	for _, test := range []struct {
		what    string
		program string
		maps    []syscall.SysProcIDMap
		uid     int
		how     string
		want    string
	}{
		{"no namespace", "/proc/self/exe", nil, own, "default", "answered"},
		{"named to New", "/proc/self/exe", alone, own, "named", "answered"},
		{"named by GSSPROXY_SOCKET", "/proc/self/exe", alone, own, "environment", "answered"},
		{"not named", "/proc/self/exe", alone, own, "default", refused},
		{"servers are listed", "/proc/self/exe", alone, own, "listed", refused},
		{"it is listed", "/proc/self/exe", alone, own, "65534", "answered"},
		{"root is somebody else", "/proc/self/exe", append(alone, syscall.SysProcIDMap{HostID: 100000, Size: 10}), own, "named", refused},
		{"root is among many", "/proc/self/exe", []syscall.SysProcIDMap{{HostID: 100000, Size: 65536}}, own, "named", refused},
		{"nobody is among many", "/proc/self/exe", []syscall.SysProcIDMap{{HostID: 100000, Size: 65536}}, 65534, "named", refused},
		{"others begin behind root", "/proc/self/exe", []syscall.SysProcIDMap{{ContainerID: 1, HostID: 100000, Size: 65536}}, own, "named", "answered"},
		{"the client is hidden as well", "/proc/self/exe", alone, -1, "named", "answered"},
		{"the client is hidden as well, and nothing named", "/proc/self/exe", alone, -1, "default", refused},
		{"setuid", setuid, alone, own, "environment", refused},
		{"setuid, without a namespace", setuid, nil, own, "environment", "answered"},
	} {
		t.Run(test.what, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), test.program, "-test.run=^TestHiddenRoot$")
			cmd.Env = []string{"INTERPOSER_TEST_SOCKET=" + socket, "INTERPOSER_TEST_HOW=" + test.how}
			cmd.Env = append(cmd.Env, "GORACE=atexit_sleep_ms=0") // the race detector sleeps for a second otherwise
			if test.how == "environment" {
				cmd.Env = append(cmd.Env, "GSSPROXY_SOCKET="+socket)
			}
			cmd.Dir = "/"
			cmd.SysProcAttr = &syscall.SysProcAttr{}
			if test.uid >= 0 {
				cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(test.uid), Gid: uint32(test.uid), NoSetGroups: true}
			}
			if test.maps != nil {
				cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
				cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = test.maps, test.maps
			}
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), test.want) {
				t.Errorf("%v, want %q of\n%s", err, test.want, out)
			}
		})
	}
}

// Two users who are not root.
const own, other = 1000, 1001

// pingFrom makes a call, and prints what comes of it.
func pingFrom(t *testing.T, socket, how string) {
	name, o := socket, Options{}
	switch how {
	case "default", "environment":
		name = ""
	case "listed":
		o.ServerUID = []uint32{own}
	case "65534":
		o.ServerUID = []uint32{65534}
	}
	c := clientAt(t, name, o)
	if how == "default" {
		c.socket = socket // rather than the host's
	}
	if err := c.Ping(t.Context()); err != nil {
		fmt.Println(err)
	} else {
		fmt.Println("answered")
	}
}

// program makes a copy of this program that runs as uid, whoever starts it.
func program(t *testing.T, path string, uid int) {
	t.Helper()
	in, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(out, in)
	errs := []error{err, out.Chown(uid, uid), out.Chmod(0o755 | os.ModeSetuid), out.Close()}
	if i := slices.IndexFunc(errs, func(err error) bool { return err != nil }); i >= 0 {
		t.Fatal(errs[i])
	}
}
