package wire

import (
	"github.com/jcmturner/gokrb5/v8/iana/addrtype"
	"github.com/jcmturner/gokrb5/v8/iana/adtype"
	"github.com/jcmturner/gokrb5/v8/iana/chksumtype"
	"github.com/jcmturner/gokrb5/v8/iana/errorcode"
	"github.com/jcmturner/gokrb5/v8/iana/flags"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/iana/msgtype"
	"github.com/jcmturner/gokrb5/v8/iana/nametype"
	"github.com/jcmturner/gokrb5/v8/iana/patype"

	"gssproxyd/mech"
)

// The numbers come from gokrb5's iana packages, which hold constants only. What they lack, or have
// otherwise than the documents, says where it is from.

// Error codes of RFC 4120 section 7.5.9 as minor statuses.
const (
	MinorClientExpired   = mech.MinorKRB5 + uint32(errorcode.KDC_ERR_NAME_EXP)
	MinorBadPVNO         = mech.MinorKRB5 + uint32(errorcode.KDC_ERR_BAD_PVNO)
	MinorClientUnknown   = mech.MinorKRB5 + uint32(errorcode.KDC_ERR_C_PRINCIPAL_UNKNOWN)
	MinorServerUnknown   = mech.MinorKRB5 + uint32(errorcode.KDC_ERR_S_PRINCIPAL_UNKNOWN)
	MinorNeverValid      = mech.MinorKRB5 + uint32(errorcode.KDC_ERR_NEVER_VALID)
	MinorPolicy          = mech.MinorKRB5 + uint32(errorcode.KDC_ERR_POLICY)
	MinorBadOption       = mech.MinorKRB5 + uint32(errorcode.KDC_ERR_BADOPTION)
	MinorEtypeNoSupp     = mech.MinorKRB5 + uint32(errorcode.KDC_ERR_ETYPE_NOSUPP)
	MinorPadataNoSupp    = mech.MinorKRB5 + uint32(errorcode.KDC_ERR_PADATA_TYPE_NOSUPP)
	MinorClientRevoked   = mech.MinorKRB5 + uint32(errorcode.KDC_ERR_CLIENT_REVOKED)
	MinorClientNotYet    = mech.MinorKRB5 + uint32(errorcode.KDC_ERR_CLIENT_NOTYET)
	MinorKeyExpired      = mech.MinorKRB5 + uint32(errorcode.KDC_ERR_KEY_EXPIRED)
	MinorPreauthFailed   = mech.MinorKRB5 + uint32(errorcode.KDC_ERR_PREAUTH_FAILED)
	MinorPreauthRequired = mech.MinorKRB5 + uint32(errorcode.KDC_ERR_PREAUTH_REQUIRED)
	MinorKDCTransited    = mech.MinorKRB5 + uint32(errorcode.KDC_ERR_PATH_NOT_ACCEPTED)
	MinorUnavailable     = mech.MinorKRB5 + uint32(errorcode.KDC_ERR_SVC_UNAVAILABLE)
	MinorBadIntegrity    = mech.MinorKRB5 + uint32(errorcode.KRB_AP_ERR_BAD_INTEGRITY)
	MinorExpired         = mech.MinorKRB5 + uint32(errorcode.KRB_AP_ERR_TKT_EXPIRED)
	MinorNotYetValid     = mech.MinorKRB5 + uint32(errorcode.KRB_AP_ERR_TKT_NYV)
	MinorReplay          = mech.MinorKRB5 + uint32(errorcode.KRB_AP_ERR_REPEAT)
	MinorNotUs           = mech.MinorKRB5 + uint32(errorcode.KRB_AP_ERR_NOT_US)
	MinorBadMatch        = mech.MinorKRB5 + uint32(errorcode.KRB_AP_ERR_BADMATCH)
	MinorSkew            = mech.MinorKRB5 + uint32(errorcode.KRB_AP_ERR_SKEW)
	MinorBadAddress      = mech.MinorKRB5 + uint32(errorcode.KRB_AP_ERR_BADADDR)
	MinorMsgType         = mech.MinorKRB5 + uint32(errorcode.KRB_AP_ERR_MSG_TYPE)
	MinorModified        = mech.MinorKRB5 + uint32(errorcode.KRB_AP_ERR_MODIFIED)
	MinorBadKeyVer       = mech.MinorKRB5 + uint32(errorcode.KRB_AP_ERR_BADKEYVER)
	MinorNoKey           = mech.MinorKRB5 + uint32(errorcode.KRB_AP_ERR_NOKEY)
	MinorTransited       = mech.MinorKRB5 + uint32(errorcode.KRB_AP_PATH_NOT_ACCEPTED)
	MinorTooBig          = mech.MinorKRB5 + uint32(errorcode.KRB_ERR_RESPONSE_TOO_BIG)
	MinorGeneric         = mech.MinorKRB5 + uint32(errorcode.KRB_ERR_GENERIC)
	MinorTooLong         = mech.MinorKRB5 + uint32(errorcode.KRB_ERR_FIELD_TOOLONG)
	MinorWrongRealm      = mech.MinorKRB5 + uint32(errorcode.KDC_ERR_WRONG_REALM)

	MinorIllegalCross   = mech.MinorKRB5 + 43 // KRB_AP_ERR_ILL_CR_TKT, RFC 1510 section 8.3
	MinorPreauthExpired = mech.MinorKRB5 + 90 // KDC_ERR_PREAUTH_EXPIRED, RFC 6113 section 5.3
)

