package proc

import (
	"fmt"
	"testing"
	"time"
)

func TestQuota(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, r := range []rate{usualRate, kernelRate} {
		var q quota
		written := 0
		for range 500 {
			if _, ok := q.take("a", r, now); ok {
				written++
			}
		}
		if written != r.burst {
			t.Errorf("burst: %d lines written, want %d", written, r.burst)
		}
		if _, ok := q.take("b", r, now); !ok {
			t.Error("another subject has to have its own allowance")
		}
		suppressed, ok := q.take("a", r, now.Add(r.interval))
		if !ok || suppressed != 500-r.burst {
			t.Errorf("after %v: ok=%v, suppressed=%d, want true, %d", r.interval, ok, suppressed, 500-r.burst)
		}
		if _, ok := q.take("a", r, now.Add(r.interval)); ok {
			t.Error("one line each interval, not two")
		}
		for i := range 10 * quotaSubjects {
			q.take(fmt.Sprint(i), r, now)
		}
		if len(q.subjects) > quotaSubjects {
			t.Errorf("%d subjects remembered, at most %d wanted", len(q.subjects), quotaSubjects)
		}
	}
}
