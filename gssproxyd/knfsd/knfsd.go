// Package knfsd registers the daemon with the kernel's NFS server, and sees to it that it stays
// registered.
//
// A daemon registers by writing "1" to use-gss-proxy, a file of the kernel's module auth_rpcgss,
// one for each network namespace: /proc/net is that of this process, whose socket it is. During the
// write the kernel connects to /var/run/gssproxy.sock; it comes as this process. When there was a
// daemon before, with a call of the kernel's under way, the write lasts for seconds. So it is done
// beside everything else.
//
// The kernel chooses once. When it was asked for a context before a daemon registered, it has
// chosen rpc.svcgssd (0) until the module is unloaded; with a kernel that has a daemon (1) one that
// starts registers again, which makes the kernel connect to it. In every state the file is looked
// at twice a second, since a module that is loaded may need the daemon at once.
package knfsd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"gssproxyd/mech/krb5/etype"
)

// Registration is a daemon's with the kernel's NFS server, wanted or not.
type Registration struct {
	log     *slog.Logger
	changed func()

	// Tests have their own of these.
	dir       string             // /proc/net/rpc
	register  func(string) error // writes the flag
	listening func() bool        // reports whether the kernel would find us

	mu     sync.Mutex
	state  state
	knows  []etype.ID         // what the kernel does, nil before it was asked
	tell   func([]etype.ID)   // of that; may be nil
	logged string             // last
	stop   context.CancelFunc // nil while it is not wanted
	done   chan struct{}
	again  chan struct{} // asks for a look now; holds one
	looked chan struct{} // closed when the first look is over
}

// New returns a Registration that is not wanted yet. changed is called with every change of Status.
func New(log *slog.Logger, changed func()) *Registration {
	return &Registration{log: log, changed: changed, dir: kernelRPC, register: register, listening: listening}
}

// state is how things stand with the kernel.
type state struct {
	phase phase
	err   error // of phaseTooLate and phaseFailed
}

type phase string

const (
	phaseOff         phase = ""            // no service has kernel_nfsd
	phaseWaiting     phase = "waiting"     // the kernel's module is not loaded
	phaseRegistering phase = "registering" // the write is under way
	phaseRegistered  phase = "registered"
	phaseTooLate     phase = "too late" // the kernel has chosen rpc.svcgssd
	phaseFailed      phase = "failed"
)

// String is a line for a status, empty where nobody wants to be registered.
func (s state) String() string {
	const server = "kernel NFS server: "
	switch s.phase {
	case phaseOff:
		return ""
	case phaseWaiting:
		return server + "waiting for its module auth_rpcgss"
	case phaseRegistering, phaseRegistered:
		return server + string(s.phase)
	}
	return server + "NOT registered: " + s.err.Error()
}

// How long until the next look.
const (
	lookSoon      = 100 * time.Millisecond // at first, while a boot is under way
	soonFor       = 10 * time.Second
	lookOften     = 500 * time.Millisecond
	lookSeldom    = 10 * time.Second // where only root could do anything
	registerAgain = time.Second      // after a failure
)

// Tell has enctypes called with the encryption types that the kernel knows: now, if they are known,
// and after each registration.
func (r *Registration) Tell(enctypes func([]etype.ID)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tell = enctypes
	if r.knows != nil {
		enctypes(r.knows)
	}
}

// learn notes which encryption types the kernel knows.
func (r *Registration) learn(enctypes []etype.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.knows = enctypes
	if r.tell != nil {
		r.tell(enctypes)
	}
}

// Want starts to register, or stops: a registration that there is stays. When it is wanted already,
// the kernel is looked at.
func (r *Registration) Want(on bool) {
	r.mu.Lock()
	was := r.stop != nil
	switch {
	case on && !was:
		ctx, stop := context.WithCancel(context.Background())
		before := r.done // its write may be under way still
		r.stop, r.done, r.again, r.looked = stop, make(chan struct{}), make(chan struct{}, 1), make(chan struct{})
		go r.run(ctx, before, r.done, r.again, r.looked)
	case on:
		select {
		case r.again <- struct{}{}:
		default:
		}
	case was:
		r.stop()
		r.stop = nil
	}
	r.mu.Unlock()
	if was && !on {
		r.enter(context.Background(), phaseOff, nil)
	}
}

