/*
 * Credentials. Where a new one comes from:
 *
 *     with a password, "password" too        local, always: a password is its owner's, and a wrong one gets nothing
 *     LOCAL_ONLY                             local
 *     a handle in the cache, to initiate     remote with it: what is local may be of somebody else
 *     "ccache" without a handle, to initiate local, then remote (under REMOTE_ONLY: remote)
 *     with an impersonator                   as the impersonator
 *     else                                   as GSSPROXY_BEHAVIOR says
 *
 * A program that names several mechanisms, as SPNEGO does, has the mechglue ask for one after the other, and gets one credential
 * with all that there is. With REMOTE_FIRST the daemon has krb5's, and does not serve the others: what is local there may be of
 * somebody else. So it counts only where krb5 is not remote.
 *
 * To accept, no cache is looked into: anybody can plant one.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "plugin.h"

/* What a credential is wanted for. */
struct want {
	struct name *name;
	OM_uint32 time_req;
	gss_OID_set mechs;
	gss_cred_usage_t usage;
	gss_const_key_value_set_t store;
	struct handle *input; /* to be sent along; may be NULL */
	bool impersonate;     /* input is the impersonator's */
	gss_OID_set *actual_mechs;
	OM_uint32 *time_rec;
	struct deadline *deadline; /* of a GSS call that asks twice; else NULL */
};

/* A way to get one. */
typedef OM_uint32 way(OM_uint32 *minor, const struct want *w, struct cred **cred);

/* ---- handles ---- */

struct handle *handle_of(struct xdr_bytes raw)
{
	struct xdr_reader r = xdr_reader_of(raw);
	struct handle *h;

	skip_gssx_cred(&r);
	if (r.bad || r.p != r.end)
		return NULL;
	h = malloc(sizeof(*h) + raw.n);
	if (!h)
		return NULL;
	atomic_init(&h->users, 1);
	h->n = raw.n;
	h->received = time(NULL);
	memcpy(h->xdr, raw.p, raw.n);
	return h;
}

struct handle *handle_use(struct handle *h)
{
	atomic_fetch_add(&h->users, 1);
	return h;
}

void handle_drop(struct handle *h)
{
	if (h && atomic_fetch_sub(&h->users, 1) == 1)
		wipe(h, sizeof(*h) + h->n);
}

struct xdr_bytes handle_bytes(const struct handle *h)
{
	return (struct xdr_bytes){ h->xdr, h->n };
}

/* What a handle says of its credential. name lies in the handle. */
struct facts {
	struct gssx_name name;
	gss_OID mech; /* the name's; GSS_C_NO_OID for a name of none */
	bool initiates, accepts;
	uint64_t initiator_time, acceptor_time; /* from received on */
	OM_uint32 elements;
};

static struct gssx_cred view_handle(const struct handle *h)
{
	struct xdr_reader r = xdr_reader_of(handle_bytes(h));
	struct gssx_cred x;

	view_gssx_cred(&r, &x); /* handle_of has seen that it is one */
	return x;
}

static gss_OID element_mech(const struct gssx_cred_element *e)
{
	gss_OID_desc oid = { .length = e->mech.n, .elements = (void *)(uintptr_t)e->mech.p };

	return known_mech(&oid);
}

/* facts_of collects what the elements for mech say; GSS_C_NO_OID is for all of them. */
static struct facts facts_of(const struct handle *h, gss_OID mech)
{
	struct gssx_cred x = view_handle(h);
	struct xdr_reader r = xdr_reader_of(x.elements.raw);
	struct facts f = { .name = x.desired_name, .initiator_time = UINT64_MAX, .acceptor_time = UINT64_MAX };

	for (uint32_t i = 0; i < x.elements.count; i++) {
		struct gssx_cred_element e;

		view_gssx_cred_element(&r, &e);
		if (mech != GSS_C_NO_OID && element_mech(&e) != mech)
			continue;
		if (f.elements++ == 0 && (e.MN.display_name.n || e.MN.exported_name.n)) {
			f.name = e.MN;
			f.mech = element_mech(&e);
		}
		if (e.cred_usage != GSSX_CRED_ACCEPT) {
			f.initiates = true;
			if (e.initiator_time_rec < f.initiator_time)
				f.initiator_time = e.initiator_time_rec;
		}
		if (e.cred_usage != GSSX_CRED_INITIATE) {
			f.accepts = true;
			if (e.acceptor_time_rec < f.acceptor_time)
				f.acceptor_time = e.acceptor_time_rec;
		}
	}
	return f;
}

/* left is how much of a lifetime is left. */
static OM_uint32 left(const struct handle *h, uint64_t lifetime)
{
	if (lifetime >= GSS_C_INDEFINITE)
		return GSS_C_INDEFINITE;
	return seconds_left(h->received + (int64_t)lifetime);
}

static gss_cred_usage_t usage_of(const struct facts *f)
{
	if (f->initiates && !f->accepts)
		return GSS_C_INITIATE;
	if (f->accepts && !f->initiates)
		return GSS_C_ACCEPT;
	return GSS_C_BOTH;
}

/* lifetime is what is left of a credential used so: for both, the shorter time there is. */
static OM_uint32 lifetime(const struct handle *h, const struct facts *f, gss_cred_usage_t usage)
{
	OM_uint32 initiator = f->initiates ? left(h, f->initiator_time) : 0;
	OM_uint32 acceptor = f->accepts ? left(h, f->acceptor_time) : 0;

	if (usage == GSS_C_INITIATE)
		return initiator;
	if (usage == GSS_C_ACCEPT)
		return acceptor;
	return initiator && (!acceptor || initiator < acceptor) ? initiator : acceptor;
}