// Errors of the library, from MIT krb5's table krb5_err.et.
const (
	MinorParseMalformed = mech.MinorKRB5 + 134 // KRB5_PARSE_MALFORMED
	MinorNoCredential   = mech.MinorKRB5 + 141 // KRB5_CC_NOTFOUND
	MinorNoTicket       = mech.MinorKRB5 + 143 // KRB5_NO_TKT_SUPPLIED
	MinorWrongPrincipal = mech.MinorKRB5 + 144 // KRB5KRB_AP_WRONG_PRINC
	MinorTicketInvalid  = mech.MinorKRB5 + 145 // KRB5KRB_AP_ERR_TKT_INVALID
	MinorReplyModified  = mech.MinorKRB5 + 147 // KRB5_KDCREP_MODIFIED
	MinorReplySkew      = mech.MinorKRB5 + 148 // KRB5_KDCREP_SKEW
	MinorProgEtype      = mech.MinorKRB5 + 150 // KRB5_PROG_ETYPE_NOSUPP
	MinorRealmUnknown   = mech.MinorKRB5 + 154 // KRB5_REALM_UNKNOWN
	MinorUnreachable    = mech.MinorKRB5 + 156 // KRB5_KDC_UNREACH
	MinorMutualFailed   = mech.MinorKRB5 + 158 // KRB5_MUTUAL_FAILED
	MinorRcacheIO       = mech.MinorKRB5 + 164 // KRB5_RC_IO
	MinorNotInKeytab    = mech.MinorKRB5 + 181 // KRB5_KT_NOTFOUND
	MinorNoRealmTicket  = mech.MinorKRB5 + 185 // KRB5_NO_TKT_IN_RLM
	MinorBadEnctype     = mech.MinorKRB5 + 188 // KRB5_BAD_ENCTYPE
	MinorBadKeySize     = mech.MinorKRB5 + 189 // KRB5_BAD_KEYSIZE
	MinorBadMsgSize     = mech.MinorKRB5 + 190 // KRB5_BAD_MSIZE
	MinorNoPreauth      = mech.MinorKRB5 + 210 // KRB5_PREAUTH_FAILED
	MinorHostRealm      = mech.MinorKRB5 + 217 // KRB5_ERR_HOST_REALM_UNKNOWN
	MinorLoop           = mech.MinorKRB5 + 223 // KRB5_GET_IN_TKT_LOOP
	MinorNoPermEtype    = mech.MinorKRB5 + 236 // KRB5_NOPERM_ETYPE
	MinorConfigEtype    = mech.MinorKRB5 + 237 // KRB5_CONFIG_ETYPE_NOSUPP
)

// Message types, also the numbers of the messages' application tags.
const (
	MsgASReq  = msgtype.KRB_AS_REQ
	MsgASRep  = msgtype.KRB_AS_REP
	MsgTGSReq = msgtype.KRB_TGS_REQ
	MsgTGSRep = msgtype.KRB_TGS_REP
	MsgAPReq  = msgtype.KRB_AP_REQ
	MsgAPRep  = msgtype.KRB_AP_REP
	MsgPriv   = msgtype.KRB_PRIV
	MsgCred   = msgtype.KRB_CRED
	MsgError  = msgtype.KRB_ERROR
)

// Name types (RFC 4120 section 6.2).
const (
	NTPrincipal        = nametype.KRB_NT_PRINCIPAL
	NTSrvInst          = nametype.KRB_NT_SRV_INST
	NTSrvHst           = nametype.KRB_NT_SRV_HST
	NTEnterprise       = nametype.KRB_NT_ENTERPRISE
	NTWellknown  int32 = 11 // RFC 6111
)

// Flags of a ticket (RFC 4120 section 5.3) that are also options of a request for one (section
// 5.4.1).
const (
	FlagForwardable   uint32 = 1 << (31 - flags.Forwardable)
	FlagForwarded     uint32 = 1 << (31 - flags.Forwarded)
	FlagProxiable     uint32 = 1 << (31 - flags.Proxiable)
	FlagProxy         uint32 = 1 << (31 - flags.Proxy)
	FlagAllowPostdate uint32 = 1 << (31 - flags.AllowPostDate)
	FlagPostdated     uint32 = 1 << (31 - flags.PostDated)
	FlagRenewable     uint32 = 1 << (31 - flags.Renewable)
	FlagAnonymous     uint32 = 1 << (31 - 16) // RFC 8062; gokrb5 has the draft's 12
)

