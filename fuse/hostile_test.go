package fuse

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/interposer"
	"gssproxyd/limits"
	"gssproxyd/rpc/peer"
	"gssproxyd/xdr"
)

// stuck are calls that are not answered before free is closed or something is sent to it, but the first one.
type stuck struct{ begun, free chan struct{} }

func (c stuck) Call(_ context.Context, proc uint32, _ []byte) ([]byte, error) {
	if proc == uint32(xdr.ProcNull) {
		return nil, nil
	}
	c.begun <- struct{}{}
	<-c.free
	return nil, errors.New("there is no daemon")
}

func (stuck) Close() error { return nil }

const waitFor = time.Minute

// until polls for something.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(waitFor); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not come to that: ", what)
		}
	}
}

// TestRemovedBusy: while a directory is removed the kernel holds the one above it, so removing one of
// which a step is under way must not wait for that.
func TestRemovedBusy(t *testing.T) {
	calls := stuck{make(chan struct{}), make(chan struct{})}
	dir, s := mountedFor(t, everything, func(*peer.Info) (interposer.Caller, error) { return calls, nil })
	var out bytes.Buffer
	cmd := command(t, dir, 1000, inNames+`mkdir execution/x; echo '{"name":"alice"}' >execution/x/inputs; echo execute >execution/x/control & read -r _ && rmdir execution/x && echo removed && wait && ls execution`)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-calls.begun
	waited := time.AfterFunc(waitFor, func() { close(calls.free) })
	in.Write([]byte("go\n"))
	names := &s.executions[len(operations)-1]
	until(t, "it is removed", func() bool { return len(names.where(func(*kept) bool { return true })) == 0 })
	if other, err := sh(t, dir, 1001, inNames+"mkdir execution/y && ls execution && rmdir execution/y"); err != nil || other != "y\n" {
		t.Errorf("another user meanwhile: %v: %s", err, other)
	}
	if !waited.Stop() {
		t.Error("the directory is held for as long as the step takes")
	} else {
		close(calls.free)
	}
	if err := cmd.Wait(); err != nil || !bytes.HasPrefix(out.Bytes(), []byte("removed\n")) {
		t.Errorf("%v: %s", err, &out)
	}
}

// TestRemovedByUnknown: who cannot be known removes nothing. Root acts as a user for files only, as an NFS server does.
func TestRemovedByUnknown(t *testing.T) {
	dir, s := mounted(t, everything)
	cmd := command(t, dir, 1000, inNames+"mkdir execution/x && echo made && read -r _; exit 0")
	in, made := begin(t, cmd)
	defer cmd.Wait()
	defer in.Close()
	if line, err := bufio.NewReader(made).ReadString('\n'); err != nil {
		t.Fatal(line, err)
	}
	const borrowed = `exec python3 -c '
import ctypes, os
libc = ctypes.CDLL(None)
libc.setfsgid(1000)
libc.setfsuid(1000)
for act in os.mkdir, os.rmdir:
    try: act("execution/x" if act is os.rmdir else "execution/y")
    except OSError as e: print(e.errno)'`
	if out, err := sh(t, dir, 0, inNames+borrowed); err != nil || out != "13\n13\n" {
		t.Errorf("by ids for files: %v: %s", err, out)
	}
	if s.executions[len(operations)-1].find(1000, "x") == nil {
		t.Error("it is removed")
	}
	if out, err := sh(t, dir, 1000, inNames+"rmdir execution/x"); err != nil { // another session
		t.Errorf("by its user: %v: %s", err, out)
	}
}

