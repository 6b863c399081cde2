package rotate

import (
	"context"
	"fmt"
	"slices"

	"gssproxyd/keystore"
	"gssproxyd/keystore/kadm"
	"gssproxyd/mech/krb5/kdc"
)

// remake makes the pending keys anew if the KDC has made others of their password, and reports whether
// it has. Until a password is changed nobody tells which salt the next one is given: of an account of
// Active Directory that was renamed since the last change it is another than before. Hosts refuse
// tickets until they have what is made here, which is at once.
func (h *held) remake(ctx context.Context) (bool, error) {
	p, realm, err := h.realm(h.entry)
	if err != nil {
		return false, err
	}
	password := h.entry.Rotation.Password
	rec, err := realm.KDC.Record(ctx, kadm.Self{Principal: p, Keys: kdc.Password(password)})
	if err != nil {
		return false, nil // it does not have that password: what the tickets are of nobody knows
	}
	made, err := kadm.Keys(password, rec.Salt, rec.Params, pendingTypes(h.entry))
	if err != nil {
		return false, err
	}
	defer destroy(made)
	same := true
	for i, k := range pendingKeys(h.entry) {
		same = same && slices.Equal(k.Secret, made[i].Secret())
	}
	if same {
		return false, nil
	}
	what := fmt.Sprintf("pending keys made anew: the KDC has given the password the salt %q", rec.Salt)
	return true, h.change(ctx, "remake", byRotation, what, func(n *keystore.Entry) {
		for i, k := range pendingKeys(n) {
			k.Secret.Zero()
			k.Secret = slices.Clone(made[i].Secret())
		}
	})
}

// pendingKeys are those of an entry, in order.
func pendingKeys(n *keystore.Entry) (list []*keystore.Key) {
	for i := range n.Keys {
		if k := &n.Keys[i]; k.State == keystore.Pending {
			list = append(list, k)
		}
	}
	return list
}
