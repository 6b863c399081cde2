package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"time"

	"gssproxyd/audit"
	"gssproxyd/keystore"
	"gssproxyd/mech/reason"
)

// maxHave bounds how many principals one watch is for.
const maxHave = 4096

// enrolled returns the host that the names in a certificate are of.
func (s *Server) enrolled(c *caller) (found *keystore.Host, err error) {
	for _, n := range c.names {
		h, err := s.o.Store.Known(n)
		if errors.Is(err, keystore.ErrNoHost) {
			continue
		} else if err != nil {
			return nil, err
		}
		if found != nil {
			return nil, refuse(http.StatusForbidden, reason.StoreCertificate, "the certificate names two hosts that are enrolled, %s and %s; one is expected", found.Name, h.Name)
		}
		found = h
	}
	switch {
	case found != nil:
		return found, nil
	case len(c.names) == 0:
		return nil, refuse(http.StatusForbidden, reason.StoreCertificate, "the certificate has no DNS name and no URI in it; the name of a host is expected there")
	}
	return nil, refuse(http.StatusForbidden, reason.StoreNotEnrolled, "no host is enrolled as %s", certificateName(c.chain[0]))
}

// watch is POST /v1/watch.
func (s *Server) watch(w http.ResponseWriter, r *http.Request, c *caller, h *keystore.Host) error {
	if !s.watches.take(h.Name) {
		return refuse(http.StatusTooManyRequests, reason.StoreRate, "host %s has %d watches at a time, or all hosts have too many", h.Name, watchesEach)
	}
	defer s.watches.give(h.Name)
	var asked Watch
	if err := decode(r, &asked, false); err != nil {
		return err
	}
	twice := make(map[string]bool)
	wait := time.Duration(asked.WaitSeconds) * time.Second
	switch {
	case wait < 0 || wait > MaxWait:
		return badRequest("wait_seconds is %d; 0 to %d is expected", asked.WaitSeconds, MaxWait/time.Second)
	case len(asked.Have) > maxHave:
		return badRequest("have has %d principals; at most %d are expected", len(asked.Have), maxHave)
	}
	for _, has := range asked.Have {
		if twice[has.Principal] {
			return badRequest("have has %s twice", has.Principal)
		}
		twice[has.Principal] = true
	}
	// The server would take the deadline of the body for the end of the client.
	http.NewResponseController(w).SetReadDeadline(time.Time{})
	ctx := r.Context()
	s.o.Store.Seen(h.Name)

	waiter := s.index.wait(asked.Have...)
	defer s.index.leave(waiter)
	if err := s.uses(ctx, c, h, asked.Have); err != nil {
		return err
	}
	if err := s.usesPrevious(ctx, c, h, asked.Have); err != nil {
		return err
	}
	timer := time.NewTimer(min(wait, c.conn.until.Sub(s.o.Certificates.now())+time.Millisecond))
	defer timer.Stop()
	touch := time.NewTicker(s.touchEvery)
	defer touch.Stop()
	for over := wait == 0; ; {
		if s.o.Store.InTouch().IsZero() { // another instance knows better, and is to hear of the host
			return refuse(http.StatusServiceUnavailable, reason.StoreUnavailable, "this keystored is out of touch with its backend")
		}
		_, changed := s.o.Certificates.current()
		if err := s.check(c); err != nil {
			return err
		}
		h, err := s.enrolled(c)
		if err != nil {
			return err
		}
		answer, err := s.differences(ctx, c, h, asked.Have, over)
		if err != nil {
			return err
		}
		if over || len(answer.Deliveries) > 0 {
			return reply(w, http.StatusOK, answer)
		}
		select {
		case <-waiter.woken:
		case <-changed:
		case <-touch.C:
		case <-timer.C:
			over = true
		case <-ctx.Done():
			// The host is gone, or this program ends: then it asks another one, and nothing has failed.
			w.Header().Set("Connection", "close")
			return reply(w, http.StatusOK, &Watched{Deliveries: []json.RawMessage{}, Refused: []Refused{}})
		}
	}
}

// touchEvery is how often a watch that waits looks whether its host is enrolled still, and this instance
// may speak for the store.
const touchEvery = 10 * time.Second

