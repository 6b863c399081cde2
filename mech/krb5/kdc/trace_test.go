package kdc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// What KRB5_TRACE is for: who was asked and what was answered, which tickets came and where they
// went, and in whose name.
func TestTrace(t *testing.T) {
	w := newWorld(t, "A.TEST")
	w.kdcs["A.TEST"].preauth = true
	service, target := principal(t, "HTTP/www.a.test@A.TEST"), principal(t, "nfs/store@A.TEST")
	w.add(target.String(), 18)
	c := w.client()
	var lines strings.Builder
	var mu sync.Mutex // the attempts of one request are goroutines
	c.Trace = func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(&lines, format+"\n", args...)
	}
	s := w.login(c, service.String())
	for range 2 {
		_, err := c.Ticket(t.Context(), s, service, target, TicketOptions{})
		check(t, err)
	}
	evidence, err := c.S4U2Self(t.Context(), s, service, principal(t, "user@A.TEST"))
	check(t, err)
	if _, err := c.S4U2Proxy(t.Context(), s, service, evidence, target, TicketOptions{}); err == nil {
		t.Fatal("delegated")
	}
	c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if network == "udp" {
			return nil, errors.New("network is unreachable")
		}
		return w.dial(ctx, network, address)
	}
	w.login(c, "user@A.TEST")

	rest := lines.String()
	for _, want := range []string{
		`Getting initial credentials for HTTP/www.a.test@A.TEST\n`,
		`Sending a request \(\d+ bytes\) to realm A.TEST\n`,
		`The KDC of realm A.TEST at udp a.test:88 answers: error 25: Additional pre-authentication required\n`,
		`Proving to be HTTP/www.a.test@A.TEST with a key of type aes256-cts-hmac-sha1-96\n`,
		`at udp a.test:88 answers: an AS-REP\n`,
		`Got a ticket of HTTP/www.a.test@A.TEST for krbtgt/A.TEST@A.TEST, session key aes256-cts-hmac-sha1-96\n`,
		`Requesting a ticket for nfs/store@A.TEST, options 0x\w+, with the credential of HTTP/www.a.test@A.TEST for krbtgt/A.TEST@A.TEST\n`,
		`answers: a TGS-REP\n`,
		`Got a ticket of HTTP/www.a.test@A.TEST for nfs/store@A.TEST, `,
		`Storing the credential of HTTP/www.a.test@A.TEST for nfs/store@A.TEST in the cache\n`,
		`Found the credential of HTTP/www.a.test@A.TEST for nfs/store@A.TEST in the cache\n`,
		`S4U2Self: a ticket for HTTP/www.a.test@A.TEST in the name of user@A.TEST\n`,
		`Got a ticket of user@A.TEST for HTTP/www.a.test@A.TEST, `,
		`S4U2Proxy: a ticket for nfs/store@A.TEST in the name of user@A.TEST, with the evidence for HTTP/www.a.test@A.TEST\n`,
		`answers: error 13: KDC can't fulfill requested option\n`,
		`No answer of realm A.TEST: udp a.test:88: network is unreachable\n`,
		`The KDC of realm A.TEST at tcp a.test:88 answers: an AS-REP\n`,
	} {
		at := regexp.MustCompile(want).FindStringIndex(rest)
		if at == nil {
			t.Fatalf("no line %s after what came before in:\n%s", want, &lines)
		}
		rest = rest[at[1]:]
	}
	for _, cred := range append(s.creds, evidence) {
		if strings.Contains(lines.String(), string(cred.Key)) || strings.Contains(lines.String(), string(cred.Ticket)) {
			t.Error("a key or a ticket is in the trace")
		}
	}
}
