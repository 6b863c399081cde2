package ccache

import (
	"fmt"
	"path/filepath"
	"testing"

	"gssproxyd/mech/krb5"
)

// What looking into a cache of twenty tickets costs.
func BenchmarkCredentials(b *testing.B) {
	var creds []*krb5.Credential
	for i := range 20 {
		c := testCred("alice", fmt.Sprint("host/lab", i), 18, never)
		c.Ticket = make([]byte, 1000)
		creds = append(creds, c)
	}
	f := (&Resolver{}).file("FILE:bench", filepath.Join(b.TempDir(), "cc"))
	for _, c := range []Cache{(&Memory{}).Open("x"), f} {
		kind, _ := split(c.Name())
		b.Run(kind, func(b *testing.B) {
			if err := c.Initialize(b.Context(), principal("alice"), creds...); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if got, err := c.Credentials(b.Context()); err != nil || len(got) != len(creds) {
					b.Fatal(len(got), err)
				}
			}
		})
	}
}
