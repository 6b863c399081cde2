/*
 * accepts THREADS FIRST LAST FILE: accepts the tokens FIRST to LAST (the first is 0, LAST is not one of them) of FILE, each with its length
 * before it in 4 bytes, big endian. Each thread takes every THREADS-th of them. It waits for a line on its standard input
 * when it is ready and prints, when all are accepted, how long that took and what processor time the process has used
 * for it, both in nanoseconds. It is an ordinary program of libgssapi and knows nothing of a daemon.
 */
#include <gssapi/gssapi.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

static gss_buffer_desc *tokens;
static size_t first, last, threads;
static gss_cred_id_t cred = GSS_C_NO_CREDENTIAL;

static void die(const char *what, OM_uint32 major, OM_uint32 minor)
{
	OM_uint32 ignored, more = 0;
	gss_buffer_desc text;

	gss_display_status(&ignored, minor, GSS_C_MECH_CODE, GSS_C_NO_OID, &more, &text);
	fprintf(stderr, "accepts: %s: major %#x minor %u: %.*s\n", what, major, minor, (int)text.length, (char *)text.value);
	exit(1);
}

static void accept_token(gss_buffer_t token)
{
	gss_ctx_id_t context = GSS_C_NO_CONTEXT;
	gss_buffer_desc reply = GSS_C_EMPTY_BUFFER;
	gss_name_t source = GSS_C_NO_NAME;
	OM_uint32 major, minor, flags;

	major = gss_accept_sec_context(&minor, &context, cred, token, GSS_C_NO_CHANNEL_BINDINGS, &source, NULL, &reply, &flags,
				       NULL, NULL);
	if (major != GSS_S_COMPLETE)
		die("accept", major, minor);
	gss_release_name(&minor, &source);
	gss_release_buffer(&minor, &reply);
	gss_delete_sec_context(&minor, &context, GSS_C_NO_BUFFER);
}

static void *run(void *which)
{
	size_t i;

	for (i = first + (size_t)(uintptr_t)which; i < last; i += threads)
		accept_token(&tokens[i]);
	return NULL;
}

static int64_t now(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static void read_tokens(const char *name)
{
	FILE *f = fopen(name, "r");
	unsigned char head[4];
	size_t n = 0, cap = 0;

	if (f == NULL) {
		perror(name);
		exit(1);
	}
	while (fread(head, 1, 4, f) == 4) {
		if (n == cap && (tokens = realloc(tokens, (cap = 2 * cap + 64) * sizeof(*tokens))) == NULL)
			abort();
		tokens[n].length = (size_t)head[0] << 24 | head[1] << 16 | head[2] << 8 | head[3];
		if ((tokens[n].value = malloc(tokens[n].length)) == NULL ||
		    fread(tokens[n].value, 1, tokens[n].length, f) != tokens[n].length)
			abort();
		n++;
	}
	fclose(f);
	if (last > n) {
		fprintf(stderr, "accepts: %s has %zu tokens\n", name, n);
		exit(1);
	}
}

int main(int argc, char **argv)
{
	pthread_t *id;
	OM_uint32 major, minor;
	int64_t wall, cpu;
	size_t i;

	if (argc != 5)
		return 2;
	threads = strtoul(argv[1], NULL, 10);
	first = strtoul(argv[2], NULL, 10);
	last = strtoul(argv[3], NULL, 10);
	read_tokens(argv[4]);
	id = calloc(threads, sizeof(*id));
	major = gss_acquire_cred(&minor, GSS_C_NO_NAME, GSS_C_INDEFINITE, GSS_C_NO_OID_SET, GSS_C_ACCEPT, &cred, NULL, NULL);
	if (major != GSS_S_COMPLETE)
		die("acquire", major, minor);
	printf("ready\n");
	fflush(stdout);
	if (getchar() == EOF)
		return 1;
	wall = now(CLOCK_MONOTONIC);
	cpu = now(CLOCK_PROCESS_CPUTIME_ID);
	for (i = 0; i < threads; i++)
		if (pthread_create(&id[i], NULL, run, (void *)(uintptr_t)i) != 0)
			abort();
	for (i = 0; i < threads; i++)
		pthread_join(id[i], NULL);
	printf("%lld %lld\n", (long long)(now(CLOCK_MONOTONIC) - wall), (long long)(now(CLOCK_PROCESS_CPUTIME_ID) - cpu));
	return 0;
}
