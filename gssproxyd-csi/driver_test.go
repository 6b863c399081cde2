package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"gssproxyd/audit"
	"gssproxyd/gssproxyd/pods"
	"gssproxyd/rpc/peer"
	"gssproxyd/tests/lab"
)

// The tests mount, so they run in a mount namespace of their own, where nothing reaches the host's.
func TestMain(m *testing.M) {
	const inside = "GSSPROXYD_CSI_TEST_INSIDE"
	if os.Geteuid() != 0 {
		fmt.Println("not run: needs root, to mount")
		return
	}
	if os.Getenv(inside) != "" {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		code := m.Run()
		if built {
			path, _ := binary()
			os.RemoveAll(filepath.Dir(path))
		}
		os.Exit(code)
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		os.Exit(1)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// binary is the daemon, built once; built is whether it was.
var built bool

var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "csi")
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "gssproxyd")
	built = true
	return out, lab.Build(out, false)
})

// output is what a process writes, while it does.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) { o.mu.Lock(); defer o.mu.Unlock(); return o.b.Write(p) }
func (o *output) String() string              { o.mu.Lock(); defer o.mu.Unlock(); return o.b.String() }

// node is a host with a daemon, a driver and a kubelet's directory.
type node struct {
	t    *testing.T
	dir  string
	log  output // of the driver
	conn *grpc.ClientConn
	*driver

	daemonLog output
	process   *exec.Cmd
}

func (n *node) auditFile() string { return filepath.Join(n.dir, "audit.log") }

