package creds

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"gssproxyd/keytab"
)

// KeytabState is how a keytab is that services have open.
type KeytabState struct {
	keytab.State
	Uses    []KeytabUse // sorted
	PerUser bool        // it is only open for users of its own, and there may be as many as there are users
}

// Behind returns how many kinds of tickets came for newer keys than the keytab has.
func (k *KeytabState) Behind() (n int) {
	for i := range k.Missed {
		if k.Missed[i].KVNO > k.Missed[i].Newest {
			n++
		}
	}
	return n
}

// KeytabUse is a service that has a keytab open, and for which key of cred_store.
type KeytabUse struct{ Service, As string }

// Keytabs returns how the keytabs are that the services of the configuration in force have open,
// sorted by their names. Those of users are open once the user has called.
func (h *Holder) Keytabs() []KeytabState {
	g := h.Current()
	if g == nil {
		return nil
	}
	now, skew := h.log.Now(), time.Duration(0)
	uses, shared := make(map[*keytab.Keytab][]KeytabUse), make(map[*keytab.Keytab]bool)
	for _, s := range g.Services {
		skew = s.Krb5.Clockskew // krb5.conf's, the same for all
		s.eachStore(func(st *store) {
			for as, k := range map[string]*keytab.Keytab{"keytab": st.keytab, "client_keytab": st.clientKeytab} {
				if use := (KeytabUse{s.Name, as}); k != nil && !slices.Contains(uses[k], use) {
					uses[k] = append(uses[k], use)
					shared[k] = shared[k] || st == s.fixed
				}
			}
		})
	}
	list := make([]KeytabState, 0, len(uses))
	for k, of := range uses {
		slices.SortFunc(of, func(a, b KeytabUse) int {
			return cmp.Or(strings.Compare(a.Service, b.Service), -strings.Compare(a.As, b.As))
		})
		list = append(list, KeytabState{k.State(now, skew), of, !shared[k]})
	}
	slices.SortFunc(list, func(a, b KeytabState) int { return strings.Compare(a.Source, b.Source) })
	return list
}

// eachStore calls f for what the service has open.
func (s *Service) eachStore(f func(*store)) {
	if s.fixed != nil {
		f(s.fixed)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.stores {
		f(st)
	}
}
