package fuse

import (
	"bufio"
	"bytes"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/interposer"
	"gssproxyd/rpc/peer"
)

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
