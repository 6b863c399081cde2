package knfsd

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
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
	*Registration

	log lab.LogBuffer

	mu       sync.Mutex
	writes   int
	answer   func() error // to a write, instead of the flag's being set
	moved    bool         // the socket is not where the kernel looks
	enctypes []etype.ID
}

func newFakeKernel(t *testing.T) *fakeKernel {
	k := &fakeKernel{t: t, dir: t.TempDir()}
	k.Registration = New(slog.New(slog.NewTextHandler(&k.log, nil)), func() {})
	k.Tell(func(l []etype.ID) { k.mu.Lock(); k.enctypes = l; k.mu.Unlock() })
	k.Registration.dir = k.dir
	k.register = func(dir string) error {
		k.mu.Lock()
		k.writes++
		answer := k.answer
		k.mu.Unlock()
		if answer != nil {
			return answer()
		}
		return register(dir)
	}
	k.listening = func() bool { k.mu.Lock(); defer k.mu.Unlock(); return !k.moved }
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

func (k *fakeKernel) expect(phase phase, writes int) {
	k.t.Helper()
	synctest.Wait()
	if s := k.current(); s.phase != phase || k.written() != writes {
		k.t.Errorf("%v after %d writes; want %s after %d\n%s", s, k.written(), phase, writes, &k.log)
	}
}

// firstLook is how long a start waits.
const firstLook = 3 * time.Second

// end is the daemon's.
func (k *fakeKernel) end() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	k.Close(ctx)
}

// The module is there already, be it that nothing has happened yet or that there was a daemon
// before.
func TestRegister(t *testing.T) {
	for _, flag := range []string{"", "1"} {
		synctest.Test(t, func(t *testing.T) {
			k := newFakeKernel(t)
			defer k.end()
			k.load(flag)
			k.Want(true)
			k.Await(firstLook)
			k.expect(phaseRegistered, 1)
			if b, err := os.ReadFile(filepath.Join(k.dir, "use-gss-proxy")); err != nil || string(b) != "1" {
				t.Errorf("the flag is %q, %v", b, err)
			}
			if !slices.Equal(k.enctypes, []etype.ID{20, 19, 18, 17}) {
				t.Errorf("enctypes %v", k.enctypes)
			}
			time.Sleep(time.Hour)
			k.Want(true) // a reload
			k.expect(phaseRegistered, 1)
		})
	}
}

// The daemon was first. Within a second of the module's loading the kernel is told, be it seconds
// or an hour later.
func TestRegisterLater(t *testing.T) {
	for _, later := range []time.Duration{50 * time.Millisecond, 5 * time.Second, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			k := newFakeKernel(t)
			defer k.end()
			k.Want(true)
			k.Await(firstLook)
			k.expect(phaseWaiting, 0)
			time.Sleep(later)
			k.load("")
			time.Sleep(time.Second)
			k.expect(phaseRegistered, 1)
			if n := strings.Count(k.log.String(), "\n"); n != 2 {
				t.Errorf("the log has %d lines, not that of waiting and that of success:\n%s", n, &k.log)
			}
			// It is unloaded, and loaded again.
			k.unload()
			time.Sleep(time.Second)
			k.expect(phaseWaiting, 1)
			k.load("")
			time.Sleep(time.Second)
			k.expect(phaseRegistered, 2)
			// The same, unseen.
			k.load("-1")
			time.Sleep(time.Second)
			k.expect(phaseRegistered, 3)
		})
	}
}

// The write takes its time: nobody waits for it longer than READY may.
func TestRegisterSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t)
		defer k.end()
		k.load("1")
		k.answerWith(func() error { time.Sleep(8 * time.Second); return nil })
		k.Want(true)
		began := time.Now()
		k.Await(firstLook)
		if took := time.Since(began); took != firstLook {
			t.Errorf("waited %v", took)
		}
		k.expect(phaseRegistering, 1)
		time.Sleep(6 * time.Second)
		k.expect(phaseRegistered, 1)

		// The daemon's end does not wait for it either, beyond what it has time for.
		k.answerWith(func() error { time.Sleep(time.Minute); return nil })
		k.load("-1")
		time.Sleep(time.Second)
		k.expect(phaseRegistering, 2)
		began = time.Now()
		k.end()
		if took := time.Since(began); took != time.Second {
			t.Errorf("waited %v", took)
		}
		time.Sleep(time.Minute) // for its goroutine
		if k.current().phase != phaseRegistering {
			t.Error("a state was entered after the end")
		}
	})
}