/* mechs_of makes the set of a handle's mechanisms. set may be NULL. */
static OM_uint32 mechs_of(OM_uint32 *minor, const struct handle *h, gss_OID_set *set)
{
	struct gssx_cred x = view_handle(h);
	struct xdr_reader r = xdr_reader_of(x.elements.raw);
	OM_uint32 major, ignored;

	if (!set)
		return GSS_S_COMPLETE;
	major = gss_create_empty_oid_set(minor, set);
	for (uint32_t i = 0; major == GSS_S_COMPLETE && i < x.elements.count; i++) {
		struct gssx_cred_element e;
		gss_OID mech;

		view_gssx_cred_element(&r, &e);
		mech = element_mech(&e);
		if (mech != GSS_C_NO_OID)
			major = gss_add_oid_set_member(minor, mech, set);
	}
	if (major != GSS_S_COMPLETE)
		gss_release_oid_set(&ignored, set);
	return major;
}

static bool same_bytes(struct xdr_bytes a, struct xdr_bytes b)
{
	return a.n == b.n && (a.n == 0 || memcmp(a.p, b.p, a.n) == 0);
}

/*
 * same reports whether two handles are of one credential in one state. Times do not count: they change with every answer.
 */
static bool same(const struct handle *a, const struct handle *b)
{
	struct gssx_cred x = view_handle(a), y = view_handle(b);

	return x.elements.count == y.elements.count && same_bytes(x.cred_handle_reference, y.cred_handle_reference) &&
	       same_bytes(x.desired_name.display_name, y.desired_name.display_name);
}

/* ---- credentials ---- */

static struct cred *cred_of(gss_cred_id_t local, struct handle *remote)
{
	struct cred *cred = malloc(sizeof(*cred));
	OM_uint32 ignored;

	if (cred) {
		*cred = (struct cred){ .local = local, .remote = remote };
		return cred;
	}
	handle_drop(remote);
	if (local != GSS_C_NO_CREDENTIAL)
		gss_release_cred(&ignored, &local);
	return NULL;
}

struct cred *cred_of_local(gss_cred_id_t local)
{
	return cred_of(local, NULL);
}

struct cred *cred_of_handle(struct handle *h)
{
	return cred_of(GSS_C_NO_CREDENTIAL, h);
}

struct handle *cred_handle(struct cred *cred)
{
	struct handle *h;

	if (cred->local != GSS_C_NO_CREDENTIAL)
		return NULL;
	lock();
	h = handle_use(cred->remote);
	unlock();
	return h;
}

bool cred_replace(struct cred *cred, struct handle *was, struct handle *h)
{
	bool is;

	lock();
	is = cred->remote == was;
	if (is)
		cred->remote = h;
	unlock();
	handle_drop(is ? was : h); /* the credential's use of it */
	return is;
}

void cred_free(struct cred *cred)
{
	OM_uint32 ignored;

	if (!cred)
		return;
	handle_drop(cred->remote);
	if (cred->local != GSS_C_NO_CREDENTIAL)
		gss_release_cred(&ignored, &cred->local);
	free(cred);
}

/* unavailable is for what a remote credential cannot do. */
static OM_uint32 unavailable(OM_uint32 *minor, const char *what)
{
	fail(minor, 0, "%s", what);
	return GSS_S_UNAVAILABLE;
}

/* keep makes a credential of a local one. */
static OM_uint32 keep(OM_uint32 *minor, gss_cred_id_t local, struct cred **cred)
{
	*cred = cred_of_local(local);
	return *cred ? GSS_S_COMPLETE : no_memory(minor);
}

/* ---- acquiring ---- */

static const char *store_value(gss_const_key_value_set_t store, const char *key)
{
	for (OM_uint32 i = 0; store && i < store->count; i++) {
		if (strcmp(store->elements[i].key, key) == 0)
			return store->elements[i].value;
	}
	return NULL;
}

static gss_OID first_mech(gss_OID_set mechs)
{
	return mechs != GSS_C_NO_OID_SET && mechs->count > 0 ? known_mech(&mechs->elements[0]) : GSS_C_NO_OID;
}

static const char *to(gss_cred_usage_t usage)
{
	return usage == GSS_C_ACCEPT ? "to accept" : usage == GSS_C_INITIATE ? "to initiate" : "to initiate and accept";
}

/* told traces what came of a way. */
static OM_uint32 told(OM_uint32 major, OM_uint32 minor, const struct want *w, const char *where)
{
	char text[256] = "";

	if (!tracing())
		return major;
	if (major == GSS_S_COMPLETE) {
		trace_line("a %s credential %s", where, to(w->usage));
	} else {
		minor_text(minor, text, sizeof(text));
		trace_line("no %s credential %s: %s", where, to(w->usage), text);
	}
	return major;
}

