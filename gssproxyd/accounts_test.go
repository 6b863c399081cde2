package main

import (
	"io"
	"testing"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/proc"
	"gssproxyd/limits"
)

// Callers' questions go to a helper of their own, and are charged; the kernel's are not.
func TestCallersHaveTheirOwnHelper(t *testing.T) {
	d := testDaemon(io.Discard)
	d.limits = limits.ForProcess()
	if d.accounts() != nil {
		t.Error("without a helper somebody says who users are")
	}
	d.startNSS()
	defer d.stopNSS()
	if proc.Accounts(d.lookUp) == d.accounts() || conf.Users(d.nss) == d.callersUsers() {
		t.Error("the kernel and callers ask the same helper")
	}
	for _, users := range []conf.Users{d.users, d.callersUsers()} {
		if name, err := users.Name(0); err != nil || name != "root" {
			t.Errorf("uid 0 is %q, %v", name, err)
		}
	}
}
