package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gssproxyd/tests/lab"
)

// TestRotation: clients never stop, with the tickets of every kvno there has been, while the
// service gets new keys and its keytab is replaced. Not one accept fails. The order is an
// administrator's: the KDC has the new key, then the keytab has it, then the first client comes
// with a ticket for it, at once.
//
// Replaced by rename is for both daemons. Our daemon also lives with a file rewritten in place,
// half of it there for a while; the C daemon reads the file for every accept and would fail
// meanwhile.
func TestRotation(t *testing.T) {
	const rotations = 8
	overDaemons(t, func(t *testing.T, kind string) {
		r := realm(t)
		name := "rotate-" + kind
		principal, target := name+"/"+lab.Host, name+"@"+lab.Host
		check(t, r.RandKey(principal))
		path, err := r.Keytab("keytab", principal)
		check(t, err)
		d := daemon(t, kind, lab.Options{Keytab: path})

		// A client that fails ends them all, with its error as the cause.
		ctx, stop := context.WithCancelCause(context.Background())
		done := errors.New("done")
		var clients sync.WaitGroup
		defer clients.Wait()
		defer stop(done)
		var accepts atomic.Int64
		counts := make([]atomic.Int64, rotations+1)
		// client runs one more client, with a ticket for the newest key, until stop.
		client := func(i int) {
			before := accepts.Load()
			initiator := alice(t)
			w := wire(t, d)
			clients.Go(func() {
				for ctx.Err() == nil {
					if err := lab.AcceptOne(initiator, target, w); err != nil {
						stop(fmt.Errorf("client %d after %d accepts of all: %w", i, accepts.Load(), err))
					}
					accepts.Add(1)
					counts[i].Add(1)
				}
			})
			// Everybody has used the keytab before the next rotation.
			deadline := time.Now().Add(lab.Patience)
			for counts[i].Load() < 10 || accepts.Load() < before+100 {
				if ctx.Err() != nil {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("client %d: no accepts", i)
				}
				time.Sleep(2 * time.Millisecond)
			}
		}
		client(0)
		for i := 1; i <= rotations; i++ {
			check(t, r.Rotate(principal))
			next, err := r.Keytab("next", principal)
			check(t, err)
			if kind == "ours" && i%2 == 0 {
				rewrite(t, path, next)
			} else {
				check(t, os.Rename(next, path))
			}
			client(i)
		}
		stop(done)
		clients.Wait()
		if err := context.Cause(ctx); err != done {
			t.Error(err)
		}
		t.Logf("%d accepts over %d rotations", accepts.Load(), rotations)
	})
}

// rewrite replaces the content of path by that of from, in place and slowly: for a while the file
// is half there.
func rewrite(t *testing.T, path, from string) {
	t.Helper()
	b, err := os.ReadFile(from)
	check(t, err)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	check(t, err)
	defer f.Close()
	for _, part := range [][]byte{b[:len(b)/2], b[len(b)/2:]} {
		_, err := f.Write(part)
		check(t, err)
		time.Sleep(50 * time.Millisecond)
	}
}
