/*
 * gsstool: MIT's GSS-API behind a line protocol, for the tests.
 *
 * One command a line on stdin, one answer a line on stdout. Fields are
 * separated by one blank; binary fields are hex, an empty or absent one is
 * "-". An answer is "ok FIELD..." or "err MAJOR MINOR TOKEN TEXT...", majors
 * and minors in decimal, TOKEN what the library wants sent to the peer.
 * Contexts are small numbers.
 *
 *   enctypes E,E,...            session enctypes the next init asks for
 *   allow E,E,...               enctypes that the acceptor credential takes
 *   acquire SERVICE|-           acceptor credential (hostbased), or the default
 *   credential NAME TYPE USAGE  -> ok NAME LIFETIME USAGE  (for the next init, accept or both; NAME hex, TYPE one
 *                               of user, hostbased, principal, uid, machineuid; USAGE 0 both, 1 initiate, 2 accept)
 *   noci                        no flags the next init does not ask for, with that credential
 *   impersonate NAME TYPE       -> ok NAME LIFETIME USAGE  (with that credential; the next init uses the result)
 *   store ID|- CCACHE           -> ok                      (what was delegated in a context, or that credential)
 *   from CCACHE                 -> ok NAME LIFETIME USAGE  (for the next init, from that cache)
 *   init TARGET FLAGS CB        -> ok ID MAJOR TOKEN       (TARGET hostbased)
 *   step ID TOKEN               -> ok MAJOR TOKEN          (initiator, next leg)
 *   tokens N TARGET FLAGS CB    -> ok N, then N lines of first tokens
 *   accept TOKEN CB             -> ok ID MAJOR TOKEN CLIENT FLAGS DELEGATED
 *   accepts TOKEN...            -> ok CPU ELAPSED          (each accepted and forgotten; what that took in ns)
 *   resume ID TOKEN             -> the same                (acceptor, next leg)
 *   import TOKEN                -> ok ID                   (exported context)
 *   export ID                   -> ok TOKEN
 *   inquire ID                  -> ok SRC TARG LIFETIME FLAGS LOCAL OPEN
 *   wrap ID CONF MSG            -> ok CONF TOKEN
 *   unwrap ID TOKEN             -> ok MAJOR CONF MSG
 *   mic ID MSG                  -> ok TOKEN
 *   verify ID MSG TOKEN         -> ok MAJOR
 *   limit ID CONF SIZE          -> ok SIZE
 *   prf ID FULL LEN INPUT       -> ok BYTES
 *   key ID                      -> ok ENCTYPE KEY          (session key as SSPI sees it)
 *   attrs ID                    -> ok NAME=FLAGS=VALUE...  (of the initiator; A authenticated, C complete)
 *   delegated ID TARGET         -> ok CLIENT TOKEN         (use the delegated credential once)
 *   delete ID                   -> ok
 */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <gssapi/gssapi.h>
#include <gssapi/gssapi_krb5.h>
#ifndef HEIMDAL			/* the program is built with Heimdal's library as well, which lacks these */
#include <gssapi/gssapi_ext.h>
#endif

static gss_OID_desc krb5_oid = { 9, "\x2a\x86\x48\x86\xf7\x12\x01\x02\x02" };
static gss_OID_desc session_key_oid = { 11, "\x2a\x86\x48\x86\xf7\x12\x01\x02\x02\x05\x05" }; /* GSS_C_INQ_SSPI_SESSION_KEY */
static gss_OID_desc key_type_prefix = { 10, "\x2a\x86\x48\x86\xf7\x12\x01\x02\x02\x04" };

static gss_ctx_id_t *contexts;
static gss_cred_id_t *delegated;
static int n_contexts;
static gss_cred_id_t init_cred = GSS_C_NO_CREDENTIAL;
static gss_cred_id_t accept_cred = GSS_C_NO_CREDENTIAL;
static char *rest;		/* what is left of the current line */

static void die(const char *what)
{
	fprintf(stderr, "gsstool: %s\n", what);
	exit(2);
}

static void *need(void *p)
{
	if (p == NULL)
		die("out of memory");
	return p;
}

