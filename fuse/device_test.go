package fuse

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gssproxyd/interposer"
	"gssproxyd/rpc/peer"
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

// TestClosed: who has asked is answered when the server is closed, and then nobody is served.
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
	until(t, "it has ended", s.Ended)
	if out, err := sh(t, "/", 1000, "ls "+dir); err == nil || !strings.Contains(out, "Transport endpoint is not connected") {
		t.Errorf("afterwards: %v: %s", err, out)
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
	for _, path := range list {
		if where, err := os.ReadFile(path); err == nil && strings.HasPrefix(string(where), "fuse_dev") {
			t.Errorf("a thread waits in %s", where)
		}
	}
}
