package interposer

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"testing"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/spnego"
	"gssproxyd/xdr"
)

// BenchmarkAccept is one accept, from the token to who it is and the closed context, by a daemon
// that allocates nothing: what it reports is the client's.
func BenchmarkAccept(b *testing.B) {
	res := xdr.ResAcceptSecContext{
		ContextHandle: xdr.Some(xdr.Ctx{
			ExportedContextToken: unhex(b, vectors(b)[0].Acceptor), Mech: []byte(mech.KRB5), Open: true, CtxFlags: mech.FlagMutual | mech.FlagInteg, Lifetime: 3600,
			SrcName: xdr.Name{
				DisplayName: []byte("alice@EXAMPLE.TEST"), NameType: []byte(mech.NTKrb5Principal),
				ExportedName: mech.AppendExportedName(nil, mech.KRB5, "alice@EXAMPLE.TEST"),
			},
			TargName: xdr.Name{
				DisplayName: []byte("HTTP/www.example.test@EXAMPLE.TEST"), NameType: []byte(mech.NTKrb5Principal),
				ExportedName: mech.AppendExportedName(nil, mech.KRB5, "HTTP/www.example.test@EXAMPLE.TEST"),
			},
		}),
		OutputToken: xdr.Some(make([]byte, 150)),
	}
	c := New(repeat(b, &res), Options{})
	defer c.Close()
	token := der.AppendValue(nil, der.Application(0), append(der.AppendValue(nil, der.ObjectID, []byte(mech.KRB5)), make([]byte, 1500)...))
	negotiation := spnego.NegTokenInit{MechTypes: der.AppendValue(nil, der.Sequence, der.AppendValue(nil, der.ObjectID, []byte(mech.KRB5))), MechToken: token}
	for _, tt := range []struct {
		name  string
		token []byte
	}{{"krb5", token}, {"spnego", negotiation.Append(nil)}} {
		b.Run(tt.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				s, _, err := c.AcceptSecContext(b.Context(), AcceptRequest{Token: tt.token})
				if err != nil {
					b.Fatal(err)
				}
				if _, err := s.Peer(); err != nil {
					b.Fatal(err)
				}
				s.Close()
			}
		})
	}
}

// repeat serves one connection, on which every call is answered with res, and returns its socket.
func repeat(b *testing.B, res xdr.Message) (path string) {
	b.Helper()
	header := xdr.ReplyHeader{MsgType: xdr.MsgReply}
	reply := res.Append(header.Append(make([]byte, 4)))
	binary.BigEndian.PutUint32(reply, 1<<31|uint32(len(reply)-4))
	path = filepath.Join(socketDir(b), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer l.Close()
		nc, err := l.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		in := bufio.NewReader(nc)
		call := make([]byte, 8)
		for {
			if _, err := io.ReadFull(in, call); err != nil {
				return
			}
			if _, err := in.Discard(int(binary.BigEndian.Uint32(call)&^(1<<31)) - 4); err != nil {
				return
			}
			copy(reply[4:], call[4:])
			if _, err := nc.Write(reply); err != nil {
				return
			}
		}
	}()
	b.Cleanup(func() {
		l.Close()
		<-done
	})
	return path
}
