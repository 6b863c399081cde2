package krb5

import (
	"fmt"
	"testing"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/etype"
)

// BenchmarkInit is one first leg with a ticket at hand, and with the second one where there is one.
func BenchmarkInit(b *testing.B) {
	bench := newBench(b)
	for _, et := range testEtypes {
		for _, mutual := range []uint32{0, mech.FlagMutual} {
			i := newInitiator(b, bench, et, et, mech.FlagSequence|mutual)
			b.Run(fmt.Sprintf("%v/mutual=%v", et, mutual != 0), func(b *testing.B) {
				benchmarkInit(b, i)
			})
		}
	}
	b.Run("delegation", func(b *testing.B) {
		i := newInitiator(b, bench, etype.AES256SHA1, etype.AES256SHA1, mech.FlagDeleg|mech.FlagMutual)
		i.Delegate = forwardedTGT(b)
		benchmarkInit(b, i)
	})
}

func benchmarkInit(b *testing.B, i *Initiator) {
	var out Initiated
	b.ReportAllocs()
	start := cpuTime()
	for b.Loop() {
		if err := i.Init(&out); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(cpuTime()-start)/float64(b.N), "cpu-ns/op")
}

// BenchmarkContinue is one second leg.
func BenchmarkContinue(b *testing.B) {
	bench := newBench(b)
	for _, et := range testEtypes {
		b.Run(et.String(), func(b *testing.B) {
			i := newInitiator(b, bench, et, et, mech.FlagMutual)
			var out, next Initiated
			var accepted Accepted
			if err := i.Init(&out); err != nil {
				b.Fatal(err)
			}
			if err := bench.Accept(&accepted, out.Token, nil); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if err := i.Continue(&next, out.Partial, accepted.Token); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
