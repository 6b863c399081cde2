/*
 * A program that uses GSSAPI as any other does, with the plugin loaded by the mechglue: plugin_test.go plays the daemon. It
 * does what its standard input says, a command a line, and answers each with a line:
 *
 *     all             every function that asks the daemon or keeps what it said; "ok"
 *     starve          the same, with each thing that the plugin asks for refused in turn; "ok N", the number of things
 *     threads N       N threads at once, with one credential, name and context of all
 *     password        a credential with a wrong password: its major status
 *     acquire         the credential that contexts are made with from then on, instead of the default one: its major status
 *     mechs           acquires the default credential for krb5, Microsoft's krb5 and IAKERB: whom it has for each
 *     option          allows that credential one encryption type: its major status
 *     init            a context with that credential: its major status
 *     begin, end      the same in two steps: end waits for what a thread that begin starts says
 *     cancel          cancels that thread; "ok", and "canceled" or "ended" when it has ended
 *     descriptors N   allows N descriptors at most, or as many as are open for 0
 *     take            takes the numbers of the open sockets for a socket of its own
 *     timeout         how long that socket waits, in seconds
 *     compare         whether alice and bob are one, where each look at a name by the real mechanism takes 8 seconds
 *     store           stores a handle in the default cache: its major status
 *     leaks           whether memory was lost: 0 or 1
 *
 * Built with -Dstarve=1 the plugin asks for memory and such through the functions below whose names begin with __wrap_.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <gssapi/gssapi.h>
#include <gssapi/gssapi_ext.h>
#include <gssapi/gssapi_krb5.h>
#include <krb5.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/lsan_interface.h>
#endif
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---- what is refused ---- */

static atomic_long asked, refused; /* how many things were asked for, and which of them is not given; 0 for none */

static atomic_long passing, passed; /* seconds that a look at a name takes, and that have passed so */

static bool given(void)
{
	return atomic_fetch_add(&asked, 1) + 1 != atomic_load(&refused);
}

static void *none(void)
{
	errno = ENOMEM;
	return NULL;
}

void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
char *__wrap_strdup(const char *s);
int __wrap_asprintf(char **p, const char *format, ...);
int __wrap_vasprintf(char **p, const char *format, va_list args);
OM_uint32 __wrap_gss_create_empty_oid_set(OM_uint32 *minor, gss_OID_set *set);
OM_uint32 __wrap_gss_add_oid_set_member(OM_uint32 *minor, gss_OID oid, gss_OID_set *set);
OM_uint32 __wrap_gss_import_name(OM_uint32 *minor, gss_buffer_t b, gss_OID type, gss_name_t *name);
OM_uint32 __wrap_gss_canonicalize_name(OM_uint32 *minor, const gss_name_t in, const gss_OID mech, gss_name_t *out);
OM_uint32 __wrap_gss_import_sec_context(OM_uint32 *minor, gss_buffer_t b, gss_ctx_id_t *context);
krb5_error_code __wrap_krb5_init_context(krb5_context *k);
krb5_error_code __wrap_krb5_cc_resolve(krb5_context k, const char *name, krb5_ccache *cc);
int __wrap_socket(int domain, int type, int protocol);
int __wrap_clock_gettime(clockid_t clock, struct timespec *t);
int __wrap_open(const char *path, int flags, ...);

void *__wrap_malloc(size_t n) { return given() ? malloc(n) : none(); }
void *__wrap_calloc(size_t n, size_t size) { return given() ? calloc(n, size) : none(); }
char *__wrap_strdup(const char *s) { return given() ? strdup(s) : none(); }

int __wrap_vasprintf(char **p, const char *format, va_list args)
{
	return given() ? vasprintf(p, format, args) : -1;
}

int __wrap_asprintf(char **p, const char *format, ...)
{
	va_list args;
	int n;

	va_start(args, format);
	n = __wrap_vasprintf(p, format, args);
	va_end(args);
	return n;
}

static OM_uint32 no(OM_uint32 *minor)
{
	*minor = ENOMEM;
	return GSS_S_FAILURE;
}

OM_uint32 __wrap_gss_create_empty_oid_set(OM_uint32 *minor, gss_OID_set *set)
{
	*set = GSS_C_NO_OID_SET;
	return given() ? gss_create_empty_oid_set(minor, set) : no(minor);
}

OM_uint32 __wrap_gss_add_oid_set_member(OM_uint32 *minor, gss_OID oid, gss_OID_set *set)
{
	return given() ? gss_add_oid_set_member(minor, oid, set) : no(minor);
}