static char *word(void)
{
	char *w = strsep(&rest, " ");

	if (w == NULL || *w == '\0')
		die("a field is missing");
	return w;
}

static unsigned long number(void)
{
	return strtoul(word(), NULL, 0);
}

static int nibble(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	die("bad hex digit");
	return 0;
}

static gss_buffer_desc binary(void)
{
	char *w = word();
	gss_buffer_desc b = GSS_C_EMPTY_BUFFER;
	size_t i;

	if (strcmp(w, "-") == 0)
		return b;
	b.length = strlen(w) / 2;
	b.value = need(malloc(b.length + 1));
	for (i = 0; i < b.length; i++)
		((unsigned char *)b.value)[i] = nibble(w[2 * i]) << 4 | nibble(w[2 * i + 1]);
	return b;
}

static void put_hex(const void *p, size_t n)
{
	static const char digits[] = "0123456789abcdef";
	const unsigned char *b = p;
	size_t i;

	if (n == 0)
		putchar('-');
	for (i = 0; i < n; i++) {
		putchar(digits[b[i] >> 4]);
		putchar(digits[b[i] & 15]);
	}
}

/* put writes " " and the buffer, and releases what the library allocated. */
static void put(gss_buffer_t b)
{
	OM_uint32 min;

	putchar(' ');
	put_hex(b->value, b->length);
	gss_release_buffer(&min, b);
}

static void put_status(OM_uint32 code, int type)
{
	OM_uint32 maj, min, more = 0;
	gss_buffer_desc text;

	do {
		maj = gss_display_status(&min, code, type, &krb5_oid, &more, &text);
		if (GSS_ERROR(maj))
			return;
		printf(" %.*s", (int)text.length, (char *)text.value);
		gss_release_buffer(&min, &text);
	} while (more != 0);
}

static void fail(OM_uint32 maj, OM_uint32 min, gss_buffer_t token)
{
	gss_buffer_desc none = GSS_C_EMPTY_BUFFER;

	printf("err %u %u", maj, min);
	put(token ? token : &none);
	put_status(maj, GSS_C_GSS_CODE);
	printf(":");
	put_status(min, GSS_C_MECH_CODE);
	printf("\n");
}

static int add_context(gss_ctx_id_t ctx)
{
	contexts = need(realloc(contexts, (n_contexts + 1) * sizeof(*contexts)));
	delegated = need(realloc(delegated, (n_contexts + 1) * sizeof(*delegated)));
	contexts[n_contexts] = ctx;
	delegated[n_contexts] = GSS_C_NO_CREDENTIAL;
	return n_contexts++;
}

static gss_ctx_id_t *context(void)
{
	unsigned long id = number();

	if (id >= (unsigned long)n_contexts)
		die("no such context");
	return &contexts[id];
}

static gss_name_t hostbased(const char *w)
{
	OM_uint32 maj, min;
	gss_buffer_desc b = { strlen(w), (void *)w };
	gss_name_t name;

	maj = gss_import_name(&min, &b, GSS_C_NT_HOSTBASED_SERVICE, &name);
	if (GSS_ERROR(maj))
		die("cannot import the name");
	return name;
}

static OM_uint32 initiate(OM_uint32 *min, gss_cred_id_t cred, gss_ctx_id_t *ctx, gss_name_t target,
			  OM_uint32 flags, gss_buffer_t cb, gss_buffer_t in, gss_buffer_t out)
{
	struct gss_channel_bindings_struct bindings = { 0 };

	bindings.application_data = *cb;
	return gss_init_sec_context(min, cred, ctx, target, &krb5_oid, flags, 0,
				    cb->length ? &bindings : GSS_C_NO_CHANNEL_BINDINGS, in, NULL, out,
				    NULL, NULL);
}

/* One credential may be both. */
static void release_credentials(void)
{
	OM_uint32 min;

	if (accept_cred != init_cred)
		gss_release_cred(&min, &accept_cred);
	gss_release_cred(&min, &init_cred);
	accept_cred = GSS_C_NO_CREDENTIAL;
}

