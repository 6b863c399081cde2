package proc

import (
	"context"

	"gssproxyd/mech"
	"gssproxyd/xdr"
)

// INDICATE_MECHS (procedure 1)
//
//	struct gssx_arg_indicate_mechs { gssx_call_ctx call_ctx; };
//	struct gssx_res_indicate_mechs {
//		gssx_status status; gssx_mech_info mechs<>; gssx_mech_attr mech_attr_descs<>;
//		gssx_buffer supported_extensions<>; gssx_option extensions<>; };
//
// A libgssapi client asks once in its life and from then on takes no mechanism OID that this answer
// does not list, so the answer names what the client's own library would: krb5, IAKERB and SPNEGO,
// as the C daemon's does. Only krb5 is served here; SPNEGO runs in the client, with krb5 inside. No
// mechanism has an empty set of names or attributes: clients are not prepared for an OID set of
// length zero.
func indicateMechs(_ context.Context, _ *Procedures, _ *call, _ *xdr.ArgIndicateMechs, res *xdr.ResIndicateMechs) error {
	*res = mechsAnswer
	return nil
}

// mechsAnswer never changes; every answer aliases it.
var mechsAnswer = buildMechsAnswer()

func buildMechsAnswer() (res xdr.ResIndicateMechs) {
	// What a mechanism "knows" is every attribute of RFC 5587 and MIT's own one.
	known := make([][]byte, 0, 28)
	for n := byte(1); n <= 27; n++ {
		known = append(known, []byte(attr(n)))
	}
	known = append(known, []byte(attrNegoexAndSPNEGO))

	for _, m := range mechanisms {
		info := xdr.MechInfo{
			Mech:                 []byte(m.oid),
			KnownMechAttrs:       known,
			SaslnameSaslMechName: []byte(m.sasl),
			SaslnameMechName:     []byte(m.name),
			SaslnameMechDesc:     []byte(m.desc),
		}
		for _, t := range m.nameTypes {
			info.NameTypes = append(info.NameTypes, []byte(t))
		}
		for _, n := range m.attrs {
			info.MechAttrs = append(info.MechAttrs, []byte(attr(n)))
		}
		res.Mechs = append(res.Mechs, info)
	}
	for _, a := range attributes {
		res.MechAttrDescs = append(res.MechAttrDescs, xdr.MechAttr{
			Attr: []byte(a.oid), Name: []byte(a.name), ShortDesc: []byte(a.short), LongDesc: []byte(a.long),
		})
	}
	return res
}

// attr is the mechanism attribute 1.3.6.1.5.5.13.n (RFC 5587 section 3.2).
func attr(n byte) mech.OID { return "\x2b\x06\x01\x05\x05\x0d" + mech.OID([]byte{n}) }

// attrNegoexAndSPNEGO is 1.2.840.113554.1.2.2.5.18, MIT's GSS_C_MA_NEGOEX_AND_SPNEGO.
const attrNegoexAndSPNEGO mech.OID = "\x2a\x86\x48\x86\xf7\x12\x01\x02\x02\x05\x12"

var (
	krb5NameTypes = []mech.OID{
		mech.NTUserName, mech.NTMachineUID, mech.NTStringUID, mech.NTHostbased, mech.NTHostbasedX,
		mech.NTExportName, mech.NTKrb5Principal, mech.NTCompositeExport, mech.NTKrb5PrincipalPointer,
	}
	krb5Attrs = []byte{1, 9, 10, 11, 16, 17, 18, 19, 20, 21, 22, 23, 24, 27}
)

// mechanisms is what is listed, with the SASL names of RFC 5801 and the attributes of RFC 5587 by
// number.
var mechanisms = []struct {
	oid              mech.OID
	nameTypes        []mech.OID
	attrs            []byte
	sasl, name, desc string
}{
	{mech.KRB5, krb5NameTypes, krb5Attrs,
		"GS2-KRB5", "krb5", "Kerberos 5 GSS-API Mechanism"},
	{mech.IAKERB, krb5NameTypes, append(krb5Attrs[:len(krb5Attrs):len(krb5Attrs)], 12, 8),
		"GS2-IAKERB", "iakerb", "Initial and Pass Through Authentication Kerberos Mechanism (IAKERB)"},
	{mech.SPNEGO, krb5NameTypes[:4], []byte{4, 9},
		"SPNEGO", "spnego", "Simple and Protected GSS-API Negotiation Mechanism"},
}

