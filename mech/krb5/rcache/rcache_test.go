package rcache

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func tagOf(i int) (tag [tagLen]byte) {
	binary.BigEndian.PutUint64(tag[:], uint64(i))
	copy(tag[8:], "test")
	return tag
}

func env(pairs ...string) func(string) string {
	return func(key string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == key {
				return pairs[i+1]
			}
		}
		return ""
	}
}

// newCache returns a cache in a file of its own.
func newCache(t testing.TB) *Cache {
	t.Helper()
	c, err := Open("file2:"+filepath.Join(t.TempDir(), "rc"), os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

const skew = 300 * time.Second

var t0 = time.Unix(1_700_000_000, 0)

func TestSipHash(t *testing.T) {
	// The vectors of the SipHash paper's reference implementation: key 00..0f, message 00..n-1.
	want := map[int]uint64{
		0: 0x726fdb47dd0e0e31, 1: 0x74f839c593dc67fd, 7: 0xab0200f58b01d137,
		8: 0x93f5f5799a932462, 15: 0xa129ca6149be45e5, 63: 0x958a324ceb064572,
	}
	var key [16]byte
	msg := make([]byte, 64)
	for i := range msg {
		msg[i] = byte(i)
	}
	copy(key[:], msg)
	for n, h := range want {
		if got := siphash(&key, msg[:n]); got != h {
			t.Errorf("%d octets: %016x, want %016x", n, got, h)
		}
	}
}

func TestNames(t *testing.T) {
	dfl := fmt.Sprintf("krb5_%d.rcache2", os.Geteuid())
	for _, tt := range []struct {
		name, path string
		env        func(string) string
	}{
		{"dfl:", "/var/tmp/" + dfl, env()},
		{"dfl:ignored", "/var/tmp/" + dfl, env()},
		{"dfl:", "/t/" + dfl, env("TMPDIR", "/t")},
		{"dfl:", "/r/" + dfl, env("TMPDIR", "/t", "KRB5RCACHEDIR", "/r")},
		{"file2:/a:b", "/a:b", env()},
		{"none:", "", env()},
		{DefaultName(env(), ""), "/var/tmp/" + dfl, env()},
		{DefaultName(env("KRB5RCACHENAME", "file2:/n", "KRB5RCACHETYPE", "none"), ""), "/n", env()},
		{DefaultName(env("KRB5RCACHETYPE", "none"), ""), "", env()},
	} {
		c, err := Open(tt.name, tt.env)
		if err != nil {
			t.Errorf("%q: %v", tt.name, err)
		} else if c.Path() != tt.path {
			t.Errorf("%q: path %q, want %q", tt.name, c.Path(), tt.path)
		}
	}
	for _, bad := range []string{"dfl", "/var/tmp/x", "file2:", "FILE:/x", "none"} {
		if _, err := Open(bad, env()); err == nil || !strings.Contains(err.Error(), "file2:PATH") {
			t.Errorf("%q: error %v; want one that says what is expected", bad, err)
		}
	}
	if got := DefaultName(env(), "file2:/conf"); got != "file2:/conf" {
		t.Errorf("configured name gives %q", got)
	}
	if got := DefaultName(env("KRB5RCACHETYPE", "none"), "file2:/conf"); got != "none:" {
		t.Errorf("KRB5RCACHETYPE gives %q", got)
	}
}

func TestStore(t *testing.T) {
	c := newCache(t)
	tag := []byte("0123456789abcdef") // only 12 octets count
	if err := c.Store(tag, t0, skew); err != nil {
		t.Fatal(err)
	}
	if err := c.Store(tag, t0, skew); err != ErrReplay {
		t.Errorf("again: %v, want ErrReplay", err)
	}
	if err := c.Store(tag[:12], t0.Add(skew), skew); err != ErrReplay {
		t.Errorf("at the end of the skew: %v, want ErrReplay", err)
	}
	if err := c.Store([]byte("short"), t0, skew); err != nil {
		t.Error(err)
	}
	if err := c.Store([]byte("short\x00\x00\x00"), t0, skew); err != ErrReplay {
		t.Errorf("padded tag: %v, want ErrReplay", err)
	}
	// A second cache on the same file, as after a restart.
	d, err := Open("file2:"+c.Path(), os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Store(tag, t0, skew); err != ErrReplay {
		t.Errorf("second cache: %v, want ErrReplay", err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := d.Store(tag, t0, skew); !errors.Is(err, errClosed) {
		t.Errorf("after Close: %v, want errClosed", err)
	}
	st, err := os.Stat(c.Path())
	if err != nil || st.Mode() != 0o600 {
		t.Errorf("mode %v, error %v; want -rw-------", st.Mode(), err)
	}
	if c.Size() != st.Size() {
		t.Errorf("size %d, the file has %d", c.Size(), st.Size())
	}
	none, _ := Open("none:", os.Getenv)
	for range 2 {
		if err := none.Store(tag, t0, skew); err != nil {
			t.Errorf("none: %v", err)
		}
	}
}

// layout is the format written down a second time: where a tag goes in table k (from 1) under a
// seed.
func layout(seed [seedLen]byte, tag [tagLen]byte, k int) int64 {
	offset, slots := int64(16), int64(1023)
	for i := 1; i < k; i++ {
		offset += slots * 16
		slots = 1024 << i
	}
	seed[0] += byte(k - 1)
	return offset + int64(siphash(&seed, tag[:])%uint64(slots))*16
}

func TestLayout(t *testing.T) {
	if o := layout([16]byte{}, [12]byte{}, 2); o < 16384 || o >= 49152 {
		t.Fatalf("table 2 at %d", o)
	}
	if o := layout([16]byte{}, [12]byte{}, 3); o < 49152 || o >= 49152+4096*16 {
		t.Fatalf("table 3 at %d", o)
	}
	c := newCache(t)
	seed := [seedLen]byte{0: 255, 5: 7} // the first octet wraps in table 2
	if err := os.WriteFile(c.Path(), seed[:], 0o600); err != nil {
		t.Fatal(err)
	}
	tag := tagOf(1)
	read := func(at int64) []byte {
		b, err := os.ReadFile(c.Path())
		if err != nil {
			t.Fatal(err)
		}
		if int64(len(b)) < at+16 {
			return nil
		}
		return b[at : at+16]
	}
	write := func(at int64, tag string, stamp uint32) {
		f, err := os.OpenFile(c.Path(), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		b := binary.BigEndian.AppendUint32([]byte(tag), stamp)
		if _, err := f.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
	now := uint32(t0.Unix())
	rec := binary.BigEndian.AppendUint32(tag[:], now+300)
	const other = "anothers tag"

	// Tables 1 and 2 have both slots taken: the entry belongs into table 3.
	for k := 1; k <= 2; k++ {
		write(layout(seed, tag, k), other, now)
		write(layout(seed, tag, k)+16, other, now)
	}
	if err := c.Store(tag[:], t0, skew); err != nil {
		t.Fatal(err)
	}
	if got := read(layout(seed, tag, 3)); !bytes.Equal(got, rec) {
		t.Fatalf("table 3 has %x, want %x", got, rec)
	}
	if err := c.Store(tag[:], t0, skew); err != ErrReplay {
		t.Fatalf("entry in table 3: %v, want ErrReplay", err)
	}

	// An expired slot on the way is reused, yet the search goes on behind it.
	write(layout(seed, tag, 2), other, now-1000)
	if err := c.Store(tag[:], t0, skew); err != ErrReplay {
		t.Fatalf("behind an expired slot: %v, want ErrReplay", err)
	}
	write(layout(seed, tag, 3), "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", 0)
	if err := c.Store(tag[:], t0, skew); err != nil {
		t.Fatal(err)
	}
	if got := read(layout(seed, tag, 2)); !bytes.Equal(got, rec) {
		t.Fatalf("expired slot has %x, want %x", got, rec)
	}

	// A slot of time 0 is empty, whatever its tag.
	write(layout(seed, tag, 1), string(tag[:]), 0)
	write(layout(seed, tag, 2), other, now)
	if err := c.Store(tag[:], t0, skew); err != nil {
		t.Fatal(err)
	}
	if got := read(layout(seed, tag, 1)); !bytes.Equal(got, rec) {
		t.Fatalf("empty slot has %x, want %x", got, rec)
	}
}

// The last slot of table 1 has the first slot of table 2 for its neighbour.
func TestTableBoundary(t *testing.T) {
	c := newCache(t)
	var seed [seedLen]byte
	if err := os.WriteFile(c.Path(), seed[:], 0o600); err != nil {
		t.Fatal(err)
	}
	var tag [tagLen]byte
	i := 0
	for tag = tagOf(i); layout(seed, tag, 1) != 16384-16; tag = tagOf(i) {
		i++
	}
	now := binary.BigEndian.AppendUint32([]byte("anothers tag"), uint32(t0.Unix()))
	f, err := os.OpenFile(c.Path(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(now, 16384-16); err != nil {
		t.Fatal(err)
	}
	if err := c.Store(tag[:], t0, skew); err != nil {
		t.Fatal(err)
	}
	var got [tagLen]byte
	if _, err := f.ReadAt(got[:], 16384); err != nil || got != tag {
		t.Fatalf("first slot of table 2 has %x, %v; want %x", got, err, tag)
	}
	if err := c.Store(tag[:], t0, skew); err != ErrReplay {
		t.Fatalf("again: %v, want ErrReplay", err)
	}
}

func TestManyEntries(t *testing.T) {
	c := newCache(t)
	// How many tables it takes depends on the seed: one file in two hundred has one more.
	if err := os.WriteFile(c.Path(), []byte("0123456789abcdef"), 0o600); err != nil {
		t.Fatal(err)
	}
	const n = 20_000
	for i := range n {
		tag := tagOf(i)
		if err := c.Store(tag[:], t0, skew); err != nil {
			t.Fatalf("entry %d: %v", i, err)
		}
	}
	for i := range n {
		tag := tagOf(i)
		if err := c.Store(tag[:], t0, skew); err != ErrReplay {
			t.Fatalf("entry %d again: %v", i, err)
		}
	}
	st, err := os.Stat(c.Path())
	if err != nil || st.Size() > 64*n {
		t.Fatalf("%d entries take %d octets (%v)", n, st.Size(), err)
	}
	// The same number of entries after these have expired needs no more room.
	later := t0.Add(2*skew + time.Second)
	for i := range n {
		tag := tagOf(n + i)
		if err := c.Store(tag[:], later, skew); err != nil {
			t.Fatalf("entry %d: %v", n+i, err)
		}
	}
	if again, err := os.Stat(c.Path()); err != nil || again.Size() > 2*st.Size() {
		t.Errorf("grown from %d to %d octets (%v) though every entry had expired", st.Size(), again.Size(), err)
	}
}

// An authenticator that is a skew ahead when it is stored is valid for two; until then its place is
// not given away.
func TestKeptTwiceTheSkew(t *testing.T) {
	c := newCache(t)
	const n = 2000
	for i := range n {
		tag := tagOf(i)
		if err := c.Store(tag[:], t0, skew); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		tag := tagOf(n + i)
		if err := c.Store(tag[:], t0.Add(2*skew), skew); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		tag := tagOf(i)
		if err := c.Store(tag[:], t0.Add(2*skew), skew); err != ErrReplay {
			t.Fatalf("entry %d after twice the skew: %v, want ErrReplay", i, err)
		}
	}
}

func TestIdleReset(t *testing.T) {
	c := newCache(t)
	tag := tagOf(1)
	now := time.Now()
	for i := range 100 {
		tag := tagOf(100 + i)
		if err := c.Store(tag[:], now, skew); err != nil {
			t.Fatal(err)
		}
	}
	before, _ := os.ReadFile(c.Path())
	old := now.Add(-2*skew - idleReset + time.Minute)
	if err := os.Chtimes(c.Path(), old, old); err != nil {
		t.Fatal(err)
	}
	if err := c.Store(tag[:], now, skew); err != nil {
		t.Fatal(err)
	}
	if st, _ := os.Stat(c.Path()); st.Size() < int64(len(before)) {
		t.Fatalf("the file was cut to %d octets before its time", st.Size())
	}
	old = old.Add(-2 * time.Minute)
	if err := os.Chtimes(c.Path(), old, old); err != nil {
		t.Fatal(err)
	}
	tag = tagOf(2)
	if err := c.Store(tag[:], now, skew); err != nil {
		t.Fatal(err)
	}
	after, _ := os.ReadFile(c.Path())
	if !bytes.Equal(after[:seedLen], before[:seedLen]) {
		t.Error("the seed changed")
	}
	var entries int
	for b := after[seedLen:]; len(b) >= recordLen; b = b[recordLen:] {
		if binary.BigEndian.Uint32(b[tagLen:]) != 0 {
			entries++
		}
	}
	if entries != 1 {
		t.Errorf("%d entries after the reset, want the new one only", entries)
	}
}

// A busy cache is not idle, on any file system: writing an entry dates the file.
func TestBusyIsNotIdle(t *testing.T) {
	for _, dir := range []string{os.TempDir(), "/dev/shm"} {
		t.Run(dir, func(t *testing.T) {
			dir, err := os.MkdirTemp(dir, "rcache")
			if err != nil {
				t.Skip("not run: ", err)
			}
			defer os.RemoveAll(dir)
			c, err := Open("file2:"+dir+"/rc", os.Getenv)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			// Most of them find their place within the file, and make it no longer.
			now := time.Now()
			for i := range 1000 {
				old := now.Add(-2*skew - idleReset + time.Minute)
				if err := os.Chtimes(c.Path(), old, old); err != nil && i > 0 {
					t.Fatal(err)
				}
				tag := tagOf(i)
				if err := c.Store(tag[:], now, skew); err != nil {
					t.Fatal(err)
				}
				st, err := os.Stat(c.Path())
				if err != nil {
					t.Fatal(err)
				}
				if st.ModTime().Equal(old) {
					t.Fatalf("the file of %d octets is as old after entry %d as before", st.Size(), i)
				}
			}
		})
	}
}

// The file another acceptor would open next is the one that counts.
func TestFileReplaced(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(path string) error
		want   error // for the tag stored before
	}{
		{"unlinked", os.Remove, nil},
		{"renamed away", func(p string) error { return os.Rename(p, p+".old") }, nil},
		{"truncated", func(p string) error { return os.Truncate(p, 0) }, nil},
		{"copied over", func(p string) error {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			if err := os.WriteFile(p+".new", b, 0o600); err != nil {
				return err
			}
			return os.Rename(p+".new", p)
		}, ErrReplay},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCache(t)
			tag := tagOf(1)
			if err := c.Store(tag[:], t0, skew); err != nil {
				t.Fatal(err)
			}
			if err := tt.change(c.Path()); err != nil {
				t.Fatal(err)
			}
			if tt.name == "renamed away" {
				c.checked = c.checked.Add(-nameCheck) // that much later
			}
			if err := c.Store(tag[:], t0, skew); err != tt.want {
				t.Fatalf("after the change: %v, want %v", err, tt.want)
			}
			d, _ := Open("file2:"+c.Path(), os.Getenv)
			defer d.Close()
			if err := d.Store(tag[:], t0, skew); err != ErrReplay {
				t.Fatalf("another acceptor: %v, want ErrReplay", err)
			}
		})
	}
}

// A file that is cut short while it is locked is an error, not a fault.
func TestCutShort(t *testing.T) {
	c := newCache(t)
	for i := range 5000 {
		tag := tagOf(i)
		if err := c.Store(tag[:], t0, skew); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Truncate(c.Path(), 0); err != nil {
		t.Fatal(err)
	}
	var rec [recordLen]byte
	c.mu.Lock()
	err := c.store(&rec, uint32(t0.Unix()), 300) // with the state of before
	c.mu.Unlock()
	if err == nil || err == ErrReplay || !strings.Contains(err.Error(), "cut short") {
		t.Fatalf("error %v; want one about a file cut short", err)
	}
	tag := tagOf(1)
	if err := c.Store(tag[:], t0, skew); err != nil {
		t.Fatalf("the next entry: %v", err)
	}
}

func TestUnsafeFiles(t *testing.T) {
	dir := t.TempDir()
	getenv := env("KRB5RCACHEDIR", dir)
	c, err := Open("dfl:", getenv)
	if err != nil {
		t.Fatal(err)
	}
	tag := tagOf(1)
	refused := func(what, text string) {
		t.Helper()
		err := c.Store(tag[:], t0, skew)
		if err == nil || err == ErrReplay || !strings.Contains(err.Error(), text) || !strings.Contains(err.Error(), c.Path()) {
			t.Errorf("%s: error %v; want one with %q and the file's name", what, err, text)
		}
	}
	target := filepath.Join(dir, "target")
	if err := os.WriteFile(target, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, c.Path()); err != nil {
		t.Fatal(err)
	}
	refused("symbolic link", "symbolic link")
	os.Remove(c.Path())
	if err := unix.Mkfifo(c.Path(), 0o600); err != nil {
		t.Fatal(err)
	}
	refused("fifo", "regular file")
	os.Remove(c.Path())
	ours := filepath.Join(t.TempDir(), "ours")
	if err := errors.Join(os.WriteFile(ours, []byte("root:x:0:0"), 0o600), os.Link(ours, c.Path())); err != nil {
		t.Fatal(err)
	}
	refused("another file of ours", "another name")
	if b, err := os.ReadFile(ours); err != nil || string(b) != "root:x:0:0" {
		t.Errorf("the other file has %q, %v", b, err)
	}
	os.Remove(c.Path())
	if os.Geteuid() == 0 {
		if err := os.WriteFile(c.Path(), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(c.Path(), 65534, 65534); err != nil {
			t.Fatal(err)
		}
		refused("another's file", "owned by uid 65534")
		os.Remove(c.Path())
	}
	if err := c.Store(tag[:], t0, skew); err != nil {
		t.Errorf("after the obstacle is gone: %v", err)
	}
	d, _ := Open("file2:"+dir+"/no/such", os.Getenv)
	if err := d.Store(tag[:], t0, skew); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing directory: %v, want ErrNotExist", err)
	}
}

func TestDiskFull(t *testing.T) {
	// A file size limit gives the same kind of failure at a chosen place without a file system of
	// its own; the child has it, not this process.
	c := newCache(t)
	cmd := exec.Command("sh", "-c", "ulimit -f 0; exec \"$0\" -test.run='^$'", os.Args[0])
	cmd.Env = append(os.Environ(), "RCACHE_TEST_STORE="+c.Path())
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "file too large") || !strings.Contains(string(out), c.Path()) {
		t.Fatalf("error %v, output %q; want the failure to be named with the file", err, out)
	}
}

func TestGoroutines(t *testing.T) {
	c := newCache(t)
	const workers, tags = 64, 50
	for i := range tags {
		var accepted atomic.Int32
		var wg sync.WaitGroup
		start := make(chan struct{})
		tag := tagOf(i)
		for range workers {
			wg.Go(func() {
				<-start
				switch err := c.Store(tag[:], t0, skew); err {
				case nil:
					accepted.Add(1)
				case ErrReplay:
				default:
					t.Error(err)
				}
			})
		}
		close(start)
		wg.Wait()
		if n := accepted.Load(); n != 1 {
			t.Fatalf("tag %d accepted %d times", i, n)
		}
	}
}

func FuzzFile(f *testing.F) {
	f.Add([]byte(nil), []byte("tag"))
	f.Add([]byte("0123456789abcdef"), []byte("0123456789ab"))
	f.Add(bytes.Repeat([]byte{0xff}, 16384+40), []byte("0123456789ab"))
	f.Add(bytes.Repeat([]byte{0xff}, 49152+65536+1), []byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, content, tag []byte) {
		c := newCache(t)
		if err := os.WriteFile(c.Path(), content, 0o600); err != nil {
			t.Fatal(err)
		}
		first := c.Store(tag, time.Now(), skew)
		if first != nil && first != ErrReplay {
			t.Fatalf("first store: %v", first)
		}
		if err := c.Store(tag, time.Now(), skew); err != ErrReplay {
			t.Fatalf("second store: %v after %v; want ErrReplay", err, first)
		}
	})
}

func BenchmarkStore(b *testing.B) {
	for _, entries := range []int{0, 100_000} {
		b.Run(fmt.Sprintf("entries=%d", entries), func(b *testing.B) {
			c := newCache(b)
			now := time.Now()
			for i := range entries {
				tag := tagOf(i)
				c.Store(tag[:], now, skew)
			}
			b.ReportAllocs()
			i := entries
			for b.Loop() {
				i++
				tag := tagOf(i)
				if err := c.Store(tag[:], now, skew); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
