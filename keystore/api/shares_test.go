package api

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"gssproxyd/audit"
	"gssproxyd/keystore"
	"gssproxyd/limits"
	"gssproxyd/mech/reason"
)

// TestOutOfTouch: an instance that has not reached the others for a while does not say that there is
// nothing new.
func TestOutOfTouch(t *testing.T) {
	w := newWorld(t, nil)
	w.enrol(web1)
	w.give(www, web1)
	c := w.client(w.ca.issue(nil, web1))
	has := []Have{{Principal: www, Mark: keystore.Mark{Epoch: 1, Revision: 1}}}
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

// TestUsePrevious: when a host has used a previous key is kept, to the hour, beside what it
// acknowledges; and not of who has no right to the entry, nor of a time to come.
func TestUsePrevious(t *testing.T) {
	w := newWorld(t, nil)
	w.enrol(web1, web2)
	w.give(www, web1)
	used := func(host string, kvno uint32, at time.Time) {
		t.Helper()
		have := []Have{{Principal: www, PreviousKVNO: kvno, PreviousUsed: at}}
		if status, r, err := w.post(w.client(w.ca.issue(nil, host)), "/v1/watch", Watch{Have: have}, nil); status != http.StatusOK {
			t.Fatal(status, r, err)
		}
	}
	var last keystore.Use
	is := func(kvno uint32, at time.Time) {
		t.Helper()
		uses, err := w.store.Uses(t.Context(), www)
		if err != nil || len(uses) != 1 || uses[0].Host != web1 || uses[0].KVNO != kvno || !uses[0].At.Equal(at) {
			t.Errorf("%+v, %v; want kvno %d at %v", uses, err, kvno, at)
		}
		last = uses[0]
	}
	at := time.Now().Add(-10 * time.Hour).UTC().Truncate(time.Second)
	used(web2, 2, at)
	used(web1, 0, time.Time{})
	if uses, err := w.store.Uses(t.Context(), www); err != nil || len(uses) > 0 {
		t.Errorf("%+v, %v", uses, err)
	}
	used(web1, 2, at)
	is(2, at)
	used(web1, 2, at.Add(59*time.Minute))
	is(2, at)
	w.server.previous.forget(previousUse{web1, www}) // as in another instance
	used(web1, 2, at.Add(-time.Minute))
	is(2, at)
	w.server.previous.forget(previousUse{web1, www})
	used(web1, 2, at.Add(time.Hour))
	is(2, at.Add(time.Hour))
	mark := keystore.Mark{Epoch: 1, Revision: 1}
	if err := w.store.Acknowledge(t.Context(), web1, map[string]keystore.Mark{www: mark}); err != nil {
		t.Fatal(err)
	}
	is(2, at.Add(time.Hour))
	used(web1, 1, at)
	is(1, at)
	if marks, err := w.store.Acknowledged(t.Context(), www); err != nil || marks[web1] != mark {
		t.Errorf("acknowledged is %v, %v", marks, err)
	}
	used(web1, 1, time.Now().Add(1000*time.Hour))
	uses, err := w.store.Uses(t.Context(), www)
	if err != nil || len(uses) != 1 || uses[0].At.After(time.Now()) || !uses[0].At.After(last.At) {
		t.Errorf("%+v, %v", uses, err)
	}
}

// TestUsePreviousCosts: each use that is noted costs what a request does, and what was not noted is
// with a later one.
func TestUsePreviousCosts(t *testing.T) {
	w := newWorld(t, nil)
	w.enrol(web1)
	var have []Have
	for _, p := range []string{www, mail, account} {
		w.give(p, web1)
		have = append(have, Have{Principal: p, Mark: keystore.Mark{Epoch: 1, Revision: 1}, PreviousKVNO: 2, PreviousUsed: time.Now()})
	}
	for want := 1; want <= 3; want++ {
		w.server.asked = newRates(limits.Rate{Burst: 2, Every: time.Hour})
		if status, r, err := w.post(w.client(w.ca.issue(nil, web1)), "/v1/watch", Watch{Have: have}, nil); status != http.StatusOK {
			t.Fatal(status, r, err)
		}
		noted := 0
		for _, has := range have {
			uses, err := w.store.Uses(t.Context(), has.Principal)
			if err != nil {
				t.Fatal(err)
			}
			noted += len(uses)
		}
		if noted != want {
			t.Errorf("%d are noted, want %d", noted, want)
		}
	}
}

// TestNamesOfKinds: a URI does not pass for a DNS name, nor the other way round.
func TestNamesOfKinds(t *testing.T) {
	c := &x509.Certificate{DNSNames: []string{"Web1.example.com", "spiffe://x/y", "a:b"}, URIs: []*url.URL{{Path: web1}, {Scheme: "spiffe", Host: "x", Path: "/y"}, {Scheme: "urn", Opaque: "x"}}}
	if got := fmt.Sprint(names(c)); got != "[web1.example.com spiffe://x/y]" {
		t.Error(got)
	}
}

// TestCertificateName: a name is compared in one way, whatever its letters are in the certificate and in
// what is configured.
func TestCertificateName(t *testing.T) {
	for name, want := range map[string]string{
		"Admin.Example.COM": "admin.example.com", "SPIFFE://Example.com/Web1": "spiffe://example.com/Web1",
		"": "", "a b": "", "urn:x": "", "http://": "", "a/b": "", strings.Repeat("a", 2000): "", "ä.example.com": "",
	} {
		if got, err := CertificateName(name); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", name, got, err)
		}
	}
	admin := Admin{Name: "ops", Certificate: "ops.example.com", Verbs: []Verb{Hosts}}
	spoken, err := CertificateName("Spiffe://Example.com/ops")
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, nil, admin, Admin{Name: "uri", Certificate: spoken, Verbs: []Verb{Hosts}})
	for _, name := range []string{"OPS.example.com", "spiffe://EXAMPLE.com/ops"} {
		if status, r, err := w.post(w.client(w.ca.issue(nil, name)), "/v1/admin/host-list", &Nothing{}, nil); status != http.StatusOK {
			t.Errorf("%s: %d %v %v", name, status, r, err)
		}
	}
}