// attributes describes each attribute, in the order libgssapi lists them: those in use first. The
// texts are what gss_display_mech_attr prints, to the letter, since clients show them.
var attributes = []struct {
	oid               mech.OID
	name, short, long string
}{
	{attr(1), "GSS_C_MA_MECH_CONCRETE", "concrete-mech", "Mechanism is neither a pseudo-mechanism nor a composite mechanism."},
	{attr(9), "GSS_C_MA_ITOK_FRAMED", "initial-is-framed", "Mechanism's initial contexts are properly framed."},
	{attr(10), "GSS_C_MA_AUTH_INIT", "auth-init-princ", "Mechanism supports authentication of initiator to acceptor."},
	{attr(11), "GSS_C_MA_AUTH_TARG", "auth-targ-princ", "Mechanism supports authentication of acceptor to initiator."},
	{attr(16), "GSS_C_MA_DELEG_CRED", "deleg-cred", "Mechanism supports credential delegation."},
	{attr(17), "GSS_C_MA_INTEG_PROT", "integ-prot", "Mechanism supports per-message integrity protection."},
	{attr(18), "GSS_C_MA_CONF_PROT", "conf-prot", "Mechanism supports per-message confidentiality protection."},
	{attr(19), "GSS_C_MA_MIC", "mic", "Mechanism supports Message Integrity Code (MIC) tokens."},
	{attr(20), "GSS_C_MA_WRAP", "wrap", "Mechanism supports wrap tokens."},
	{attr(21), "GSS_C_MA_PROT_READY", "prot-ready", "Mechanism supports per-message proteciton prior to full context establishment."},
	{attr(22), "GSS_C_MA_REPLAY_DET", "replay-detection", "Mechanism supports replay detection."},
	{attr(23), "GSS_C_MA_OOS_DET", "oos-detection", "Mechanism supports out-of-sequence detection."},
	{attr(24), "GSS_C_MA_CBINDINGS", "channel-bindings", "Mechanism supports channel bindings."},
	{attr(27), "GSS_C_MA_CTX_TRANS", "context-transfer", "Mechanism supports security context export/import."},
	{attr(2), "GSS_C_MA_MECH_PSEUDO", "pseudo-mech", "Mechanism is a pseudo-mechanism."},
	{attr(3), "GSS_C_MA_MECH_COMPOSITE", "composite-mech", "Mechanism is a composite of other mechanisms."},
	{attr(4), "GSS_C_MA_MECH_NEGO", "mech-negotiation-mech", "Mechanism negotiates other mechanisms."},
	{attr(5), "GSS_C_MA_MECH_GLUE", "mech-glue", "OID is not a mechanism but the GSS-API itself."},
	{attr(6), "GSS_C_MA_NOT_MECH", "not-mech", "Known OID but not a mechanism OID."},
	{attr(7), "GSS_C_MA_DEPRECATED", "mech-deprecated", "Mechanism is deprecated."},
	{attr(8), "GSS_C_MA_NOT_DFLT_MECH", "mech-not-default", "Mechanism must not be used as a default mechanism."},
	{attr(12), "GSS_C_MA_AUTH_INIT_INIT", "auth-init-princ-initial", "Mechanism supports authentication of initiator using initial credentials."},
	{attr(13), "GSS_C_MA_AUTH_TARG_INIT", "auth-target-princ-initial", "Mechanism supports authentication of acceptor using initial credentials."},
	{attr(14), "GSS_C_MA_AUTH_INIT_ANON", "auth-init-princ-anon", "Mechanism supports GSS_C_NT_ANONYMOUS as an initiator name."},
	{attr(15), "GSS_C_MA_AUTH_TARG_ANON", "auth-targ-princ-anon", "Mechanism supports GSS_C_NT_ANONYMOUS as an acceptor name."},
	{attr(25), "GSS_C_MA_PFS", "pfs", "Mechanism supports Perfect Forward Security."},
	{attr(26), "GSS_C_MA_COMPRESS", "compress", "Mechanism supports compression of data inputs to gss_wrap()."},
	{attrNegoexAndSPNEGO, "GSS_C_MA_NEGOEX_AND_SPNEGO", "negoex-only", "NegoEx mechanism should also be negotiable through SPNEGO."},
}
