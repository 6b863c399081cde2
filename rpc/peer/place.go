package peer

import (
	"bytes"
	"path"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Place is where the service manager or a container runtime of this host has put a process, as its
// control group (cgroup version 2) says. What is not said is empty.
//
// The path is read from the root, and what is outermost counts: a container may be able to make
// control groups below its own, with any name, and so may a user below the manager of his units
// (user@UID.service). What such names claim is not looked at.
type Place struct {
	Unit      string // systemd's: httpd.service, session-2.scope
	Pod       string // the UID of a Kubernetes pod, as in its metadata
	Container string // the id that its runtime gave it, 64 hexadecimal digits
}

// Pod is a pod of Kubernetes, as its metadata names it.
type Pod struct {
	UID                             string
	Namespace, ServiceAccount, Name string
}

// String returns NAMESPACE/SERVICEACCOUNT/POD.
func (p Pod) String() string { return p.Namespace + "/" + p.ServiceAccount + "/" + p.Name }

// PlaceOf reads the path of a control group, which begins with a slash. It knows the places of
// systemd's units, those of Kubernetes' pods with either driver, and the containers of containerd,
// CRI-O, Docker and Podman as root runs them.
func PlaceOf(path string) (p Place) {
	rest, ok := strings.CutPrefix(path, "/")
	if !ok {
		return p
	}
	name, rest, _ := strings.Cut(rest, "/")
	pods := name == "kubepods.slice" || name == "kubelet.slice" // the latter is kind's
	for strings.HasSuffix(name, ".slice") {
		if uid, ok := podUID(strings.TrimSuffix(name, ".slice")); pods && ok {
			p.Pod = uid
			name, _, _ = strings.Cut(rest, "/")
			p.Unit, p.Container = unitName(name), containerID(name)
			return p
		}
		name, rest, _ = strings.Cut(rest, "/")
	}
	if name == "kubepods" {
		return podBelow(rest)
	}
	if name == "docker" || name == "libpod_parent" {
		name, _, _ = strings.Cut(rest, "/")
		p.Container = bareID(strings.TrimPrefix(name, "libpod-"))
		return p
	}
	p.Unit, p.Container = unitName(name), containerID(name)
	return p
}

// podBelow reads what is below "kubepods" where Kubernetes makes control groups itself.
func podBelow(rest string) (p Place) {
	name, rest, _ := strings.Cut(rest, "/")
	if name == "burstable" || name == "besteffort" {
		name, rest, _ = strings.Cut(rest, "/")
	}
	uid, ok := strings.CutPrefix(name, "pod")
	if !ok || !IsPodUID(uid) {
		return p
	}
	p.Pod = uid
	name, _, _ = strings.Cut(rest, "/")
	p.Container = bareID(name)
	return p
}

// podUID returns the pod whose slice has the name, in which - stands between the parts of the name
// and the UID has _ for it. Each slice is in its parent: only the names that Kubernetes gives count.
func podUID(slice string) (uid string, ok bool) {
	slice = strings.TrimPrefix(slice, "kubelet-")
	slice, ok = strings.CutPrefix(slice, "kubepods-")
	if !ok {
		return "", false
	}
	for _, class := range []string{"burstable-", "besteffort-"} {
		slice = strings.TrimPrefix(slice, class)
	}
	uid, ok = strings.CutPrefix(slice, "pod")
	uid = strings.ReplaceAll(uid, "_", "-")
	return uid, ok && IsPodUID(uid)
}

// IsPodUID reports whether s is a UUID, or the 32 hexadecimal digits of a pod that a file on the node
// describes.
func IsPodUID(s string) bool {
	if len(s) == 32 {
		return isHex(s)
	}
	parts := strings.Split(s, "-")
	if len(parts) != 5 {
		return false
	}
	for i, n := range []int{8, 4, 4, 4, 12} {
		if len(parts[i]) != n || !isHex(parts[i]) {
			return false
		}
	}
	return true
}

// containerID returns the id in the name of a scope that a runtime has made for a container, not for
// what watches over one.
func containerID(scope string) string {
	name, ok := strings.CutSuffix(scope, ".scope")
	if !ok {
		return ""
	}
	for _, runtime := range []string{"cri-containerd-", "crio-", "docker-", "libpod-", "nerdctl-"} {
		if id, ok := strings.CutPrefix(name, runtime); ok {
			return bareID(id)
		}
	}
	return ""
}

func bareID(s string) string {
	if len(s) == 64 && isHex(s) {
		return s
	}
	return ""
}

func isHex(s string) bool { return strings.Trim(s, "0123456789abcdef") == "" }

// unitName returns the unit that a control group has the name of, which systemd writes with a _ in
// front where it would be another thing's.
func unitName(name string) string {
	if !IsUnit(name) {
		return ""
	}
	return strings.TrimPrefix(name, "_")
}

// IsUnit reports whether a name is that of a unit of systemd's that processes can be in: one that ends
// in one of the types of systemd.unit(5) that have a control group, slices apart.
func IsUnit(name string) bool {
	switch path.Ext(name) {
	case ".service", ".scope", ".socket", ".mount", ".swap":
		return true
	}
	return false
}

// readCgroup returns the path of the control group of version 2 that a process is in; empty where
// there is none, or where paths are not seen from the root of the host.
func readCgroup(dir string) (string, error) {
	if !seesHostsCgroups() {
		return "", nil
	}
	b, err := readFile(dir + "/cgroup")
	if err != nil {
		return "", err
	}
	for line := range bytes.Lines(b) {
		if path, ok := bytes.CutPrefix(bytes.TrimSuffix(line, []byte("\n")), []byte("0::")); ok {
			return string(path), nil
		}
	}
	return "", nil
}

// hostsCgroupNS is the inode of the cgroup namespace that the kernel starts with
// (PROC_CGROUP_INIT_INO in linux/proc_ns.h).
const hostsCgroupNS = 0xEFFFFFFB

// seesHostsCgroups reports whether this process is in the host's cgroup namespace. In another one
// paths begin where it does, and whoever made it has named what is below.
var seesHostsCgroups = sync.OnceValue(func() bool {
	ns, err := stat(unix.AT_FDCWD, "/proc/thread-self/ns/cgroup")
	return err == nil && ns.inode == hostsCgroupNS
})
