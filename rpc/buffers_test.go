package rpc

import (
	"bytes"
	"context"
	"io"
	"net"
	"path/filepath"
	"testing"

	"gssproxyd/rpc/peer"
	"gssproxyd/xdr"
)

// echoes answers so many calls at once with their arguments.
type echoes int

func (n echoes) Parallel() int { return int(n) }

func (n echoes) Handle(_ context.Context, c *Call, reply []byte) ([]byte, AcceptStat) {
	return append(reply, c.Args...), Success
}

// Contexts go both ways with their keys in them; buffers that are lent to another connection have
// none of it.
func TestBuffersCleared(t *testing.T) {
	secret := bytes.Repeat([]byte("secret"), 100)
	for _, parallel := range []int{0, 4} {
		path := filepath.Join(t.TempDir(), "s")
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		s := &Server{
			Match: func(context.Context, *Conn, uint32) (Service, bool) { return echoes(parallel), true },
		}
		done := make(chan error)
		go func() { done <- s.Serve(t.Context(), l, "") }()
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		h := xdr.CallHeader{RPCVersion: xdr.RPCVersion, Program: xdr.Program, Version: xdr.Version, Procedure: 1}
		call := append(h.Append(make([]byte, markLen)), secret...)
		xdr.AppendUint32(call[:0], lastFragment|uint32(len(call)-markLen))
		// The same in two fragments: the second moves in the buffer.
		const cut = 200
		parts := xdr.AppendUint32(nil, cut)
		parts = append(parts, call[markLen:markLen+cut]...)
		parts = xdr.AppendUint32(parts, lastFragment|uint32(len(call)-markLen-cut))
		parts = append(parts, call[markLen+cut:]...)
		for i := range 10 {
			if _, err := c.Write([][]byte{call, parts}[i%2]); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, make([]byte, markLen+replyLen+len(secret))); err != nil {
				t.Fatal(err)
			}
		}
		// A long one, which grows through the pools, and half of one.
		long := append(h.Append(make([]byte, markLen)), bytes.Repeat(secret, 500)...)
		xdr.AppendUint32(long[:0], lastFragment|uint32(len(long)-markLen))
		go c.Write(long)
		if _, err := io.ReadFull(c, make([]byte, markLen+replyLen+500*len(secret))); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(long[:20_000]); err != nil {
			t.Fatal(err)
		}
		c.Close()
		if err := s.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		noSecrets(t, s)
	}
}

// Nor do those have any that a connection without a socket has used.
func TestLocalBuffersCleared(t *testing.T) {
	s := &Server{Match: func(context.Context, *Conn, uint32) (Service, bool) { return echoes(0), true }}
	l, err := s.Local(&peer.Info{UID: 4711}, "")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for i := range 10 {
		secret := bytes.Repeat([]byte("secret"), 100*(1+i%2*50))
		if got, err := l.Call(t.Context(), 1, secret); err != nil || !bytes.Equal(got, secret) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
	noSecrets(t, s)
}

// noSecrets looks for what calls have brought in the buffers that are in the pools.
func noSecrets(t *testing.T, s *Server) {
	t.Helper()
	for range 10 {
		b := s.pool.Get().(*buffers)
		if bytes.Contains(b.in, []byte("secret")) || bytes.Contains(b.out[:cap(b.out)], []byte("secret")) {
			t.Error("a buffer in the pool has what a call brought or got")
		}
	}
	for i := range s.longer {
		for {
			b, ok := s.longer[i].Get().(*[]byte)
			if !ok {
				break
			}
			if bytes.Contains(*b, []byte("secret")) {
				t.Errorf("a buffer of %d bytes in the pool has what a call brought", len(*b))
			}
		}
	}
}
