package proc

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gssproxyd/audit"
	"gssproxyd/conf"
	"gssproxyd/gssproxyd/creds"
	"gssproxyd/limits"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc"
	"gssproxyd/rpc/peer"
	"gssproxyd/xdr"
)

// callTo is a call of a uid to a service of a name.
func callTo(p *Procedures, service string, uid uint32) *call {
	who := &peer.Info{UID: uid}
	return &call{
		Caller: creds.Caller{Peer: who, Service: &creds.Service{Service: &conf.Service{Name: service}}, Now: time.Now(), Event: new(audit.Event)},
		p:      p, rpc: &rpc.Call{Conn: &rpc.Conn{Peer: who}},
	}
}

// One user's refusals do not hide another's, and what is not seen counts for nobody.
func TestNoteByUser(t *testing.T) {
	var log bytes.Buffer
	now := time.Unix(1000, 0)
	l := slog.New(slog.NewTextHandler(&log, nil))
	p := &Procedures{log: &creds.Log{Logger: l, Lines: limits.NewMeter(), Now: func() time.Time { return now }}}
	of := func(uid uint32) *call { return callTo(p, "web", uid) }
	const hostile, quiet = 4_000_000_001, 4_000_000_002
	for range 100 {
		of(hostile).note(slog.LevelDebug, reason.Replay, "not seen")
		of(quiet).note(slog.LevelDebug, reason.Replay, "not seen")
	}
	for range 1000 {
		of(hostile).note(slog.LevelWarn, reason.Replay, "hostile")
	}
	of(quiet).note(slog.LevelWarn, reason.Replay, "quiet")
	if h, q := strings.Count(log.String(), "msg=hostile"), strings.Count(log.String(), "msg=quiet"); h == 0 || h > 20 || q != 1 {
		t.Errorf("%d lines of who floods the log, %d of the other one", h, q)
	}
	now = now.Add(time.Second)
	of(hostile).note(slog.LevelWarn, reason.Replay, "hostile")
	if !strings.Contains(log.String(), "suppressed=995") {
		t.Errorf("the log does not say how many were suppressed:\n%s", log.String())
	}
}

// A text as long as a record fills neither the client's status nor the log.
func TestRefuseLongText(t *testing.T) {
	var log bytes.Buffer
	c := callTo(&Procedures{log: &creds.Log{Logger: slog.New(slog.NewTextHandler(&log, nil)), Lines: limits.NewMeter(), Now: time.Now}}, "", 0)
	long := strings.Repeat("\x01\xff", 1<<19)
	status := c.refuse(mech.Errorf(mech.BadName, 0, reason.BadName, "%s", long))
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
	c := callTo(&Procedures{log: &creds.Log{Logger: slog.New(slog.DiscardHandler), Lines: limits.NewMeter(), Now: time.Now}}, "", 0)
	for _, r := range reason.All {
		text := strings.Repeat("long ", 100)
		got := string(c.refuse(mech.Errorf(mech.Failure, 0, r.ID, "%s", text)).MinorStatusString)
		if !strings.HasPrefix(got[:shown], "["+string(r.ID)+"] long ") {
			t.Errorf("%s: of the text is seen %q", r.ID, got[:shown])
		}
	}
}

// What is wrong before it matters for which mechanism the call is has a status of none.
func TestStatusOfNoMechanism(t *testing.T) {
	c := callTo(&Procedures{log: &creds.Log{Logger: slog.New(slog.DiscardHandler), Lines: limits.NewMeter(), Now: time.Now}}, "", 0)
	c.Context, c.Left = t.Context(), new(atomic.Value)
	ctx := func(token string) xdr.Ctx { return xdr.Ctx{ExportedContextToken: []byte(token)} }
	unknown := []xdr.Option{{Option: optExportedContextType, Value: []byte("x")}}
	_, format := requestedFormat(unknown)
	_, stale := refusesStale([]xdr.Option{{Option: optRefuseStale, Value: []byte("x")}})
	_, acquired := c.Acquire(t.Context(), &creds.Request{Type: creds.AcquireUnknown})
	_, name := c.Principal(creds.Name{})
	tests := map[string]error{
		"option": format, "refuse_stale_handle": stale, "acquire_type": acquired, "name": name,
		"message": wrap(t.Context(), c.p, c, &xdr.ArgWrap{}, nil),
		"token":   unwrap(t.Context(), c.p, c, &xdr.ArgUnwrap{}, nil),
		"handle":  releaseHandle(t.Context(), c.p, c, &xdr.ArgReleaseHandle{CredHandle: xdr.Handle{HandleType: xdr.HandleCred}}, nil),
		"type":    releaseHandle(t.Context(), c.p, c, &xdr.ArgReleaseHandle{CredHandle: xdr.Handle{HandleType: 7}}, nil),
		"init":    initSecContext(t.Context(), c.p, c, &xdr.ArgInitSecContext{}, nil),
		"fault":   errors.New("of ours"),
	}
	for what, token := range map[string]string{"no context": "", "no wrapper": "x", "another mechanism": "\x00\x00\x00\x01x"} {
		sent := ctx(token)
		_, tests[what] = openContext(&sent)
	}
	for what, err := range tests {
		if status := c.refuse(err); len(status.Mech) > 0 {
			t.Errorf("%s: %v has mechanism %x", what, err, status.Mech)
		}
	}
}
