package pods

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"gssproxyd/limits"
	"gssproxyd/rpc"
	"gssproxyd/rpc/peer"
	"gssproxyd/xdr"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// buffer is a log that is read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) { b.mu.Lock(); defer b.mu.Unlock(); return b.b.Write(p) }
func (b *buffer) String() string              { b.mu.Lock(); defer b.mu.Unlock(); return b.b.String() }

// daemon is a registry and the server that pods' sockets are served by.
type daemon struct {
	*Registry
	rpc rpc.Server
	log buffer

	mu   sync.Mutex
	came map[string]peer.Maybe[peer.Pod] // by socket
}

// start starts one on a directory; stop ends it as the daemon does.
func start(t *testing.T, dir string) (d *daemon, client *Client, stop func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not run: root alone registers pods")
	}
	d = &daemon{came: make(map[string]peer.Maybe[peer.Pod])}
	lim := limits.ForProcess()
	log := slog.New(slog.NewTextHandler(&d.log, nil))
	d.Registry = New(Options{Open: Listen, Remove: Remove, Serve: d.rpc.Serve, Cut: d.rpc.Cut, Limits: lim, Log: log})
	d.rpc.Limits, d.rpc.Registered = lim, d.Registered
	d.rpc.Match = func(_ context.Context, c *rpc.Conn, _ uint32) (rpc.Service, bool) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.came[c.Socket] = c.Peer.Registered
		return nobody{}, true
	}
	socket := filepath.Join(dir, "csi", "register.sock")
	check(t, d.Configure(t.Context(), socket))
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		d.rpc.Shutdown(ctx)
		d.Close(ctx)
	}
	t.Cleanup(stop)
	return d, &Client{socket}, stop
}

type nobody struct{}

func (nobody) Parallel() int { return 1 }
func (nobody) Handle(_ context.Context, _ *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
	return reply, rpc.Success
}

// tempDir is one that all may enter.
func tempDir(t *testing.T) string {
	dir := t.TempDir()
	check(t, os.Chmod(dir, 0o755))
	return dir
}

const uid1, uid2 = "11111111-2222-3333-4444-555555555555", "0123456789abcdef0123456789abcdef"

func registration(uid, names, handle string) *Registration {
	n := strings.Split(names, "/")
	return &Registration{
		Pod:    peer.Pod{UID: uid, Namespace: n[0], ServiceAccount: n[1], Name: n[2]},
		Handle: handle, Target: "/var/lib/kubelet/pods/" + uid + "/volumes/kubernetes.io~csi/" + handle + "/mount",
	}
}

// call makes a call through a pod's socket, and returns which pod the server takes the caller for.
func (d *daemon) call(t *testing.T, r *Registration) (pod peer.Pod, known bool, err error) {
	t.Helper()
	path := filepath.Join(Dir(d.socket), DirName(r.UID, r.Handle), SocketName)
	c, err := rpc.Dial(t.Context(), path)
	if err != nil {
		return pod, false, err
	}
	defer c.Close()
	if _, err = c.Call(t.Context(), uint32(xdr.ProcNull), nil); err != nil {
		return pod, false, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	pod, known = d.came[path].Get()
	return pod, known, nil
}

// A pod that is registered has a socket, through which it is known; again makes no difference, also
// when the daemon was another one meanwhile; and without the registration there is nothing left.
func TestRegister(t *testing.T) {
	dir := tempDir(t)
	d, client, stop := start(t, dir)
	one, two := registration(uid1, "shop/web/web-0", "csi-1"), registration(uid2, "shop/db/db-0", "csi-2")
	more := registration(uid1, "shop/web/web-0", "csi-3") // another volume of the first
	for _, r := range []*Registration{one, two, more, one} {
		check(t, client.Register(t.Context(), r))
	}
	for round := range 2 {
		for _, r := range []*Registration{one, two, more} {
			if pod, known, err := d.call(t, r); err != nil || !known || pod != r.Pod {
				t.Errorf("%d: %v %v %v; want %v", round, pod, known, err, r.Pod)
			}
		}
		if all, err := client.List(t.Context()); err != nil || len(all) != 3 {
			t.Errorf("%v, %v", all, err)
		}
		if round == 0 {
			stop()
			d, client, stop = start(t, dir)
		}
	}
	for path, mode := range map[string]os.FileMode{"csi": 0o700, "csi/register.sock": 0o600, "pods": 0o755, "pods/" + DirName(uid1, "csi-1"): 0o755, "pods/" + DirName(uid1, "csi-1") + "/" + SocketName: 0o666} {
		if st, err := os.Stat(filepath.Join(dir, path)); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", path, st, err)
		}
	}

	// Unregistered, nobody who is connected is that pod any more.
	c, err := rpc.Dial(t.Context(), filepath.Join(dir, "pods", DirName(uid1, "csi-1"), SocketName))
	check(t, err)
	defer c.Close()
	_, err = c.Call(t.Context(), 0, nil)
	check(t, err)
	for range 2 {
		check(t, client.Unregister(t.Context(), uid1, "csi-1"))
	}
	if _, err := c.Call(t.Context(), 0, nil); err == nil {
		t.Error("a connection outlives the registration")
	}
	if _, _, err := d.call(t, one); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	check(t, client.Unregister(t.Context(), uid1, "csi-3"))
	check(t, client.Unregister(t.Context(), uid2, "csi-2"))
	for _, where := range []string{"pods", "csi"} {
		left, err := os.ReadDir(filepath.Join(dir, where))
		if err != nil || where == "pods" && len(left) > 0 || where == "csi" && len(left) != 1 {
			t.Errorf("%s: %v, %v", where, left, err)
		}
	}
	stop()
	if !strings.Contains(d.log.String(), "event=pod-unregistered pod=shop/db/db-0") {
		t.Error(d.log.String())
	}
}

