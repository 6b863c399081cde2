package rpc_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"gssproxyd/rpc"
	"gssproxyd/rpc/rpctest"
)

// BenchmarkCall is an empty call over a unix socket: one write, one read, and no allocation on
// either side but the client's connection. The client here is as bare as can be; cpu-ns/op is both
// sides together.
func BenchmarkCall(b *testing.B) {
	for _, conns := range []int{1, 16} {
		b.Run(fmt.Sprintf("conns=%d", conns), func(b *testing.B) { benchmarkCall(b, conns, false) })
	}
	// The C plugin sends the mark by itself.
	b.Run("conns=16/split", func(b *testing.B) { benchmarkCall(b, 16, true) })
}

func benchmarkCall(b *testing.B, conns int, split bool) {
	path, _ := rpctest.Start(b, func(_ context.Context, _ *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
		return reply, rpc.Success
	})
	request := call(1, make([]byte, 12)...)
	var clients []*net.UnixConn
	for range conns {
		clients = append(clients, dial(b, path))
	}
	b.ReportAllocs()
	b.ResetTimer()
	start := cpu()
	var wg sync.WaitGroup
	for i, c := range clients {
		n := b.N / conns
		if i < b.N%conns {
			n++
		}
		c.SetDeadline(time.Time{})
		reply := make([]byte, 28)
		wg.Go(func() {
			for range n {
				rest := request
				if split {
					c.Write(request[:4])
					rest = request[4:]
				}
				if _, err := c.Write(rest); err != nil {
					b.Error(err)
					return
				}
				if _, err := io.ReadFull(c, reply); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(cpu()-start)/float64(b.N), "cpu-ns/op")
}

func cpu() time.Duration {
	var ru syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// BenchmarkClient is the same with this package's client.
func BenchmarkClient(b *testing.B) {
	path, _ := rpctest.Start(b, echo)
	c, err := rpc.Dial(b.Context(), path)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	args := make([]byte, 12)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Call(b.Context(), 1, args); err != nil {
			b.Fatal(err)
		}
	}
}
