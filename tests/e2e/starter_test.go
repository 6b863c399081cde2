package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/tests/lab"
)

// children are the processes that a process has started, by what they are called: "starter",
// "nss-helper".
func children(t *testing.T, pid int) map[string][]int {
	t.Helper()
	found := make(map[string][]int)
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	check(t, err)
	for _, task := range tasks {
		list, _ := os.ReadFile(task) // the thread may have ended
		for _, field := range strings.Fields(string(list)) {
			child, err := strconv.Atoi(field)
			check(t, err)
			line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", child))
			if words := strings.Split(string(line), "\x00"); len(words) > 1 {
				found[words[1]] = append(found[words[1]], child)
			}
		}
	}
	return found
}

// nobodysDaemon is a daemon that runs as nobody, with a keytab of nobody's.
func nobodysDaemon(t *testing.T) (keytabPath string, d *lab.Daemon) {
	t.Helper()
	path := keytab(t)
	check(t, os.Chown(path, int(lab.Nobody.UID), int(lab.Nobody.GID)))
	return path, daemon(t, "ours", lab.Options{
		Keytab: path, RCache: "none:", Becomes: lab.Nobody,
		Config: strings.Replace(lab.DefaultConfig(path), "[gssproxy]", "[gssproxy]\n  run_as_user = nobody", 1),
	})
}

// TestStarter: a daemon that is another user by now opens sockets where only root may, on which root
// listens, and has helpers that are nobody of this host; when what does that for it has ended, it
// goes on and says what it lacks.
func TestStarter(t *testing.T) {
	needOurs(t)
	path, d := nobodysDaemon(t)
	check(t, os.Chmod(filepath.Join(d.Options.Dir, "gssproxy.conf"), 0o644))
	starters := children(t, d.PID())
	if len(starters) != 1 || len(starters["starter"]) != 1 {
		t.Fatalf("the daemon has the children %v", starters)
	}
	starter := starters["starter"][0]

	// A socket that a reload adds.
	add := func(name string) *lab.Daemon {
		more := *d
		more.Socket = filepath.Join(d.Options.Dir, name)
		text := strings.NewReplacer("SOCKET", more.Socket, "service/more", "service/"+name).Replace(config1(path))
		check(t, os.WriteFile(filepath.Join(d.Options.Dir, "conf.d", "10-"+name+".conf"), []byte(text), 0o644))
		return &more
	}
	more := add("more")
	check(t, d.Reload())
	check(t, lab.AcceptOne(alice(t), service, wire(t, more)))
	c, err := net.Dial("unix", more.Socket)
	check(t, err)
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	check(t, err)
	check(t, raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil || cred.Uid != 0 {
			t.Errorf("who listens: %+v, %v; root is believed by clients, nobody is not", cred, err)
		}
	}))

	// Helpers that die, be it that they hang.
	before := children(t, starter)["nss-helper"]
	if len(before) != 2 {
		t.Fatalf("the starter has the helpers %v", before)
	}
	for _, pid := range before {
		check(t, syscall.Kill(pid, syscall.SIGKILL))
	}
	lab.Await(t, "no helper takes the place of those that died", func() bool {
		// A reload asks the name service, and fails within a second of a helper's start and end.
		check(t, syscall.Kill(d.PID(), syscall.SIGHUP))
		time.Sleep(50 * time.Millisecond)
		for _, pid := range children(t, starter)["nss-helper"] {
			st, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
			if err == nil && st.Sys().(*syscall.Stat_t).Uid >= 0x78000000 {
				return true
			}
		}
		return false
	})

	// Without it.
	check(t, syscall.Kill(starter, syscall.SIGKILL))
	lab.Await(t, "nobody says that the starter has ended", func() bool { return strings.Contains(d.Output(), "the starter has ended") })
	add("late")
	check(t, d.Reload())
	lab.Await(t, "nobody says that a socket cannot be opened", func() bool {
		out := d.Output()
		return strings.Contains(out, "not all sockets could be opened") && strings.Contains(out, "restart the daemon")
	})
	check(t, lab.AcceptOne(alice(t), service, wire(t, more)))
}

// TestStarterEnds: with the daemon, however that ends.
func TestStarterEnds(t *testing.T) {
	needOurs(t)
	_, d := nobodysDaemon(t)
	for _, end := range []func(){func() { d.Kill() }, func() { check(t, d.Stop()) }} {
		starter := children(t, d.PID())["starter"][0]
		gone := append(children(t, starter)["nss-helper"], starter)
		end()
		for _, pid := range gone {
			lab.Await(t, "the starter or a helper goes on", func() bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) })
		}
		check(t, d.Start())
	}
}
