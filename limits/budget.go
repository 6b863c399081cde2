package limits

import (
	"os"
	"sync"
)

// Budget divides something scarce among users: each may hold at most as much as is still free. Who
// holds much, more than a 128th of all (a 32nd of bytes, which are taken by many at a time), must
// leave a quarter besides, for those who hold little: half of what is left each time would be nothing
// after a dozen users. A quarter is kept for those who
// have a reserve, in equal parts of one at least; beyond its part such a user shares as all do, but
// root and the daemon may have all that is not kept for others. It is safe for concurrent use.
type Budget struct {
	what   string
	limit  int
	little int // who holds so much, or less, need not leave a quarter

	mu       sync.Mutex
	used     int
	held     map[uint32]int  // by uid; never 0
	reserved map[uint32]bool // who has a reserve
	part     int             // of each of them
	kept     int             // what they have not taken of their parts
	daemon   uint32          // the uid that, as root, may have all that is not kept for others
}

// NewBudget returns a budget of so many. what is their name in refusals, a plural.
func NewBudget(what string, limit int) *Budget {
	b := &Budget{what: what, limit: limit, little: max(1, limit/128), held: make(map[uint32]int)}
	b.Reserve()
	return b
}

// newBytes returns a budget of bytes.
func newBytes(what string, limit int) *Budget {
	b := NewBudget(what, limit)
	b.little = limit / 32
	return b
}

// Reserve keeps a part for root, the daemon and the uids given, and for nobody else from now on.
// What users hold they keep.
func (b *Budget) Reserve(uids ...uint32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reserved = favoured(uids)
	b.daemon = uint32(os.Geteuid()) // which may have changed
	n := len(b.reserved)
	b.part = max(b.limit/4/n, min(1, b.limit/2/n)) // one at least, while that is not more than half of all
	b.kept = 0
	for uid := range b.reserved {
		b.kept += max(0, b.part-b.held[uid])
	}
}

// Take notes that uid holds n more, or returns an [*Error] and notes nothing. Who has taken gives
// back.
func (b *Budget) Take(uid uint32, n int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	held, own := b.held[uid], 0 // own: kept for this uid
	if b.reserved[uid] {
		own = max(0, b.part-held)
	}
	free := b.limit - b.used - (b.kept - own)
	share := free
	if held+n > b.little {
		share -= b.limit / 4
	}
	if n > free || n > own && held+n > share && uid != 0 && uid != b.daemon {
		return &Error{What: b.what, UID: uid, Held: held, More: n, Free: max(0, free)}
	}
	b.held[uid] = held + n
	b.used += n
	b.kept -= min(n, own)
	return nil
}

// Give takes note that uid holds n less.
func (b *Budget) Give(uid uint32, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	held := b.held[uid] - n
	if b.reserved[uid] {
		b.kept += max(0, b.part-held) - max(0, b.part-held-n)
	}
	b.used -= n
	if b.held[uid] = held; held == 0 {
		delete(b.held, uid)
	}
}

// Part returns how much is kept for uid.
func (b *Budget) Part(uid uint32) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.reserved[uid] {
		return b.part
	}
	return 0
}

// Used returns how much all hold together, and of how much.
func (b *Budget) Used() (used, limit int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used, b.limit
}

// Held returns how much uid holds.
func (b *Budget) Held(uid uint32) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.held[uid]
}
