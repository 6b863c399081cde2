/*
 * Names.
 *
 * An imported name is kept as the program gave it, since whether it is for the daemon or for the real mechanism is not known
 * yet: importing does nothing else. A name of an answer is canonical already, and has its exported form, which carries the
 * mechanism's own OID. Whatever else is asked of a name, is asked of its local form.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "plugin.h"

#define NO_LIST ((struct xdr_list){ 0, { NULL, 0 } })

/* own_bytes copies the forms of x, which may lie anywhere, into memory of their own. NULL if there is none. */
static uint8_t *own_bytes(struct gssx_name *x)
{
	struct xdr_bytes *forms[] = { &x->display_name, &x->name_type, &x->exported_name, &x->exported_composite_name };
	uint8_t *own, *p;
	size_t n = 1; /* a name of nothing has memory as well */

	for (size_t i = 0; i < 4; i++)
		n += forms[i]->n;
	own = p = malloc(n);
	if (!own)
		return NULL;
	for (size_t i = 0; i < 4; i++) {
		if (forms[i]->n > 0)
			memcpy(p, forms[i]->p, forms[i]->n);
		forms[i]->p = p;
		p += forms[i]->n;
	}
	x->name_attributes = x->extensions = NO_LIST; /* no peer uses them */
	return own;
}

struct name *name_of(const struct gssx_name *x, gss_OID mech)
{
	struct name *name = calloc(1, sizeof(*name));

	if (!name)
		return NULL;
	name->mech = mech;
	name->x = *x;
	name->own = own_bytes(&name->x);
	if (!name->own) {
		free(name);
		return NULL;
	}
	return name;
}

struct name *name_of_local(gss_name_t local, gss_OID mech)
{
	struct name *name = calloc(1, sizeof(*name));
	OM_uint32 ignored;

	if (!name) {
		gss_release_name(&ignored, &local);
		return NULL;
	}
	name->mech = mech;
	atomic_init(&name->local, local);
	return name;
}

void name_free(struct name *name)
{
	gss_name_t local;
	OM_uint32 ignored;

	if (!name)
		return;
	local = atomic_load(&name->local);
	if (local)
		gss_release_name(&ignored, &local);
	free(name->own);
	free(name);
}

/* ---- the local form ---- */

/* has_attributes reports whether x may have some: a composite form is the exported one, 4 bytes, and the attributes. */
static bool has_attributes(const struct gssx_name *x)
{
	return x->exported_composite_name.n > (size_t)x->exported_name.n + 4;
}

/* import_local makes a mechanism name of the real mechanism out of the best form that x has. */
static OM_uint32 import_local(OM_uint32 *minor, const struct gssx_name *x, gss_OID mech, gss_name_t *local)
{
	gss_OID_desc given = { x->name_type.n, (void *)x->name_type.p };
	gss_OID type = given.length > 0 ? &given : GSS_C_NO_OID, special = special_mech(mech);
	struct xdr_bytes b = x->display_name;
	gss_buffer_desc buffer;
	gss_name_t any;
	OM_uint32 major, ignored;

	if (special == GSS_C_NO_OID) {
		*minor = 0;
		return GSS_S_BAD_MECH;
	}
	if (has_attributes(x)) {
		b = x->exported_composite_name;
		type = GSS_C_NT_COMPOSITE_EXPORT;
	} else if (x->exported_name.n > 0) {
		b = x->exported_name;
		type = GSS_C_NT_EXPORT_NAME;
	}
	buffer = (gss_buffer_desc){ b.n, (void *)b.p };
	major = gss_import_name(minor, &buffer, type, &any);
	if (major != GSS_S_COMPLETE)
		return major;
	major = gss_canonicalize_name(minor, any, special, local);
	gss_release_name(&ignored, &any);
	return major;
}

/* keep_local makes local, which it owns, the name's local form, unless another thread was faster. */
static gss_name_t keep_local(struct name *name, gss_name_t local)
{
	gss_name_t none = GSS_C_NO_NAME;
	OM_uint32 ignored;

	if (atomic_compare_exchange_strong(&name->local, &none, local))
		return local;
	gss_release_name(&ignored, &local);
	return none;
}

