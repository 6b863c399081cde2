package proc

import (
	"context"
	"errors"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/creds"
	"gssproxyd/gssproxyd/nss"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc/peer"
)

// What an administrator asks about calls that nobody makes. It is answered by what answers calls.

// Explain says which service a caller would get, and what would become of operations: those given,
// or what the service is for. name is as for [creds.Caller.Explain]. An empty socket is the default
// one.
func (p *Procedures) Explain(ctx context.Context, caller *peer.Info, socket string, operations []conf.Operations, name *creds.Name) (d conf.Decision, list []creds.Explanation) {
	in := p.current.Load()
	if socket == "" {
		socket = in.conf.DefaultSocket
	}
	d = in.conf.Decide(caller, socket)
	if d.Service == nil {
		return d, nil
	}
	c := creds.Caller{Peer: caller, Service: in.services[d.Service].Service, Now: p.log.Now(), Context: ctx}
	if len(operations) == 0 {
		if d.Service.CredUsage != conf.UsageInitiate && name == nil {
			operations = append(operations, conf.OpAccept)
		}
		if d.Service.CredUsage != conf.UsageAccept || name != nil {
			operations = append(operations, conf.OpInitiate)
		}
	}
	for _, op := range operations {
		list = append(list, c.Explain(op, name))
	}
	return d, list
}

// DefaultSocket is the path of the socket that callers of files count as coming through.
func (p *Procedures) DefaultSocket() string { return p.current.Load().conf.DefaultSocket }

// SelfTest tries a service, see [creds.Service.SelfTest]; ok is false if there is none of that name.
func (p *Procedures) SelfTest(ctx context.Context, service string) (steps []creds.Step, ok bool) {
	for cs, s := range p.current.Load().services {
		if cs.Name == service {
			return s.SelfTest(ctx), true
		}
	}
	return nil, false
}

// User is which user of this host a principal is to a service.
type User struct {
	Service string
	Name    string // "" if it is none
	Rule    string // principal_map, a value of auth_to_local, auth_to_local_names or unmapped_user
	Account nss.Account
	Wrong   error // why it is none, or the name service does not know that one
}

// UsersOf says which user a principal is to each service, or to the one of a name. unmapped_user and
// principal_map are the kernel's NFS server's.
func (p *Procedures) UsersOf(ctx context.Context, principal, service string) (list []User, err error) {
	in := p.current.Load()
	ctx, cancel := context.WithTimeout(ctx, mappingTimeout)
	defer cancel()
	asked := make(map[string]User) // what the name service has said of a user
	account := func(u *User) {
		known, again := asked[u.Name]
		if !again {
			known.Account, known.Wrong = p.accountNamed(ctx, u.Name)
			asked[u.Name] = known
		}
		u.Account, u.Wrong = known.Account, known.Wrong
	}
	for _, cs := range in.conf.Services {
		if service != "" && cs.Name != service {
			continue
		}
		s := in.services[cs]
		name, err := krb5.ParsePrincipal(principal, s.Krb5.DefaultRealm)
		if err != nil {
			return nil, err
		}
		u := User{Service: cs.Name}
		if u.Name, u.Rule, u.Wrong = s.LocalUser(name.String()); u.Wrong == nil {
			account(&u)
		}
		if u.Wrong != nil && cs.KernelNFSD && (u.Name == "" || errors.Is(u.Wrong, conf.ErrNoUser)) {
			why := u.Wrong
			u = User{Service: cs.Name, Rule: "unmapped_user", Name: cs.UnmappedUser}
			switch cs.UnmappedUser {
			case conf.NobodyUser, conf.RefuseUser:
				u.Wrong = why
			default:
				account(&u)
			}
		}
		list = append(list, u)
	}
	return list, nil
}

// accountNamed asks the name service, as the daemon itself.
func (p *Procedures) accountNamed(ctx context.Context, user string) (a nss.Account, err error) {
	if user == "" {
		return a, mech.Errorf(mech.Unauthorized, 0, reason.UnknownUser, "the rule makes an empty name of it")
	}
	if p.accounts != nil {
		return p.accounts.Account(ctx, user)
	}
	if p.users == nil {
		return a, errors.New("there is no name service")
	}
	a.Name = user
	a.UID, err = p.users.UID(user)
	return a, err
}