/* locally calls the real mechanism's acquire_cred, or acquire_cred_impersonate_name if there is an impersonator. */
static OM_uint32 locally(OM_uint32 *minor, const struct want *w, gss_cred_id_t impersonator, struct cred **cred)
{
	gss_OID_set special = GSS_C_NO_OID_SET;
	gss_cred_id_t local = GSS_C_NO_CREDENTIAL;
	gss_name_t name = GSS_C_NO_NAME;
	OM_uint32 major, ignored;

	major = name_local(minor, w->name, first_mech(w->mechs), &name);
	if (major == GSS_S_COMPLETE)
		major = special_mechs(minor, w->mechs, &special);
	if (major == GSS_S_COMPLETE && impersonator != GSS_C_NO_CREDENTIAL)
		major = gss_acquire_cred_impersonate_name(minor, impersonator, name, w->time_req, special, w->usage, &local,
							  w->actual_mechs, w->time_rec);
	else if (major == GSS_S_COMPLETE)
		major = gss_acquire_cred_from(minor, name, w->time_req, special, w->usage, w->store, &local, w->actual_mechs,
					      w->time_rec);
	if (special != GSS_C_NO_OID_SET)
		gss_release_oid_set(&ignored, &special);
	if (major == GSS_S_COMPLETE)
		major = keep(minor, local, cred);
	return told(major, *minor, w, "local");
}

static OM_uint32 acquire_local(OM_uint32 *minor, const struct want *w, struct cred **cred)
{
	return locally(minor, w, GSS_C_NO_CREDENTIAL, cred);
}

static int32_t wire_usage(gss_cred_usage_t usage)
{
	return usage == GSS_C_INITIATE ? GSSX_CRED_INITIATE : usage == GSS_C_ACCEPT ? GSSX_CRED_ACCEPT : GSSX_CRED_BOTH;
}

/* results makes a credential of an answer. */
static OM_uint32 results(OM_uint32 *minor, struct answer *a, const struct want *w, struct cred **cred)
{
	struct gssx_res_acquire_cred res;
	struct handle *h;
	struct facts f;
	OM_uint32 major, ignored;

	view_gssx_res_acquire_cred(&a->results, &res);
	if (a->results.bad)
		return garbled(minor);
	major = refused(minor, &res.status);
	if (GSS_ERROR(major))
		return major;
	if (major != GSS_S_COMPLETE || !res.has_output_cred_handle)
		return garbled(minor);
	h = handle_of(res.output_cred_handle);
	if (!h)
		return no_memory(minor);
	/* A credential that has not changed comes back as it was sent: its times count from when they were true. */
	if (w->input && same_bytes(handle_bytes(h), handle_bytes(w->input)))
		h->received = w->input->received;
	major = mechs_of(minor, h, w->actual_mechs);
	if (major != GSS_S_COMPLETE) {
		handle_drop(h);
		return major;
	}
	f = facts_of(h, GSS_C_NO_OID);
	if (w->time_rec)
		*w->time_rec = lifetime(h, &f, w->usage);
	*cred = cred_of_handle(h);
	if (*cred)
		return GSS_S_COMPLETE;
	if (w->actual_mechs)
		gss_release_oid_set(&ignored, w->actual_mechs);
	return no_memory(minor);
}

/* ask sends ACQUIRE_CRED. */
static OM_uint32 ask(OM_uint32 *minor, const struct want *w, struct cred **cred)
{
	static const struct gssx_option impersonate = {
		.option = { (const uint8_t *)"acquire_type", sizeof("acquire_type") },
		.value = { (const uint8_t *)"impersonate_name", sizeof("impersonate_name") },
	};
	struct gssx_arg_acquire_cred arg = {
		.time_req = w->time_req,
		.cred_usage = wire_usage(w->usage),
		.initiator_time_req = w->usage == GSS_C_ACCEPT ? 0 : w->time_req,
		.acceptor_time_req = w->usage == GSS_C_INITIATE ? 0 : w->time_req,
	};
	struct xdr_writer mechs = { 0 }, options = { 0 }, out;
	struct deadline alone = { 0 };
	struct answer answer = { 0 };
	uint8_t *own = NULL;
	OM_uint32 major = GSS_S_COMPLETE;

	if (w->name) {
		arg.has_desired_name = true;
		major = name_wire(minor, w->name, &arg.desired_name, &own);
	}
	if (major != GSS_S_COMPLETE)
		goto out;
	for (size_t i = 0; w->mechs != GSS_C_NO_OID_SET && i < w->mechs->count; i++) {
		xdr_put_opaque(&mechs, oid_bytes(&w->mechs->elements[i]));
		arg.desired_mechs.count++;
	}
	if (w->impersonate) {
		put_gssx_option(&options, &impersonate);
		arg.options.count = 1;
	}
	if (mechs.failed || options.failed) {
		major = no_memory(minor);
		goto out;
	}
	arg.desired_mechs.raw = (struct xdr_bytes){ mechs.p, (uint32_t)mechs.n };
	arg.options.raw = (struct xdr_bytes){ options.p, (uint32_t)options.n };
	if (w->input) {
		arg.has_input_cred_handle = true;
		arg.input_cred_handle = handle_bytes(w->input);
	}
	rpc_begin(&out, GSSX_ACQUIRE_CRED);
	put_gssx_arg_acquire_cred(&out, &arg);
	major = rpc_call(minor, &out, GSSX_ACQUIRE_CRED, w->deadline ? w->deadline : &alone, &answer);
	if (major == GSS_S_COMPLETE) {
		major = results(minor, &answer, w, cred);
		answer_free(&answer);
	}
out:
	xdr_writer_free(&mechs);
	xdr_writer_free(&options);
	free(own);
	return told(major, *minor, w, w->impersonate ? "remote impersonated" : "remote");
}

/* remember writes the handle of a credential into the cache that it was looked for in. */
static void remember(const struct want *w, struct cred *cred)
{
	struct handle *h = cred->remote; /* nobody else has it yet */
	enum ccache_when when = w->input ? CCACHE_SYNC : CCACHE_NEW;
	char text[256] = "";
	OM_uint32 minor;

	if (w->input && same(w->input, h))
		return;
	if (ccache_store(&minor, store_value(w->store, "ccache"), h, when, false) == GSS_S_COMPLETE || !tracing())
		return;
	minor_text(minor, text, sizeof(text));
	trace_line("the handle is not kept: %s", text);
}

