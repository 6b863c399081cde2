package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"gssproxyd/audit"
	"gssproxyd/keystore"
	"gssproxyd/mech/reason"
)

// maxHave bounds how many principals one watch is for.
const maxHave = 4096

// enrolled returns the host that the names in a certificate are of.
func (s *Server) enrolled(ctx context.Context, c *caller) (found *keystore.Host, err error) {
	for _, n := range c.names {
		h := s.index.host(n)
		if h == nil {
			// It may have been enrolled this moment.
			if h, err = s.o.Store.Host(ctx, n); errors.Is(err, keystore.ErrNoHost) {
				continue
			} else if err != nil {
				return nil, err
			}
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

	waiter := s.index.wait(h.Name, asked.Have)
	defer s.index.leave(waiter)
	if err := s.uses(ctx, h, asked.Have); err != nil {
		return err
	}
	timer := time.NewTimer(min(wait, ends(c.chain).Sub(s.o.Certificates.now())+time.Millisecond))
	defer timer.Stop()
	touch := time.NewTicker(touchEvery)
	defer touch.Stop()
	for over := wait == 0; ; {
		if s.o.Store.InTouch().IsZero() { // another instance knows better, and is to hear of the host
			return refuse(http.StatusServiceUnavailable, reason.StoreUnavailable, "this keystored is out of touch with its backend")
		}
		_, changed := s.o.Certificates.current()
		if err := s.check(c); err != nil {
			return err
		}
		h, err := s.enrolled(ctx, c)
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
			return refuse(http.StatusServiceUnavailable, reason.StoreUnavailable, "this keystored ends")
		}
	}
}

// touchEvery is how often a watch that waits looks whether this instance may speak for the store still.
const touchEvery = 10 * time.Second

// uses notes which entries a host has use for, whatever it has of them: a rotation waits for such hosts
// also where only a pattern names them.
func (s *Server) uses(ctx context.Context, h *keystore.Host, have []Have) error {
	for _, has := range have {
		if known, there := s.index.entry(has.Principal); !there || !known.policy.Permits(h.Name) || !s.index.use(h.Name, has.Principal) {
			continue
		}
		if err := s.o.Store.Acknowledge(ctx, h.Name, has.Principal, keystore.Mark{}); err != nil {
			s.index.unuse(h.Name, has.Principal)
			return err
		}
	}
	return nil
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
			answer.refuse(has, refuse(0, reason.StoreNoEntry, "the store has no entry of %s", has.Principal))
		case after < 0:
			answer.refuse(has, refuse(0, reason.StoreRolledBack, "the store has an older entry of %s, %v, than this host, %v", has.Principal, known.mark, has.Mark))
		case after > 0:
			e, err := s.o.Store.Entry(ctx, has.Principal)
			if _, refused := errors.AsType[*keystore.Refusal](err); refused || errors.Is(err, keystore.ErrNoEntry) {
				answer.refuse(has, refusal(err))
				continue
			} else if err != nil {
				return nil, err
			}
			b, err := s.deliver(ctx, c, h, e)
			e.Zero()
			if err != nil {
				return nil, err
			}
			answer.Deliveries = append(answer.Deliveries, b)
			if size += len(b); size > MaxBody {
				return answer, nil // the others with the next one
			}
			if _, ok := s.asked.take(c.name, time.Now()); !ok {
				return answer, nil // each costs what a request does
			}
		}
	}
	if over || len(answer.Deliveries) > 0 {
		for _, r := range answer.Refused {
			s.denied(ctx, c, c.name, "watch", r.Principal, &r.Refusal)
		}
	}
	return answer, nil
}

func (a *Watched) refuse(has Have, e *Error) {
	a.Refused = append(a.Refused, Refused{has.Principal, e.Refusal})
}

// deliver returns what a host gets of an entry.
func (s *Server) deliver(ctx context.Context, c *caller, h *keystore.Host, e *keystore.Entry) ([]byte, error) {
	b, withdrawn, err := s.o.Store.Deliver(h, e)
	if err != nil {
		return nil, err
	}
	if withdrawn == "" {
		s.record(ctx, c, &audit.Event{Kind: audit.KeyDelivered, Procedure: "watch", Principal: e.Principal, Target: h.Name, KVNO: newest(e), Text: c.where()})
		return b, nil
	}
	s.denied(ctx, c, c.name, "watch", e.Principal, &Refusal{Reason: withdrawn, Text: "the host is told that it may not have the keys"})
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

// maxAcknowledge bounds an acknowledgement.
const maxAcknowledge = 8 << 10

// acknowledge is POST /v1/acknowledge.
func (s *Server) acknowledge(w http.ResponseWriter, r *http.Request, _ *caller, h *keystore.Host) error {
	var has Have
	r.Body = http.MaxBytesReader(w, r.Body, maxAcknowledge)
	if err := decode(r, &has, false); err != nil {
		return err
	}
	if known, _ := s.index.entry(has.Principal); known.mark.Compare(has.Mark) < 0 {
		e, err := s.o.Store.Entry(r.Context(), has.Principal) // which another instance may have changed this moment
		if err != nil {
			return err
		}
		mark := e.Mark
		if e.Zero(); mark.Compare(has.Mark) < 0 {
			return badRequest("%v of %s is acknowledged, and %v is what the store has", has.Mark, has.Principal, mark)
		}
	}
	if known, _ := s.index.entry(has.Principal); !known.policy.Permits(h.Name) {
		return refuse(http.StatusForbidden, reason.StoreNoRight, "the policy of %s does not name host %s", has.Principal, h.Name)
	}
	if err := s.o.Store.Acknowledge(r.Context(), h.Name, has.Principal, has.Mark); err != nil {
		return err
	}
	s.o.Store.Seen(h.Name)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// list is GET /v1/list.
func (s *Server) list(w http.ResponseWriter, _ *http.Request, _ *caller, h *keystore.Host) error {
	l := Listed{Principals: s.index.permitted(h.Name)}
	if l.Principals == nil {
		l.Principals = []Have{}
	}
	return reply(w, http.StatusOK, l)
}
