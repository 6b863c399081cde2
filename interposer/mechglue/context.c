/*
 * Security contexts. Whose credential is remote is served by the daemon, leg by leg; whose is local stays local. Only with
 * GSS_C_NO_CREDENTIAL there is a choice, made before the first token is processed:
 *
 *     LOCAL_FIRST    local if there is a local default credential, whatever becomes of it; else remote
 *     REMOTE_FIRST   remote if the daemon is there and has a credential for us, whatever becomes of it; else local
 *
 * To initiate, a handle in the default cache is the caller's own credential: it is used, and nothing takes its place. What is
 * local then may be of somebody else: another cache of the collection, a client keytab.
 *
 * A context that the daemon has established is an exported one: libkrb5 imports it when the first message or inquiry needs
 * it, and from then on all is local.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "plugin.h"

OM_uint32 seconds_left(int64_t expires)
{
	int64_t left;

	if (expires == INT64_MAX)
		return GSS_C_INDEFINITE;
	left = expires - (int64_t)time(NULL);
	if (left <= 0)
		return 0;
	return left < GSS_C_INDEFINITE ? (OM_uint32)left : GSS_C_INDEFINITE - 1;
}

int64_t expires_at(uint64_t lifetime)
{
	return lifetime >= GSS_C_INDEFINITE ? INT64_MAX : (int64_t)time(NULL) + (int64_t)lifetime;
}

static struct context *of(gss_ctx_id_t context)
{
	return (struct context *)context;
}

static void context_free(struct context *c)
{
	OM_uint32 minor;
	gss_ctx_id_t local;

	if (!c)
		return;
	local = atomic_load(&c->local);
	if (local != GSS_C_NO_CONTEXT)
		gss_delete_sec_context(&minor, &local, GSS_C_NO_BUFFER);
	answer_free(&c->own);
	free(c);
}

/*
 * wrap_token makes what gss_import_sec_context takes for the real mechanism: the special OID with its length, big endian in
 * 4 bytes, and the mechanism's token. *out is the caller's, with wipe.
 */
static OM_uint32 wrap_token(OM_uint32 *minor, gss_OID mech, struct xdr_bytes token, gss_buffer_t out)
{
	struct xdr_bytes oid = oid_bytes(special_mech(mech));
	uint8_t *p;

	out->length = 4 + (size_t)oid.n + token.n;
	out->value = p = malloc(out->length);
	if (!p)
		return fail(minor, ENOMEM, "no memory for a context");
	p[0] = p[1] = p[2] = 0;
	p[3] = (uint8_t)oid.n; /* special OIDs are short */
	memcpy(p + 4, oid.p, oid.n);
	if (token.n > 0)
		memcpy(p + 4 + oid.n, token.p, token.n);
	return GSS_S_COMPLETE;
}

/* unwrap_token is the way back: the mechanism's OID and token in an exported context. */
static bool unwrap_token(struct xdr_bytes exported, gss_OID *mech, struct xdr_bytes *token)
{
	struct xdr_reader r = xdr_reader_of(exported);
	uint32_t n = xdr_get_u32(&r);
	gss_OID_desc oid;

	if (r.bad || n > (size_t)(r.end - r.p))
		return false;
	oid.length = n;
	oid.elements = (void *)(uintptr_t)r.p;
	*mech = known_mech(&oid);
	token->p = r.p + n;
	token->n = (uint32_t)(r.end - token->p);
	return *mech != GSS_C_NO_OID;
}

static OM_uint32 import_token(OM_uint32 *minor, gss_OID mech, struct xdr_bytes token, gss_ctx_id_t *local)
{
	gss_buffer_desc wrapped;
	OM_uint32 major = wrap_token(minor, mech, token, &wrapped);

	if (major != GSS_S_COMPLETE)
		return major;
	*local = GSS_C_NO_CONTEXT;
	major = gss_import_sec_context(minor, &wrapped, local);
	wipe(wrapped.value, wrapped.length);
	return major;
}

