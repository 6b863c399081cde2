package proc

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"gssproxyd/conf"
	"gssproxyd/mech"
	"gssproxyd/rpc"
	"gssproxyd/rpc/peer"
)

// A text as long as a record fills neither the client's status nor the log.
func TestRefuseLongText(t *testing.T) {
	var log bytes.Buffer
	p := &Procedures{log: slog.New(slog.NewTextHandler(&log, nil))}
	c := &call{Call: &rpc.Call{Conn: &rpc.Conn{Peer: new(peer.Peer)}}, svc: &service{Service: new(conf.Service), p: p}}
	long := strings.Repeat("\x01\xff", 1<<19)
	status := p.refuse(c, &mech.Error{Major: mech.BadName, Reason: mech.ReasonBadName, Text: long})
	if n := len(status.MinorStatusString); n == 0 || n > maxText+100 {
		t.Errorf("the client gets a text of %d bytes", n)
	}
	if n := log.Len(); n == 0 || n > 5*maxText {
		t.Errorf("the log gets %d bytes", n)
	}
}
