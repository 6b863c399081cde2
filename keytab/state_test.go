package keytab

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gssproxyd/mech/krb5/etype"
)

// ringOf is a ring of keys of one principal, which are here since a time.
func ringOf(t testing.TB, here time.Time, records ...written) *Ring {
	t.Helper()
	r := mustRing(t, records...)
	r.follow(mustRing(t), here.Unix())
	return r
}

// version is a key of a version of the service's, written at a time.
func writtenAt(kvno uint32, at time.Time) written {
	w := service(kvno)
	w.timestamp = uint32(at.Unix())
	return w
}

// What was seen and what was not decides whether an old key can go; the clock alone never does.
func TestPrune(t *testing.T) {
	const skew = 5 * time.Minute
	now := time.Unix(1_800_000_000, 0)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	// opened notes a ticket opened at a time, that had begun before and is to end after.
	opened := func(r *Ring, kvno uint32, at time.Time, before, after time.Duration) {
		key := r.Lookup([]byte(serviceName), kvno, etype.AES256SHA1)
		key.Use.Opened(at.Unix(), at.Add(-before).Unix(), at.Add(after).Unix(), true)
	}
	initiated := func(r *Ring, kvno uint32, at time.Time) {
		r.Lookup([]byte(serviceName), kvno, etype.AES256SHA1).Use.Initiated(at.Unix())
	}
	const day, h = 24 * time.Hour, time.Hour
	weak := writtenAt(1, ago(90*day))
	weak.enctype, weak.key = etype.RC4, testKey(etype.RC4, 9)
	for _, test := range []struct {
		name    string
		here    time.Time
		records []written
		use     func(r *Ring)
		want    string // of each key, in file order
		why     string // of the first that is not the newest
	}{
		{"one version", ago(9 * day), []written{writtenAt(1, ago(90*day))}, nil, "newest", ""},
		{"all seen", ago(9 * day), []written{writtenAt(1, ago(90*day)), writtenAt(2, ago(8*day))}, func(r *Ring) {
			opened(r, 1, ago(8*day), h, 10*h)
			opened(r, 2, ago(7*day), h, 10*h)
		}, "safe newest", "since " + ago(7*day+h).UTC().Format(time.RFC3339) + " at least, and every ticket from before that has ended, if no ticket lives longer than 24h0m0s, which is assumed, and clocks differ by 5m0s at most"},
		{"a ticket lives", ago(9 * day), []written{writtenAt(1, ago(90*day)), writtenAt(2, ago(8*day))}, func(r *Ring) {
			opened(r, 1, ago(h), h, 2*h)
			opened(r, 2, ago(7*day), h, 10*h)
		}, "no newest", "valid until " + now.Add(h).UTC().Format(time.RFC3339)},
		{"it has just ended", ago(9 * day), []written{writtenAt(1, ago(90*day)), writtenAt(2, ago(8*day))}, func(r *Ring) {
			opened(r, 1, ago(h), h, h-skew)
			opened(r, 2, ago(7*day), h, 10*h)
		}, "no newest", "valid until"},
		{"a second later", ago(9 * day), []written{writtenAt(1, ago(90*day)), writtenAt(2, ago(8*day))}, func(r *Ring) {
			opened(r, 1, ago(h), h, h-skew-time.Second)
			opened(r, 2, ago(7*day), h, 10*h)
		}, "safe newest", ""},
		{"written today", ago(9 * day), []written{writtenAt(1, ago(90*day)), writtenAt(2, ago(h))}, func(r *Ring) { opened(r, 2, ago(2*time.Minute), h, 10*h) }, "no newest", "kvno 2 was written at"},
		{"in file order only", ago(9 * day), []written{writtenAt(2, ago(8*day)), writtenAt(1, ago(90*day))}, func(r *Ring) { opened(r, 2, ago(7*day), h, 10*h) }, "newest safe", ""},
		{"the KDC may not have it", ago(9 * day), []written{writtenAt(1, ago(90*day)), writtenAt(2, ago(8*day))}, nil, "unknown newest", "cannot know whether the KDC has it"},
		{"just started", ago(h), []written{writtenAt(1, ago(90*day)), writtenAt(2, ago(8*day))}, func(r *Ring) { opened(r, 2, ago(time.Minute), 9*h, h) }, "unknown newest", "ask again after " + ago(9*h+time.Minute).Add(day+skew).UTC().Format(time.RFC3339)},
		{"known in time", ago(9 * day), []written{writtenAt(1, ago(90*day)), writtenAt(2, ago(8*day))}, func(r *Ring) { opened(r, 2, ago(day+skew), 0, h) }, "unknown newest", "ask again"},
		{"known for long enough", ago(9 * day), []written{writtenAt(1, ago(90*day)), writtenAt(2, ago(8*day))}, func(r *Ring) { opened(r, 2, ago(day+skew), time.Second, h) }, "safe newest", ""},
		{"begun before it was made", ago(9 * day), []written{writtenAt(1, ago(90*day)), writtenAt(2, ago(8*day))}, func(r *Ring) {
			r.Lookup([]byte(serviceName), 2, etype.AES256SHA1).Use.Opened(ago(h).Unix(), ago(6*day).Unix(), now.Unix(), false)
		}, "unknown newest", "ask again after " + ago(h).Add(6*day+skew).UTC().Format(time.RFC3339)},
		{"begun before it was made, and short", ago(9 * day), []written{writtenAt(1, ago(90*day)), writtenAt(2, ago(8*day))}, func(r *Ring) {
			r.Lookup([]byte(serviceName), 2, etype.AES256SHA1).Use.Opened(ago(23*h).Unix(), ago(25*h).Unix(), ago(20*h).Unix(), false)
		}, "unknown newest", "that the KDC has a newer one this daemon knows for the time from " + ago(23*h).UTC().Format(time.RFC3339)},
		{"long tickets", ago(9 * day), []written{writtenAt(1, ago(90*day)), writtenAt(2, ago(6*day))}, func(r *Ring) {
			opened(r, 1, ago(8*day), 0, 7*day)
			opened(r, 2, ago(5*day), h, 10*h)
		}, "no newest", "longer than the 168h0m0s of the longest one seen here"},
		{"an enctype is missing", ago(9 * day), []written{writtenAt(1, ago(90*day)), weak, writtenAt(2, ago(8*day))}, func(r *Ring) { opened(r, 2, ago(7*day), h, 10*h) }, "no no newest", "kvno 2 is not here for arcfour-hmac"},
		{"initiates with the newer", ago(9 * day), []written{writtenAt(1, ago(90*day)), writtenAt(2, ago(8*day))}, func(r *Ring) { initiated(r, 2, ago(3*day)) }, "safe newest", ""},
		{"the KDC still takes the old one", ago(9 * day), []written{writtenAt(1, ago(90*day)), writtenAt(2, ago(8*day))}, func(r *Ring) { initiated(r, 1, ago(h)) }, "no newest", "took it from this host"},
		{"and then the newer", ago(9 * day), []written{writtenAt(1, ago(90*day)), writtenAt(2, ago(8*day))}, func(r *Ring) {
			initiated(r, 1, ago(3*day))
			initiated(r, 2, ago(2*day))
		}, "safe newest", ""},
		{"put here before the KDC has it", ago(9 * day), []written{writtenAt(1, ago(90*day)), writtenAt(2, ago(60*day)), writtenAt(3, ago(8*day))}, func(r *Ring) {
			opened(r, 2, ago(7*day), h, 10*h)
		}, "safe unknown newest", ""},
		{"without a time", ago(h), []written{writtenAt(1, ago(90*day)), writtenAt(2, time.Unix(0, 0))}, func(r *Ring) { opened(r, 2, ago(time.Minute), 20*h, h) }, "no newest", "kvno 2 was written at " + ago(h).UTC().Format(time.RFC3339)},
		{"of any version", ago(9 * day), []written{writtenAt(0, ago(90*day)), writtenAt(2, ago(8*day))}, func(r *Ring) { opened(r, 2, ago(7*day), h, 10*h) }, "unknown newest", "serves tickets of every version"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := ringOf(t, test.here, test.records...)
			if test.use != nil {
				test.use(r)
			}
			var got, why []string
			for _, k := range r.state(now, r.life(), skew) {
				got = append(got, string(k.Prune))
				if k.Prune != PruneNewest {
					why = append(why, k.Why)
				}
			}
			if strings.Join(got, " ") != test.want || !strings.Contains(strings.Join(append(why, "")[:1], ""), test.why) {
				t.Errorf("%v, %q; want %s, %q", got, why, test.want, test.why)
			}
		})
	}
}

