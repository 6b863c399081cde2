package stores

import (
	"crypto/ed25519"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"gssproxyd/keystore/delivery"
)

// While the store changes its signer nothing is missed: a host that does not have the new one says so,
// with the line that is missing, and goes on; one that has both takes what either signs; and when the
// former one is gone what is kept is the new one's.
func TestSignerChanges(t *testing.T) {
	f := newFakeStore(t)
	f.put(of(www, 1))
	d := newDaemon(t, f, inside)
	web := d.follow(www)
	web.until(t, "the first keys", kvno(1))
	f.await(www, mark{1, 1})
	former := d.config.KeyStores[0].Signers[0]

	_, next, err := ed25519.GenerateKey(nil)
	check(t, err)
	f.signer = next
	f.put(of(www, 2))
	line := delivery.FormatSigner(next.Public().(ed25519.PublicKey))
	until(t, "that the signer is not known", func() bool {
		log := d.log.String()
		return strings.Contains(log, "reason=delivery-unsigned") && strings.Contains(log, "it says that it is "+line) && strings.Contains(log, "when the store has changed its signer, the new line is missing here")
	})
	if keys, _, err := web.now(); !kvno(1)(keys, err) {
		t.Errorf("%d keys, %v", len(keys), err)
	}

	with := func(signers ...string) {
		t.Helper()
		c := d.configuration(f)
		c.KeyStores[0].Signers = signers
		d.config = c
		check(t, d.Configure(c))
	}
	with(former, line)
	web.until(t, "what the new one has signed", kvno(2))
	f.await(www, mark{1, 2})
	d.denied()
	with(line)
	if keys, _, err := web.now(); !kvno(2)(keys, err) || d.denied() != nil {
		t.Errorf("%d keys, %v", len(keys), err)
	}
}

// A store that is being stopped answers with nothing and the end of the connection: the next address is
// asked, and nobody is told of a failure.
func TestStoreStops(t *testing.T) {
	f := newFakeStore(t)
	f.put(of(www, 1))
	d := newDaemon(t, f, inside)
	first := f.url
	c := d.configuration(f)
	c.KeyStores[0].URLs = []string{first, first + "/"}
	check(t, d.Configure(c))
	web := d.follow(www)
	web.until(t, "keys", kvno(1))
	f.await(www, mark{1, 1})
	var stopped atomic.Int32
	f.mu.Lock()
	f.override = func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "//") || stopped.Load() > 0 {
			f.mu.Lock()
			f.override = nil
			f.mu.Unlock()
			f.serve(w, r)
			return
		}
		io.Copy(io.Discard, r.Body)
		stopped.Add(1)
		w.Header().Set("Connection", "close")
		io.WriteString(w, `{"deliveries":[],"refused":[]}`)
	}
	f.mu.Unlock()
	at := d.States()[0].URL
	f.put(of(www, 2)) // ends the poll
	web.until(t, "keys of the other address", kvno(2))
	until(t, "another address", func() bool { return stopped.Load() > 0 && d.States()[0].URL != at })
	if s := d.States()[0]; s.Lost != "" || strings.Contains(d.log.String(), "no contact") {
		t.Errorf("%+v\n%s", s, d.log)
	}
}