// TestInputsPaid: what is written to inputs is the user's buffers, a mebibyte at most, and is given back when it is
// truncated and when the execution is removed.
func TestInputsPaid(t *testing.T) {
	dir, s := mounted(t, everything)
	cmd := command(t, dir, 1000, inNames+`e=execution/x; mkdir $e && echo made; while read -r line; do eval "$line" 2>&1; echo done; done`)
	in, out := begin(t, cmd)
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "made" {
		t.Fatalf("the shell says %q", lines.Text())
	}
	does := func(do string) (said string) {
		fmt.Fprintln(in, do)
		for lines.Scan() && lines.Text() != "done" {
			said += lines.Text() + "\n"
		}
		return said
	}
	held := func() int { return buffers(s.o.Limits).Held(1000) }
	if said := does(`head -c 1048576 /dev/zero >$e/inputs; wc -c <$e/inputs; cat $e/error`); said != "1048576\n" {
		t.Errorf("a mebibyte: %s", said)
	}
	if n := held(); n < maxInput {
		t.Errorf("%d bytes are paid for", n)
	}
	const refused = "bad-argument: a step takes an object of 1048576 bytes at most\nhint: correct the client\n"
	if said := does(`echo >>$e/inputs; wc -c <$e/inputs; cat $e/error`); said != "/bin/bash: line 1: echo: write error: Message too long\n1048576\n"+refused {
		t.Errorf("more than a mebibyte: %s", said)
	}
	does(": >$e/inputs")
	until(t, "what was truncated is given back", func() bool { return held() < maxInput/2 })
	does("head -c 1048576 /dev/zero >$e/inputs")
	if n := held(); n < maxInput {
		t.Errorf("%d bytes are paid for", n)
	}
	does("rmdir $e")
	until(t, "what was removed is given back", func() bool { return held() < maxInput/2 })
}

// TestPaid: whatever a user opens and does not close, others have their share, and all is given back
// in the end. What is removed and still open is paid for.
func TestPaid(t *testing.T) {
	for _, c := range []struct {
		name, do string
		budget   func(*limits.Limits) *limits.Budget
	}{
		{"files", "exec {fd}<modules/krb5/status", buffers},
		{"directories", "exec {fd}<modules", buffers},
		{"a listing", "exec {fd}<modules/krb5/operations/names/execution", buffers},
		{"removed executions", "mkdir e/$i && cd e/$i && exec {fd}<. && cd $OLDPWD && rmdir e/$i", keptOf},
		{"removed executions' files", "mkdir e/$i && exec {fd}< e/$i/inputs && rmdir e/$i", keptOf},
		{"conversations", "exec {fd}<>modules/krb5/operations/names/transact", buffers},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, s := mounted(t, everything)
			before := c.budget(s.o.Limits).Held(1000)
			cmd := command(t, dir, 1000, "ulimit -n 400; e=modules/krb5/operations/names/execution; one() { "+strings.ReplaceAll(c.do, " e/", " $e/")+"; }; i=0; while ((i < 300)) && one; do ((i++)); done; cd /; echo $i; read -r _; exit 0")
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stderr = os.Stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil || line != "300\n" {
				t.Fatal(line, err)
			}
			held := c.budget(s.o.Limits).Held(1000)
			t.Logf("300 are %d", held-before)
			if held-before < 300 {
				t.Errorf("nobody pays: %d", held-before)
			}
			in.Close()
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
			// What was looked up last the kernel remembers, until it is looked up again.
			if _, err := os.Stat(dir + "/modules/krb5/operations/names/transact"); err != nil {
				t.Error(err)
			}
			until(t, "all is given back", func() bool {
				s.open.mu.Lock()
				defer s.open.mu.Unlock()
				return len(s.open.open) == 1 && buffers(s.o.Limits).Held(1000) == 0 && keptOf(s.o.Limits).Held(1000) == 0
			})
		})
	}
}

func buffers(l *limits.Limits) *limits.Budget { return l.Buffers }
func keptOf(l *limits.Limits) *limits.Budget  { return l.Kept }

// TestEnds: files that are closed after the end of the mount are not heard of any more. What they held
// is given back.
func TestEnds(t *testing.T) {
	var open atomic.Int32
	dir, s := mountedFor(t, everything, func(*peer.Info) (interposer.Caller, error) {
		open.Add(1)
		return counted{fake{}, &open}, nil
	})
	cmd := command(t, dir, 1000, "exec 3<>modules/krb5/operations/names/transact 4<modules/krb5/status; mkdir modules/krb5/operations/init/execution/x; cd modules/krb5/operations/init/execution/x; exec 5>control 6<inputs; cd /; echo open; read -r _")
	in, out := begin(t, cmd)
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(line, err)
	}
	if n := open.Load(); n != 2 {
		t.Fatalf("%d are open, want 2", n)
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	// All at once: the process ends.
	in.Close()
	cmd.Wait()
	<-s.done
	if n := open.Load(); n != 0 {
		t.Errorf("%d connections are not closed", n)
	}
	for _, b := range s.o.Limits.Budgets() {
		if n := b.Held(1000); n != 0 {
			what, _, _ := b.Use()
			t.Errorf("%d %s are still held", n, what)
		}
	}
	if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil { // which the end of the test unmounts
		t.Fatal(err)
	}
}

