package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"gssproxyd/tests/lab"
)

// aPod is a pod of Kubernetes, as far as a node makes one of it: control groups, and a volume.
type aPod struct {
	uid, namespace, account, name string
	group                         *os.File // of its container
}

func newPod(t *testing.T, n int, namespace, account, name string) aPod {
	t.Helper()
	p := aPod{uid: fmt.Sprintf("%08x-0000-4000-8000-%012x", os.Getpid(), n), namespace: namespace, account: account, name: name}
	slice := "kubepods-besteffort-pod" + strings.ReplaceAll(p.uid, "-", "_") + ".slice"
	p.group = controlGroup(t, "/kubepods.slice/kubepods-besteffort.slice/"+slice+"/cri-containerd-"+strings.Repeat("0b", 32)+".scope")
	return p
}

// aNode has the CSI driver, in a mount namespace of its own, and what a kubelet and a container
// runtime do by it.
type aNode struct {
	kubelet, view string // directories: of the kubelet, and where pods have their volume
	driver        *lab.Process
	csi           csi.NodeClient
}

func newNode(t *testing.T, base string) *aNode {
	t.Helper()
	r := realm(t)
	binary := filepath.Join(r.Dir, "gssproxyd-csi")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", binary, "gssproxyd/gssproxyd-csi")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	n := &aNode{kubelet: filepath.Join(base, "kubelet"), view: filepath.Join(base, "view")}
	for _, dir := range []string{"kubelet", "view", "plugin"} {
		check(t, os.Mkdir(filepath.Join(base, dir), 0o755))
	}
	endpoint := filepath.Join(base, "plugin", "csi.sock")
	cmd := r.Command(lab.Root, nil, binary, "--node=lab", "--kubelet="+n.kubelet, "--endpoint="+endpoint, "--register="+filepath.Join(base, "csi", "register.sock"))
	cmd.SysProcAttr.Unshareflags = unix.CLONE_NEWNS
	var err error
	n.driver, err = r.Start(cmd, filepath.Join(base, "driver.log"))
	check(t, err)
	t.Cleanup(func() {
		n.driver.Stop()
		if t.Failed() {
			t.Logf("log of the driver:\n%s", n.driver.Output())
		}
	})
	c, err := grpc.NewClient("unix://"+endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(t, err)
	t.Cleanup(func() { c.Close() })
	n.csi = csi.NewNodeClient(c)
	_, err = n.csi.NodeGetInfo(t.Context(), &csi.NodeGetInfoRequest{}, grpc.WaitForReady(true))
	check(t, err)
	return n
}

func (n *aNode) target(p aPod) string {
	return filepath.Join(n.kubelet, "pods", p.uid, "volumes/kubernetes.io~csi/gss/mount")
}

// publish asks as the kubelet does before it starts a pod.
func (n *aNode) publish(t *testing.T, p aPod) {
	t.Helper()
	check(t, os.MkdirAll(filepath.Dir(n.target(p)), 0o750))
	_, err := n.csi.NodePublishVolume(t.Context(), &csi.NodePublishVolumeRequest{
		VolumeId: "csi-" + p.name, TargetPath: n.target(p), Readonly: true,
		VolumeCapability: &csi.VolumeCapability{AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}}},
		VolumeContext: map[string]string{
			"csi.storage.k8s.io/ephemeral": "true", "csi.storage.k8s.io/pod.uid": p.uid, "csi.storage.k8s.io/pod.namespace": p.namespace,
			"csi.storage.k8s.io/pod.name": p.name, "csi.storage.k8s.io/serviceAccount.name": p.account,
		},
	})
	check(t, err)
}

func (n *aNode) unpublish(t *testing.T, p aPod) {
	t.Helper()
	_, err := n.csi.NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: "csi-" + p.name, TargetPath: n.target(p)})
	check(t, err)
}

// run starts a gsstool of nobody's as a container runtime would: with mount and pid namespaces of its
// own, in which the volume of a pod is, and in a control group.
func (n *aNode) run(t *testing.T, volume aPod, group *os.File) *lab.Tool {
	t.Helper()
	r := realm(t)
	const start = `mount --bind "$0" "$1" && shift && exec setpriv --reuid=65534 --regid=65534 --clear-groups -- "$@"`
	cmd := r.Command(lab.Root, r.PluginEnvOf(lab.Ours, filepath.Join(n.view, "gssproxy.sock")),
		"/usr/bin/nsenter", fmt.Sprintf("--target=%d", n.driver.PID()), "--mount", "--",
		"/usr/bin/unshare", "--mount", "--pid", "--fork", "--kill-child", "--",
		"/bin/sh", "-c", start, n.target(volume), n.view, filepath.Join(r.Dir, "gsstool"))
	if group != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(group.Fd())
	}
	tool, err := lab.StartTool(cmd)
	check(t, err)
	t.Cleanup(func() { tool.Close() })
	return tool
}

// TestPods: two pods with one uid get the services that are for them, unmodified programs through the
// sockets that the CSI driver shows them, and go on when the daemon is another one; nobody gets what
// is another pod's, or the host's, whatever he makes of what is his.
func TestPods(t *testing.T) {
	needOurs(t)
	if lab.UnderUnit() {
		t.Skip("its systemd has a namespace of control groups, in which nobody's place is known")
	}
	t.Run("as root", func(t *testing.T) { testPods(t, lab.Root) })
	t.Run("as another user", func(t *testing.T) { testPods(t, lab.Nobody) })
}