// Use is of a key and not of the file that it was read from.
func TestFollow(t *testing.T) {
	other := service(1)
	other.key = testKey(other.enctype, 77)
	first := ringOf(t, time.Unix(100, 0), service(1), service(2), service(2))
	first.keys[0].Use.Opened(150, 140, 900, true)
	first.keys[1].Use.Opened(151, 140, 900, true)
	if got := first.keys[2].Use.LastAccepted(); got != 151 {
		t.Errorf("a key that is there twice was used at %d, want 151", got)
	}
	second := mustRing(t, service(3), service(2), other)
	second.follow(first, 200)
	for i, want := range []int64{0, 151, 0} {
		if got := second.keys[i].Use.LastAccepted(); got != want {
			t.Errorf("key %d was used at %d, want %d", i, got, want)
		}
	}
	for i, want := range []int64{200, 100, 200} {
		if got := second.keys[i].Use.Here; got != want {
			t.Errorf("key %d is here since %d, want %d", i, got, want)
		}
	}
	first.keys[1].Use.Opened(250, 140, 900, true) // by a call that has the former ring
	if got := second.keys[1].Use.LastAccepted(); got != 250 {
		t.Errorf("used at %d, want 250", got)
	}
}

func TestChanges(t *testing.T) {
	other := service(2)
	other.key = testKey(other.enctype, 77)
	another := service(2)
	another.enctype, another.key = etype.AES128SHA1, testKey(etype.AES128SHA1, 1)
	for _, test := range []struct {
		name        string
		former, now []written
		want        string
	}{
		{"nothing", []written{service(1), service(2)}, []written{service(2), service(1)}, ""},
		{"first", nil, []written{service(1)}, "1 +[18]-[]~[]"},
		{"newer", []written{service(1)}, []written{service(2), service(1)}, "2 +[18]-[]~[]"},
		{"pruned", []written{service(1), service(2)}, []written{service(2)}, "1 +[]-[18]~[]"},
		{"all", []written{service(1), service(2)}, nil, "1 +[]-[18]~[] 2 +[]-[18]~[]"},
		{"another key", []written{service(1), service(2)}, []written{service(1), other}, "2 +[]-[]~[18]"},
		{"another enctype", []written{service(2)}, []written{service(2), another}, "2 +[17]-[]~[]"},
		{"another enctype's key", []written{service(2)}, []written{another}, "2 +[17]-[18]~[]"},
	} {
		var got []string
		for _, c := range mustRing(t, test.now...).Changes(mustRing(t, test.former...)) {
			if c.Principal != serviceName {
				t.Errorf("%s: of %s", test.name, c.Principal)
			}
			got = append(got, fmt.Sprintf("%d +%d-%d~%d", c.KVNO, c.Loaded, c.Pruned, c.Replaced))
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
	if a, b := mustRing(t, service(1), service(2)).Digest(), mustRing(t, other, service(1)).Digest(); a != b {
		t.Errorf("the same names have the digests %s and %s", a, b)
	}
	if a, b := mustRing(t, service(1)).Digest(), mustRing(t, service(2)).Digest(); a == b {
		t.Error("other names have the same digest")
	}
}

// What a peer writes into a ticket takes no more than a bound, and goes away when it is answered or
// old.
func TestMissed(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	at := func(d time.Duration) time.Time { return now.Add(d) }
	k := new(Keytab)
	nothing := error(nil)
	k.err.Store(&nothing)
	k.ring.Store(ringOf(t, at(-time.Hour), service(1), service(2)))
	miss := func(kvno uint32, et etype.ID, d time.Duration) {
		k.Missed(k.Ring(), []byte(serviceName), kvno, et, at(d))
	}
	look := func(d time.Duration) (list []string) {
		for _, m := range k.State(at(d), 0).Missed {
			list = append(list, fmt.Sprintf("kvno %d enctype %d held %v version %v newest %d times %d", m.KVNO, m.Enctype, m.Held, m.Version, m.Newest, m.Times))
		}
		slices.Sort(list)
		return list
	}
	want := func(d time.Duration, want ...string) {
		t.Helper()
		if got := look(d); !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
	want(0)
	miss(3, etype.AES256SHA1, 0)
	miss(3, etype.AES256SHA1, time.Second)
	miss(2, etype.AES128SHA1, 2*time.Second)
	miss(2, etype.AES256SHA1, 3*time.Second)
	k.Missed(k.Ring(), []byte("somebody@ELSE"), 1, etype.AES256SHA1, now)
	third := "kvno 3 enctype 18 held false version false newest 2 times 2"
	otherType := "kvno 2 enctype 17 held false version true newest 2 times 1"
	otherKey := "kvno 2 enctype 18 held true version true newest 2 times 1"
	want(4*time.Second, otherType, otherKey, third)
	if s := k.State(now, 0); s.Times != 4 || s.Others != 1 {
		t.Errorf("%d and %d others", s.Times, s.Others)
	}

	// A ticket that the same key opens says that the other one was none of the KDC's; a key that is
	// there now, that there is an answer.
	k.Ring().Lookup([]byte(serviceName), 2, etype.AES256SHA1).Use.Opened(at(4*time.Second).Unix(), 0, 0, true)
	next := mustRing(t, service(1), service(2), service(3))
	next.follow(k.Ring(), at(time.Minute).Unix())
	k.ring.Store(next)
	want(time.Minute, strings.Replace(otherType, "newest 2", "newest 3", 1))
	want(25 * time.Hour)

	// One that comes again and again stays, whatever else is made up.
	for n := range uint32(1000) {
		miss(99, etype.AES256SHA1, time.Duration(n)*time.Second)
		miss(1000+n, etype.AES256SHA1, time.Duration(n)*time.Second)
	}
	if got := look(time.Hour); len(got) != maxMissed || !strings.HasPrefix(got[len(got)-1], "kvno 99 ") || !strings.HasSuffix(got[len(got)-1], " times 1000") {
		t.Errorf("%d: %q", len(got), got)
	}
}

// Who asks is told of every ring in its order, and of none for a file that cannot be used.
func TestChanged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.keytab")
	write(t, path, encode(service(1)))
	other := service(2)
	other.key = testKey(other.enctype, 77)
	synctest.Test(t, func(t *testing.T) {
		s, _ := newSet(usualPace())
		eventless(s)
		told := make(chan string, 10)
		s.Changed = func(former, ring *Ring) {
			text := ring.Name()
			for _, c := range ring.Changes(former) {
				text += fmt.Sprintf(" %d +%d-%d~%d", c.KVNO, c.Loaded, c.Pruned, c.Replaced)
			}
			told <- text
		}
		want := func(what string) {
			t.Helper()
			if got := <-told; got != "FILE:"+path+what {
				t.Errorf("%q, want %q", got, what)
			}
		}
		k, err := s.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		want(" 1 +[18]-[]~[]")
		replace(t, path, encode(service(1), service(2)))
		want(" 2 +[18]-[]~[]")
		replace(t, path, encode(service(1), other))
		want(" 2 +[]-[]~[18]")
		write(t, path, []byte("no keytab"))
		time.Sleep(time.Hour)
		replace(t, path, encode(other))
		want(" 1 +[]-[18]~[]")
		os.Remove(path)
		want(" 2 +[]-[18]~[]")
		replace(t, path, encode(service(1)))
		want(" 1 +[18]-[]~[]")
		k.Close()
		want(" 1 +[]-[18]~[]")
		synctest.Wait()
		if len(told) > 0 {
			t.Error(<-told)
		}
	})
}
