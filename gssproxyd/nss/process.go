package nss

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"gssproxyd/conf"
	"gssproxyd/xdr"
)

// The conversation over the helper's standard input and output: records of a length (32 bits,
// big-endian) and so many bytes of XDR.
//
//	question: id, kind, milliseconds it may take, key
//	answer:   id, status, text of an error, name, uid, gid, number of groups, groups ...
//
// Answers come in any order. One with the id 0, which no question has, is why the helper could not
// become another user than the daemon's.
const (
	statusFound = iota
	statusNoUser
	statusNoGroup
	statusFailed
)

const (
	maxKey      = 1024
	maxQuestion = 2 * maxKey
	maxGroups   = 65536 // NGROUPS_MAX
	maxAnswer   = 4*maxGroups + 8*maxKey
)

// errDead means that the helper ended before it answered.
var errDead = errors.New("the name service helper ended")

// errLate means that the time for a question was over before it could be put.
var errLate = errors.New("the name service has no time left for an answer")

// helper is a running helper.
type helper struct {
	process Process
	in      *os.File
	out     *os.File
	log     *slog.Logger

	mu       sync.Mutex
	id       uint32
	waiting  map[uint32]chan answer // by id of the question; each holds one answer
	answered int                    // how many answers there were
	done     chan struct{}          // closed when it answers no more
	err      error                  // why, once done is closed
}

// start starts a helper.
func start(o *Options) (*helper, error) {
	in, inOurs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	outOurs, out, err := os.Pipe()
	if err != nil {
		inOurs.Close()
		return nil, err
	}
	defer out.Close()
	process, err := o.Start(o.Urgent, in, out)
	if err != nil {
		inOurs.Close()
		outOurs.Close()
		return nil, err
	}
	h := &helper{process: process, in: inOurs, out: outOurs, log: o.Log, waiting: map[uint32]chan answer{}, done: make(chan struct{})}
	go h.read()
	return h, nil
}

// read takes answers until there are no more, and then sees to the helper's end.
func (h *helper) read() {
	err := h.answers(bufio.NewReader(h.out))
	h.hangUp()
	end, ended := h.process.End()
	if !ended {
		h.log.Error("the name service helper does not end, and is left alone", "pid", h.process.PID(), "error", end)
	}
	if err == io.EOF || errors.Is(err, os.ErrClosed) {
		err = errDead
		if end != nil {
			err = fmt.Errorf("%w: %w", errDead, end)
		}
	}
	h.mu.Lock()
	h.err = err
	h.mu.Unlock()
	close(h.done)
}

// hangUp ends the conversation, and read then the helper.
func (h *helper) hangUp() {
	h.in.Close()
	h.out.Close()
}

func (h *helper) answers(r *bufio.Reader) error {
	warned := false
	for {
		b, err := readRecord(r, maxAnswer)
		if err != nil {
			return err
		}
		id, a, err := parseAnswer(b)
		if err != nil {
			return err
		}
		if id == 0 && !warned {
			warned = true
			h.log.Warn("the name service helper runs as this daemon's user", "error", a.err)
		}
		h.mu.Lock()
		waiting := h.waiting[id]
		delete(h.waiting, id)
		h.answered++
		h.mu.Unlock()
		if waiting != nil {
			waiting <- a
		}
	}
}

// grace returns how much longer than a question may take its answer is waited for. On a host where answers
// come late, questions are given more time, and so are the answers.
func grace(left time.Duration) time.Duration { return max(500*time.Millisecond, left/8) }

