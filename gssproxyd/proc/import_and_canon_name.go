package proc

import (
	"context"

	"gssproxyd/conf"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/xdr"
)

// IMPORT_AND_CANON_NAME (procedure 3)
//
//	struct gssx_arg_import_and_canon_name {
//		gssx_call_ctx call_ctx; gssx_name input_name; gssx_OID mech;
//		gssx_name_attr name_attributes<>; gssx_option options<>; };
//	struct gssx_res_import_and_canon_name {
//		gssx_status status; gssx_name *output_name; gssx_option options<>; };
//
// With a mechanism the name comes back canonical for it, without one as it was imported; an
// exported name says itself which mechanism it is for. With the option "localname" the answer is
// instead the local user name, in an option of the same name and without a final NUL.
//
// Unlike the C daemon, a host's name is never looked up in the DNS: no call waits for the network.
func importAndCanonName(_ context.Context, _ *Procedures, c *call, args *xdr.ArgImportAndCanonName, res *xdr.ResImportAndCanonName) error {
	if err := c.Permit(&conf.Act{Operation: conf.OpNames}); err != nil {
		return err
	}
	name := nameOf(&args.InputName)
	p, err := c.Principal(name)
	if err != nil {
		return err
	}
	switch m := mech.OID(args.Mech); m {
	case "", mech.KRB5, mech.KRB5Old, mech.KRB5Wrong, mech.IAKERB:
	default:
		return mech.Errorf(mech.BadMech, 0, reason.MechNotAllowed, "mechanism %s is not served", m.Mechanism()).Of(m)
	}
	if _, ok := option(args.Options, optLocalname); ok {
		user, err := c.Service.LocalNames.Map(p)
		if err != nil {
			return err
		}
		res.Status.Mech = args.Mech
		res.Options = []xdr.Option{{Option: optLocalname, Value: []byte(user)}}
		return nil
	}
	res.Status.Mech = args.Mech
	if len(args.Mech) == 0 && !name.Exported() {
		res.OutputName = xdr.Some(xdr.Name{DisplayName: args.InputName.DisplayName, NameType: args.InputName.NameType})
		return nil
	}
	res.OutputName = xdr.Some(c.mechName(p.String(), nil))
	return nil
}