/* set_enctypes reads a list and sets it for a credential. */
static OM_uint32 set_enctypes(OM_uint32 *min, gss_cred_id_t cred)
{
	int32_t list[16];
	char *w = word(), *e;
	int n = 0;

	while (n < 16 && (e = strsep(&w, ",")) != NULL)
		list[n++] = atoi(e);
	return gss_krb5_set_allowable_enctypes(min, cred, n, list);
}

static void cmd_allow(void)
{
	OM_uint32 min, maj = set_enctypes(&min, accept_cred);

	if (GSS_ERROR(maj))
		fail(maj, min, NULL);
	else
		printf("ok\n");
}

static void cmd_enctypes(void)
{
	OM_uint32 maj, min;
	gss_OID_set_desc mechs = { 1, &krb5_oid };

	release_credentials();
	maj = gss_acquire_cred(&min, GSS_C_NO_NAME, GSS_C_INDEFINITE, &mechs, GSS_C_INITIATE, &init_cred, NULL, NULL);
	if (!GSS_ERROR(maj))
		maj = set_enctypes(&min, init_cred);
	if (GSS_ERROR(maj))
		fail(maj, min, NULL);
	else
		printf("ok\n");
}

static void cmd_acquire(void)
{
	OM_uint32 maj, min;
	gss_OID_set_desc mechs = { 1, &krb5_oid };
	gss_name_t name = GSS_C_NO_NAME;
	char *w = word();

	if (strcmp(w, "-") != 0)
		name = hostbased(w);
	if (accept_cred != init_cred)
		gss_release_cred(&min, &accept_cred);
	maj = gss_acquire_cred(&min, name, GSS_C_INDEFINITE, &mechs, GSS_C_ACCEPT, &accept_cred, NULL, NULL);
	if (GSS_ERROR(maj))
		fail(maj, min, NULL);
	else
		printf("ok\n");
	gss_release_name(&min, &name);
}

/* typed reads a name and its type. No name is none. */
static gss_name_t typed(void)
{
	OM_uint32 maj, min;
	gss_buffer_desc b = binary();
	char *type = word();
	gss_name_t name = GSS_C_NO_NAME;
	gss_OID oid = GSS_C_NT_HOSTBASED_SERVICE;

	if (b.length == 0)
		return name;
	if (strcmp(type, "user") == 0)
		oid = GSS_C_NT_USER_NAME;
	else if (strcmp(type, "principal") == 0)
		oid = (gss_OID)GSS_KRB5_NT_PRINCIPAL_NAME;
	else if (strcmp(type, "uid") == 0)
		oid = GSS_C_NT_STRING_UID_NAME;
	else if (strcmp(type, "machineuid") == 0)
		oid = GSS_C_NT_MACHINE_UID_NAME;
	else if (strcmp(type, "hostbased") != 0)
		die("no such type of name");
	maj = gss_import_name(&min, &b, oid, &name);
	if (GSS_ERROR(maj))
		die("cannot import the name");
	free(b.value);
	return name;
}

/* put_credential answers with what the library says a credential is. */
static void put_credential(gss_cred_id_t cred)
{
	OM_uint32 maj, min, lifetime = 0;
	gss_name_t name = GSS_C_NO_NAME;
	gss_buffer_desc shown = GSS_C_EMPTY_BUFFER;
	gss_cred_usage_t usage = 0;

	maj = gss_inquire_cred(&min, cred, &name, &lifetime, &usage, NULL);
	if (!GSS_ERROR(maj) && name != GSS_C_NO_NAME)
		maj = gss_display_name(&min, name, &shown, NULL);
	if (GSS_ERROR(maj)) {
		fail(maj, min, NULL);
		return;
	}
	printf("ok");
	put(&shown);
	printf(" %u %d\n", lifetime, usage);
	gss_release_name(&min, &name);
}

