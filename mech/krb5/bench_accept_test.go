package krb5

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/rcache"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// BenchmarkAccept is one Accept in process, without and with the AP-REP, without a replay cache.
func BenchmarkAccept(b *testing.B) {
	bench := newBench(b)
	for _, et := range testEtypes {
		for _, mutual := range []bool{false, true} {
			b.Run(fmt.Sprintf("%v/mutual=%v", et, mutual), func(b *testing.B) {
				q := newRequest(b, bench.keys[et], et)
				if !mutual {
					q.options, q.sum = 0, gssSum(nil, 0x13c, nil)
				}
				benchmarkAccept(b, &bench.Acceptor, q)
			})
		}
	}
}

func benchmarkAccept(b *testing.B, a *Acceptor, q *request) {
	token := q.token(b)
	var out Accepted
	b.ReportAllocs()
	start := cpuTime()
	for b.Loop() {
		if err := a.Accept(&out, token, nil); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(cpuTime()-start)/float64(b.N), "cpu-ns/op")
}

// cpuTime is what the process has used of the processors, garbage collection included. Other than
// wall time it means something on a busy machine.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkAcceptPAC has a ticket with a PAC like that of an MIT KDC, whose signature is verified.
func BenchmarkAcceptPAC(b *testing.B) {
	bench := newBench(b)
	q := newRequest(b, bench.keys[etype.AES256SHA1], etype.AES256SHA1)
	q.ticketAD = []AuthData{ifRelevant(AuthData{wire.ADWin2kPAC, makePAC(q, "alice", q.auth, q.ticketKey)})}
	benchmarkAccept(b, &bench.Acceptor, q)
}

// BenchmarkAcceptReplay stores each authenticator in a replay cache file. The tokens are made
// beforehand, so that none is seen twice.
func BenchmarkAcceptReplay(b *testing.B) {
	bench := newBench(b)
	cache, err := rcache.Open("file2:"+b.TempDir()+"/rc", func(string) string { return "" })
	if err != nil {
		b.Fatal(err)
	}
	defer cache.Close()
	bench.Replay = cache
	q := newRequest(b, bench.keys[etype.AES256SHA1], etype.AES256SHA1)
	bench.Now = nil
	tokens := make([][]byte, b.N)
	q.ctime = time.Now()
	q.auth, q.start, q.end = q.ctime, q.ctime, q.ctime.Add(time.Hour)
	for i := range tokens {
		q.cusec = int64(i % 1_000_000)
		tokens[i] = q.token(b)
	}
	var out Accepted
	b.ReportAllocs()
	b.ResetTimer()
	start := cpuTime()
	for _, token := range tokens {
		if err := bench.Accept(&out, token, nil); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(cpuTime()-start)/float64(b.N), "cpu-ns/op")
}

// BenchmarkRefuse is a ticket that no key of the keytab opens.
func BenchmarkRefuse(b *testing.B) {
	bench := newBench(b)
	q := newRequest(b, mustKey(b, etype.AES256SHA1), etype.AES256SHA1)
	token := q.token(b)
	var out Accepted
	b.ReportAllocs()
	for b.Loop() {
		if err := bench.Accept(&out, token, nil); err == nil || err.(*mech.Error).Reason != reason.BadIntegrity {
			b.Fatal(err)
		}
	}
}

func BenchmarkBindings(b *testing.B) {
	bench := newBench(b)
	cb := &ChannelBindings{AppData: make([]byte, 64)}
	q := newRequest(b, bench.keys[etype.AES256SHA1], etype.AES256SHA1)
	q.sum = gssSum(cb, 0x13e, nil)
	token := q.token(b)
	var out Accepted
	b.ReportAllocs()
	for b.Loop() {
		if err := bench.Accept(&out, token, cb); err != nil {
			b.Fatal(err)
		}
	}
}
