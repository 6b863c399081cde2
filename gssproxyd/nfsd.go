package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"gssproxyd/conf"
	"gssproxyd/mech/krb5/etype"
)

// nfsd tells the kernel's NFS server to ask this daemon, and sees to it that it goes on doing so.
//
// The kernel is told by a write of "1" to use-gss-proxy, a file of its module auth_rpcgss, one for each network
// namespace: /proc/net is that of this process, whose socket it is. During the write the kernel connects to
// /var/run/gssproxy.sock; it comes as this process. When there was a daemon before, with a call of the kernel's under
// way, the write lasts for seconds. So it is done beside everything else.
//
// The choice is for good. A kernel that was asked for a context before it was told has chosen rpc.svcgssd (0) until the
// module is unloaded; to a kernel that has chosen us (1) a daemon that starts tells it again, which makes it connect anew.
// In every state the file is looked at twice a second, since a module that is loaded, or loaded anew, may need it at once.
type nfsd struct {
	dir       string // /proc/net/rpc
	log       *slog.Logger
	enctypes  func([]etype.ID)   // is told what the kernel knows
	changed   func(nfsdState)    // is told every new state
	write     func(string) error // tells the kernel; tests have their own
	reachable func() bool        // tells whether the kernel would find us, without telling it

	mu     sync.Mutex
	state  nfsdState
	said   string             // last in the log
	stop   context.CancelFunc // nil while the kernel is not to be told
	done   chan struct{}
	again  chan struct{} // asks for a look now; holds one
	looked chan struct{} // closed when the first look is over
}

// What the kernel knows.
const (
	kernelRPC    = "/proc/net/rpc"
	kernelSocket = "/var/run/gssproxy.sock"
)

// nfsdState is how things stand with the kernel.
type nfsdState struct {
	phase nfsdPhase
	since time.Time
	err   error // of phaseLatched and phaseFailed
}

type nfsdPhase string

const (
	phaseOff     nfsdPhase = "off"     // no service has kernel_nfsd
	phaseWaiting nfsdPhase = "waiting" // the kernel's module is not loaded
	phaseTelling nfsdPhase = "telling" // the write is under way
	phaseArmed   nfsdPhase = "armed"   // the kernel asks us
	phaseLatched nfsdPhase = "latched" // the kernel has chosen rpc.svcgssd
	phaseFailed  nfsdPhase = "failed"
)

// String is a line for a status.
func (s nfsdState) String() string {
	switch s.phase {
	case phaseOff, "":
		return "kernel NFS server: not asked for (kernel_nfsd)"
	case phaseWaiting:
		return "kernel NFS server: waiting for its module auth_rpcgss"
	case phaseTelling:
		return "kernel NFS server: being told"
	case phaseArmed:
		return "kernel NFS server: asks this daemon"
	}
	return "kernel NFS server: does NOT ask this daemon: " + s.err.Error()
}

// How long until the next look.
const (
	lookSoon    = 100 * time.Millisecond // at first, while a boot is under way
	soonFor     = 10 * time.Second
	lookOften   = 500 * time.Millisecond
	lookSeldom  = 10 * time.Second // where only root could do anything
	tellAgain   = time.Second      // after a failure
	firstLook   = 3 * time.Second  // that READY waits for
	firstAsRoot = 12 * time.Second // that the change of user waits for: it cannot be made up for later
)

// want starts telling the kernel, or stops: what it has been told stays. When it is told already, it is looked at.
func (n *nfsd) want(on bool) {
	n.mu.Lock()
	was := n.stop != nil
	switch {
	case on && !was:
		ctx, stop := context.WithCancel(context.Background())
		before := n.done // its write may be under way still
		n.stop, n.done, n.again, n.looked = stop, make(chan struct{}), make(chan struct{}, 1), make(chan struct{})
		go n.run(ctx, before, n.done, n.again, n.looked)
	case on:
		select {
		case n.again <- struct{}{}:
		default:
		}
	case was:
		n.stop()
		n.stop = nil
	}
	n.mu.Unlock()
	if was && !on {
		n.enter(context.Background(), phaseOff, nil)
	}
}

// settle waits until the kernel has been looked at once, for a while.
func (n *nfsd) settle(patience time.Duration) {
	n.mu.Lock()
	looked := n.looked
	n.mu.Unlock()
	if looked == nil {
		return
	}
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-looked:
	case <-t.C:
		n.log.Warn("the kernel's NFS server has not answered yet: going on meanwhile")
	}
}

// close stops looking. A write that the kernel is taking its time for is not waited for beyond ctx.
func (n *nfsd) close(ctx context.Context) {
	n.mu.Lock()
	stop, done := n.stop, n.done
	n.stop = nil
	n.mu.Unlock()
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

// status is how things stand.
func (n *nfsd) status() nfsdState {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.state
}

func (n *nfsd) run(ctx context.Context, before, done, again, looked chan struct{}) {
	defer close(done)
	if before != nil {
		<-before
	}
	begun, first, reloaded := time.Now(), true, false
	for {
		wait := n.look(ctx, time.Since(begun) < soonFor, reloaded)
		if first {
			close(looked)
			first = false
		}
		reloaded = false
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-again:
			t.Stop()
			reloaded = true
		case <-t.C:
		}
	}
}