// Flags of a ticket that are no options.
const (
	FlagInvalid       uint32 = 1 << (31 - flags.Invalid)
	FlagPolicyChecked uint32 = 1 << (31 - flags.TransitedPolicyChecked)
	FlagOKAsDelegate  uint32 = 1 << (31 - flags.OKAsDelegate)
	FlagEncPARep      uint32 = 1 << (31 - flags.EncPARep) // RFC 6806
)

// Options of a request that are no flags of a ticket.
const (
	OptCnameInAddlTkt uint32 = 1 << (31 - 14) // MS-SFU section 2.2.3
	OptCanonicalize   uint32 = 1 << (31 - flags.Canonicalize)
	OptRenewableOK    uint32 = 1 << (31 - flags.RenewableOK)
	OptRenew          uint32 = 1 << (31 - flags.Renew)
)

// Options of an AP-REQ (RFC 4120 section 5.5.1).
const (
	APUseSessionKey  uint32 = 1 << (31 - flags.APOptionUseSessionKey)
	APMutualRequired uint32 = 1 << (31 - flags.APOptionMutualRequired)
)

// Pre-authentication data types.
const (
	PATGSReq             = patype.PA_TGS_REQ
	PAEncTimestamp       = patype.PA_ENC_TIMESTAMP
	PAETypeInfo2         = patype.PA_ETYPE_INFO2
	PAForUser            = patype.PA_FOR_USER
	PAS4UX509User        = patype.PA_FOR_X509_USER
	PAFXCookie           = patype.PA_FX_COOKIE
	PAFXError            = patype.PA_FX_ERROR
	PAReqEncPARep        = patype.PA_REQ_ENC_PA_REP
	PAPACOptions   int32 = 167 // MS-KILE section 2.2.10
)

// Authorization data types.
const (
	ADIfRelevant             = adtype.ADIfRelevant
	ADCAMMAC           int32 = 96 // RFC 7751
	ADAuthIndicator    int32 = 97 // RFC 8129
	ADWin2kPAC               = adtype.ADWin2KPAC
	ADEtypeNegotiation       = adtype.ADEtypeNegotiation
	ADAPOptions        int32 = 143 // KERB_AUTH_DATA_AP_OPTIONS, MS-KILE
)

// Address types.
const (
	AddrINET    = addrtype.IPv4
	AddrINET6   = addrtype.IPv6
	AddrNetBIOS = addrtype.NetBios
)

// Checksum types that have no key of their own type.
const (
	SumRSAMD4 = chksumtype.RSA_MD4
	SumGSSAPI = chksumtype.GSSAPI
)

// Key usage numbers (RFC 4120 section 7.5.1, RFC 6806 section 11).
const (
	UsageEncTimestamp   = keyusage.AS_REQ_PA_ENC_TIMESTAMP
	UsageTicket         = keyusage.KDC_REP_TICKET
	UsageASRep          = keyusage.AS_REP_ENCPART
	UsageTGSReqChecksum = keyusage.TGS_REQ_PA_TGS_REQ_AP_REQ_AUTHENTICATOR_CHKSUM
	UsageTGSReqAuth     = keyusage.TGS_REQ_PA_TGS_REQ_AP_REQ_AUTHENTICATOR
	UsageTGSRepSession  = keyusage.TGS_REP_ENCPART_SESSION_KEY
	UsageTGSRepSubkey   = keyusage.TGS_REP_ENCPART_AUTHENTICATOR_SUB_KEY
	UsageAPReqChecksum  = keyusage.AP_REQ_AUTHENTICATOR_CHKSUM
	UsageAPReq          = keyusage.AP_REQ_AUTHENTICATOR
	UsageAPRep          = keyusage.AP_REP_ENCPART
	UsageKRBPriv        = keyusage.KRB_PRIV_ENCPART
	UsageKRBCred        = keyusage.KRB_CRED_ENCPART
	UsagePAC            = keyusage.KERB_NON_KERB_CKSUM_SALT // MS-PAC section 2.8.1
	UsageForUser        = keyusage.KERB_NON_KERB_CKSUM_SALT // MS-SFU section 2.2.1
	UsageASReqChecksum  = keyusage.KEY_USAGE_AS_REQ
	UsageS4URequest     = 26 // MS-SFU section 2.2.2
	UsageS4UReply       = 27 // MS-SFU section 2.2.2
	UsageCAMMAC         = 64 // RFC 7751
)
