package fleet

import (
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"gssproxyd/tests/lab"
)

// inside says to a process that it has a network and mounts of its own.
const inside = "FLEET_TEST_INSIDE"

// apart runs this program again where nothing of the machine's network and mounts is changed by it.
func apart() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=yes")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// alone is what comes first in there.
func alone() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mount(2): %w", err)
	}
	return ip("link", "set", "lo", "up")
}

func ip(args ...string) error { return execute("ip", args...) }

func execute(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// The networks that members of a cluster are on: their own, those of the two instances, by which each
// asks them, and the test's, which is never cut.
const (
	members     = "peers"
	instanceOne = "one"
	instanceTwo = "two"
	theTest     = "test"
)

var networks = []string{members, instanceOne, instanceTwo, theTest}

// network has machines of three members: a network namespace each, with a cable to each network.
type network struct {
	t        *testing.T
	machines []*exec.Cmd // a process in each
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("not run: the test has no network of its own")
	}
	n := &network{t: t}
	for k, name := range networks {
		bridge := "br-" + name
		check(t, ip("link", "add", bridge, "type", "bridge"))
		check(t, ip("address", "add", fmt.Sprintf("10.77.%d.1/24", k), "dev", bridge))
		check(t, ip("link", "set", bridge, "up"))
		t.Cleanup(func() { check(t, ip("link", "delete", bridge)) })
	}
	for i := range 3 {
		m := exec.Command("/bin/sleep", "infinity")
		m.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		check(t, m.Start())
		t.Cleanup(func() { m.Process.Kill(); m.Wait() })
		n.machines = append(n.machines, m)
		check(t, n.within(i, "ip", "link", "set", "lo", "up"))
		for k, name := range networks {
			check(t, ip("link", "add", cable(name, i), "type", "veth", "peer", "name", name, "netns", fmt.Sprint(m.Process.Pid)))
			check(t, ip("link", "set", cable(name, i), "master", "br-"+name, "up"))
			check(t, n.within(i, "ip", "address", "add", fmt.Sprintf("10.77.%d.%d/24", k, 11+i), "dev", name))
			check(t, n.within(i, "ip", "link", "set", name, "up"))
		}
	}
	return n
}

// cable is the end of a member's cable at the bridge of a network.
func cable(network string, member int) string { return fmt.Sprintf("v-%s-%d", network, member) }

func address(network string, member int) string {
	for k, name := range networks {
		if name == network {
			return fmt.Sprintf("10.77.%d.%d", k, 11+member)
		}
	}
	panic(network)
}

// in is the command that runs another one at a member's machine.
func (n *network) in(member int) []string {
	return []string{"/usr/bin/nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", n.machines[member].Process.Pid)}
}

func (n *network) within(member int, args ...string) error {
	args = append(n.in(member), args...)
	return execute(args[0], args[1:]...)
}

// place is where a member is. The test asks it by its own network.
func (n *network) place(member int) lab.EtcdPlace {
	p := lab.EtcdPlace{Peers: address(members, member), Within: n.in(member)}
	for _, name := range []string{theTest, instanceOne, instanceTwo} {
		p.Clients = append(p.Clients, address(name, member))
	}
	return p
}

// urls are how a member of the network asks the cluster.
func (n *network) urls(network string, cluster []*lab.Etcd) (list []string) {
	for i, e := range cluster {
		u, err := url.Parse(e.Endpoint)
		check(n.t, err)
		u.Host = address(network, i) + ":" + u.Port()
		list = append(list, u.String())
	}
	return list
}

// cut takes cables out: what is sent gets lost, and nobody is told. mend puts them in again.
func (n *network) cut(network string, who ...int)  { n.set(network, "down", who) }
func (n *network) mend(network string, who ...int) { n.set(network, "up", who) }

func (n *network) set(network, to string, who []int) {
	n.t.Helper()
	for _, i := range who {
		check(n.t, ip("link", "set", cable(network, i), to))
	}
}
