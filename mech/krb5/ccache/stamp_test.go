package ccache

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/mech/krb5"
)

// TestStamp: the stamp of a cache stays while its content does, and no two contents have the same.
func TestStamp(t *testing.T) {
	ctx := context.Background()
	client := krb5.Principal{Realm: "R", Components: []string{"alice"}}
	r := Resolver{Memory: new(Memory)}
	for _, name := range []string{"FILE:" + filepath.Join(t.TempDir(), "cc"), "MEMORY:x"} {
		c, err := r.Open(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := StampOf(c); ok {
			t.Errorf("%s: a stamp before there is a cache", name)
		}
		seen := map[Stamp]bool{}
		for i := range 5 {
			if i == 0 || i == 3 {
				err = c.Initialize(ctx, client)
			} else {
				err = Store(ctx, c, ConfigEntry(client, RefreshTime, nil, []byte{byte('0' + i)}))
			}
			if err != nil {
				t.Fatal(err)
			}
			var s Stamp
			ok := false
			for deadline := time.Now().Add(time.Minute); !ok && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
				s, ok = StampOf(c)
			}
			if !ok {
				t.Fatalf("%s: no stamp of a cache that is left alone", name)
			}
			if again, ok := StampOf(c); !ok || again != s {
				t.Errorf("%s: another stamp of the same content", name)
			}
			if seen[s] {
				t.Errorf("%s: change %d does not show in the stamp", name, i)
			}
			seen[s] = true
		}
	}
}

// TestStampOfTimes: what a file's stamp counts for by its change time.
func TestStampOfTimes(t *testing.T) {
	for _, test := range []struct {
		name string
		ago  time.Duration
		ok   bool
	}{
		{"long ago", time.Minute, true},
		{"just now", 0, false},
		{"in the future", -time.Hour, false},
	} {
		st := unix.Stat_t{Ctim: unix.NsecToTimespec(time.Now().Add(-test.ago).UnixNano())}
		if _, ok := stampOfFile(&st); ok != test.ok {
			t.Errorf("%s: %t", test.name, ok)
		}
	}
}
