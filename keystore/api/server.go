package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/audit"
	"gssproxyd/keystore"
	"gssproxyd/limits"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc"
	"gssproxyd/rpc/peer"
)

// Options are those of a [Server]. All are needed but Rotate.
type Options struct {
	Store        *keystore.Store
	Certificates *Certificates

	// Rotate rotates the key of a principal. by is who wants it; with force it goes on without hosts
	// that do not acknowledge. Nil: it cannot be had here.
	Rotate func(ctx context.Context, principal, by string, force bool) error

	Audit func(context.Context, *audit.Event)
	Log   *slog.Logger
}

// A Server answers hosts and administrators.
type Server struct {
	o      Options
	index  *index
	admins atomic.Pointer[[]Admin]

	previous previousUses

	asked      *rates  // how often each one asks
	delivered  *rates  // of how many entries each host is told
	lines      *rates  // of the audit log, about refusals of those who are known
	strangers  *rates  // likewise, of those of whom only the network is
	watches    *shares // at a time
	conns      *shares
	named      *shares // connections, by whom their certificates name
	handshakes *shares // connections of which it is not known yet whose they are, by network

	turns chan struct{} // those of hosts that ask the backend

	headerTimeout, bodyTimeout, touchEvery time.Duration

	mu   sync.Mutex
	open map[net.Conn]*connection // those that count, by what is below TLS
}

// connection is one over TLS.
type connection struct {
	early bool   // it has asked nothing yet
	of    string // whose share it has; empty: nobody's yet

	// Of the one request that is served at a time.
	believed <-chan struct{} // which is closed when the certificates that it was checked with change
	until    time.Time       // when it is to be checked again
	uses     map[string]bool // the principals of which the store knows that the host uses them
}

// What one may do, and all may at a time.
var (
	askedRate = limits.Rate{Burst: 300, Every: 20 * time.Millisecond}
	toldRate  = limits.Rate{Burst: maxHave, Every: 20 * time.Millisecond} // all that a host has, when it has nothing
	linesRate = limits.Rate{Burst: 10, Every: 6 * time.Second}
)

const (
	watchesEach    = 4
	namedEach      = 32 // connections of one who has a certificate
	socketEach     = 16 // connections of one uid
	handshakesAll  = 1024
	handshakesEach = 256 // of one network, which may be that of many hosts

	headerTimeout = 10 * time.Second
	bodyTimeout   = 30 * time.Second
	writeTimeout  = 30 * time.Second
	idleTimeout   = 2 * MaxWait
	stopTimeout   = 5 * time.Second
	maxHeader     = 8 << 10
	filesOthers   = 128 // open files that are no connection
)

// New returns a server that serves nobody yet.
func New(o Options, admins []Admin) *Server {
	var files unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &files) != nil {
		files.Cur = 1024
	}
	most := max(64, int(min(files.Cur, 1<<20))-filesOthers)
	s := &Server{
		o: o, index: newIndex(), asked: newRates(askedRate), delivered: newRates(toldRate), lines: newRates(linesRate), strangers: newRates(linesRate), watches: newShares(most, watchesEach),
		conns: newShares(most, most), named: newShares(most, namedEach), handshakes: newShares(handshakesAll, handshakesEach), turns: make(chan struct{}, turns), open: make(map[net.Conn]*connection),
		headerTimeout: headerTimeout, bodyTimeout: bodyTimeout, touchEvery: touchEvery,
	}
	s.SetAdmins(admins)
	return s
}

// SetAdmins says who may do what from now on.
func (s *Server) SetAdmins(admins []Admin) { s.admins.Store(&admins) }

// Follow follows what changes in the store until ctx ends. synced is called when all that is there is
// known: from then on the server may serve.
func (s *Server) Follow(ctx context.Context, synced func()) {
	for {
		for e, err := range s.o.Store.Watch(ctx) {
			switch {
			case err != nil:
				s.o.Log.Error("what changes in the store is not followed for a moment", "error", err)
			case e == nil:
				synced()
				synced = func() {}
			default:
				s.index.put(e)
				e.Zero()
			}
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return
		}
	}
}

