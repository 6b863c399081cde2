package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gssproxyd/interposer"
	"gssproxyd/interposer/negotiate"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/spnego"
	"gssproxyd/tests/lab"
)

// The cases of programs that accept contexts: a C program with libgssapi and the keytab, a Go
// program with package interposer and the daemon, and HTTP servers, which answer everybody, those
// who have proven once who they are, or those who prove it with each request.
const (
	inProcess   = "libgssapi"
	accepting   = "interposer"
	plainHTTP   = "http"
	sessionHTTP = "http session"
	tokenHTTP   = "http token"
)

// programs are these cases in the order of the tables. What has connections in other cases is here
// how many contexts or requests there are at a time.
var programs = []row{
	{inProcess, "none", 1},
	{accepting, "none", 1},
	{accepting, "none", 16},
	{inProcess, "disk", 1},
	{accepting, "disk", 1},
	{accepting, "disk", 16},
	{plainHTTP, "disk", 1},
	{sessionHTTP, "disk", 1},
	{tokenHTTP, "disk", 1},
}

// cost is what a context or a request costs: one run's mean.
type cost struct {
	program, daemon float64 // µs of CPU
	time            float64 // µs, of the run
	allocs          float64 // of the Go program
}

// costOf is the median of each figure of a case by itself.
func (b *bench) costOf(p row) cost {
	runs := b.costs[p]
	return cost{
		middle(runs, func(c cost) float64 { return c.program }), middle(runs, func(c cost) float64 { return c.daemon }),
		middle(runs, func(c cost) float64 { return c.time }), middle(runs, func(c cost) float64 { return c.allocs }),
	}
}

// runPrograms runs the cases of programs once.
func (b *bench) runPrograms(round int) error {
	var tokens [][]byte
	for _, p := range programs {
		if !b.runs(p.op) || !slices.Contains(b.rcaches, p.rcache) {
			continue
		}
		if tokens == nil {
			var err error
			if tokens, err = b.tokens(); err != nil {
				return err
			}
		}
		b.step(fmt.Sprintf("round %d of %d: %s, %d at a time, rcache %s", round+1, b.rounds, p.op, p.conns, p.rcache))
		c, err := b.program(p, tokens)
		if err != nil {
			return fmt.Errorf("%s, %d at a time, rcache %s: %w", p.op, p.conns, p.rcache, err)
		}
		b.costs[p] = append(b.costs[p], c)
	}
	return nil
}

// program runs a case once, with a token for each context or request.
func (b *bench) program(p row, tokens [][]byte) (cost, error) {
	r := new(run)
	defer r.end()
	if p.op == inProcess {
		rcache, err := rcacheName(r, p.rcache)
		if err != nil {
			return cost{}, err
		}
		return b.inProcess(rcache, tokens)
	}
	if err := b.start(r, "ours", p.op, p.rcache); err != nil {
		return cost{}, err
	}
	c, err := b.child(r, p)
	if err != nil {
		return cost{}, err
	}
	if _, err := c.run(tokens[:warm]); err != nil {
		return cost{}, err
	}
	before, err := r.daemon.CPU()
	if err != nil {
		return cost{}, err
	}
	used, err := c.run(tokens[warm:])
	if err != nil {
		return cost{}, err
	}
	after, err := r.daemon.CPU()
	return used.each(len(tokens)-warm, after-before), err
}

// inProcess accepts contexts with libgssapi.
func (b *bench) inProcess(rcache string, tokens [][]byte) (cost, error) {
	g, err := b.realm.Tool(lab.Root, "KRB5_KTNAME=FILE:"+b.keytab, "KRB5RCACHENAME="+rcache)
	if err != nil {
		return cost{}, err
	}
	defer g.Close()
	if err := g.Acquire(""); err != nil {
		return cost{}, err
	}
	if _, _, err := g.Accepts(tokens[:warm]); err != nil {
		return cost{}, err
	}
	var used usage
	used.CPU, used.Time, err = g.Accepts(tokens[warm:])
	return used.each(len(tokens)-warm, 0), err
}

// usage is what a program has used.
type usage struct {
	CPU, Time time.Duration
	Allocs    uint64
}

// each is the cost of one of n operations.
func (u usage) each(n int, daemon time.Duration) cost {
	of := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 / float64(n) }
	return cost{of(u.CPU), of(daemon), of(u.Time), float64(u.Allocs) / float64(n)}
}

func (u usage) since(before usage) usage {
	return usage{u.CPU - before.CPU, u.Time - before.Time, u.Allocs - before.Allocs}
}

var started = time.Now()

// used is what this process has used.
func used() (usage, error) {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return usage{}, err
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return usage{time.Duration(r.Utime.Nano() + r.Stime.Nano()), time.Since(started), m.Mallocs}, nil
}

// child is a Go program that is measured: another process of this one, so that what it uses is not
// mixed with what measuring takes. This end has one connection to it.
type child struct {
	op     string
	conn   net.Conn
	in     *bufio.Reader
	cookie string // of the session, once there is one
}

// childArg is the argument that makes this program the child, before the daemon's socket and how
// many contexts it is to accept at a time.
const childArg = "program"

// child starts the program of a case in front of a run's daemon; it ends with the run.
func (b *bench) child(r *run, p row) (*child, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := b.realm.Command(lab.Root, nil, exe, childArg, r.daemon.Socket, strconv.Itoa(p.conns))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	r.atEnd(func() { in.Close(); cmd.Wait() })
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("the program does not say where it serves: %w", err)
	}
	conn, err := net.Dial("tcp", strings.TrimSpace(addr))
	if err != nil {
		return nil, err
	}
	r.atEnd(func() { conn.Close() })
	return &child{op: p.op, conn: conn, in: bufio.NewReader(conn)}, conn.SetDeadline(time.Now().Add(5 * time.Minute))
}