/* local_form is name_local of a name that there is. */
static OM_uint32 local_form(OM_uint32 *minor, struct name *name, gss_OID mech, gss_name_t *local)
{
	OM_uint32 major;

	*minor = 0;
	*local = atomic_load(&name->local);
	if (*local)
		return GSS_S_COMPLETE;
	major = import_local(minor, &name->x, name->mech ? name->mech : mech, local);
	if (major == GSS_S_COMPLETE)
		*local = keep_local(name, *local);
	return major;
}

OM_uint32 name_local(OM_uint32 *minor, struct name *name, gss_OID mech, gss_name_t *local)
{
	if (name)
		return local_form(minor, name, mech, local);
	*minor = 0;
	*local = GSS_C_NO_NAME;
	return GSS_S_COMPLETE;
}

/* ---- the daemon's ---- */

OM_uint32 name_wire(OM_uint32 *minor, struct name *name, struct gssx_name *x, uint8_t **own)
{
	gss_buffer_desc display = GSS_C_EMPTY_BUFFER, exported = GSS_C_EMPTY_BUFFER;
	gss_name_t local;
	gss_OID type;
	OM_uint32 major, ignored;

	*minor = 0;
	*own = NULL;
	if (name->own) {
		*x = name->x;
		x->exported_composite_name = (struct xdr_bytes){ NULL, 0 }; /* the daemon takes no attributes from its clients */
		return GSS_S_COMPLETE;
	}
	local = atomic_load(&name->local);
	major = gss_display_name(minor, local, &display, &type);
	if (major == GSS_S_COMPLETE)
		major = gss_export_name(minor, local, &exported);
	if (major == GSS_S_COMPLETE) {
		*x = (struct gssx_name){
			.display_name = bytes_of(&display), .name_type = oid_bytes(type), .exported_name = bytes_of(&exported),
		};
		*own = own_bytes(x);
		if (!*own)
			major = no_memory(minor);
	}
	gss_release_buffer(&ignored, &display);
	gss_release_buffer(&ignored, &exported);
	return major;
}

/* ask calls IMPORT_AND_CANON_NAME. The results lie in the answer, which the caller frees whatever is returned. */
static OM_uint32 ask(OM_uint32 *minor, struct name *name, gss_const_OID mech, struct xdr_list options,
	struct deadline *deadline, struct answer *answer, struct gssx_res_import_and_canon_name *results)
{
	struct gssx_arg_import_and_canon_name args = { .mech = oid_bytes(mech), .options = options };
	struct xdr_writer w;
	uint8_t *own;
	OM_uint32 major;

	*answer = (struct answer){ 0 };
	*results = (struct gssx_res_import_and_canon_name){ 0 };
	major = name_wire(minor, name, &args.input_name, &own);
	if (major != GSS_S_COMPLETE)
		return major;
	rpc_begin(&w, GSSX_IMPORT_AND_CANON_NAME);
	put_gssx_arg_import_and_canon_name(&w, &args);
	free(own);
	major = rpc_call(minor, &w, GSSX_IMPORT_AND_CANON_NAME, deadline, answer);
	if (major != GSS_S_COMPLETE)
		return major;
	view_gssx_res_import_and_canon_name(&answer->results, results);
	if (answer->results.bad)
		return garbled(minor);
	major = refused(minor, &results->status);
	return major == GSS_S_CONTINUE_NEEDED ? garbled(minor) : major;
}

/* ask_canonical asks the daemon for the canonical name and makes it the local form. */
static OM_uint32 ask_canonical(OM_uint32 *minor, struct name *name, struct deadline *deadline, gss_name_t *local)
{
	struct gssx_res_import_and_canon_name results;
	struct answer answer;
	OM_uint32 major;

	major = ask(minor, name, known_mech(special_mech(name->mech)), NO_LIST, deadline, &answer, &results);
	if (major == GSS_S_COMPLETE && (!results.has_output_name || results.output_name.exported_name.n == 0))
		major = garbled(minor);
	if (major == GSS_S_COMPLETE)
		major = import_local(minor, &results.output_name, name->mech, local);
	if (major == GSS_S_COMPLETE)
		*local = keep_local(name, *local);
	answer_free(&answer);
	return major;
}

/*
 * canonical is name_local for those who only want to know what the name is: where this host cannot tell, for want of a
 * default realm for example, the daemon is asked. canonical_by is for a GSS call that asks about two names.
 */
