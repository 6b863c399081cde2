package stores

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"gssproxyd/gssproxyd/nss"
	"gssproxyd/mech/reason"
)

// How a store is asked.
const (
	pollSeconds  = 60 // that it may take to answer, when there is nothing new
	pollTimeout  = (pollSeconds + 30) * time.Second
	otherTimeout = 15 * time.Second // of connecting, and of acknowledging
	maxAnswer    = 16 << 20
	soonest      = time.Second // between two polls of which the first has brought nothing at once
)

// How long it is until a store is asked again that has not answered: by chance, and at first within
// pauseLeast, later and later up to pauseMost. A store that was there a moment ago has left a whole
// fleet, which is not to come to it, or to the next one, at once: it is spread over spread at first.
const (
	pauseLeast = 100 * time.Millisecond
	pauseMost  = 30 * time.Second
	spread     = 5 * time.Second
)

// backoff is the pauses between attempts that fail.
type backoff struct{ window time.Duration }

// next returns the next pause. left is whether the store was there until now.
func (b *backoff) next(left bool) time.Duration {
	switch {
	case left:
		b.window = spread
	case b.window == 0:
		b.window = pauseLeast
	}
	pause := pauseLeast + rand.N(b.window)
	b.window = min(2*b.window, pauseMost-pauseLeast)
	return pause
}

// Help is the helper: it gives up its privileges, and asks the stores that it is told of until its
// conversation with the daemon ends, which is when the daemon does. It closes the file.
func Help(conversation *os.File) error {
	conn, err := net.FileConn(conversation)
	conversation.Close()
	if err != nil {
		return fmt.Errorf("%s is for the daemon to start: %w", HelperArg, err)
	}
	defer conn.Close()
	// The daemon decides when to go. The signals of a service manager reach all of its processes.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	if err := nss.BecomeNobody(); err != nil {
		say := userOther
		if os.Geteuid() == 0 {
			say = userRoot
		}
		if bad := writeMessage(conn, &report{User: say}); bad != nil || say == userRoot {
			return cmp.Or(bad, err)
		}
	}
	return help(conn)
}

// help asks the stores that it is told of.
func help(conn net.Conn) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	h := &helper{conn: conn, askers: make(map[string]*asker)}
	defer h.asking.Wait()
	defer cancel()
	for {
		o := new(order)
		if err := readMessage(conn, o); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		a := h.askers[o.Store]
		if a == nil {
			a = newAsker(h, o.Store)
			h.askers[o.Store] = a
			a.told(o)
			h.asking.Go(func() { a.run(ctx) })
			continue
		}
		a.told(o)
	}
}

type helper struct {
	conn    net.Conn
	writing sync.Mutex
	askers  map[string]*asker
	asking  sync.WaitGroup
}

// asker asks one store.
type asker struct {
	h     *helper
	store string

	mu      sync.Mutex
	how     *how // another one when it is new
	have    map[string]have
	answers uint64
	changed chan struct{} // closed, and another one, with each order

	// The goroutine's own.
	waits   bool // the store has answered, and may take its time for the next answer
	client  *http.Client
	made    *how // that the client is made of
	url     int  // the next one
	reports uint64
	closes  bool // the last answer has ended its connection
	acked   map[string]mark
}

func newAsker(h *helper, store string) *asker {
	return &asker{h: h, store: store, how: new(how), have: make(map[string]have), changed: make(chan struct{}), client: new(http.Client)}
}

func (a *asker) told(o *order) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if o.How != nil {
		a.how = o.How
	}
	for _, h := range o.Have {
		a.have[h.Principal] = h
	}
	for _, principal := range o.Gone {
		delete(a.have, principal)
	}
	a.answers = o.Answers
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *asker) now() (h *how, answers uint64, changed <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.how, a.answers, a.changed
}

// entries are those that the host is to have, by principal.
func (a *asker) entries() []have {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.SortedFunc(maps.Values(a.have), func(x, y have) int { return strings.Compare(x.Principal, y.Principal) })
}

