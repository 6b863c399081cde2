// Face names what package interposer, its adapters and its package for tests offer to programs
// outside this repository, and what is kept here for programs to come. It is not to be run:
// deadcode (make lint) starts here as it does at this repository's programs, and what it does not
// reach from any of them only tests call.
package main

import (
	"gssproxyd/interposer"
	"gssproxyd/interposer/interposertest"
	"gssproxyd/interposer/negotiate"
	"gssproxyd/interposer/pggss"
	"gssproxyd/interposer/sshgss"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5/kdc"
)

// face has functions, and types for the sake of all their exported methods.
var face = []any{
	mech.ReasonOf, interposer.New, interposer.HostbasedName, interposer.Principal, interposer.ServiceCred, interposer.Flags(0),
	new(interposer.Client), new(interposer.Cred), new(interposer.Peer), new(interposer.SecContext),
	negotiate.Bind, negotiate.ClientFrom, negotiate.EndPoint, negotiate.NewContext, negotiate.Preflight, negotiate.Principals, negotiate.ServerFrom,
	new(negotiate.Authenticator), new(negotiate.CookieSession), new(negotiate.Transport),
	pggss.New, new(pggss.GSS),
	sshgss.NewClient, new(sshgss.Client), new(sshgss.Server),
	interposertest.Start, interposertest.StartForExample, interposertest.Token, new(interposertest.Daemon),

	// The key store will log in with a new password while it rotates one.
	kdc.Password, kdc.StringToKey,
}

func main() { println(len(face)) }
