package api

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"gssproxyd/conf"
	"gssproxyd/keystore"
	"gssproxyd/keystore/delivery"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/reason"
)

// A policy that each host would refuse is refused when it is set, in the words of the host.
func TestPolicyAsHostsJudgeIt(t *testing.T) {
	w := newWorld(t, nil)
	w.give(www)
	for _, rules := range []map[string][]string{
		{"enctypes": {"aes256"}}, {"enctypes": {"aes256-cts"}}, {"enctypes": {"des-cbc-crc"}}, {"enctypes": {"aes256-cts-hmac-sha1-96, x"}},
		{"operations": {"acept"}}, {"operations": {}}, {"mode": {"look"}}, {"targets": {"HTTP/www"}}, {"client_realms": {"A/B"}}, {"euid": {"0"}}, {"calls_burst": {"5"}},
		{"targets": {strings.Repeat("x", maxRules) + "@A"}},
	} {
		err := w.root.Call(t.Context(), "policy", &PolicyRequest{Principal: www, Rules: &rules}, new(json.RawMessage), nil)
		e, ok := errors.AsType[*Error](err)
		_, host := conf.EntryRules(rules, etype.IsName)
		want := "64 KiB"
		if host != nil {
			want = "rules: " + host.Error()
		} else if len(rules["targets"]) == 1 {
			want = "at most 65536 are expected"
		}
		if !ok || e.Reason != reason.StoreRequest || !strings.Contains(e.Text, want) {
			t.Errorf("%.100v: %v, want %s", rules, err, want)
		}
	}
	good := map[string][]string{"enctypes": {"aes256-cts-hmac-sha1-96, aes128-cts-hmac-sha256-128"}, "operations": {"accept"}}
	w.do("policy", &PolicyRequest{Principal: www, Rules: &good}, nil)
	var shown Shown
	if w.do("show", &Named{www}, &shown); shown.Revision != 2 || !slices.Equal(shown.Policy.Rules["operations"], []string{"accept"}) {
		t.Errorf("%+v", shown)
	}
}

// A certificate that a host sends and needs not ends no watch: one that has expired would have it ask
// again and again.
func TestNeedlessCertificate(t *testing.T) {
	w := newWorld(t, nil)
	w.enrol(web1)
	w.give(www, web1)
	cert := w.ca.issue(nil, web1)
	old := w.ca.issue(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, web2)
	cert.Certificate = append(cert.Certificate, old.Certificate[0])
	waits := w.watch(w.client(cert), 60, Have{Principal: www, Mark: keystore.Mark{Epoch: 1, Revision: 1}})
	w.watching(www, 1)
	w.do("disable", &DisableRequest{www, "it was stolen"}, nil)
	if got := w.deliveries(<-waits, web1); len(got) != 1 {
		t.Errorf("%+v", got)
	}
}

// What is answered after a while may be as long as other answers: of a large fleet, who is behind is.
func TestLongResult(t *testing.T) {
	w := newWorld(t, nil)
	var hosts []string
	for i := range 160 {
		hosts = append(hosts, fmt.Sprintf("%s%d.example.com", strings.Repeat("a", 450), i))
	}
	w.enrol(hosts...)
	w.give(www, hosts...)
	var res SignerShown
	if err := w.root.Call(t.Context(), "signer-show", &Nothing{}, &res, func(string) {}); err != nil || len(res.Behind) != len(hosts) {
		t.Errorf("%d hosts, %v", len(res.Behind), err)
	}
}

// When the store is stopped each watch that waits is answered, with nothing.
func TestStopDuringWatch(t *testing.T) {
	w := newWorld(t, nil)
	w.enrol(web1)
	w.give(www, web1)
	c := w.client(w.ca.issue(nil, web1))
	got := w.deliveries(<-w.watch(c, 60, Have{Principal: www}), web1)
	waits := w.watch(c, 60, Have{Principal: www, Mark: keystore.Mark{Epoch: got[0].Epoch, Revision: got[0].Revision}})
	w.watching(www, 1)
	w.stop()
	if a := <-waits; a.err != nil || a.status != http.StatusOK || len(a.Deliveries)+len(a.Watched.Refused) != 0 {
		t.Errorf("%+v", a)
	}
}

// The signer is changed by an administrator, who is told what hosts lack.
func TestSigner(t *testing.T) {
	w := newWorld(t, nil)
	w.enrol(web1)
	w.give(www, web1)
	w.deliveries(<-w.watch(w.client(w.ca.issue(nil, web1)), 0, Have{Principal: www}), web1)
	var s SignerShown
	w.do("signer-new", &Nothing{}, &s)
	if s.Signer != delivery.FormatSigner(w.signer) || s.Next == "" || s.Next == s.Signer || s.Behind != nil {
		t.Errorf("%+v", s)
	}
	err := w.root.Call(t.Context(), "signer-switch", &ForceRequest{Force: true}, &s, func(string) {})
	if e, ok := errors.AsType[*Error](err); !ok || e.Reason != reason.StoreRequest || !strings.Contains(e.Text, "write signer = "+s.Next) {
		t.Errorf("%v", err)
	}
	w.do("signer-show", &Nothing{}, &s)
	if len(s.Behind) != 1 || s.Behind[0].Name != web1 || s.Behind[0].Seen == nil || !slices.Equal(s.Behind[0].Principals, []string{www}) {
		t.Errorf("%+v", s)
	}
}