OM_uint32 __wrap_gss_import_name(OM_uint32 *minor, gss_buffer_t b, gss_OID type, gss_name_t *name)
{
	*name = GSS_C_NO_NAME;
	return given() ? gss_import_name(minor, b, type, name) : no(minor);
}

OM_uint32 __wrap_gss_canonicalize_name(OM_uint32 *minor, const gss_name_t in, const gss_OID mech, gss_name_t *out)
{
	*out = GSS_C_NO_NAME;
	atomic_fetch_add(&passed, atomic_load(&passing));
	return given() ? gss_canonicalize_name(minor, in, mech, out) : no(minor);
}

OM_uint32 __wrap_gss_import_sec_context(OM_uint32 *minor, gss_buffer_t b, gss_ctx_id_t *context)
{
	*context = GSS_C_NO_CONTEXT;
	return given() ? gss_import_sec_context(minor, b, context) : no(minor);
}

krb5_error_code __wrap_krb5_init_context(krb5_context *k)
{
	*k = NULL;
	return given() ? krb5_init_context(k) : ENOMEM;
}

krb5_error_code __wrap_krb5_cc_resolve(krb5_context k, const char *name, krb5_ccache *cc)
{
	return given() ? krb5_cc_resolve(k, name, cc) : ENOMEM;
}

int __wrap_socket(int domain, int type, int protocol)
{
	if (given())
		return socket(domain, type, protocol);
	errno = EMFILE;
	return -1;
}

int __wrap_clock_gettime(clockid_t clock, struct timespec *t)
{
	int err = clock_gettime(clock, t);

	t->tv_sec += atomic_load(&passed);
	return err;
}

int __wrap_open(const char *path, int flags, ...)
{
	if (given())
		return open(path, flags, 0600);
	errno = EMFILE;
	return -1;
}

/* ---- what a program does ---- */

static const gss_OID_desc krb5 = { 9, "\x2a\x86\x48\x86\xf7\x12\x01\x02\x02" };
static const gss_OID_set_desc krb5_only = { 1, (gss_OID)&krb5 };

static gss_name_t name_of(const char *text, gss_OID type)
{
	gss_buffer_desc b = { strlen(text), (void *)text };
	OM_uint32 minor;
	gss_name_t name;

	return gss_import_name(&minor, &b, type, &name) == GSS_S_COMPLETE ? name : GSS_C_NO_NAME;
}

