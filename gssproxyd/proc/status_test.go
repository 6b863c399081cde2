package proc

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"gssproxyd/conf"
	"gssproxyd/limits"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc"
	"gssproxyd/rpc/peer"
)

// One user's refusals do not hide another's, and what is not seen counts for nobody.
func TestNoteByUser(t *testing.T) {
	var log bytes.Buffer
	now := time.Unix(1000, 0)
	p := &Procedures{limits: limits.New(1), log: slog.New(slog.NewTextHandler(&log, nil)), now: func() time.Time { return now }}
	of := func(uid uint32) *call {
		return &call{Call: &rpc.Call{Conn: &rpc.Conn{Peer: &peer.Info{UID: uid}}}, svc: &service{Service: &conf.Service{Name: "web"}, p: p}, now: now}
	}
	const hostile, quiet = 4_000_000_001, 4_000_000_002
	for range 100 {
		p.note(slog.LevelDebug, of(hostile), reason.Replay, "not seen")
		p.note(slog.LevelDebug, of(quiet), reason.Replay, "not seen")
	}
	for range 1000 {
		p.logRefusal(of(hostile), reason.Replay, "hostile")
	}
	p.logRefusal(of(quiet), reason.Replay, "quiet")
	if h, q := strings.Count(log.String(), "msg=hostile"), strings.Count(log.String(), "msg=quiet"); h == 0 || h > 20 || q != 1 {
		t.Errorf("%d lines of who floods the log, %d of the other one", h, q)
	}
	now = now.Add(time.Second)
	p.logRefusal(of(hostile), reason.Replay, "hostile")
	if !strings.Contains(log.String(), "suppressed=995") {
		t.Errorf("the log does not say how many were suppressed:\n%s", log.String())
	}
}

// A text as long as a record fills neither the client's status nor the log.
func TestRefuseLongText(t *testing.T) {
	var log bytes.Buffer
	p := &Procedures{limits: limits.New(1), log: slog.New(slog.NewTextHandler(&log, nil)), now: time.Now}
	c := &call{Call: &rpc.Call{Conn: &rpc.Conn{Peer: new(peer.Info)}}, svc: &service{Service: new(conf.Service), p: p}}
	long := strings.Repeat("\x01\xff", 1<<19)
	status := p.refuse(c, mech.Errorf(mech.BadName, 0, reason.BadName, "%s", long))
	if n := len(status.MinorStatusString); n == 0 || n > maxText+100 {
		t.Errorf("the client gets a text of %d bytes", n)
	}
	if n := log.Len(); n == 0 || n > 5*maxText {
		t.Errorf("the log gets %d bytes", n)
	}
}

// The reason is within what the most forgetful program shows of a text, be that as long as it may.
func TestReasonFirst(t *testing.T) {
	const shown = 127 // of a PostgreSQL server
	p := &Procedures{limits: limits.New(1), log: slog.New(slog.DiscardHandler), now: time.Now}
	c := &call{Call: &rpc.Call{Conn: &rpc.Conn{Peer: new(peer.Info)}}, svc: &service{Service: new(conf.Service), p: p}}
	for _, r := range reason.All {
		text := strings.Repeat("long ", 100)
		got := string(p.refuse(c, mech.Errorf(mech.Failure, 0, r.ID, "%s", text)).MinorStatusString)
		if !strings.HasPrefix(got[:shown], "["+string(r.ID)+"] long ") {
			t.Errorf("%s: of the text is seen %q", r.ID, got[:shown])
		}
	}
}