static OM_uint32 acquire_remote(OM_uint32 *minor, const struct want *w, struct cred **cred)
{
	OM_uint32 major = ask(minor, w, cred);

	if (major == GSS_S_COMPLETE && w->usage != GSS_C_ACCEPT)
		remember(w, *cred);
	return major;
}

/* by_order tries the ways in an order. */
static OM_uint32 by_order(OM_uint32 *minor, enum behavior order, way *local, way *remote, const struct want *w,
			  struct cred **cred)
{
	way *first = order == LOCAL_ONLY || order == LOCAL_FIRST ? local : remote;
	way *second = order == LOCAL_FIRST ? remote : order == REMOTE_FIRST ? local : NULL;
	OM_uint32 major, first_minor, second_minor;

	major = first(minor, w, cred);
	if (major == GSS_S_COMPLETE || !second)
		return major;
	first_minor = *minor;
	if (second(&second_minor, w, cred) == GSS_S_COMPLETE) {
		*minor = 0;
		return GSS_S_COMPLETE;
	}
	both_failed(minor, first_minor, second_minor);
	return major;
}

/* for_krb5 reports whether a credential is wanted for krb5, among others or by default. */
static bool for_krb5(const struct want *w)
{
	size_t n = w->mechs != GSS_C_NO_OID_SET ? w->mechs->count : 0;

	for (size_t i = 0; i < n; i++) {
		if (gss_oid_equal(known_mech(&w->mechs->elements[i]), gss_mech_krb5))
			return true;
	}
	return n == 0;
}

/* with_krb5 keeps the local credential for another mechanism where the daemon has none for krb5, or ends its use. */
static OM_uint32 with_krb5(OM_uint32 *minor, const struct want *w, struct cred **cred)
{
	const gss_OID_set_desc mechs = { 1, (gss_OID)gss_mech_krb5 };
	struct want krb5 = *w;
	struct cred *remote = NULL;
	OM_uint32 ignored;

	krb5.mechs = (gss_OID_set)&mechs;
	krb5.actual_mechs = NULL;
	krb5.time_rec = NULL;
	if (ask(&ignored, &krb5, &remote) != GSS_S_COMPLETE)
		return GSS_S_COMPLETE;
	cred_free(remote);
	cred_free(*cred);
	*cred = NULL;
	if (w->actual_mechs)
		gss_release_oid_set(&ignored, w->actual_mechs);
	if (w->time_rec)
		*w->time_rec = 0;
	fail(minor, 0, "the daemon has a credential for krb5 and none for this mechanism, and a local one may be somebody else's");
	return told(GSS_S_NO_CRED, *minor, w, "local");
}

/* acquire is acquire_cred_from; w->input and w->deadline are for itself to set. */
static OM_uint32 acquire(OM_uint32 *minor, struct want *w, struct cred **cred)
{
	const char *ccache = store_value(w->store, "ccache");
	enum behavior order = behavior();
	struct deadline deadline = { 0 };
	OM_uint32 major;

	if (store_value(w->store, "password"))
		order = LOCAL_ONLY;
	if (order != LOCAL_ONLY && w->usage != GSS_C_ACCEPT) {
		major = ccache_handle(minor, ccache, &w->input);
		if (major != GSS_S_COMPLETE)
			return major;
		if (w->input)
			order = REMOTE_ONLY;
		else if (ccache && order != REMOTE_ONLY)
			order = LOCAL_FIRST;
	}
	w->deadline = &deadline;
	major = by_order(minor, order, acquire_local, acquire_remote, w, cred);
	if (major == GSS_S_COMPLETE && order == REMOTE_FIRST && (*cred)->local != GSS_C_NO_CREDENTIAL && !for_krb5(w))
		major = with_krb5(minor, w, cred);
	w->deadline = NULL;
	handle_drop(w->input);
	w->input = NULL;
	return major;
}

OM_uint32 default_local(OM_uint32 *minor, gss_OID mech, gss_cred_usage_t usage, gss_cred_id_t *local)
{
	gss_OID_set special;
	OM_uint32 major, ignored;

	*local = GSS_C_NO_CREDENTIAL;
	major = oid_set(minor, special_mech(mech), &special);
	if (major != GSS_S_COMPLETE)
		return major;
	major = gss_acquire_cred(minor, GSS_C_NO_NAME, GSS_C_INDEFINITE, special, usage, local, NULL, NULL);
	gss_release_oid_set(&ignored, &special);
	return major;
}

/* begin sets what a call gives back to nothing. */
static void begin(OM_uint32 *minor, gss_cred_id_t *cred, gss_OID_set *actual_mechs, OM_uint32 *time_rec)
{
	*minor = 0;
	*cred = GSS_C_NO_CREDENTIAL;
	if (actual_mechs)
		*actual_mechs = GSS_C_NO_OID_SET;
	if (time_rec)
		*time_rec = 0;
}

EXPORT OM_uint32 gssi_acquire_cred_from(OM_uint32 *minor, gss_name_t desired_name, OM_uint32 time_req,
					gss_OID_set desired_mechs, gss_cred_usage_t usage,
					gss_const_key_value_set_t store, gss_cred_id_t *output, gss_OID_set *actual_mechs,
					OM_uint32 *time_rec)
{
	struct want w = {
		.name = (struct name *)desired_name,
		.time_req = time_req,
		.mechs = desired_mechs,
		.usage = usage,
		.store = store,
		.actual_mechs = actual_mechs,
		.time_rec = time_rec,
	};
	struct cred *cred = NULL;
	OM_uint32 major;

	begin(minor, output, actual_mechs, time_rec);
	major = acquire(minor, &w, &cred);
	*output = (gss_cred_id_t)cred;
	return major;
}

