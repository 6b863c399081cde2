package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"gssproxyd/openat"
)

const (
	// maxQueue is how many bytes of events may wait for the writer; it has as many at work.
	maxQueue = 4 << 20

	// An event that nobody waits for is written with those of this long after it, or of this many
	// bytes: what a line costs is mostly the write.
	gatherFor   = 5 * time.Millisecond
	gatherBytes = 256 << 10

	// patience is how long Record waits: for room in the queue, and for a line to be written where it
	// does that.
	patience = time.Second

	// endWait is how long Open waits for the disk, and Close and Reopen for the writer, which may be in a
	// write that does not return.
	endWait = 5 * time.Second

	// How often the head is logged, if there is a new one.
	headEvery = 5 * time.Minute
	headLines = 10_000

	// complainEvery is how often it is logged that events are lost.
	complainEvery = time.Minute
)

// Options are those of a [Log].
type Options struct {
	// Refuse has Record wait until the line was written, and fail where it was not. Without it an
	// event that cannot be written is lost and counted, and Record does not fail.
	Refuse bool

	// Waits is told when Record begins to wait, with its context. May be nil.
	Waits func(context.Context)

	// Log is the program's ordinary log: for heads of the chain, at level Info, and for losses. If it is
	// nil there is none.
	Log *slog.Logger
}

// Log is a log that is open. It is safe for concurrent use.
type Log struct {
	path   string
	refuse atomic.Bool
	waits  func(context.Context)
	log    *slog.Logger

	entries sync.Pool
	wake    chan struct{} // something is in the queue
	hurry   chan struct{} // and is to be written at once
	reopens chan chan error
	stop    chan struct{} // closed by Close
	done    chan struct{} // closed by the writer at its end

	mu         sync.Mutex
	queue      []*entry
	queued     int            // bytes
	held       map[uint32]int // of these by the uid whose event it is, without those that nobody has caused
	room       chan struct{}  // closed when the queue was taken; nil if nobody waits for that
	stuck      bool           // somebody has waited in vain since it was taken
	closed     bool
	lost       uint64 // since Open
	unsaid     uint64 // of these, no line says so yet
	complained time.Time
	silent     bool // a loss was logged, and not yet that it is over

	// The writer's.
	file      file
	tail      tail
	chain     chain
	torn      []byte // of the former file, until a line says so
	out       []byte
	batch     []*entry
	saidHead  uint64
	closeFile error
}

// entry is an event in the queue.
type entry struct {
	fields    []byte
	events    uint64     // that are lost without it
	waits     bool       // Record does
	written   chan error // if Record waits
	taken     bool       // by the writer
	withdrawn bool       // by Record, which has given up
}

// ErrClosed is of an event that came after Close.
var ErrClosed = errors.New("the audit log is closed")

// size is how much memory an entry takes in the queue.
func (n *entry) size() int { return cap(n.fields) }

// maxFree is how much memory an entry keeps for the next event.
const maxFree = 2 << 10

// free keeps an entry for later.
func (l *Log) free(n *entry) {
	if n.size() <= maxFree {
		l.entries.Put(n)
	}
}

// Why an event was not written.
var (
	errFull = errors.New("the queue of the audit log is full: writing is slow, or does not return")
	errSlow = errors.New("the event was not in the audit log in time")
)

// Open opens the log in a file, or makes one, and goes on with the chain that is there, or else in
// the file that was renamed from it last. It is an error if another process writes to it, or if others
// than root and this program's user could, or if the disk does not answer in some seconds.
func Open(path string, o Options) (*Log, error) {
	l, err := inTime(func() (*Log, error) { return open(path, o) })
	if err != nil {
		return nil, fmt.Errorf("audit log %s: %w", path, err)
	}
	go l.run()
	return l, nil
}

// errNotOpened says that a file was not opened in time.
var errNotOpened = errors.New("not opened: the disk does not answer")

