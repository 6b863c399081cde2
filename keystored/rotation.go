package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"gssproxyd/conf"
	"gssproxyd/keystore"
	"gssproxyd/keystore/kadm"
	"gssproxyd/keystore/rotate"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/kdc"
	"gssproxyd/mech/krb5/krb5conf"
)

// realm is a section [realm/NAME]: how keys are changed there.
type realm struct {
	change   string     // one of the two ways of [kadm.KDC]
	enctypes []etype.ID // none: those that the KDC says each principal has

	lag, maxLife, maxRenewable time.Duration
}

// The ways to change keys.
const (
	viaKadmin  = "kadmin"
	viaKpasswd = "kpasswd"
)

// What tickets of a realm are taken to live that does not say, and what clocks may be off: MIT krb5's
// defaults, and a week to be renewed.
const (
	defaultLife      = 24 * time.Hour
	defaultRenewable = 7 * 24 * time.Hour
	clockSkew        = 5 * time.Minute
)

// realmKeys are those of [realm/NAME].
func realmKeys(r *realm) []conf.Key {
	span := func(dst *time.Duration) func(string) error {
		return func(s string) (err error) {
			if *dst, err = time.ParseDuration(s); err != nil || *dst < 0 {
				return errors.New("is no time; a number with a unit is expected, as in 90s, 10h")
			}
			return nil
		}
	}
	return []conf.Key{
		{Name: "change", Required: true, Set: func(s string) error {
			if r.change = s; s != viaKadmin && s != viaKpasswd {
				return errors.New("is no way to change keys; kadmin, the protocol of MIT krb5, or kpasswd, which Active Directory has, is expected")
			}
			return nil
		}},
		{Name: "enctypes", Set: func(s string) error {
			for _, name := range strings.FieldsFunc(s, separates) {
				ids, ok := etype.Parse(name)
				if !ok {
					return fmt.Errorf("has %q in it; names such as aes256-cts-hmac-sha1-96 are expected", name)
				}
				r.enctypes = append(r.enctypes, ids...)
			}
			return nil
		}},
		{Name: "lag", Set: span(&r.lag)},
		{Name: "max_life", Set: span(&r.maxLife)},
		{Name: "max_renewable", Set: span(&r.maxRenewable)},
	}
}

// realm reads a section [realm/NAME].
func (c *config) realm(f *conf.File, s *conf.Section, name string) {
	r := &realm{maxLife: defaultLife, maxRenewable: defaultRenewable}
	f.Apply(s, realmKeys(r))
	c.realms[name] = r
}

// engine returns what rotates keys.
func (in *instance) engine(store *keystore.Store) (*rotate.Engine, error) {
	k, err := krb5conf.Load(krb5conf.Files(os.Getenv))
	if err != nil {
		return nil, err
	}
	client := &kdc.Client{Conf: k, Log: in.log}
	realms := in.conf.realms
	return rotate.New(rotate.Options{
		Store: store, Audit: in.record, Log: in.log,
		Realm: func(name string) (*rotate.Realm, error) {
			r := realms[name]
			if r == nil {
				return nil, fmt.Errorf("no section [realm/%s] of %s says how keys are changed there", name, in.conf.file)
			}
			return r.rotate(client), nil
		},
	}), nil
}

// rotate is the realm as the engine takes it.
func (r *realm) rotate(client *kdc.Client) *rotate.Realm {
	in := &rotate.Realm{
		KDC:      &kadm.Kadmin{Client: client},
		Prober:   func(p krb5.Principal) rotate.Prober { return &kadm.Prober{Client: client, Principal: p} },
		Enctypes: r.enctypes, Lag: r.lag, MaxLife: r.maxLife, MaxRenewable: r.maxRenewable, Skew: clockSkew,
	}
	if r.change == viaKpasswd {
		in.KDC = &kadm.Kpasswd{Client: client}
	}
	return in
}