// ServeTLS serves hosts and administrators that show a certificate, until ctx ends.
func (s *Server) ServeTLS(ctx context.Context, l net.Listener) error {
	srv := s.server(ctx, func(r *http.Request) (*caller, error) { return s.ofCertificate(r) })
	srv.TLSConfig = s.o.Certificates.tls(s.believed, s.badCertificate)
	srv.ConnState = s.state
	srv.ConnContext = func(ctx context.Context, nc net.Conn) context.Context {
		return context.WithValue(ctx, connKey{}, below(nc))
	}
	return serve(ctx, srv, func() error { return srv.ServeTLS(l, "", "") })
}

// ServeSocket serves administrators of this host, until ctx ends.
func (s *Server) ServeSocket(ctx context.Context, l *net.UnixListener) error {
	held := newShares(1<<20, socketEach)
	srv := s.server(ctx, func(r *http.Request) (*caller, error) {
		c, _ := r.Context().Value(callerKey{}).(*caller)
		if c == nil {
			return nil, errors.New("the kernel does not say who connects")
		}
		return c, nil
	})
	var mu sync.Mutex
	uids := make(map[net.Conn]string) // of connections that count
	srv.ConnContext = func(ctx context.Context, nc net.Conn) context.Context {
		p, err := peer.Credentials(nc.(*net.UnixConn))
		if err != nil {
			return ctx
		}
		c := &caller{name: fmt.Sprintf("uid %d", p.UID), uid: &p.UID, pid: p.PID}
		mu.Lock()
		defer mu.Unlock()
		if !held.take(c.name) {
			nc.Close()
			return ctx
		}
		uids[nc] = c.name
		return context.WithValue(ctx, callerKey{}, c)
	}
	srv.ConnState = func(nc net.Conn, state http.ConnState) {
		mu.Lock()
		defer mu.Unlock()
		if name, counts := uids[nc]; counts && (state == http.StateClosed || state == http.StateHijacked) {
			delete(uids, nc)
			held.give(name)
		}
	}
	return serve(ctx, srv, func() error { return srv.Serve(l) })
}

// serve serves until ctx ends, and then until what is asked is answered, or a while is over.
func serve(ctx context.Context, srv *http.Server, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if srv.Shutdown(last) != nil {
		srv.Close()
	}
	<-done // closed listeners end it
	return nil
}

type (
	callerKey struct{}
	connKey   struct{}
)

// A caller is who asks.
type caller struct {
	name  string // "certificate NAME" or "uid N", as histories have it
	names []string
	chain []*x509.Certificate
	from  string      // the address
	conn  *connection // over TLS
	uid   *uint32
	pid   int32
}

// where says who asks and from where.
func (c *caller) where() string {
	if c.from == "" {
		return c.name
	}
	return c.name + " from " + c.from
}

// ofCertificate returns who asks over TLS: it is looked at again for each request.
func (s *Server) ofCertificate(r *http.Request) (*caller, error) {
	c := &caller{chain: r.TLS.PeerCertificates, from: r.RemoteAddr}
	c.names = names(c.chain[0])
	c.name = "certificate " + certificateName(c.chain[0])
	nc, _ := r.Context().Value(connKey{}).(net.Conn)
	if c.conn = s.charge(nc, c.name); c.conn == nil {
		e := refuse(http.StatusTooManyRequests, reason.StoreRate, "%s has %d connections at a time", c.name, namedEach)
		e.closes = true
		return c, e
	}
	return c, s.check(c)
}

// charge returns a connection that has a share of whose it is, or nil.
func (s *Server) charge(nc net.Conn, name string) *connection {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.open[nc]
	switch {
	case o == nil: // it is being closed
	case o.of == "" && s.named.take(name):
		o.of = name
	case o.of == "":
		return nil
	}
	return o
}

// certificateName names a certificate for who reads.
func certificateName(c *x509.Certificate) string {
	if n := names(c); len(n) > 0 {
		return strings.Join(n, ",")
	}
	return "number " + c.SerialNumber.Text(16)
}

// check refuses a caller whose certificate does not count any more.
func (s *Server) check(c *caller) error {
	if c.chain == nil {
		return nil
	}
	has, changed := s.o.Certificates.current()
	now := s.o.Certificates.now()
	if c.conn.believed == changed && now.Before(c.conn.until) {
		return nil
	}
	until, err := has.check(c.chain, now)
	if err != nil {
		c.conn.believed = nil
		return refuse(http.StatusForbidden, reason.StoreCertificate, "the certificate is not believed: %v", err)
	}
	c.conn.believed, c.conn.until = changed, until
	return nil
}

