package limits

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Rate is how often something may happen: a burst, and then once each interval.
type Rate struct {
	Burst int
	Every time.Duration
}

// Rates of lines in the log. All users without a reserve together write less than 200 in any second
// (120 and 75), and twenty of them who each write as much as they may leave others theirs (20 × 5
// of 120, and 20 × 2 of 75 a second).
var (
	// UsualRate is of lines of one uid about one subject.
	UsualRate = Rate{20, time.Second}

	userRate   = Rate{5, time.Second / 2}    // of one uid without a reserve, whatever about
	othersRate = Rate{120, time.Second / 75} // of all uids without a reserve
)

// maxMeter bounds what a Meter remembers. Those that come when it is full share one rate.
const maxMeter = 8192

// Meter says whether something may be written to a log: as often as a rate permits for each user
// and subject, and less for users without a reserve, who also have a rate each and one together. It
// is safe for concurrent use.
type Meter struct {
	mu       sync.Mutex
	reserved map[uint32]bool
	lines    map[line]*allowance
	users    map[uint32]*allowance
	others   allowance // of all without a reserve
	crowd    allowance // of those who are not remembered
	swept    time.Time
}

type line struct {
	uid     uint32
	subject string
}

// allowance is what is left of a rate.
type allowance struct {
	rate       Rate
	left       int
	filled     time.Time
	suppressed int
}

// NewMeter returns a meter with a reserve for root and the daemon.
func NewMeter() *Meter {
	m := &Meter{
		lines: make(map[line]*allowance), users: make(map[uint32]*allowance),
		others: allowance{rate: othersRate, left: othersRate.Burst}, crowd: allowance{rate: userRate, left: userRate.Burst},
	}
	m.Reserve()
	return m
}

// Reserve has root, the daemon and the uids given write at rates that nobody else uses up, and
// nobody else from now on.
func (m *Meter) Reserve(uids ...uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reserved = favoured(uids)
}

// Reserved returns who has a reserve. Nobody may change it.
func (m *Meter) Reserved() map[uint32]bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.reserved
}

// Take reports whether a line about a subject that uid has caused may be written now, and how many
// such lines were not since the last one that was. subject is one of a bounded number and not of a
// caller's choice. r is the rate of such lines, the same each time.
func (m *Meter) Take(uid uint32, subject string, r Rate, now time.Time) (suppressed int, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	reserved := m.reserved[uid]
	a := m.lines[line{uid, subject}]
	if a == nil {
		if a = &m.crowd; reserved || m.room(now) {
			a = &allowance{rate: r, left: r.Burst, filled: now}
			m.lines[line{uid, subject}] = a
		}
	}
	if !reserved {
		u := m.users[uid]
		if u == nil && a != &m.crowd {
			u = &allowance{rate: userRate, left: userRate.Burst, filled: now}
			m.users[uid] = u
		}
		if !a.some(now) || !m.others.some(now) || u != nil && !u.some(now) {
			a.suppressed++
			return 0, false
		}
		m.others.left--
		if u != nil {
			u.left--
		}
	} else if !a.some(now) {
		a.suppressed++
		return 0, false
	}
	a.left--
	suppressed, a.suppressed = a.suppressed, 0
	return suppressed, true
}

// Log writes a line about a subject, which uid has caused, to log, if that may be written now
// ([Meter.Take]) and the log's level is not too high for it. Only then attrs is called. A line says
// how many were suppressed before it.
func (m *Meter) Log(log *slog.Logger, level slog.Level, uid uint32, subject string, r Rate, now time.Time, msg string, attrs func() []any) {
	if !log.Enabled(context.Background(), level) { // what is not seen must not count for what is
		return
	}
	suppressed, ok := m.Take(uid, subject, r, now)
	if !ok {
		return
	}
	list := attrs()
	if suppressed > 0 {
		list = append(list, "suppressed", suppressed)
	}
	log.Log(context.Background(), level, msg, list...)
}

// some fills up what has come since the last time, and reports whether any is left.
func (a *allowance) some(now time.Time) bool {
	if n := int(now.Sub(a.filled) / a.rate.Every); n > 0 {
		if a.left = min(a.rate.Burst, a.left+n); a.left == a.rate.Burst {
			a.filled = now
		} else {
			a.filled = a.filled.Add(time.Duration(n) * a.rate.Every)
		}
	}
	return a.left > 0
}

// room reports whether one more line can be remembered. What is as if it had never been is
// forgotten when there is no room, once a second at most.
func (m *Meter) room(now time.Time) bool {
	if len(m.lines) < maxMeter {
		return true
	}
	if now.Sub(m.swept) < time.Second {
		return false
	}
	m.swept = now
	for key, a := range m.lines {
		if a.some(now); a.left == a.rate.Burst {
			delete(m.lines, key)
		}
	}
	for uid, a := range m.users {
		if a.some(now); a.left == a.rate.Burst {
			delete(m.users, uid)
		}
	}
	return len(m.lines) < maxMeter
}