EXPORT OM_uint32 gssi_acquire_cred(OM_uint32 *minor, gss_name_t desired_name, OM_uint32 time_req, gss_OID_set desired_mechs,
				   gss_cred_usage_t usage, gss_cred_id_t *output, gss_OID_set *actual_mechs,
				   OM_uint32 *time_rec)
{
	return gssi_acquire_cred_from(minor, desired_name, time_req, desired_mechs, usage, GSS_C_NO_CRED_STORE, output,
				      actual_mechs, time_rec);
}

EXPORT OM_uint32 gssi_acquire_cred_with_password(OM_uint32 *minor, const gss_name_t desired_name, const gss_buffer_t password,
						 OM_uint32 time_req, const gss_OID_set desired_mechs, int usage,
						 gss_cred_id_t *output, gss_OID_set *actual_mechs, OM_uint32 *time_rec)
{
	struct want w = { .usage = usage };
	gss_OID_set special = GSS_C_NO_OID_SET;
	gss_cred_id_t local = GSS_C_NO_CREDENTIAL;
	gss_name_t name = GSS_C_NO_NAME;
	struct cred *cred = NULL;
	OM_uint32 major, ignored;

	begin(minor, output, actual_mechs, time_rec);
	major = name_local(minor, (struct name *)desired_name, first_mech(desired_mechs), &name);
	if (major == GSS_S_COMPLETE)
		major = special_mechs(minor, desired_mechs, &special);
	if (major == GSS_S_COMPLETE)
		major = gss_acquire_cred_with_password(minor, name, password, time_req, special, usage, &local, actual_mechs,
						       time_rec);
	if (special != GSS_C_NO_OID_SET)
		gss_release_oid_set(&ignored, &special);
	if (major == GSS_S_COMPLETE)
		major = keep(minor, local, &cred);
	*output = (gss_cred_id_t)cred;
	return told(major, *minor, &w, "local password's");
}

/* ---- impersonating ---- */

static OM_uint32 impersonate_local(OM_uint32 *minor, const struct want *w, struct cred **cred)
{
	gss_cred_id_t own;
	OM_uint32 ignored, major;

	major = default_local(minor, first_mech(w->mechs), GSS_C_INITIATE, &own);
	if (major != GSS_S_COMPLETE)
		return told(major, *minor, w, "local impersonator's");
	major = locally(minor, w, own, cred);
	gss_release_cred(&ignored, &own);
	return major;
}

static OM_uint32 impersonate_remote(OM_uint32 *minor, const struct want *w, struct cred **cred)
{
	struct deadline deadline = { 0 };
	struct want service = { .mechs = w->mechs, .usage = GSS_C_INITIATE, .deadline = &deadline };
	struct want user = *w;
	struct cred *own = NULL;
	OM_uint32 major;

	major = ccache_handle(minor, NULL, &service.input);
	if (major == GSS_S_COMPLETE)
		major = acquire_remote(minor, &service, &own);
	if (major == GSS_S_COMPLETE) {
		user.input = own->remote;
		user.impersonate = true;
		user.deadline = &deadline;
		major = ask(minor, &user, cred);
	}
	cred_free(own);
	handle_drop(service.input);
	return major;
}

EXPORT OM_uint32 gssi_acquire_cred_impersonate_name(OM_uint32 *minor, const gss_cred_id_t impersonator,
						    const gss_name_t desired_name, OM_uint32 time_req,
						    const gss_OID_set desired_mechs, gss_cred_usage_t usage,
						    gss_cred_id_t *output, gss_OID_set *actual_mechs, OM_uint32 *time_rec)
{
	struct want w = {
		.name = (struct name *)desired_name,
		.time_req = time_req,
		.mechs = desired_mechs,
		.usage = usage,
		.actual_mechs = actual_mechs,
		.time_rec = time_rec,
	};
	struct cred *by = (struct cred *)impersonator;
	struct cred *cred = NULL;
	OM_uint32 major;

	begin(minor, output, actual_mechs, time_rec);
	if (!by) {
		major = by_order(minor, behavior(), impersonate_local, impersonate_remote, &w, &cred);
	} else if (by->local != GSS_C_NO_CREDENTIAL) {
		major = locally(minor, &w, by->local, &cred);
	} else {
		w.input = cred_handle(by);
		w.impersonate = true;
		major = ask(minor, &w, &cred);
		handle_drop(w.input);
	}
	*output = (gss_cred_id_t)cred;
	return major;
}

/* ---- inquiring ---- */

EXPORT OM_uint32 gssi_release_cred(OM_uint32 *minor, gss_cred_id_t *cred)
{
	*minor = 0;
	cred_free((struct cred *)*cred);
	*cred = GSS_C_NO_CREDENTIAL;
	return GSS_S_COMPLETE;
}

/* name_given makes a name of what there is of one. name may be NULL. */
static OM_uint32 name_given(OM_uint32 *minor, const struct facts *f, gss_name_t *name)
{
	if (!name)
		return GSS_S_COMPLETE;
	if (f->name.display_name.n == 0 && f->name.exported_name.n == 0)
		return fail(minor, 0, "the daemon gave this credential no name");
	*name = (gss_name_t)name_of(&f->name, f->mech);
	return *name ? GSS_S_COMPLETE : no_memory(minor);
}

