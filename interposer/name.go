package interposer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"gssproxyd/mech"
	"gssproxyd/xdr"
)

// Name is a GSS-API name. HostbasedName and Principal make one; of another type, set Display and
// Type. The daemon fills in the rest.
type Name struct {
	Display   string
	Type      mech.OID
	Exported  []byte // RFC 2743 section 3.2; nil if this is not a mechanism name
	Composite []byte // RFC 6680; nil if the daemon gave none
}

// HostbasedName is the name of a service on a host, such as "HTTP" and "www.example.com": the
// daemon's krb5.conf says which principal and realm that is. Without a host it is the daemon's own.
func HostbasedName(service, host string) Name {
	if host != "" {
		service += "@" + host
	}
	return Name{Display: service, Type: mech.NTHostbased}
}

// Principal is the name of a Kerberos principal, such as "alice@EXAMPLE.COM" or
// "postgres/db.example.com"; without a realm it is one of the default realm.
func Principal(s string) Name { return Name{Display: s, Type: mech.NTKrb5Principal} }

// String returns Display.
func (n Name) String() string { return n.Display }

// Format writes Display, whatever the verb: Composite may have more about a user than a log should.
func (n Name) Format(f fmt.State, _ rune) { io.WriteString(f, n.Display) }

// MarshalText returns Display, for JSON and logs.
func (n Name) MarshalText() ([]byte, error) { return []byte(n.Display), nil }

func (n Name) wire() xdr.Name {
	return xdr.Name{
		DisplayName: []byte(n.Display), NameType: []byte(n.Type),
		ExportedName: n.Exported, ExportedCompositeName: n.Composite,
	}
}

func nameOf(w *xdr.Name) Name {
	return Name{
		Display: trimNUL(w.DisplayName), Type: oidOf(w.NameType),
		Exported: some(w.ExportedName), Composite: some(w.ExportedCompositeName),
	}
}

// oidOf makes no copy of the usual ones.
func oidOf(b []byte) mech.OID {
	for _, m := range [...]mech.OID{mech.KRB5, mech.NTKrb5Principal, mech.NTHostbased, mech.NTUserName} {
		if string(b) == string(m) {
			return m
		}
	}
	return mech.OID(b)
}

// some is a copy of b, or nil if there is nothing in it.
func some(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return bytes.Clone(b)
}

// ImportName makes a name of the mechanism out of n, with the daemon's configuration: its default
// realm, its rules for hosts. It is for names that are to be compared or kept; requests take them as
// they are.
func (c *Client) ImportName(ctx context.Context, n Name, m mech.OID) (Name, error) {
	res, err := c.canonicalize(ctx, n, m, nil)
	if err != nil {
		return Name{}, err
	}
	if !res.OutputName.Set {
		return Name{}, errors.New("gssproxy: IMPORT_AND_CANON_NAME: there is no name in the results")
	}
	return nameOf(&res.OutputName.V), nil
}

// LocalName returns the local user that n is, by the daemon's auth_to_local rules, for a server that
// gives its clients accounts. There being none is a *[mech.Error].
func (c *Client) LocalName(ctx context.Context, n Name, m mech.OID) (string, error) {
	const option = "localname\x00"
	res, err := c.canonicalize(ctx, n, m, []xdr.Option{{Option: []byte(option)}})
	if err != nil {
		return "", err
	}
	for _, o := range res.Options {
		if string(o.Option) == option {
			return trimNUL(o.Value), nil
		}
	}
	return "", errors.New("gssproxy: IMPORT_AND_CANON_NAME: there is no local name in the results")
}

func (c *Client) canonicalize(ctx context.Context, n Name, m mech.OID, options []xdr.Option) (*xdr.ResImportAndCanonName, error) {
	arg := xdr.ArgImportAndCanonName{InputName: n.wire(), Mech: []byte(m), Options: options}
	var res xdr.ResImportAndCanonName
	return &res, c.call(ctx, xdr.ProcImportAndCanonName, &arg, &res, &res.Status, nil)
}

// Mech is a mechanism that the daemon has, as IndicateMechs returns it.
type Mech struct {
	OID         mech.OID
	NameTypes   []mech.OID
	Attributes  []mech.OID // RFC 5587
	SASLName    string     // RFC 5801, such as "GS2-KRB5"
	Name        string     // such as "krb5"
	Description string
}

// IndicateMechs lists the daemon's mechanisms, to show them or to find one by its SASLName. Contexts
// need no list.
func (c *Client) IndicateMechs(ctx context.Context) ([]Mech, error) {
	var res xdr.ResIndicateMechs
	if err := c.call(ctx, xdr.ProcIndicateMechs, &xdr.ArgIndicateMechs{}, &res, &res.Status, nil); err != nil {
		return nil, err
	}
	mechs := make([]Mech, len(res.Mechs))
	for i := range res.Mechs {
		w := &res.Mechs[i]
		mechs[i] = Mech{
			OID: mech.OID(w.Mech), NameTypes: oids(w.NameTypes), Attributes: oids(w.MechAttrs),
			SASLName: trimNUL(w.SaslnameSaslMechName), Name: trimNUL(w.SaslnameMechName), Description: trimNUL(w.SaslnameMechDesc),
		}
	}
	return mechs, nil
}

func oids(w [][]byte) []mech.OID {
	list := make([]mech.OID, len(w))
	for i, b := range w {
		list[i] = mech.OID(b)
	}
	return list
}
