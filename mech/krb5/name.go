package krb5

import "gssproxyd/mech/krb5/wire"

// Principal is a Kerberos principal name. Package wire, which callers of this one need not know,
// has how it is written.
type Principal = wire.Principal

// Name types that callers ask for.
const (
	NTPrincipal  = wire.NTPrincipal
	NTSrvInst    = wire.NTSrvInst
	NTSrvHst     = wire.NTSrvHst
	NTEnterprise = wire.NTEnterprise
)

// MaxComponents bounds a name.
const MaxComponents = wire.MaxComponents

// ParsePrincipal is [wire.ParsePrincipal].
func ParsePrincipal(s, defaultRealm string) (Principal, error) {
	return wire.ParsePrincipal(s, defaultRealm)
}