static void cmd_credential(void)
{
	OM_uint32 maj, min, ignored;
	gss_OID_set_desc mechs = { 1, &krb5_oid };
	gss_name_t name = typed();
	int usage = number();
	gss_cred_id_t cred = GSS_C_NO_CREDENTIAL;

	maj = gss_acquire_cred(&min, name, GSS_C_INDEFINITE, &mechs, usage, &cred, NULL, NULL);
	gss_release_name(&ignored, &name);
	if (GSS_ERROR(maj)) {
		fail(maj, min, NULL);
		return;
	}
	release_credentials();
	if (usage != GSS_C_ACCEPT)
		init_cred = cred;
	if (usage != GSS_C_INITIATE)
		accept_cred = cred;
	put_credential(cred);
}

#ifndef HEIMDAL
static void cmd_noci(void)
{
	OM_uint32 maj, min;
	gss_buffer_desc none = GSS_C_EMPTY_BUFFER;

	maj = gss_set_cred_option(&min, &init_cred, GSS_KRB5_CRED_NO_CI_FLAGS_X, &none);
	if (GSS_ERROR(maj))
		fail(maj, min, NULL);
	else
		printf("ok\n");
}

static void cmd_impersonate(void)
{
	OM_uint32 maj, min, ignored;
	gss_OID_set_desc mechs = { 1, &krb5_oid };
	gss_name_t name = typed();
	gss_cred_id_t cred = GSS_C_NO_CREDENTIAL;

	maj = gss_acquire_cred_impersonate_name(&min, init_cred, name, GSS_C_INDEFINITE, &mechs, GSS_C_INITIATE,
						&cred, NULL, NULL);
	gss_release_name(&ignored, &name);
	if (GSS_ERROR(maj)) {
		fail(maj, min, NULL);
		return;
	}
	release_credentials();
	init_cred = cred;
	put_credential(cred);
}

/* in_cache is a credential store of one cache. */
static gss_key_value_element_desc cache_element = { "ccache", NULL };
static gss_key_value_set_desc *in_cache(const char *name)
{
	static gss_key_value_set_desc store = { 1, &cache_element };

	cache_element.value = name;
	return &store;
}

static void cmd_store(void)
{
	OM_uint32 maj, min;
	gss_cred_id_t cred = init_cred;

	if (*rest == '-')
		word();
	else
		cred = delegated[context() - contexts];
	if (cred == GSS_C_NO_CREDENTIAL)
		die("no credential to store");
	maj = gss_store_cred_into(&min, cred, GSS_C_INITIATE, &krb5_oid, 1, 1, in_cache(word()), NULL, NULL);
	if (GSS_ERROR(maj))
		fail(maj, min, NULL);
	else
		printf("ok\n");
}

static void cmd_from(void)
{
	OM_uint32 maj, min;
	gss_OID_set_desc mechs = { 1, &krb5_oid };
	gss_cred_id_t cred = GSS_C_NO_CREDENTIAL;

	maj = gss_acquire_cred_from(&min, GSS_C_NO_NAME, GSS_C_INDEFINITE, &mechs, GSS_C_INITIATE, in_cache(word()),
				    &cred, NULL, NULL);
	if (GSS_ERROR(maj)) {
		fail(maj, min, NULL);
		return;
	}
	release_credentials();
	init_cred = cred;
	put_credential(cred);
}
#endif

/* Targets of started contexts, for the legs that follow. */
static gss_name_t *targets;
static struct { OM_uint32 flags; gss_buffer_desc cb; } *asked;
static int n_targets;

static void cmd_init(void)
{
	OM_uint32 maj, min;
	gss_ctx_id_t ctx = GSS_C_NO_CONTEXT;
	gss_name_t target = hostbased(word());
	OM_uint32 flags = number();
	gss_buffer_desc cb = binary(), out = GSS_C_EMPTY_BUFFER;
	int id;

	maj = initiate(&min, init_cred, &ctx, target, flags, &cb, GSS_C_NO_BUFFER, &out);
	if (GSS_ERROR(maj)) {
		fail(maj, min, &out);
		return;
	}
	id = add_context(ctx);
	targets = need(realloc(targets, n_contexts * sizeof(*targets)));
	asked = need(realloc(asked, n_contexts * sizeof(*asked)));
	while (n_targets < n_contexts)
		targets[n_targets++] = GSS_C_NO_NAME;
	targets[id] = target;
	asked[id].flags = flags;
	asked[id].cb = cb;
	printf("ok %d %u", id, maj);
	put(&out);
	printf("\n");
}