// inTime opens a log and writes what it begins with, unless that takes too long. What is opened later is
// closed again.
func inTime(open func() (*Log, error)) (*Log, error) {
	type opened struct {
		*Log
		err error
	}
	done, late := make(chan opened), make(chan struct{})
	go func() { // until the disk answers, as the writer
		l, err := open()
		if err == nil {
			l.flush() // a file begins with a line
		}
		select {
		case done <- opened{l, err}:
		case <-late:
			if err == nil {
				l.file.Close()
			}
		}
	}()
	timer := time.NewTimer(endWait)
	defer timer.Stop()
	select {
	case o := <-done:
		return o.Log, o.err
	case <-timer.C:
		close(late)
		return nil, errNotOpened
	}
}

func open(path string, o Options) (*Log, error) {
	d, name, err := openat.Parent(path)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	f, err := openFile(d, name)
	if err != nil {
		return nil, err
	}
	l := newLog(diskFile{f}, o)
	l.path = path
	if err = lock(f); err == nil {
		err = l.resume(d, name)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return l, nil
}

// resume finds where the chain goes on: in the file that is open, or else after the former one.
func (l *Log) resume(d *openat.Dir, name string) (err error) {
	if l.tail, err = readTail(l.file); err != nil {
		return err
	}
	last := l.tail
	if last.seq == 0 {
		if last, l.torn, err = former(d, name); err != nil {
			return err
		}
	}
	if last.seq == 0 {
		l.log.Info("a new chain of audit lines begins", "file", l.path)
		return nil
	}
	l.chain.seq, l.chain.last = last.seq, last.hash
	return nil
}

// newLog returns a log without its writer.
func newLog(f file, o Options) *Log {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	l := &Log{
		log: o.Log, waits: o.Waits, file: f, chain: newChain(), held: make(map[uint32]int),
		wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1), reopens: make(chan chan error), stop: make(chan struct{}), done: make(chan struct{}),
	}
	l.refuse.Store(o.Refuse)
	l.entries.New = func() any { return &entry{written: make(chan error, 1)} }
	return l
}

// Record writes an event; one without a time is of now. It keeps nothing of e. It may wait for room in
// the queue, for a second at most: who causes many events waits for the disk, and others for him only
// when all is full. Where nothing was written all that second nobody waits until something is.
//
// Without [Options.Refuse] it returns nil: what cannot be written is counted, and a line says how much
// that was as soon as there can be one. With it the result says whether the line was written, and comes
// after another second at most, or when ctx is done; a line that is being written just then may yet be.
// It waits for the lines of decisions only: of what has happened, a line can say no other.
//
// The error is [ErrClosed], with or without, after Close.
func (l *Log) Record(ctx context.Context, e *Event) error {
	n, refuse := l.entries.Get().(*entry), l.refuse.Load()
	n.fields, n.events, n.waits, n.taken, n.withdrawn = l.encode(n.fields[:0], e), 1+e.Repeated, refuse && decides(e.Kind), false, false
	waits := n.waits // the writer has n then
	enough, err := l.enqueue(ctx, n, e.Caller)
	if err != nil {
		l.free(n)
		if err == ErrClosed {
			return err
		}
		l.complain(err)
		if refuse {
			return err
		}
		return nil
	}
	tell := l.wake
	if waits || enough {
		tell = l.hurry
	}
	select {
	case tell <- struct{}{}:
	default:
	}
	if !waits {
		return nil
	}
	l.wait(ctx)
	return l.await(ctx, n)
}

func (l *Log) wait(ctx context.Context) {
	if l.waits != nil {
		l.waits(ctx)
	}
}

// decides reports whether an event is a decision, which can still be another one when there is no line.
func decides(k Kind) bool {
	return k == CallAllowed || k == CallDenied || k == ConnectionDenied || k == ChangeBegun
}

func (l *Log) encode(b []byte, e *Event) []byte {
	if !e.Time.IsZero() {
		return appendFields(b, line{Event: e})
	}
	now := *e
	now.Time = time.Now()
	return appendFields(b, line{Event: &now})
}

