package rcache

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/tests/lab"
)

// TestMain doubles as a process that stores tags until it is killed: the file is its argument, and
// each tag it stored is printed.
func TestMain(m *testing.M) {
	if path := os.Getenv("RCACHE_TEST_STORE"); path != "" {
		storeForever(path)
	}
	os.Exit(m.Run())
}

func storeForever(path string) {
	c, err := Open("file2:"+path, os.Getenv)
	if err != nil {
		panic(err)
	}
	for i := 0; ; i++ {
		tag := tagOf(i)
		switch err := c.Store(tag[:], time.Now(), 300*time.Second); err {
		case nil:
			fmt.Println(i)
		case ErrReplay:
		default:
			panic(err)
		}
		if i == 200_000 {
			os.Exit(0)
		}
	}
}

// child starts this test as a process that stores tags into path.
func child(t *testing.T, path string) (*exec.Cmd, io.Reader) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), "RCACHE_TEST_STORE="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, out
}

func TestProcessesAndKill(t *testing.T) {
	c := newCache(t)
	const n = 3
	var mu sync.Mutex
	stored := map[string]int{}
	var wg sync.WaitGroup
	var seen [n]chan struct{}
	var cmds [n]*exec.Cmd
	for i := range n {
		cmd, out := child(t, c.Path())
		seen[i], cmds[i] = make(chan struct{}), cmd
		wg.Go(func() {
			sc := bufio.NewScanner(out)
			for lines := 0; sc.Scan(); lines++ {
				mu.Lock()
				stored[sc.Text()]++
				mu.Unlock()
				if lines == 300 {
					close(seen[i])
				}
			}
		})
	}
	// Our own goroutines compete meanwhile.
	var own atomic.Int32
	for i := range 2000 {
		tag := tagOf(i)
		if c.Store(tag[:], time.Now(), skew) == nil {
			own.Add(1)
			mu.Lock()
			stored[fmt.Sprint(i)]++
			mu.Unlock()
		}
	}
	for i, cmd := range cmds {
		select {
		case <-seen[i]:
		case <-time.After(time.Minute):
			t.Error("a child stored too little")
		}
		cmd.Process.Signal(syscall.SIGKILL)
	}
	wg.Wait()
	for _, cmd := range cmds {
		cmd.Wait()
	}
	for i, n := range stored {
		if n != 1 {
			t.Errorf("tag %s accepted %d times", i, n)
		}
	}
	for s := range stored {
		var i int
		fmt.Sscan(s, &i)
		tag := tagOf(i)
		if err := c.Store(tag[:], time.Now(), skew); err != ErrReplay {
			t.Fatalf("tag %d after the kill: %v, want ErrReplay", i, err)
		}
	}
	t.Logf("%d tags by four processes, %d of them here", len(stored), own.Load())
}

func TestBusy(t *testing.T) {
	c := newCache(t)
	f, err := os.OpenFile(c.Path(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := setLock(int(f.Fd()), unix.F_WRLCK); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(c.Path(), unix.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := waitLock(fd, time.Now().Add(20*time.Millisecond)); err != errBusy {
		t.Fatalf("locked by another: %v, want errBusy", err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		time.Sleep(20 * time.Millisecond) // most likely it is waited for by then; if not, the outcome is the same
		setLock(int(f.Fd()), unix.F_UNLCK)
	})
	defer wg.Wait()
	if err := waitLock(fd, time.Now().Add(time.Minute)); err != nil {
		t.Fatalf("lock set free: %v", err)
	}
}

type mitCache struct {
	in  io.WriteCloser
	out *bufio.Scanner
}

func startMIT(t *testing.T, bin, name string) *mitCache {
	t.Helper()
	conf := filepath.Join(t.TempDir(), "krb5.conf")
	if err := os.WriteFile(conf, []byte("[libdefaults]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, name)
	cmd.Env = append(os.Environ(), "KRB5_CONFIG="+conf)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	return &mitCache{in, bufio.NewScanner(out)}
}

func (m *mitCache) store(t *testing.T, tag [tagLen]byte) string {
	t.Helper()
	if _, err := fmt.Fprintln(m.in, hex.EncodeToString(tag[:])); err != nil {
		t.Fatal(err)
	}
	if !m.out.Scan() {
		t.Fatal("MIT's library ended: ", m.out.Err())
	}
	return m.out.Text()
}

const mitReplay = "-1765328350" // KRB5KRB_AP_ERR_REPEAT

func TestMIT(t *testing.T) {
	bin := lab.BuildC(t, "testdata/store.c")
	c := newCache(t)
	m := startMIT(t, bin, "file2:"+c.Path())
	const n = 5000 // fills tables 1 and 2
	for i := range n {
		tag := tagOf(i)
		if i%2 == 0 {
			if err := c.Store(tag[:], time.Now(), skew); err != nil {
				t.Fatalf("tag %d here: %v", i, err)
			}
		} else if got := m.store(t, tag); got != "0" {
			t.Fatalf("tag %d there: %s", i, got)
		}
	}
	for i := range n {
		tag := tagOf(i)
		if i%2 == 1 {
			if err := c.Store(tag[:], time.Now(), skew); err != ErrReplay {
				t.Fatalf("tag %d of theirs here: %v, want ErrReplay", i, err)
			}
		} else if got := m.store(t, tag); got != mitReplay {
			t.Fatalf("tag %d of ours there: %s, want %s", i, got, mitReplay)
		}
	}
}

// MIT's library does not give our entries' places away while their authenticators may still be
// valid.
func TestMITKeepsOurs(t *testing.T) {
	bin := lab.BuildC(t, "testdata/store.c")
	c := newCache(t)
	tag := tagOf(1)
	if err := c.Store(tag[:], time.Now().Add(-2*skew+4*time.Minute), skew); err != nil {
		t.Fatal(err)
	}
	m := startMIT(t, bin, "file2:"+c.Path())
	// Enough of theirs to have needed its place.
	for i := 2; i < 10_000; i++ {
		if got := m.store(t, tagOf(i)); got != "0" {
			t.Fatalf("tag %d there: %s", i, got)
		}
	}
	if got := m.store(t, tag); got != mitReplay {
		t.Errorf("our tag there: %s, want %s", got, mitReplay)
	}
	if err := c.Store(tag[:], time.Now(), skew); err != ErrReplay {
		t.Errorf("our tag here: %v, want ErrReplay", err)
	}
}

func TestMITAtOnce(t *testing.T) {
	bin := lab.BuildC(t, "testdata/store.c")
	c := newCache(t)
	m := startMIT(t, bin, "file2:"+c.Path())
	const n = 4000
	var theirs [n]bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range n {
			theirs[i] = m.store(t, tagOf(i)) == "0"
		}
	})
	var ours [n]bool
	for i := n - 1; i >= 0; i-- {
		tag := tagOf(i)
		err := c.Store(tag[:], time.Now(), skew)
		if err != nil && err != ErrReplay {
			t.Error(err)
		}
		ours[i] = err == nil
	}
	wg.Wait()
	for i := range n {
		if ours[i] == theirs[i] {
			t.Fatalf("tag %d: accepted here %v, there %v", i, ours[i], theirs[i])
		}
	}
}