func testPods(t *testing.T, becomes lab.User) {
	r := realm(t)
	made(t, r.AddPrincipal("bob", "bob"))
	keys := func(name string) string {
		path, err := r.Keytab(name+".keytab", name)
		check(t, err)
		check(t, os.Chown(path, int(becomes.UID), int(becomes.GID)))
		return path
	}
	base, err := r.MkdirFor(lab.Root, "pods")
	check(t, err)
	check(t, os.Mkdir(filepath.Join(base, "csi"), 0o700))
	check(t, os.Chown(filepath.Join(base, "csi"), int(becomes.UID), int(becomes.GID)))

	text := config(
		svc{"host", 0, []string{"allow_any_uid = yes", "cred_store = client_keytab:" + keys("alice")}},
		svc{"web", lab.Nobody.UID, []string{"cred_store = client_keytab:" + keys("alice"), "pod = shop/web/*"}},
		svc{"db", lab.Nobody.UID, []string{"cred_store = client_keytab:" + keys("bob"), "pod = shop/db/db-?"}},
	)
	more := "[gssproxy]\n  pod_socket = " + filepath.Join(base, "csi", "register.sock") + "\n"
	path := keytab(t)
	if becomes != lab.Root {
		more += "  run_as_user = nobody\n"
		check(t, os.Chown(path, int(becomes.UID), int(becomes.GID)))
	}
	d := daemon(t, "ours", lab.Options{Keytab: path, RCache: "none:", Becomes: becomes, Config: strings.Replace(text, "[gssproxy]\n", more, 1)})
	n := newNode(t, base)
	web, db, other := newPod(t, 1, "shop", "web", "web-0"), newPod(t, 2, "shop", "db", "db-0"), newPod(t, 3, "bank", "web", "web-0")
	for _, p := range []aPod{web, db, other} {
		n.publish(t, p)
	}
	acceptor := tool(t, lab.Root, "KRB5_KTNAME="+d.Options.Keytab)
	check(t, acceptor.Acquire(""))
	who := func(g *lab.Tool) string {
		t.Helper()
		_, token, err := g.Init(service, lab.Usual, nil)
		if err != nil {
			return "nobody"
		}
		a, err := acceptor.Accept(token, nil)
		check(t, err)
		name, _, _ := strings.Cut(a.Client, "@")
		return name
	}
	webs, dbs := n.run(t, web, web.group), n.run(t, db, db.group)
	both := func(when string) {
		t.Helper()
		if got := who(webs) + " " + who(dbs); got != "alice bob" {
			t.Errorf("%s: they are %s", when, got)
		}
	}
	both("at first")

	// Control groups that a pod makes below its own: its names say nothing.
	nested := controlGroup(t, strings.TrimPrefix(db.group.Name(), cgroupRoot(db.group))+"/kubepods.slice/"+filepath.Base(filepath.Dir(web.group.Name()))+"/x.scope")
	if got := who(n.run(t, db, nested)); got != "bob" {
		t.Errorf("below its own control group: %s", got)
	}
	for what, test := range map[string]struct {
		volume aPod
		group  *os.File
		says   string
	}{
		"another pod's socket":               {web, db.group, "and is in pod " + db.uid},
		"a pod's socket, from the host":      {web, nil, "and is in no pod"},
		"another pod's socket, with a group": {web, nested, "and is in pod " + db.uid},
		"a pod that no service is for":       {other, other.group, "not bank/web/web-0"},
	} {
		before := strings.Count(d.Output(), "reason=pod-mismatch")
		if got := who(n.run(t, test.volume, test.group)); got != "nobody" {
			t.Errorf("%s: %s", what, got)
		}
		if out := d.Output(); strings.Count(out, "reason=pod-mismatch") == before || !strings.Contains(out, test.says) {
			t.Errorf("%s: not said: %s", what, test.says)
		}
	}
	// On the host's socket a pod is nobody but its uid.
	g, err := lab.StartTool(func() *exec.Cmd {
		cmd := r.Command(lab.Nobody, d.PluginEnvOf(lab.Ours), filepath.Join(r.Dir, "gsstool"))
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(db.group.Fd())
		return cmd
	}())
	check(t, err)
	defer g.Close()
	if got := who(g); got != "alice" { // the host's service
		t.Errorf("on the host's socket: %s", got)
	}

	check(t, d.Restart())
	both("after a restart")
	check(t, d.Crash())
	both("after a crash")

	n.unpublish(t, web)
	if got := who(webs) + " " + who(dbs); got != "nobody bob" {
		t.Errorf("without a volume: they are %s", got)
	}
	n.unpublish(t, db)
	n.unpublish(t, other)
	left, err := os.ReadDir(filepath.Join(base, "pods"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(n.target(db), &st); err == nil {
		t.Error("the target is still there")
	}
}

// cgroupRoot is where the hierarchy is mounted that a control group is in.
func cgroupRoot(group *os.File) string {
	root, _, _ := strings.Cut(group.Name(), "/kubepods.slice")
	return root
}
