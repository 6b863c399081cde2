package fuse

import (
	"bytes"
	"testing"
	"time"

	"gssproxyd/interposer"
	"gssproxyd/rpc/peer"
)

// TestStuckElsewhere: a step of one user that takes long holds up none of another's. While somebody
// writes to a file the kernel lets nobody else write to it.
func TestStuckElsewhere(t *testing.T) {
	calls := stuck{make(chan struct{}), make(chan struct{})}
	dir, _ := mountedFor(t, everything, func(p *peer.Info) (interposer.Caller, error) {
		if p.UID == 1000 {
			return calls, nil
		}
		return fake{}, nil
	})
	slow := command(t, dir, 1000, inNames+`exec 3<>transact; echo '{"name":"alice"}' >&3`)
	if err := slow.Start(); err != nil {
		t.Fatal(err)
	}
	<-calls.begun
	waited := time.AfterFunc(waitFor, func() { close(calls.free) })
	var out bytes.Buffer
	other := command(t, dir, 1001, inNames+"exec 3<>transact; echo '{}' >&3; cat <&3")
	other.Stdout = &out
	if err := other.Run(); err != nil || out.String() != noName {
		t.Errorf("another user: %v: %s", err, &out)
	}
	if !waited.Stop() {
		t.Error("another user waits for as long as the step takes")
	} else {
		close(calls.free)
	}
	slow.Wait()
}
