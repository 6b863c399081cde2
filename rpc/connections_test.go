package rpc_test

import (
	"os"
	"testing"

	"gssproxyd/rpc"
	"gssproxyd/tests/lab"
)

// Connections are listed with what they have asked and what is being done for them, and only as long
// as they are there.
func TestConnections(t *testing.T) {
	s, path, begun, finish := parallel(t, 3)
	idle, busy := dial(t, path), dial(t, path)
	send(t, idle, call(1))
	expect(t, idle, echoed())
	send(t, busy, call(1))
	expect(t, busy, echoed())
	send(t, busy, append(call(2), call(2)...))
	<-begun
	<-begun
	var counts [3]rpc.Connection // by calls
	list := s.Connections()
	if len(list) != 2 {
		t.Fatalf("%d connections", len(list))
	}
	for _, c := range list {
		if c.Calls == 1 || c.Calls == 3 {
			counts[c.Calls/2] = c
		}
		if c.Conn == nil || c.Socket != path || len(c.ID) != 10 || c.Peer.PID != int32(os.Getpid()) || c.Since.IsZero() {
			t.Errorf("%+v", c)
		}
	}
	if c := counts[0]; c.Conn == nil || c.InCall != 0 || c.Proc != 0 || c.For != 0 {
		t.Errorf("the idle one: %+v", c)
	}
	if c := counts[1]; c.Conn == nil || c.InCall != 2 || c.Proc != 2 || c.For < 0 {
		t.Errorf("the busy one: %+v", c)
	}
	close(finish)
	receive(t, busy)
	receive(t, busy)
	busy.Close()
	idle.Close()
	lab.Await(t, "no connection", func() bool { return len(s.Connections()) == 0 })
}