OM_uint32 context_local(OM_uint32 *minor, gss_ctx_id_t context, gss_ctx_id_t *local)
{
	struct context *c = of(context);
	gss_ctx_id_t made, there = GSS_C_NO_CONTEXT;
	struct xdr_bytes token;
	gss_OID mech;
	OM_uint32 major, ignored;

	*minor = 0;
	if (!c)
		return GSS_S_NO_CONTEXT;
	*local = atomic_load(&c->local);
	if (*local != GSS_C_NO_CONTEXT)
		return GSS_S_COMPLETE;
	if (!c->open)
		return GSS_S_NO_CONTEXT;
	if (!unwrap_token(c->x.exported_context_token, &mech, &token))
		return garbled(minor);
	major = import_token(minor, mech, token, &made);
	if (major != GSS_S_COMPLETE) {
		trace("the context that the daemon has established cannot be imported: major %#x", major);
		return major;
	}
	/* Another thread may have been first; both have the same. */
	if (atomic_compare_exchange_strong(&c->local, &there, made))
		*local = made;
	else {
		gss_delete_sec_context(&ignored, &made, GSS_C_NO_BUFFER);
		*local = there;
	}
	return GSS_S_COMPLETE;
}

/* bindings_of fills cb with what the daemon is sent of channel bindings, and reports whether there are any. */
static bool bindings_of(gss_channel_bindings_t b, struct gssx_cb *cb)
{
	memset(cb, 0, sizeof(*cb));
	if (b == GSS_C_NO_CHANNEL_BINDINGS)
		return false;
	cb->initiator_addrtype = b->initiator_addrtype;
	cb->initiator_address = bytes_of(&b->initiator_address);
	cb->acceptor_addrtype = b->acceptor_addrtype;
	cb->acceptor_address = bytes_of(&b->acceptor_address);
	cb->application_data = bytes_of(&b->application_data);
	return true;
}

/*
 * take_context makes *context what an answer says of it. It takes the answer, in whose memory raw lies; a new context is
 * only there if that succeeds, and an old one is as it was otherwise.
 */
static OM_uint32 take_context(OM_uint32 *minor, gss_ctx_id_t *context, struct answer *a, struct xdr_bytes raw, gss_OID mech,
			      bool established, bool initiator)
{
	struct context *c = of(*context);
	struct xdr_reader r = xdr_reader_of(raw);
	struct gssx_ctx x;

	view_gssx_ctx(&r, &x);
	if (r.bad) {
		answer_free(a);
		return garbled(minor);
	}
	if (!c) {
		c = calloc(1, sizeof(*c));
		if (!c) {
			answer_free(a);
			return fail(minor, ENOMEM, "no memory for a context");
		}
		*context = (gss_ctx_id_t)c;
	}
	answer_free(&c->own);
	c->own = *a;
	memset(a, 0, sizeof(*a));
	c->raw = raw;
	c->x = x;
	c->mech = mech;
	c->remote = true;
	c->open = established;
	c->initiator = initiator;
	c->expires = expires_at(x.lifetime);
	return GSS_S_COMPLETE;
}

/* local_context makes the context around a local one that has just begun; it owns local, whatever it returns. */
static OM_uint32 local_context(OM_uint32 *minor, gss_OID mech, gss_ctx_id_t local, bool initiator, gss_ctx_id_t *context)
{
	struct context *c = calloc(1, sizeof(*c));
	OM_uint32 ignored;

	if (!c) {
		gss_delete_sec_context(&ignored, &local, GSS_C_NO_BUFFER);
		return fail(minor, ENOMEM, "no memory for a context");
	}
	c->mech = mech;
	c->initiator = initiator;
	atomic_init(&c->local, local);
	*context = (gss_ctx_id_t)c;
	return GSS_S_COMPLETE;
}

/*
 * not_tried reports whether a remote failure says that the daemon could do nothing for us, rather than that it did not
 * want to: it was not reached, or has no credential.
 */
static bool not_tried(OM_uint32 major, bool answered)
{
	return !answered || GSS_ROUTINE_ERROR(major) == GSS_S_NO_CRED;
}

/* answered_mech is the mechanism of a status, or that which was asked for if it says none. */
static gss_OID answered_mech(const struct gssx_status *status, gss_OID asked)
{
	gss_OID_desc oid = { status->mech.n, (void *)(uintptr_t)status->mech.p };
	gss_OID mech = known_mech(&oid);

	return mech != GSS_C_NO_OID ? mech : asked;
}

