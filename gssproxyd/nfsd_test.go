package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"gssproxyd/mech/krb5/etype"
	"gssproxyd/tests/lab"
)

// fakeKernel is the kernel's files in a directory, and what was done with them.
type fakeKernel struct {
	t   *testing.T
	dir string
	nfsd

	log lab.LogBuffer

	mu       sync.Mutex
	writes   int
	answer   func() error // to a write, instead of the flag's being set
	moved    bool         // the socket is not where the kernel looks
	enctypes []etype.ID
	states   []nfsdPhase
}

func newFakeKernel(t *testing.T) *fakeKernel {
	k := &fakeKernel{t: t, dir: t.TempDir()}
	k.nfsd.dir, k.nfsd.log = k.dir, slog.New(slog.NewTextHandler(&k.log, nil))
	k.nfsd.enctypes = func(l []etype.ID) { k.mu.Lock(); k.enctypes = l; k.mu.Unlock() }
	k.nfsd.changed = func(s nfsdState) { k.mu.Lock(); k.states = append(k.states, s.phase); k.mu.Unlock() }
	k.nfsd.write = func(flag string) error {
		k.mu.Lock()
		k.writes++
		answer := k.answer
		k.mu.Unlock()
		if answer != nil {
			return answer()
		}
		return tellKernel(flag)
	}
	k.nfsd.reachable = func() bool { k.mu.Lock(); defer k.mu.Unlock(); return !k.moved }
	return k
}

func (k *fakeKernel) move(away bool) { k.mu.Lock(); k.moved = away; k.mu.Unlock() }

// load makes the module's files appear, with a flag.
func (k *fakeKernel) load(flag string) {
	k.t.Helper()
	for name, text := range map[string]string{"gss_krb5_enctypes": "20,19,18,17", "use-gss-proxy": flag} {
		if err := os.WriteFile(filepath.Join(k.dir, name), []byte(text), 0o600); err != nil {
			k.t.Fatal(err)
		}
	}
}

func (k *fakeKernel) unload() { os.Remove(filepath.Join(k.dir, "use-gss-proxy")) }

func (k *fakeKernel) answerWith(f func() error) { k.mu.Lock(); k.answer = f; k.mu.Unlock() }

func (k *fakeKernel) written() int { k.mu.Lock(); defer k.mu.Unlock(); return k.writes }

func (k *fakeKernel) expect(phase nfsdPhase, writes int) {
	k.t.Helper()
	synctest.Wait()
	if s := k.status(); s.phase != phase || k.written() != writes {
		k.t.Errorf("%v after %d writes; want %s after %d\n%s", s, k.written(), phase, writes, &k.log)
	}
}

// end is the daemon's.
func (k *fakeKernel) end() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	k.close(ctx)
}

// The module is there already, be it that nothing has happened yet or that there was a daemon before.
func TestTellKernel(t *testing.T) {
	for _, flag := range []string{"", "1"} {
		synctest.Test(t, func(t *testing.T) {
			k := newFakeKernel(t)
			defer k.end()
			k.load(flag)
			k.want(true)
			k.settle(firstLook)
			k.expect(phaseArmed, 1)
			if b, err := os.ReadFile(filepath.Join(k.dir, "use-gss-proxy")); err != nil || string(b) != "1" {
				t.Errorf("the flag is %q, %v", b, err)
			}
			if !slices.Equal(k.enctypes, []etype.ID{20, 19, 18, 17}) {
				t.Errorf("enctypes %v", k.enctypes)
			}
			time.Sleep(time.Hour)
			k.want(true) // a reload
			k.expect(phaseArmed, 1)
		})
	}
}

// The daemon was first. Within a second of the module's loading the kernel is told, be it seconds or an hour later.
func TestTellKernelLater(t *testing.T) {
	for _, later := range []time.Duration{50 * time.Millisecond, 5 * time.Second, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			k := newFakeKernel(t)
			defer k.end()
			k.want(true)
			k.settle(firstLook)
			k.expect(phaseWaiting, 0)
			time.Sleep(later)
			k.load("")
			time.Sleep(time.Second)
			k.expect(phaseArmed, 1)
			if n := strings.Count(k.log.String(), "\n"); n != 2 {
				t.Errorf("the log has %d lines, not that of waiting and that of success:\n%s", n, &k.log)
			}
			// It is unloaded, and loaded again.
			k.unload()
			time.Sleep(time.Second)
			k.expect(phaseWaiting, 1)
			k.load("")
			time.Sleep(time.Second)
			k.expect(phaseArmed, 2)
			// The same, unseen.
			k.load("-1")
			time.Sleep(time.Second)
			k.expect(phaseArmed, 3)
		})
	}
}