// Await waits until the kernel has been looked at once, if that is wanted, and no longer than
// atMost.
func (r *Registration) Await(atMost time.Duration) {
	r.mu.Lock()
	looked := r.looked
	r.mu.Unlock()
	if looked == nil {
		return
	}
	select {
	case <-looked:
	case <-time.After(atMost):
		r.log.Warn("the kernel's NFS server has not answered yet: going on meanwhile")
	}
}

// Close stops looking. A write that the kernel is taking its time for is not waited for beyond ctx.
func (r *Registration) Close(ctx context.Context) {
	r.mu.Lock()
	stop, done := r.stop, r.done
	r.stop = nil
	r.mu.Unlock()
	if stop != nil {
		stop()
	}
	if done != nil {
		select {
		case <-done:
		case <-ctx.Done():
		}
	}
}

// Status says how things stand with the kernel, in a line; it is empty where no registration is
// wanted.
func (r *Registration) Status() string { return r.current().String() }

func (r *Registration) current() state {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state
}

func (r *Registration) run(ctx context.Context, before, done, again, looked chan struct{}) {
	defer close(done)
	if before != nil {
		<-before
	}
	begun := time.Now()
	wait := r.look(ctx, true, false)
	close(looked)
	for {
		reloaded := false
		select {
		case <-ctx.Done():
			return
		case <-again:
			reloaded = true
		case <-time.After(wait):
		}
		wait = r.look(ctx, time.Since(begun) < soonFor, reloaded)
	}
}

// look registers unless that is done, and returns when to look again. A reload may have moved the
// socket away.
func (r *Registration) look(ctx context.Context, early, reloaded bool) time.Duration {
	soon := lookOften
	if early {
		soon = lookSoon
	}
	was := r.current().phase
	chosen, err := readFlag(r.dir)
	if was == phaseRegistered && (chosen == undecided || chosen == rpcSvcgssd) {
		r.log.Warn("the registration with the kernel's NFS server is lost: its module was loaded again")
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		r.enter(ctx, phaseWaiting, nil)
		return soon
	case chosen == rpcSvcgssd: // a write would fail, until the module is loaded again
		r.enter(ctx, phaseTooLate, errTooLate)
		return soon
	case was == phaseRegistered && errors.Is(err, fs.ErrPermission):
		return lookSeldom // run_as_user is in force: what is done is done
	case was == phaseRegistered && err == nil && chosen != undecided && (!reloaded || r.listening()):
		return lookOften
	}
	if was != phaseFailed {
		r.enter(ctx, phaseRegistering, nil)
	}
	if ctx.Err() != nil {
		return lookSeldom // it is not wanted any more
	}
	err = r.register(r.dir)
	if ctx.Err() != nil {
		return lookSeldom
	}
	switch {
	case err == nil:
		r.learn(readEnctypes(r.dir))
		r.enter(ctx, phaseRegistered, nil)
		return lookOften
	case errors.Is(err, syscall.EBUSY):
		r.enter(ctx, phaseTooLate, errTooLate)
		return soon
	case errors.Is(err, fs.ErrPermission):
		r.enter(ctx, phaseFailed, fmt.Errorf("%w: this takes root. With run_as_user the module auth_rpcgss must be loaded before this daemon starts", err))
		return lookSeldom
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		err = fmt.Errorf("%w: the kernel finds no socket at %s. The service needs socket = /run/gssproxy.sock, and /var/run must be a symbolic link to /run",
			err, kernelSocket)
	}
	r.enter(ctx, phaseFailed, err)
	return registerAgain
}

// enter notes a new state, and logs it once. A run whose ctx has ended has no more say.
func (r *Registration) enter(ctx context.Context, phase phase, err error) {
	r.mu.Lock()
	next := state{phase, err}
	text := next.String()
	if ctx.Err() != nil || text == r.state.String() {
		r.mu.Unlock()
		return
	}
	r.state = next
	news := phase != phaseRegistering && text != r.logged
	if news {
		r.logged = text
	}
	r.mu.Unlock()
	r.changed()
	if !news {
		return
	}
	switch phase {
	case phaseTooLate:
		r.log.Error("NOT REGISTERED WITH THE KERNEL'S NFS SERVER, and clients with Kerberos are refused", "reason", err)
	case phaseFailed:
		r.log.Error("cannot register with the kernel's NFS server", "error", err)
	case phaseWaiting, phaseRegistered:
		r.log.Info(text)
	}
}
