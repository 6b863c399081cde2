package ccache

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
)

// What a context started with a cached ticket costs here: one lookup among twenty tickets.
func BenchmarkFind(b *testing.B) {
	var creds []*krb5.Credential
	for i := range 20 {
		c := testCred("alice", fmt.Sprint("host/lab", i), 18, never)
		c.Ticket = make([]byte, 1000)
		creds = append(creds, c)
	}
	q := Query{Client: principal("alice"), Server: creds[15].Server, ValidAt: time.Unix(1_900_000_000, 0), Enctypes: []etype.ID{20, 19, 18, 17}}
	f := (&Resolver{}).file("FILE:bench", filepath.Join(b.TempDir(), "cc"))
	for _, c := range []Cache{(&Memory{}).New(), f} {
		kind, _ := split(c.Name())
		b.Run(kind, func(b *testing.B) {
			if err := c.Initialize(b.Context(), principal("alice"), creds...); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Find(b.Context(), c, q); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
