package abuse

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jcmturner/gokrb5/v8/messages"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// abuse is a way to be in the way of others.
type abuse struct {
	name string
	do   func(h *hostile)
}

// abuses are what a caller does with the daemon, each for as long as its process lives.
var abuses = []abuse{
	{wellBehaved, saturate},
	{"connections", connections},
	{"buffers", halfRecords},
	{"unread replies", unreadReplies},
	{"ccache of 16 MiB", largeCcache},
	{"tickets that pile up", tickets},
	{"KDC", exchanges},
	{"name look-ups", lookups},
	{"log lines", beRefused},
	{"CPU", heavy},
}

// Of the abuses, the first is what the others are compared with; allAtOnce is all others.
const (
	wellBehaved = "well-behaved"
	allAtOnce   = "all at once"
)

// saturate is no abuse: ordinary accepts, as many as there is time for. The service has no replay
// cache.
func saturate(h *hostile) {
	arg := lab.AcceptArg(h.tokens[0], nil)
	h.loop(16, "good", func(w *lab.Wire, _ int) error { return h.call(w, xdr.ProcAcceptSecContext, arg) })
}

// connections holds as many connections as it gets, each of which has been served once.
func connections(h *hostile) {
	h.hold(20_000, func(w *lab.Wire) error { return h.call(w, xdr.ProcIndicateMechs, &xdr.ArgIndicateMechs{}) }, read)
}

// halfRecords has the daemon keep records that lack their last byte.
func halfRecords(h *hostile) {
	half := append([]byte{0x80, 0x10, 0, 0}, make([]byte, 1<<20-1)...)
	h.hold(200, func(w *lab.Wire) error {
		w.SetWriteDeadline(time.Now().Add(time.Second))
		_, err := w.Write(half)
		return err
	}, read)
}

// unreadReplies has the daemon keep replies that nobody reads.
func unreadReplies(h *hostile) {
	wrap := lab.Record(1, xdr.ProcWrap, h.wrap())
	h.hold(200, func(w *lab.Wire) error {
		w.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		for range 4 {
			if _, err := w.Write(wrap); errors.Is(err, os.ErrDeadlineExceeded) {
				break // nobody reads there either
			} else if err != nil {
				return err
			}
		}
		return nil
	}, write)
}

// largeCcache has the daemon read the caller's credential cache over and over.
func largeCcache(h *hostile) {
	h.loop(40, "sock", func(w *lab.Wire, _ int) error {
		return h.call(w, xdr.ProcAcquireCred, &xdr.ArgAcquireCred{CredUsage: xdr.CredInitiate})
	})
}

// tickets asks for tickets that must live longer each time, so that none that is there will do.
func tickets(h *hostile) {
	h.loop(8, "tickets", func(w *lab.Wire, i int) error {
		arg := initArg("svc0@" + lab.Host)
		arg.TimeReq = uint64(3600 + i)
		return h.call(w, xdr.ProcInitSecContext, arg)
	})
}

// exchanges asks for what the KDC refuses, and of a KDC that does not answer.
func exchanges(h *hostile) {
	h.loop(8, "tickets", func(w *lab.Wire, i int) error {
		return h.call(w, xdr.ProcInitSecContext, initArg(fmt.Sprintf("unknown%d-%d@%s", h.uid, i, lab.Host)))
	})
	for _, socket := range []string{"refused", "dead"} {
		h.loop(8, socket, func(w *lab.Wire, _ int) error {
			return h.call(w, xdr.ProcAcquireCred, &xdr.ArgAcquireCred{CredUsage: xdr.CredInitiate})
		})
	}
}

// lookups asks for the names of users, a different one each time.
func lookups(h *hostile) {
	h.loop(32, "sock", func(w *lab.Wire, i int) error {
		name := xdr.Name{DisplayName: strconv.AppendInt(nil, int64(h.uid)*10_000+int64(i), 10), NameType: []byte(mech.NTStringUID)}
		return h.call(w, xdr.ProcImportAndCanonName, &xdr.ArgImportAndCanonName{InputName: name, Mech: []byte(mech.KRB5)})
	})
}

// beRefused makes the daemon say no, in all the ways that are logged.
func beRefused(h *hostile) {
	for _, r := range h.refusals() {
		h.loop(4, r.socket, func(w *lab.Wire, _ int) error { return r.do(w) })
	}
}

