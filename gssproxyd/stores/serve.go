package stores

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/limits"
)

// writeTimeout is how long the helper may take to read an order.
const writeTimeout = 5 * time.Second

// How soon a helper that has ended gets a successor: later and later, unless it lived for long.
const (
	pauseAtFirst = time.Second
	pauseAtMost  = time.Minute
)

// contactRate is of lines about a store that answers, or does not any more.
var contactRate = limits.Rate{Burst: 10, Every: time.Minute}

// serve has a helper running, and hears it, until ctx ends.
func (s *Stores) serve(ctx context.Context) {
	pause := pauseAtFirst
	for {
		started := time.Now()
		err := s.serveOne(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(started) > pauseAtMost {
			pause = pauseAtFirst
		}
		s.o.Log.Error("the helper that asks the key stores has ended: another one is started", "error", err, "in", pause)
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		pause = min(2*pause, pauseAtMost)
	}
}

// serveOne starts a helper and hears it until it ends, or ctx does.
func (s *Stores) serveOne(ctx context.Context) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "conversation")
	ours := os.NewFile(uintptr(pair[0]), "conversation")
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		theirs.Close()
		return err
	}
	defer conn.Close()
	process, err := s.o.Start(theirs)
	theirs.Close()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	err = s.converse(conn)
	conn.Close()
	end, ended := process.End()
	if !ended {
		s.o.Log.Error("the helper that asks the key stores does not end, and is left alone", "pid", process.PID(), "error", end)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		return cmp.Or(end, errors.New("the other end is gone"))
	}
	return err
}

// conversation is the one with a helper.
type conversation struct {
	s    *Stores
	conn net.Conn

	mu     sync.Mutex // of writing, and of what is below
	told   map[string]*told
	timers sync.WaitGroup // answers that are held back
	ended  chan struct{}
}

// told is what the helper knows of a store.
type told struct {
	answers uint64
	owed    bool      // a report has no answer yet
	polled  time.Time // when a report of the store's end of asking was answered last
	last    *order
}

// converse tells the helper what to ask for, and hears it until it ends.
func (s *Stores) converse(conn net.Conn) error {
	c := &conversation{s: s, conn: conn, told: make(map[string]*told), ended: make(chan struct{})}
	defer c.timers.Wait()
	defer close(c.ended)
	var telling sync.WaitGroup
	defer telling.Wait()
	stop := make(chan struct{})
	defer close(stop)
	telling.Go(func() {
		for {
			s.mu.Lock()
			changed := s.changed
			s.mu.Unlock()
			if c.tellAll() != nil {
				conn.Close()
				return
			}
			select {
			case <-changed:
			case <-stop:
				return
			}
		}
	})
	for first := true; ; first = false {
		var r report
		if err := readMessage(conn, &r); err != nil {
			return err
		}
		switch {
		case r.User != "" && first:
			if r.User == userRoot {
				return errors.New("it could not become another user than root, which takes CAP_SETUID and CAP_SETGID, and as root it asks nobody")
			}
			s.o.Log.Warn("the helper that asks the key stores runs as this daemon's user")
		case r.User != "":
			return errors.New("it says what it has said before")
		default:
			if err := c.hear(&r); err != nil {
				return err
			}
		}
	}
}

// hear takes a report, and answers it: later after what was refused, and not much more often than an
// honest helper asks.
func (c *conversation) hear(r *report) error {
	c.mu.Lock()
	t := c.told[r.Store]
	if t == nil || t.owed {
		c.mu.Unlock()
		return errors.New("it does not wait for answers, or knows stores that it was not told of")
	}
	t.owed = true
	c.mu.Unlock()
	var wait time.Duration
	if r.Contact != nil {
		c.s.contact(r.Store, r.Contact)
		wait = time.Until(t.polled.Add(c.s.betweenPolls))
		t.polled = time.Now()
	} else if !c.s.take(r.Store, r.Delivery) {
		wait = c.s.afterBad
	}
	answer := func() {
		c.mu.Lock()
		t.owed = false
		t.answers++
		c.mu.Unlock()
		if c.tell(r.Store, true) != nil {
			c.conn.Close()
		}
	}
	if wait <= 0 {
		answer()
		return nil
	}
	c.timers.Go(func() {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
			answer()
		case <-c.ended:
		}
	})
	return nil
}

