/*
 * A program that calls the daemon through the plugin's transport, as its standard input says, a command a line, and answers
 * each with a line. transport_test.go plays the daemon, which answers a call with the bytes it was called with.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "plugin.h"

OM_uint32 gssi_display_status(OM_uint32 *minor, OM_uint32 value, int type, gss_OID mech, OM_uint32 *message_context,
	gss_buffer_t status);

enum { IN = 20, OUT = 21 }; /* where standard input and output are kept: the test closes 0 to 2 */

static FILE *out;

static const char *display(OM_uint32 code, char *text, size_t size)
{
	gss_buffer_desc b = GSS_C_EMPTY_BUFFER;
	OM_uint32 minor, context = 0;

	snprintf(text, size, "no text");
	if (!GSS_ERROR(gssi_display_status(&minor, code, GSS_C_MECH_CODE, GSS_C_NO_OID, &context, &b)))
		snprintf(text, size, "%.*s", (int)b.length, (char *)b.value);
	gss_release_buffer(&minor, &b);
	return text;
}

/* call makes a call, and checks that the answer is to it. It returns a minor status, 0 for none. */
static OM_uint32 call(enum gssproxy_proc proc, struct deadline *deadline, uint32_t n)
{
	uint8_t *bytes = calloc(1, n + 1);
	struct xdr_bytes sent = { bytes, n }, got;
	struct xdr_writer w;
	struct answer a;
	OM_uint32 minor;

	for (uint32_t i = 0; i < n; i++)
		bytes[i] = (uint8_t)(i + (uint32_t)getpid() + (uint32_t)gettid());
	rpc_begin(&w, proc);
	xdr_put_opaque(&w, sent);
	if (!GSS_ERROR(rpc_call(&minor, &w, proc, deadline, &a))) {
		got = xdr_get_opaque(&a.results);
		if (a.results.bad || got.n != n || memcmp(got.p, bytes, n) != 0)
			garbled(&minor);
		answer_free(&a);
	}
	free(bytes);
	return minor;
}

static void say(OM_uint32 minor)
{
	char text[8192];

	if (minor == 0)
		fprintf(out, "ok\n");
	else
		fprintf(out, "%s\n", display(minor, text, sizeof text));
}

struct work {
	enum gssproxy_proc proc;
	int calls;
	atomic_int failed, stop;
	char why[512]; /* of the first that failed */
};

static void *work(void *p)
{
	struct work *w = p;

	for (int i = 0; i < w->calls && !w->stop; i++) {
		struct deadline deadline = { 0 };
		OM_uint32 minor = call(w->proc, &deadline, 100);

		if (minor != 0 && atomic_fetch_add(&w->failed, 1) == 0)
			display(minor, w->why, sizeof w->why);
	}
	return NULL;
}

static void threads(struct work *w, pthread_t *t, int n)
{
	for (int i = 0; i < n; i++) {
		if (pthread_create(&t[i], NULL, work, w) != 0)
			abort();
	}
}

static void join(pthread_t *t, int n)
{
	for (int i = 0; i < n; i++)
		pthread_join(t[i], NULL);
}

/* sockets lists the descriptors that are sockets. */
static int sockets(int *fds, int max)
{
	int n = 0;

	for (int fd = 0; fd < 256; fd++) {
		struct stat st;

		if (fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode) && n < max)
			fds[n++] = fd;
	}
	return n;
}

static void print_sockets(void)
{
	int fds[64], n = sockets(fds, 64);

	fprintf(out, "sockets:");
	for (int i = 0; i < n; i++)
		fprintf(out, " %d", fds[i]);
	fprintf(out, "\n");
}

/* forks lets children call while threads do. The parent waits for each. */
static void forks(int n)
{
	struct work w = { .proc = GSSX_INIT_SEC_CONTEXT, .calls = 1 << 30 };
	pthread_t t[4];
	int good = 0, most = 0;

	threads(&w, t, 4);
	for (int i = 0; i < n; i++) {
		struct deadline deadline = { 0 };
		int status, fds[64];
		pid_t child = fork();

		if (child == 0) {
			if (call(GSSX_ACCEPT_SEC_CONTEXT, &deadline, 100) != 0)
				_exit(1);
			_exit(100 + sockets(fds, 64));
		}
		if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status))
			continue;
		if (WEXITSTATUS(status) > most)
			most = WEXITSTATUS(status);
		good += WEXITSTATUS(status) >= 100;
	}
	w.stop = 1;
	join(t, 4);
	fprintf(out, "%d children, %d sockets at most, %d calls failed\n", good, most - 100, w.failed);
}

/* The program's own sockets, in place of those of the plugin which it has closed. */
static struct {
	int fd, peer;
	ino_t ino;
} taken[64];
static int takes;