// heavy asks for what costs the daemon most CPU time.
func heavy(h *hostile) {
	long := xdr.Name{DisplayName: bytes.Repeat([]byte("a"), 1<<19), NameType: []byte(mech.NTUserName)}
	local := []xdr.Option{{Option: []byte("localname\x00")}}
	for _, record := range [][]byte{
		lab.Record(1, xdr.ProcWrap, h.wrap()),
		lab.Record(1, xdr.ProcAcceptSecContext, lab.AcceptArg(h.large, nil)),
		lab.Record(1, xdr.ProcImportAndCanonName, &xdr.ArgImportAndCanonName{InputName: long, Mech: []byte(mech.KRB5), Options: local}),
	} {
		h.loop(4, "sock", func(w *lab.Wire, _ int) error { return h.send(w, record) })
	}
}

// large is a token whose ticket is as large as a record allows, and for a service that the keytab
// does not have, so that every key is tried.
func large(token []byte) ([]byte, error) {
	_, request, ok := bytes.Cut(token, []byte{0x01, 0x00}) // the frame's token id
	if !ok {
		return nil, errors.New("a token without a frame")
	}
	var r messages.APReq
	if err := r.Unmarshal(request); err != nil {
		return nil, err
	}
	r.Ticket.SName.NameString[0] = "unknown"
	r.Ticket.EncPart.Cipher = make([]byte, 1<<20-8<<10)
	b, err := r.Marshal()
	frame := append([]byte("\x06\x09"+mech.KRB5), 0x01, 0x00)
	return der.AppendValue(nil, der.Application(0), append(frame, b...)), err
}

// refusal is a call that is answered with a refusal, or not at all: with an error of the
// connection.
type refusal struct {
	reason string // in the log
	socket string
	do     func(w *lab.Wire) error
}

// refusals are the ways to be refused: as a caller of no service, with a token that was used
// before, with one that is none, and with what is no call.
func (c *caller) refusals() []refusal {
	accept := func(token []byte) func(w *lab.Wire) error {
		arg := lab.AcceptArg(token, nil)
		return func(w *lab.Wire) error { return c.call(w, xdr.ProcAcceptSecContext, arg) }
	}
	return []refusal{
		{"wrong-socket", "kernel", func(w *lab.Wire) error { return c.call(w, xdr.ProcIndicateMechs, &xdr.ArgIndicateMechs{}) }},
		{"replay", "sock", accept(c.tokens[1])},
		{"defective-token", "sock", accept([]byte("none"))},
		{"no RPC call", "sock", func(w *lab.Wire) error {
			_, err := w.Write([]byte{0x80, 0, 0, 4, 0, 0, 0, 1})
			if err == nil {
				_, err = w.Receive()
			}
			return err
		}},
	}
}

// caller is somebody who calls the daemon.
type caller struct {
	uid     uint32
	sockets string   // directory of them
	tokens  [][]byte // one for the service without a replay cache, one that was used before

	mu       sync.Mutex
	outcomes map[string]int // of calls, by the reason of the refusal
}

// connect connects as the caller. Where the queue of connections is full it waits, as a program in
// C would.
func (c *caller) connect(socket string) (*lab.Wire, error) {
	path := filepath.Join(c.sockets, socket)
	for {
		var w *lab.Wire
		var err error
		if c.uid != uint32(os.Geteuid()) {
			w, err = (&lab.Daemon{}).WireAs(lab.User{UID: c.uid, GID: c.uid}, path)
		} else {
			w, err = (&lab.Daemon{Socket: path}).Wire()
		}
		if !errors.Is(err, syscall.EAGAIN) {
			return w, err
		}
		time.Sleep(time.Millisecond)
	}
}

// call makes a call and notes what became of it. An error is of the connection.
func (c *caller) call(w *lab.Wire, proc xdr.Proc, arg xdr.Message) error {
	return c.send(w, lab.Record(1, proc, arg))
}

