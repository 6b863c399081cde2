/*
 * The plugin's codec, for a test at the other end of a pipe: TYPE SIZE, a newline and that many bytes are viewed as the
 * type, and put again. The answer is OUTCOME READ SIZE, a newline and the bytes that were put. OUTCOME is ok, bad (it
 * could not be viewed) or long (it could not be put).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gss_proxy_xdr.h"

#define TYPES(X) \
	X(gssx_option) \
	X(gssx_name_attr) \
	X(gssx_status) \
	X(gssx_call_ctx) \
	X(gssx_name) \
	X(gssx_cred_element) \
	X(gssx_cred) \
	X(gssx_ctx) \
	X(gssx_cb) \
	X(gssx_arg_get_call_context) \
	X(gssx_res_get_call_context) \
	X(gssx_arg_import_and_canon_name) \
	X(gssx_res_import_and_canon_name) \
	X(gssx_arg_acquire_cred) \
	X(gssx_res_acquire_cred) \
	X(gssx_arg_init_sec_context) \
	X(gssx_res_init_sec_context) \
	X(gssx_arg_accept_sec_context) \
	X(gssx_res_accept_sec_context)

static _Noreturn void die(const char *why, const char *what)
{
	fprintf(stderr, "%s: %s\n", what, why);
	exit(1);
}

/* same dies if two views, which were different in every bit before, still are in a whole pointer: padding is less. */
static void same(const void *v, const void *other, size_t size, const char *name)
{
	for (size_t i = 0; i + sizeof(uintptr_t) <= size; i += sizeof(uintptr_t)) {
		uintptr_t a, b;

		memcpy(&a, (const char *)v + i, sizeof a);
		memcpy(&b, (const char *)other + i, sizeof b);
		if ((a ^ b) == UINTPTR_MAX)
			die("view leaves a field as it was", name);
	}
}

#define AGAIN(type) \
	static void again_##type(struct xdr_reader *r, struct xdr_writer *w) \
	{ \
		struct xdr_reader once_more = *r; \
		struct type v, other; \
		memset(&v, 0xa5, sizeof v); \
		memset(&other, 0x5a, sizeof other); \
		view_##type(r, &v); \
		view_##type(&once_more, &other); \
		same(&v, &other, sizeof v, #type); \
		put_##type(w, &v); \
	}
TYPES(AGAIN)

#define ENTRY(type) { #type, again_##type, skip_##type },
static const struct {
	const char *name;
	void (*again)(struct xdr_reader *r, struct xdr_writer *w);
	void (*skip)(struct xdr_reader *r);
} types[] = { TYPES(ENTRY) };

static void answer(const char *name, struct xdr_bytes in)
{
	struct xdr_reader r = xdr_reader_of(in), skipped = r;
	struct xdr_writer w = { 0 };
	size_t i = 0;

	while (strcmp(types[i].name, name) != 0)
		if (++i == sizeof types / sizeof *types)
			die("no such type", name);
	types[i].again(&r, &w);
	types[i].skip(&skipped);
	if (r.bad != skipped.bad || r.p != skipped.p)
		die("skip and view disagree", name);
	printf("%s %zu %zu\n", r.bad ? "bad" : w.failed ? "long" : "ok", (size_t)(r.p - in.p), w.n);
	fwrite(w.p, 1, w.n, stdout);
	fflush(stdout);
	xdr_writer_free(&w);
}

int main(void)
{
	char name[64];
	uint32_t n;

	while (scanf("%63s %u", name, &n) == 2 && getchar() == '\n') {
		uint8_t *p = malloc(n); /* of just that size, so that a read beyond it is seen */

		if (!p || fread(p, 1, n, stdin) != n)
			die("cut short", name);
		answer(name, (struct xdr_bytes){ p, n });
		free(p);
	}
	return 0;
}