// The write takes its time: nobody waits for it longer than READY may.
func TestTellKernelSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t)
		defer k.end()
		k.load("1")
		k.answerWith(func() error { time.Sleep(8 * time.Second); return nil })
		k.want(true)
		began := time.Now()
		k.settle(firstLook)
		if took := time.Since(began); took != firstLook {
			t.Errorf("waited %v", took)
		}
		k.expect(phaseTelling, 1)
		time.Sleep(6 * time.Second)
		k.expect(phaseArmed, 1)

		// The daemon's end does not wait for it either, beyond what it has time for.
		k.answerWith(func() error { time.Sleep(time.Minute); return nil })
		k.load("-1")
		time.Sleep(time.Second)
		k.expect(phaseTelling, 2)
		began = time.Now()
		k.end()
		if took := time.Since(began); took != time.Second {
			t.Errorf("waited %v", took)
		}
		time.Sleep(time.Minute) // for its goroutine
		if k.status().phase != phaseTelling {
			t.Error("a state was entered after the end")
		}
	})
}

// The kernel has chosen otherwise: said once, loudly, with the way out, and not written to in vain. When the module is
// loaded anew the kernel is told as fast as at first.
func TestKernelLatched(t *testing.T) {
	for _, seen := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			k := newFakeKernel(t)
			defer k.end()
			k.load("0")
			k.want(true)
			k.settle(firstLook)
			k.expect(phaseLatched, 0)
			time.Sleep(time.Hour)
			k.expect(phaseLatched, 0)
			log := k.log.String()
			if strings.Count(log, "level=ERROR") != 1 || !strings.Contains(log, "modprobe -r nfsd rpcsec_gss_krb5 auth_rpcgss") {
				t.Errorf("log:\n%s", log)
			}
			if s := k.status(); !strings.Contains(s.String(), "does NOT ask this daemon") {
				t.Error(s)
			}
			if seen {
				k.unload()
				time.Sleep(time.Second)
				k.expect(phaseWaiting, 0)
			}
			k.load("-1")
			time.Sleep(time.Second)
			k.expect(phaseArmed, 1)
			// Unloaded, loaded, and a client before us, all between two looks.
			k.load("0")
			time.Sleep(time.Second)
			k.expect(phaseLatched, 1)
		})
	}
}

// The kernel chooses between our look and our write.
func TestKernelLatchesMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t)
		defer k.end()
		k.load("-1")
		k.answerWith(func() error {
			k.load("0")
			return &fs.PathError{Op: "write", Path: "use-gss-proxy", Err: syscall.EBUSY}
		})
		k.want(true)
		k.settle(firstLook)
		time.Sleep(time.Hour)
		k.expect(phaseLatched, 1)
	})
}

// After a reload that moved the socket away the kernel is found not to ask us, and to do so when it is there again.
func TestKernelSocketMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t)
		defer k.end()
		k.load("")
		k.want(true)
		k.settle(firstLook)
		k.expect(phaseArmed, 1)
		k.move(true)
		k.answerWith(func() error { return &fs.PathError{Op: "write", Err: syscall.ECONNREFUSED} })
		k.want(true)
		k.expect(phaseFailed, 2)
		k.move(false)
		k.answerWith(nil)
		time.Sleep(time.Second)
		k.expect(phaseArmed, 3)
	})
}