// What contradicts a registration, or cannot be one, is refused and said.
func TestRefused(t *testing.T) {
	d, client, _ := start(t, tempDir(t))
	check(t, client.Register(t.Context(), registration(uid1, "shop/web/web-0", "csi-1")))
	elsewhere := registration(uid1, "shop/web/web-0", "csi-1")
	elsewhere.Target = "/elsewhere"
	for _, test := range []struct {
		r    *Registration
		want string
	}{
		{registration(uid1, "shop/admin/web-0", "csi-1"), "contradicts"},
		{registration(uid1, "shop/admin/web-0", "csi-2"), "contradicts"},
		{registration(uid1, "bank/web/web-0", "csi-2"), "contradicts"},
		{elsewhere, "contradicts"},
		{registration("..", "shop/web/web-0", "csi-2"), "not the UID of a pod"},
		{registration(uid2+"/../"+uid1, "shop/web/web-0", "csi-2"), "bytes"},
		{registration(uid2, "shop//web-0", "csi-2"), "not the name of a service account"},
		{registration(uid2, "Shop/web/web-0", "csi-2"), "not the name of a namespace"},
		{registration(uid2, "shop/web/*", "csi-2"), "not the name of a pod"},
		{registration(uid2, "shop/web/web-0", "csi\n2"), "not the handle of a volume"},
		{registration(uid2, "shop/web/web-0", ""), "not the handle of a volume"},
		{registration(uid2, "shop/web/web-0", "../x"), "not the path of a volume"},
	} {
		m := toWire(test.r)
		err := client.ask(t.Context(), xdr.PodsRegister, &m) // not by Register, which looks itself
		if test.want == "bytes" {
			if err == nil || !strings.Contains(err.Error(), "GARBAGE_ARGS") {
				t.Errorf("%+v: %v", test.r, err)
			}
			continue
		}
		if err == nil || !strings.HasPrefix(err.Error(), "[registration-denied] ") || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: %v; want %s", test.r, err, test.want)
		}
	}
	if all, err := client.List(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("%v, %v", all, err)
	}
	if n := strings.Count(d.log.String(), "event=registration-denied reason=registration-denied"); n != 11 {
		t.Errorf("%d refusals in the log:\n%s", n, d.log.String())
	}
	// The program does nothing else, and the gssproxy protocol is not spoken there.
	conn, err := rpc.Dial(t.Context(), client.Socket)
	check(t, err)
	defer conn.Close()
	if _, err := conn.Call(t.Context(), 0, nil); err == nil || !strings.Contains(err.Error(), "PROG_UNAVAIL") {
		t.Error(err)
	}
	if err := client.call(t.Context(), 4, nil, new(xdr.PodsAnswer)); err == nil || !strings.Contains(err.Error(), "PROC_UNAVAIL") {
		t.Error(err)
	}
}

// There is an end to registrations, and all that there may be fit into one answer.
func TestMax(t *testing.T) {
	_, client, stop := start(t, tempDir(t))
	handle := func(i int) string { return fmt.Sprintf("csi-%0*d", maxHandle-4, i) }
	for i := range Max {
		check(t, client.Register(t.Context(), registration(uid1, "shop/web/web-0", handle(i))))
	}
	if err := client.Register(t.Context(), registration(uid2, "shop/web/web-0", "csi")); err == nil || !strings.Contains(err.Error(), "all that may be") {
		t.Error(err)
	}
	check(t, client.Register(t.Context(), registration(uid1, "shop/web/web-0", handle(0))))
	if all, err := client.List(t.Context()); err != nil || len(all) != Max {
		t.Errorf("%d, %v", len(all), err)
	}
	stop()
}