/* consistent ends the program if a call says that it failed and gives something back, or the other way round. */
#define consistent(call, result) \
	do { \
		OM_uint32 major_ = (call); \
		if ((major_ == GSS_S_COMPLETE) != !!(result)) { \
			fprintf(stderr, "%s: major %#x and %p\n", #call, major_, (void *)(result)); \
			abort(); \
		} \
	} while (0)

static void said(OM_uint32 code)
{
	OM_uint32 minor, context = 0;
	gss_buffer_desc b = GSS_C_EMPTY_BUFFER;

	gss_display_status(&minor, code, GSS_C_MECH_CODE, (gss_OID)&krb5, &context, &b);
	gss_release_buffer(&minor, &b);
}

static void use_name(gss_name_t name)
{
	gss_name_t canonical = GSS_C_NO_NAME, twin = GSS_C_NO_NAME;
	gss_buffer_desc b = GSS_C_EMPTY_BUFFER;
	gss_buffer_set_t attributes = GSS_C_NO_BUFFER_SET;
	OM_uint32 minor;
	int flag;

	if (!name)
		return;
	consistent(gss_canonicalize_name(&minor, name, (gss_OID)&krb5, &canonical), canonical);
	said(minor);
	if (canonical) {
		consistent(gss_export_name(&minor, canonical, &b), b.value);
		gss_release_buffer(&minor, &b);
		consistent(gss_export_name_composite(&minor, canonical, &b), b.value);
		gss_release_buffer(&minor, &b);
		consistent(gss_display_name(&minor, canonical, &b, NULL), b.value);
		gss_release_buffer(&minor, &b);
		consistent(gss_duplicate_name(&minor, canonical, &twin), twin);
		if (twin)
			gss_compare_name(&minor, canonical, twin, &flag);
		gss_release_name(&minor, &twin);
		gss_inquire_name(&minor, canonical, &flag, NULL, &attributes);
		gss_release_buffer_set(&minor, &attributes);
		gss_localname(&minor, canonical, (gss_OID)&krb5, &b);
		gss_release_buffer(&minor, &b);
		gss_release_name(&minor, &canonical);
	}
}

static void use_cred(gss_cred_id_t cred)
{
	gss_buffer_desc b = GSS_C_EMPTY_BUFFER;
	gss_cred_id_t twin = GSS_C_NO_CREDENTIAL;
	gss_name_t name = GSS_C_NO_NAME;
	gss_OID_set mechs = GSS_C_NO_OID_SET;
	krb5_enctype aes[] = { ENCTYPE_AES256_CTS_HMAC_SHA1_96, 0 };
	OM_uint32 minor, left, other;
	int usage;

	consistent(gss_inquire_cred(&minor, cred, &name, &left, &usage, &mechs), name);
	use_name(name);
	gss_release_name(&minor, &name);
	gss_release_oid_set(&minor, &mechs);
	gss_inquire_cred(&minor, cred, NULL, NULL, NULL, NULL);
	consistent(gss_inquire_cred_by_mech(&minor, cred, (gss_OID)&krb5, &name, &left, &other, &usage), name);
	gss_release_name(&minor, &name);
	gss_inquire_cred_by_mech(&minor, cred, (gss_OID)&krb5, NULL, NULL, NULL, NULL);
	if (!cred)
		return;
	if (gss_export_cred(&minor, cred, &b) == GSS_S_COMPLETE) {
		consistent(gss_import_cred(&minor, &b, &twin), twin);
		gss_release_cred(&minor, &twin);
		gss_release_buffer(&minor, &b);
	}
	gss_krb5_set_allowable_enctypes(&minor, cred, 1, aes);
	gss_store_cred(&minor, cred, GSS_C_INITIATE, (gss_OID)&krb5, 1, 0, &mechs, &usage);
	gss_release_oid_set(&minor, &mechs);
}

/* libkrb5 keeps the keys that it derives from a context's, and counts their references, without a lock. */
static pthread_mutex_t messages = PTHREAD_MUTEX_INITIALIZER;

/* use_context exports the context in the end, if it is not one of several threads. */
static void use_context(gss_ctx_id_t *context, bool exported)
{
	gss_buffer_desc b = GSS_C_EMPTY_BUFFER, message = { 5, "hello" };
	gss_name_t source = GSS_C_NO_NAME, target = GSS_C_NO_NAME;
	gss_ctx_id_t twin = GSS_C_NO_CONTEXT;
	gss_buffer_set_t data = GSS_C_NO_BUFFER_SET;
	OM_uint32 minor, left, flags;
	gss_OID mech;
	int ours, open;

	if (!*context)
		return;
	gss_inquire_context(&minor, *context, &source, &target, &left, &mech, &flags, &ours, &open);
	use_name(source);
	gss_release_name(&minor, &source);
	gss_release_name(&minor, &target);
	gss_inquire_context(&minor, *context, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
	gss_context_time(&minor, *context, &left);
	gss_wrap_size_limit(&minor, *context, 1, 0, 100, &left);
	pthread_mutex_lock(&messages);
	gss_get_mic(&minor, *context, 0, &message, &b);
	gss_release_buffer(&minor, &b);
	gss_wrap(&minor, *context, 1, 0, &message, NULL, &b);
	pthread_mutex_unlock(&messages);
	if (exported) /* a token of its own is wrong, and of threads that share a context libkrb5 loses one's text of that */
		gss_unwrap(&minor, *context, &b, &message, NULL, NULL);
	gss_release_buffer(&minor, &b);
	gss_inquire_sec_context_by_oid(&minor, *context, GSS_C_INQ_SSPI_SESSION_KEY, &data);
	gss_release_buffer_set(&minor, &data);
	if (!exported || gss_export_sec_context(&minor, context, &b) != GSS_S_COMPLETE)
		return;
	consistent(gss_import_sec_context(&minor, &b, &twin), twin);
	gss_delete_sec_context(&minor, &twin, GSS_C_NO_BUFFER);
	gss_release_buffer(&minor, &b);
}

static OM_uint32 initiate(gss_cred_id_t cred, gss_name_t target, int legs)
{
	gss_buffer_desc in = GSS_C_EMPTY_BUFFER, out = GSS_C_EMPTY_BUFFER;
	gss_ctx_id_t context = GSS_C_NO_CONTEXT;
	OM_uint32 major = GSS_S_FAILURE, minor, ignored;

	for (int i = 0; i < legs; i++) {
		major = gss_init_sec_context(&minor, cred, &context, target, (gss_OID)&krb5, GSS_C_MUTUAL_FLAG, 0, NULL, &in, NULL,
					     &out, NULL, NULL);
		said(minor);
		gss_release_buffer(&ignored, &out);
		use_context(&context, false);
		in = (gss_buffer_desc){ 5, "token" };
		if (major != GSS_S_CONTINUE_NEEDED)
			break;
	}
	use_context(&context, true);
	gss_delete_sec_context(&ignored, &context, &out);
	return major;
}

static void accept_one(gss_cred_id_t cred, bool everything)
{
	gss_buffer_desc in = { 5, "token" }, out = GSS_C_EMPTY_BUFFER;
	/* An AP-REQ's beginning, by which the mechglue finds the mechanism. */
	static char request[] = "\x60\x10\x06\x09\x2a\x86\x48\x86\xf7\x12\x01\x02\x02\x01\x00nope";
	gss_ctx_id_t context = GSS_C_NO_CONTEXT;
	gss_name_t source = GSS_C_NO_NAME;
	gss_cred_id_t delegated = GSS_C_NO_CREDENTIAL;
	gss_OID mech;
	OM_uint32 minor, flags, left;

	in = (gss_buffer_desc){ sizeof(request) - 2, request };
	if (everything)
		gss_accept_sec_context(&minor, &context, cred, &in, NULL, &source, &mech, &out, &flags, &left, &delegated);
	else
		gss_accept_sec_context(&minor, &context, cred, &in, NULL, NULL, NULL, &out, NULL, NULL, NULL);
	said(minor);
	use_name(source);
	if (delegated)
		use_cred(delegated);
	gss_release_cred(&minor, &delegated);
	gss_release_name(&minor, &source);
	gss_release_buffer(&minor, &out);
	use_context(&context, true);
	gss_delete_sec_context(&minor, &context, GSS_C_NO_BUFFER);
}

static void all(void)
{
	gss_name_t target = name_of("host@server.example.test", GSS_C_NT_HOSTBASED_SERVICE);
	gss_name_t user = name_of("alice@EXAMPLE.TEST", GSS_C_NT_USER_NAME);
	gss_cred_id_t cred = GSS_C_NO_CREDENTIAL, s4u = GSS_C_NO_CREDENTIAL;
	gss_key_value_element_desc element = { "ccache", "MEMORY:store" };
	gss_key_value_set_desc store = { 1, &element };
	gss_OID_set mechs = GSS_C_NO_OID_SET;
	OM_uint32 minor, left;

	use_name(target);
	use_name(user);
	consistent(gss_acquire_cred(&minor, GSS_C_NO_NAME, 0, (gss_OID_set)&krb5_only, GSS_C_BOTH, &cred, &mechs, &left), cred);
	said(minor);
	gss_release_oid_set(&minor, &mechs);
	if (cred) {
		use_cred(cred);
		initiate(cred, target, 3);
		accept_one(cred, true);
		gss_acquire_cred_impersonate_name(&minor, cred, user, 0, (gss_OID_set)&krb5_only, GSS_C_INITIATE, &s4u, NULL, NULL);
		gss_release_cred(&minor, &s4u);
	}
	gss_release_cred(&minor, &cred);
	gss_acquire_cred_impersonate_name(&minor, NULL, user, 0, (gss_OID_set)&krb5_only, GSS_C_INITIATE, &s4u, NULL, NULL);
	gss_release_cred(&minor, &s4u);
	gss_acquire_cred_from(&minor, user, 0, NULL, GSS_C_INITIATE, &store, &cred, NULL, NULL);
	gss_release_cred(&minor, &cred);
	use_cred(GSS_C_NO_CREDENTIAL);
	initiate(GSS_C_NO_CREDENTIAL, target, 1);
	initiate(GSS_C_NO_CREDENTIAL, target, 2);
	accept_one(GSS_C_NO_CREDENTIAL, true);
	accept_one(GSS_C_NO_CREDENTIAL, false);
	gss_release_name(&minor, &target);
	gss_release_name(&minor, &user);
}

/* ---- threads ---- */

static struct {
	gss_name_t target, user;
	gss_cred_id_t cred;
	gss_ctx_id_t context;
} common;

static void *share(void *unused)
{
	OM_uint32 minor;

	for (int i = 0; i < 30; i++) {
		use_name(common.target);
		use_name(common.user);
		use_cred(common.cred);
		initiate(common.cred, common.target, 2);
		initiate(GSS_C_NO_CREDENTIAL, common.target, 1);
		accept_one(common.cred, true);
		use_context(&common.context, false);
		gss_compare_name(&minor, common.target, common.user, &(int){ 0 });
	}
	return unused;
}

static void threads(int n)
{
	pthread_t t[64];
	OM_uint32 minor;
	gss_buffer_desc out = GSS_C_EMPTY_BUFFER;

	common.target = name_of("host@server.example.test", GSS_C_NT_HOSTBASED_SERVICE);
	common.user = name_of("alice@EXAMPLE.TEST", GSS_C_NT_USER_NAME);
	gss_acquire_cred(&minor, GSS_C_NO_NAME, 0, (gss_OID_set)&krb5_only, GSS_C_BOTH, &common.cred, NULL, NULL);
	gss_init_sec_context(&minor, common.cred, &common.context, common.target, (gss_OID)&krb5, 0, 0, NULL, NULL, NULL, &out,
			     NULL, NULL);
	gss_release_buffer(&minor, &out);
	for (int i = 0; i < n; i++)
		pthread_create(&t[i], NULL, share, NULL);
	for (int i = 0; i < n; i++)
		pthread_join(t[i], NULL);
	gss_delete_sec_context(&minor, &common.context, NULL);
	gss_release_cred(&minor, &common.cred);
	gss_release_name(&minor, &common.target);
	gss_release_name(&minor, &common.user);
}

/* ---- descriptors ---- */

static int own = -1; /* a socket that is the program's */

static void take(void)
{
	struct stat st;

	own = fcntl(socket(AF_UNIX, SOCK_STREAM, 0), F_DUPFD, 200);
	for (int fd = 3; fd < 200; fd++) {
		if (fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode))
			dup2(own, fd);
	}
}

static int descriptors(int n)
{
	struct rlimit limit;

	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = (rlim_t)n;
	for (int fd = n ? 200 : 0; fd < 200; fd++) {
		if (fcntl(fd, F_GETFD) < 0) {
			limit.rlim_cur = (rlim_t)fd;
			break;
		}
	}
	return setrlimit(RLIMIT_NOFILE, &limit);
}

/* store writes a handle into the default cache. */
static OM_uint32 store(void)
{
	OM_uint32 major, minor;
	gss_cred_id_t cred;

	major = gss_acquire_cred(&minor, GSS_C_NO_NAME, 0, (gss_OID_set)&krb5_only, GSS_C_INITIATE, &cred, NULL, NULL);
	if (!GSS_ERROR(major))
		major = gss_store_cred(&minor, cred, GSS_C_INITIATE, (gss_OID)&krb5, 1, 0, NULL, NULL);
	gss_release_cred(&minor, &cred);
	return major;
}

/* password acquires alice's credential with a password, which the real mechanism finds wrong. */
static OM_uint32 password(void)
{
	gss_key_value_element_desc element = { "password", "wrong" };
	gss_key_value_set_desc store_of = { 1, &element };
	gss_name_t user = name_of("alice@EXAMPLE.TEST", GSS_C_NT_USER_NAME);
	gss_cred_id_t cred = GSS_C_NO_CREDENTIAL;
	OM_uint32 major, minor;

	major = gss_acquire_cred_from(&minor, user, 0, (gss_OID_set)&krb5_only, GSS_C_INITIATE, &store_of, &cred, NULL, NULL);
	gss_release_cred(&minor, &cred);
	gss_release_name(&minor, &user);
	return major;
}

static int compare(void)
{
	gss_name_t names[2] = { name_of("alice", GSS_C_NT_USER_NAME), name_of("bob", GSS_C_NT_USER_NAME) }, canonical[2];
	OM_uint32 minor;
	int equal = -1;

	for (int i = 0; i < 2; i++) {
		gss_canonicalize_name(&minor, names[i], (gss_OID)&krb5, &canonical[i]);
		gss_release_name(&minor, &names[i]);
	}
	atomic_store(&passing, 8);
	gss_compare_name(&minor, canonical[0], canonical[1], &equal);
	atomic_store(&passing, 0);
	for (int i = 0; i < 2; i++)
		gss_release_name(&minor, &canonical[i]);
	return equal;
}

static void mechs(void)
{
	static const gss_OID_desc all_three[] = {
		{ 9, "\x2a\x86\x48\x86\xf7\x12\x01\x02\x02" }, { 9, "\x2a\x86\x48\x82\xf7\x12\x01\x02\x02" }, { 6, "\x2b\x06\x01\x05\x02\x05" },
	};
	gss_OID_set_desc set = { 3, (gss_OID)all_three };
	gss_cred_id_t cred = GSS_C_NO_CREDENTIAL;
	OM_uint32 minor;

	gss_acquire_cred(&minor, GSS_C_NO_NAME, 0, &set, GSS_C_INITIATE, &cred, NULL, NULL);
	for (int i = 0; cred && i < 3; i++) {
		gss_buffer_desc b = { 0, "" };
		gss_name_t name = GSS_C_NO_NAME;

		gss_inquire_cred_by_mech(&minor, cred, (gss_OID)&all_three[i], &name, NULL, NULL, NULL);
		if (name)
			gss_display_name(&minor, name, &b, NULL);
		printf("%s%.*s", i ? ", " : "", (int)b.length, (const char *)b.value);
		if (name)
			gss_release_buffer(&minor, &b);
		gss_release_name(&minor, &name);
	}
	puts("");
	gss_release_cred(&minor, &cred);
}

static OM_uint32 option(void)
{
	krb5_enctype aes[] = { ENCTYPE_AES256_CTS_HMAC_SHA1_96, 0 };
	OM_uint32 minor;

	return gss_krb5_set_allowable_enctypes(&minor, common.cred, 1, aes);
}

static OM_uint32 init_once(void)
{
	gss_name_t target = name_of("host@server.example.test", GSS_C_NT_HOSTBASED_SERVICE);
	OM_uint32 major = initiate(common.cred, target, 1), minor;

	gss_release_name(&minor, &target);
	return major;
}

static void *init_thread(void *unused)
{
	(void)unused;
	return (void *)(uintptr_t)(init_once() + 1);
}

int main(void)
{
	char line[256], word[64];
	int n;
	OM_uint32 minor;
	pthread_t thread;
	void *result;

	setvbuf(stdout, NULL, _IOLBF, 0);
	while (fgets(line, sizeof(line), stdin)) {
		n = 0;
		sscanf(line, "%63s %d", word, &n);
		if (strcmp(word, "all") == 0) {
			all();
			puts("ok");
		} else if (strcmp(word, "starve") == 0) {
			long i = 0;

			all(); /* what is only done once */
			do {
				atomic_store(&asked, 0);
				atomic_store(&refused, ++i);
				all();
			} while (atomic_load(&asked) >= i);
			atomic_store(&refused, 0);
			printf("ok %ld\n", i - 1);
		} else if (strcmp(word, "threads") == 0) {
			threads(n);
			puts("ok");
		} else if (strcmp(word, "leaks") == 0) {
#ifdef __SANITIZE_ADDRESS__
			puts(__lsan_do_recoverable_leak_check() ? "1" : "0");
#endif
		} else if (strcmp(word, "store") == 0) {
			printf("%#x\n", store());
		} else if (strcmp(word, "password") == 0) {
			printf("%#x\n", password());
		} else if (strcmp(word, "compare") == 0) {
			printf("%d\n", compare());
		} else if (strcmp(word, "acquire") == 0) {
			printf("%#x\n", gss_acquire_cred(&minor, GSS_C_NO_NAME, 0, (gss_OID_set)&krb5_only, GSS_C_INITIATE,
							 &common.cred, NULL, NULL));
		} else if (strcmp(word, "mechs") == 0) {
			mechs();
		} else if (strcmp(word, "option") == 0) {
			printf("%#x\n", option());
		} else if (strcmp(word, "init") == 0) {
			printf("%#x\n", init_once());
		} else if (strcmp(word, "begin") == 0) {
			pthread_create(&thread, NULL, init_thread, NULL);
			puts("ok");
		} else if (strcmp(word, "end") == 0) {
			pthread_join(thread, &result);
			printf("%#x\n", (OM_uint32)(uintptr_t)result - 1);
		} else if (strcmp(word, "cancel") == 0) {
			pthread_cancel(thread);
			puts("ok");
			pthread_join(thread, &result);
			puts(result == PTHREAD_CANCELED ? "canceled" : "ended");
		} else if (strcmp(word, "descriptors") == 0) {
			printf("%d\n", descriptors(n));
		} else if (strcmp(word, "take") == 0) {
			take();
			puts("ok");
		} else if (strcmp(word, "timeout") == 0) {
			struct timeval t = { 0 };
			socklen_t size = sizeof(t);

			getsockopt(own, SOL_SOCKET, SO_RCVTIMEO, &t, &size);
			printf("%lld.%06ld\n", (long long)t.tv_sec, (long)t.tv_usec);
		}
	}
	gss_release_cred(&minor, &common.cred);
	return 0;
}
