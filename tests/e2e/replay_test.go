package e2e

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// accepts says whether the daemon takes the token. A refusal must be a replay's.
func accepts(t testing.TB, w *lab.Wire, token []byte) bool {
	t.Helper()
	res, err := w.Accept(token, nil)
	if err != nil {
		t.Error(err)
		return false
	}
	return accepted(t, res)
}

func accepted(t testing.TB, res *xdr.ResAcceptSecContext) bool {
	t.Helper()
	if res.Status.MajorStatus == 0 {
		return true
	}
	if !bytes.Contains(res.Status.MinorStatusString, []byte("replay")) {
		t.Errorf("refused, but not as a replay: %v", lab.StatusError(res.Status))
	}
	if res.ContextHandle.Set {
		t.Error("a context beside a refusal")
	}
	return false
}

// mitAccepts says whether MIT's library takes the token. A refusal must be a replay's.
func mitAccepts(t testing.TB, g *lab.Tool, token []byte) bool {
	t.Helper()
	_, err := g.Accept(token, nil)
	var refused *lab.GSSError
	if errors.As(err, &refused) && strings.Contains(refused.Text, "replay") {
		return false
	}
	if err != nil {
		t.Error(err)
	}
	return err == nil
}

func wire(t testing.TB, d *lab.Daemon) *lab.Wire {
	t.Helper()
	w, err := d.Wire()
	check(t, err)
	t.Cleanup(func() { w.Close() })
	return w
}

// TestReplay: a token is good once: on one connection, on another, on 64 at once, after a restart,
// after a crash.
func TestReplay(t *testing.T) {
	overDaemons(t, func(t *testing.T, kind string) {
		d := daemon(t, kind, lab.Options{})
		client := alice(t)
		fresh := func(n int) [][]byte {
			t.Helper()
			tokens, err := client.Tokens(n, service, lab.Usual|lab.Mutual, nil)
			check(t, err)
			return tokens
		}
		t.Run("again", func(t *testing.T) {
			w := wire(t, d)
			for _, token := range fresh(20) {
				if !accepts(t, w, token) {
					t.Error("first time: refused")
				}
				if accepts(t, w, token) {
					t.Error("second time, same connection: accepted")
				}
				if accepts(t, wire(t, d), token) {
					t.Error("third time, new connection: accepted")
				}
			}
		})
		t.Run("at once", func(t *testing.T) {
			wires := make([]*lab.Wire, 64)
			for i := range wires {
				wires[i] = wire(t, d)
				if _, err := wires[i].Exchange(xdr.ProcIndicateMechs, &xdr.ArgIndicateMechs{}, nil); err != nil {
					t.Fatal(err)
				}
			}
			for _, token := range fresh(20) {
				if n := race(t, wires, nil, token); n != 1 {
					t.Errorf("64 at once: %d accepted, want 1", n)
				}
			}
		})
		for name, again := range map[string]func() error{"restart": d.Restart, "crash": d.Crash} {
			t.Run(name, func(t *testing.T) {
				tokens := fresh(50)
				w := wire(t, d)
				for _, token := range tokens {
					if !accepts(t, w, token) {
						t.Error("refused before")
					}
				}
				check(t, again())
				w = wire(t, d)
				for _, token := range tokens {
					if accepts(t, w, token) {
						t.Error("accepted again after")
					}
				}
				if !accepts(t, w, fresh(1)[0]) {
					t.Error("a fresh token refused after")
				}
			})
		}
	})
}

// TestReplaySharedWithMIT: the daemon and an acceptor of MIT's library that have one replay cache
// file: what one took the other refuses, and of many at once one takes it.
func TestReplaySharedWithMIT(t *testing.T) {
	overDaemons(t, func(t *testing.T, kind string) {
		rcache := "file2:" + filepath.Join(daemonsDir(t, "shared"), "rcache")
		for _, n := range []int{17, 18, 19, 20} {
			d := daemon(t, kind, lab.Options{RCache: rcache})
			client := alice(t)
			check(t, client.Enctypes(n))
			tokens, err := client.Tokens(40, serviceOf(n), lab.Usual|lab.Mutual, nil)
			check(t, err)
			env := []string{"KRB5_KTNAME=" + d.Options.Keytab, "KRB5RCACHENAME=" + rcache}
			mit := []*lab.Tool{tool(t, lab.Root, env...), tool(t, lab.Root, env...)}
			wires := make([]*lab.Wire, 4)
			for i := range wires {
				wires[i] = wire(t, d)
			}
			for _, token := range tokens[:10] {
				if !accepts(t, wires[0], token) || mitAccepts(t, mit[0], token) {
					t.Errorf("%d: the daemon first: it must accept and MIT refuse", n)
				}
			}
			for _, token := range tokens[10:20] {
				if !mitAccepts(t, mit[0], token) || accepts(t, wires[0], token) {
					t.Errorf("%d: MIT first: it must accept and the daemon refuse", n)
				}
			}
			for _, token := range tokens[20:] {
				if got := race(t, wires, mit, token); got != 1 {
					t.Errorf("%d: daemon and MIT at once: %d accepted, want 1", n, got)
				}
			}
			check(t, d.Stop())
		}
	})
}

// race gives the token to everybody at the same moment and counts who takes it.
func race(t *testing.T, wires []*lab.Wire, mit []*lab.Tool, token []byte) int {
	t.Helper()
	start := make(chan struct{})
	took := make(chan bool, len(wires)+len(mit))
	var wg sync.WaitGroup
	for _, w := range wires {
		wg.Go(func() {
			<-start
			took <- accepts(t, w, token)
		})
	}
	for _, g := range mit {
		wg.Go(func() {
			<-start
			took <- mitAccepts(t, g, token)
		})
	}
	close(start)
	wg.Wait()
	close(took)
	n := 0
	for yes := range took {
		if yes {
			n++
		}
	}
	return n
}
