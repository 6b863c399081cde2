package stores

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"gssproxyd/conf"
	"gssproxyd/keystore/delivery"
	"gssproxyd/keytab"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/reason"
)

// refusal is why a delivery is refused.
type refusal struct {
	id   reason.ID
	text string
}

func (r *refusal) Error() string { return r.text }

func refuse(id reason.ID, format string, args ...any) error {
	return &refusal{id, fmt.Sprintf(format, args...)}
}

// mark orders the deliveries of an entry.
type mark struct {
	Epoch    uint64 `json:"epoch"`
	Revision uint64 `json:"revision"`
}

func markOf(d *delivery.Delivery) mark { return mark{d.Epoch, d.Revision} }

func (m mark) before(other mark) bool {
	return m.Epoch < other.Epoch || m.Epoch == other.Epoch && m.Revision < other.Revision
}

func (m mark) String() string { return fmt.Sprintf("epoch %d, revision %d", m.Epoch, m.Revision) }

// judged is a good delivery.
type judged struct {
	delivery   *delivery.Delivery
	permission *conf.Permission
	keys       []keytab.Entry // to be zeroed
}

// verify returns what a signer of the store has said to this host.
func verify(st *store, raw []byte) (*delivery.Delivery, error) {
	d, err := delivery.Verify(raw, st.host, st.signers)
	switch {
	case errors.Is(err, delivery.ErrSignature):
		return nil, refuse(reason.DeliveryUnsigned, "%v", err)
	case errors.Is(err, delivery.ErrHost):
		return nil, refuse(reason.DeliveryElsewhere, "%v; this one is %q there", err, st.host)
	case err != nil:
		return nil, refuse(reason.DeliveryMalformed, "%v", err)
	}
	return d, nil
}

// isOf reports whether a delivery is of an entry that a service names by its principal, or by an alias
// as the service names of an account of Active Directory are.
func isOf(d *delivery.Delivery, principal string) bool {
	return d.Principal == principal || slices.Contains(d.Aliases, principal)
}

// judge returns what a delivery says of an entry, of which there was one of the highest mark before.
func (s *Stores) judge(st *store, e *entry, raw []byte, highest mark) (*judged, error) {
	d, err := verify(st, raw)
	switch {
	case err != nil:
		return nil, err
	case !isOf(d, e.principal):
		return nil, refuse(reason.DeliveryElsewhere, "it is of %q", d.Principal)
	case markOf(d).before(highest):
		return nil, refuse(reason.DeliveryReplayed, "it is of %v, and there was one of %v", markOf(d), highest)
	case d.Withdrawn != "":
		return &judged{delivery: d, permission: &conf.Permission{Withheld: withdrawn(e, d)}}, nil
	}
	j := &judged{delivery: d}
	if j.permission, err = permission(d.Rules); err != nil {
		return nil, err
	}
	j.keys, err = openKeys(d, s.o.Open)
	return j, err
}

// reasonID is what an id looks like.
var reasonID = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}[a-z0-9]$`)

// withdrawn is the refusal of calls that need keys which a store has taken away: for the store's reason,
// if this daemon documents it.
func withdrawn(e *entry, d *delivery.Delivery) *conf.Refusal {
	id, text := reason.ID(d.Withdrawn), d.Text
	if !reasonID.MatchString(d.Withdrawn) || id.Doc().Text == "" {
		id, text = reason.KeysWithdrawn, fmt.Sprintf("%s (%.64q)", d.Text, d.Withdrawn)
	}
	return &conf.Refusal{Reason: id, Text: fmt.Sprintf("the key store %q has withdrawn the keys of %s: %s", e.store, e.principal, shown(text))}
}

// shown is a text of somebody's, cut, and on one line.
func shown(text string) string {
	const most = 300
	text = strings.ToValidUTF8(text[:min(len(text), most)], "")
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
}

// permission reads the rules of a delivery.
func permission(rules map[string][]string) (*conf.Permission, error) {
	p, err := conf.EntryRules(rules, etype.IsName)
	if err != nil {
		return nil, refuse(reason.DeliveryRules, "%v", err)
	}
	return p, nil
}

// openKeys opens the keys of a delivery, for each name that they are of; the caller zeroes them.
func openKeys(d *delivery.Delivery, open func([]byte) (etype.Secret, error)) (list []keytab.Entry, err error) {
	plain, err := open(d.Sealed)
	if err != nil {
		return nil, refuse(reason.DeliveryNotOpened, "its keys cannot be opened: %v", err)
	}
	defer plain.Zero()
	var keys delivery.Keys
	defer func() { keys.Zero() }()
	if json.Unmarshal(plain, &keys) != nil || len(keys) == 0 {
		return nil, refuse(reason.DeliveryNotOpened, "what is sealed in it is no list of keys")
	}
	for _, k := range keys {
		if !slices.Contains([]string{"pending", "current", "previous"}, k.State) {
			zero(list)
			return nil, refuse(reason.DeliveryNotOpened, "a key in it has a state that is not known")
		}
		for _, principal := range append([]string{d.Principal}, d.Aliases...) {
			list = append(list, keytab.Entry{
				Principal: principal, Timestamp: uint32(k.Since), KVNO: k.KVNO, Enctype: etype.ID(k.Enctype), Key: slices.Clone(k.Key), Pending: k.State == "pending", Previous: k.State == "previous", Until: k.Until,
			})
		}
	}
	return list, nil
}
