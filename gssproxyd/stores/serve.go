package stores

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"gssproxyd/gssproxyd/nss"
	"gssproxyd/limits"
)

// lookEvery is how often the files of stores are looked at.
const lookEvery = time.Second

// writeTimeout is how long the helper may take to read an order.
const writeTimeout = 5 * time.Second

// contactRate is of lines about a store that answers, or does not any more.
var contactRate = limits.Rate{Burst: 10, Every: time.Minute}

// serve has a helper running, and hears it, until ctx ends.
func (s *Stores) serve(ctx context.Context) {
	(&nss.Kept{
		Does: "asks the key stores", Start: s.o.Start, Log: s.o.Log,
		Serve: func(_ context.Context, conn net.Conn) error { return s.converse(conn) },
	}).Run(ctx)
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
	how     *how      // nil: it was told nothing
	have    map[string]have
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
		look := time.NewTicker(lookEvery)
		defer look.Stop()
		for {
			s.mu.Lock()
			changed := s.changed
			s.mu.Unlock()
			seen := s.stamps()
			if c.tellAll() != nil {
				conn.Close()
				return
			}
			for same := true; same; {
				select {
				case <-changed:
					same = false
				case <-look.C:
					same = slices.Equal(seen, s.stamps())
				case <-stop:
					return
				}
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
	tell := func() error { return c.tell(r.Store, true) }
	if r.Contact != nil {
		c.s.contact(r.Store, r.Contact)
		wait = time.Until(t.polled.Add(c.s.betweenPolls))
		t.polled = time.Now()
	} else {
		of, good := c.s.take(r.Store, r.Delivery)
		if !good {
			wait = c.s.afterBad
		}
		tell = func() error { return c.tellOf(r.Store, of) }
	}
	answer := func() {
		c.mu.Lock()
		t.owed = false
		t.answers++
		c.mu.Unlock()
		if tell() != nil {
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

// tell sends what is new of a store, as an answer or if there is anything.
func (c *conversation) tell(name string, answer bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.told[name]
	if t == nil {
		t = &told{have: make(map[string]have)}
		c.told[name] = t
	}
	o := &order{Store: name}
	how, list := c.s.order(name) // under the lock: what is sent last is what holds
	if t.how == nil || !t.how.same(how) {
		o.How, t.how = how, how
	}
	there := make(map[string]bool, len(list))
	for _, h := range list {
		there[h.Principal] = true
		t.tell(o, h, answer)
	}
	for principal := range t.have {
		if !there[principal] {
			o.Gone = append(o.Gone, principal)
			delete(t.have, principal)
		}
	}
	if !answer && o.How == nil && len(o.Have)+len(o.Gone) == 0 {
		return nil
	}
	return c.send(t, o)
}

// tellOf answers with what is new of some entries of a store.
func (c *conversation) tellOf(name string, of []*entry) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	t, o := c.told[name], &order{Store: name}
	for _, h := range c.s.asked(of) {
		t.tell(o, h, true)
	}
	return c.send(t, o)
}

// tell adds an entry to an order if something of it is new. That previous keys are used goes with the
// next answer.
func (t *told) tell(o *order, h have, answer bool) {
	was, known := t.have[h.Principal]
	if !answer {
		was.PreviousUsed, was.PreviousKVNO = h.PreviousUsed, h.PreviousKVNO
	}
	if !known || was != h {
		o.Have = append(o.Have, h)
		t.have[h.Principal] = h
	}
}

// send sends an order. c.mu is held.
func (c *conversation) send(t *told, o *order) error {
	o.Answers = t.answers
	c.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	return writeMessage(c.conn, o)
}

// order returns how a store is to be asked as it is configured now, and for what.
func (s *Stores) order(name string) (*how, []have) {
	s.mu.Lock()
	st := s.stores[name]
	s.mu.Unlock()
	if st == nil {
		return new(how), nil
	}
	f, wrong := s.filesOf(st)
	h := &how{URLs: st.URLs, files: *f}
	if wrong != nil {
		h.Wrong, h.Hint = fmt.Sprintf("%s of [store/%s]: %s", wrong.Key, name, wrong.Text), wrong.Hint
	}
	return h, s.asked(st.entries)
}

// asked returns what a store is to be told of entries.
func (s *Stores) asked(of []*entry) (list []have) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range of {
		list = append(list, e.asked(s.o.Now()))
	}
	return list
}

// quiet is for how long nothing is said of a store that has ended in order.
const quiet = 30 * time.Second

// contact notes how asking a store has ended.
func (s *Stores) contact(name string, r *contact) {
	s.working.Lock()
	defer s.working.Unlock()
	s.mu.Lock()
	st := s.stores[name]
	if st == nil {
		s.mu.Unlock()
		return
	}
	was, first, now := st.lost, st.contact.IsZero(), s.o.Now()
	url := shown(r.URL)
	if st.lost = r.Error; r.Error != "" && r.Hint != "" {
		st.lost += "; " + r.Hint
	}
	if st.lost = shown(st.lost); st.lost != "" && was == "" {
		st.since, st.orderly = now, r.Orderly
	}
	if st.lost == "" {
		st.contact, st.url = now, url
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
	lost, said := st.lost, st.said
	st.said = lost != "" && (said || !st.orderly || now.Sub(st.since) >= quiet)
	news := st.said != said
	s.wake()
	s.mu.Unlock()
	switch {
	case lost != "" && news:
		s.line(slog.LevelWarn, "no contact to a key store: the keys that are here stay in use", "store", name, "url", url, "error", shown(r.Error), "hint", shown(r.Hint))
	case lost == "" && (news || first):
		s.line(slog.LevelInfo, "contact to a key store", "store", name, "url", url)
	}
}

// line writes a line that the helper has caused.
func (s *Stores) line(level slog.Level, msg string, args ...any) {
	s.o.Lines.Log(s.o.Log, level, uint32(os.Geteuid()), "key stores: "+msg, contactRate, s.o.Now(), msg, func() []any { return args })
}
