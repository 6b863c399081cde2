// Package nss asks the system's name service who a local user is: uid, gid and groups, and which
// gid a group has, from wherever nsswitch.conf(5) says.
//
// Name service modules (sssd, LDAP, winbind and many more) are libraries of C code that reads what
// a network says, and they take as long as the network does. Neither belongs into a process that
// holds keys. So a [Client] asks a helper: this very program, started again with no keys, no
// descriptors but a pipe each way, and no privileges, which runs getent(1) for every question that
// the files in /etc do not answer for good. A question has a deadline; questions do not wait for
// each other; a helper that dies is started again.
//
// Whoever asks pays: with a gate ([Options.Gate]) a new question is charged to the payer of its
// context ([limits.Payer]). Those for whom the kernel waits, and the daemon itself, have a Client
// of their own, with a helper and a cache that no caller can keep busy or fill.
package nss

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"gssproxyd/conf"
	"gssproxyd/limits"
	"gssproxyd/phase"
)

// Account is a user of this host.
type Account struct {
	Name     string // as the name service spells it
	UID, GID uint32
	Groups   []uint32 // all of them, GID first; nil if they were not asked for. Shared: read only
}

// Limits of a Client unless its Options say otherwise.
const (
	defaultTimeout = 6 * time.Second // the kernel gives up on us after ten

	foundFor  = time.Minute      // an answer is remembered
	absentFor = 15 * time.Second // and that there is no such user or group
	failedFor = 3 * time.Second  // and that there was no answer, so that a crowd need not wait one by one

	maxCached = 4096
	sampled   = 16 // of them, to find one that makes room
)

// Options of a Client. The zero value is what the daemon uses.
type Options struct {
	Start   StartFunc        // starts helpers; nil: StartChild
	Timeout time.Duration    // of one question; 0: 6 s
	Gate    *limits.Gate     // of questions that are not answered from the cache; nil: nobody pays
	Urgent  bool             // the helper goes before others: the kernel waits
	Phases  *phase.Clock     // times questions; nil: nobody wants to know
	Log     *slog.Logger     // helpers that die; nil: silent
	Now     func() time.Time // for the cache; nil: time.Now
}

// Client asks the name service. Its methods may be called from any goroutine.
type Client struct {
	o Options

	mu      sync.Mutex
	cache   map[question]*asking // those that are answered
	asked   map[question]*asking
	helper  *helper
	started time.Time
	closed  bool
}

// question is what the helper is asked.
type question struct {
	kind kind
	key  string
}

// kind is which part of the name service a question is for.
type kind uint32

const (
	account kind = iota + 1 // user by name, with groups
	user                    // user by name
	uid                     // user by uid
	group                   // group by name; the Account has its name and GID, and no UID
)

// what says in errors what is looked for.
func (k kind) what() string {
	if k == group {
		return "group"
	}
	return "user"
}

// absent is the error that there is none.
func (k kind) absent() error {
	if k == group {
		return conf.ErrNoGroup
	}
	return conf.ErrNoUser
}

// isAbsent reports whether an error is an answer: that there is no such user or group.
func isAbsent(err error) bool {
	return errors.Is(err, conf.ErrNoUser) || errors.Is(err, conf.ErrNoGroup)
}

// checkName returns an error unless the question, for a name, can be put to getent(1): that takes a
// leading - for an option.
func (q question) checkName() error {
	if q.key == "" || q.key[0] == '-' || len(q.key) > maxKey || strings.ContainsAny(q.key, ":\x00\n") {
		return fmt.Errorf("%s %.64q: %w", q.kind.what(), q.key, q.kind.absent())
	}
	return nil
}

// checkAnswer returns the answer to the question for a name, of which a and err were found.
func (q question) checkAnswer(a Account, err error) (Account, error) {
	switch {
	case err != nil || a.Name == q.key:
	case isNumber(q.key):
		err = q.kind.absent()
	case q.kind != account && !strings.EqualFold(a.Name, q.key):
		// Directories may ignore case, and answer with their own spelling.
		err = fmt.Errorf("the name service answers with %q", a.Name)
	}
	if err != nil {
		return Account{}, fmt.Errorf("%s %q: %w", q.kind.what(), q.key, err)
	}
	return a, nil
}

