package proc

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gssproxyd/conf"
	"gssproxyd/keytab/seal"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/rpc"
	"gssproxyd/rpc/peer"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// The calls of one service are logged, whatever the level of the log is, those of others are not, and
// a reload keeps that.
func TestDebugService(t *testing.T) {
	var log lab.LogBuffer
	p := New(Options{Box: seal.New(), Users: conf.FixedUsers{}, Log: slog.New(slog.NewTextHandler(&log, nil))})
	t.Cleanup(p.Close)
	file := filepath.Join(t.TempDir(), "gssproxy.conf")
	must(t, os.WriteFile(file, []byte("[service/a]\nmechs = krb5\neuid = 0\nsocket = /a\n[service/b]\nmechs = krb5\neuid = 0\nsocket = /b\n"), 0o600))
	load := func() {
		t.Helper()
		c, err := conf.Load(conf.Source{Users: conf.FixedUsers{}, File: file})
		must(t, err)
		k, err := krb5conf.Load([]string{os.DevNull})
		must(t, err)
		must(t, p.Load(c, k))
	}
	load()
	// ask has both services called and returns what is logged of that, a word for each line.
	ask := func() string {
		t.Helper()
		before := len(log.String())
		for _, socket := range []string{"/a", "/b"} {
			conn := &rpc.Conn{Peer: &peer.Info{}, Socket: socket, ID: "id"}
			s, ok := p.Match(t.Context(), conn, uint32(xdr.ProcIndicateMechs))
			if !ok {
				t.Fatal("no service")
			}
			args := (&xdr.ArgIndicateMechs{}).Append(nil)
			if _, stat := s.Handle(t.Context(), &rpc.Call{Conn: conn, Proc: uint32(xdr.ProcIndicateMechs), Args: args}, nil); stat != rpc.Success {
				t.Fatal(stat)
			}
		}
		var lines []string
		for line := range strings.Lines(log.String()[before:]) {
			_, msg, _ := strings.Cut(line, "msg=")
			msg, rest, _ := strings.Cut(msg, " ")
			_, service, _ := strings.Cut(rest, "service=")
			lines = append(lines, strings.TrimSpace(service[:1])+":"+msg)
			if !strings.Contains(line, "level=DEBUG") {
				t.Errorf("%s", line)
			}
		}
		return strings.Join(lines, " ")
	}
	for _, test := range []struct {
		levels map[string]int
		reload bool
		want   string
	}{
		{nil, false, ""},
		{map[string]int{"b": 1}, false, "b:executing"},
		{map[string]int{"b": 1}, true, "b:executing"},
		{map[string]int{"a": 2, "none": 1}, false, "a:executing a:arguments a:result"},
		{nil, false, ""},
	} {
		if p.Debug(test.levels); test.reload {
			load()
		}
		if got := ask(); got != test.want {
			t.Errorf("with %v: %q, want %q", test.levels, got, test.want)
		}
	}
}