// The kernel has chosen otherwise: said once, loudly, with the way out, and not written to in vain.
// When the module is loaded again the kernel is registered with as fast as at first.
func TestTooLate(t *testing.T) {
	for _, seen := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			k := newFakeKernel(t)
			defer k.end()
			k.load("0")
			k.Want(true)
			k.Await(firstLook)
			k.expect(phaseTooLate, 0)
			time.Sleep(time.Hour)
			k.expect(phaseTooLate, 0)
			log := k.log.String()
			if strings.Count(log, "level=ERROR") != 1 || !strings.Contains(log, "modprobe -r nfsd rpcsec_gss_krb5 auth_rpcgss") {
				t.Errorf("log:\n%s", log)
			}
			if s := k.current(); !strings.Contains(s.String(), "NOT registered") {
				t.Error(s)
			}
			if seen {
				k.unload()
				time.Sleep(time.Second)
				k.expect(phaseWaiting, 0)
			}
			k.load("-1")
			time.Sleep(time.Second)
			k.expect(phaseRegistered, 1)
			// Unloaded, loaded, and a client before us, all between two looks.
			k.load("0")
			time.Sleep(time.Second)
			k.expect(phaseTooLate, 1)
		})
	}
}

// The kernel chooses between our look and our write.
func TestTooLateMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t)
		defer k.end()
		k.load("-1")
		k.answerWith(func() error {
			k.load("0")
			return &fs.PathError{Op: "write", Path: "use-gss-proxy", Err: syscall.EBUSY}
		})
		k.Want(true)
		k.Await(firstLook)
		time.Sleep(time.Hour)
		k.expect(phaseTooLate, 1)
	})
}

// After a reload that moved the socket away the daemon is not registered, and is so when it is
// there again.
func TestSocketMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t)
		defer k.end()
		k.load("")
		k.Want(true)
		k.Await(firstLook)
		k.expect(phaseRegistered, 1)
		k.move(true)
		k.answerWith(func() error { return &fs.PathError{Op: "write", Err: syscall.ECONNREFUSED} })
		k.Want(true)
		k.expect(phaseFailed, 2)
		k.move(false)
		k.answerWith(nil)
		time.Sleep(time.Second)
		k.expect(phaseRegistered, 3)
	})
}

func TestRefused(t *testing.T) {
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
				k.Want(true)
				k.Await(firstLook)
				k.expect(phaseFailed, 1)
				time.Sleep(time.Minute)
				synctest.Wait() // for the look that is due at this very moment
				if n := k.written(); n < 6 || n > 61 {
					t.Errorf("tried %d times in a minute", n)
				}
				if log := k.log.String(); strings.Count(log, "level=ERROR") != 1 || !strings.Contains(log, test.text) {
					t.Errorf("log:\n%s", log)
				}
				// The module is loaded again, and all is well.
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
				k.expect(phaseRegistered, before+1)
			})
		})
	}
}

// A reload takes kernel_nfsd away, and gives it back.
func TestNotWanted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t)
		defer k.end()
		k.load("")
		k.Want(false)
		k.Await(firstLook)
		k.expect(phaseOff, 0)
		k.Want(true)
		k.Await(firstLook)
		k.expect(phaseRegistered, 1)
		k.Want(false)
		k.expect(phaseOff, 1)
		k.Want(false)
		k.Want(true)
		k.Await(firstLook)
		k.expect(phaseRegistered, 2)
	})
}

// It is taken away again while a former write lasts, or while the socket is looked for: then the
// kernel is not told, and nothing is said of it any more.
func TestNotWantedMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t)
		defer k.end()
		k.load("")
		k.answerWith(func() error { time.Sleep(8 * time.Second); return nil })
		k.Want(true)
		k.expect(phaseRegistering, 1)
		k.Want(false)
		k.Want(true)
		k.Want(false)
		time.Sleep(time.Minute)
		k.expect(phaseOff, 1)

		k.answerWith(nil)
		k.Want(true)
		k.expect(phaseRegistered, 2)
		k.listening = func() bool { time.Sleep(time.Second); return false }
		k.Want(true) // a reload
		synctest.Wait()
		k.Want(false)
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

// What the kernel's flag means.
func TestDescribe(t *testing.T) {
	dir := t.TempDir()
	for _, test := range []struct {
		text, want string
		good       bool
	}{
		{"", "not loaded", true},
		{"-1\n", "undecided", false},
		{"0\n", "NOT registered (0): a client came before", false},
		{"1\n", "registered: the daemon at /var/run/gssproxy.sock (1)", true},
	} {
		if test.text != "" {
			if err := os.WriteFile(flagFile(dir), []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if text, good := describe(dir); good != test.good || !strings.Contains(text, test.want) {
			t.Errorf("%q: %v, %s", test.text, good, text)
		}
	}
}
