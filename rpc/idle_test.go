package rpc_test

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"syscall"
	"testing"

	"gssproxyd/rpc"
	"gssproxyd/rpc/rpctest"
)

// deep uses the stack as a procedure does.
//
//go:noinline
func deep(n int) byte {
	var frame [512]byte
	if n == 0 {
		return frame[n%7]
	}
	frame[n%512] = deep(n - 1)
	return frame[n%512]
}

// raceDetector reports whether the race detector is in this program, which takes memory too.
func raceDetector() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// An idle connection that has made a call holds little: no buffers, no deep stack, no descriptor
// but its own.
func TestIdleConnection(t *testing.T) {
	const conns = 1000
	path := filepath.Join(socketDir(t), "s")
	rpctest.StartAt(t, path, &rpc.Server{Match: rpctest.Everybody(func(_ context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
		return append(reply, deep(20)), rpc.Success
	})})
	request, reply := call(1), make([]byte, 64)
	connect := func() {
		// Without package net, whose part would be counted.
		fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { syscall.Close(fd) })
		if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
			t.Fatal(err)
		}
		if _, err := syscall.Write(fd, request); err != nil {
			t.Fatal(err)
		}
		if n, err := syscall.Read(fd, reply); err != nil || n != 29 {
			t.Fatalf("%d bytes, %v", n, err)
		}
	}
	inUse := func() (heap, stacks uint64) {
		runtime.GC() // a stack shrinks by half each time
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc, m.StackInuse
	}
	for range 10 {
		connect()
	}
	files := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	heap, stacks := inUse()
	before := files()
	for range conns {
		connect()
	}
	heap2, stacks2 := inUse()
	heap, stacks = (heap2-heap)/conns, (stacks2-stacks)/conns
	t.Logf("%d bytes of the heap, %d of stacks", heap, stacks)
	most := uint64(8 << 10) // it is 2.3 KiB and 2 KiB
	if raceDetector() {
		most = 12 << 10 // 5.6 to 6.1 KiB and 4 KiB
	}
	if heap+stacks > most {
		t.Errorf("an idle connection holds %d bytes of the heap and %d of stacks: more than %d", heap, stacks, most)
	}
	if n := files() - before; n > 2*conns { // both ends
		t.Errorf("%d connections have %d descriptors", conns, n)
	}
}