// Sockets are made where nobody else can replace their directories, and not without end: the daemon
// that asks for them may be somebody else's by then.
func TestListen(t *testing.T) {
	dir := tempDir(t)
	path := func(i int) string {
		return filepath.Join(dir, "pods", DirName(uid1, fmt.Sprint(i)), SocketName)
	}
	check(t, os.Chmod(dir, 0o777))
	if l, err := Listen(path(0)); err == nil || !strings.Contains(err.Error(), "could replace") {
		t.Error(l, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Error(left, err)
	}
	check(t, os.Chmod(dir, 0o755))
	for i := range maxDirs {
		check(t, os.MkdirAll(filepath.Dir(path(i)), 0o755))
	}
	if l, err := Listen(path(maxDirs)); err == nil || !strings.Contains(err.Error(), "all that may be") {
		t.Error(l, err)
	}
	for _, i := range []int{0, maxDirs} { // one that is there, and one in the place of another
		l, err := Listen(path(i))
		check(t, err)
		l.Close()
		check(t, Remove(path(1)))
	}
}

// What is in the directory and is no registration is said, and left out.
func TestBrokenState(t *testing.T) {
	dir := tempDir(t)
	_, client, stop := start(t, dir)
	for _, handle := range []string{"csi-1", "csi-2", "csi-3", "csi-4"} {
		check(t, client.Register(t.Context(), registration(uid1, "shop/web/web-0", handle)))
	}
	stop()
	file := func(handle string) string { return filepath.Join(dir, "csi", DirName(uid1, handle)+suffix) }
	good, err := os.ReadFile(file("csi-1"))
	check(t, err)
	for handle, text := range map[string]string{
		"csi-2": string(good),                                                     // another one's
		"csi-3": strings.Replace(string(good), `"Handle"`, `"Uid":0,"Handle"`, 1), // a field too much
		"csi-4": string(good[:len(good)-10]),                                      // torn
		"csi-5": strings.Replace(string(good), "csi-1", "csi-5", 1) + "more",      // something behind it
		"csi-6": strings.ReplaceAll(string(good), "csi-1", "csi-6"),               // as it should be
	} {
		check(t, os.WriteFile(file(handle), []byte(text), 0o600))
	}
	check(t, os.WriteFile(filepath.Join(dir, "csi", "."+DirName(uid1, "csi-1")+suffix+".ABC"), good[:3], 0o600))
	check(t, os.Symlink(file("csi-1"), file("csi-8")))
	d, client, _ := start(t, dir)
	all, err := client.List(t.Context())
	if err != nil || len(all) != 2 {
		t.Errorf("%v, %v", all, err)
	}
	if n := strings.Count(d.log.String(), "cannot be read"); n != 5 {
		t.Errorf("%d are said:\n%s", n, d.log.String())
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "csi", ".*")); len(left) > 0 {
		t.Error(left)
	}
	if _, known, err := d.call(t, registration(uid1, "shop/web/web-0", "csi-6")); err != nil || !known {
		t.Error(known, err)
	}
	// When its pod ends nothing is left of it.
	check(t, client.Unregister(t.Context(), uid1, "csi-4"))
	for _, path := range []string{file("csi-4"), filepath.Join(dir, "pods", DirName(uid1, "csi-4"))} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// A directory that is not the daemon's alone holds no registrations.
func TestStatePlace(t *testing.T) {
	dir := tempDir(t)
	check(t, os.Mkdir(filepath.Join(dir, "csi"), 0o755))
	r := New(Options{Log: slog.New(slog.DiscardHandler)})
	if err := r.Configure(t.Context(), filepath.Join(dir, "csi", "register.sock")); err == nil || !strings.Contains(err.Error(), "mode 0700") {
		t.Error(err)
	}
	if err := (&Client{filepath.Join(dir, "csi", "register.sock")}).ask(t.Context(), xdr.PodsRegister, new(xdr.PodsAnswer)); err == nil || !strings.Contains(err.Error(), "0700 is expected") {
		t.Error(err)
	}
}

// A socket that is lost is opened again by a reload, and a socket of registration that is configured
// no more leaves what is registered to the next.
func TestConfigure(t *testing.T) {
	dir := tempDir(t)
	d, client, _ := start(t, dir)
	r := registration(uid1, "shop/web/web-0", "csi-1")
	check(t, client.Register(t.Context(), r))
	socket := d.socket
	check(t, d.Configure(t.Context(), ""))
	if err := client.Register(t.Context(), r); err == nil {
		t.Error("registered nowhere")
	}
	path := filepath.Join(dir, "pods", DirName(uid1, "csi-1"), SocketName)
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		t.Error("a pod is served without a socket of registration")
	}
	check(t, d.Configure(t.Context(), socket))
	if pod, known, err := d.call(t, r); err != nil || !known || pod != r.Pod {
		t.Error(pod, known, err)
	}
}
