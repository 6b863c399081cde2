/*
 * What is only forwarded to the real mechanism: the messages of contexts, which are always local, and what is asked of a
 * mechanism as such.
 *
 * Some functions that the mechglue looks for are not here, because it then does what the real mechanism would do:
 * wrap_aead and unwrap_aead (it makes them of wrap_iov and unwrap_iov), complete_auth_token, display_name_ext,
 * inquire_saslname_for_mech and inquire_mech_for_saslname (it asks the real mechanism, and if it asked us, there would be
 * no way to ask the real one), indicate_mechs (which it never calls).
 */
#include "plugin.h"

/* In these, params begins with "OM_uint32 *minor, gss_ctx_id_t context", and args with "minor, local". */
#define CONTEXT(function, params, args) \
	EXPORT OM_uint32 gssi_##function params \
	{ \
		gss_ctx_id_t local; \
		OM_uint32 major = context_local(minor, context, &local); \
		return major == GSS_S_COMPLETE ? gss_##function args : major; \
	}

CONTEXT(process_context_token, (OM_uint32 *minor, gss_ctx_id_t context, gss_buffer_t token), (minor, local, token))

CONTEXT(get_mic, (OM_uint32 *minor, gss_ctx_id_t context, gss_qop_t qop, gss_buffer_t message, gss_buffer_t token),
	(minor, local, qop, message, token))

CONTEXT(verify_mic, (OM_uint32 *minor, gss_ctx_id_t context, gss_buffer_t message, gss_buffer_t token, gss_qop_t *qop),
	(minor, local, message, token, qop))

CONTEXT(wrap, (OM_uint32 *minor, gss_ctx_id_t context, int conf, gss_qop_t qop, gss_buffer_t in, int *conf_state,
	gss_buffer_t out), (minor, local, conf, qop, in, conf_state, out))

CONTEXT(unwrap, (OM_uint32 *minor, gss_ctx_id_t context, gss_buffer_t in, gss_buffer_t out, int *conf_state,
	gss_qop_t *qop), (minor, local, in, out, conf_state, qop))

CONTEXT(wrap_size_limit, (OM_uint32 *minor, gss_ctx_id_t context, int conf, gss_qop_t qop, OM_uint32 output,
	OM_uint32 *input), (minor, local, conf, qop, output, input))

CONTEXT(wrap_iov, (OM_uint32 *minor, gss_ctx_id_t context, int conf, gss_qop_t qop, int *conf_state,
	gss_iov_buffer_desc *iov, int count), (minor, local, conf, qop, conf_state, iov, count))

CONTEXT(unwrap_iov, (OM_uint32 *minor, gss_ctx_id_t context, int *conf_state, gss_qop_t *qop, gss_iov_buffer_desc *iov,
	int count), (minor, local, conf_state, qop, iov, count))

CONTEXT(wrap_iov_length, (OM_uint32 *minor, gss_ctx_id_t context, int conf, gss_qop_t qop, int *conf_state,
	gss_iov_buffer_desc *iov, int count), (minor, local, conf, qop, conf_state, iov, count))

CONTEXT(get_mic_iov, (OM_uint32 *minor, gss_ctx_id_t context, gss_qop_t qop, gss_iov_buffer_desc *iov, int count),
	(minor, local, qop, iov, count))

CONTEXT(get_mic_iov_length, (OM_uint32 *minor, gss_ctx_id_t context, gss_qop_t qop, gss_iov_buffer_desc *iov, int count),
	(minor, local, qop, iov, count))

CONTEXT(verify_mic_iov, (OM_uint32 *minor, gss_ctx_id_t context, gss_qop_t *qop, gss_iov_buffer_desc *iov, int count),
	(minor, local, qop, iov, count))

CONTEXT(pseudo_random, (OM_uint32 *minor, gss_ctx_id_t context, int key, gss_buffer_t in, ssize_t length,
	gss_buffer_t out), (minor, local, key, in, length, out))

CONTEXT(inquire_sec_context_by_oid, (OM_uint32 *minor, gss_ctx_id_t context, gss_OID object, gss_buffer_set_t *data),
	(minor, local, object, data))

/* An option may be set before there is a context, for the context that is to be. The Kerberos mechanisms have none such. */
EXPORT OM_uint32 gssi_set_sec_context_option(OM_uint32 *minor, gss_ctx_id_t *context, gss_OID object, gss_buffer_t value)
{
	gss_ctx_id_t local;
	OM_uint32 major;

	*minor = 0;
	if (*context == GSS_C_NO_CONTEXT)
		return GSS_S_UNAVAILABLE;
	major = context_local(minor, *context, &local);
	return major == GSS_S_COMPLETE ? gss_set_sec_context_option(minor, &local, object, value) : major;
}

/* In these, args begins with "minor, special". */
#define MECHANISM(prefix, function, params, args) \
	EXPORT OM_uint32 gssi_##function params \
	{ \
		gss_OID special = special_mech(mech); \
		*minor = 0; \
		return special == GSS_C_NO_OID ? (OM_uint32)GSS_S_BAD_MECH : prefix##_##function args; \
	}

MECHANISM(gss, inquire_names_for_mech, (OM_uint32 *minor, gss_OID mech, gss_OID_set *types), (minor, special, types))

MECHANISM(gss, inquire_attrs_for_mech, (OM_uint32 *minor, gss_const_OID mech, gss_OID_set *attrs, gss_OID_set *known),
	(minor, special, attrs, known))

MECHANISM(gssspi, mech_invoke, (OM_uint32 *minor, gss_OID mech, gss_OID object, gss_buffer_t value),
	(minor, special, object, value))