// send is call with a call's record.
func (c *caller) send(w *lab.Wire, record []byte) error {
	w.SetWriteDeadline(time.Now().Add(lab.WireTimeout))
	_, err := w.Write(record)
	var b []byte
	if err == nil {
		b, err = w.Receive()
	}
	outcome := "closed"
	if err == nil {
		outcome = reasonOf(b)
	} else if errors.Is(err, os.ErrDeadlineExceeded) {
		outcome = "no answer"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.outcomes[outcome]++
	return err
}

// reasonOf is the reason in a reply, "done" where there is none.
func reasonOf(reply []byte) string {
	d := xdr.NewDecoder(reply)
	var h xdr.ReplyHeader
	h.Decode(d)
	if !lab.Success(h.Reply) {
		return "RPC error"
	}
	var s xdr.Status
	s.Decode(d)
	text := string(bytes.TrimSuffix(s.MinorStatusString, []byte{0}))
	switch {
	case d.Err() != nil:
		return "garbage"
	case !mech.Major(s.MajorStatus).Failed():
		return "done"
	}
	id, _, _ := strings.Cut(strings.TrimPrefix(text, "["), "]")
	return id
}

// hostile is the caller of a process of its own.
type hostile struct {
	caller
	context  xdr.Ctx // an established one
	large    []byte  // a token
	kinds    int     // how many kinds of abuse it does at once
	starting sync.WaitGroup
	tries    atomic.Int64
}

// share is how many connections an abuse has that by itself has n, so that who does all at once has
// not many more.
func (h *hostile) share(n int) int {
	return max(1, n/h.kinds)
}

// wrap asks to wrap as much as a reply holds.
func (h *hostile) wrap() *xdr.ArgWrap {
	return &xdr.ArgWrap{ContextHandle: h.context, ConfReq: true, MessageBuffer: [][]byte{make([]byte, 1<<20-8<<10)}}
}

// most is how long a hostile process lives. Whoever has not been served by then, is served more
// easily.
const most = 2 * time.Minute

// run is a hostile process: it does what the environment says until its standard input ends. It
// says when it is at it, and at the end what it has done.
func run(kind string) error {
	h := &hostile{caller: caller{uid: uint32(os.Geteuid()), sockets: os.Getenv("ABUSE_SOCKETS"), outcomes: make(map[string]int)}}
	for word := range strings.FieldsSeq(os.Getenv("ABUSE_TOKENS")) {
		token, err := hex.DecodeString(word)
		if err != nil {
			return err
		}
		h.tokens = append(h.tokens, token)
	}
	if h.kinds = 1; kind == allAtOnce {
		h.kinds = len(abuses) - 1
	}
	var err error
	if h.large, err = large(h.tokens[0]); err != nil {
		return err
	}
	b, err := hex.DecodeString(os.Getenv("ABUSE_CONTEXT"))
	if err != nil {
		return err
	}
	d := xdr.NewDecoder(b)
	if h.context.Decode(d); d.Err() != nil {
		return d.Err()
	}
	for i, a := range abuses {
		if a.name == kind || kind == allAtOnce && i > 0 {
			a.do(h)
		}
	}
	ended := make(chan struct{})
	end := sync.OnceFunc(func() { close(ended) })
	time.AfterFunc(most, end)
	go func() {
		io.Copy(io.Discard, os.Stdin)
		end()
	}()
	h.starting.Wait()
	fmt.Println("at it")
	<-ended
	h.mu.Lock()
	defer h.mu.Unlock()
	return json.NewEncoder(os.Stdout).Encode(done{h.tries.Load(), h.outcomes})
}

// done is what a hostile process has done.
type done struct {
	Tries    int64
	Outcomes map[string]int
}

// loop does something over and over on n connections at once, each of which is made anew after an
// error.
func (h *hostile) loop(n int, socket string, once func(w *lab.Wire, i int) error) {
	for range h.share(n) {
		begun := h.begin()
		go func() {
			for {
				w, err := h.connect(socket)
				for err == nil {
					err = once(w, int(h.tries.Add(1)))
					begun()
				}
				if w != nil {
					w.Close()
				}
				time.Sleep(time.Millisecond)
			}
		}()
	}
}

// hold makes connections, does something on each, and keeps them until the daemon ends them: up to
// n at once, with a new one for each that is over.
func (h *hostile) hold(n int, first, keep func(w *lab.Wire) error) {
	places := make(chan struct{}, n)
	for range h.share(4) {
		begun := h.begin()
		go func() {
			for {
				select {
				case places <- struct{}{}:
				default:
					begun() // as many as it wants
					places <- struct{}{}
				}
				h.tries.Add(1)
				w, err := h.connect("sock")
				if err == nil {
					if err = first(w); err == nil {
						go func() {
							w.SetDeadline(time.Time{})
							keep(w)
							w.Close()
							<-places
						}()
						continue
					}
					w.Close()
				}
				begun() // as many as it gets
				<-places
				time.Sleep(10 * time.Millisecond)
			}
		}()
	}
}

// begin notes that something is to be under way before the process says that it is at it. The
// function returned says that it is; it is after a second in any case, for what waits, say for a
// KDC, is under way as well.
func (h *hostile) begin() func() {
	h.starting.Add(1)
	begun := sync.OnceFunc(h.starting.Done)
	time.AfterFunc(time.Second, begun)
	return begun
}

// read waits for the end of a connection on which nothing comes, write for that of one that takes
// nothing.
func read(w *lab.Wire) error {
	_, err := w.Read(make([]byte, 1))
	return err
}

func write(w *lab.Wire) error {
	_, err := w.Write(make([]byte, 1))
	return err
}
