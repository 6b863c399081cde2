package proc

import (
	"sync"
	"time"
)

// A caller can make itself be refused as often as it likes. quota bounds what that writes to the log: for each subject
// a burst of lines, then one a second, and the next line that is written says how many were not.
type quota struct {
	mu       sync.Mutex
	subjects map[string]*allowance
}

type allowance struct {
	left       int
	filled     time.Time
	suppressed int
}

const (
	quotaBurst    = 20
	quotaInterval = time.Second
	quotaSubjects = 1024 // beyond this, all are forgotten: the map must not grow for ever
)

// take tells whether a line about the subject may be written now, and how many were suppressed since the last one.
func (q *quota) take(subject string, now time.Time) (suppressed int, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	a := q.subjects[subject]
	if a == nil {
		if q.subjects == nil || len(q.subjects) >= quotaSubjects {
			q.subjects = make(map[string]*allowance)
		}
		a = &allowance{left: quotaBurst, filled: now}
		q.subjects[subject] = a
	}
	if n := int(now.Sub(a.filled) / quotaInterval); n > 0 {
		a.left = min(quotaBurst, a.left+n)
		a.filled = a.filled.Add(time.Duration(n) * quotaInterval)
	}
	if a.left <= 0 {
		a.suppressed++
		return 0, false
	}
	a.left--
	suppressed, a.suppressed = a.suppressed, 0
	return suppressed, true
}