// below returns the connection that TLS goes over.
func below(nc net.Conn) net.Conn {
	if c, ok := nc.(*tls.Conn); ok {
		return c.NetConn()
	}
	return nc
}

// believed notes that the certificates of a connection were checked during the handshake.
func (s *Server) believed(nc net.Conn, changed <-chan struct{}, until time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.open[nc]; o != nil {
		o.believed, o.until = changed, until
	}
}

// badCertificate notes one that is refused during the handshake.
func (s *Server) badCertificate(from string, chain []*x509.Certificate, err error) {
	c := &caller{name: "a client", from: from}
	if len(chain) > 0 {
		c.name = "certificate " + certificateName(chain[0])
	}
	// What it names nobody has signed: it has no line of its own in what counts.
	s.note(context.Background(), s.strangers, c, network(from), "handshake", "", &Refusal{Reason: reason.StoreCertificate, Text: "the certificate is not believed: " + err.Error()})
}

// network returns who counts as one of those of whom only the address is known: one address of IPv4, and
// of IPv6 as many as one subscriber has.
func network(addr string) string {
	a, err := netip.ParseAddrPort(addr)
	if err != nil {
		return addr
	}
	ip := a.Addr().Unmap().WithZone("")
	bits := ip.BitLen()
	if ip.Is6() {
		bits = 64
	}
	return netip.PrefixFrom(ip, bits).Masked().String()
}

// state counts connections, and closes those that are too many.
func (s *Server) state(nc net.Conn, state http.ConnState) {
	addr := network(nc.RemoteAddr().String())
	nc = below(nc)
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.open[nc]
	switch {
	case state == http.StateNew && !s.conns.take(""):
		s.tooMany(nc, addr)
	case state == http.StateNew && !s.handshakes.take(addr):
		s.conns.give("")
		s.tooMany(nc, addr)
	case state == http.StateNew:
		s.open[nc] = &connection{early: true}
	case o == nil || state == http.StateIdle:
	default: // it asks something, or has ended
		if o.early {
			s.handshakes.give(addr)
		}
		if o.early = false; state != http.StateActive {
			if o.of != "" {
				s.named.give(o.of)
			}
			delete(s.open, nc)
			s.conns.give("")
		}
	}
}

func (s *Server) tooMany(nc net.Conn, addr string) {
	nc.Close()
	if _, ok := s.strangers.take("connections", time.Now()); ok {
		s.o.Log.Warn("a connection was closed: there are too many, or too many of this network that show no certificate; LimitNOFILE decides how many there can be", "network", addr)
	}
}

// server returns a server that asks who calls, and answers.
func (s *Server) server(ctx context.Context, who func(*http.Request) (*caller, error)) *http.Server {
	srv := &http.Server{
		ReadHeaderTimeout: s.headerTimeout, ReadTimeout: s.bodyTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		BaseContext:  func(net.Listener) context.Context { return ctx },
		ErrorLog:     slog.NewLogLogger(s.o.Log.Handler(), slog.LevelDebug),
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if p := recover(); p == http.ErrAbortHandler {
				panic(p)
			} else if p != nil {
				s.o.Log.Error("a request was not answered: a fault of this program", "path", r.URL.Path, "panic", rpc.Describe(p), "stack", rpc.Stack())
				panic(http.ErrAbortHandler)
			}
		}()
		r.Body = http.MaxBytesReader(w, r.Body, MaxBody)
		c, err := who(r)
		if err == nil {
			err = s.answer(w, r, c)
		}
		if err != nil {
			s.fail(w, r, c, err)
		}
	})
	return srv
}

// answer answers a request, or returns why not.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, c *caller) error {
	_, ok := s.asked.take(c.name, time.Now())
	if !ok && (c.uid == nil || !own(*c.uid)) { // root has much to ask at a time, and pays for itself
		return refuse(http.StatusTooManyRequests, reason.StoreRate, "%s asks too often", c.name)
	}
	if name, ok := strings.CutPrefix(r.URL.Path, "/v1/admin/"); ok {
		return s.admin(w, r, c, name)
	}
	if c.uid != nil {
		return badRequest("there is no %s here; over the socket only /v1/admin/ is answered", r.URL.Path)
	}
	method, f := http.MethodPost, s.watch
	switch r.URL.Path {
	case "/v1/watch":
	case "/v1/acknowledge":
		f = s.acknowledge
	case "/v1/list":
		method, f = http.MethodGet, s.list
	default:
		return refuse(http.StatusNotFound, reason.StoreRequest, "there is no %s here", r.URL.Path)
	}
	if r.Method != method {
		return refuse(http.StatusMethodNotAllowed, reason.StoreRequest, "%s is expected for %s", method, r.URL.Path)
	}
	h, err := s.enrolled(c)
	if err != nil {
		return err
	}
	return f(w, r, c, h)
}