static void take_descriptors(void)
{
	int fds[64], n = sockets(fds, 64);

	for (takes = 0; takes < n; takes++) {
		struct stat st;
		int pair[2];

		close(fds[takes]);
		if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0)
			abort();
		taken[takes].fd = fds[takes];
		taken[takes].peer = fcntl(pair[1], F_DUPFD, 100);
		close(pair[1]);
		if (pair[0] != fds[takes]) {
			dup2(pair[0], fds[takes]);
			close(pair[0]);
		}
		fstat(fds[takes], &st);
		taken[takes].ino = st.st_ino;
	}
	fprintf(out, "%d taken\n", takes);
}

static void check_taken(void)
{
	for (int i = 0; i < takes; i++) {
		struct stat st;
		char c;

		if (fstat(taken[i].fd, &st) != 0 || st.st_ino != taken[i].ino)
			fprintf(out, "%d is not ours any more, ", taken[i].fd);
		if (recv(taken[i].peer, &c, 1, MSG_DONTWAIT) != -1 || errno != EAGAIN)
			fprintf(out, "%d got something, ", taken[i].fd);
	}
	fprintf(out, "%d checked\n", takes);
}

static struct xdr_bytes bytes(const char *s, size_t n)
{
	return (struct xdr_bytes){ (const uint8_t *)s, (uint32_t)n };
}

/* texts says what display_status says of different failures. */
static void texts(void)
{
	struct gssx_status status = { 0 };
	OM_uint32 minor, local, old, both;
	char text[8192];

#define STRING(s) bytes(s, sizeof(s)) /* with its NUL */
	status.major_status = GSS_S_NO_CRED;
	status.minor_status = 0x96c73a25;
	status.major_status_string = STRING("no credentials");
	status.minor_status_string = STRING("no \x1b[31mkey\nfor you");
	fprintf(out, "%#x ", refused(&minor, &status));
	fprintf(out, "%#x %s|", minor, display(minor, text, sizeof text));
	status.minor_status = 0;
	status.minor_status_string = STRING("");
	refused(&minor, &status);
	fprintf(out, "%s|", display(minor, text, sizeof text));
	status.major_status = GSS_S_CONTINUE_NEEDED;
	fprintf(out, "%#x ", refused(&minor, &status));
	fprintf(out, "%#x|", minor);
	fail(&local, 0, "one");
	fail(&old, 0, "two");
	both_failed(&both, local, old);
	fprintf(out, "%s|", display(both, text, sizeof text));
	fprintf(out, "%s|", display(ENOENT, text, sizeof text));
	snprintf(text, sizeof text, "seen: ");
	minor_text(old, text, 9);
	fprintf(out, "%s|", text);
	for (int i = 0; i < 8; i++)
		fail(&minor, 0, "newer");
	fprintf(out, "%s|", display(minor, text, sizeof text));
	fprintf(out, "%s\n", display(old, text, sizeof text));
}

static void run(const char *command)
{
	static struct deadline last;
	char what[32] = "";
	int a = 0, b = 0, c = 0;

	sscanf(command, "%31s %d %d %d", what, &a, &b, &c);
	if (strcmp(what, "call") == 0) { /* procedure, bytes */
		last.at = 0;
		say(call((enum gssproxy_proc)a, &last, (uint32_t)b));
	} else if (strcmp(what, "again") == 0) { /* in the same GSS call */
		say(call((enum gssproxy_proc)a, &last, (uint32_t)b));
	} else if (strcmp(what, "threads") == 0) { /* procedure, calls, threads */
		struct work w = { .proc = (enum gssproxy_proc)a, .calls = b };
		pthread_t t[64];

		threads(&w, t, c);
		join(t, c);
		fprintf(out, "%d failed %s\n", w.failed, w.why);
	} else if (strcmp(what, "sockets") == 0) {
		print_sockets();
	} else if (strcmp(what, "forks") == 0) {
		forks(a);
	} else if (strcmp(what, "take") == 0) {
		take_descriptors();
	} else if (strcmp(what, "taken") == 0) {
		check_taken();
	} else if (strcmp(what, "seteuid") == 0) {
		fprintf(out, "%d\n", seteuid((uid_t)a));
	} else if (strcmp(what, "unstdio") == 0) {
		fprintf(out, "%d\n", close(0) + close(1) + close(2));
	} else if (strcmp(what, "exec") == 0) {
		pid_t child = vfork(); /* unlike fork it tells nobody */

		if (child == 0) {
			execl("/proc/self/exe", "transport", "sockets", NULL);
			_exit(1);
		}
		waitpid(child, NULL, 0);
	} else if (strcmp(what, "texts") == 0) {
		texts();
	} else {
		fprintf(out, "what?\n");
	}
}

int main(int argc, char **argv)
{
	char line[256];
	FILE *in;

	if (argc > 1) { /* executed by ourselves */
		out = fdopen(OUT, "w");
		run(argv[1]);
		return fclose(out) != 0;
	}
	if (dup2(0, IN) < 0 || dup2(1, OUT) < 0)
		return 1;
	in = fdopen(IN, "r");
	out = fdopen(OUT, "w");
	while (fgets(line, sizeof line, in)) {
		run(line);
		fflush(out);
	}
	return 0;
}
