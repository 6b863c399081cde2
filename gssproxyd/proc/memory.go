package proc

// takeCache charges a uid for memory that caches take, those that are read and those that are kept. What can be had again
// makes room: what is remembered of caches that were read, first what is remembered at the uid's cost, then what others
// have remembered beyond their reserve; then tickets in memory, those of who has more than the uid would have, or of
// anybody beyond the reserve while that is little, and last the uid's own.
func (p *Procedures) takeCache(uid uint32, n int) error {
	budget := p.limits.Cache
	err := budget.Take(uid, n)
	if err != nil {
		p.snapshots.clear(uid)
		err = budget.Take(uid, n)
	}
	if err != nil {
		p.snapshots.makeRoom()
		err = budget.Take(uid, n)
	}
	others := func(payer uint32) bool {
		held, would := budget.Held(payer), budget.Held(uid)+n
		return payer != uid && held > budget.Part(payer) && (held > would || would <= little)
	}
	for err != nil && p.dropOldest(others) {
		err = budget.Take(uid, n)
	}
	own := func(payer uint32) bool { return payer == uid }
	for err != nil && p.dropOldest(own) {
		err = budget.Take(uid, n)
	}
	return err
}

// little is what a uid may have and still have others' tickets make room for it, in bytes.
const little = 512 << 10

// dropOldest drops a cache of a payer that whose accepts, of those in a service's memory the one that was not used for the
// longest time, and reports whether there was one.
func (p *Procedures) dropOldest(whose func(payer uint32) bool) bool {
	g := p.current.Load()
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

// memoryPayers charges the tickets that services keep in memory, each cache to the uid whose store it is in, together with
// what is read of caches (limits.Limits.Cache). It is a ccache.Payers.
type memoryPayers struct{ p *Procedures }

// Take implements ccache.Payers.
func (m memoryPayers) Take(uid uint32, n int) error { return m.p.takeCache(uid, n) }

// Give implements ccache.Payers.
func (m memoryPayers) Give(uid uint32, n int) { m.p.limits.Cache.Give(uid, n) }