// counted counts connections that are open.
type counted struct {
	fake
	open *atomic.Int32
}

func (c counted) Close() error { c.open.Add(-1); return nil }

// TestStuckElsewhere: a step of one user that takes long holds up none of another's. While somebody
// writes to a file the kernel lets nobody else write to it.
func TestStuckElsewhere(t *testing.T) {
	calls := stuck{make(chan struct{}), make(chan struct{})}
	dir, _ := mountedFor(t, everything, func(p *peer.Info) (interposer.Caller, error) {
		if p.UID == 1000 {
			return calls, nil
		}
		return fake{}, nil
	})
	slow := command(t, dir, 1000, inNames+`exec 3<>transact; echo '{"name":"alice"}' >&3`)
	if err := slow.Start(); err != nil {
		t.Fatal(err)
	}
	<-calls.begun
	waited := time.AfterFunc(waitFor, func() { close(calls.free) })
	var out bytes.Buffer
	other := command(t, dir, 1001, inNames+"exec 3<>transact; echo '{}' >&3; cat <&3")
	other.Stdout = &out
	if err := other.Run(); err != nil || out.String() != noName {
		t.Errorf("another user: %v: %s", err, &out)
	}
	if !waited.Stop() {
		t.Error("another user waits for as long as the step takes")
	} else {
		close(calls.free)
	}
	slow.Wait()
}

// TestManyGroups: who has many groups pays for what an open file of its keeps of them. In a user
// namespace with subordinate ids anybody may have 65,536.
func TestManyGroups(t *testing.T) {
	dir, s := mounted(t, everything)
	groups := make([]uint32, 60000)
	for i := range groups {
		groups[i] = uint32(100000 + i)
	}
	cmd := exec.CommandContext(t.Context(), "/bin/bash", "-c", "cd "+dir+"; "+inNames+"exec 3<>transact; echo open; read -r _; exit 0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000, Groups: groups}, Setsid: true}
	in, out := begin(t, cmd)
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(line, err)
	}
	if held, want := buffers(s.o.Limits).Held(1000), 4*len(groups); held < want {
		t.Errorf("%d bytes are paid for, want %d", held, want)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	until(t, "it is given back", func() bool { return buffers(s.o.Limits).Held(1000) <= openSize })
}

// TestMakesAtOnce: who makes an execution waits for no turn: while it does, the kernel lets nobody else
// make, remove or look up one in that directory.
func TestMakesAtOnce(t *testing.T) {
	dir, s := mounted(t, everything)
	for range 8 { // no processor is to be had
		_, turn, err := s.o.Limits.Turn(t.Context(), 1001, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer turn.End()
	}
	// With a turn each is a quarter of a second, and all of them more than what is waited for.
	cmd := command(t, dir, 1000, "exec python3 -c 'import os\nfor i in range(400): os.mkdir(\"modules/krb5/operations/names/execution/%d\" % i)\nprint(\"made\")'")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(waitFor, func() { cmd.Process.Kill() })
	defer late.Stop()
	if err := cmd.Wait(); err != nil || out.String() != "made\n" {
		t.Errorf("%v: %s", err, &out)
	}
}

// TestFollowedNoMore: who had the log open when the mount ended follows it no more.
func TestFollowedNoMore(t *testing.T) {
	dir, s := mounted(t, everything)
	cmd := command(t, dir, 0, "exec 3<log; cd /; echo open; read -r _; exit 0")
	in, out := begin(t, cmd)
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || !s.Followed() {
		t.Fatal(line, err, s.Followed())
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	in.Close()
	cmd.Wait()
	<-s.done
	if s.Followed() {
		t.Error("every call is written down for somebody who is not there")
	}
	if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil { // which the end of the test unmounts
		t.Fatal(err)
	}
}

// TestTruncatedElsewhere: another session of a user empties no inputs by their path.
func TestTruncatedElsewhere(t *testing.T) {
	dir, _ := mounted(t, everything)
	const truncate = `python3 -c 'import os; os.truncate("inputs", 0)' 2>&1 | tail -1; `
	run(t, dir, []script{{"another session", 1000, inNames + "mkdir execution/x; cd execution/x; echo hello >inputs; setsid -w bash -c \"" + strings.ReplaceAll(truncate, `"`, `\"`) + "\"; cat inputs; : >inputs; cat inputs; cd ..; rmdir x",
		"PermissionError: [Errno 13] Permission denied: 'inputs'\nhello\n"}})
}
