package creds

import (
	"fmt"
	"strings"

	"gssproxyd/conf"
	"gssproxyd/keytab"
	"gssproxyd/mech/krb5"
)

// Explanation is what would become of a call without a handle, as far as it can be said without
// doing anything for it.
type Explanation struct {
	Operation conf.Operations
	Refused   error          // nil: the configuration has nothing against it
	Observed  []conf.Refusal // what would be against it but for mode = observe
	Acts      []string       // whom the call would act for, and with what
}

// Explain says what would become of an operation; name is the server that a context would be
// initiated with, or the user to be impersonated, nil if that is not known.
func (c *Caller) Explain(op conf.Operations, name *Name) (e Explanation) {
	e.Operation = op
	c.observed = &e.Observed
	defer func() { c.observed = nil }()
	switch op {
	case conf.OpAccept:
		e.Acts, e.Refused = c.explainAccept()
	case conf.OpInitiate:
		e.Acts, e.Refused = c.explainInitiate(name)
	case conf.OpImpersonate:
		if e.Refused = c.mayImpersonate(); e.Refused == nil && name == nil {
			e.Refused = c.Permit(&conf.Act{Operation: op})
		} else if e.Refused == nil {
			user, err := c.initiatorName(name, nil)
			if err == nil {
				err = c.permitUser(user)
			}
			e.Acts, e.Refused = []string{"gets the credential of " + user.String() + " by S4U2Self, with the service's own"}, err
		}
	default:
		e.Refused = c.Permit(&conf.Act{Operation: op})
	}
	if e.Refused != nil {
		e.Acts = nil
	}
	return e
}

func (c *Caller) explainAccept() ([]string, error) {
	t, err := c.target(nil, conf.UsageAccept)
	if err != nil {
		return nil, err
	}
	names, err := c.names(t.uid)
	if err != nil {
		return nil, err
	}
	as := "as any principal that it has"
	if t.name != nil {
		as = "as " + string(t.name.Text)
	}
	lines := []string{
		fmt.Sprintf("acts for %s, with the keys of keytab %s, %s", c.whom(t.uid), names["keytab"], as),
		"replays are looked for in " + names["rcache"],
	}
	if st := c.Service.fixed; st != nil && st.keytab != nil {
		lines = append(lines, contents(st.keytab))
	}
	return lines, nil
}

func (c *Caller) explainInitiate(server *Name) ([]string, error) {
	t, err := c.target(nil, conf.UsageInitiate)
	if err != nil {
		return nil, err
	}
	if server != nil {
		p, err := c.Principal(*server)
		if err != nil {
			return nil, AsBadName(err)
		}
		if err := c.Permit(&conf.Act{Operation: conf.OpInitiate, Targets: []conf.Principal{nameIn(p, c.Service.Krb5.DefaultRealm)}, Proxy: t.impersonate}); err != nil {
			return nil, err
		}
	}
	names, err := c.names(t.uid)
	if err != nil {
		return nil, err
	}
	if t.impersonate {
		return []string{fmt.Sprintf("acts for the user %s, whose credential is got by S4U2Self with the service's own, with the keys of keytab %s", t.name.Text, names["keytab"])}, nil
	}
	keys, st := "client_keytab", c.Service.fixed
	var opened *keytab.Keytab
	if st != nil {
		opened = st.clientKeytab
	}
	if t.serviceKeytab && names["keytab"] != "" && (st == nil || st.keytabNamed) {
		if keys = "keytab"; st != nil {
			opened = st.keytab
		}
	}
	from := keys + " " + names[keys]
	if names[keys] == "" {
		from = "no keytab"
	}
	var lines []string
	if cache := names["ccache"]; cache != "" {
		lines = append(lines, fmt.Sprintf("acts for %s, as whoever the tickets in %s are of; where there are none, with %s", c.whom(t.uid), cache, from))
	} else {
		lines = append(lines, fmt.Sprintf("acts for %s, with %s; its tickets are kept in memory", c.whom(t.uid), from))
	}
	if opened != nil {
		if first := c.firstOf(opened); first != "" {
			lines = append(lines, "that is as "+shown(first))
		}
		lines = append(lines, contents(opened))
	}
	return lines, nil
}

// whom says whose store is used.
func (c *Caller) whom(uid uint32) string {
	if uid == c.Service.EUID {
		return fmt.Sprintf("the service itself (uid %d)", uid)
	}
	return fmt.Sprintf("uid %d", uid)
}

// names are the names of what the store for a uid is made of, by the keys of cred_store.
func (c *Caller) names(uid uint32) (map[string]string, error) {
	elements, err := c.Service.Store(uid, c.users())
	if err != nil {
		return nil, err
	}
	return storeNames(c.Service.Service, c.Service.Krb5, elements), nil
}

// contents says what is in a keytab.
func contents(k *keytab.Keytab) string {
	ring := k.Ring()
	if ring.Len() == 0 {
		return noKeys(k)
	}
	text := fmt.Sprintf("keytab %s has %d keys of %d principals", ring.Name(), ring.Len(), ring.Principals())
	if wrong := k.Err(); wrong != nil {
		text += "; it cannot be used as it now is, and its former keys are in use: " + wrong.Error()
	}
	return text
}

// shown is a principal of a file, for who reads.
func shown(principal string) string {
	p, err := krb5.ParsePrincipal(principal, "")
	if err != nil {
		return strings.ToValidUTF8(principal, "?")
	}
	return p.Shown()
}