static OM_uint32 canonical_by(OM_uint32 *minor, struct name *name, struct deadline *deadline, gss_name_t *local)
{
	OM_uint32 major = local_form(minor, name, GSS_C_NO_OID, local), second;

	if (major == GSS_S_COMPLETE || behavior() == LOCAL_ONLY)
		return major;
	trace("a name is not understood locally: the daemon is asked");
	if (ask_canonical(&second, name, deadline, local) == GSS_S_COMPLETE) {
		*minor = 0;
		return GSS_S_COMPLETE;
	}
	both_failed(minor, *minor, second);
	return major;
}

static OM_uint32 canonical(OM_uint32 *minor, struct name *name, gss_name_t *local)
{
	struct deadline deadline = { 0 };

	return canonical_by(minor, name, &deadline, local);
}

/* ---- what the mechglue calls ---- */

EXPORT OM_uint32 gssi_import_name_by_mech(OM_uint32 *minor, gss_OID mech, gss_buffer_t given, gss_OID type, gss_name_t *out)
{
	struct gssx_name x = { .display_name = bytes_of(given), .name_type = oid_bytes(type) };
	gss_OID known = known_mech(mech);
	struct name *name;

	*minor = 0;
	*out = GSS_C_NO_NAME;
	if (given->length > XDR_MAX)
		return GSS_S_BAD_NAME;
	if (gss_oid_equal(type, gss_nt_krb5_principal)) {
		/*
		 * These bytes are a pointer to a principal of the program, which may be gone before we look later. It may be
		 * gone already when the mechglue imports a name once more, for gss_localname, and names no mechanism.
		 */
		gss_name_t local;
		OM_uint32 major;

		if (known == GSS_C_NO_OID)
			return GSS_S_BAD_NAMETYPE;
		major = import_local(minor, &x, known, &local);
		if (major != GSS_S_COMPLETE)
			return major;
		name = name_of_local(local, known);
	} else {
		name = name_of(&x, known);
	}
	if (!name)
		return no_memory(minor);
	*out = (gss_name_t)name;
	return GSS_S_COMPLETE;
}

EXPORT OM_uint32 gssi_import_name(OM_uint32 *minor, gss_buffer_t given, gss_OID type, gss_name_t *out)
{
	return gssi_import_name_by_mech(minor, GSS_C_NO_OID, given, type, out);
}

EXPORT OM_uint32 gssi_duplicate_name(OM_uint32 *minor, gss_name_t in, gss_name_t *out)
{
	struct name *name = (struct name *)in, *twin;
	gss_name_t local = atomic_load(&name->local), local_twin = GSS_C_NO_NAME;
	OM_uint32 major, ignored;

	*minor = 0;
	*out = GSS_C_NO_NAME;
	if (local) {
		major = gss_duplicate_name(minor, local, &local_twin);
		if (major != GSS_S_COMPLETE)
			return major;
	}
	if (name->own) {
		twin = name_of(&name->x, name->mech);
		if (twin)
			atomic_init(&twin->local, local_twin);
		else if (local_twin)
			gss_release_name(&ignored, &local_twin);
	} else {
		twin = name_of_local(local_twin, name->mech);
	}
	if (!twin)
		return no_memory(minor);
	*out = (gss_name_t)twin;
	return GSS_S_COMPLETE;
}

EXPORT OM_uint32 gssi_release_name(OM_uint32 *minor, gss_name_t *name)
{
	*minor = 0;
	name_free((struct name *)*name);
	*name = GSS_C_NO_NAME;
	return GSS_S_COMPLETE;
}

/* Names that are not understood are equal to none, as in the mechglue. */
EXPORT OM_uint32 gssi_compare_name(OM_uint32 *minor, gss_name_t one, gss_name_t other, int *equal)
{
	struct name *a = (struct name *)one, *b = (struct name *)other;
	struct xdr_bytes p = a->x.exported_name, q = b->x.exported_name;
	struct deadline deadline = { 0 };
	gss_name_t local_a, local_b;

	*minor = 0;
	*equal = 0;
	if (p.n > 0 && q.n > 0) {
		*equal = p.n == q.n && memcmp(p.p, q.p, p.n) == 0;
		return GSS_S_COMPLETE;
	}
	if (canonical_by(minor, a, &deadline, &local_a) != GSS_S_COMPLETE ||
	    canonical_by(minor, b, &deadline, &local_b) != GSS_S_COMPLETE) {
		*minor = 0;
		return GSS_S_COMPLETE;
	}
	return gss_compare_name(minor, local_a, local_b, equal);
}