// isNumber reports whether getent(1) takes a name for a uid or gid, which it reads by strtoul(3):
// white space and a sign may stand before the digits. Of these names only the entry of that very
// name counts.
func isNumber(name string) bool {
	name = strings.TrimLeft(name, " \t\n\v\f\r")
	if name != "" && (name[0] == '+' || name[0] == '-') {
		name = name[1:]
	}
	return strings.Trim(name, "0123456789") == ""
}

type answer struct {
	account Account
	err     error
}

// asking is a question under way, for everybody who has it, and then its answer.
type asking struct {
	done chan struct{}
	answer
	until time.Time // when the answer is forgotten
}

// Start starts a helper. It goes on without one when that fails: the error says so, and each
// question tries again.
func Start(o Options) (*Client, error) {
	if o.Start == nil {
		o.Start = StartChild
	}
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	c := &Client{o: o, cache: map[question]*asking{}, asked: map[question]*asking{}}
	_, err := c.running()
	return c, err
}

// StartBy has helpers started by start from now on, and replaces the one that runs. On an error each
// question tries again.
func (c *Client) StartBy(start StartFunc) error {
	c.mu.Lock()
	h := c.helper
	c.helper, c.o.Start = nil, start
	c.mu.Unlock()
	if h != nil {
		h.stop()
	}
	_, err := c.running()
	return err
}

// Account returns the user with a name, and every group the user is in. The error wraps
// conf.ErrNoUser if the name service knows no such user. Any other means that it did not answer in
// time, or not sensibly.
func (c *Client) Account(ctx context.Context, name string) (Account, error) {
	return c.named(ctx, account, name)
}

// Forget forgets every answer, that there was none among them: what is asked from now on is looked
// up again.
func (c *Client) Forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.cache)
}

// UID implements conf.Users: the daemon asks, and pays.
func (c *Client) UID(name string) (uint32, error) { return c.uid(context.Background(), name) }

// Name implements conf.Users, likewise.
func (c *Client) Name(id uint32) (string, error) { return c.name(context.Background(), id) }

// GID implements conf.Users, likewise.
func (c *Client) GID(name string) (uint32, error) { return c.gid(context.Background(), name) }

// For returns the users and groups as whoever pays for what is done under ctx asks for them, for no
// longer than ctx lasts.
func (c *Client) For(ctx context.Context) conf.Users { return asker{c, ctx} }

// asker is a Client with the context of one call.
type asker struct {
	*Client
	ctx context.Context
}

func (a asker) UID(name string) (uint32, error) { return a.uid(a.ctx, name) }
func (a asker) Name(id uint32) (string, error)  { return a.name(a.ctx, id) }
func (a asker) GID(name string) (uint32, error) { return a.gid(a.ctx, name) }

func (c *Client) uid(ctx context.Context, name string) (uint32, error) {
	a, err := c.named(ctx, user, name)
	return a.UID, err
}

func (c *Client) gid(ctx context.Context, name string) (uint32, error) {
	a, err := c.named(ctx, group, name)
	return a.GID, err
}

func (c *Client) name(ctx context.Context, id uint32) (string, error) {
	a, err := c.ask(ctx, question{uid, strconv.FormatUint(uint64(id), 10)})
	if err == nil && a.UID != id {
		err = conf.ErrNoUser
	}
	if err != nil {
		return "", fmt.Errorf("uid %d: %w", id, err)
	}
	return a.Name, nil
}

func (c *Client) named(ctx context.Context, k kind, name string) (Account, error) {
	q := question{k, name}
	if err := q.checkName(); err != nil {
		return Account{}, err
	}
	return q.checkAnswer(c.ask(ctx, q))
}

// ask answers from the cache, or has the helper asked once for all who want to know the same.
func (c *Client) ask(ctx context.Context, q question) (Account, error) {
	c.mu.Lock()
	one := c.known(q)
	c.mu.Unlock()
	if one == nil {
		release, err := c.enter(ctx)
		if err != nil {
			return Account{}, err
		}
		if one = c.begin(q, release); one == nil {
			release()
			return Account{}, errClosed
		}
	}
	select {
	case <-one.done:
		return one.account, one.err
	case <-ctx.Done():
		return Account{}, fmt.Errorf("the name service has not answered yet: %w", context.Cause(ctx))
	}
}

