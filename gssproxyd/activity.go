package main

import (
	"sync"
	"time"
)

// activity remembers when the daemon was last asked something.
type activity struct {
	mu   sync.Mutex
	last time.Time
}

func (a *activity) note() {
	a.mu.Lock()
	a.last = time.Now()
	a.mu.Unlock()
}

func (a *activity) idle() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.last.IsZero() {
		a.last = time.Now()
	}
	return time.Since(a.last)
}
