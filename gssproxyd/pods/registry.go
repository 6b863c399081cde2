package pods

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"gssproxyd/audit"
	"gssproxyd/limits"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc"
	"gssproxyd/rpc/peer"
)

// Options is what a Registry is made of.
type Options struct {
	Open   func(path string) (*net.UnixListener, error) // [Listen], by who may
	Remove func(path string) error                      // [Remove], likewise

	// Serve serves a pod's socket until ctx ends, which cuts its connections, or the listener fails.
	Serve func(ctx context.Context, l *net.UnixListener, path string) error

	// Cut cuts them before it returns.
	Cut func(l *net.UnixListener)

	// Record is told of each registration that comes, goes or is refused; nil records nothing.
	Record func(context.Context, *audit.Event) error

	Limits *limits.Limits
	Log    *slog.Logger
}

// Registry has the pods that are registered, and their sockets.
type Registry struct {
	o Options

	// shown is which pod a socket is for, by path. It is asked for each connection.
	shown atomic.Pointer[map[string]peer.Pod]

	mu      sync.Mutex
	socket  string // of registration; "" where there is none
	state   *state
	server  *rpc.Server
	entries map[string]*entry // by the path of the socket
	serving sync.WaitGroup
}

// entry is a registration in force.
type entry struct {
	Registration
	end func() // closes the socket and cuts its connections; nil while it is not served
}

// New returns a Registry without a socket.
func New(o Options) *Registry {
	if o.Record == nil {
		o.Record = func(context.Context, *audit.Event) error { return nil }
	}
	return &Registry{o: o}
}

// Registered returns the pod that a socket is for. It is that of an [rpc.Server].
func (r *Registry) Registered(socket string) peer.Maybe[peer.Pod] {
	if shown := r.shown.Load(); shown != nil {
		if pod, ok := (*shown)[socket]; ok {
			return peer.Known(pod)
		}
	}
	return peer.Maybe[peer.Pod]{}
}

// show has Registered know what there is. r.mu is held.
func (r *Registry) show() {
	var shown map[string]peer.Pod
	if len(r.entries) > 0 {
		shown = make(map[string]peer.Pod, len(r.entries))
		for path, e := range r.entries {
			shown[path] = e.Pod
		}
	}
	r.shown.Store(&shown)
}

// Configure has the socket of registration at a path, or none. What was registered there before is
// in force again, and sockets that were lost are opened again. ctx is of all that is served.
func (r *Registry) Configure(ctx context.Context, socket string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if socket != r.socket {
		r.stop(ctx)
		if socket == "" {
			return nil
		}
		if err := r.start(ctx, socket); err != nil {
			r.stop(ctx)
			return fmt.Errorf("pod_socket = %s: %w", socket, err)
		}
	}
	for path, e := range r.entries {
		if e.end == nil {
			if err := r.serve(ctx, path, e); err != nil {
				r.o.Log.Error("a pod has no socket; a reload tries it again", "pod", e.Pod.String(), "pod_uid", e.UID, "error", err)
			}
		}
	}
	return nil
}

// start opens the socket of registration, and reads what is registered. r.mu is held.
func (r *Registry) start(ctx context.Context, socket string) (err error) {
	if r.state, err = openState(filepath.Dir(socket)); err != nil {
		return err
	}
	l, err := rpc.Listen(socket, 0o600) // before all else: of two daemons only one has it
	if err != nil {
		return err
	}
	all, bad, err := r.state.read()
	if err != nil {
		l.Close()
		return err
	}
	for _, err := range bad {
		r.o.Log.Error("a registration of a pod cannot be read, and is left out: remove the file, and start the pod again", "directory", filepath.Dir(socket), "error", err)
	}
	r.socket, r.entries = socket, make(map[string]*entry)
	for _, reg := range all {
		if err := r.contradicts(&reg); err != nil {
			r.o.Log.Error("a registration of a pod is left out", "error", err)
			continue
		}
		r.entries[r.path(&reg)] = &entry{Registration: reg}
	}
	r.show()
	server := &rpc.Server{
		Program: &rpc.Pods, Limits: r.o.Limits, Log: r.o.Log,
		Match: func(_ context.Context, c *rpc.Conn, _ uint32) (rpc.Service, bool) {
			if c.Peer.UID != 0 {
				r.deny(fmt.Errorf("uid %d, pid %d: only root registers pods", c.Peer.UID, c.Peer.PID))
			}
			return &service{r, ctx}, c.Peer.UID == 0
		},
	}
	r.server = server
	r.serving.Go(func() { server.Serve(ctx, l, socket) }) // it logs what goes wrong with clients
	return nil
}

// stop ends all that is served, and forgets it: files and directories stay. r.mu is held.
func (r *Registry) stop(ctx context.Context) {
	server := r.server
	r.server, r.socket = nil, ""
	if server != nil {
		r.mu.Unlock() // a call that is executed waits for it
		server.Shutdown(ctx)
		r.mu.Lock()
	}
	for _, e := range r.entries {
		if e.end != nil {
			e.end()
		}
	}
	r.entries = nil
	r.show()
	if r.state != nil {
		r.state.close()
		r.state = nil
	}
}