// tellAll tells the helper of what has changed.
func (c *conversation) tellAll() error {
	c.s.mu.Lock()
	names := make([]string, 0, len(c.s.stores))
	for name := range c.s.stores {
		names = append(names, name)
	}
	c.s.mu.Unlock()
	c.mu.Lock()
	for name := range c.told {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	c.mu.Unlock()
	for _, name := range names {
		if err := c.tell(name, false); err != nil {
			return err
		}
	}
	return nil
}

// tell sends the order for a store, as an answer or if it is another than before.
func (c *conversation) tell(name string, answer bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.s.order(name) // under the lock: what is sent last is what holds
	t := c.told[name]
	if t == nil {
		t = new(told)
		c.told[name] = t
	}
	if o.Answers = t.answers; !answer && t.last != nil && t.last.same(o) {
		return nil
	}
	t.last = o
	c.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	return writeMessage(c.conn, o)
}

// same reports whether two orders say the same.
func (o *order) same(p *order) bool {
	return slices.Equal(o.URLs, p.URLs) && bytes.Equal(o.CA, p.CA) && bytes.Equal(o.Cert, p.Cert) && bytes.Equal(o.Key, p.Key) && o.Wrong == p.Wrong && slices.Equal(o.Have, p.Have)
}

// order is the one for a store as it is configured now.
func (s *Stores) order(name string) *order {
	o := &order{Store: name}
	s.mu.Lock()
	st := s.stores[name]
	if st != nil {
		for _, e := range st.entries {
			o.Have = append(o.Have, e.asked(s.o.Now()))
		}
	}
	s.mu.Unlock()
	if st == nil {
		return o
	}
	o.URLs = st.URLs
	for _, f := range []struct {
		key, path string
		content   *[]byte
	}{{"ca", st.CA, &o.CA}, {"cert", st.Cert, &o.Cert}, {"key", st.Key, &o.Key}} {
		var err error
		if *f.content, err = readPEM(f.path); err != nil && o.Wrong == "" {
			o.Wrong = fmt.Sprintf("%s of [store/%s]: %v", f.key, name, err)
		}
	}
	return o
}

// maxPEM bounds the file of a certificate or a key.
const maxPEM = 256 << 10

// readPEM returns the content of a file that an administrator has named.
func readPEM(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxPEM+1))
	switch {
	case err != nil:
		return nil, err
	case len(b) > maxPEM:
		return nil, fmt.Errorf("%s: it has more than %d bytes", path, maxPEM)
	case !bytes.Contains(b, []byte("-----BEGIN ")):
		return nil, fmt.Errorf("%s: it is no PEM file", path)
	}
	return b, nil
}

// contact notes how asking a store has ended.
func (s *Stores) contact(name string, r *contact) {
	s.mu.Lock()
	st := s.stores[name]
	if st == nil {
		s.mu.Unlock()
		return
	}
	was, first := st.lost, st.contact.IsZero()
	url := shown(r.URL)
	if st.lost = shown(r.Error); st.lost == "" {
		st.contact, st.url = s.o.Now(), url
		for _, e := range st.entries {
			i := slices.IndexFunc(r.Refused, func(one refusedByThem) bool { return one.Principal == e.principal })
			former := e.refused
			if e.refused = ""; i >= 0 {
				one := &r.Refused[i]
				e.refused = shown(fmt.Sprintf("[%s] %s; %s", one.Reason, one.Text, one.Hint))
				if e.refused != former {
					defer s.line(slog.LevelWarn, "a key store does not send an entry", "source", e.String(), "error", e.refused)
				}
			}
			if w := e.permission.Load().Withheld; w != nil && e.delivery == nil && e.bad == nil && e.refused != former {
				why := "nothing has come of it yet"
				if e.refused != "" {
					why = "the store says " + e.refused
				}
				e.permission.Store(noneYet(e.name, why))
			}
		}
	}
	lost := st.lost
	s.mu.Unlock()
	switch {
	case lost != "" && was == "":
		s.line(slog.LevelWarn, "no contact to a key store: the keys that are here stay in use", "store", name, "url", url, "error", lost)
	case lost == "" && (was != "" || first):
		s.line(slog.LevelInfo, "contact to a key store", "store", name, "url", url)
	}
}

// line writes a line that the helper has caused.
func (s *Stores) line(level slog.Level, msg string, args ...any) {
	s.o.Lines.Log(s.o.Log, level, uint32(os.Geteuid()), "key stores: "+msg, contactRate, s.o.Now(), msg, func() []any { return args })
}