// enqueue gives an entry to the writer, or counts it as lost. It reports whether the writer has enough
// to write.
func (l *Log) enqueue(ctx context.Context, n *entry, from *Caller) (enough bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed && !l.fits(n, from) {
		l.awaitRoom(ctx, n, from)
	}
	switch {
	case l.closed:
		return false, ErrClosed
	case !l.fits(n, from):
		l.lose(n.events)
		return false, errFull
	}
	l.queue = append(l.queue, n)
	l.queued += n.size()
	if from != nil {
		l.held[from.UID] += n.size()
	}
	return l.queued >= gatherBytes, nil
}

// fits reports whether there is room for an entry. Nobody has more in the queue than is free: one uid
// half of it, two a third each, and always something is left for others. The mutex is held.
func (l *Log) fits(n *entry, from *Caller) bool {
	free := maxQueue - l.queued - n.size()
	return free >= 0 && (from == nil || l.held[from.UID] <= free)
}

// awaitRoom waits for room. The mutex is held, but for the time of waiting.
func (l *Log) awaitRoom(ctx context.Context, n *entry, from *Caller) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for first := true; !l.stuck && !l.closed && !l.fits(n, from); first = false {
		if l.room == nil {
			l.room = make(chan struct{})
		}
		room := l.room
		l.mu.Unlock()
		l.wait(ctx)
		over := false
		select {
		case <-room:
		case <-ctx.Done():
			over = true
		case <-timer.C:
			over = true
		}
		l.mu.Lock()
		if over {
			l.stuck = l.stuck || first && ctx.Err() == nil && l.room == room
			return
		}
	}
}

// lose counts events that are not in the file and will not be. The mutex is held.
func (l *Log) lose(n uint64) {
	l.lost += n
	l.unsaid += n
}

// await waits for an entry to be written.
func (l *Log) await(ctx context.Context, n *entry) error {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	var why error
	select {
	case err := <-n.written:
		l.free(n)
		return err
	case <-ctx.Done():
		why = fmt.Errorf("%w: %w", errSlow, context.Cause(ctx))
	case <-timer.C:
		why = errSlow
	}
	l.mu.Lock()
	if n.withdrawn = !n.taken; n.withdrawn {
		l.lose(n.events)
	}
	l.mu.Unlock()
	select {
	case err := <-n.written: // just now
		return err
	default:
	}
	l.complain(why)
	return why // the writer has the entry, and lets go of it
}

// SetRefuse has the log be as if it had been opened with [Options.Refuse], or without.
func (l *Log) SetRefuse(refuse bool) { l.refuse.Store(refuse) }

// Lost returns how many events were not written since the log was opened.
func (l *Log) Lost() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost
}

// complain logs why events are lost, now and then.
func (l *Log) complain(err error) {
	now := time.Now()
	l.mu.Lock()
	say := now.Sub(l.complained) >= complainEvery
	if say {
		l.complained, l.silent = now, true
	}
	lost := l.lost
	l.mu.Unlock()
	if say {
		l.log.Error("events are missing from the audit log", "file", l.path, "error", err, "lost", lost)
	}
}

// Reopen goes on in a new file of the log's name, when the present one has been renamed. Where that
// fails, it goes on in the present one.
func (l *Log) Reopen() error {
	timer := time.NewTimer(endWait)
	defer timer.Stop()
	answer := make(chan error, 1)
	select {
	case l.reopens <- answer:
	case <-l.done:
		return ErrClosed
	case <-timer.C:
		return fmt.Errorf("%s: not reopened: the writer is in a write that does not return", l.path)
	}
	select {
	case err := <-answer:
		return err
	case <-timer.C:
		return fmt.Errorf("%s: not known to be reopened: that takes too long", l.path)
	}
}

// Close writes what is in the queue and the head, and closes the file.
func (l *Log) Close() error {
	l.mu.Lock()
	first := !l.closed
	l.closed = true
	l.mu.Unlock()
	if first {
		close(l.stop)
	}
	timer := time.NewTimer(endWait)
	defer timer.Stop()
	select {
	case <-l.done:
		return l.closeFile
	case <-timer.C:
		return fmt.Errorf("%s: not closed: the writer is in a write that does not return", l.path)
	}
}