static void cmd_step(void)
{
	OM_uint32 maj, min;
	gss_ctx_id_t *ctx = context();
	int id = ctx - contexts;
	gss_buffer_desc in = binary(), out = GSS_C_EMPTY_BUFFER;

	if (id >= n_targets || targets[id] == GSS_C_NO_NAME)
		die("not an initiator's context");
	maj = initiate(&min, init_cred, ctx, targets[id], asked[id].flags, &asked[id].cb, &in, &out);
	if (GSS_ERROR(maj)) {
		fail(maj, min, &out);
	} else {
		printf("ok %u", maj);
		put(&out);
		printf("\n");
	}
	free(in.value);
}

static void cmd_tokens(void)
{
	OM_uint32 maj, min;
	unsigned long i, n = number();
	gss_name_t target = hostbased(word());
	OM_uint32 flags = number();
	gss_buffer_desc cb = binary();

	for (i = 0; i < n; i++) {
		gss_ctx_id_t ctx = GSS_C_NO_CONTEXT;
		gss_buffer_desc out = GSS_C_EMPTY_BUFFER;

		maj = initiate(&min, init_cred, &ctx, target, flags, &cb, GSS_C_NO_BUFFER, &out);
		if (GSS_ERROR(maj)) {
			fail(maj, min, &out);
			return;
		}
		if (i == 0)
			printf("ok %lu\n", n);
		put_hex(out.value, out.length);
		putchar('\n');
		gss_release_buffer(&min, &out);
		gss_delete_sec_context(&min, &ctx, NULL);
	}
	gss_release_name(&min, &target);
	free(cb.value);
}

/* accept_leg gives one token to an acceptor, whose context is number id, or a new one if that is negative. */
static void accept_leg(int id, gss_buffer_desc in, gss_buffer_desc cb)
{
	OM_uint32 maj, min, flags = 0;
	gss_ctx_id_t ctx = id < 0 ? GSS_C_NO_CONTEXT : contexts[id];
	gss_name_t client = GSS_C_NO_NAME;
	gss_cred_id_t deleg = GSS_C_NO_CREDENTIAL;
	gss_buffer_desc out = GSS_C_EMPTY_BUFFER, name = GSS_C_EMPTY_BUFFER;
	struct gss_channel_bindings_struct bindings = { 0 };

	bindings.application_data = cb;
	maj = gss_accept_sec_context(&min, &ctx, accept_cred, &in,
				     cb.length ? &bindings : GSS_C_NO_CHANNEL_BINDINGS, &client, NULL,
				     &out, &flags, NULL, &deleg);
	free(in.value);
	free(cb.value);
	if (id >= 0)
		contexts[id] = ctx;
	if (GSS_ERROR(maj)) {
		fail(maj, min, &out);
		return;
	}
	if (id < 0)
		id = add_context(ctx);
	delegated[id] = deleg;
	printf("ok %d %u", id, maj);
	put(&out);
	if (client != GSS_C_NO_NAME)
		gss_display_name(&min, client, &name, NULL);
	put(&name);
	printf(" %u %d\n", flags, deleg != GSS_C_NO_CREDENTIAL);
	gss_release_name(&min, &client);
}

static void cmd_accept(void)
{
	gss_buffer_desc in = binary(), cb = binary();

	accept_leg(-1, in, cb);
}

