/*
 * spnegomech: a mechanism for MIT's mechglue that goes by NTLM's OID and does
 * nothing but send a first token. Listed before Kerberos it makes MIT's SPNEGO
 * offer what the acceptor does not take.
 */
#include <stdlib.h>
#include <string.h>
#include <gssapi/gssapi.h>
#include <gssapi/gssapi_ext.h>

static const char message[] = "NTLMSSP\0\1\0\0\0\7\202\10\242";

OM_uint32 gss_acquire_cred(OM_uint32 *min, gss_name_t name, OM_uint32 time, gss_OID_set mechs, gss_cred_usage_t usage,
			   gss_cred_id_t *cred, gss_OID_set *actual, OM_uint32 *time_rec)
{
	*min = 0;
	if (usage != GSS_C_INITIATE)
		return GSS_S_NO_CRED;
	*cred = (gss_cred_id_t)message;
	if (actual)
		*actual = GSS_C_NO_OID_SET;
	if (time_rec)
		*time_rec = GSS_C_INDEFINITE;
	return GSS_S_COMPLETE;
}

OM_uint32 gss_release_cred(OM_uint32 *min, gss_cred_id_t *cred)
{
	*min = 0;
	*cred = GSS_C_NO_CREDENTIAL;
	return GSS_S_COMPLETE;
}

OM_uint32 gss_import_name(OM_uint32 *min, gss_buffer_t text, gss_OID type, gss_name_t *name)
{
	*min = 0;
	*name = (gss_name_t)message;
	return GSS_S_COMPLETE;
}

OM_uint32 gss_release_name(OM_uint32 *min, gss_name_t *name)
{
	*min = 0;
	*name = GSS_C_NO_NAME;
	return GSS_S_COMPLETE;
}

OM_uint32 gss_init_sec_context(OM_uint32 *min, gss_cred_id_t cred, gss_ctx_id_t *ctx, gss_name_t target, gss_OID mech,
			       OM_uint32 flags, OM_uint32 time, gss_channel_bindings_t bindings, gss_buffer_t in,
			       gss_OID *actual, gss_buffer_t out, OM_uint32 *ret_flags, OM_uint32 *time_rec)
{
	*min = 0;
	if (*ctx != GSS_C_NO_CONTEXT)
		return GSS_S_DEFECTIVE_TOKEN;
	out->value = malloc(sizeof(message));
	if (out->value == NULL)
		return GSS_S_FAILURE;
	memcpy(out->value, message, sizeof(message));
	out->length = sizeof(message);
	*ctx = (gss_ctx_id_t)message;
	if (actual)
		*actual = mech;
	if (ret_flags)
		*ret_flags = flags;
	if (time_rec)
		*time_rec = GSS_C_INDEFINITE;
	return GSS_S_CONTINUE_NEEDED;
}

OM_uint32 gss_delete_sec_context(OM_uint32 *min, gss_ctx_id_t *ctx, gss_buffer_t out)
{
	*min = 0;
	*ctx = GSS_C_NO_CONTEXT;
	return GSS_S_COMPLETE;
}