// ask puts one question and waits for its answer. The helper sees to the question's time. One that
// has answered nothing since is of no more use and is killed; a slow one on a busy host is left to
// the others who wait for it.
func (h *helper) ask(ctx context.Context, q question) (Account, error) {
	deadline, _ := ctx.Deadline()
	left := time.Until(deadline)
	if left < time.Millisecond {
		// The context may not have noticed yet: its own error can still be nil, and an account of
		// uid 0 go with it.
		return Account{}, errLate
	}
	reply := make(chan answer, 1)
	h.mu.Lock()
	h.id++
	id := h.id
	h.waiting[id] = reply
	answered := h.answered
	b := appendRecord(nil, func(b []byte) []byte {
		b = xdr.AppendUint32(b, id)
		b = xdr.AppendUint32(b, uint32(q.kind))
		b = xdr.AppendUint32(b, uint32(left/time.Millisecond))
		return xdr.AppendString(b, q.key)
	})
	// The helper always reads, so this does not wait unless it hangs; and a question is shorter
	// than PIPE_BUF, so it goes as one or not at all.
	h.in.SetWriteDeadline(deadline)
	_, err := h.in.Write(b)
	h.mu.Unlock()
	if err != nil {
		h.hangUp()
	}
	timer := time.NewTimer(left + grace(left))
	defer timer.Stop()
	select {
	case a := <-reply:
		return a.account, a.err
	case <-h.done:
		return Account{}, h.err
	case <-timer.C:
		h.mu.Lock()
		delete(h.waiting, id)
		hangs := h.answered == answered
		h.mu.Unlock()
		if hangs {
			h.hangUp()
		}
		return Account{}, fmt.Errorf("the name service helper gave no answer within %v", left.Round(10*time.Millisecond))
	}
}

func (h *helper) alive() bool {
	select {
	case <-h.done:
		return false
	default:
		return true
	}
}

// stop ends the helper: it goes when its input ends, and takes what it runs with it.
func (h *helper) stop() {
	h.in.Close()
	timer := time.NewTimer(2 * time.Second)
	defer timer.Stop()
	select {
	case <-h.done:
	case <-timer.C:
		h.hangUp()
		<-h.done
	}
}

// appendRecord appends a record with what body appends.
func appendRecord(b []byte, body func([]byte) []byte) []byte {
	n := len(b)
	b = body(append(b, 0, 0, 0, 0))
	xdr.AppendUint32(b[n:n], uint32(len(b)-n-4))
	return b
}

// readRecord returns the content of the next record, io.EOF if there is none.
func readRecord(r *bufio.Reader, limit int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if err == io.ErrUnexpectedEOF {
			err = io.EOF
		}
		return nil, err
	}
	n := int(xdr.NewDecoder(head[:]).Uint32())
	if n > limit {
		return nil, fmt.Errorf("a record of the name service helper has %d bytes, at most %d expected", n, limit)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, io.EOF
	}
	return b, nil
}

func appendAnswer(b []byte, id uint32, a Account, err error) []byte {
	status, text := uint32(statusFound), ""
	switch {
	case errors.Is(err, conf.ErrNoUser):
		status = statusNoUser
	case errors.Is(err, conf.ErrNoGroup):
		status = statusNoGroup
	case err != nil:
		status, text = statusFailed, err.Error()
		text = text[:min(len(text), maxKey)]
	}
	return appendRecord(b, func(b []byte) []byte {
		b = xdr.AppendUint32(b, id)
		b = xdr.AppendUint32(b, status)
		b = xdr.AppendString(b, text)
		b = xdr.AppendString(b, a.Name)
		b = xdr.AppendUint32(b, a.UID)
		b = xdr.AppendUint32(b, a.GID)
		b = xdr.AppendUint32(b, uint32(len(a.Groups)))
		for _, g := range a.Groups {
			b = xdr.AppendUint32(b, g)
		}
		return b
	})
}

func parseAnswer(b []byte) (id uint32, a answer, err error) {
	d := xdr.NewDecoder(b)
	id = d.Uint32()
	status, text := d.Uint32(), string(d.OpaqueMax(maxKey))
	a.account = Account{Name: string(d.OpaqueMax(maxKey)), UID: d.Uint32(), GID: d.Uint32()}
	if n := d.Count(4); n > 0 {
		a.account.Groups = make([]uint32, n)
		for i := range a.account.Groups {
			a.account.Groups[i] = d.Uint32()
		}
	}
	switch {
	case d.Err() != nil:
		return 0, answer{}, fmt.Errorf("an answer of the name service helper is malformed: %w", d.Err())
	case status == statusNoUser:
		a = answer{err: conf.ErrNoUser}
	case status == statusNoGroup:
		a = answer{err: conf.ErrNoGroup}
	case status != statusFound:
		a = answer{err: errors.New(text)}
	case a.account.Name == "":
		return 0, answer{}, errors.New("an answer of the name service helper is malformed: an entry without a name")
	}
	return id, a, nil
}
