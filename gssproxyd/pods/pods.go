// Package pods has a socket for each pod of Kubernetes that the CSI driver has registered, and the
// socket at which it does so.
//
// The driver is told by the kubelet whose volume it is to show to a pod (podInfoOnMount). It tells
// the daemon, and shows the pod the directory of the socket that is made for it. Which pod a caller
// is, is then known by which socket it came through, and package conf believes it only of a caller
// whose control group is that pod's.
//
// A registration is a file beside the socket of registration, in a directory that only the daemon
// may enter, so that one outlives the daemon: a successor opens the sockets again, in the
// directories that pods see. The directories are root's, as the sockets are, since clients believe no
// others; where the daemon is another user, the starter makes them.
package pods

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"gssproxyd/openat"
	"gssproxyd/rpc"
	"gssproxyd/rpc/peer"
)

// Max is how many registrations there may be. All of them fit into one record (see pods.x); the
// kubelet has 110 pods by default.
const Max = 512

// SocketName is the name of a pod's socket in its directory.
const SocketName = "gssproxy.sock"

// Registration is a volume and the pod that gets to see it.
type Registration struct {
	peer.Pod
	Handle string // of the volume, as the kubelet says it
	Target string // where the pod gets to see it
}

// Limits on what a registration has, in bytes, as in pods.x.
const (
	maxHandle    = 128
	maxNamespace = 63
	maxName      = 253
	maxTarget    = 1023
)

// Check returns what is wrong with a registration, as far as one can see by looking at it.
func (r *Registration) Check() error {
	if !peer.IsPodUID(r.UID) {
		return fmt.Errorf("%q is not the UID of a pod", cut(r.UID))
	}
	for _, n := range []struct {
		what, name string
		most       int
	}{{"namespace", r.Namespace, maxNamespace}, {"service account", r.ServiceAccount, maxName}, {"pod", r.Name, maxName}} {
		if n.name == "" || len(n.name) > n.most || strings.Trim(n.name, "abcdefghijklmnopqrstuvwxyz0123456789.-") != "" {
			return fmt.Errorf("%q is not the name of a %s", cut(n.name), n.what)
		}
	}
	if r.Handle == "" || len(r.Handle) > maxHandle || !isText(r.Handle) {
		return fmt.Errorf("%q is not the handle of a volume: 1 to %d characters that can be printed are expected", cut(r.Handle), maxHandle)
	}
	if len(r.Target) > maxTarget || !filepath.IsAbs(r.Target) || filepath.Clean(r.Target) != r.Target || !isText(r.Target) {
		return fmt.Errorf("%q is not the path of a volume: an absolute one without dots, of at most %d bytes, is expected", cut(r.Target), maxTarget)
	}
	return nil
}

func isText(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// cut returns the beginning of what may be long.
func cut(s string) string { return s[:min(len(s), 100)] }

// Dir is where pods' directories are, by the path of the socket of registration: "pods", beside the
// directory of that.
func Dir(registration string) string {
	return filepath.Join(filepath.Dir(filepath.Dir(registration)), "pods")
}

// DirName is the name of the directory in [Dir] for a volume of a pod. A pod's UID is never another
// one's, so neither is the directory.
func DirName(podUID, handle string) string {
	sum := sha256.Sum256([]byte(podUID + "/" + handle))
	return hex.EncodeToString(sum[:nameLen/2])
}

const nameLen = 32

// IsSocket reports whether a path is that of a pod's socket, for a socket of registration.
func IsSocket(registration, path string) bool {
	dir, socket := filepath.Split(path)
	parent, name := filepath.Split(filepath.Clean(dir))
	b, err := hex.DecodeString(name)
	return registration != "" && socket == SocketName && filepath.Clean(parent) == Dir(registration) &&
		err == nil && len(b) == nameLen/2 && strings.ToLower(name) == name && filepath.Clean(path) == path
}

// maxDirs is how many directories of sockets there may be, those that a registration has left behind
// among them: whoever has root make them (package starter) is to fill no file system with them.
const maxDirs = 2 * Max

// Listen makes the directory of a pod's socket and listens there.
func Listen(path string) (*net.UnixListener, error) {
	dir := filepath.Dir(path)
	err := makeDir(filepath.Dir(dir), 0o755, math.MaxInt)
	if err == nil {
		err = makeDir(dir, 0o755, maxDirs)
	}
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return rpc.Listen(path, rpc.ForEverybody)
}

// makeDir makes a directory that is not there, where nobody else can put another one in its place,
// and where there are less than most.
func makeDir(path string, mode fs.FileMode, most int) error {
	parent, name, err := openat.Parent(path)
	if err != nil {
		return err
	}
	defer parent.Close()
	if err := parent.CheckKeeps(); err != nil {
		return fmt.Errorf("%s: %w", filepath.Dir(path), err)
	}
	if n, err := entries(parent, most); err != nil {
		return err
	} else if n >= most {
		f, err := parent.Open(name, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return fmt.Errorf("%s has %d directories already, which is all that may be; remove those of pods that are gone", filepath.Dir(path), n)
		}
		return f.Close()
	}
	if err := parent.Mkdir(name); errors.Is(err, fs.ErrExist) {
		return nil
	} else if err != nil {
		return err
	}
	f, err := parent.Open(name, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return openat.Chmod(f, mode)
}

// entries counts what is in a directory, up to most.
func entries(dir *openat.Dir, most int) (int, error) {
	if most == math.MaxInt {
		return 0, nil
	}
	self, err := dir.Self()
	if err != nil {
		return 0, err
	}
	defer self.Close()
	names, err := self.Readdirnames(most)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return len(names), err
}

// Remove removes a pod's socket and its directory. What is not there is no error.
func Remove(path string) error {
	parent, name, err := openat.Parent(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	dir, err := openat.OpenDir(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	self, err := dir.Self()
	if err != nil {
		return err
	}
	defer self.Close()
	names, err := self.Readdirnames(-1) // a daemon that was killed may have left one with a longer name
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, SocketName) {
			if err := dir.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	return parent.RemoveDir(name)
}