// look tells the kernel unless it knows, and returns when to look again. A reload may have moved the socket away.
func (n *nfsd) look(ctx context.Context, early, reloaded bool) time.Duration {
	soon := lookOften
	if early {
		soon = lookSoon
	}
	flag := filepath.Join(n.dir, "use-gss-proxy")
	was := n.status().phase
	text, err := os.ReadFile(flag)
	now := strings.TrimSpace(string(text))
	if was == phaseArmed && (now == "-1" || now == "0") {
		n.log.Warn("the kernel's NFS server has forgotten this daemon: its module was loaded anew")
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		n.enter(ctx, phaseWaiting, nil)
		return soon
	case now == "0": // it would refuse to be told, until the module is loaded anew
		n.enter(ctx, phaseLatched, errLatched)
		return soon
	case was == phaseArmed && errors.Is(err, fs.ErrPermission):
		return lookSeldom // run_as_user is in force: what is done is done
	case was == phaseArmed && err == nil && now != "-1" && (!reloaded || n.reachable()):
		return lookOften
	}
	if was != phaseFailed {
		n.enter(ctx, phaseTelling, nil)
	}
	if ctx.Err() != nil {
		return lookSeldom // it is not wanted any more
	}
	err = n.write(flag)
	if ctx.Err() != nil {
		return lookSeldom
	}
	switch {
	case err == nil:
		n.enctypes(n.readEnctypes())
		n.enter(ctx, phaseArmed, nil)
		return lookOften
	case errors.Is(err, syscall.EBUSY):
		n.enter(ctx, phaseLatched, errLatched)
		return soon
	case errors.Is(err, fs.ErrPermission):
		n.enter(ctx, phaseFailed, fmt.Errorf("%w: this takes root. With run_as_user the module auth_rpcgss must be loaded before this daemon starts", err))
		return lookSeldom
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		err = fmt.Errorf("%w: the kernel finds no socket at %s. The service needs socket = /run/gssproxy.sock, and /var/run must be a symbolic link to /run",
			err, kernelSocket)
	}
	n.enter(ctx, phaseFailed, err)
	return tellAgain
}

var errLatched = errors.New("a client came before this daemon was ready, and the kernel settled for rpc.svcgssd until auth_rpcgss is unloaded. " +
	"Stop nfs-server and everything mounted with Kerberos, modprobe -r nfsd rpcsec_gss_krb5 auth_rpcgss (or restart the machine), " +
	"restart this daemon, and then start nfs-server")

// tellKernel writes the flag. It returns when the kernel has connected, which may take seconds.
func tellKernel(flag string) error {
	f, err := os.OpenFile(flag, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write([]byte("1"))
	return err
}

// kernelFindsUs tells whether anybody listens where the kernel connects to.
func kernelFindsUs() bool {
	c, err := net.DialTimeout("unix", kernelSocket, time.Second)
	if err == nil {
		c.Close()
	}
	return !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ECONNREFUSED)
}

// readEnctypes reads the types that the kernel says it knows, none where it does not say.
func (n *nfsd) readEnctypes() []etype.ID {
	text, err := os.ReadFile(filepath.Join(n.dir, "gss_krb5_enctypes"))
	if err != nil {
		return nil // a kernel before 6.2
	}
	return parseEnctypes(string(text))
}

// parseEnctypes reads numbers separated by commas, as the kernel writes them.
func parseEnctypes(text string) (list []etype.ID) {
	for _, s := range strings.FieldsFunc(text, func(c rune) bool { return c < '0' || c > '9' }) {
		if id, err := strconv.ParseInt(s, 10, 32); err == nil {
			list = append(list, etype.ID(id))
		}
	}
	return list
}

// enter notes a new state, and says so once. A run whose ctx has ended has no more say.
func (n *nfsd) enter(ctx context.Context, phase nfsdPhase, err error) {
	n.mu.Lock()
	if ctx.Err() != nil {
		n.mu.Unlock()
		return
	}
	state := nfsdState{phase, n.state.since, err}
	text := state.String()
	if text == n.state.String() {
		n.mu.Unlock()
		return
	}
	state.since = time.Now()
	n.state = state
	news := phase != phaseTelling && text != n.said
	if news {
		n.said = text
	}
	n.mu.Unlock()
	n.changed(state)
	if !news {
		return
	}
	switch phase {
	case phaseLatched:
		n.log.Error("THE KERNEL'S NFS SERVER DOES NOT ASK THIS DAEMON, and clients with Kerberos are refused", "reason", err)
	case phaseFailed:
		n.log.Error("the kernel's NFS server could not be told to ask this daemon", "error", err)
	case phaseWaiting, phaseArmed:
		n.log.Info(text)
	}
}

// kernelNFSD tells whether a service is for the kernel's NFS server.
func kernelNFSD(c *conf.Config) bool {
	return slices.ContainsFunc(c.Services, func(s *conf.Service) bool { return s.KernelNFSD })
}

// statusLine is what the daemon is doing, as the service manager is shown it beside how things stand with the kernel.
// Either changes without the other.
type statusLine struct {
	mu    sync.Mutex
	doing string
}

// notify tells the service manager a state, and what the daemon is doing from now on.
func (d *daemon) notify(state, doing string) {
	d.shown.mu.Lock()
	defer d.shown.mu.Unlock()
	d.shown.doing = doing
	sd.SdNotify(false, state+"\nSTATUS="+d.withNFSD(doing))
}

// showNFSD tells the service manager that things stand otherwise with the kernel.
func (d *daemon) showNFSD(nfsdState) {
	d.shown.mu.Lock()
	defer d.shown.mu.Unlock()
	sd.SdNotify(false, "STATUS="+d.withNFSD(cmp.Or(d.shown.doing, "Starting")))
}

// withNFSD adds the same to a status.
func (d *daemon) withNFSD(status string) string {
	if s := d.nfsd.status(); s.phase != phaseOff && s.phase != "" {
		status += "; " + s.String()
	}
	return status
}