// The service manager is shown both what the daemon does and how things stand with the kernel, whichever changes.
func TestStatusLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	expect := func(want string) {
		t.Helper()
		buf := make([]byte, 4096)
		manager.SetReadDeadline(time.Now().Add(time.Minute))
		for said := ""; said != want; {
			n, err := manager.Read(buf)
			if err != nil {
				t.Fatalf("%q was not said, but %q: %v", want, said, err)
			}
			said = string(buf[:n])
		}
	}
	k := newFakeKernel(t)
	d := &daemon{}
	d.nfsd.dir, d.nfsd.log, d.nfsd.enctypes, d.nfsd.write, d.nfsd.reachable = k.dir, k.nfsd.log, k.nfsd.enctypes, k.nfsd.write, k.nfsd.reachable
	d.nfsd.changed = d.showNFSD
	d.nfsd.want(true)
	defer d.nfsd.close(t.Context())
	expect("STATUS=Starting; kernel NFS server: waiting for its module auth_rpcgss")
	d.notify("READY=1", "Serving (failed to re-read config)")
	expect("READY=1\nSTATUS=Serving (failed to re-read config); kernel NFS server: waiting for its module auth_rpcgss")
	k.load("-1")
	expect("STATUS=Serving (failed to re-read config); kernel NFS server: asks this daemon")
	d.nfsd.want(false)
	expect("STATUS=Serving (failed to re-read config)")
}

func TestKernelRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		err  error
		text string
	}{
		"no socket":    {&fs.PathError{Op: "write", Err: syscall.ENOENT}, "/var/run must be a symbolic link"},
		"no listener":  {&fs.PathError{Op: "write", Err: syscall.ECONNREFUSED}, "/run/gssproxy.sock"},
		"no privilege": {&fs.PathError{Op: "open", Err: syscall.EACCES}, "run_as_user"},
		"another":      {errors.New("some other reason"), "some other reason"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newFakeKernel(t)
				defer k.end()
				k.load("")
				k.answerWith(func() error { return test.err })
				k.want(true)
				k.settle(firstLook)
				k.expect(phaseFailed, 1)
				time.Sleep(time.Minute)
				synctest.Wait() // for the look that is due at this very moment
				if n := k.written(); n < 6 || n > 61 {
					t.Errorf("tried %d times in a minute", n)
				}
				if log := k.log.String(); strings.Count(log, "level=ERROR") != 1 || !strings.Contains(log, test.text) {
					t.Errorf("log:\n%s", log)
				}
				// The module is loaded anew, and all is well.
				before := k.written()
				k.unload()
				k.answerWith(nil)
				wait := time.Second
				if name == "no privilege" {
					wait = lookSeldom
				}
				time.Sleep(wait)
				k.expect(phaseWaiting, before)
				k.load("-1")
				time.Sleep(time.Second)
				k.expect(phaseArmed, before+1)
			})
		})
	}
}

// A reload takes kernel_nfsd away, and gives it back.
func TestKernelNotWanted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t)
		defer k.end()
		k.load("")
		k.want(false)
		k.settle(firstLook)
		k.expect("", 0)
		k.want(true)
		k.settle(firstLook)
		k.expect(phaseArmed, 1)
		k.want(false)
		k.expect(phaseOff, 1)
		k.want(false)
		k.want(true)
		k.settle(firstLook)
		k.expect(phaseArmed, 2)
	})
}

// It is taken away again while a former write lasts, or while the socket is looked for: then the kernel is not told, and
// nothing is said of it any more.
func TestKernelNotWantedMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t)
		defer k.end()
		k.load("")
		k.answerWith(func() error { time.Sleep(8 * time.Second); return nil })
		k.want(true)
		k.expect(phaseTelling, 1)
		k.want(false)
		k.want(true)
		k.want(false)
		time.Sleep(time.Minute)
		k.expect(phaseOff, 1)

		k.answerWith(nil)
		k.want(true)
		k.expect(phaseArmed, 2)
		k.reachable = func() bool { time.Sleep(time.Second); return false }
		k.want(true) // a reload
		synctest.Wait()
		k.want(false)
		time.Sleep(time.Minute)
		k.expect(phaseOff, 2)
	})
}

func TestParseEnctypes(t *testing.T) {
	for text, want := range map[string][]etype.ID{
		"": nil, "\n": nil, "18,17": {18, 17}, "enctypes=20,19,26,25,18,17\n": {20, 19, 26, 25, 18, 17}, "99999999999999999999,18": {18},
	} {
		if got := parseEnctypes(text); !slices.Equal(got, want) {
			t.Errorf("%q: %v", text, got)
		}
	}
}
