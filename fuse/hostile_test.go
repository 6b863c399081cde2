package fuse

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/interposer"
	"gssproxyd/limits"
	"gssproxyd/rpc/peer"
	"gssproxyd/xdr"
)

// stuck are calls that are not answered before free is closed, but the first one.
type stuck struct{ begun, free chan struct{} }

func (c stuck) Call(_ context.Context, proc uint32, _ []byte) ([]byte, error) {
	if proc == uint32(xdr.ProcNull) {
		return nil, nil
	}
	c.begun <- struct{}{}
	<-c.free
	return nil, errors.New("there is no daemon")
}

func (stuck) Close() error { return nil }

const waitFor = time.Minute

// until polls for something.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(waitFor); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not come to that: ", what)
		}
	}
}

// TestRemovedBusy: while a directory is removed the kernel holds the one above it, so removing one of
// which a step is under way must not wait for that.
func TestRemovedBusy(t *testing.T) {
	calls := stuck{make(chan struct{}), make(chan struct{})}
	dir, s := mountedFor(t, everything, func(*peer.Info) (interposer.Caller, error) { return calls, nil })
	var out bytes.Buffer
	cmd := command(t, dir, 1000, inNames+`mkdir execution/x; echo '{"name":"alice"}' >execution/x/inputs; echo execute >execution/x/control & read -r _ && rmdir execution/x && echo removed && wait && ls execution`)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-calls.begun
	waited := time.AfterFunc(waitFor, func() { close(calls.free) })
	in.Write([]byte("go\n"))
	names := &s.executions[len(operations)-1]
	until(t, "it is removed", func() bool { return len(names.where(func(*kept) bool { return true })) == 0 })
	if other, err := sh(t, dir, 1001, inNames+"mkdir execution/y && ls execution && rmdir execution/y"); err != nil || other != "y\n" {
		t.Errorf("another user meanwhile: %v: %s", err, other)
	}
	if !waited.Stop() {
		t.Error("the directory is held for as long as the step takes")
	} else {
		close(calls.free)
	}
	if err := cmd.Wait(); err != nil || !bytes.HasPrefix(out.Bytes(), []byte("removed\n")) {
		t.Errorf("%v: %s", err, &out)
	}
}

// TestPaid: whatever a user opens and does not close, others have their share, and all is given back
// in the end. What is removed and still open is paid for.
func TestPaid(t *testing.T) {
	for _, c := range []struct {
		name, do string
		budget   func(*limits.Limits) *limits.Budget
	}{
		{"files", "exec {fd}<modules/krb5/status", buffers},
		{"directories", "exec {fd}<modules", buffers},
		{"a listing", "exec {fd}<modules/krb5/operations/names/execution", buffers},
		{"removed executions", "mkdir e/$i && cd e/$i && exec {fd}<. && cd $OLDPWD && rmdir e/$i", keptOf},
		{"removed executions' files", "mkdir e/$i && exec {fd}< e/$i/inputs && rmdir e/$i", keptOf},
		{"conversations", "exec {fd}<>modules/krb5/operations/names/transact", buffers},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, s := mounted(t, everything)
			before := c.budget(s.o.Limits).Held(1000)
			cmd := command(t, dir, 1000, "ulimit -n 400; e=modules/krb5/operations/names/execution; one() { "+strings.ReplaceAll(c.do, " e/", " $e/")+"; }; i=0; while ((i < 300)) && one; do ((i++)); done; cd /; echo $i; read -r _; exit 0")
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stderr = os.Stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil || line != "300\n" {
				t.Fatal(line, err)
			}
			held := c.budget(s.o.Limits).Held(1000)
			t.Logf("300 are %d", held-before)
			if held-before < 300 {
				t.Errorf("nobody pays: %d", held-before)
			}
			in.Close()
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
			// What was looked up last the kernel remembers, until it is looked up again.
			if _, err := os.Stat(dir + "/modules/krb5/operations/names/transact"); err != nil {
				t.Error(err)
			}
			until(t, "all is given back", func() bool {
				s.open.mu.Lock()
				defer s.open.mu.Unlock()
				return len(s.open.open) == 1 && buffers(s.o.Limits).Held(1000) == 0 && keptOf(s.o.Limits).Held(1000) == 0
			})
		})
	}
}

func buffers(l *limits.Limits) *limits.Budget { return l.Buffers }
func keptOf(l *limits.Limits) *limits.Budget  { return l.Kept }

// TestEnds: files that are closed after the end of the mount are not heard of any more. What they held
// is given back.
func TestEnds(t *testing.T) {
	var open atomic.Int32
	dir, s := mountedFor(t, everything, func(*peer.Info) (interposer.Caller, error) {
		open.Add(1)
		return counted{fake{}, &open}, nil
	})
	cmd := command(t, dir, 1000, "exec 3<>modules/krb5/operations/names/transact 4<modules/krb5/status; mkdir modules/krb5/operations/init/execution/x; cd modules/krb5/operations/init/execution/x; exec 5>control 6<inputs; cd /; echo open; read -r _")
	in, out := begin(t, cmd)
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(line, err)
	}
	if n := open.Load(); n != 2 {
		t.Fatalf("%d are open, want 2", n)
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	// All at once: the process ends.
	in.Close()
	cmd.Wait()
	<-s.done
	if n := open.Load(); n != 0 {
		t.Errorf("%d connections are not closed", n)
	}
	for _, b := range s.o.Limits.Budgets() {
		if n := b.Held(1000); n != 0 {
			what, _, _ := b.Use()
			t.Errorf("%d %s are still held", n, what)
		}
	}
	if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil { // which the end of the test unmounts
		t.Fatal(err)
	}
}

// counted counts connections that are open.
type counted struct {
	fake
	open *atomic.Int32
}

func (c counted) Close() error { c.open.Add(-1); return nil }
