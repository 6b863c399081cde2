package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// kernelArg are the arguments the kernel's NFS server sends.
func kernelArg(token []byte) *xdr.ArgAcceptSecContext {
	arg := lab.AcceptArg(token, nil)
	arg.CallCtx.Options = []xdr.Option{
		{Option: []byte("exported_context_type\x00"), Value: []byte("linux_lucid_v1\x00")},
		{Option: []byte("exported_creds_type\x00"), Value: []byte("linux_creds_v1\x00")},
	}
	return arg
}

// kernelAccept asks as the kernel does.
func kernelAccept(t *testing.T, w *lab.Wire, token []byte) *xdr.ResAcceptSecContext {
	t.Helper()
	var res xdr.ResAcceptSecContext
	check(t, w.Call(xdr.ProcAcceptSecContext, kernelArg(token), &res))
	return &res
}

// userOf is an initiator's program with fresh tickets of a user.
func userOf(t *testing.T, name string) *lab.Tool {
	t.Helper()
	r := realm(t)
	if err := r.AddPrincipal(name, name); err != nil && !strings.Contains(err.Error(), "already exists") {
		t.Fatal(err)
	}
	env, err := r.Kinit(name, name)
	check(t, err)
	return tool(t, lab.Nobody, env...)
}

func tokenOf(t *testing.T, g *lab.Tool) []byte {
	t.Helper()
	_, token, err := g.Init(service, lab.Usual|lab.Mutual, nil)
	check(t, err)
	return token
}

// Both daemons answer the kernel the same, but for keys, numbers and ciphertexts; and the initiator
// takes the answer: its key for messages is the one the kernel gets.
func TestKernelContexts(t *testing.T) {
	lab.Require(t)
	g := userOf(t, "kernel-user")
	root := userOf(t, "root") // a user of every host
	replies := map[string][]*xdr.ResAcceptSecContext{}
	for _, kind := range lab.Kinds {
		d := daemon(t, kind, lab.Options{})
		w := wire(t, d)
		for _, who := range []*lab.Tool{g, root} {
			for _, flags := range []uint32{lab.Usual | lab.Mutual, lab.Mutual | lab.Integ, lab.Mutual | lab.Conf | lab.Integ} {
				id, token, err := who.Init(service, flags, nil)
				check(t, err)
				res := kernelAccept(t, w, token)
				check(t, lab.StatusError(res.Status))
				complete, _, err := who.Step(id, res.OutputToken.V)
				if err != nil || !complete {
					t.Fatalf("%s: the initiator refuses the answer: %v", kind, err)
				}
				enctype, key, err := who.Key(id)
				check(t, err)
				lucid := res.ContextHandle.V.ExportedContextToken
				if !bytes.Equal(key, lucid[20:]) || binary.NativeEndian.Uint32(lucid[16:]) != uint32(enctype) {
					t.Errorf("%s: the initiator has another key than the kernel", kind)
				}
				replies[kind] = append(replies[kind], res)
				clear(lucid[8:16])
				clear(lucid[20:])
				// Of the token the frame up to the AP-REP; the lengths vary with the size of
				// numbers in DER.
				frame := res.OutputToken.V[:20]
				frame[2], frame[18] = 0, 0
				res.OutputToken.V = frame
				res.ContextHandle.V.Lifetime /= 1000
			}
		}
	}
	if d := cmp.Diff(replies["C"], replies["ours"], cmpopts.EquateEmpty()); d != "" {
		t.Errorf("(-C +ours):\n%s", d)
	}
}

// credsOf is who the kernel is told that the initiator is.
func credsOf(t *testing.T, res *xdr.ResAcceptSecContext) (uid, gid uint32, groups []uint32) {
	t.Helper()
	check(t, lab.StatusError(res.Status))
	if len(res.Options) != 1 || string(res.Options[0].Option) != "linux_creds_v1\x00" {
		t.Fatalf("options %v", res.Options)
	}
	b := res.Options[0].Value
	word := func(i int) uint32 { return binary.NativeEndian.Uint32(b[4*i:]) }
	for i := range int(word(2)) {
		groups = append(groups, word(3+i))
	}
	return word(0), word(1), groups
}

// nameService is a script that starts our daemon where the name service has users of its own,
// beside those of the host, and a module that takes a minute over some names. Nothing of it is seen
// outside of the daemon's mount namespace.
func nameService(t *testing.T, passwd, group string) string {
	t.Helper()
	hesiod, err := filepath.Glob("/usr/lib/*/libnss_hesiod.so.2")
	if _, missing := os.Stat("/usr/lib/libnss_extrausers.so.2"); missing != nil || err != nil || len(hesiod) != 1 {
		if os.Getenv("CI") == "true" {
			t.Fatal(missing, hesiod)
		}
		t.Skip("no such name service here: ", missing, hesiod)
	}
	apart := exec.Command("/bin/true")
	apart.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if err := apart.Run(); err != nil {
		lab.Lacking(t, "mount(2)", err)
	}
	dir := realm(t).Path("nss")
	extra := filepath.Join(dir, "extrausers")
	check(t, os.MkdirAll(extra, 0o755))
	put := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		check(t, os.WriteFile(path, []byte(text), mode))
		return path
	}
	put("extrausers/passwd", passwd, 0o644)
	put("extrausers/group", group, 0o644)
	conf := put("nsswitch.conf", "passwd: files hesiod extrausers\ngroup: files extrausers\n", 0o644)
	module := filepath.Join(dir, "slow.so")
	if out, err := exec.Command("cc", "-shared", "-fPIC", "-Wall", "-o", module, "testdata/nss_slow.c").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	binary := filepath.Join(dir, "gssproxyd")
	check(t, lab.Build(binary, true))
	return put("start", fmt.Sprintf(`#!/bin/sh
exec unshare -m sh -ec '
mount --bind %s /etc/nsswitch.conf
mount --bind %s %s
mount -t tmpfs none /var/lib
mkdir /var/lib/extrausers
mount --bind %s /var/lib/extrausers
exec %s "$@"' sh "$@"
`, conf, module, hesiod[0], extra, binary), 0o755)
}