// known returns the question if it is answered or under way. c.mu is held.
func (c *Client) known(q question) *asking {
	if one := c.cache[q]; one != nil && c.o.Now().Before(one.until) {
		return one
	}
	return c.asked[q]
}

// enter lets a new question in, which ends with release.
func (c *Client) enter(ctx context.Context) (release func(), err error) {
	if c.o.Gate == nil {
		return func() {}, nil
	}
	payer := limits.Payer(ctx)
	if err := c.o.Gate.Begin(ctx, payer); err != nil {
		return nil, err
	}
	return c.o.Gate.Hold(ctx, payer)
}

// begin puts a question that was let in, unless somebody else has meanwhile. It returns nil if
// there are none any more.
func (c *Client) begin(q question, release func()) *asking {
	c.mu.Lock()
	defer c.mu.Unlock()
	if one := c.known(q); one != nil {
		release()
		return one
	}
	if c.closed {
		return nil
	}
	one := &asking{done: make(chan struct{})}
	c.asked[q] = one
	go c.answer(q, one, release)
	return one
}

// answer gets the answer to one. It ends within the question's time: those who wait go before it
// when they have less.
func (c *Client) answer(q question, one *asking, release func()) {
	defer release()
	ctx, cancel := context.WithTimeout(context.Background(), c.o.Timeout)
	defer cancel()
	span := c.o.Phases.Begin()
	one.account, one.err = c.put(ctx, q)
	span.End(phase.NSS)
	keep := foundFor
	switch {
	case isAbsent(one.err):
		keep = absentFor
	case one.err != nil:
		keep = failedFor
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	one.until = c.o.Now().Add(keep)
	c.keep(q, one)
	delete(c.asked, q)
	close(one.done)
}

// keep remembers an answer. When there is no room, of a few others the one goes that would be
// forgotten first: those who ask for names that do not exist, or cannot be found, crowd out each
// other. c.mu is held.
func (c *Client) keep(q question, one *asking) {
	if len(c.cache) >= maxCached {
		var first question
		var until time.Time
		seen := 0
		for other, old := range c.cache { // in random order
			if seen == 0 || old.until.Before(until) {
				first, until = other, old.until
			}
			if seen++; seen == sampled {
				break
			}
		}
		delete(c.cache, first)
	}
	c.cache[q] = one
}

// put puts the question to the helper, and to another one if that dies over it.
func (c *Client) put(ctx context.Context, q question) (Account, error) {
	var err error
	for range 2 {
		var h *helper
		if h, err = c.running(); err != nil {
			return Account{}, err
		}
		var a Account
		if a, err = h.ask(ctx, q); !errors.Is(err, errDead) {
			return a, err
		}
	}
	return Account{}, err
}

var errClosed = errors.New("the name service is not asked any more: the daemon is stopping")

// restartAfter is how long a helper that died is not started again, so that one that cannot live
// does not keep the machine busy.
const restartAfter = time.Second

// running returns the helper, and starts one if there is none.
func (c *Client) running() (*helper, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return nil, errClosed
	case c.helper != nil && c.helper.alive():
		return c.helper, nil
	case c.helper != nil && time.Since(c.started) < restartAfter:
		return nil, fmt.Errorf("the name service helper has just died: %w", cmp.Or(c.helper.err, errDead))
	case c.helper != nil:
		c.o.Log.Error("the name service helper has died: starting another one", "error", c.helper.err)
	}
	c.started = time.Now()
	h, err := start(&c.o)
	if err != nil {
		return nil, fmt.Errorf("the name service helper cannot be started: %w", err)
	}
	c.helper = h
	return h, nil
}

// Close ends the helper and waits for its end, for a few seconds at most, and for every question
// under way, which ends with it.
func (c *Client) Close() {
	c.mu.Lock()
	c.closed = true
	h := c.helper
	var pending []*asking
	for _, one := range c.asked {
		pending = append(pending, one)
	}
	c.mu.Unlock()
	if h != nil {
		h.stop()
	}
	for _, one := range pending {
		<-one.done
	}
}
