/*
 * Handles in caches, with the plugin's own functions. CACHE may be "-": the default one.
 *
 *     ccache read CACHE                               prints the handle's reference, or "none"
 *     ccache store CACHE WHEN PRINCIPAL REFERENCE     prints "ok", "duplicate", "unavailable" or "failed", and why;
 *                                                     WHEN is new, sync, add or replace, and "default" may follow
 *     ccache cold CACHE PRINCIPAL THREADS             all begin at once without a cache: each writes a new one and reads
 *     ccache sync CACHE PRINCIPAL THREADS             over a handle, each writes and reads, again and again
 *
 * The last two print how often no handle was read. When the environment has EXCHANGE=DIR, DIR and DIR.other are exchanged
 * before a new file is made.
 */
#include "plugin.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROUNDS 200

static const char *cache, *principal;
static pthread_barrier_t barrier;
static atomic_int lost;

int __real_mkostemp(char *path, int flags);
int __wrap_mkostemp(char *path, int flags);

int __wrap_mkostemp(char *path, int flags)
{
	const char *dir = getenv("EXCHANGE");
	char other[512];

	if (dir) {
		snprintf(other, sizeof(other), "%s.other", dir);
		if (renameat2(AT_FDCWD, dir, AT_FDCWD, other, RENAME_EXCHANGE) != 0)
			abort();
	}
	return __real_mkostemp(path, flags);
}

static struct xdr_bytes text(const char *s)
{
	return (struct xdr_bytes){ (const uint8_t *)s, (uint32_t)strlen(s) };
}

static struct handle *handle(const char *name, const char *reference)
{
	struct gssx_cred x = { .desired_name.display_name = text(name), .cred_handle_reference = text(reference) };
	struct xdr_writer w = { 0 };
	struct handle *h;

	put_gssx_cred(&w, &x);
	h = handle_of((struct xdr_bytes){ w.p, (uint32_t)w.n });
	xdr_writer_free(&w);
	if (!h)
		abort();
	return h;
}

static struct handle *look(void)
{
	OM_uint32 minor;
	struct handle *h;

	if (ccache_handle(&minor, cache, &h) != GSS_S_COMPLETE)
		abort();
	return h;
}

static const char *outcome(OM_uint32 major)
{
	switch (major) {
	case GSS_S_COMPLETE:
		return "ok";
	case GSS_S_DUPLICATE_ELEMENT:
		return "duplicate";
	case GSS_S_UNAVAILABLE:
		return "unavailable";
	}
	return "failed";
}

/* store takes h. */
static OM_uint32 store(OM_uint32 *minor, struct handle *h, enum ccache_when when, bool make_default)
{
	OM_uint32 major = ccache_store(minor, cache, h, when, make_default);

	handle_drop(h);
	return major;
}

static void must_read(void)
{
	struct handle *h = look();

	if (!h)
		atomic_fetch_add(&lost, 1);
	handle_drop(h);
}

static void *cold(void *reference)
{
	OM_uint32 minor;

	pthread_barrier_wait(&barrier);
	store(&minor, handle(principal, reference), CCACHE_NEW, false); /* one of them is the first */
	must_read();
	return NULL;
}

static void *sync_again(void *reference)
{
	OM_uint32 minor;

	pthread_barrier_wait(&barrier);
	for (int i = 0; i < ROUNDS; i++) {
		store(&minor, handle(principal, reference), CCACHE_SYNC, false);
		must_read();
	}
	return NULL;
}

static int threads(void *(*run)(void *), unsigned int n)
{
	pthread_t *t = calloc(n, sizeof(*t));
	char (*name)[16] = calloc(n, sizeof(*name));

	pthread_barrier_init(&barrier, NULL, n);
	for (unsigned int i = 0; i < n; i++) {
		snprintf(name[i], sizeof(name[i]), "%u", i);
		pthread_create(&t[i], NULL, run, name[i]);
	}
	for (unsigned int i = 0; i < n; i++)
		pthread_join(t[i], NULL);
	free(name);
	free(t);
	printf("%d\n", atomic_load(&lost));
	return 0;
}

static int usage(void)
{
	fprintf(stderr, "usage: ccache read|store|cold|sync CACHE ...\n");
	return 2;
}

int main(int argc, char **argv)
{
	static const char *const words[] = { "new", "sync", "add", "replace" };
	OM_uint32 minor;

	if (argc < 3)
		return usage();
	cache = strcmp(argv[2], "-") == 0 ? NULL : argv[2];
	if (strcmp(argv[1], "read") == 0) {
		struct handle *h = look();

		if (h) {
			struct xdr_reader r = xdr_reader_of(handle_bytes(h));
			struct gssx_cred x;

			view_gssx_cred(&r, &x);
			printf("%.*s\n", (int)x.cred_handle_reference.n, (const char *)x.cred_handle_reference.p);
		} else {
			printf("none\n");
		}
		handle_drop(h);
		return 0;
	}
	if (strcmp(argv[1], "store") == 0 && argc >= 6) {
		char why[512] = "";
		OM_uint32 major = GSS_S_FAILURE;

		for (int when = 0; when < 4; when++) {
			if (strcmp(argv[3], words[when]) == 0)
				major = store(&minor, handle(argv[4], argv[5]), (enum ccache_when)when, argc == 7);
		}
		if (major != GSS_S_COMPLETE)
			minor_text(minor, why, sizeof(why));
		printf("%s%s%s\n", outcome(major), *why ? ": " : "", why);
		return 0;
	}
	if (argc != 5)
		return usage();
	principal = argv[3];
	if (strcmp(argv[1], "cold") == 0)
		return threads(cold, (unsigned int)atoi(argv[4]));
	if (store(&minor, handle(principal, "first"), CCACHE_REPLACE, false) != GSS_S_COMPLETE)
		return 1;
	return threads(sync_again, (unsigned int)atoi(argv[4]));
}