/* tell gives out what the daemon says of a context. Each may be NULL. Half open, it has no lifetime yet. */
static void tell(const struct context *c, gss_OID *mech, OM_uint32 *flags, OM_uint32 *lifetime)
{
	if (mech)
		*mech = c->mech;
	if (flags)
		*flags = (OM_uint32)c->x.ctx_flags;
	if (lifetime)
		*lifetime = c->open ? seconds_left(c->expires) : 0;
}

/* ---- initiating ---- */

/* What gssi_init_sec_context was called with. The results are optional, as in RFC 2744. */
struct initiation {
	gss_ctx_id_t *context;
	struct name *target;
	gss_OID mech; /* known */
	OM_uint32 flags, time;
	gss_channel_bindings_t bindings;
	gss_buffer_t input;
	gss_OID *actual_mech;
	gss_buffer_t output;
	OM_uint32 *granted, *lifetime;
};

static OM_uint32 init_local(OM_uint32 *minor, const struct initiation *in, gss_cred_id_t cred)
{
	struct context *c = of(*in->context);
	gss_ctx_id_t local = c ? atomic_load(&c->local) : GSS_C_NO_CONTEXT;
	gss_name_t target;
	OM_uint32 major, ignored;

	if (c && local == GSS_C_NO_CONTEXT)
		return GSS_S_NO_CONTEXT; /* a leg that failed has deleted it: it is not begun anew */
	major = name_local(minor, in->target, in->mech, &target);
	if (major != GSS_S_COMPLETE)
		return major;
	major = gss_init_sec_context(minor, cred, &local, target, special_mech(in->mech), in->flags, in->time, in->bindings,
				     in->input, NULL, in->output, in->granted, in->lifetime);
	if (in->actual_mech)
		*in->actual_mech = in->mech;
	trace("init: local, %s", GSS_ERROR(major) ? "failed" : "done");
	if (c) {
		atomic_store(&c->local, local); /* a failing leg may have deleted it */
		return major;
	}
	if (GSS_ERROR(major)) {
		if (local != GSS_C_NO_CONTEXT)
			gss_delete_sec_context(&ignored, &local, GSS_C_NO_BUFFER);
		return major;
	}
	if (local_context(&ignored, in->mech, local, true, in->context) != GSS_S_COMPLETE) {
		gss_release_buffer(&ignored, in->output);
		return fail(minor, ENOMEM, "no memory for a context");
	}
	return major;
}

/* synced returns the credential that the answer brings to replace the one that was sent, NULL if there is none. */
static struct handle *synced(const struct xdr_list *options)
{
	struct xdr_reader r = xdr_reader_of(options->raw);
	struct gssx_option o;

	for (uint32_t i = 0; i < options->count; i++) {
		view_gssx_option(&r, &o);
		if (!r.bad && o.option.n == sizeof("sync_creds") && memcmp(o.option.p, "sync_creds", o.option.n) == 0)
			return handle_of(o.value);
	}
	return NULL;
}

/*
 * init_remote has the daemon make one leg, with the handle or with what it has for us if that is NULL. *answered is whether
 * it answered; *newer becomes a handle that is to replace the one that was sent, or NULL.
 */