/* canonical_type returns the type of a canonical Kerberos name, which programs are given and never free. */
static gss_OID canonical_type(struct xdr_bytes type)
{
	const gss_OID_desc oid = { type.n, (void *)type.p };

	if (gss_oid_equal(&oid, GSS_KRB5_NT_PRINCIPAL_NAME))
		return GSS_KRB5_NT_PRINCIPAL_NAME;
	if (gss_oid_equal(&oid, GSS_C_NT_ANONYMOUS))
		return GSS_C_NT_ANONYMOUS;
	return GSS_C_NO_OID;
}

EXPORT OM_uint32 gssi_display_name(OM_uint32 *minor, gss_name_t in, gss_buffer_t text, gss_OID *type)
{
	struct name *name = (struct name *)in;
	gss_OID known = canonical_type(name->x.name_type);
	gss_name_t local;
	OM_uint32 major;

	if (name->x.exported_name.n > 0 && name->x.display_name.n > 0 && known != GSS_C_NO_OID) {
		if (type)
			*type = known;
		return buffer_of(minor, name->x.display_name, text);
	}
	major = canonical(minor, name, &local);
	return major == GSS_S_COMPLETE ? gss_display_name(minor, local, text, type) : major;
}

EXPORT OM_uint32 gssi_export_name(OM_uint32 *minor, gss_name_t in, gss_buffer_t exported)
{
	struct name *name = (struct name *)in;
	gss_name_t local;
	OM_uint32 major;

	if (name->x.exported_name.n > 0)
		return buffer_of(minor, name->x.exported_name, exported);
	major = canonical(minor, name, &local);
	return major == GSS_S_COMPLETE ? gss_export_name(minor, local, exported) : major;
}

EXPORT OM_uint32 gssi_export_name_composite(OM_uint32 *minor, gss_name_t in, gss_buffer_t exported)
{
	struct name *name = (struct name *)in;
	gss_name_t local = atomic_load(&name->local);
	OM_uint32 major;

	if (!local && name->x.exported_composite_name.n > 0)
		return buffer_of(minor, name->x.exported_composite_name, exported);
	major = canonical(minor, name, &local); /* it may have attributes that were set after the answer */
	return major == GSS_S_COMPLETE ? gss_export_name_composite(minor, local, exported) : major;
}

/* In these, params begins with "OM_uint32 *minor, gss_name_t name", and args with "minor, local". */
#define LOCAL(function, params, args) \
	EXPORT OM_uint32 gssi_##function params \
	{ \
		gss_name_t local; \
		OM_uint32 major = canonical(minor, (struct name *)name, &local); \
		return major == GSS_S_COMPLETE ? gss_##function args : major; \
	}

LOCAL(get_name_attribute, (OM_uint32 *minor, gss_name_t name, gss_buffer_t attr, int *authenticated, int *complete,
	gss_buffer_t value, gss_buffer_t display_value, int *more),
	(minor, local, attr, authenticated, complete, value, display_value, more))

LOCAL(set_name_attribute, (OM_uint32 *minor, gss_name_t name, int complete, gss_buffer_t attr, gss_buffer_t value),
	(minor, local, complete, attr, value))

LOCAL(delete_name_attribute, (OM_uint32 *minor, gss_name_t name, gss_buffer_t attr), (minor, local, attr))

LOCAL(map_name_to_any, (OM_uint32 *minor, gss_name_t name, int authenticated, gss_buffer_t module, gss_any_t *out),
	(minor, local, authenticated, module, out))

LOCAL(release_any_name_mapping, (OM_uint32 *minor, gss_name_t name, gss_buffer_t module, gss_any_t *in),
	(minor, local, module, in))

/*
 * The mechglue says itself whether a name is a mechanism's, and which one's. It lists the attributes whenever it imports a
 * name once more, so a name that has none is not made local for that.
 */
EXPORT OM_uint32 gssi_inquire_name(OM_uint32 *minor, gss_name_t in, int *is_mn, gss_OID *mech, gss_buffer_set_t *attrs)
{
	struct name *name = (struct name *)in;
	const gss_OID_desc type = { name->x.name_type.n, (void *)name->x.name_type.p };
	gss_name_t local = atomic_load(&name->local);
	OM_uint32 major;

	*minor = 0;
	if (!local && !has_attributes(&name->x) && !gss_oid_equal(&type, GSS_C_NT_COMPOSITE_EXPORT)) {
		if (attrs)
			*attrs = GSS_C_NO_BUFFER_SET;
		return GSS_S_COMPLETE;
	}
	major = canonical(minor, name, &local);
	return major == GSS_S_COMPLETE ? gss_inquire_name(minor, local, is_mn, mech, attrs) : major;
}

