package limits

import (
	"errors"
	"os"
	"testing"

	"pgregory.net/rapid"
)

// Whatever is taken and given back, the limit holds, and who has a reserve can take what is left of
// it.
func TestBudget(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(1, 1000).Draw(t, "limit")
		b := NewBudget("things", limit)
		services := rapid.SliceOfDistinct(rapid.Uint32Range(1, 6), func(u uint32) uint32 { return u }).Draw(t, "services")
		b.Reserve(services...)
		held := make(map[uint32]int)
		used := 0
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			uid := rapid.Uint32Range(0, 12).Draw(t, "uid")
			n := rapid.IntRange(1, max(1, limit/2)).Draw(t, "n")
			if held[uid] >= n && rapid.Bool().Draw(t, "give") {
				b.Give(uid, n)
				held[uid] -= n
				used -= n
			} else if err := b.Take(uid, n); err == nil {
				held[uid] += n
				used += n
			} else if e := (*Error)(nil); !errors.As(err, &e) || e.UID != uid || e.Held != held[uid] || e.More != n {
				t.Fatalf("the error is %v for uid %d, which has %d and wants %d", err, uid, held[uid], n)
			}
			if used > limit {
				t.Fatalf("%d are used of %d", used, limit)
			}
			if _, u, all := b.Use(); u != used || all != limit {
				t.Fatalf("%d of %d are used, noted are %d of %d", used, limit, u, all)
			}
			if b.Held(uid) != held[uid] {
				t.Fatalf("uid %d holds %d, noted is %d", uid, held[uid], b.Held(uid))
			}
		}
		for uid := range favoured(services) {
			if left := b.part - held[uid]; left > 0 {
				if err := b.Take(uid, left); err != nil {
					t.Fatalf("the reserve of uid %d is gone: %v", uid, err)
				}
			}
		}
	})
}

// However many uids a hostile user has, root, the daemon and the services get what is kept for
// them.
func TestReserve(t *testing.T) {
	const limit, service = 1024, 33
	b := NewBudget("connections", limit)
	b.Reserve(service)
	taken := 0
	for uid := uint32(100_000); uid < 165_536; uid++ {
		for b.Take(uid, 1) == nil {
			taken++
		}
	}
	if taken != limit-len(favoured([]uint32{service}))*b.part {
		t.Errorf("%d of %d are taken", taken, limit)
	}
	for _, uid := range []uint32{0, uint32(os.Geteuid()), service} {
		if err := b.Take(uid, 1); err != nil {
			t.Errorf("uid %d: %v", uid, err)
		}
	}
}

// One user alone may have half of what is not kept, for services and for those who hold little, and a
// second one half of the rest. Root may have all that is not kept for services.
func TestShares(t *testing.T) {
	const little = 1000 / 4
	b := NewBudget("connections", 1000)
	b.Reserve(33)
	most := func(uid uint32) (n int) {
		for b.Take(uid, 1) == nil {
			n++
		}
		return n
	}
	parts := b.part * len(favoured([]uint32{33}))
	first, second := most(1000), most(1001)
	if all := 1000 - parts - little; first != all/2 || second != (all-first)/2 {
		t.Errorf("the first had %d, the second %d of %d", first, second, all)
	}
	if got, want := most(0), 1000-first-second-b.part; got != want && os.Geteuid() == 0 {
		t.Errorf("root had %d, want %d", got, want)
	}
	if got := most(33); got != b.part {
		t.Errorf("the service had %d, want its part of %d", got, b.part)
	}
	b.Give(1000, first)
	if b.Held(1000) != 0 || b.Take(1002, 1) != nil {
		t.Error("what was given back is not free")
	}
}

// Twenty users take as much as they get, one after the other, and more by turns: another one has not
// lost anything.
func TestSharesOfMany(t *testing.T) {
	for _, limit := range []int{16032, 352, 256, 64} { // of connections, exchanges and questions
		b := NewBudget("connections", limit)
		b.Reserve(33)
		for range 2 {
			for uid := range uint32(20) {
				for b.Take(1000+uid, 1) == nil {
				}
			}
		}
		if err := b.Take(2000, 1); err != nil {
			t.Errorf("of %d: %v", limit, err)
		}
	}
}

// What is not a connection has its open files whatever the limit is.
func TestDivide(t *testing.T) {
	for _, test := range []struct {
		files uint64
		want  division
	}{
		{1 << 62, division{16384, 256, 64}},
		{65536, division{16384, 256, 64}},
		{32768, division{16032, 256, 64}},
		{1024, division{352, 64, 64}},
		{256, division{80, 16, 32}},
		{64, division{20, 4, 8}},
		{0, division{8, 4, 2}},
	} {
		got := divide(test.files)
		if got != test.want {
			t.Errorf("%d files: %+v, want %+v", test.files, got, test.want)
		}
		others := int(min(128, test.files/8))
		if n := got.conns*filesConn + got.exchanges*filesExchange + got.lookups + others; test.files >= 64 && uint64(n) > test.files {
			t.Errorf("%d files: %+v would be %d", test.files, got, n)
		}
	}
}

// There may be more services than there is in a quarter.
func TestReserveOfMany(t *testing.T) {
	var services []uint32
	for uid := range uint32(20) {
		services = append(services, 500+uid)
	}
	b := NewBudget("questions", 64)
	b.Reserve(services...)
	for uid := uint32(100_000); uid < 165_536; uid++ {
		for b.Take(uid, 1) == nil {
		}
	}
	for _, uid := range append(services, 0) {
		if err := b.Take(uid, 1); err != nil {
			t.Errorf("uid %d: %v", uid, err)
		}
	}
}