// newNode starts all that a node has.
func newNode(t *testing.T) *node {
	t.Helper()
	dir := t.TempDir()
	check(t, errors.Join(os.Chmod(dir, 0o755), os.Chmod(filepath.Dir(dir), 0o755)))
	n := &node{t: t, dir: dir}
	for _, d := range []string{"run", "kubelet", "plugin", "state"} {
		check(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	check(t, os.WriteFile(filepath.Join(dir, "gssproxy.conf"), []byte(`[gssproxy]
  pod_socket = `+dir+`/run/csi/register.sock
[service/web]
  mechs = krb5
  cred_store = keytab:`+dir+`/none.keytab
  cred_usage = accept
  euid = 0
  pod = shop/web/*
`), 0o600))
	n.startDaemon()
	t.Cleanup(func() { n.stopDaemon(syscall.SIGTERM) })

	o := options{endpoint: dir + "/plugin/csi.sock", node: "node-1", kubelet: dir + "/kubelet", registration: dir + "/run/csi/register.sock"}
	n.driver = &driver{options: o, log: slog.New(slog.NewTextHandler(&n.log, nil)), daemon: &pods.Client{Socket: o.registration}, turn: make(chan struct{}, 1)}
	log, err := audit.Open(n.auditFile(), audit.Options{})
	check(t, err)
	n.driver.audit = log
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- n.serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		check(t, log.Close())
		if _, err := audit.Verify([]string{n.auditFile()}); err != nil {
			t.Error(err)
		}
		for _, p := range []pod{web, db} {
			unix.Unmount(n.target(p), unix.MNT_DETACH) // if the test has left it mounted
		}
	})
	lab.Await(t, "the driver listens", func() bool {
		c, err := net.Dial("unix", o.endpoint)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	n.conn, err = grpc.NewClient("unix://"+o.endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(t, err)
	t.Cleanup(func() { n.conn.Close() })
	return n
}

func (n *node) startDaemon() {
	n.t.Helper()
	path, err := binary()
	check(n.t, err)
	n.process = exec.Command(path, "-i", "-c", n.dir+"/gssproxy.conf", "-C", n.dir+"/none", "-s", n.dir+"/run/default.sock", "--state-dir", n.dir+"/state")
	n.process.Env = append(os.Environ(), "KRB5_CONFIG=/dev/null")
	n.process.Stderr = &n.daemonLog
	n.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	before := strings.Count(n.daemonLog.String(), "Initialization complete")
	runtime.LockOSThread() // Pdeathsig is about the thread
	check(n.t, n.process.Start())
	lab.Await(n.t, "the daemon starts", func() bool { return strings.Count(n.daemonLog.String(), "Initialization complete") > before })
}

func (n *node) stopDaemon(sig os.Signal) {
	n.process.Process.Signal(sig)
	n.process.Wait()
}

// pod is one that the kubelet starts.
type pod struct{ uid, namespace, account, name string }

var (
	web = pod{"11111111-2222-3333-4444-555555555555", "shop", "web", "web-0"}
	db  = pod{"66666666-7777-8888-9999-aaaaaaaaaaaa", "shop", "db", "db-0"}
)

// volumes returns the directory in which the kubelet has the volumes of a driver for a pod, and target the path that it names.
func (n *node) volumes(p pod) string {
	return filepath.Join(n.kubelet, "pods", p.uid, "volumes", "kubernetes.io~csi")
}

func (n *node) target(p pod) string { return filepath.Join(n.volumes(p), "gss", "mount") }

// request is what the kubelet asks when it starts a pod, after it has made the volume's directory.
func (n *node) request(p pod, handle string) *csi.NodePublishVolumeRequest {
	check(n.t, os.MkdirAll(filepath.Dir(n.target(p)), 0o750))
	return &csi.NodePublishVolumeRequest{
		VolumeId: handle, TargetPath: n.target(p), Readonly: true,
		VolumeCapability: &csi.VolumeCapability{
			AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		},
		VolumeContext: map[string]string{
			ephemeralKey: "true", uidKey: p.uid, namespaceKey: p.namespace, accountKey: p.account, nameKey: p.name,
		},
	}
}

func (n *node) publish(r *csi.NodePublishVolumeRequest) error {
	_, err := csi.NewNodeClient(n.conn).NodePublishVolume(n.t.Context(), r)
	return err
}

func (n *node) unpublish(target, handle string) error {
	_, err := csi.NewNodeClient(n.conn).NodeUnpublishVolume(n.t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: handle, TargetPath: target})
	return err
}

func (n *node) registered() (names []string) {
	n.t.Helper()
	all, err := n.driver.daemon.List(n.t.Context())
	check(n.t, err)
	for _, r := range all {
		names = append(names, r.Pod.String())
	}
	return names
}

// reaches reports whether there is a daemon at a volume's socket.
func (n *node) reaches(p pod) error {
	dir, err := os.Open(n.target(p)) // whose path may not fit into an address
	if err != nil {
		return err
	}
	defer dir.Close()
	c, err := net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), pods.SocketName))
	if err == nil {
		c.Close()
	}
	return err
}

// As the kubelet calls: pods start and end, calls are repeated, and the daemon is another one now and
// then, which pods do not notice.
func TestKubelet(t *testing.T) {
	n := newNode(t)
	for range 2 {
		check(t, n.publish(n.request(web, "csi-web")))
		check(t, n.publish(n.request(db, "csi-db")))
	}
	if got := n.registered(); len(got) != 2 {
		t.Error(got)
	}
	for _, p := range []pod{web, db} {
		var st unix.Statfs_t
		check(t, unix.Statfs(n.target(p), &st))
		const want = unix.ST_RDONLY | unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC
		if st.Flags&want != want {
			t.Errorf("%s: mounted with %#x", p.name, st.Flags)
		}
		if err := os.Remove(filepath.Join(n.target(p), pods.SocketName)); !errors.Is(err, unix.EROFS) {
			t.Error(err)
		}
	}
	for _, sig := range []os.Signal{nil, syscall.SIGTERM, syscall.SIGKILL} {
		if sig != nil {
			n.stopDaemon(sig)
			if err := n.reaches(web); err == nil {
				t.Error("there is somebody")
			}
			n.startDaemon()
		}
		check(t, n.reaches(web))
		check(t, n.reaches(db))
	}
	check(t, n.collect(t.Context())) // which finds nothing
	for range 2 {
		check(t, n.unpublish(n.target(web), "csi-web"))
		if _, err := os.Lstat(n.target(web)); !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	}
	check(t, n.reaches(db))
	check(t, os.RemoveAll(filepath.Join(n.kubelet, "pods", web.uid)))
	check(t, n.unpublish(n.target(web), "csi-web")) // the kubelet does not know that it has asked
	if got := n.registered(); len(got) != 1 || got[0] != "shop/db/db-0" {
		t.Error(got)
	}
	check(t, n.unpublish(n.target(db), "csi-db"))
	if left, err := os.ReadDir(filepath.Join(n.dir, "run", "pods")); err != nil || len(left) > 0 {
		t.Error(left, err)
	}
	for _, want := range []string{"event=pod-registered pod=shop/web/web-0 pod_uid=" + web.uid, "event=pod-unregistered pod_uid=" + db.uid} {
		if !strings.Contains(n.log.String(), want) {
			t.Errorf("the log has no %s:\n%s", want, n.log.String())
		}
	}
}