// uses notes which entries a host has use for, whatever it has of them: a rotation waits for such hosts
// also where only a pattern names them. It is noted once for each connection.
func (s *Server) uses(ctx context.Context, c *caller, h *keystore.Host, have []Have) error {
	var list []string
	for _, has := range have {
		known, there := s.index.entry(has.Principal)
		if !there || c.conn.uses[known.principal] || slices.Contains(known.policy.Hosts, h.Name) || !known.policy.Permits(h.Name) {
			continue
		}
		list = append(list, known.principal)
	}
	for some := range slices.Chunk(list, maxInForce) {
		marks := make(map[string]keystore.Mark, len(some))
		for _, principal := range some {
			marks[principal] = keystore.Mark{}
		}
		if err := s.acknowledged(ctx, h, marks); err != nil {
			return err
		}
		if c.conn.uses == nil {
			c.conn.uses = make(map[string]bool)
		}
		for principal := range marks {
			c.conn.uses[principal] = true
		}
	}
	return nil
}

// turns is how many requests of hosts ask the backend at a time. The others wait for their turn, and not
// for a backend that has thousands to answer and answers none in time.
const turns = 64

// turn calls f when it is a host's turn to ask the backend.
func (s *Server) turn(ctx context.Context, f func() error) error {
	select {
	case s.turns <- struct{}{}:
		defer func() { <-s.turns }()
		return f()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// entry reads an entry for a host.
func (s *Server) entry(ctx context.Context, principal string) (e *keystore.Entry, err error) {
	err = s.turn(ctx, func() (err error) {
		e, err = s.o.Store.Entry(ctx, principal)
		return err
	})
	return e, err
}

// acknowledged notes what a host has in force.
func (s *Server) acknowledged(ctx context.Context, h *keystore.Host, marks map[string]keystore.Mark) error {
	return s.turn(ctx, func() error { return s.o.Store.Acknowledge(ctx, h.Name, marks) })
}

// differences returns what the store has that a host has not, as much of it as an answer may hold. That
// there is nothing of some principals is no difference: it is said, and noted, when the answer is sent
// anyway.
func (s *Server) differences(ctx context.Context, c *caller, h *keystore.Host, have []Have, over bool) (*Watched, error) {
	answer := &Watched{Deliveries: []json.RawMessage{}, Refused: []Refused{}}
	size := 0
	for _, has := range have {
		known, there := s.index.entry(has.Principal)
		after := known.mark.Compare(has.Mark)
		switch {
		case !there:
			if err := checkPrincipal(has.Principal); err != nil {
				answer.refuse(has, err)
				continue
			}
			answer.refuse(has, refuse(0, reason.StoreNoEntry, "the store has no entry of %s", has.Principal))
		case after < 0:
			answer.refuse(has, refuse(0, reason.StoreRolledBack, "the store has an older entry of %s, %v, than this host, %v", has.Principal, known.mark, has.Mark))
		case after > 0:
			e, err := s.entry(ctx, known.principal)
			if _, refused := errors.AsType[*keystore.Refusal](err); refused || errors.Is(err, keystore.ErrNoEntry) {
				answer.refuse(has, refusal(err))
				continue
			} else if err != nil {
				return nil, err
			}
			if has.Principal != e.Principal && !slices.Contains(e.Aliases, has.Principal) {
				e.Zero()
				continue // this moment it became somebody else's, which wakes who waits
			}
			b, err := s.deliver(ctx, c, h, e, has.Principal)
			e.Zero()
			if err != nil {
				return nil, err
			}
			answer.Deliveries = append(answer.Deliveries, b)
			if size += len(b); size > MaxBody {
				return answer, nil // the others with the next one
			}
			if _, ok := s.delivered.take(c.name, time.Now()); !ok {
				return answer, nil
			}
		}
	}
	if over || len(answer.Deliveries) > 0 {
		for _, r := range answer.Refused {
			s.denied(ctx, c, "watch", r.Principal, &r.Refusal)
		}
	}
	return answer, nil
}

func (a *Watched) refuse(has Have, e *Error) {
	a.Refused = append(a.Refused, Refused{has.Principal, e.Refusal})
}

// deliver returns what a host gets of an entry that it has asked for by this name.
func (s *Server) deliver(ctx context.Context, c *caller, h *keystore.Host, e *keystore.Entry, asked string) ([]byte, error) {
	b, withdrawn, err := s.o.Store.Deliver(h, e, asked)
	if err != nil {
		return nil, err
	}
	if withdrawn == "" {
		s.record(ctx, c, &audit.Event{Kind: audit.KeyDelivered, Procedure: "watch", Principal: e.Principal, Target: h.Name, KVNO: newest(e), Text: c.where()})
		return b, nil
	}
	s.denied(ctx, c, "watch", asked, &Refusal{Reason: withdrawn, Text: "the host is told that it may not have the keys"})
	return b, nil
}

// newest returns the highest version of a current key.
func newest(e *keystore.Entry) (kvno uint32) {
	for i := range e.Keys {
		if k := &e.Keys[i]; k.State == keystore.Current {
			kvno = max(kvno, k.KVNO)
		}
	}
	return kvno
}

// maxAcknowledge bounds an acknowledgement in bytes, maxInForce how many entries it can be of: that
// many records are changed in one commit.
const (
	maxAcknowledge = 128 << 10
	maxInForce     = 64
)

// Acknowledged is what a host says with POST /v1/acknowledge to have in force: one entry, or many.
type Acknowledged struct {
	Marked
	InForce []Marked `json:"in_force,omitempty"`
}

// Noted answers that of many.
type Noted struct {
	Noted   []string  `json:"noted"`   // principals
	Refused []Refused `json:"refused"` // the others
}

// acknowledge is POST /v1/acknowledge.
func (s *Server) acknowledge(w http.ResponseWriter, r *http.Request, c *caller, h *keystore.Host) error {
	var said Acknowledged
	r.Body = http.MaxBytesReader(w, r.Body, maxAcknowledge)
	if err := decode(r, &said, false); err != nil {
		return err
	}
	list, one := said.InForce, said.Principal != "" || len(said.InForce) == 0
	switch {
	case one && len(list) > 0:
		return badRequest("principal and in_force are there; one of the two is expected")
	case len(list) > maxInForce:
		return badRequest("in_force has %d entries; at most %d are expected", len(list), maxInForce)
	case one:
		list = []Marked{said.Marked}
	}
	res := &Noted{Noted: []string{}, Refused: []Refused{}}
	marks := make(map[string]keystore.Mark)
	for _, has := range list {
		principal, err := s.mayAcknowledge(r.Context(), c, h, has)
		if err != nil && one {
			return err
		} else if err != nil {
			e := refusal(err)
			s.denied(r.Context(), c, "acknowledge", has.Principal, &e.Refusal)
			res.Refused = append(res.Refused, Refused{has.Principal, e.Refusal})
			continue
		}
		res.Noted = append(res.Noted, has.Principal)
		if has.Mark.Compare(marks[principal]) >= 0 { // it may be there by several names
			marks[principal] = has.Mark
		}
	}
	if err := s.acknowledged(r.Context(), h, marks); err != nil {
		return err
	}
	s.o.Store.Seen(h.Name)
	if !one {
		return reply(w, http.StatusOK, res)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// mayAcknowledge returns the principal of an entry that a host says to have, or why it cannot be so.
func (s *Server) mayAcknowledge(ctx context.Context, c *caller, h *keystore.Host, has Marked) (principal string, err error) {
	if err := checkPrincipal(has.Principal); err != nil {
		return "", err
	}
	if known, _ := s.index.entry(has.Principal); known.mark.Compare(has.Mark) < 0 {
		if _, ok := s.asked.take(c.name, time.Now()); !ok { // each of many costs what a request does
			return "", refuse(http.StatusTooManyRequests, reason.StoreRate, "%s asks too often", c.name)
		}
		e, err := s.entry(ctx, cmp.Or(known.principal, has.Principal)) // which another instance may have changed this moment
		if err != nil {
			return "", err
		}
		mark := e.Mark
		if e.Zero(); mark.Compare(has.Mark) < 0 {
			return "", badRequest("%v of %s is acknowledged, and %v is what the store has", has.Mark, has.Principal, mark)
		}
	}
	known, _ := s.index.entry(has.Principal)
	if !known.policy.Permits(h.Name) {
		return "", refuse(http.StatusForbidden, reason.StoreNoRight, "the policy of %s does not name host %s", has.Principal, h.Name)
	}
	return known.principal, nil
}

// list is GET /v1/list.
func (s *Server) list(w http.ResponseWriter, _ *http.Request, _ *caller, h *keystore.Host) error {
	l := Listed{Principals: s.index.permitted(h.Name)}
	if l.Principals == nil {
		l.Principals = []Marked{}
	}
	return reply(w, http.StatusOK, l)
}
