package etype

import "sync/atomic"

// KeyUse is what is known of the use of a [ServiceKey]. It is safe for concurrent use, and noting a
// use takes no lock and allocates nothing. Times are in Unix seconds, 0 for never. Nothing is noted
// in a nil one.
type KeyUse struct {
	Here int64 // since when the key has been here; set before anybody uses it

	accepted, initiated atomic.Int64
	since, until        atomic.Int64
	longest             atomic.Int64
}

// Opened notes that the key has opened a ticket, which is valid from start to end. issued is whether
// the KDC has made it at start; otherwise it is only known that it was made by now.
func (u *KeyUse) Opened(now, start, end int64, issued bool) {
	if u == nil {
		return
	}
	raise(&u.accepted, now)
	raise(&u.until, end)
	raise(&u.longest, end-start)
	if !issued {
		start = now
	}
	u.known(start)
}

// Initiated notes that a KDC has given a ticket to who has the key.
func (u *KeyUse) Initiated(now int64) {
	if u == nil {
		return
	}
	raise(&u.initiated, now)
	u.known(now)
}

// known notes that the KDC had the key at a time.
func (u *KeyUse) known(at int64) {
	for {
		old := u.since.Load()
		if old != 0 && old <= at || u.since.CompareAndSwap(old, at) {
			return
		}
	}
}

// raise makes v the later of what it is and n. Mostly it is that: then others' caches keep it.
func raise(v *atomic.Int64, n int64) {
	for {
		old := v.Load()
		if old >= n || v.CompareAndSwap(old, n) {
			return
		}
	}
}

// LastAccepted is when the key has opened a ticket last.
func (u *KeyUse) LastAccepted() int64 { return u.accepted.Load() }

// LastInitiated is when it has got a ticket last.
func (u *KeyUse) LastInitiated() int64 { return u.initiated.Load() }

// Since is the earliest time at which the KDC is known to have had the key: when it made a ticket that
// the key has opened, or when the key has got one.
func (u *KeyUse) Since() int64 { return u.since.Load() }

// Until is the latest end of the tickets that it has opened.
func (u *KeyUse) Until() int64 { return u.until.Load() }

// Longest is for how many seconds the one of them is valid that is so for longest.
func (u *KeyUse) Longest() int64 { return u.longest.Load() }