// A pod ends where there is no daemon, which hears of that when there is one.
func TestUnpublishWithoutDaemon(t *testing.T) {
	n := newNode(t)
	check(t, n.publish(n.request(web, "csi-web")))
	check(t, n.publish(n.request(db, "csi-db")))
	n.stopDaemon(syscall.SIGTERM)
	for range 2 {
		check(t, n.unpublish(n.target(web), "csi-web"))
	}
	if _, err := os.Lstat(n.target(web)); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if err := n.publish(n.request(web, "csi-web")); err == nil {
		t.Error("a pod begins without a daemon")
	}
	n.startDaemon()
	check(t, n.collect(t.Context()))
	if got := n.registered(); len(got) != 1 || got[0] != "shop/db/db-0" {
		t.Error(got)
	}
	check(t, n.unpublish(n.target(db), "csi-db"))
}

// What is not as the kubelet asks is refused and said, and nothing comes of it.
func TestForged(t *testing.T) {
	n := newNode(t)
	n.request(db, "csi-db") // another pod's directory is there
	other := filepath.Join(n.dir, "other")
	check(t, os.MkdirAll(filepath.Join(other, "mount"), 0o755))
	links := func(link, to string) func(*csi.NodePublishVolumeRequest) {
		return func(*csi.NodePublishVolumeRequest) {
			check(t, os.RemoveAll(link))
			check(t, os.Symlink(to, link))
		}
	}
	target := func(path string) func(*csi.NodePublishVolumeRequest) {
		return func(r *csi.NodePublishVolumeRequest) { r.TargetPath = path }
	}
	says := func(key, value string) func(*csi.NodePublishVolumeRequest) {
		return func(r *csi.NodePublishVolumeRequest) {
			if value == "" {
				delete(r.VolumeContext, key)
			} else {
				r.VolumeContext[key] = value
			}
		}
	}
	pods := n.kubelet + "/pods/"
	rest := "/volumes/kubernetes.io~csi/gss/mount"
	refused := 0
	for name, test := range map[string]struct {
		change func(*csi.NodePublishVolumeRequest)
		code   codes.Code
	}{
		"not ephemeral":              {says(ephemeralKey, ""), codes.InvalidArgument},
		"ephemeral in words":         {says(ephemeralKey, "false"), codes.InvalidArgument},
		"no uid":                     {says(uidKey, ""), codes.InvalidArgument},
		"no namespace":               {says(namespaceKey, ""), codes.InvalidArgument},
		"no account":                 {says(accountKey, ""), codes.InvalidArgument},
		"no name":                    {says(nameKey, ""), codes.InvalidArgument},
		"another pod's uid":          {says(uidKey, db.uid), codes.PermissionDenied},
		"a namespace that is a path": {says(namespaceKey, "shop/web"), codes.InvalidArgument},
		"an account that is any":     {says(accountKey, "*"), codes.InvalidArgument},
		"another pod's directory":    {target(n.target(db)), codes.PermissionDenied},
		"two dots":                   {target(pods + web.uid + "/../" + db.uid + rest), codes.InvalidArgument},
		"a uid of two dots":          {func(r *csi.NodePublishVolumeRequest) { target(pods + ".." + rest)(r); says(uidKey, "..")(r) }, codes.InvalidArgument},
		"a volume of two dots":       {target(pods + web.uid + "/volumes/kubernetes.io~csi/../mount"), codes.InvalidArgument},
		"not below the kubelet":      {target(other + "/mount"), codes.InvalidArgument},
		"not a volume":               {target(pods + web.uid + "/etc-hosts"), codes.InvalidArgument},
		"no directory":               {target(pods + web.uid + "/volumes/kubernetes.io~csi/none/mount"), codes.NotFound},
		"a link for the target":      {links(n.target(web), other+"/mount"), codes.PermissionDenied},
		"a link for the volume":      {links(filepath.Dir(n.target(web)), other), codes.PermissionDenied},
		"a link for the pod":         {links(n.kubelet+"/pods/"+web.uid, n.kubelet+"/pods/"+db.uid), codes.PermissionDenied},
		"a block device": {func(r *csi.NodePublishVolumeRequest) {
			r.VolumeCapability.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
		}, codes.InvalidArgument},
		"a handle of two lines": {func(r *csi.NodePublishVolumeRequest) { r.VolumeId = "csi\n1" }, codes.InvalidArgument},
	} {
		check(t, os.RemoveAll(n.kubelet+"/pods/"+web.uid))
		r := n.request(web, "csi-web")
		test.change(r)
		before := strings.Count(n.log.String(), "event=registration-denied")
		err := n.publish(r)
		if status.Code(err) != test.code || !strings.Contains(err.Error(), "[registration-denied] ") {
			t.Errorf("%s: %v; want %v", name, err, test.code)
		}
		refused++
		if strings.Count(n.log.String(), "event=registration-denied") != before+1 {
			t.Errorf("%s: it is not said:\n%s", name, n.log.String())
		}
		if got := n.registered(); len(got) > 0 {
			t.Errorf("%s: registered: %v", name, got)
		}
	}
	check(t, n.driver.audit.Close())
	log, err := os.ReadFile(n.auditFile())
	check(t, err)
	if got := bytes.Count(log, []byte(`"kind":"registration-denied"`)); got != refused {
		t.Errorf("the audit log has %d refusals, want %d", got, refused)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	check(t, err)
	if bytes.Contains(mounts, []byte(n.dir)) {
		t.Errorf("something is mounted:\n%s", mounts)
	}
	// Nor is anything unmounted that is elsewhere.
	check(t, os.RemoveAll(n.kubelet+"/pods/"+web.uid))
	n.request(web, "")
	check(t, unix.Mount("tmpfs", other+"/mount", "tmpfs", 0, ""))
	defer unix.Unmount(other+"/mount", unix.MNT_DETACH)
	links(n.target(web), other+"/mount")(nil)
	if err := n.unpublish(n.target(web), "csi-web"); err == nil {
		t.Error("unpublished through a link")
	}
	if err := n.unpublish(other+"/mount", "csi-web"); status.Code(err) != codes.InvalidArgument {
		t.Error(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(other+"/mount", &st); err != nil || st.Type != unix.TMPFS_MAGIC {
		t.Error("it is not mounted any more", err)
	}
}

// One volume and two pods: what contradicts what is registered is refused by the daemon.
func TestContradiction(t *testing.T) {
	n := newNode(t)
	check(t, n.publish(n.request(web, "csi-web")))
	r := n.request(web, "csi-web")
	r.VolumeContext[accountKey] = "admin"
	if err := n.publish(r); err == nil || !strings.Contains(err.Error(), "[registration-denied] ") || !strings.Contains(err.Error(), "contradicts") {
		t.Error(err)
	}
	lab.Await(t, "the daemon to log the refusal", func() bool {
		return strings.Contains(n.daemonLog.String(), "event=registration-denied reason=registration-denied")
	})
	check(t, n.publish(n.request(web, "csi-web")))
}

// A registration whose volume is not mounted any more is found and ended.
func TestOrphans(t *testing.T) {
	n := newNode(t)
	check(t, n.publish(n.request(web, "csi-web")))
	check(t, n.publish(n.request(db, "csi-db")))
	gone := &pods.Registration{Pod: peer.Pod{UID: "99999999-2222-3333-4444-555555555555", Namespace: "shop", ServiceAccount: "web", Name: "web-9"}, Handle: "csi-9", Target: "/elsewhere"}
	check(t, n.driver.daemon.Register(t.Context(), gone))
	check(t, unix.Unmount(n.target(web), unix.MNT_DETACH))
	check(t, n.collect(t.Context()))
	if got := n.registered(); len(got) != 1 || got[0] != "shop/db/db-0" {
		t.Error(got)
	}
	check(t, n.reaches(db))
	if !strings.Contains(n.log.String(), "its volume is gone") {
		t.Error(n.log.String())
	}
	check(t, unix.Unmount(n.target(db), unix.MNT_DETACH))
	check(t, os.RemoveAll(n.kubelet+"/pods"))
	check(t, n.collect(t.Context()))
	if got := n.registered(); len(got) != 0 {
		t.Error(got)
	}
}

// Another user than root is not answered, even where the permissions of the socket let him in.
func TestRootOnly(t *testing.T) {
	n := newNode(t)
	if st, err := os.Stat(n.endpoint); err != nil || st.Mode().Perm() != 0o600 {
		t.Error(st.Mode(), err)
	}
	check(t, os.Chmod(n.endpoint, 0o666))
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	as := func(uid uintptr) {
		if _, _, err := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), uid, ^uintptr(0)); err != 0 {
			panic(err)
		}
	}
	as(uintptr(lab.Nobody.UID))
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: n.endpoint})
	}
	as(0)
	check(t, err)
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	if b, err := io.ReadAll(f); err != nil || len(b) > 0 {
		t.Errorf("%q, %v", b, err)
	}
	if !strings.Contains(n.log.String(), fmt.Sprintf("reason=registration-denied uid=%d", lab.Nobody.UID)) {
		t.Error(n.log.String())
	}
}