static OM_uint32 init_remote(OM_uint32 *minor, const struct initiation *in, struct handle *h, bool *answered, struct handle **newer)
{
	struct context *c = of(*in->context);
	struct gssx_arg_init_sec_context arg = { 0 };
	struct gssx_res_init_sec_context res;
	struct gssx_option sync = {
		{ (const uint8_t *)"sync_modified_creds", sizeof("sync_modified_creds") },
		{ (const uint8_t *)"default", sizeof("default") },
	};
	struct xdr_writer w = { 0 }, options = { 0 };
	struct deadline deadline = { 0 };
	struct answer a = { 0 };
	uint8_t *own = NULL;
	gss_OID mech;
	OM_uint32 major, status;

	*answered = false;
	*newer = NULL;
	major = name_wire(minor, in->target, &arg.target_name, &own);
	if (major != GSS_S_COMPLETE)
		return major;
	arg.has_target_name = true;
	if (c) {
		arg.has_context_handle = true;
		arg.context_handle = c->raw;
	}
	if (h) {
		arg.has_cred_handle = true;
		arg.cred_handle = handle_bytes(h);
	}
	arg.mech_type = oid_bytes(in->mech);
	arg.req_flags = in->flags;
	arg.time_req = in->time;
	arg.has_input_cb = bindings_of(in->bindings, &arg.input_cb);
	if (in->input != GSS_C_NO_BUFFER && in->input->length > 0) {
		arg.has_input_token = true;
		arg.input_token = bytes_of(in->input);
	}
	put_gssx_option(&options, &sync);
	arg.options.count = 1;
	arg.options.raw.p = options.p;
	arg.options.raw.n = (uint32_t)options.n;

	rpc_begin(&w, GSSX_INIT_SEC_CONTEXT);
	put_gssx_arg_init_sec_context(&w, &arg);
	w.failed |= options.failed;
	major = rpc_call(minor, &w, GSSX_INIT_SEC_CONTEXT, &deadline, &a);
	xdr_writer_free(&options);
	free(own);
	if (major != GSS_S_COMPLETE) {
		trace("init: remote, no answer");
		return major;
	}
	*answered = true;
	view_gssx_res_init_sec_context(&a.results, &res);
	if (a.results.bad) {
		answer_free(&a);
		return garbled(minor);
	}
	status = refused(minor, &res.status);
	trace("init: remote, major %#x minor %u", status, *minor);
	mech = answered_mech(&res.status, in->mech);
	if (GSS_ERROR(status)) {
		answer_free(&a);
		return status;
	}
	if (!res.has_context_handle) {
		answer_free(&a);
		return garbled(minor);
	}
	if (res.has_output_token) {
		major = buffer_of(minor, res.output_token, in->output);
		if (major != GSS_S_COMPLETE) {
			answer_free(&a);
			return major;
		}
	}
	*newer = synced(&res.options);
	major = take_context(minor, in->context, &a, res.context_handle, mech, status == GSS_S_COMPLETE, true);
	if (major != GSS_S_COMPLETE) {
		OM_uint32 ignored;

		gss_release_buffer(&ignored, in->output);
		handle_drop(*newer);
		*newer = NULL;
		return major;
	}
	tell(of(*in->context), in->actual_mech, in->granted, in->lifetime);
	return status;
}

/* init_default begins a context with GSS_C_NO_CREDENTIAL. */
static OM_uint32 init_default(OM_uint32 *minor, const struct initiation *in)
{
	enum behavior how = behavior();
	struct handle *h = NULL, *newer = NULL;
	gss_cred_id_t local;
	OM_uint32 major, first_major = 0, first = 0, ignored;
	bool answered, tried = false;

	if (how != LOCAL_ONLY) {
		major = ccache_handle(minor, NULL, &h);
		if (major != GSS_S_COMPLETE)
			return major;
	}
	if (h)
		how = REMOTE_ONLY;
	if (how == LOCAL_ONLY || how == LOCAL_FIRST) {
		major = default_local(minor, in->mech, GSS_C_INITIATE, &local);
		if (major == GSS_S_COMPLETE) {
			major = init_local(minor, in, local);
			gss_release_cred(&ignored, &local);
			return major;
		}
		trace("init: no local credential: major %#x", major);
		if (how == LOCAL_ONLY)
			return major;
		tried = true;
		first_major = major;
		first = *minor;
	}
	major = init_remote(minor, in, h, &answered, &newer);
	if (newer && h && ccache_store(&ignored, NULL, newer, CCACHE_SYNC, false) != GSS_S_COMPLETE)
		trace("init: the newer credential could not be kept in the cache");
	handle_drop(newer);
	handle_drop(h);
	if (!GSS_ERROR(major))
		return major;
	if (how == REMOTE_FIRST && not_tried(major, answered)) {
		first = *minor;
		if (default_local(minor, in->mech, GSS_C_INITIATE, &local) == GSS_S_COMPLETE) {
			major = init_local(minor, in, local);
			gss_release_cred(&ignored, &local);
			return major;
		}
		tried = true;
	}
	if (tried)
		both_failed(minor, first, *minor);
	if (how == LOCAL_FIRST && not_tried(major, answered))
		major = first_major;
	return major;
}

