package etype

import (
	"sync"
	"testing"
)

// What is noted of a key's use is the same in whatever order, by however many, and costs no memory.
func TestKeyUse(t *testing.T) {
	u := new(KeyUse)
	var wg sync.WaitGroup
	for n := range int64(8) {
		wg.Go(func() {
			for i := range int64(1000) {
				u.Opened(5000+i*8+n, 2000+(i*8+n)*7%8000, 20000+i, true)
				u.Initiated(3000 + i)
			}
		})
	}
	wg.Wait()
	if got, want := [...]int64{u.LastAccepted(), u.LastInitiated(), u.Since(), u.Until()}, [...]int64{5000 + 7999, 3999, 2000, 20999}; got != want {
		t.Errorf("%d, want %d", got, want)
	}
	u = new(KeyUse)
	u.Opened(10, 3, 7, true)
	u.Opened(9, 8, 11, true)
	if u.LastAccepted() != 10 || u.Since() != 3 || u.Until() != 11 || u.Longest() != 4 {
		t.Errorf("accepted %d, since %d, until %d, longest %d", u.LastAccepted(), u.Since(), u.Until(), u.Longest())
	}
	u.Opened(12, 1, 13, false) // when the KDC made it is not known
	if u.Since() != 3 || u.Longest() != 12 {
		t.Errorf("since %d, longest %d", u.Since(), u.Longest())
	}
	u.Initiated(2)
	if u.Since() != 2 {
		t.Errorf("since %d", u.Since())
	}
	if n := testing.AllocsPerRun(100, func() { u.Opened(12, 3, 7, true); (*KeyUse)(nil).Opened(1, 2, 3, true) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkKeyUse(b *testing.B) {
	u := new(KeyUse)
	for i := int64(0); b.Loop(); i++ {
		u.Opened(i>>15, 3, 7, true)
	}
}
