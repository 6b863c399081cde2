package api

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"gssproxyd/keystore"
	"gssproxyd/mech/reason"
)

// TestOutOfTouch: an instance that has not reached the others for a while does not say that there is
// nothing new.
func TestOutOfTouch(t *testing.T) {
	w := newWorld(t, nil)
	w.enrol(web1)
	w.give(www, web1)
	c := w.client(w.ca.issue(nil, web1))
	has := []Have{{www, keystore.Mark{Epoch: 1, Revision: 1}}}
	if status, r, err := w.post(c, "/v1/watch", Watch{Have: has}, nil); status != http.StatusOK {
		t.Error(status, r, err)
	}
	w.ahead.Store(int64(time.Minute))
	if status, r, err := w.post(c, "/v1/watch", Watch{Have: has, WaitSeconds: 60}, nil); status != http.StatusServiceUnavailable || r.Reason != reason.StoreUnavailable || !strings.Contains(r.Text, "out of touch") {
		t.Error(status, r, err)
	}
}

// TestAcknowledgeOwn: nothing is kept of what a host says about entries that it has not.
func TestAcknowledgeOwn(t *testing.T) {
	w := newWorld(t, nil)
	w.enrol(web1)
	w.give(www, web2)
	c := w.client(w.ca.issue(nil, web1))
	for principal, want := range map[string]int{"nothing@NOWHERE": http.StatusForbidden, www: http.StatusForbidden} {
		status, r, err := w.post(c, "/v1/acknowledge", Have{Principal: principal}, nil)
		marks, bad := w.store.Acknowledged(t.Context(), principal)
		if status != want || err != nil || bad != nil || len(marks) > 0 {
			t.Errorf("%s: %d %v %v; kept %v, %v", principal, status, r, err, marks, bad)
		}
	}
}

// TestUse: whom a pattern names and who asks for an entry is waited for from then on.
func TestUse(t *testing.T) {
	w := newWorld(t, nil)
	w.enrol(web1, web2)
	w.give(www, strings.Replace(web1, "web1", "*", 1))
	var got Watched
	for range 2 {
		if status, r, err := w.post(w.client(w.ca.issue(nil, web1)), "/v1/watch", Watch{Have: []Have{{Principal: www}}}, &got); status != http.StatusOK || len(got.Deliveries) != 1 {
			t.Fatal(status, r, err)
		}
	}
	if marks, err := w.store.Acknowledged(t.Context(), www); err != nil || len(marks) != 1 || marks[web1] != (keystore.Mark{}) {
		t.Errorf("%v, %v", marks, err)
	}
}

// TestNamesOfKinds: a URI does not pass for a DNS name, nor the other way round.
func TestNamesOfKinds(t *testing.T) {
	c := &x509.Certificate{DNSNames: []string{"Web1.example.com", "spiffe://x/y", "a:b"}, URIs: []*url.URL{{Path: web1}, {Scheme: "spiffe", Host: "x", Path: "/y"}, {Scheme: "urn", Opaque: "x"}}}
	if got := fmt.Sprint(names(c)); got != "[web1.example.com spiffe://x/y]" {
		t.Error(got)
	}
}

// TestTwice: an entry is asked for once in a watch.
func TestTwice(t *testing.T) {
	w := newWorld(t, nil)
	w.enrol(web1)
	w.give(www, web1)
	if status, r, err := w.post(w.client(w.ca.issue(nil, web1)), "/v1/watch", Watch{Have: []Have{{Principal: www}, {Principal: www}}}, nil); status != http.StatusBadRequest || r.Reason != reason.StoreRequest {
		t.Error(status, r, err)
	}
}

// TestConnectionsOfOne: one certificate has so many connections, and others have theirs.
func TestConnectionsOfOne(t *testing.T) {
	w := newWorld(t, nil)
	w.enrol(web1, web2)
	w.give(www, web1, web2)
	cert := w.ca.issue(nil, web1)
	ask := func() string {
		nc, err := tls.Dial("tcp", w.addr, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { nc.Close() })
		fmt.Fprint(nc, "GET /v1/list HTTP/1.1\r\nHost: x\r\n\r\n")
		b := make([]byte, 4096)
		n, _ := nc.Read(b)
		return string(b[:n])
	}
	for range namedEach {
		if got := ask(); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
			t.Fatal(got)
		}
	}
	if got := ask(); !strings.HasPrefix(got, "HTTP/1.1 429 ") || !strings.Contains(got, "Connection: close") {
		t.Error(got)
	}
	if status, r, err := w.post(w.client(w.ca.issue(nil, web2)), "/v1/list", nil, nil); status != http.StatusOK {
		t.Error(status, r, err)
	}
}

// TestKeyGivenIsNotPrinted: with no verb.
func TestKeyGivenIsNotPrinted(t *testing.T) {
	k := KeyGiven{KVNO: 3, Enctype: 18, Key: []byte("0123456789abcdef")}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
		for _, v := range []any{k, &k, []KeyGiven{k}, &ImportRequest{Keys: []KeyGiven{k}}} {
			if got := fmt.Sprintf(verb, v); !strings.Contains(got, "[redacted]") || strings.Contains(got, "456789") || strings.Contains(got, "34353637") || strings.Contains(got, "52 53 54") {
				t.Errorf("%s of %T: %s", verb, v, got)
			}
		}
	}
}