// Users that are not in /etc/passwd, with as many groups as one likes; a module that hangs; users
// that nobody knows.
func TestKernelUsers(t *testing.T) {
	needOurs(t)
	lab.Require(t)
	var group strings.Builder
	var want []uint32
	for i := range uint32(1500) {
		fmt.Fprintf(&group, "group%d:x:%d:joiner,rich\n", i, 40000+i)
		want = append(want, 40000+i)
	}
	for i := range uint32(20) {
		fmt.Fprintf(&group, "few%d:x:%d:few\n", i, 50000+i)
	}
	binary := nameService(t, "rich:x:31000:40000::/:\nfew:x:31001:31001::/:\n", group.String())
	keytab := keytab(t)
	config := lab.DefaultConfig(keytab) + "  kernel_nfsd = yes\n  principal_map = mapped@" + lab.Name + ":few\n"
	d := daemon(t, "ours", lab.Options{Binary: binary, Keytab: keytab, Config: config})
	users := map[string]*lab.Tool{}
	for _, name := range []string{"rich", "few", "mapped", "ghost", "slow"} {
		users[name] = userOf(t, name)
	}
	w := wire(t, d)
	ask := func(name string) (uid, gid uint32, groups []uint32) {
		t.Helper()
		return credsOf(t, kernelAccept(t, w, tokenOf(t, users[name])))
	}

	uid, gid, groups := ask("rich")
	if slices.Sort(groups); uid != 31000 || gid != 40000 || !slices.Equal(groups, want) {
		t.Errorf("rich is %d, %d with %d groups", uid, gid, len(groups))
	}
	for _, name := range []string{"few", "mapped"} {
		if uid, gid, groups = ask(name); uid != 31001 || gid != 31001 || len(groups) != 21 || groups[0] != 31001 {
			t.Errorf("%s is %d, %d, %v", name, uid, gid, groups)
		}
	}
	const none = 1<<32 - 1
	if uid, gid, groups = ask("ghost"); uid != none || gid != none || len(groups) != 0 {
		t.Errorf("ghost is %d, %d, %v", uid, gid, groups)
	}

	// While the name service is asked for one user, others are answered on the same connection; and
	// the one is nobody in the end.
	_, err := w.Write(lab.Record(1<<31, xdr.ProcAcceptSecContext, kernelArg(tokenOf(t, users["slow"]))))
	check(t, err)
	_, err = w.Write(lab.Record(1<<30, xdr.ProcAcceptSecContext, kernelArg(tokenOf(t, users["few"]))))
	check(t, err)
	for _, xid := range []uint32{1 << 30, 1 << 31} {
		b, err := w.Receive()
		check(t, err)
		if got := binary32(b); got != xid {
			t.Errorf("the answer is to %x, want %x", got, xid)
		}
		if xid != 1<<31 {
			continue
		}
		var res xdr.ResAcceptSecContext
		dec := xdr.NewDecoder(b[24:])
		res.Decode(dec)
		check(t, dec.Err())
		if uid, gid, groups = credsOf(t, &res); uid != none || gid != none || len(groups) != 0 {
			t.Errorf("slow is %d, %d, %v", uid, gid, groups)
		}
	}
	out := d.Output()
	for _, line := range []string{"reason=user-lookup-failed", "reason=unknown-user"} {
		if !strings.Contains(out, line) {
			t.Errorf("no %s in the log", line)
		}
	}
}

func binary32(b []byte) uint32 { return binary.BigEndian.Uint32(b) }

// The helper goes with the daemon, however that ends, and what the helper runs goes with it.
func TestKernelHelperGoes(t *testing.T) {
	needOurs(t)
	lab.Require(t)
	helpers := func(pid int) (list []string) {
		children, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
		check(t, err)
		for _, f := range children {
			b, err := os.ReadFile(f)
			if err != nil {
				continue
			}
			list = append(list, strings.Fields(string(b))...)
		}
		return list
	}
	d := daemon(t, "ours", lab.Options{})
	for range 2 {
		list := helpers(d.PID())
		if len(list) != 2 { // one for the kernel, one for callers
			t.Fatalf("the daemon has the children %v", list)
		}
		check(t, d.Crash())
		deadline := time.Now().Add(lab.Patience)
		for _, pid := range list {
			for {
				_, err := os.Stat("/proc/" + pid)
				if errors.Is(err, os.ErrNotExist) {
					break
				}
				if time.Now().After(deadline) {
					t.Fatal("a helper is still there")
				}
				time.Sleep(10 * time.Millisecond)
			}
		}
	}
}
