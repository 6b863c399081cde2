package proc

import (
	"fmt"
	"testing"
	"time"
)

func TestQuota(t *testing.T) {
	var q quota
	now := time.Unix(1000, 0)
	written := 0
	for range 500 {
		if _, ok := q.take("a", now); ok {
			written++
		}
	}
	if written != quotaBurst {
		t.Errorf("burst: %d lines written, want %d", written, quotaBurst)
	}
	if _, ok := q.take("b", now); !ok {
		t.Error("another subject has to have its own allowance")
	}
	suppressed, ok := q.take("a", now.Add(quotaInterval))
	if !ok || suppressed != 500-quotaBurst {
		t.Errorf("after a second: ok=%v, suppressed=%d, want true, %d", ok, suppressed, 500-quotaBurst)
	}
	if _, ok := q.take("a", now.Add(quotaInterval)); ok {
		t.Error("one line a second, not two")
	}
	for i := range 10 * quotaSubjects {
		q.take(fmt.Sprint(i), now)
	}
	if len(q.subjects) > quotaSubjects {
		t.Errorf("%d subjects remembered, at most %d wanted", len(q.subjects), quotaSubjects)
	}
}
