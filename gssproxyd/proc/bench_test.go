package proc_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"testing"

	"gssproxyd/audit"
	"gssproxyd/conf"
	"gssproxyd/gssproxyd/metrics"
	"gssproxyd/gssproxyd/proc"
	"gssproxyd/keytab/seal"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/phase"
	"gssproxyd/rpc"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// BenchmarkAcceptOverSocket is a whole request: ACCEPT_SEC_CONTEXT with AP-REP over a Unix socket,
// one connection, client and server in this process. Without a replay cache, so that one token will
// do.
func BenchmarkAcceptOverSocket(b *testing.B) {
	for _, enctype := range []int{17, 18, 19, 20} {
		b.Run(lab.EnctypeName(enctype), func(b *testing.B) { benchmarkAccept(b, enctype, false) })
	}
}

// BenchmarkAcceptMeasured is the same with metrics, beside one without.
func BenchmarkAcceptMeasured(b *testing.B) {
	for _, measured := range []bool{false, true} {
		b.Run(fmt.Sprintf("metrics=%t", measured), func(b *testing.B) { benchmarkAccept(b, 18, measured) })
	}
}

func benchmarkAccept(b *testing.B, enctype int, measured bool) {
	b.Setenv("KRB5RCACHENAME", "none:")
	r := lab.New(b)
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	must(r.RandKey("svc/"+lab.Host, lab.EnctypeName(enctype)))
	keytab, err := r.Keytab("keytab", "svc/"+lab.Host)
	must(err)
	env, err := r.Kinit("alice", "alice")
	must(err)
	client, err := r.Tool(lab.Nobody, env...)
	must(err)
	defer client.Close()
	must(client.Enctypes(enctype))
	_, token, err := client.Init("svc@"+lab.Host, lab.Usual|lab.Mutual, nil)
	must(err)

	k, err := krb5conf.Load([]string{r.Conf})
	must(err)
	c := conf.UserProxy(0)
	c.Services[0].CredUsage = conf.UsageAccept
	c.Services[0].CredStore = []conf.KeyValue{{Key: "keytab", Value: keytab}}
	log := slog.New(slog.DiscardHandler)
	o := proc.Options{Box: seal.New(), Users: conf.FixedUsers{}, Log: log, Phases: new(phase.Clock)}
	if measured {
		m := metrics.New(metrics.Sources{})
		m.Services([]string{c.Services[0].Name})
		o.Phases.Tell(m.Phase)
		o.Skewed = m.Skew
		o.Record = func(_ context.Context, e *audit.Event) error {
			m.Record(e)
			return nil
		}
	}
	p := proc.New(o)
	must(p.Load(c, k))
	defer p.Close()
	server := &rpc.Server{Match: p.Match, Phases: o.Phases, Log: log}
	socket := filepath.Join(b.TempDir(), "sock")
	l, err := rpc.Listen(socket, 0o600)
	must(err)
	done := make(chan error)
	go func() { done <- server.Serve(context.Background(), l, socket) }()
	defer func() {
		must(server.Shutdown(context.Background()))
		must(<-done)
	}()
	conn, err := net.Dial("unix", socket)
	must(err)
	defer conn.Close()

	record := lab.Record(1, xdr.ProcAcceptSecContext, lab.AcceptArg(token, nil))
	reply := make([]byte, 64<<10)
	b.ReportAllocs()
	b.ResetTimer()
	for b.Loop() {
		if _, err := conn.Write(record); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(conn, reply[:4]); err != nil {
			b.Fatal(err)
		}
		n := binary.BigEndian.Uint32(reply) &^ (1 << 31)
		if _, err := io.ReadFull(conn, reply[4:4+n]); err != nil {
			b.Fatal(err)
		}
		// After the mark, the header's six words and the status: major.
		if major := binary.BigEndian.Uint64(reply[28:]); major != 0 {
			b.Fatalf("major %#x", major)
		}
	}
}
