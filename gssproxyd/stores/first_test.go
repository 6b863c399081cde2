package stores

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/nss"
)

// counted is a connection whose bytes are counted.
type counted struct {
	net.Conn
	n *atomic.Int64
}

func (c counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.n.Add(int64(n))
	return n, err
}

func (c counted) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return c.Conn.Write(b)
}

// The first keys of a host with many entries cost as much for each as those of one with few: the daemon
// and its helper do not tell each other all of them with each.
func TestFirstKeys(t *testing.T) {
	each := make(map[int]int64)
	for _, entries := range []int{32, 320} {
		f := newFakeStore(t)
		d := newDaemon(t, f, never)
		d.Close()
		principal := func(i int) string { return fmt.Sprintf("HTTP/%04d.www.example.com@EXAMPLE.COM", i) }
		service := &conf.Service{}
		for i := range entries {
			service.CredStore = append(service.CredStore, conf.KeyValue{Key: "keytab", Value: "STORE:main:" + principal(i)})
			f.put(of(principal(i), 1))
		}
		d.config.Services = []*conf.Service{service}
		var said atomic.Int64
		d.again(func(conversation *os.File) (nss.Process, error) {
			return insideWith(conversation, func(conn net.Conn) net.Conn { return counted{conn, &said} })
		})
		for i := range entries {
			f.await(principal(i), mark{1, 1})
		}
		d.Close()
		each[entries] = said.Load() / int64(entries)
	}
	if each[320] > 2*each[32] {
		t.Errorf("%d bytes for each of 32 entries, and %d for each of 320", each[32], each[320])
	}
}

// What many first keys are acknowledged with is a few requests; a store that does not know that hears of
// one at a time.
func TestAcknowledgeMany(t *testing.T) {
	for name, test := range map[string]struct {
		old         func(http.ResponseWriter)
		least, most int64 // requests
	}{
		"store of now": {nil, 1, 60},
		"refuses it": {func(w http.ResponseWriter) {
			w.WriteHeader(http.StatusBadRequest)
			w.Write([]byte(`{"reason":"store-request","text":"\"\" is no principal","hint":"none"}`))
		}, 200, 300},
		"does not look": {func(http.ResponseWriter) {}, 200, 300},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeStore(t)
			if test.old != nil {
				f.old.Store(&test.old)
			}
			d := newDaemon(t, f, never)
			d.Close()
			service := &conf.Service{}
			var principals []string
			for i := range 200 {
				p := fmt.Sprintf("HTTP/%d.example.com@EXAMPLE.COM", i)
				principals = append(principals, p)
				service.CredStore = append(service.CredStore, conf.KeyValue{Key: "keytab", Value: "STORE:main:" + p})
				f.put(of(p, 1))
			}
			d.config.Services = []*conf.Service{service}
			f.denied = map[string]int{principals[7]: 0}
			d.again(inside)
			for i, p := range principals {
				if i != 7 {
					f.await(p, mark{1, 1})
				}
			}
			f.put(of(principals[0], 2)) // with which what was refused would come again
			f.await(principals[0], mark{1, 2})
			f.mu.Lock()
			defer f.mu.Unlock()
			if n := f.acks.Load(); n < test.least || n > test.most || f.denied[principals[7]] != 1 {
				t.Errorf("%d requests; of what is refused %d times", n, f.denied[principals[7]])
			}
		})
	}
}

// The marks that are kept cost as much for each of many entries as of few, and are all there afterwards.
func TestMarksOfMany(t *testing.T) {
	dir := t.TempDir()
	check(t, os.Chmod(dir, 0o700))
	k, err := openKept(dir, "main")
	check(t, err)
	path := filepath.Join(dir, "stores", "main", marksFile)
	const entries = 600
	written, before := 0, 0
	for i := range entries {
		check(t, k.write(fmt.Sprint(i), []byte("x"), mark{1, uint64(i)}))
		info, err := os.Stat(path)
		check(t, err)
		now := int(info.Size())
		if written += now - before; now < before || i == 0 { // all of it, anew
			written += before
		}
		before = now
	}
	if written/entries > 200 {
		t.Errorf("%d bytes for each mark", written/entries)
	}
	check(t, k.write("7", []byte("x"), mark{2, 1}))

	// A machine that stops while a line is written.
	b, err := os.ReadFile(path)
	check(t, err)
	check(t, os.WriteFile(path, append(b, `{"8":{"epo`...), 0o600))
	for range 2 {
		k, err = openKept(dir, "main")
		check(t, err)
		if len(k.marks) != entries || k.mark("7") != (mark{2, 1}) || k.mark("8") != (mark{1, 8}) || k.mark("599") != (mark{1, 599}) {
			t.Errorf("%d marks, %v, %v, %v", len(k.marks), k.mark("7"), k.mark("8"), k.mark("599"))
		}
		check(t, k.write("8", []byte("x"), mark{1, 8}))
	}
	if b, err := os.ReadFile(path); err != nil || bytes.Count(b, []byte("\n")) != 1 || strings.Contains(string(b), `epo"`) {
		t.Errorf("%.100s, %v", b, err)
	}
}
