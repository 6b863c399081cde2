package stores

import (
	"context"
	"fmt"
	"time"

	"gssproxyd/audit"
	"gssproxyd/keytab"
)

// alarmEvery is how often it is looked whether a previous key is taken away soon that is in use.
const alarmEvery = time.Minute

// alarm looks until ctx ends.
func (s *Stores) alarm(ctx context.Context) {
	tick := time.NewTicker(alarmEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.lookForEnding()
		case <-ctx.Done():
			return
		}
	}
}

// lookForEnding says of each such key once that it is so.
func (s *Stores) lookForEnding() {
	now := s.o.Now()
	for _, st := range s.sorted() {
		for _, e := range st.entries {
			s.mu.Lock()
			all := e.previous()
			s.mu.Unlock()
			said := e.ending
			e.ending = nil
			for i := range all {
				at, soon := all[i].Ending(now)
				if !soon {
					continue
				}
				if e.ending == nil {
					e.ending = make(map[uint32]bool)
				}
				if e.ending[all[i].KVNO] = true; !said[all[i].KVNO] {
					s.ends(e, &all[i], at)
				}
			}
		}
	}
}

// ends says that a key ends.
func (s *Stores) ends(e *entry, p *keytab.Previous, at time.Time) {
	used, until := p.Used.UTC().Format(time.RFC3339), at.UTC().Format(time.RFC3339)
	s.o.Log.Warn("a previous key is still in use, and the key store takes it away soon: tickets that need it are refused then", "source", e.String(), "kvno", p.KVNO, "used", used, "until", until,
		"hint", "have the clients get new tickets, or have the store keep previous keys for as long as tickets live: see docs/keystore.md")
	s.o.Record(context.Background(), &audit.Event{
		Kind: audit.KeyEnding, Time: s.o.Now(), Source: e.String(), Principal: e.principal, KVNO: p.KVNO, Text: fmt.Sprintf("it was used at %s, and goes at %s", used, until),
	})
}