EXPORT OM_uint32 gssi_init_sec_context(OM_uint32 *minor, gss_cred_id_t cred, gss_ctx_id_t *context, gss_name_t target,
				       gss_OID mech, OM_uint32 flags, OM_uint32 time_req, gss_channel_bindings_t bindings,
				       gss_buffer_t input, gss_OID *actual_mech, gss_buffer_t output, OM_uint32 *granted,
				       OM_uint32 *lifetime)
{
	struct cred *credential = (struct cred *)cred;
	struct context *c = of(*context);
	struct initiation in = { context, (struct name *)target, known_mech(mech), flags, time_req, bindings,
				 input, actual_mech, output, granted, lifetime };
	struct handle *h, *newer;
	OM_uint32 major;
	bool answered;

	*minor = 0;
	output->length = 0;
	output->value = NULL;
	if (in.mech == GSS_C_NO_OID)
		return GSS_S_BAD_MECH;
	if (c ? !c->remote : credential && credential->local != GSS_C_NO_CREDENTIAL)
		return init_local(minor, &in, credential ? credential->local : GSS_C_NO_CREDENTIAL);
	if (!c && !credential)
		return init_default(minor, &in);
	if (c && c->open)
		return fail(minor, 0, "the context is established and takes no further token") | GSS_S_CALL_BAD_STRUCTURE;
	h = credential ? cred_handle(credential) : NULL;
	major = init_remote(minor, &in, h, &answered, &newer);
	if (newer && h)
		cred_replace(credential, h, newer); /* or what was changed meanwhile stays, and is made newer the next time */
	else
		handle_drop(newer);
	handle_drop(h);
	return major;
}

/* ---- accepting ---- */

/* What gssi_accept_sec_context was called with. */
struct acceptance {
	gss_ctx_id_t *context;
	gss_buffer_t input;
	gss_channel_bindings_t bindings;
	gss_name_t *source;
	gss_OID *mech;
	gss_buffer_t output;
	OM_uint32 *granted, *lifetime;
	gss_cred_id_t *delegated;
};

/*
 * established hands out what only an established context has; both are taken. A name or credential that should be there
 * and is not, since there was no memory, fails the call: *context is the caller's to delete.
 */
static OM_uint32 established(OM_uint32 *minor, const struct acceptance *in, struct name *source, bool has_delegated,
			     struct cred *delegated)
{
	OM_uint32 ignored;

	if ((in->source && !source) || (has_delegated && !delegated)) {
		name_free(source);
		cred_free(delegated);
		gss_release_buffer(&ignored, in->output);
		return fail(minor, ENOMEM, "no memory for a context");
	}
	if (in->source)
		*in->source = (gss_name_t)source;
	if (in->delegated)
		*in->delegated = (gss_cred_id_t)delegated;
	return GSS_S_COMPLETE;
}

static OM_uint32 accept_local(OM_uint32 *minor, const struct acceptance *in, gss_cred_id_t cred)
{
	struct context *c = of(*in->context);
	gss_ctx_id_t local = c ? atomic_load(&c->local) : GSS_C_NO_CONTEXT;
	gss_name_t name = GSS_C_NO_NAME;
	gss_cred_id_t delegated = GSS_C_NO_CREDENTIAL;
	gss_OID actual = GSS_C_NO_OID, mech;
	OM_uint32 major, ignored, granted = 0;

	if (c && local == GSS_C_NO_CONTEXT)
		return GSS_S_NO_CONTEXT; /* a leg that failed has deleted it: it is not begun anew */
	major = gss_accept_sec_context(minor, &local, cred, in->input, in->bindings, in->source ? &name : NULL, &actual,
				       in->output, &granted, in->lifetime, in->delegated ? &delegated : NULL);
	trace("accept: local, %s", GSS_ERROR(major) ? "failed" : "done");
	mech = known_mech(actual);
	if (mech == GSS_C_NO_OID)
		mech = known_mech(gss_mech_krb5);
	if (in->mech)
		*in->mech = mech;
	if (in->granted)
		*in->granted = granted;
	if (c)
		atomic_store(&c->local, local); /* a failing leg may have deleted it */
	if (GSS_ERROR(major)) {
		if (!c && local != GSS_C_NO_CONTEXT)
			gss_delete_sec_context(&ignored, &local, GSS_C_NO_BUFFER);
		return major;
	}
	if (!c && local_context(minor, mech, local, false, in->context) != GSS_S_COMPLETE) {
		gss_release_name(&ignored, &name);
		gss_release_cred(&ignored, &delegated);
		gss_release_buffer(&ignored, in->output);
		return GSS_S_FAILURE;
	}
	if (major != GSS_S_COMPLETE)
		return major;
	return established(minor, in, name != GSS_C_NO_NAME ? name_of_local(name, mech) : NULL, delegated != GSS_C_NO_CREDENTIAL,
			   delegated != GSS_C_NO_CREDENTIAL ? cred_of_local(delegated) : NULL);
}

