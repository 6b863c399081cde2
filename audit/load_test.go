package audit

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	writers  = 16
	roleOf   = "AUDIT_TEST_ROLE"
	diskSize = 24 << 20
)

func TestMain(m *testing.M) {
	if os.Getenv(roleOf) == "writer" {
		write(os.Args[1], os.Args[2])
		return
	}
	os.Exit(m.Run())
}

// write is the program that writes to a log, until it is killed: 16 goroutines, each of which has the
// number of its last event that the log took at its place in the file acked. It is asked for things
// by lines of its standard input, and answers each with one.
func write(path, acked string) {
	l, err := Open(path, Options{Refuse: true})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	acks, err := os.OpenFile(acked, os.O_WRONLY, 0)
	if err != nil {
		panic(err)
	}
	for g := range writers {
		go func() {
			e := &Event{Kind: CallAllowed, Connection: fmt.Sprint("g", g), Service: "http", Principal: "alice@EXAMPLE.COM", Caller: &Caller{UID: 33}}
			for e.Call = 1; ; e.Call++ {
				if l.Record(context.Background(), e) != nil {
					continue
				}
				if _, err := acks.WriteAt(binary.BigEndian.AppendUint64(nil, e.Call), int64(8*g)); err != nil {
					panic(err)
				}
			}
		}()
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		switch in.Text() {
		case "reopen":
			fmt.Println(l.Reopen())
		case "lost":
			fmt.Println(l.Lost())
		}
	}
}

// TestUnderLoad: 16 goroutines write while the file is renamed twice and the disk is full once, and
// then the program is killed. What the next one leaves is a chain, or names the one torn line; it
// has every event that the log took, and says how many it did not.
func TestUnderLoad(t *testing.T) {
	if os.Getenv(roleOf) == "stage" {
		underLoad(t)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("not run: only root can mount a disk to fill")
	}
	// In a mount namespace of its own, with all that it starts.
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestUnderLoad$", "-test.v")
	cmd.Env = append(os.Environ(), roleOf+"=stage")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if bytes.Contains(out, []byte("--- SKIP")) {
		t.Skipf("%s", out)
	}
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestUnderLoad")) {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

func underLoad(t *testing.T) {
	disk, acked := t.TempDir(), filepath.Join(t.TempDir(), "acked")
	if err := unix.Mount("audit", disk, "tmpfs", 0, fmt.Sprintf("mode=0700,size=%d", diskSize)); err != nil {
		t.Skipf("not run: no disk to fill: mount: %v", err)
	}
	defer unix.Unmount(disk, unix.MNT_DETACH)
	must(t, os.WriteFile(acked, make([]byte, 8*writers), 0o600))
	path := filepath.Join(disk, "audit.log")
	cmd := exec.CommandContext(t.Context(), os.Args[0], path, acked)
	cmd.Env = append(os.Environ(), roleOf+"=writer")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	pipe, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	answers := bufio.NewReader(pipe)
	ask := func(what string) string {
		io.WriteString(in, what+"\n")
		answer, err := answers.ReadString('\n')
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		return strings.TrimSpace(answer)
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("not within a minute: %s", what)
			}
		}
	}
	size := func() int64 {
		st, err := os.Stat(path)
		if err != nil {
			return 0
		}
		return st.Size()
	}
	grown := func() { t.Helper(); from := size(); until("more lines", func() bool { return size() > from+10_000 }) }
	rotate := func(to string) {
		t.Helper()
		must(t, os.Rename(path, path+to))
		if got := ask("reopen"); got != "<nil>" {
			t.Fatal(got)
		}
		grown()
	}

	until("the first lines", func() bool { return size() > 0 })
	grown()
	rotate(".2")
	filler, err := os.Create(filepath.Join(disk, "filler"))
	must(t, err)
	for err == nil {
		_, err = filler.Write(make([]byte, 4096))
	}
	until("a full disk", func() bool { return ask("lost") != "0" })
	must(t, filler.Truncate(0))
	must(t, filler.Close())
	grown()
	rotate(".1")
	must(t, cmd.Process.Kill())
	cmd.Wait()

	l := mustOpen(t, path, Options{Refuse: true})
	must(t, l.Record(t.Context(), &Event{Kind: Stopped}))
	must(t, l.Close())
	files := []string{path + ".2", path + ".1", path}
	r, err := Verify(files, l.chain.head())
	if err != nil || r.Lost == 0 || len(r.Torn) > 1 || len(r.Torn) == 1 && r.Torn[0].File != path {
		t.Fatalf("%+v, %v", r, err)
	}
	has := recorded(t, files)
	numbers, err := os.ReadFile(acked)
	must(t, err)
	for g := range writers {
		call := fmt.Sprintf("g%d-%d", g, binary.BigEndian.Uint64(numbers[8*g:]))
		if !has[call] {
			t.Errorf("the log took %s, and does not have it", call)
		}
	}
	t.Logf("%d lines, %d lost, torn %v", r.Lines, r.Lost, r.Torn)
}

// recorded are the ids of all calls in the files.
func recorded(t *testing.T, files []string) map[string]bool {
	has := map[string]bool{}
	for _, name := range files {
		b, err := os.ReadFile(name)
		must(t, err)
		for l := range bytes.Lines(b) {
			var e struct{ Call string }
			if json.Unmarshal(l, &e) == nil {
				has[e.Call] = true
			}
		}
	}
	return has
}

// TestRotatedUnderLoad: 16 goroutines write, and wait for nothing, while the file is renamed twice:
// each event is there, in its goroutine's order, or counted.
func TestRotatedUnderLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := mustOpen(t, path, Options{})
	const each = 2000
	var all sync.WaitGroup
	for g := range writers {
		all.Go(func() {
			for i := range uint64(each) {
				if err := l.Record(t.Context(), &Event{Kind: CallAllowed, Connection: fmt.Sprint("g", g), Call: i + 1}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for _, to := range []string{".2", ".1"} {
		must(t, os.Rename(path, path+to))
		must(t, l.Reopen())
	}
	all.Wait()
	must(t, l.Close())
	files := []string{path + ".2", path + ".1", path}
	r, err := Verify(files, l.chain.head())
	if err != nil || len(recorded(t, files))-1+int(l.Lost()) != writers*each || r.Lost != l.Lost() {
		t.Errorf("%+v, %v; lost %d", r, err, l.Lost())
	}
}
