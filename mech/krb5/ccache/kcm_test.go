package ccache

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"gssproxyd/mech/krb5"
)

// fakeKCM is a KCM server for one user, from the protocol's description. An old one knows none of
// MIT's extensions and cannot remove.
type fakeKCM struct {
	old    bool
	mu     sync.Mutex
	caches []*fakeCache
	dfl    string
	serial int
}

type fakeCache struct {
	name      string
	principal []byte
	creds     [][]byte
	ids       []string
}

func serve(t *testing.T, handle func(net.Conn)) (socket string) {
	socket = filepath.Join(t.TempDir(), "kcm")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); handle(c) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return socket
}

func serveKCM(t *testing.T, old bool) string {
	k := &fakeKCM{old: old, dfl: "0"}
	return serve(t, func(c net.Conn) {
		for {
			req, err := frame(c)
			if err != nil {
				return
			}
			code, res := k.answer(req)
			b := binary.BigEndian.AppendUint32(nil, uint32(4+len(res)))
			b = append(b, 0, 0, 0, 0)
			b = binary.BigEndian.AppendUint32(b, uint32(code))
			c.Write(append(b, res...))
		}
	})
}

func frame(c io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint32(head[:]))
	_, err := io.ReadFull(c, b)
	return b, err
}

func (k *fakeKCM) get(name string, create bool) *fakeCache {
	for _, c := range k.caches {
		if c.name == name {
			return c
		}
	}
	if !create {
		return nil
	}
	c := &fakeCache{name: name}
	k.caches = append(k.caches, c)
	return c
}

func (k *fakeKCM) id() string { k.serial++; return fmt.Sprintf("%016d", k.serial) }

func (k *fakeKCM) answer(req []byte) (Code, []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(req) < 4 || req[0] != 2 || req[1] != 0 {
		return ErrFormat, nil
	}
	op, arg := binary.BigEndian.Uint16(req[2:]), req[4:]
	name := ""
	switch op {
	case 18, 19, 20:
	default:
		n, rest, ok := bytes.Cut(arg, []byte{0})
		if !ok {
			return ErrFormat, nil
		}
		name, arg = string(n), rest
	}
	c := k.get(name, op == 4 || op == 13002)
	switch {
	case k.old && op > 13000:
		return ErrIO, nil
	case k.old && op == 11:
		return kcmInternal, nil
	case c == nil && (op < 18 || op > 13000):
		return ErrNoCache, nil
	}
	var out []byte
	switch op {
	case 4:
		c.principal, c.creds, c.ids = arg, nil, nil
	case 5:
		for i := range k.caches {
			if k.caches[i] == c {
				k.caches = append(k.caches[:i], k.caches[i+1:]...)
				break
			}
		}
	case 6:
		c.creds, c.ids = append(c.creds, arg), append(c.ids, k.id())
	case 8:
		return 0, c.principal
	case 9:
		return 0, []byte(strings.Join(c.ids, ""))
	case 10:
		for i, id := range c.ids {
			if id == string(arg) {
				return 0, c.creds[i]
			}
		}
		return kcmEnd, nil
	case 11:
		for i, b := range c.creds {
			if len(arg) > 4 && matches(b, arg) {
				c.creds = append(c.creds[:i:i], c.creds[i+1:]...)
				c.ids = append(c.ids[:i:i], c.ids[i+1:]...)
				return 0, nil
			}
		}
		return ErrNotFound, nil
	case 18:
		for i := range k.caches {
			out = fmt.Appendf(out, "%016d", i)
		}
	case 19:
		var i int
		fmt.Sscanf(string(arg), "%d", &i)
		return 0, append([]byte(k.caches[i].name), 0)
	case 20:
		return 0, append([]byte(k.dfl), 0)
	case 21:
		k.dfl = name
	case 13001:
		out = binary.BigEndian.AppendUint32(nil, uint32(len(c.creds)))
		for _, b := range c.creds {
			out = binary.BigEndian.AppendUint32(out, uint32(len(b)))
			out = append(out, b...)
		}
	case 13002:
		r := reader{b: arg, version: 4}
		r.u32()
		at := r.pos
		r.principal()
		c.principal, c.creds, c.ids = arg[at:r.pos], nil, nil
		for range r.u32() {
			c.creds, c.ids = append(c.creds, r.data()), append(c.ids, k.id())
		}
		if r.err != nil || r.left() != 0 {
			return ErrFormat, nil
		}
	default:
		return kcmInternal, nil
	}
	return 0, out
}

// matches reads flags and pattern as Heimdal lays them out and compares the credential with it.
func matches(cred, arg []byte) bool {
	have, err := readCredential(cred)
	r := reader{b: arg, version: 4}
	flags, header := r.u32(), r.u32()
	var p krb5.Credential
	if header&1 != 0 {
		p.Client = r.principal()
	}
	if header&2 != 0 {
		p.Server = r.principal()
	}
	if header&4 != 0 {
		p.KeyType = 0
		kind := r.u16()
		r.data()
		if flags&(1<<30) != 0 && uint16(have.KeyType) != kind {
			return false
		}
	}
	end := bytes.Equal(appendTimes(nil, 4, have), r.take(21))
	return err == nil && r.err == nil && r.left() == 0 && header&^7 == 0 && end && flags == 1<<30|1<<28|1<<26|1<<22 &&
		p.Client.Equal(have.Client) && p.Server.Equal(have.Server)
}

// Replies nobody sane sends.
func TestKCMHostile(t *testing.T) {
	long := binary.BigEndian.AppendUint32(nil, 11<<20)
	for _, test := range []struct {
		name, reply string
		code        Code
		text        string
	}{
		{"nothing", "", ErrIO, "does not answer"},
		{"half a header", "\x00\x00\x00\x08", ErrIO, "does not answer"},
		{"too long", string(long) + "\x00\x00\x00\x00", ErrFormat, "11534336 bytes"},
		{"too short", "\x00\x00\x00\x03\x00\x00\x00\x00abc", ErrFormat, "3 bytes"},
		{"cut short", "\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00", ErrIO, "cut short"},
		{"a count without elements", "\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff", ErrFormat, "malformed"},
		{"an element cut short", "\x00\x00\x00\x0c\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x08", ErrFormat, "malformed"},
		{"an element of nonsense", "\x00\x00\x00\x0d\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01x", ErrFormat, "malformed"},
		{"refused", "\x00\x00\x00\x04\x00\x00\x00\x00\x96\xc7\x3a\xc2", ErrAccess, "server says so"},
		{"refused at once", "\x00\x00\x00\x00\x96\xc7\x3a\xc2", ErrAccess, "server says so"},
	} {
		t.Run(test.name, func(t *testing.T) {
			socket := serve(t, func(c net.Conn) {
				if _, err := frame(c); err == nil {
					io.WriteString(c, test.reply)
				}
			})
			c := open(t, &Resolver{KCMSocket: socket}, "KCM:x")
			_, err := c.Credentials(t.Context())
			wantErr(t, err, test.code, test.text)
		})
	}
	r := &Resolver{KCMSocket: filepath.Join(t.TempDir(), "none")}
	_, err := r.Open(t.Context(), "KCM:")
	wantErr(t, err, ErrNoCache, "no KCM server is there")
	r.KCMSocket = serve(t, func(c net.Conn) { io.Copy(io.Discard, c) })
	timesOut(t, "waiting for the KCM server", func(ctx context.Context) error { _, err := r.Open(ctx, "KCM:"); return err })
}
