package unit

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"gssproxyd/gssproxyd/pods"
	"gssproxyd/rpc/peer"
	"gssproxyd/tests/lab"
)

// Pods are registered with the daemon of the unit, which is not root, at sockets on which root listens;
// what is registered outlives the daemon, and the directories that pods see stay the same.
func TestPods(t *testing.T) {
	const socket = "/run/gssproxyd/csi/register.sock"
	const file = "/etc/gssproxy/gssproxy.conf" // no other may have [gssproxy]
	host(t)
	shipped, err := os.ReadFile(file)
	check(t, err)
	t.Cleanup(func() { write(t, file, string(shipped)) })
	start(t, map[string]string{file: strings.Replace(string(shipped), "[gssproxy]", "[gssproxy]\n  pod_socket = "+socket, 1)})
	owned(t, "/run/gssproxyd/csi", 0o700)
	owned(t, socket, 0o600)
	client := &pods.Client{Socket: socket}
	pod := &pods.Registration{
		Pod:    peer.Pod{UID: "11111111-2222-3333-4444-555555555555", Namespace: "shop", ServiceAccount: "web", Name: "web-0"},
		Handle: "csi-1", Target: "/var/lib/kubelet/pods/11111111-2222-3333-4444-555555555555/volumes/kubernetes.io~csi/gss/mount",
	}
	check(t, client.Register(t.Context(), pod))
	dir := filepath.Join(pods.Dir(socket), pods.DirName(pod.UID, pod.Handle))
	seen, err := os.Open(dir) // as a pod sees it, to which it is mounted
	check(t, err)
	defer seen.Close()
	listens := func() error {
		c, err := net.Dial("unix", "/proc/self/fd/"+strconv.Itoa(int(seen.Fd()))+"/"+pods.SocketName)
		if err != nil {
			return err
		}
		defer c.Close()
		f, err := c.(*net.UnixConn).File()
		check(t, err)
		defer f.Close()
		cred, err := unix.GetsockoptUcred(int(f.Fd()), unix.SOL_SOCKET, unix.SO_PEERCRED)
		check(t, err)
		if cred.Uid != 0 {
			t.Errorf("uid %d listens there", cred.Uid)
		}
		return nil
	}
	check(t, listens())
	registered := filepath.Join(filepath.Dir(socket), filepath.Base(dir)+".pod")
	owned(t, registered, 0o600)
	systemctl(t, "restart", "gssproxyd")
	check(t, listens())
	owned(t, registered, 0o600)
	d := one(t, "").pid
	check(t, unix.Kill(d, unix.SIGKILL))
	lab.Await(t, "another daemon", func() bool {
		return property(t, "MainPID") != strconv.Itoa(d) && property(t, "ActiveState") == "active"
	})
	check(t, listens())
	if all, err := client.List(t.Context()); err != nil || len(all) != 1 || all[0] != *pod {
		t.Errorf("%v, %v", all, err)
	}
	check(t, client.Unregister(t.Context(), pod.UID, pod.Handle))
	for _, where := range []string{pods.Dir(socket), filepath.Dir(socket)} {
		left, err := filepath.Glob(where + "/*")
		if err != nil || len(left) > 0 && left[0] != socket {
			t.Errorf("left: %v, %v", left, err)
		}
	}
	if err := listens(); err == nil {
		t.Error("it still listens")
	}
}