/* ---- local users ---- */

static OM_uint32 local_localname(OM_uint32 *minor, struct name *name, gss_const_OID mech, gss_buffer_t user)
{
	gss_name_t local;
	OM_uint32 major = local_form(minor, name, known_mech(mech), &local);

	return major == GSS_S_COMPLETE ? gss_localname(minor, local, GSS_C_NO_OID, user) : major;
}

/* remote_localname asks the daemon. *unable is whether it says that it does not do that. */
static OM_uint32 remote_localname(OM_uint32 *minor, struct name *name, gss_const_OID mech, gss_buffer_t user, bool *unable)
{
	static const uint8_t option_name[] = "localname"; /* with its NUL */
	static const uint8_t wire[] = "\0\0\0\x0a" "localname\0" "\0\0" "\0\0\0"; /* and an empty value */
	const struct xdr_list options = { 1, { wire, sizeof(wire) } };
	struct gssx_res_import_and_canon_name results;
	struct deadline deadline = { 0 };
	struct answer answer;
	OM_uint32 major;

	trace("the daemon is asked for the local user of a name");
	major = ask(minor, name, mech, options, &deadline, &answer, &results);
	*unable = major != GSS_S_COMPLETE && results.status.minor_status == ENOTSUP;
	if (major == GSS_S_COMPLETE) {
		struct xdr_reader r = xdr_reader_of(results.options.raw);
		struct gssx_option option = { { NULL, 0 }, { NULL, 0 } };
		bool found = false;

		for (uint32_t i = 0; i < results.options.count && !found; i++) {
			view_gssx_option(&r, &option);
			found = option.option.n == sizeof(option_name) && memcmp(option.option.p, option_name, option.option.n) == 0;
		}
		major = found ? buffer_of(minor, option.value, user) : garbled(minor);
	}
	answer_free(&answer);
	return major;
}

EXPORT OM_uint32 gssi_localname(OM_uint32 *minor, gss_name_t in, gss_const_OID mech, gss_buffer_t user)
{
	struct name *name = (struct name *)in;
	enum behavior way = behavior();
	OM_uint32 first, second, major;
	bool unable = false;

	*minor = 0;
	if (way == LOCAL_ONLY || way == LOCAL_FIRST) {
		major = local_localname(&first, name, mech, user);
		if (major == GSS_S_COMPLETE || way == LOCAL_ONLY) {
			*minor = first;
			return major;
		}
		if (remote_localname(&second, name, mech, user, &unable) == GSS_S_COMPLETE)
			return GSS_S_COMPLETE;
	} else {
		major = remote_localname(&first, name, mech, user, &unable);
		if (major == GSS_S_COMPLETE || (way == REMOTE_ONLY && !unable)) {
			*minor = first;
			return major;
		}
		if (local_localname(&second, name, mech, user) == GSS_S_COMPLETE)
			return GSS_S_COMPLETE;
	}
	both_failed(minor, first, second);
	return major;
}

/*
 * Whether a name may be a local user is for this host to say: the user's own file may allow it. GSS_S_UNAVAILABLE is how the
 * mechglue passes on the real mechanism's no; from a mechanism it takes it for having no say, and lets in whoever's name
 * reads like the user's.
 */
EXPORT OM_uint32 gssi_authorize_localname(OM_uint32 *minor, gss_name_t in, gss_const_buffer_t user, gss_const_OID type)
{
	gss_name_t local, who;
	OM_uint32 major, ignored;

	major = canonical(minor, (struct name *)in, &local);
	if (major != GSS_S_COMPLETE)
		return major;
	major = gss_import_name(minor, (gss_buffer_t)user, (gss_OID)type, &who);
	if (major != GSS_S_COMPLETE)
		return major;
	major = gss_authorize_localname(minor, local, who);
	gss_release_name(&ignored, &who);
	return major == GSS_S_UNAVAILABLE ? (OM_uint32)GSS_S_UNAUTHORIZED : major;
}
