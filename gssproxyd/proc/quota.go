package proc

import (
	"sync"
	"time"
)

// A caller can make itself be refused as often as it likes. quota bounds what that writes to the log: for each subject
// a burst of lines, then one every so often, and the next line that is written says how many were not.
type quota struct {
	mu       sync.Mutex
	subjects map[string]*allowance
}

type allowance struct {
	left       int
	filled     time.Time
	suppressed int
}

const quotaSubjects = 1024 // beyond this, all are forgotten: the map must not grow for ever

// rate is how many lines there may be: a burst, and then one each interval.
type rate struct {
	burst    int
	interval time.Duration
}

var (
	usualRate = rate{20, time.Second}
	// The kernel asks eighteen times, over several seconds, for one mount that fails.
	kernelRate = rate{5, 5 * time.Second}
)

// take tells whether a line about the subject may be written now, and how many were suppressed since the last one.
func (q *quota) take(subject string, r rate, now time.Time) (suppressed int, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	a := q.subjects[subject]
	if a == nil {
		if q.subjects == nil || len(q.subjects) >= quotaSubjects {
			q.subjects = make(map[string]*allowance)
		}
		a = &allowance{left: r.burst, filled: now}
		q.subjects[subject] = a
	}
	if n := int(now.Sub(a.filled) / r.interval); n > 0 {
		a.left = min(r.burst, a.left+n)
		a.filled = a.filled.Add(time.Duration(n) * r.interval)
	}
	if a.left <= 0 {
		a.suppressed++
		return 0, false
	}
	a.left--
	suppressed, a.suppressed = a.suppressed, 0
	return suppressed, true
}