// run asks until ctx ends.
func (a *asker) run(ctx context.Context) {
	defer func() { a.client.CloseIdleConnections() }()
	var failing backoff
	for ctx.Err() == nil {
		h, _, changed := a.now()
		if len(h.URLs) == 0 {
			select {
			case <-ctx.Done():
			case <-changed:
			}
			continue
		}
		began, waited := time.Now(), a.waits
		n, err := a.round(ctx, h, changed)
		if errors.Is(err, errChanged) {
			a.waits = false // what is new in the order is answered at once, be it that there is nothing
			continue
		}
		a.waits = err == nil
		if a.report(ctx, &report{Contact: contactOf(h, a.url, n, err)}) != nil {
			return
		}
		var pause time.Duration
		if err == nil {
			failing = backoff{}
			switch {
			case n.ends: // the next one knows more, or this one when it was started again
				a.url++
				pause = soonest + rand.N(soonest)
			case n.brought == 0 && waited && time.Since(began) < soonest:
				pause = soonest/2 + rand.N(soonest/2)
			}
		} else {
			a.url++
			pause = failing.next(waited)
			if said, ok := errors.AsType[*answered](err); ok && len(h.URLs) == 1 {
				pause = min(pause+said.after, pauseMost)
			}
		}
		next, _, changed := a.now()
		if next != h {
			continue
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// errChanged means that there is another order, and the store was not asked to the end.
var errChanged = errors.New("there is another order")

// news is what a poll has brought.
type news struct {
	brought int
	ends    bool // who has answered is being stopped
	refused []refusedByThem
}

func contactOf(h *how, at int, n news, err error) *contact {
	c := &contact{URL: h.URLs[at%len(h.URLs)], Refused: n.refused}
	if err == nil {
		return c
	}
	c.Error, c.Hint = err.Error(), h.hint(err)
	if u, ok := errors.AsType[*url.Error](err); ok { // which repeats the URL
		c.Error = u.Err.Error()
	}
	c.Error = cmp.Or(c.Error, "it does not answer")
	said, refuses := errors.AsType[*answered](err)
	c.Orderly = refuses && said.ends || errors.Is(err, io.EOF)
	return c
}

// hint says what to do about an error of asking.
func (h *how) hint(err error) string {
	if h.Wrong != "" {
		return h.Hint
	}
	if said, ok := errors.AsType[*answered](err); ok {
		return cmp.Or(said.hint, "see that url is that of keystored")
	}
	if wrong, ok := errors.AsType[x509.CertificateInvalidError](err); ok && wrong.Reason == x509.Expired {
		return "renew the store's certificate; or set the clock of this host if it is wrong"
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "ca is to have the authority that has signed the store's certificate"
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "url is to have a name that is in the store's certificate"
	}
	if _, ok := errors.AsType[*revokedError](err); ok {
		return "if that store was retired, take its url away; if not, give it another certificate, or bring a newer list"
	}
	if _, ok := errors.AsType[tls.AlertError](err); ok {
		return "the store does not take this host's certificate: its log says why; see cert, and there client_ca and crl"
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return "correct the name in url, or the DNS"
	}
	return "see that keystored runs there, and that nothing between is in the way"
}

// round polls the store once, hands on what it sends, and acknowledges what the daemon has loaded.
func (a *asker) round(ctx context.Context, h *how, changed <-chan struct{}) (n news, err error) {
	if h.Wrong != "" {
		return n, errors.New(h.Wrong)
	}
	if err := a.prepare(h); err != nil {
		return n, err
	}
	if err := a.acknowledge(ctx, h); err != nil {
		return n, err
	}
	poll, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	interrupted := make(chan struct{})
	go func() { // ends with the poll
		select {
		case <-changed:
			close(interrupted)
			cancel()
		case <-poll.Done():
		}
	}()
	var answer struct {
		Deliveries []json.RawMessage `json:"deliveries"`
		Refused    []refusedByThem   `json:"refused"`
	}
	question := struct {
		Have []have `json:"have"`
		Wait int    `json:"wait_seconds"`
	}{Have: a.entries()}
	for i := range question.Have {
		question.Have[i].Refused = false // for the daemon and us to know
	}
	if a.waits {
		question.Wait = pollSeconds
	}
	err = a.post(poll, h, "/v1/watch", question, &answer)
	if err != nil {
		select {
		case <-interrupted:
			return n, errChanged
		default:
			return n, err
		}
	}
	cancel()
	n.refused, n.ends = answer.Refused, a.closes
	for _, d := range answer.Deliveries {
		n.brought++
		if err := a.report(ctx, &report{Delivery: d}); err != nil {
			return n, err
		}
	}
	if h, _, _ = a.now(); h.Wrong == "" {
		err = a.acknowledge(ctx, h)
	}
	return n, err
}

// report tells the daemon, and waits for the order that answers.
func (a *asker) report(ctx context.Context, r *report) error {
	r.Store = a.store
	a.h.writing.Lock()
	err := writeMessage(a.h.conn, r)
	a.h.writing.Unlock()
	if err != nil {
		return err
	}
	a.reports++
	for {
		_, answers, changed := a.now()
		if answers >= a.reports {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// maxInForce is how many entries are acknowledged at a time.
const maxInForce = 64

// acknowledge tells the store of what the daemon has loaded that it was not told of. What it refuses is
// told again with the next poll.
func (a *asker) acknowledge(ctx context.Context, h *how) error {
	list := slices.DeleteFunc(a.entries(), func(e have) bool {
		return e.Refused || e.mark == (mark{}) || a.acked[e.Principal] == e.mark
	})
	for some := range slices.Chunk(list, maxInForce) {
		noted, err := a.acknowledgeAll(ctx, h, some)
		if said, refused := errors.AsType[*answered](err); refused && said.after > 0 {
			return nil // which holds for the others too
		} else if err != nil && !refused {
			return err
		}
		if a.acked == nil {
			a.acked = make(map[string]mark)
		}
		for _, e := range some {
			if slices.Contains(noted, e.Principal) {
				a.acked[e.Principal] = e.mark
			}
		}
	}
	return nil
}

// acknowledgeAll tells the store of some entries, in one request if it takes that, and returns those
// that it is not to be told of again.
func (a *asker) acknowledgeAll(ctx context.Context, h *how, list []have) (noted []string, err error) {
	type inForce struct {
		Principal string `json:"principal"`
		mark
	}
	var all struct {
		InForce []inForce `json:"in_force"`
	}
	for _, e := range list {
		all.InForce = append(all.InForce, inForce{e.Principal, e.mark})
	}
	post := func(question, answer any) error {
		ctx, cancel := context.WithTimeout(ctx, otherTimeout)
		defer cancel()
		return a.post(ctx, h, "/v1/acknowledge", question, answer)
	}
	if len(list) > 1 {
		var answer struct {
			Noted   []string        `json:"noted"`
			Refused []refusedByThem `json:"refused"`
		}
		err := post(all, &answer)
		noted = answer.Noted
		for _, r := range answer.Refused {
			if toldOnce(r.Reason) {
				noted = append(noted, r.Principal)
			}
		}
		said, refused := errors.AsType[*answered](err)
		if _, other := errors.AsType[*json.SyntaxError](err); !other && !(refused && said.reason == string(reason.StoreRequest)) {
			return noted, err
		} // it knows of one at a time only
	}
	for _, e := range all.InForce {
		err := post(e, nil)
		said, refused := errors.AsType[*answered](err)
		switch {
		case err != nil && (!refused || said.after > 0):
			return noted, err
		case err == nil || toldOnce(said.reason):
			noted = append(noted, e.Principal)
		}
	}
	return noted, nil
}

// toldOnce reports whether a store that refuses an acknowledgement for this reason is not to be told
// again: of an entry that the host has no right to it notes nothing.
func toldOnce(id string) bool { return id == string(reason.StoreNoRight) }

// answered is an answer of the store that is not what was asked for.
type answered struct {
	text, hint string
	reason     string        // the store's
	after      time.Duration // when it may be asked again
	ends       bool          // it ends, or is not ready: another one may be there
}

func (a *answered) Error() string { return a.text }

// answerOf returns what an answer says that is none.
func answerOf(res *http.Response, body []byte) *answered {
	a := &answered{text: "it answers " + res.Status}
	var said struct{ Reason, Text, Hint string }
	if json.Unmarshal(body, &said) == nil && said.Text != "" {
		a.text, a.hint, a.reason = fmt.Sprintf("it refuses: [%s] %s", said.Reason, said.Text), said.Hint, said.Reason
	}
	if seconds, err := strconv.ParseUint(res.Header.Get("Retry-After"), 10, 16); err == nil {
		a.after, a.ends = time.Duration(seconds)*time.Second, res.StatusCode == http.StatusServiceUnavailable
	}
	return a
}

// prepare makes the client, anew if the files are others.
func (a *asker) prepare(h *how) error {
	if m := a.made; m != nil && m.files.same(&h.files) {
		return nil
	}
	config, err := h.config()
	if err != nil {
		return err
	}
	a.client.CloseIdleConnections()
	a.made, a.client = h, &http.Client{
		Transport: &http.Transport{
			TLSClientConfig:     config,
			DialContext:         (&net.Dialer{Timeout: otherTimeout}).DialContext,
			TLSHandshakeTimeout: otherTimeout, MaxIdleConnsPerHost: 1, MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return nil
}

// post asks the store for one thing. answer is nil if what it says does not matter.
func (a *asker) post(ctx context.Context, h *how, path string, question, answer any) error {
	b, err := json.Marshal(question)
	if err != nil {
		return err
	}
	at := h.URLs[a.url%len(h.URLs)]
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(at, "/")+path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := a.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	a.closes = res.Close
	b, err = io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	switch {
	case err != nil:
		return err
	case len(b) > maxAnswer:
		return fmt.Errorf("its answer has more than %d bytes", maxAnswer)
	case res.StatusCode != http.StatusOK && !(answer == nil && slices.Contains([]int{http.StatusNoContent, http.StatusAccepted}, res.StatusCode)):
		return answerOf(res, b)
	case answer == nil:
		return nil
	}
	if err := json.Unmarshal(b, answer); err != nil {
		return fmt.Errorf("its answer is not what is expected: %w", err)
	}
	return nil
}