// run has the program do its work once for each token, and returns what it used for that.
func (c *child) run(tokens [][]byte) (usage, error) {
	if c.op == accepting {
		var body bytes.Buffer
		if err := gob.NewEncoder(&body).Encode(tokens); err != nil {
			return usage{}, err
		}
		return c.usage("/accept", body.Bytes())
	}
	before, err := c.usage("/usage", nil)
	if err != nil {
		return usage{}, err
	}
	for _, token := range tokens {
		if err := c.get(token); err != nil {
			return usage{}, err
		}
	}
	after, err := c.usage("/usage", nil)
	return after.since(before), err
}

// get makes the request of the case.
func (c *child) get(token []byte) error {
	path, header := "/plain", ""
	switch {
	case c.cookie != "":
		path, header = "/session", "Cookie: "+c.cookie+"\r\n"
	case c.op == sessionHTTP:
		path, header = "/session", negotiateHeader(token)
	case c.op == tokenHTTP:
		path, header = "/token", negotiateHeader(token)
	}
	resp, _, err := c.exchange("GET", path, header, nil)
	if err != nil {
		return err
	}
	if cookies := resp.Cookies(); c.op == sessionHTTP && c.cookie == "" {
		if len(cookies) != 1 {
			return fmt.Errorf("%d cookies in an answer that has to begin a session", len(cookies))
		}
		c.cookie = cookies[0].Name + "=" + cookies[0].Value
	}
	return nil
}

// negotiateHeader is the header that browsers send: the token in SPNEGO's first one.
func negotiateHeader(token []byte) string {
	mechs := der.AppendValue(nil, der.Sequence, der.AppendValue(nil, der.ObjectID, []byte(mech.KRB5)))
	init := &spnego.NegTokenInit{MechTypes: mechs, MechToken: token}
	return "Authorization: Negotiate " + base64.StdEncoding.EncodeToString(init.Append(nil)) + "\r\n"
}

func (c *child) usage(path string, body []byte) (u usage, err error) {
	_, answer, err := c.exchange("POST", path, "", body)
	if err == nil {
		err = json.Unmarshal(answer, &u)
	}
	return u, err
}

// exchange makes one request. It is written and read here, because http.Client would take as long
// as the server that is measured.
func (c *child) exchange(method, path, header string, body []byte) (*http.Response, []byte, error) {
	if body != nil {
		header += fmt.Sprintf("Content-Length: %d\r\n", len(body))
	}
	request := method + " " + path + " HTTP/1.1\r\nHost: " + lab.Host + "\r\n" + header + "\r\n"
	if _, err := c.conn.Write(append([]byte(request), body...)); err != nil {
		return nil, nil, err
	}
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, answer)
	}
	return resp, answer, err
}

// serveProgram is the child: an HTTP server until its standard input ends, which accepts contexts
// when it is sent tokens, and for the cases of HTTP has handlers.
func serveProgram(socket, conns string) error {
	n, err := strconv.Atoi(conns)
	if err != nil {
		return err
	}
	daemon := interposer.New(socket, interposer.Options{MaxConns: n})
	defer daemon.Close()
	hello := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello\n") })
	mux := http.NewServeMux()
	mux.Handle("GET /plain", hello)
	key := make([]byte, 32)
	rand.Read(key)
	session := &negotiate.CookieSession{Keys: [][]byte{key}}
	mux.Handle("GET /session", (&negotiate.Authenticator{Daemon: daemon, Session: session}).Wrap(hello))
	mux.Handle("GET /token", (&negotiate.Authenticator{Daemon: daemon}).Wrap(hello))
	mux.HandleFunc("POST /usage", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, used)
	})
	mux.HandleFunc("POST /accept", func(w http.ResponseWriter, r *http.Request) {
		answer(w, func() (usage, error) {
			var tokens [][]byte
			if err := gob.NewDecoder(r.Body).Decode(&tokens); err != nil {
				return usage{}, err
			}
			return acceptAll(r.Context(), daemon, tokens, n)
		})
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	server := &http.Server{Handler: mux}
	go func() {
		io.Copy(io.Discard, os.Stdin)
		server.Close()
	}()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func answer(w http.ResponseWriter, of func() (usage, error)) {
	u, err := of()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	json.NewEncoder(w).Encode(u)
}

// acceptAll accepts a context with each token, n at a time, and returns what that used.
func acceptAll(ctx context.Context, daemon *interposer.Client, tokens [][]byte, n int) (usage, error) {
	runtime.GC() // of what the tokens came in
	before, err := used()
	if err != nil {
		return usage{}, err
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, n)
	for i := range errs {
		wg.Go(func() {
			for errs[i] == nil {
				k := int(next.Add(1)) - 1
				if k >= len(tokens) {
					return
				}
				errs[i] = acceptOne(ctx, daemon, tokens[k])
			}
		})
	}
	wg.Wait()
	after, err := used()
	return after.since(before), errors.Join(append(errs, err)...)
}

// acceptOne accepts a context and forgets it when the client is known.
func acceptOne(ctx context.Context, daemon *interposer.Client, token []byte) error {
	s, _, err := daemon.AcceptSecContext(ctx, interposer.AcceptRequest{Token: token})
	if err != nil {
		return err
	}
	defer s.Close()
	p, err := s.Peer()
	if err == nil && p.Name.Display != "alice@"+lab.Name {
		err = fmt.Errorf("accepted %s", p)
	}
	return err
}