// TestPrincipals: there is one way to write a principal, and who writes it otherwise is told it wherever
// he does so.
func TestPrincipals(t *testing.T) {
	w := newWorld(t, nil)
	w.enrol(web1)
	w.give(www, web1)
	c := w.client(w.ca.issue(nil, web1))
	for _, test := range []struct{ written, text string }{
		{"HTTP/www.example.com", "with the realm"}, {"HTTP/www.example.com@", "with the realm"}, {"@EXAMPLE.COM", "with the realm"}, {"", "with the realm"},
		{`HTTP\/www.example.com@EXAMPLE.COM`, ""}, // another principal, of one component
		{`\HTTP/www.example.com@EXAMPLE.COM`, `write it as "HTTP/www.example.com@EXAMPLE.COM"`},
		{`HTTP/www.example.com@EXAMPLE\.COM`, `write it as "HTTP/www.example.com@EXAMPLE.COM"`},
		{"a@b@C", "quote it"}, {"a\nb@C", "control"}, {strings.Repeat("a", maxPrincipal) + "@C", "at most"},
	} {
		told := func(where string, r Refusal) {
			t.Helper()
			if r.Reason != reason.StoreRequest || !strings.Contains(r.Text, test.text) {
				t.Errorf("%s of %.40q: %v, want %q", where, test.written, r, test.text)
			}
		}
		if test.text == "" {
			if err := checkPrincipal(test.written); err != nil {
				t.Error(err)
			}
			continue
		}
		for name, args := range map[string]any{
			"import": &ImportRequest{Principal: test.written}, "policy": &PolicyRequest{Principal: test.written}, "rotate": &RotateRequest{Principal: test.written},
			"disable": &DisableRequest{Principal: test.written}, "enable": &Named{test.written}, "delete": &Named{test.written}, "show": &Named{test.written}, "history": &Named{test.written},
		} {
			e, _ := errors.AsType[*Error](w.root.Call(t.Context(), name, args, nil, nil))
			if e == nil {
				t.Fatalf("%s of %.40q is taken", name, test.written)
			}
			told(name, e.Refusal)
		}
		_, r, _ := w.post(c, "/v1/acknowledge", Have{Principal: test.written}, nil)
		told("acknowledge", r)
		a := <-w.watch(c, 0, Have{Principal: test.written}, Have{Principal: www})
		if w.deliveries(a, web1); len(a.Deliveries) != 1 || len(a.Refused) != 1 {
			t.Fatalf("%+v", a)
		}
		told("watch", a.Refused[0].Refusal)
	}
}

// TestStrangers: who shows no certificate that counts is counted by his network, and takes no line of the
// audit log from anybody who is known, from however many addresses he comes.
func TestStrangers(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.1:77": "192.0.2.1/32", "[::ffff:192.0.2.1]:77": "192.0.2.1/32", "[2001:db8:1:2:3::4]:77": "2001:db8:1:2::/64", "[fe80::1%eth0]:1": "fe80::/64", "@": "@",
	} {
		if got := network(addr); got != want {
			t.Errorf("%s: %s", addr, got)
		}
	}
	w := newWorld(t, nil)
	for i := range maxRates + 100 {
		w.server.badCertificate(fmt.Sprintf("[2001:db8:%x:%x::1]:1", i>>16, i&0xffff), nil, errors.New("it is a stranger's"))
	}
	w.server.mu.Lock()
	known, strangers := len(w.server.lines.of), len(w.server.strangers.of)
	w.server.mu.Unlock()
	if known != 0 || strangers > maxRates {
		t.Errorf("%d are remembered among those who are known, %d among strangers", known, strangers)
	}
	c := w.client(w.ca.issue(nil, "nobody.example.com"))
	if status, r, err := w.post(c, "/v1/list", nil, nil); status != http.StatusForbidden || !w.audited(audit.StoreDenied, reason.StoreNotEnrolled) {
		t.Error(status, r, err)
	}
	for i := range 2 * linesRate.Burst { // all of one network
		w.server.badCertificate(fmt.Sprintf("[2001:db9::%x]:1", i), nil, errors.New("it is a neighbour's"))
	}
	lines := 0
	w.mu.Lock()
	for _, e := range w.events {
		if strings.Contains(e.Text, "a neighbour's") {
			lines++
		}
	}
	w.mu.Unlock()
	if lines > linesRate.Burst {
		t.Errorf("one network has %d lines", lines)
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
