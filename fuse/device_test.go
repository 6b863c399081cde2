package fuse

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"gssproxyd/interposer"
	"gssproxyd/limits"
	"gssproxyd/rpc/peer"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// cancelled are calls that take until they are not waited for any more, but the first one.
type cancelled struct{ begun chan struct{} }

func (c cancelled) Call(ctx context.Context, proc uint32, _ []byte) ([]byte, error) {
	if proc == uint32(xdr.ProcNull) {
		return nil, nil
	}
	c.begun <- struct{}{}
	<-ctx.Done()
	return nil, ctx.Err()
}

func (cancelled) Close() error { return nil }

// TestClosed: who is at a step when the server is closed is answered.
func TestClosed(t *testing.T) {
	calls := cancelled{make(chan struct{})}
	dir, s := mountedFor(t, everything, func(*peer.Info) (interposer.Caller, error) { return calls, nil })
	var out strings.Builder
	cmd := command(t, dir, 1000, inNames+`exec 3<>transact; echo '{"name":"alice"}' >&3`)
	cmd.Stderr = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-calls.begun
	s.Close()
	if err := cmd.Wait(); err == nil || !strings.Contains(out.String(), "Input/output error") {
		t.Errorf("a step meanwhile: %v: %s", err, &out)
	}
}

// TestNoThreadWaits: no thread waits in the kernel for what is asked next. To Go's runtime it would be
// one that runs.
func TestNoThreadWaits(t *testing.T) {
	dir, _ := mounted(t, everything)
	if out, err := sh(t, dir, 1000, "cat modules/krb5/status"); err != nil {
		t.Fatal(err, out)
	}
	list, err := filepath.Glob("/proc/self/task/*/wchan")
	if err != nil || len(list) == 0 {
		t.Fatal(err, "no threads")
	}
	said := false
	for _, path := range list {
		where, err := os.ReadFile(path)
		said = said || err == nil && string(where) != "0" // as of threads that are idle
		if strings.HasPrefix(string(where), "fuse_dev") {
			t.Errorf("a thread waits in %s", where)
		}
	}
	if !said {
		t.Error("the kernel does not say where threads wait")
	}
}

// TestUnmountedBusy: that a mount ends while something is under way there is no error.
func TestUnmountedBusy(t *testing.T) {
	calls := stuck{make(chan struct{}), make(chan struct{})}
	for what, caller := range map[string]func(*peer.Info) (interposer.Caller, error){
		"a step": func(*peer.Info) (interposer.Caller, error) { return calls, nil },
		"an open, which who reads handles": func(*peer.Info) (interposer.Caller, error) {
			calls.begun <- struct{}{}
			<-calls.free
			return fake{}, nil
		},
	} {
		dir, s := mountedFor(t, everything, caller)
		var log lab.LogBuffer
		s.device.log, s.o.Log = slog.New(slog.NewTextHandler(&log, nil)), slog.New(slog.NewTextHandler(&log, nil))
		cmd := command(t, dir, 1000, inNames+`exec 3<>transact; echo '{"name":"alice"}' >&3`)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-calls.begun
		if err := unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
		calls.free <- struct{}{}
		cmd.Wait()
		<-s.done
		if log.String() != "" {
			t.Errorf("%s: logged:\n%s", what, &log)
		}
		if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil { // which the end of the test unmounts
			t.Fatal(err)
		}
	}
}