/* name_taken makes a name of a local one, if it was asked for. */
static OM_uint32 name_taken(OM_uint32 *minor, gss_name_t local, gss_OID mech, gss_name_t *name)
{
	if (!name || local == GSS_C_NO_NAME)
		return GSS_S_COMPLETE;
	*name = (gss_name_t)name_of_local(local, mech);
	return *name ? GSS_S_COMPLETE : no_memory(minor);
}

/* default_cred acquires what GSS_C_NO_CREDENTIAL stands for in an inquiry. */
static OM_uint32 default_cred(OM_uint32 *minor, gss_OID mech, struct cred **cred)
{
	struct want w = { .usage = GSS_C_INITIATE };
	OM_uint32 major = GSS_S_COMPLETE, ignored;

	*cred = NULL;
	if (mech != GSS_C_NO_OID)
		major = oid_set(minor, mech, &w.mechs);
	if (major != GSS_S_COMPLETE)
		return major;
	major = acquire(minor, &w, cred);
	if (w.mechs != GSS_C_NO_OID_SET)
		gss_release_oid_set(&ignored, &w.mechs);
	return major;
}

EXPORT OM_uint32 gssi_inquire_cred(OM_uint32 *minor, gss_cred_id_t handle, gss_name_t *name, OM_uint32 *time_left,
				   gss_cred_usage_t *usage, gss_OID_set *mechs)
{
	struct cred *cred = (struct cred *)handle, *acquired = NULL;
	gss_name_t local = GSS_C_NO_NAME;
	struct handle *h = NULL;
	OM_uint32 major, ignored;
	struct facts f;

	*minor = 0;
	if (name)
		*name = GSS_C_NO_NAME;
	if (!cred) {
		major = default_cred(minor, GSS_C_NO_OID, &acquired);
		if (major != GSS_S_COMPLETE)
			return major;
		cred = acquired;
	}
	h = cred_handle(cred);
	if (h) {
		f = facts_of(h, GSS_C_NO_OID);
		if (usage)
			*usage = usage_of(&f);
		if (time_left)
			*time_left = lifetime(h, &f, usage_of(&f));
		major = mechs_of(minor, h, mechs);
		if (major == GSS_S_COMPLETE)
			major = name_given(minor, &f, name);
	} else {
		major = gss_inquire_cred(minor, cred->local, name ? &local : NULL, time_left, usage, mechs);
		if (major == GSS_S_COMPLETE)
			major = name_taken(minor, local, known_mech(gss_mech_krb5), name);
	}
	if (major != GSS_S_COMPLETE && mechs)
		gss_release_oid_set(&ignored, mechs);
	handle_drop(h);
	cred_free(acquired);
	return major;
}

EXPORT OM_uint32 gssi_inquire_cred_by_mech(OM_uint32 *minor, gss_cred_id_t handle, gss_OID mech, gss_name_t *name,
					   OM_uint32 *initiator_left, OM_uint32 *acceptor_left, gss_cred_usage_t *usage)
{
	struct cred *cred = (struct cred *)handle, *acquired = NULL;
	gss_name_t local = GSS_C_NO_NAME;
	struct handle *h = NULL;
	OM_uint32 major;
	struct facts f;

	*minor = 0;
	if (name)
		*name = GSS_C_NO_NAME;
	if (!cred) {
		major = default_cred(minor, mech, &acquired);
		if (major != GSS_S_COMPLETE)
			return major;
		cred = acquired;
	}
	h = cred_handle(cred);
	if (!h) {
		major = gss_inquire_cred_by_mech(minor, cred->local, special_mech(mech), name ? &local : NULL, initiator_left,
						 acceptor_left, usage);
		if (major == GSS_S_COMPLETE)
			major = name_taken(minor, local, known_mech(mech), name);
		goto out;
	}
	f = facts_of(h, known_mech(mech));
	if (f.elements == 0) {
		major = GSS_S_NO_CRED;
		goto out;
	}
	if (initiator_left)
		*initiator_left = lifetime(h, &f, GSS_C_INITIATE);
	if (acceptor_left)
		*acceptor_left = lifetime(h, &f, GSS_C_ACCEPT);
	if (usage)
		*usage = usage_of(&f);
	major = name_given(minor, &f, name);
out:
	handle_drop(h);
	cred_free(acquired);
	return major;
}

EXPORT OM_uint32 gssi_inquire_cred_by_oid(OM_uint32 *minor, const gss_cred_id_t handle, const gss_OID object,
					  gss_buffer_set_t *data)
{
	struct cred *cred = (struct cred *)handle;

	*minor = 0;
	if (!cred)
		return GSS_S_NO_CRED;
	if (cred->local != GSS_C_NO_CREDENTIAL)
		return gss_inquire_cred_by_oid(minor, cred->local, object, data);
	return unavailable(minor, "a remote credential has nothing that is asked for by an OID");
}

/* ---- exporting and importing ---- */

/* A remote credential's token: these bytes, when its handle was received, and the handle. No mechanism's begins so. */
static const uint8_t magic[8] = "gssproxy";

/* part takes a length and that many bytes from the front of b. */
static bool part(struct xdr_bytes *b, struct xdr_bytes *v)
{
	struct xdr_reader r = xdr_reader_of(*b);

	v->n = xdr_get_u32(&r);
	v->p = r.p;
	if (r.bad || v->n > (size_t)(r.end - r.p))
		return false;
	b->p = v->p + v->n;
	b->n -= 4 + v->n;
	return true;
}