// run is the writer.
func (l *Log) run() {
	defer close(l.done)
	heads := time.NewTicker(headEvery)
	defer heads.Stop()
	l.sayHead()
	for {
		select {
		case <-l.wake:
			l.gather()
			l.flush()
		case <-l.hurry:
			l.flush()
		case answer := <-l.reopens:
			l.flush()
			answer <- l.reopen()
		case <-heads.C:
			l.flush() // how many were lost, if there was no event since that could say it
			l.sayHead()
		case <-l.stop:
			l.flush()
			l.sayHead()
			l.closeFile = l.file.Close()
			return
		}
		if l.chain.seq >= l.saidHead+headLines {
			l.sayHead()
		}
	}
}

// gather waits for more to write.
func (l *Log) gather() {
	timer := time.NewTimer(gatherFor)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-l.hurry:
	case <-l.stop:
	}
}

// sayHead logs the head, if there is a new one.
func (l *Log) sayHead() {
	if l.chain.seq != l.saidHead {
		l.saidHead = l.chain.seq
		l.log.Info("head of the audit log", "file", l.path, "head", l.chain.head().String())
	}
}

// take makes what is in the queue the writer's batch, and returns how many are lost that no line has
// said.
func (l *Log) take() (unsaid uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.batch, l.queue = l.queue, l.batch[:0]
	l.queued, l.stuck = 0, false
	if len(l.held) > 1000 {
		l.held = make(map[uint32]int) // it stays as large as it was
	} else {
		clear(l.held)
	}
	if l.room != nil {
		close(l.room)
		l.room = nil
	}
	kept := l.batch[:0]
	for _, n := range l.batch {
		if n.taken = true; !n.withdrawn {
			kept = append(kept, n)
		}
	}
	clear(l.batch[len(kept):])
	l.batch = kept
	return l.unsaid
}

// flush writes what is in the queue, all in one write.
func (l *Log) flush() {
	unsaid := l.take()
	before := l.chain
	own, lostAt, err := l.build(unsaid)
	lines := 0
	if err == nil && len(l.out) > 0 {
		lines, err = l.write(before, own)
	}
	failed := uint64(0)
	for i, n := range l.batch {
		result := err
		if own+i < lines {
			result = nil
		} else {
			failed += n.events
		}
		if n.waits {
			n.written <- result // and it is Record's
		} else {
			l.free(n)
		}
	}
	clear(l.batch)
	if cap(l.out) > 1<<20 {
		l.out = nil
	}
	l.account(unsaid > 0 && lines > lostAt, unsaid, failed)
	if err != nil {
		l.complain(err)
	}
}

// account settles what a write has said of losses, and what it has lost.
func (l *Log) account(said bool, unsaid, failed uint64) {
	l.mu.Lock()
	if said {
		l.unsaid -= unsaid
	}
	l.lose(failed)
	over := l.silent && l.unsaid == 0
	if over {
		l.silent = false
	}
	lost := l.lost
	l.mu.Unlock()
	if over {
		l.log.Info("the audit log is complete again, but for those events", "file", l.path, "lost", lost)
	}
}

// build makes the next write of the batch: what the log has to say itself, and the events. It
// returns how many lines are the log's own, and which of them, from 0, says how many were lost.
func (l *Log) build(unsaid uint64) (own, lostAt int, err error) {
	l.out = l.out[:0]
	if l.tail.midline {
		l.out = append(l.out, '\n')
	}
	say := func(x line) {
		x.Time = time.Now()
		l.out = l.chain.append(l.out, appendFields(nil, x))
		own++
	}
	torn := l.tail.size > l.tail.end || len(l.torn) > 0
	var digest string
	if torn {
		if digest, err = l.tornDigest(); err != nil {
			return 0, 0, err
		}
	}
	switch {
	case l.tail.end > 0:
	case l.chain.seq == 0:
		say(line{Event: &Event{Kind: Begun}})
	default:
		prev := l.chain.last
		say(line{Event: &Event{Kind: Continued}, prev: prev[:]})
	}
	if torn {
		say(line{Event: &Event{Kind: Torn, Digest: digest}})
	}
	if lostAt = own; unsaid > 0 {
		say(line{Event: &Event{Kind: Lost}, lost: unsaid})
	}
	for _, n := range l.batch {
		l.out = l.chain.append(l.out, n.fields)
	}
	return own, lostAt, nil
}