// decode reads what is asked.
func decode(r *http.Request, v any, strict bool) error {
	d := json.NewDecoder(r.Body)
	if strict {
		d.DisallowUnknownFields()
	}
	err := d.Decode(v)
	if err == nil {
		if _, err = d.Token(); err == io.EOF {
			return nil
		}
		err = errors.New("something follows the JSON object")
	}
	if tooLong, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return refuse(http.StatusRequestEntityTooLarge, reason.StoreRequest, "more than %d bytes", tooLong.Limit)
	}
	return badRequest("a JSON object is expected, as docs/keystore.md has it: %v", err)
}

// reply writes an answer.
func reply(w http.ResponseWriter, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	w.Write(b) // who does not read it loses the connection
	return nil
}

// refusal is an error as it is answered.
func refusal(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if r, ok := errors.AsType[*keystore.Refusal](err); ok {
		status := http.StatusConflict
		if r.Reason == reason.AuditFailed {
			status = http.StatusServiceUnavailable
		}
		return refuse(status, r.Reason, "%s", r.Text)
	}
	if a, ok := errors.AsType[*keystore.Argument](err); ok {
		return badRequest("%s", a.Text)
	}
	switch {
	case errors.Is(err, keystore.ErrNoEntry):
		return refuse(http.StatusNotFound, reason.StoreNoEntry, "%v", err)
	case errors.Is(err, keystore.ErrNoHost):
		return refuse(http.StatusNotFound, reason.StoreNotEnrolled, "%v", err)
	case errors.Is(err, keystore.ErrNoMember):
		return refuse(http.StatusNotFound, reason.StoreRequest, "%v", err)
	case errors.Is(err, keystore.ErrExists):
		return refuse(http.StatusConflict, reason.StoreExists, "%v", err)
	}
	return refuse(http.StatusServiceUnavailable, reason.StoreUnavailable, "%v", err)
}

// fail answers with a refusal, and notes it.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, c *caller, err error) {
	e := refusal(err)
	if r.Context().Err() == nil { // somebody is there to be refused
		if c == nil {
			c = &caller{name: "a client", from: r.RemoteAddr}
		}
		s.denied(r.Context(), c, strings.TrimPrefix(r.URL.Path, "/v1/"), e.principal, &e.Refusal)
	}
	if e.Status == http.StatusTooManyRequests || e.Status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "5")
	}
	if e.closes || e.Status == http.StatusForbidden || e.Status == http.StatusRequestEntityTooLarge {
		w.Header().Set("Connection", "close")
	}
	reply(w, e.Status, &e.Refusal)
}

// denied notes a refusal of one who is known in the audit log.
func (s *Server) denied(ctx context.Context, c *caller, procedure, principal string, r *Refusal) {
	s.note(ctx, s.lines, c, c.name, procedure, principal, r)
}

// note notes a refusal in the audit log, as often as payer may have them there. Those who are known and
// strangers have different lines, so that these do not hide what becomes of those.
func (s *Server) note(ctx context.Context, lines *rates, c *caller, payer, procedure, principal string, r *Refusal) {
	before, ok := lines.take(payer+"\x00"+string(r.Reason), time.Now())
	if !ok {
		return
	}
	s.record(ctx, c, &audit.Event{
		Kind: audit.StoreDenied, Procedure: procedure, Principal: principal, Reason: string(r.Reason), Text: c.where() + ": " + r.Text, Repeated: uint64(before),
	})
	s.o.Log.Warn("refused", "who", c.where(), "asked", procedure, "principal", principal, "reason", r.Reason, "text", r.Text)
}

// record notes an event that somebody has caused.
func (s *Server) record(ctx context.Context, c *caller, e *audit.Event) {
	e.Time = time.Now()
	if c.uid != nil {
		e.Caller = &audit.Caller{UID: *c.uid, PID: c.pid}
	}
	s.o.Audit(context.WithoutCancel(ctx), e)
}

// own reports whether a uid may do all over the socket.
func own(uid uint32) bool { return uid == 0 || uid == uint32(os.Geteuid()) }