EXPORT OM_uint32 gssi_export_cred(OM_uint32 *minor, gss_cred_id_t handle, gss_buffer_t token)
{
	struct cred *cred = (struct cred *)handle;
	gss_buffer_desc whole = GSS_C_EMPTY_BUFFER;
	struct xdr_bytes rest, oid, inner;
	struct xdr_writer out = { 0 };
	struct handle *h;
	OM_uint32 major, ignored;

	*minor = 0;
	if (!cred)
		return GSS_S_NO_CRED;
	h = cred_handle(cred);
	if (h) {
		xdr_put_raw(&out, (struct xdr_bytes){ magic, sizeof(magic) });
		xdr_put_u64(&out, (uint64_t)h->received);
		xdr_put_raw(&out, handle_bytes(h));
		handle_drop(h);
		major = out.failed ? no_memory(minor) : buffer_of(minor, (struct xdr_bytes){ out.p, (uint32_t)out.n }, token);
		xdr_writer_free(&out);
		return major;
	}
	/* The mechglue has put the mechanism's OID and the length in front, and will do so again. */
	major = gss_export_cred(minor, cred->local, &whole);
	if (major != GSS_S_COMPLETE)
		return major;
	rest = bytes_of(&whole);
	if (part(&rest, &oid) && part(&rest, &inner))
		major = buffer_of(minor, inner, token);
	else
		major = fail(minor, 0, "the exported credential has an unknown form");
	explicit_bzero(whole.value, whole.length);
	gss_release_buffer(&ignored, &whole);
	return major;
}

EXPORT OM_uint32 gssi_import_cred_by_mech(OM_uint32 *minor, gss_OID mech, gss_buffer_t token, gss_cred_id_t *output)
{
	struct xdr_bytes b = bytes_of(token);
	gss_OID special = special_mech(mech);
	struct xdr_writer out = { 0 };
	gss_cred_id_t local = GSS_C_NO_CREDENTIAL;
	struct cred *cred = NULL;
	gss_buffer_desc whole;
	OM_uint32 major;

	*minor = 0;
	*output = GSS_C_NO_CREDENTIAL;
	if (b.n >= sizeof(magic) && memcmp(b.p, magic, sizeof(magic)) == 0) {
		struct xdr_reader r = xdr_reader_of((struct xdr_bytes){ b.p + sizeof(magic), b.n - (uint32_t)sizeof(magic) });
		int64_t received = (int64_t)xdr_get_u64(&r);
		struct handle *h;

		h = r.bad ? NULL : handle_of((struct xdr_bytes){ r.p, (uint32_t)(r.end - r.p) });
		if (!h)
			return GSS_S_DEFECTIVE_TOKEN;
		if (received > 0 && received < h->received)
			h->received = received;
		cred = cred_of_handle(h);
		*output = (gss_cred_id_t)cred;
		return cred ? GSS_S_COMPLETE : no_memory(minor);
	}
	if (special == GSS_C_NO_OID)
		return GSS_S_BAD_MECH;
	xdr_put_u32(&out, special->length);
	xdr_put_raw(&out, oid_bytes(special));
	xdr_put_u32(&out, b.n);
	xdr_put_raw(&out, b);
	if (out.failed) {
		xdr_writer_free(&out);
		return fail(minor, ENOMEM, "the exported credential is too long, or there is no memory");
	}
	whole = (gss_buffer_desc){ out.n, out.p };
	major = gss_import_cred(minor, &whole, &local);
	xdr_writer_free(&out);
	if (major == GSS_S_COMPLETE)
		major = keep(minor, local, &cred);
	*output = (gss_cred_id_t)cred;
	return major;
}

EXPORT OM_uint32 gssi_import_cred(OM_uint32 *minor, gss_buffer_t token, gss_cred_id_t *output)
{
	return gssi_import_cred_by_mech(minor, gss_mech_krb5, token, output);
}

/* ---- storing ---- */

EXPORT OM_uint32 gssi_store_cred_into(OM_uint32 *minor, gss_cred_id_t handle, gss_cred_usage_t usage, gss_OID mech,
				      OM_uint32 overwrite, OM_uint32 make_default, gss_const_key_value_set_t store,
				      gss_OID_set *elements_stored, gss_cred_usage_t *usage_stored)
{
	struct cred *cred = (struct cred *)handle;
	struct handle *h;
	struct facts f;
	OM_uint32 major, ignored;

	*minor = 0;
	if (elements_stored)
		*elements_stored = GSS_C_NO_OID_SET;
	if (!cred)
		return GSS_S_NO_CRED;
	h = cred_handle(cred);
	if (!h)
		return gss_store_cred_into(minor, cred->local, usage, special_mech(mech), overwrite, make_default, store,
					   elements_stored, usage_stored);
	f = facts_of(h, GSS_C_NO_OID);
	if (usage == GSS_C_ACCEPT || usage_of(&f) == GSS_C_ACCEPT) {
		major = unavailable(minor, "a remote credential that accepts cannot be stored");
		goto out;
	}
	major = mechs_of(minor, h, elements_stored);
	if (major != GSS_S_COMPLETE)
		goto out;
	major = ccache_store(minor, store_value(store, "ccache"), h, overwrite ? CCACHE_REPLACE : CCACHE_ADD,
			     make_default != 0);
	if (major == GSS_S_COMPLETE && usage_stored)
		*usage_stored = GSS_C_INITIATE;
	if (major != GSS_S_COMPLETE && elements_stored)
		gss_release_oid_set(&ignored, elements_stored);
out:
	handle_drop(h);
	return major;
}