/* accept_remote has the daemon make one leg, with the handle or with what it has for us if that is NULL. */
static OM_uint32 accept_remote(OM_uint32 *minor, const struct acceptance *in, struct handle *h, bool *answered)
{
	struct context *c = of(*in->context);
	struct gssx_arg_accept_sec_context arg = { 0 };
	struct gssx_res_accept_sec_context res;
	struct xdr_writer w = { 0 };
	struct deadline deadline = { 0 };
	struct answer a = { 0 };
	struct cred *delegated = NULL;
	struct handle *d;
	OM_uint32 major, status;
	gss_OID mech;

	*answered = false;
	if (c) {
		arg.has_context_handle = true;
		arg.context_handle = c->raw;
	}
	if (h) {
		arg.has_cred_handle = true;
		arg.cred_handle = handle_bytes(h);
	}
	arg.input_token = bytes_of(in->input);
	arg.has_input_cb = bindings_of(in->bindings, &arg.input_cb);
	arg.ret_deleg_cred = in->delegated != NULL;

	rpc_begin(&w, GSSX_ACCEPT_SEC_CONTEXT);
	put_gssx_arg_accept_sec_context(&w, &arg);
	major = rpc_call(minor, &w, GSSX_ACCEPT_SEC_CONTEXT, &deadline, &a);
	if (major != GSS_S_COMPLETE) {
		trace("accept: remote, no answer");
		return major;
	}
	*answered = true;
	view_gssx_res_accept_sec_context(&a.results, &res);
	if (a.results.bad) {
		answer_free(&a);
		return garbled(minor);
	}
	status = refused(minor, &res.status);
	trace("accept: remote, major %#x minor %u", status, *minor);
	mech = answered_mech(&res.status, known_mech(gss_mech_krb5));
	if (res.has_output_token) { /* with an error it tells the initiator why, and *minor is that error's */
		OM_uint32 code;

		major = buffer_of(&code, res.output_token, in->output);
		if (major != GSS_S_COMPLETE) {
			status = major;
			*minor = code;
		}
	}
	if (GSS_ERROR(status)) {
		answer_free(&a);
		return status;
	}
	if (res.has_delegated_cred_handle && in->delegated) {
		d = handle_of(res.delegated_cred_handle);
		delegated = d ? cred_of_handle(d) : NULL;
	}
	if (res.has_context_handle)
		major = take_context(minor, in->context, &a, res.context_handle, mech, status == GSS_S_COMPLETE, false);
	else {
		answer_free(&a);
		major = garbled(minor);
	}
	if (major != GSS_S_COMPLETE) {
		OM_uint32 ignored;

		cred_free(delegated);
		gss_release_buffer(&ignored, in->output);
		return major;
	}
	c = of(*in->context);
	tell(c, in->mech, in->granted, in->lifetime);
	if (status != GSS_S_COMPLETE) {
		cred_free(delegated);
		return status;
	}
	/* res lies in the context's memory now. */
	return established(minor, in, in->source ? name_of(&c->x.src_name, c->mech) : NULL,
			   in->delegated && res.has_delegated_cred_handle, delegated);
}

