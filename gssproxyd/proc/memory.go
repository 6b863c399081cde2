package proc

// memoryPayers charges the tickets that services keep in memory, each cache to the uid whose store it is in, together with
// what is read of caches (limits.Limits.Cache). They can be had again from a KDC, so they make room: those of a uid that
// wants more, and for one that has nothing those of others beyond their reserve. It is a ccache.Payers.
type memoryPayers struct{ p *Procedures }

// Take implements ccache.Payers.
func (m memoryPayers) Take(uid uint32, n int) error {
	budget := m.p.limits.Cache
	own := func(payer uint32) bool { return payer == uid }
	unreserved := func(payer uint32) bool { return budget.Held(payer) > budget.Part(payer) }
	err := reader{&m.p.snapshots, uid}.Take(n)
	for err != nil && m.dropOldest(own) {
		err = budget.Take(uid, n)
	}
	for err != nil && budget.Held(uid) == 0 && m.dropOldest(unreserved) {
		err = budget.Take(uid, n)
	}
	return err
}

// Give implements ccache.Payers.
func (m memoryPayers) Give(uid uint32, n int) { m.p.limits.Cache.Give(uid, n) }

// dropOldest drops a cache of a payer that whose accepts, of those in a service's memory the one that was not used for the
// longest time, and reports whether there was one.
func (m memoryPayers) dropOldest(whose func(payer uint32) bool) bool {
	g := m.p.current.Load()
	if g == nil {
		return false
	}
	for _, s := range g.services {
		if s.memory.DropOldest(whose) {
			return true
		}
	}
	return false
}
