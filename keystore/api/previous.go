package api

import (
	"context"
	"sync"
	"time"

	"gssproxyd/keystore"
)

// coarse is how much later a use is than the one that the store was told of, to be told.
const coarse = time.Hour

// previousUses is when hosts have used previous keys, as far as the store was told.
type previousUses struct {
	mu   sync.Mutex
	last map[previousUse]keystore.Use
}

type previousUse struct{ host, principal string }

// take notes a use, and reports whether the store is to be told.
func (p *previousUses) take(of previousUse, u keystore.Use) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := p.last[of]
	if u.KVNO == was.KVNO && u.At.Sub(was.At) < coarse {
		return false
	}
	if p.last == nil {
		p.last = make(map[previousUse]keystore.Use)
	}
	p.last[of] = u
	return true
}

func (p *previousUses) forget(of previousUse) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.last, of)
}

// usesPrevious tells the store which previous keys a host uses: they are kept as long as it does.
func (s *Server) usesPrevious(ctx context.Context, c *caller, h *keystore.Host, have []Have) error {
	last := make(map[string]keystore.Use) // by principal, for which a host may ask by several names
	for _, has := range have {
		known, there := s.index.entry(has.Principal)
		if has.PreviousKVNO == 0 || !there || !known.policy.Permits(h.Name) {
			continue
		}
		u := keystore.Use{Host: h.Name, KVNO: has.PreviousKVNO, At: has.PreviousUsed}
		if now := time.Now(); u.At.After(now) {
			u.At = now // by the host's clock
		}
		if was, said := last[known.principal]; !said || u.At.After(was.At) {
			last[known.principal] = u
		}
	}
	for principal, u := range last {
		of := previousUse{h.Name, principal}
		if !s.previous.take(of, u) {
			continue
		}
		if _, ok := s.asked.take(c.name, time.Now()); !ok { // each costs what a request does
			s.previous.forget(of)
			return nil
		}
		if err := s.turn(ctx, func() error { return s.o.Store.NoteUse(ctx, principal, u) }); err != nil {
			s.previous.forget(of)
			return err
		}
	}
	return nil
}
