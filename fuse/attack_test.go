package fuse

import (
	"bufio"
	"bytes"
	"os/exec"
	"syscall"
	"testing"
	"time"

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