// tornBytes returns what is behind the file's last line.
func (l *Log) tornBytes() ([]byte, error) {
	if l.tail.size-l.tail.end > maxTorn+maxLine {
		return nil, errors.New("too much behind the last line of the audit log; move it away")
	}
	b := make([]byte, l.tail.size-l.tail.end)
	_, err := l.file.ReadAt(b, l.tail.end)
	return b, err
}

// tornDigest returns the digest of all that is between the last line and the next one.
func (l *Log) tornDigest() (string, error) {
	b, err := l.tornBytes()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	h.Write(l.torn)
	h.Write(b)
	if l.tail.midline {
		h.Write([]byte{'\n'})
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// write writes what was built, and returns how many lines of it are in the file. Where it is not all,
// the file is cut behind the last of them, and the chain, which was before, goes on there.
func (l *Log) write(before chain, own int) (lines int, err error) {
	skip := 0
	if l.tail.midline {
		skip = 1
	}
	size := l.tail.size
	n, err := l.file.Write(l.out)
	l.tail.size += int64(n)
	if err == nil {
		l.tail.end, l.tail.midline, l.torn = l.tail.size, false, nil
		return bytes.Count(l.out[skip:], []byte{'\n'}), nil
	}
	l.chain = before
	got := l.out[:n]
	lines, end, last := wholeLines(got, skip)
	if 0 < lines && lines < own && l.file.Truncate(size) == nil {
		// What the log says itself belongs together.
		l.tail.size = size
		return 0, err
	}
	if n > 0 && skip > 0 && l.tail.end == size {
		l.tail.end++ // that was all the last line lacked
	}
	if lines > 0 {
		l.chain.seq, l.chain.last = last.seq, last.hash
		l.tail.end, l.torn = size+int64(end), nil
	}
	l.cut(size, got)
	return lines, err
}

// wholeLines counts the lines of a part of a write, behind the newline that it may begin with, and
// returns where they end and what the last one is. A line that lacks its newline alone is one.
func wholeLines(got []byte, skip int) (lines, end int, last whole) {
	for end = min(skip, len(got)); ; {
		line, _, ended := bytes.Cut(got[end:], []byte{'\n'})
		w, ok := parseWhole(line)
		if !ok {
			return lines, end, last
		}
		lines++
		last = w
		end += len(line)
		if ended {
			end++
		}
	}
}

// cut takes away what a failed write has left behind the last line, or else takes note of it. The
// size is that before the write.
func (l *Log) cut(size int64, got []byte) {
	midline := l.tail.midline && len(got) == 0
	if len(got) > 0 {
		midline = got[len(got)-1] != '\n'
	}
	now, err := l.file.Size()
	if err == nil && now != l.tail.size { // somebody else has cut it, or written
		l.tail.size, l.tail.end, l.tail.midline = now, min(l.tail.end, now), now > 0
		return
	}
	keep := max(size, l.tail.end)
	if keep < l.tail.size && err == nil && l.file.Truncate(keep) == nil {
		midline = l.tail.midline && keep == size
		l.tail.size = keep
	}
	l.tail.midline = midline
}

// reopen is Reopen, by the writer.
func (l *Log) reopen() error {
	next, err := l.next()
	if err != nil {
		return fmt.Errorf("audit log %s: %w; the former file is written on", l.path, err)
	}
	if next == nil {
		return nil
	}
	torn, _ := l.tornBytes()
	err = l.file.Close()
	l.file, l.tail, l.torn = diskFile{next}, tail{}, append(l.torn, torn...)
	l.flush()
	l.sayHead()
	return err
}

// next opens the new file of the log's name, nil if it is the one that is open.
func (l *Log) next() (*os.File, error) {
	d, name, err := openat.Parent(l.path)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	f, err := openFile(d, name)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && l.file.Is(st) {
		return nil, f.Close()
	}
	if err == nil {
		err = lock(f)
	}
	if err == nil {
		st, err = f.Stat()
	}
	if err == nil && st.Size() > 0 {
		err = errors.New("there are bytes in the new file already; move it away")
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