// Without the daemon the driver lives, and says that it is not ready.
func TestNoDaemon(t *testing.T) {
	n := newNode(t)
	ready := func() bool {
		t.Helper()
		r, err := csi.NewIdentityClient(n.conn).Probe(t.Context(), &csi.ProbeRequest{})
		check(t, err)
		return r.GetReady().GetValue()
	}
	if !ready() {
		t.Error(n.log.String())
	}
	n.stopDaemon(syscall.SIGKILL)
	if ready() {
		t.Error("ready without a daemon")
	}
	if err := n.publish(n.request(web, "csi-web")); err == nil || !strings.Contains(err.Error(), "pod_socket = ") {
		t.Error(err)
	}
	n.startDaemon()
	check(t, n.publish(n.request(web, "csi-web")))
}

func TestOptions(t *testing.T) {
	t.Setenv("NODE_NAME", "")
	if _, err := parse(nil); err == nil || !strings.Contains(err.Error(), "--node") {
		t.Error(err)
	}
	if _, err := parse([]string{"--node", "a", "x"}); err == nil {
		t.Error("an argument")
	}
	if o, err := parse([]string{"--node", "a", "--endpoint", "unix:///x/csi.sock", "--kubelet", "/k/"}); err != nil || o.endpoint != "/x/csi.sock" || o.kubelet != "/k" {
		t.Error(o, err)
	}
}
