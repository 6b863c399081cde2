package kdc

import (
	"testing"

	"gssproxyd/mech/krb5"
	"gssproxyd/tests/lab"
)

// BenchmarkLoginAndTicket is an AS exchange with pre-authentication and a TGS exchange with MIT's
// KDC, whose time counts too.
func BenchmarkLoginAndTicket(b *testing.B) {
	r := lab.New(b)
	check(b, r.AddPrincipal("careful", "pw"))
	check(b, r.RandKey("HTTP/"+lab.Host))
	path, err := r.Keytab("bench.keytab", "careful")
	check(b, err)
	keys, client, server := readKeytab(b, path), principal(b, "careful"), principal(b, http)
	c := &Client{Conf: load(b, r.Conf)}
	b.ReportAllocs()
	for b.Loop() {
		cred, err := c.Login(b.Context(), client, keys, LoginOptions{})
		check(b, err)
		_, err = c.Ticket(b.Context(), &store{[]*krb5.Credential{cred}}, client, server, TicketOptions{})
		check(b, err)
	}
}