static long long nanoseconds(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void cmd_accepts(void)
{
	OM_uint32 maj = GSS_S_COMPLETE, min;
	gss_buffer_desc *tokens = NULL;
	size_t n = 0, i;
	long long cpu, elapsed;

	while (rest != NULL) {
		tokens = need(realloc(tokens, (n + 1) * sizeof(*tokens)));
		tokens[n++] = binary();
	}
	cpu = nanoseconds(CLOCK_PROCESS_CPUTIME_ID);
	elapsed = nanoseconds(CLOCK_MONOTONIC);
	for (i = 0; i < n && !GSS_ERROR(maj); i++) {
		gss_ctx_id_t ctx = GSS_C_NO_CONTEXT;
		gss_name_t client = GSS_C_NO_NAME;
		gss_buffer_desc out = GSS_C_EMPTY_BUFFER, name = GSS_C_EMPTY_BUFFER;
		OM_uint32 ignored;

		maj = gss_accept_sec_context(&min, &ctx, accept_cred, &tokens[i], GSS_C_NO_CHANNEL_BINDINGS, &client,
					     NULL, &out, NULL, NULL, NULL);
		if (!GSS_ERROR(maj))
			maj = gss_display_name(&min, client, &name, NULL);
		gss_release_buffer(&ignored, &name);
		gss_release_buffer(&ignored, &out);
		gss_release_name(&ignored, &client);
		gss_delete_sec_context(&ignored, &ctx, NULL);
	}
	cpu = nanoseconds(CLOCK_PROCESS_CPUTIME_ID) - cpu;
	elapsed = nanoseconds(CLOCK_MONOTONIC) - elapsed;
	if (GSS_ERROR(maj))
		fail(maj, min, NULL);
	else
		printf("ok %lld %lld\n", cpu, elapsed);
	for (i = 0; i < n; i++)
		free(tokens[i].value);
	free(tokens);
}

static void cmd_resume(void)
{
	gss_buffer_desc none = GSS_C_EMPTY_BUFFER;
	int id = context() - contexts;

	accept_leg(id, binary(), none);
}

static void cmd_import(void)
{
	OM_uint32 maj, min;
	gss_ctx_id_t ctx = GSS_C_NO_CONTEXT;
	gss_buffer_desc token = binary();

	maj = gss_import_sec_context(&min, &token, &ctx);
	free(token.value);
	if (GSS_ERROR(maj))
		fail(maj, min, NULL);
	else
		printf("ok %d\n", add_context(ctx));
}

static void cmd_export(void)
{
	OM_uint32 maj, min;
	gss_buffer_desc token = GSS_C_EMPTY_BUFFER;

	maj = gss_export_sec_context(&min, context(), &token);
	if (GSS_ERROR(maj)) {
		fail(maj, min, NULL);
		return;
	}
	printf("ok");
	put(&token);
	printf("\n");
}

static void cmd_inquire(void)
{
	OM_uint32 maj, min, lifetime = 0, flags = 0;
	gss_name_t src = GSS_C_NO_NAME, targ = GSS_C_NO_NAME;
	gss_buffer_desc a = GSS_C_EMPTY_BUFFER, b = GSS_C_EMPTY_BUFFER;
	int local = 0, open = 0;

	maj = gss_inquire_context(&min, *context(), &src, &targ, &lifetime, NULL, &flags, &local, &open);
	if (GSS_ERROR(maj)) {
		fail(maj, min, NULL);
		return;
	}
	if (src != GSS_C_NO_NAME)
		gss_display_name(&min, src, &a, NULL);
	if (targ != GSS_C_NO_NAME)
		gss_display_name(&min, targ, &b, NULL);
	printf("ok");
	put(&a);
	put(&b);
	printf(" %u %u %d %d\n", lifetime, flags, local, open);
	gss_release_name(&min, &src);
	gss_release_name(&min, &targ);
}

static void cmd_wrap(void)
{
	OM_uint32 maj, min;
	gss_ctx_id_t *ctx = context();
	int conf = number(), state = 0;
	gss_buffer_desc msg = binary(), out = GSS_C_EMPTY_BUFFER;

	maj = gss_wrap(&min, *ctx, conf, GSS_C_QOP_DEFAULT, &msg, &state, &out);
	free(msg.value);
	if (GSS_ERROR(maj)) {
		fail(maj, min, NULL);
		return;
	}
	printf("ok %d", state);
	put(&out);
	printf("\n");
}

static void cmd_unwrap(void)
{
	OM_uint32 maj, min;
	gss_ctx_id_t *ctx = context();
	int state = 0;
	gss_buffer_desc token = binary(), out = GSS_C_EMPTY_BUFFER;

	maj = gss_unwrap(&min, *ctx, &token, &out, &state, NULL);
	free(token.value);
	if (GSS_ERROR(maj)) {
		fail(maj, min, NULL);
		return;
	}
	printf("ok %u %d", maj, state);
	put(&out);
	printf("\n");
}

static void cmd_mic(void)
{
	OM_uint32 maj, min;
	gss_ctx_id_t *ctx = context();
	gss_buffer_desc msg = binary(), out = GSS_C_EMPTY_BUFFER;

	maj = gss_get_mic(&min, *ctx, GSS_C_QOP_DEFAULT, &msg, &out);
	free(msg.value);
	if (GSS_ERROR(maj)) {
		fail(maj, min, NULL);
		return;
	}
	printf("ok");
	put(&out);
	printf("\n");
}

static void cmd_verify(void)
{
	OM_uint32 maj, min;
	gss_ctx_id_t *ctx = context();
	gss_buffer_desc msg = binary(), token = binary();

	maj = gss_verify_mic(&min, *ctx, &msg, &token, NULL);
	free(msg.value);
	free(token.value);
	if (GSS_ERROR(maj))
		fail(maj, min, NULL);
	else
		printf("ok %u\n", maj);
}

static void cmd_limit(void)
{
	OM_uint32 maj, min, size = 0;
	gss_ctx_id_t *ctx = context();
	int conf = number();

	maj = gss_wrap_size_limit(&min, *ctx, conf, GSS_C_QOP_DEFAULT, number(), &size);
	if (GSS_ERROR(maj))
		fail(maj, min, NULL);
	else
		printf("ok %u\n", size);
}

static void cmd_prf(void)
{
	OM_uint32 maj, min;
	gss_ctx_id_t *ctx = context();
	int full = number();
	unsigned long len = number();
	gss_buffer_desc in = binary(), out = GSS_C_EMPTY_BUFFER;

	maj = gss_pseudo_random(&min, *ctx, full ? GSS_C_PRF_KEY_FULL : GSS_C_PRF_KEY_PARTIAL, &in, len, &out);
	free(in.value);
	if (GSS_ERROR(maj)) {
		fail(maj, min, NULL);
		return;
	}
	printf("ok");
	put(&out);
	printf("\n");
}

/* The set holds the key and an OID whose last arc is the enctype. */
static void cmd_key(void)
{
	OM_uint32 maj, min;
	gss_buffer_set_t set = GSS_C_NO_BUFFER_SET;
	unsigned long enctype = 0;
	size_t i;

	maj = gss_inquire_sec_context_by_oid(&min, *context(), &session_key_oid, &set);
	if (GSS_ERROR(maj)) {
		fail(maj, min, NULL);
		return;
	}
	if (set->count < 2)
		die("no session key in the answer");
	for (i = key_type_prefix.length; i < set->elements[1].length; i++)
		enctype = enctype << 7 | (((unsigned char *)set->elements[1].value)[i] & 0x7f);
	printf("ok %lu ", enctype);
	put_hex(set->elements[0].value, set->elements[0].length);
	printf("\n");
	gss_release_buffer_set(&min, &set);
}

static void cmd_attrs(void)
{
	OM_uint32 maj, min;
	gss_name_t src = GSS_C_NO_NAME;
	gss_buffer_set_t attrs = GSS_C_NO_BUFFER_SET;
	size_t i;

	maj = gss_inquire_context(&min, *context(), &src, NULL, NULL, NULL, NULL, NULL, NULL);
	if (!GSS_ERROR(maj))
		maj = gss_inquire_name(&min, src, NULL, NULL, &attrs);
	if (GSS_ERROR(maj)) {
		fail(maj, min, NULL);
		return;
	}
	printf("ok");
	for (i = 0; attrs != GSS_C_NO_BUFFER_SET && i < attrs->count; i++) {
		int more = -1;

		while (more != 0) {
			int authenticated = 0, complete = 0;
			gss_buffer_desc value = GSS_C_EMPTY_BUFFER, shown = GSS_C_EMPTY_BUFFER;

			maj = gss_get_name_attribute(&min, src, &attrs->elements[i], &authenticated, &complete,
						     &value, &shown, &more);
			if (GSS_ERROR(maj))
				break;
			printf(" %.*s=%s%s=", (int)attrs->elements[i].length, (char *)attrs->elements[i].value,
			       authenticated ? "A" : "", complete ? "C" : "");
			put_hex(value.value, value.length);
			gss_release_buffer(&min, &value);
			gss_release_buffer(&min, &shown);
		}
	}
	printf("\n");
	gss_release_buffer_set(&min, &attrs);
	gss_release_name(&min, &src);
}

static void cmd_delegated(void)
{
	OM_uint32 maj, min;
	gss_ctx_id_t *ctx = context(), out_ctx = GSS_C_NO_CONTEXT;
	gss_cred_id_t cred = delegated[ctx - contexts];
	gss_name_t target = hostbased(word()), name = GSS_C_NO_NAME;
	gss_buffer_desc out = GSS_C_EMPTY_BUFFER, shown = GSS_C_EMPTY_BUFFER, none = GSS_C_EMPTY_BUFFER;

	if (cred == GSS_C_NO_CREDENTIAL)
		die("no credential was delegated");
	maj = gss_inquire_cred(&min, cred, &name, NULL, NULL, NULL);
	if (!GSS_ERROR(maj))
		maj = gss_display_name(&min, name, &shown, NULL);
	if (!GSS_ERROR(maj))
		maj = initiate(&min, cred, &out_ctx, target, GSS_C_MUTUAL_FLAG, &none, GSS_C_NO_BUFFER, &out);
	if (GSS_ERROR(maj)) {
		fail(maj, min, &out);
		return;
	}
	printf("ok");
	put(&shown);
	put(&out);
	printf("\n");
	gss_release_name(&min, &name);
	gss_release_name(&min, &target);
	gss_delete_sec_context(&min, &out_ctx, NULL);
}

static void cmd_delete(void)
{
	OM_uint32 min;
	gss_ctx_id_t *ctx = context();

	gss_delete_sec_context(&min, ctx, NULL);
	gss_release_cred(&min, &delegated[ctx - contexts]);
	printf("ok\n");
}

static const struct { const char *name; void (*run)(void); } commands[] = {
	{ "enctypes", cmd_enctypes }, { "allow", cmd_allow }, { "acquire", cmd_acquire }, { "init", cmd_init },
	{ "step", cmd_step }, { "tokens", cmd_tokens }, { "accept", cmd_accept },
	{ "accepts", cmd_accepts }, { "resume", cmd_resume },
	{ "import", cmd_import }, { "export", cmd_export }, { "inquire", cmd_inquire },
	{ "wrap", cmd_wrap }, { "unwrap", cmd_unwrap }, { "mic", cmd_mic },
	{ "verify", cmd_verify }, { "limit", cmd_limit }, { "prf", cmd_prf },
	{ "key", cmd_key }, { "attrs", cmd_attrs }, { "delegated", cmd_delegated },
	{ "delete", cmd_delete }, { "credential", cmd_credential },
#ifndef HEIMDAL
	{ "impersonate", cmd_impersonate }, { "noci", cmd_noci },
	{ "store", cmd_store }, { "from", cmd_from },
#endif
};

int main(void)
{
	char *line = NULL, *w;
	size_t size = 0, i;
	ssize_t n;

	signal(SIGPIPE, SIG_IGN);	/* the plugin writes to daemons that are gone, as servers must expect */
	setvbuf(stdout, NULL, _IOFBF, 1 << 16);
	while ((n = getline(&line, &size, stdin)) > 0) {
		if (line[n - 1] == '\n')
			line[n - 1] = '\0';
		rest = line;
		w = word();
		for (i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
			if (strcmp(w, commands[i].name) == 0)
				break;
		if (i == sizeof(commands) / sizeof(commands[0]))
			die("unknown command");
		commands[i].run();
		fflush(stdout);
	}
	return 0;
}