/* accept_default begins a context with GSS_C_NO_CREDENTIAL. */
static OM_uint32 accept_default(OM_uint32 *minor, const struct acceptance *in)
{
	enum behavior how = behavior();
	gss_cred_id_t local;
	OM_uint32 major, first_major = 0, first = 0, ignored;
	bool answered = false, tried = false;

	if (how == LOCAL_ONLY || how == LOCAL_FIRST) {
		major = default_local(minor, GSS_C_NO_OID, GSS_C_ACCEPT, &local);
		if (major == GSS_S_COMPLETE) {
			major = accept_local(minor, in, local);
			gss_release_cred(&ignored, &local);
			return major;
		}
		trace("accept: no local credential: major %#x", major);
		if (how == LOCAL_ONLY)
			return major;
		tried = true;
		first_major = major;
		first = *minor;
	}
	major = accept_remote(minor, in, NULL, &answered);
	if (!GSS_ERROR(major))
		return major;
	if (how == REMOTE_FIRST && not_tried(major, answered)) {
		first = *minor;
		if (default_local(minor, GSS_C_NO_OID, GSS_C_ACCEPT, &local) == GSS_S_COMPLETE) {
			gss_release_buffer(&ignored, in->output);
			major = accept_local(minor, in, local);
			gss_release_cred(&ignored, &local);
			return major;
		}
		tried = true;
	}
	if (tried)
		both_failed(minor, first, *minor);
	if (how == LOCAL_FIRST && not_tried(major, answered))
		major = first_major;
	return major;
}

EXPORT OM_uint32 gssi_accept_sec_context(OM_uint32 *minor, gss_ctx_id_t *context, gss_cred_id_t cred, gss_buffer_t input,
					 gss_channel_bindings_t bindings, gss_name_t *source, gss_OID *mech,
					 gss_buffer_t output, OM_uint32 *granted, OM_uint32 *lifetime, gss_cred_id_t *delegated)
{
	struct cred *credential = (struct cred *)cred;
	struct context *c = of(*context);
	struct acceptance in = { context, input, bindings, source, mech, output, granted, lifetime, delegated };
	struct handle *h;
	OM_uint32 major;
	bool answered;

	*minor = 0;
	output->length = 0;
	output->value = NULL;
	if (source)
		*source = GSS_C_NO_NAME;
	if (delegated)
		*delegated = GSS_C_NO_CREDENTIAL;
	if (c ? !c->remote : credential && credential->local != GSS_C_NO_CREDENTIAL)
		return accept_local(minor, &in, credential ? credential->local : GSS_C_NO_CREDENTIAL);
	if (!c && !credential)
		return accept_default(minor, &in);
	if (c && c->open)
		return fail(minor, 0, "the context is established and takes no further token") | GSS_S_CALL_BAD_STRUCTURE;
	h = credential ? cred_handle(credential) : NULL;
	major = accept_remote(minor, &in, h, &answered);
	handle_drop(h);
	return major;
}

/* ---- what a context is ---- */

/* Half open, a context of the daemon's has no names and no lifetime yet. */
EXPORT OM_uint32 gssi_inquire_context(OM_uint32 *minor, gss_ctx_id_t context, gss_name_t *source, gss_name_t *target,
				      OM_uint32 *lifetime, gss_OID *mech, OM_uint32 *flags, int *initiated, int *open)
{
	struct context *c = of(context);
	gss_name_t local_source = GSS_C_NO_NAME, local_target = GSS_C_NO_NAME;
	struct name *s = NULL, *t = NULL;
	bool has_source, has_target;
	OM_uint32 major;

	*minor = 0;
	if (source)
		*source = GSS_C_NO_NAME;
	if (target)
		*target = GSS_C_NO_NAME;
	if (!c)
		return GSS_S_NO_CONTEXT;
	if (!c->remote) {
		major = gss_inquire_context(minor, atomic_load(&c->local), source ? &local_source : NULL,
					    target ? &local_target : NULL, lifetime, NULL, flags, initiated, open);
		if (GSS_ERROR(major))
			return major;
		has_source = local_source != GSS_C_NO_NAME;
		has_target = local_target != GSS_C_NO_NAME;
		s = has_source ? name_of_local(local_source, c->mech) : NULL;
		t = has_target ? name_of_local(local_target, c->mech) : NULL;
	} else {
		has_source = source && c->x.src_name.display_name.n > 0;
		has_target = target && c->x.targ_name.display_name.n > 0;
		s = has_source ? name_of(&c->x.src_name, c->mech) : NULL;
		t = has_target ? name_of(&c->x.targ_name, c->mech) : NULL;
		tell(c, NULL, flags, lifetime);
		if (initiated)
			*initiated = c->initiator;
		if (open)
			*open = c->open;
	}
	if ((has_source && !s) || (has_target && !t)) {
		name_free(s);
		name_free(t);
		return fail(minor, ENOMEM, "no memory for a name");
	}
	if (source)
		*source = (gss_name_t)s;
	if (target)
		*target = (gss_name_t)t;
	if (mech)
		*mech = c->mech;
	return GSS_S_COMPLETE;
}