// Close ends everything and waits for it. Those who call through pods' sockets are to have been
// answered.
func (r *Registry) Close(ctx context.Context) {
	r.mu.Lock()
	r.stop(ctx)
	r.mu.Unlock()
	r.serving.Wait()
}

// path is the path of a registration's socket.
func (r *Registry) path(reg *Registration) string {
	return filepath.Join(Dir(r.socket), DirName(reg.UID, reg.Handle), SocketName)
}

// serve opens the socket of an entry and serves it. r.mu is held.
func (r *Registry) serve(ctx context.Context, path string, e *entry) error {
	l, err := r.o.Open(path)
	if err != nil {
		return err
	}
	ctx, cut := context.WithCancel(ctx)
	e.end = func() {
		l.Close() // nobody comes any more when this returns
		r.o.Cut(l)
		cut()
	}
	r.serving.Go(func() {
		defer cut()
		if err := r.o.Serve(ctx, l, path); err != nil {
			r.mu.Lock()
			defer r.mu.Unlock()
			e.end = nil // who serves has said why, and has closed it
		}
	})
	return nil
}

// contradicts returns what another registration says that cannot be true beside this one. r.mu is
// held.
func (r *Registry) contradicts(reg *Registration) error {
	for _, e := range r.entries {
		if e.UID == reg.UID && (e.Pod != reg.Pod || e.Handle == reg.Handle && e.Target != reg.Target) {
			return fmt.Errorf("volume %q of pod %s (%s) at %s contradicts what is registered: volume %q of pod %s at %s",
				reg.Handle, reg.Pod, reg.UID, reg.Target, e.Handle, e.Pod, e.Target)
		}
	}
	return nil
}

var errStopped = errors.New("pods are not registered any more: the configuration has no pod_socket, or the daemon ends")

// register puts a registration in force. One that is in force already is no error.
func (r *Registry) register(ctx context.Context, reg *Registration) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.socket == "" {
		return errStopped
	}
	if err := errors.Join(reg.Check(), r.contradicts(reg)); err != nil {
		return err
	}
	path := r.path(reg)
	e := r.entries[path]
	switch {
	case e != nil && e.end != nil:
		return nil
	case e == nil && len(r.entries) >= Max:
		return fmt.Errorf("there are %d registrations of pods already, which is all that may be", Max)
	case e == nil:
		e = &entry{Registration: *reg}
		if err := r.state.write(reg); err != nil {
			return err
		}
		r.entries[path] = e
		r.show() // before anybody can connect
	}
	if err := r.serve(ctx, path, e); err != nil {
		delete(r.entries, path)
		r.show()
		return errors.Join(err, r.state.remove(reg))
	}
	r.record(slog.LevelInfo, audit.PodRegistered, "pod registered", reg)
	return nil
}

// unregister ends a registration. Connections are cut: what they are is not so any more.
func (r *Registry) unregister(podUID, handle string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.socket == "" {
		return errStopped
	}
	reg := &Registration{Pod: peer.Pod{UID: podUID}, Handle: handle}
	path := r.path(reg)
	e := r.entries[path]
	if e != nil && e.end != nil {
		e.end()
		e.end = nil
	}
	// Of one whose file could not be read there may be something, too. The file last: what is not
	// finished is to be done again.
	if err := r.o.Remove(path); err != nil {
		return err
	}
	if err := r.state.remove(reg); err != nil || e == nil {
		return err
	}
	delete(r.entries, path)
	r.show()
	r.record(slog.LevelInfo, audit.PodUnregistered, "pod not registered any more", &e.Registration)
	return nil
}

// list returns all registrations.
func (r *Registry) list() (all []Registration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, path := range slices.Sorted(maps.Keys(r.entries)) {
		all = append(all, r.entries[path].Registration)
	}
	return all
}

// record says what has become of a registration.
func (r *Registry) record(level slog.Level, event audit.Kind, msg string, reg *Registration, attrs ...any) {
	r.o.Log.Log(context.Background(), level, msg, append([]any{"event", string(event), "pod", reg.Pod.String(), "pod_uid", reg.UID, "volume", reg.Handle}, attrs...)...)
	r.o.Record(context.Background(), &audit.Event{Kind: event, Caller: &audit.Caller{Pod: reg.UID}, Principal: reg.Pod.String(), Source: r.path(reg)}) // it is registered, whatever becomes of that
}

// deny says what was not registered.
func (r *Registry) deny(err error) {
	r.o.Log.Warn("pod not registered", "event", string(audit.RegistrationDenied), "reason", reason.RegistrationDenied, "error", err, "hint", reason.RegistrationDenied.Doc().Hint)
	r.o.Record(context.Background(), &audit.Event{Kind: audit.RegistrationDenied, Reason: string(reason.RegistrationDenied), Text: err.Error()})
}