EXPORT OM_uint32 gssi_store_cred(OM_uint32 *minor, const gss_cred_id_t cred, gss_cred_usage_t usage, const gss_OID mech,
				 OM_uint32 overwrite, OM_uint32 make_default, gss_OID_set *elements_stored,
				 gss_cred_usage_t *usage_stored)
{
	return gssi_store_cred_into(minor, cred, usage, mech, overwrite, make_default, GSS_C_NO_CRED_STORE, elements_stored,
				    usage_stored);
}

/* ---- options ---- */

/* What gss_krb5_set_allowable_enctypes passes. */
struct enctypes {
	OM_uint32 count;
	krb5_enctype *p; /* NULL for all of them */
};

static const gss_OID_desc set_enctypes = { 11, "\x2a\x86\x48\x86\xf7\x12\x01\x02\x02\x05\x04" };
static const gss_OID_desc copy_ccache = { 11, "\x2a\x86\x48\x86\xf7\x12\x01\x02\x02\x05\x02" };

/* put_element writes an element with the option instead of one of its name; without one if there is no value. */
static void put_element(struct xdr_writer *w, struct gssx_cred_element *e, const struct gssx_option *option, bool value)
{
	struct xdr_reader r = xdr_reader_of(e->options.raw);
	struct xdr_writer options = { 0 };
	struct xdr_list list = { 0 };

	for (uint32_t i = 0; i < e->options.count; i++) {
		struct gssx_option o;

		view_gssx_option(&r, &o);
		if (same_bytes(o.option, option->option))
			continue;
		put_gssx_option(&options, &o);
		list.count++;
	}
	if (value) {
		put_gssx_option(&options, option);
		list.count++;
	}
	list.raw = (struct xdr_bytes){ options.p, (uint32_t)options.n };
	e->options = list;
	put_gssx_cred_element(w, e);
	w->failed = w->failed || options.failed;
	xdr_writer_free(&options);
}

/* with_option makes a handle of another one, with an option of all elements, or without it. NULL if there is no memory. */
static struct handle *with_option(const struct handle *h, const struct gssx_option *option, bool value)
{
	struct handle *changed = NULL;
	struct gssx_cred x = view_handle(h);
	struct xdr_reader r = xdr_reader_of(x.elements.raw);
	struct xdr_writer elements = { 0 }, out = { 0 };

	for (uint32_t i = 0; i < x.elements.count; i++) {
		struct gssx_cred_element e;

		view_gssx_cred_element(&r, &e);
		put_element(&elements, &e, option, value);
	}
	x.elements.raw = (struct xdr_bytes){ elements.p, (uint32_t)elements.n };
	put_gssx_cred(&out, &x);
	if (!elements.failed && !out.failed)
		changed = handle_of((struct xdr_bytes){ out.p, (uint32_t)out.n });
	xdr_writer_free(&elements);
	xdr_writer_free(&out);
	if (changed)
		changed->received = h->received;
	return changed;
}

/* set_option sets an option of a remote credential, or removes it: of whatever handle it has in the end. */
static OM_uint32 set_option(OM_uint32 *minor, struct cred *cred, const struct gssx_option *option, bool value)
{
	bool done = false;

	while (!done) {
		struct handle *h = cred_handle(cred), *changed = h ? with_option(h, option, value) : NULL;

		done = changed && cred_replace(cred, h, changed);
		handle_drop(h);
		if (!changed)
			return no_memory(minor);
	}
	return GSS_S_COMPLETE;
}

/* set_allowed sends the encryption types as numbers of this host's byte order. Which of them there are is the daemon's to say. */
static OM_uint32 set_allowed(OM_uint32 *minor, struct cred *cred, const gss_buffer_t value)
{
	static const char name[] = "krb5_set_allowed_enctype_values";
	struct gssx_option option = { .option = { (const uint8_t *)name, sizeof(name) } };
	const struct enctypes *wanted = value->value;
	uint32_t n = 0;

	if (value->length != sizeof(*wanted))
		return fail(minor, EINVAL, "the list of allowable encryption types has an unknown form");
	if (!wanted->p)
		return set_option(minor, cred, &option, false);
	while (n < wanted->count && n < XDR_MAX / sizeof(*wanted->p) && wanted->p[n] != 0)
		n++;
	option.value = (struct xdr_bytes){ (const uint8_t *)wanted->p, n * (uint32_t)sizeof(*wanted->p) };
	return set_option(minor, cred, &option, true);
}

EXPORT OM_uint32 gssi_set_cred_option(OM_uint32 *minor, gss_cred_id_t *handle, const gss_OID object, const gss_buffer_t value)
{
	static const char no_ci_flags[] = "krb5_set_no_ci_flags";
	static const struct gssx_option no_ci = { .option = { (const uint8_t *)no_ci_flags, sizeof(no_ci_flags) } };
	struct cred *cred = (struct cred *)*handle;

	*minor = 0;
	if (!cred)
		return unavailable(minor, "an option makes no credential");
	if (cred->local != GSS_C_NO_CREDENTIAL)
		return gss_set_cred_option(minor, &cred->local, object, value);
	if (gss_oid_equal(object, &set_enctypes) && value)
		return set_allowed(minor, cred, value);
	if (gss_oid_equal(object, GSS_KRB5_CRED_NO_CI_FLAGS_X))
		return set_option(minor, cred, &no_ci, true);
	if (gss_oid_equal(object, &copy_ccache))
		return unavailable(minor, "a remote credential has no tickets that could be copied into a cache");
	return unavailable(minor, "a remote credential does not have this option");
}