EXPORT OM_uint32 gssi_context_time(OM_uint32 *minor, gss_ctx_id_t context, OM_uint32 *lifetime)
{
	struct context *c = of(context);

	*minor = 0;
	if (!c)
		return GSS_S_NO_CONTEXT;
	if (!c->remote)
		return gss_context_time(minor, atomic_load(&c->local), lifetime);
	if (!c->open)
		return GSS_S_NO_CONTEXT;
	*lifetime = seconds_left(c->expires);
	return *lifetime > 0 ? GSS_S_COMPLETE : GSS_S_CONTEXT_EXPIRED;
}

EXPORT OM_uint32 gssi_delete_sec_context(OM_uint32 *minor, gss_ctx_id_t *context, gss_buffer_t output)
{
	*minor = 0;
	if (output != GSS_C_NO_BUFFER) {
		output->length = 0;
		output->value = NULL;
	}
	context_free(of(*context));
	*context = GSS_C_NO_CONTEXT;
	return GSS_S_COMPLETE;
}

/*
 * An exported context is the real mechanism's token and nothing of ours. The mechglue puts the special OID before it, so a
 * process without the plugin can read it only from what is behind that.
 */
EXPORT OM_uint32 gssi_export_sec_context(OM_uint32 *minor, gss_ctx_id_t *context, gss_buffer_t token)
{
	struct context *c = of(*context);
	gss_ctx_id_t local;
	gss_buffer_desc exported = GSS_C_EMPTY_BUFFER;
	struct xdr_bytes inner;
	gss_OID mech;
	OM_uint32 major;

	token->length = 0;
	token->value = NULL;
	major = context_local(minor, *context, &local);
	if (major != GSS_S_COMPLETE)
		return major;
	major = gss_export_sec_context(minor, &local, &exported);
	atomic_store(&c->local, local);
	if (major != GSS_S_COMPLETE)
		return major;
	major = unwrap_token(bytes_of(&exported), &mech, &inner) ? buffer_of(minor, inner, token) : garbled(minor);
	wipe(exported.value, exported.length);
	if (local == GSS_C_NO_CONTEXT) { /* as it is exported it is gone here */
		context_free(c);
		*context = GSS_C_NO_CONTEXT;
	}
	return major;
}

EXPORT OM_uint32 gssi_import_sec_context_by_mech(OM_uint32 *minor, gss_OID mech, gss_buffer_t token, gss_ctx_id_t *context)
{
	gss_OID known = known_mech(mech);
	gss_ctx_id_t local = GSS_C_NO_CONTEXT;
	int initiated = 0;
	OM_uint32 major, ignored;

	*minor = 0;
	if (known == GSS_C_NO_OID)
		return GSS_S_BAD_MECH;
	major = import_token(minor, known, bytes_of(token), &local);
	if (major != GSS_S_COMPLETE)
		return major;
	gss_inquire_context(&ignored, local, NULL, NULL, NULL, NULL, NULL, &initiated, NULL);
	return local_context(minor, known, local, initiated != 0, context);
}

EXPORT OM_uint32 gssi_import_sec_context(OM_uint32 *minor, gss_buffer_t token, gss_ctx_id_t *context)
{
	return gssi_import_sec_context_by_mech(minor, gss_mech_krb5, token, context);
}
