package stores

import (
	"crypto/ed25519"
	"encoding/binary"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gssproxyd/gssproxyd/nss"
	"gssproxyd/keystore/delivery"
)

// httptestServer is a store of the same authority that answers as serve does.
func httptestServer(t *testing.T, f *fakeStore, serve http.HandlerFunc) string {
	s := httptest.NewUnstartedServer(serve)
	s.TLS, s.Config.ErrorLog = f.server.TLS.Clone(), f.server.Config.ErrorLog
	s.StartTLS()
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return "https://localhost:" + port(s.URL)
}

// hostile gives tests the helper's end of each conversation.
func hostile(t *testing.T) (start StartFunc, conversations <-chan net.Conn) {
	c := make(chan net.Conn, 10)
	return func(f *os.File) (nss.Process, error) {
		conn, err := fileConn(f)
		if err != nil {
			return nil, err
		}
		ended := make(chan struct{})
		close(ended)
		c <- conn
		return &process{end: func() { conn.Close() }, ended: ended}, nil
	}, c
}

// What a helper that is somebody else's hands on changes nothing but what the store has signed, once,
// and in its order.
func TestHostileHelper(t *testing.T) {
	f := newFakeStore(t)
	start, conversations := hostile(t)
	d := newDaemon(t, f, start)
	conn := <-conversations
	hear := func() *order {
		o := new(order)
		check(t, readMessage(conn, o))
		return o
	}
	hear()
	n := uint64(0)
	say := func(raw []byte) *order {
		n++
		check(t, writeMessage(conn, &report{Store: "main", Delivery: raw}))
		for {
			if o := hear(); o.Answers == n {
				return o
			}
		}
	}
	for _, h := range []have{{Principal: www, mark: mark{1, 5}}, {Principal: ldap, mark: mark{1, 7}}} { // what is new, and no more
		if o := say(f.sign(of(h.Principal, h.Revision))); !slices.Equal(o.Have, []have{h}) || o.How != nil {
			t.Fatalf("%+v", o)
		}
	}
	before := d.files()
	_, own, _ := ed25519.GenerateKey(nil)
	planted, _ := delivery.Sign(of(www, 99), own)
	for _, raw := range [][]byte{planted, f.sign(of(www, 4)), f.sign(of("../../x@EXAMPLE.COM", 9)), []byte("\x00"), f.sign(of(www, 5))} {
		say(raw)
	}
	check(t, writeMessage(conn, &report{Store: "main", Contact: &contact{URL: "x\ny", Error: strings.Repeat("z\n", 10000), Refused: []refusedByThem{{www, "a", "b", "c"}}}}))
	n++
	hear()
	d.unchanged(before)
	if keys, _, err := d.follow(www).now(); !kvno(5)(keys, err) {
		t.Errorf("%v %v", keys, err)
	}
	if got := d.denied(); !slices.Equal(got, []string{"delivery-unsigned", "delivery-replayed", "delivery-elsewhere", "delivery-malformed"}) {
		t.Errorf("denied: %q", got)
	}
	if s := d.States()[0]; len(s.Lost) > 300 || strings.ContainsAny(s.Lost+d.log.String(), "\x00") || strings.Contains(s.Lost, "\n") {
		t.Errorf("%q", s.Lost)
	}
}

// One that does not keep to the conversation is ended.
func TestHelperEnded(t *testing.T) {
	f := newFakeStore(t)
	for name, misbehave := range map[string]func(net.Conn){
		"a long message":   func(c net.Conn) { c.Write(binary.BigEndian.AppendUint32(nil, maxMessage+1)) },
		"no JSON":          func(c net.Conn) { c.Write([]byte("\x00\x00\x00\x01x")) },
		"an unknown store": func(c net.Conn) { writeMessage(c, &report{Store: "other", Delivery: []byte("x")}) },
		"does not wait": func(c net.Conn) {
			writeMessage(c, &report{Store: "main", Delivery: []byte("x")})
			writeMessage(c, &report{Store: "main", Delivery: []byte("x")})
		},
		"is root":             func(c net.Conn) { writeMessage(c, &report{User: userRoot}) },
		"says who it is late": func(c net.Conn) { writeMessage(c, &report{User: userOther}); writeMessage(c, &report{User: userOther}) },
		"hangs up":            func(c net.Conn) { c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			f.t = t
			start, conversations := hostile(t)
			d := newDaemon(t, f, start)
			d.Stores.afterBad = 1 << 40 // so that it does not wait
			conn := <-conversations
			check(t, readMessage(conn, new(order)))
			misbehave(conn)
			until(t, "its end", func() bool { return strings.Contains(d.log.String(), "the helper that asks the key stores has ended") })
			if _, err := conn.Read(make([]byte, 1)); name != "hangs up" && err == nil {
				for err == nil {
					_, err = conn.Read(make([]byte, 1024))
				}
			}
		})
	}
}

// What could not be kept is in force, and nothing older comes after it: also when the configuration is
// read again.
func TestReplayAfterReload(t *testing.T) {
	f := newFakeStore(t)
	d := newDaemon(t, f, never)
	web := d.follow(www)
	first := f.sign(of(www, 1))
	if !d.take("main", first) {
		t.Fatal(d.denied())
	}
	kept := filepath.Join(d.dir, "stores")
	check(t, os.Rename(kept, kept+".gone")) // a disk that is full
	if !d.take("main", f.sign(of(www, 2))) {
		t.Fatal(d.denied())
	}
	check(t, os.Rename(kept+".gone", kept))
	check(t, d.Prepare(d.config))
	check(t, d.Configure(d.config))
	if d.take("main", first) {
		t.Error("an older delivery was taken")
	}
	if keys, _, err := web.now(); err != nil || len(keys) != 1 || keys[0].KVNO != 2 {
		t.Errorf("%+v, %v", keys, err)
	}
}

// A machine that stops after a delivery was kept and before its mark was has nothing older come after it.
func TestReplayAfterCrash(t *testing.T) {
	f := newFakeStore(t)
	d := newDaemon(t, f, never)
	marks := filepath.Join(d.dir, "stores", "main", marksFile)
	first := f.sign(of(www, 1))
	if !d.take("main", first) {
		t.Fatal(d.denied())
	}
	before, err := os.ReadFile(marks)
	check(t, err)
	if !d.take("main", f.sign(of(www, 2))) {
		t.Fatal(d.denied())
	}
	check(t, os.WriteFile(marks, before, 0o600))
	d.again(never)
	if d.take("main", first) {
		t.Error("an older delivery was taken")
	}
	if keys, _, err := d.follow(www).now(); !kvno(2)(keys, err) {
		t.Errorf("%+v, %v", keys, err)
	}
}
