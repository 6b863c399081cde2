package etype

import "testing"

func BenchmarkDecryptTicketPrepared(b *testing.B) {
	for _, id := range supported {
		b.Run(id.String(), func(b *testing.B) {
			k := testKey(b, id).Prepare(2)
			ct, _ := k.Encrypt(nil, 2, make([]byte, 360))
			buf := make([]byte, 0, 512)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := k.Decrypt(buf, 2, ct); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A session key as an acceptor uses it: once for the authenticator, once for the reply.
func BenchmarkSessionKey(b *testing.B) {
	for _, id := range supported {
		b.Run(id.String(), func(b *testing.B) {
			session := testKey(b, id)
			ct, _ := session.Encrypt(nil, 11, make([]byte, 190))
			reply := make([]byte, 100)
			buf := make([]byte, 0, 512)
			var k, sub Key
			b.ReportAllocs()
			for b.Loop() {
				k.Init(id, session.Secret())
				if _, err := k.Decrypt(buf, 11, ct); err != nil {
					b.Fatal(err)
				}
				sub.Generate(id)
				k.Encrypt(buf, 12, reply)
			}
		})
	}
}

func BenchmarkChecksumPrepared(b *testing.B) {
	for _, id := range supported {
		b.Run(id.String(), func(b *testing.B) {
			k := testKey(b, id).Prepare(23)
			msg := make([]byte, 200)
			buf := make([]byte, 0, 64)
			b.ReportAllocs()
			for b.Loop() {
				k.AppendChecksum(buf, 23, msg)
			}
		})
	}
}