// TestUsersTakeTurns: of one user's requests some are under way, however many there are and however long they take, and
// others' are answered.
func TestUsersTakeTurns(t *testing.T) {
	calls := stuck{make(chan struct{}), make(chan struct{})}
	const many = 400
	dir, s := mountedFor(t, everything, func(p *peer.Info) (interposer.Caller, error) {
		if p.UID == 1000 {
			<-calls.free
		}
		return fake{}, nil
	})
	s.device.queue.mu.Lock()
	s.device.queue.within = waitFor // this machine may be slow
	s.device.queue.mu.Unlock()
	// Each bash holds its files until it ends.
	cmd := command(t, dir, 1000, inNames+fmt.Sprintf("for i in {1..%d}; do { exec 3<>transact; read -r _; } & done; wait", many))
	in, _ := begin(t, cmd)
	waiting := func() int {
		s.device.queue.mu.Lock()
		defer s.device.queue.mu.Unlock()
		return len(s.device.queue.waiting[1000])
	}
	running := s.o.Limits.Requests
	until(t, "all have asked", func() bool { return running.Held(1000)+waiting() == many })
	if n := running.Held(1000); n > many/10 {
		t.Errorf("%d requests of one user are under way", n)
	}
	for uid := uint32(1001); uid < 1008; uid++ {
		if out, err := sh(t, dir, uid, "cat modules/krb5/status"); err != nil {
			t.Errorf("another user: %v: %s", err, out)
		}
	}
	// For these the kernel holds a directory that is everybody's.
	if out, err := sh(t, dir, 1000, inNames+"mkdir execution/x && rmdir execution/x"); err != nil {
		t.Errorf("what is made and removed waits for a turn: %v: %s", err, out)
	}
	if out, err := sh(t, dir, 1000, inNames+"touch execution"); err == nil || !strings.Contains(out, "Operation not permitted") {
		t.Errorf("a directory that is touched: %v: %s", err, out)
	}
	close(calls.free)
	until(t, "all are answered", func() bool { return running.Held(1000)+waiting() == 0 })
	in.Close()
	cmd.Wait()
}

// TestRequestsPaid: requests that wait are paid for, and who has no share left is told so.
func TestRequestsPaid(t *testing.T) {
	dir, s := mounted(t, everything)
	buffers := s.o.Limits.Buffers
	for buffers.Take(1000, 16) == nil {
	}
	if out, err := sh(t, "/", 1000, "cat "+dir+"/modules/krb5/status"); err == nil || !strings.Contains(out, "Resource temporarily unavailable") {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := sh(t, dir, 1001, "cat modules/krb5/status"); err != nil {
		t.Errorf("another user: %v: %s", err, out)
	}
}

// TestNoOtherFiles: there is no file but those of the tree, by any way.
func TestNoOtherFiles(t *testing.T) {
	dir, _ := mounted(t, everything)
	for _, how := range []string{"stat .go-fuse-epoll-hack", "mkdir .go-fuse-epoll-hack", "cat .go-fuse-epoll-hack", "ln .go-fuse-epoll-hack x"} {
		if out, err := sh(t, dir, 0, how); err == nil || !strings.Contains(out, "No such file or directory") {
			t.Errorf("%s: %v: %s", how, err, out)
		}
	}
}

// TestBegunElsewhere: a mount that somebody else has begun to serve is refused.
func TestBegunElsewhere(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root mounts")
	}
	dir := t.TempDir()
	device, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("test", dir, "fuse.test", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,%s", device.Fd(), Mounted)); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	var in buffer
	if _, err := unix.Read(int(device.Fd()), in[:]); err != nil {
		t.Fatal(err)
	}
	answer := append(header(64, 0, unique(in[:])), make([]byte, 64)...) // fuse_init_out
	binary.NativeEndian.PutUint32(answer[outHeader:], 7)                // major
	binary.NativeEndian.PutUint32(answer[outHeader+4:], 31)             // minor
	binary.NativeEndian.PutUint32(answer[outHeader+20:], maxWrite)      // max_write
	if _, err := unix.Write(int(device.Fd()), answer); err != nil {
		t.Fatal(err)
	}
	cmd := command(t, "/", 0, "stat "+dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer device.Close() // which ends what is asked
	if _, err := Serve(device, Options{Limits: limits.ForProcess(), Log: slog.New(slog.DiscardHandler)}); err == nil || !strings.Contains(err.Error(), "somebody else has read from it") {
		t.Errorf("%v", err)
	}
}
