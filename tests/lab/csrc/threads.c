/*
 * threads: what a program with threads, children and descriptors of its own does to the plugin, for the tests.
 *
 *   accept N TOKEN         N threads accept the token (hex) at once: a line "MAJOR MILLISECONDS TEXT" each
 *   behind TARGET TOKEN    a thread initiates; when a line comes on stdin, another says "accepting THREAD" and accepts.
 *                          "initiated MAJOR TEXT" and "accepted MAJOR TEXT" as they end
 *   fork N SECONDS         a thread acquires a credential; when a line comes on stdin, N children do, and the process says
 *                          "well W badly B hanging H" as soon as all have ended or the time is up
 *   exec PROGRAM ARG...    acquires a credential, and becomes the program
 *   steal                  closes the plugin's descriptor, has a socket of its own there, acquires again, and again in a
 *                          child: "bytes N open O well W child: open O well W"
 *   twice                  acquires a credential, and again when a line comes on stdin: "MAJOR TEXT" each
 *   busy N TARGET          N threads acquire a credential, initiate with it and canonicalize a name, again and again until
 *                          stdin ends: "MAJOR TEXT" of each call that fails, and "calls N" for each line on stdin
 *   lifetime               what an initiator's credential is said to live: when it is acquired, and when it is inquired
 *   cold N TARGET          N threads acquire a credential and initiate at once: a line "MAJOR TEXT" each
 *   shared N ROUNDS TARGET N threads, an even number, with the same credentials and names: each initiates and accepts, two
 *                          use each context for the first time at once, and name its ends. "MAJOR TEXT" of each call that
 *                          fails, and "calls N"
 *   forked N ROUNDS TARGET the same, with a child of the first thread in each round that calls too
 *
 * Credentials are the default ones, and acceptors' but for the last five.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <gssapi/gssapi.h>
#include <gssapi/gssapi_krb5.h>

static gss_OID_desc krb5_oid = { 9, "\x2a\x86\x48\x86\xf7\x12\x01\x02\x02" };
static gss_OID_set_desc krb5_only = { 1, &krb5_oid };
static pthread_mutex_t output = PTHREAD_MUTEX_INITIALIZER;

static void die(const char *what)
{
	fprintf(stderr, "threads: %s\n", what);
	exit(2);
}

/* append_status appends the texts of a status to text. */
static void append_status(char *text, size_t size, OM_uint32 code, int type)
{
	OM_uint32 min, more = 0;
	gss_buffer_desc b;

	do {
		if (GSS_ERROR(gss_display_status(&min, code, type, &krb5_oid, &more, &b)))
			return;
		snprintf(text + strlen(text), size - strlen(text), " %.*s", (int)b.length, (char *)b.value);
		gss_release_buffer(&min, &b);
	} while (more != 0);
}

/* say writes a line: the words, the major status, and if that is an error its texts. */
static void say(const char *words, OM_uint32 maj, OM_uint32 min)
{
	char text[2000] = "";

	if (GSS_ERROR(maj)) {
		append_status(text, sizeof(text), maj, GSS_C_GSS_CODE);
		append_status(text, sizeof(text), min, GSS_C_MECH_CODE);
	}
	pthread_mutex_lock(&output);
	printf("%s%u%s\n", words, maj, text);
	fflush(stdout);
	pthread_mutex_unlock(&output);
}

static void wait_for_line(void)
{
	int c;

	do {
		c = getchar();
		if (c == EOF)
			die("no more lines");
	} while (c != '\n');
}

static gss_buffer_desc unhex(const char *hex)
{
	gss_buffer_desc b = { strlen(hex) / 2, malloc(strlen(hex) / 2 + 1) };
	unsigned int byte;
	size_t i;

	for (i = 0; i < b.length; i++) {
		if (sscanf(hex + 2 * i, "%2x", &byte) != 1)
			die("bad hex");
		((unsigned char *)b.value)[i] = byte;
	}
	return b;
}

static OM_uint32 acquire(OM_uint32 *min, gss_cred_usage_t usage, gss_cred_id_t *cred)
{
	return gss_acquire_cred(min, GSS_C_NO_NAME, GSS_C_INDEFINITE, &krb5_only, usage, cred, NULL, NULL);
}

/* acquire_once acquires an acceptor's credential and releases it. */
static OM_uint32 acquire_once(OM_uint32 *min)
{
	gss_cred_id_t cred = GSS_C_NO_CREDENTIAL;
	OM_uint32 maj = acquire(min, GSS_C_ACCEPT, &cred), ignored;

	gss_release_cred(&ignored, &cred);
	return maj;
}

static OM_uint32 accept_token(OM_uint32 *min, gss_buffer_t token)
{
	gss_ctx_id_t ctx = GSS_C_NO_CONTEXT;
	gss_buffer_desc out = GSS_C_EMPTY_BUFFER;
	OM_uint32 maj, ignored;

	maj = gss_accept_sec_context(min, &ctx, GSS_C_NO_CREDENTIAL, token, GSS_C_NO_CHANNEL_BINDINGS, NULL, NULL, &out,
				     NULL, NULL, NULL);
	gss_release_buffer(&ignored, &out);
	gss_delete_sec_context(&ignored, &ctx, NULL);
	return maj;
}

static OM_uint32 initiate(OM_uint32 *min, gss_cred_id_t cred, const char *target)
{
	gss_ctx_id_t ctx = GSS_C_NO_CONTEXT;
	gss_buffer_desc name = { strlen(target), (void *)target }, out = GSS_C_EMPTY_BUFFER;
	gss_name_t to;
	OM_uint32 maj, ignored;

	if (GSS_ERROR(gss_import_name(&ignored, &name, GSS_C_NT_HOSTBASED_SERVICE, &to)))
		die("cannot import the name");
	maj = gss_init_sec_context(min, cred, &ctx, to, &krb5_oid, 0, 0, GSS_C_NO_CHANNEL_BINDINGS, GSS_C_NO_BUFFER,
				   NULL, &out, NULL, NULL);
	gss_release_buffer(&ignored, &out);
	gss_release_name(&ignored, &to);
	gss_delete_sec_context(&ignored, &ctx, NULL);
	return maj;
}

static long milliseconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Threads that start at once. */
static pthread_barrier_t barrier;
static gss_buffer_desc token;
static const char *target;

static void run_threads(int n, void *(*run)(void *))
{
	pthread_t *threads = calloc(n, sizeof(*threads));
	int i;

	pthread_barrier_init(&barrier, NULL, n);
	for (i = 0; i < n; i++)
		if (pthread_create(&threads[i], NULL, run, NULL) != 0)
			die("no thread");
	for (i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	free(threads);
}

static void *accepting(void *unused)
{
	char text[2000] = "";
	OM_uint32 maj, min;
	long start;

	(void)unused;
	pthread_barrier_wait(&barrier);
	start = milliseconds();
	maj = accept_token(&min, &token);
	start = milliseconds() - start;
	append_status(text, sizeof(text), min, GSS_C_MECH_CODE);
	pthread_mutex_lock(&output);
	printf("%u %ld%s\n", maj, start, text);
	pthread_mutex_unlock(&output);
	return NULL;
}

static void *starting_cold(void *unused)
{
	gss_cred_id_t cred = GSS_C_NO_CREDENTIAL;
	OM_uint32 maj, min, ignored;

	(void)unused;
	pthread_barrier_wait(&barrier);
	maj = acquire(&min, GSS_C_INITIATE, &cred);
	if (!GSS_ERROR(maj))
		maj = initiate(&min, cred, target);
	say("", maj, min);
	gss_release_cred(&ignored, &cred);
	return NULL;
}

static void *initiating(void *unused)
{
	OM_uint32 maj, min;

	(void)unused;
	maj = initiate(&min, GSS_C_NO_CREDENTIAL, target);
	say("initiated ", maj, min);
	return NULL;
}

static void behind(void)
{
	OM_uint32 maj, min;
	pthread_t other;

	if (pthread_create(&other, NULL, initiating, NULL) != 0)
		die("no thread");
	wait_for_line();
	say("accepting ", gettid(), 0);
	maj = accept_token(&min, &token);
	say("accepted ", maj, min);
	pthread_join(other, NULL);
}

static void *acquiring(void *unused)
{
	OM_uint32 min;

	(void)unused;
	acquire_once(&min);
	return NULL;
}

static void forks(int n, int seconds)
{
	pid_t *children = calloc(n, sizeof(*children));
	int i, well = 0, badly = 0, status;
	long until;
	pthread_t other;

	if (pthread_create(&other, NULL, acquiring, NULL) != 0)
		die("no thread");
	wait_for_line();
	for (i = 0; i < n; i++) {
		children[i] = fork();
		if (children[i] == 0) {
			OM_uint32 min;

			_exit(GSS_ERROR(acquire_once(&min)) != 0);
		}
	}
	until = milliseconds() + seconds * 1000L;
	while (well + badly < n && milliseconds() < until) {
		for (i = 0; i < n; i++) {
			if (children[i] == 0 || waitpid(children[i], &status, WNOHANG) <= 0)
				continue;
			children[i] = 0;
			if (status == 0)
				well++;
			else
				badly++;
		}
		usleep(1000);
	}
	for (i = 0; i < n; i++)
		if (children[i] != 0)
			kill(children[i], SIGKILL);
	printf("well %d badly %d hanging %d\n", well, badly, n - well - badly);
	fflush(stdout);
	_exit(0);
}

/* Descriptors that are the program's own. */
#define DESCRIPTORS 1024
static char own[DESCRIPTORS];

static void note_own(void)
{
	int fd;

	for (fd = 0; fd < DESCRIPTORS; fd++)
		own[fd] = fcntl(fd, F_GETFD) >= 0;
}

/* plugins_descriptor is the one that is connected to a Unix socket and is not the program's own. */
static int plugins_descriptor(void)
{
	int fd;

	for (fd = 3; fd < DESCRIPTORS; fd++) {
		struct sockaddr_un address;
		socklen_t size = sizeof(address);

		if (!own[fd] && getpeername(fd, (struct sockaddr *)&address, &size) == 0 && address.sun_family == AF_UNIX)
			return fd;
	}
	die("no descriptor is connected to the daemon");
	return -1;
}

static int same_file(int fd, const struct stat *was)
{
	struct stat is;

	return fstat(fd, &is) == 0 && is.st_dev == was->st_dev && is.st_ino == was->st_ino;
}

/* listening counts what comes in on the program's own socket, and hangs up, so that nobody waits for an answer. */
static void *listening(void *arg)
{
	static char buffer[65536];
	int fd = *(int *)arg;
	static long n;

	n = recv(fd, buffer, sizeof(buffer), 0);
	shutdown(fd, SHUT_RDWR);
	return &n;
}

static void steal(void)
{
	OM_uint32 min;
	struct stat was;
	int fd, pair[2], well, open, status;
	pthread_t listener;
	pid_t child;
	void *n;

	signal(SIGPIPE, SIG_IGN);
	note_own();
	if (GSS_ERROR(acquire_once(&min)))
		die("cannot acquire");
	fd = plugins_descriptor();
	close(fd);
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0)
		die("no pair");
	if (pair[0] != fd) {
		if (dup2(pair[0], fd) != fd)
			die("cannot have the number");
		close(pair[0]);
	}
	fstat(fd, &was);
	note_own();
	if (pthread_create(&listener, NULL, listening, &pair[1]) != 0)
		die("no thread");
	well = !GSS_ERROR(acquire_once(&min));
	if (GSS_ERROR(acquire_once(&min)))
		die("cannot acquire any more");
	open = same_file(fd, &was);
	if (open)
		shutdown(fd, SHUT_WR);	/* the listener has an end if nothing came */
	else
		shutdown(pair[1], SHUT_RD);
	pthread_join(listener, &n);
	printf("bytes %ld open %d well %d", *(long *)n, open, well);
	fflush(stdout);

	/* Again, for a child: the process has a connection, and the child has it closed. */
	own[fd] = open;
	fd = plugins_descriptor();
	child = fork();
	if (child == 0) {
		close(fd);
		if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0)
			die("no pair");
		if (pair[0] != fd && dup2(pair[0], fd) != fd)
			die("cannot have the number");
		fstat(fd, &was);
		well = !GSS_ERROR(acquire_once(&min));
		printf(" child: open %d well %d\n", same_file(fd, &was), well);
		fflush(stdout);
		_exit(0);
	}
	waitpid(child, &status, 0);
	if (status != 0)
		die("the child has died");
}

static void twice(void)
{
	OM_uint32 maj, min;

	maj = acquire_once(&min);
	say("", maj, min);
	wait_for_line();
	maj = acquire_once(&min);
	say("", maj, min);
}

static atomic_int stop, calls;

static void tell(OM_uint32 maj, OM_uint32 min)
{
	calls++;
	if (GSS_ERROR(maj))
		say("", maj, min);
}

static void *being_busy(void *unused)
{
	gss_buffer_desc text = { strlen(target), (void *)target };

	(void)unused;
	while (!stop) {
		gss_cred_id_t cred = GSS_C_NO_CREDENTIAL;
		gss_name_t name = GSS_C_NO_NAME, canonical = GSS_C_NO_NAME;
		OM_uint32 maj, min, ignored;

		maj = acquire(&min, GSS_C_INITIATE, &cred);
		tell(maj, min);
		if (!GSS_ERROR(maj)) {
			maj = initiate(&min, cred, target);
			tell(maj, min);
		}
		if (GSS_ERROR(gss_import_name(&ignored, &text, GSS_C_NT_HOSTBASED_SERVICE, &name)))
			die("cannot import the name");
		maj = gss_canonicalize_name(&min, name, &krb5_oid, &canonical);
		tell(maj, min);
		gss_release_name(&ignored, &name);
		gss_release_name(&ignored, &canonical);
		gss_release_cred(&ignored, &cred);
	}
	return NULL;
}

/* counting answers lines with how many calls there were, and stops the threads when there are no more. */
static void *counting(void *unused)
{
	int c;

	(void)unused;
	while ((c = getchar()) != EOF) {
		if (c != '\n')
			continue;
		pthread_mutex_lock(&output);
		printf("calls %d\n", calls);
		fflush(stdout);
		pthread_mutex_unlock(&output);
	}
	stop = 1;
	return NULL;
}

static void lifetime(void)
{
	gss_cred_id_t cred = GSS_C_NO_CREDENTIAL;
	OM_uint32 maj, min, acquired = 0, inquired = 0, by_mech = 0;

	maj = gss_acquire_cred(&min, GSS_C_NO_NAME, GSS_C_INDEFINITE, &krb5_only, GSS_C_INITIATE, &cred, NULL, &acquired);
	if (!GSS_ERROR(maj))
		maj = gss_inquire_cred(&min, cred, NULL, &inquired, NULL, NULL);
	if (!GSS_ERROR(maj))
		maj = gss_inquire_cred_by_mech(&min, cred, &krb5_oid, NULL, &by_mech, NULL, NULL);
	if (GSS_ERROR(maj))
		say("", maj, min);
	else
		printf("acquired %u inquired %u by mech %u\n", acquired, inquired, by_mech);
}

/* What all threads share, and a context of each for each side. */
static gss_cred_id_t initiator, acceptor;
static gss_name_t target_name;
static struct end {
	gss_ctx_id_t initiated, accepted;
	gss_name_t source;
	pthread_mutex_t wrapping; /* libk5crypto counts the uses of a context's keys without a lock */
} *ends;
static int rounds, forking;

/* establish makes a thread's context, by both of its ends. */
static void establish(struct end *e)
{
	gss_buffer_desc first = GSS_C_EMPTY_BUFFER, reply = GSS_C_EMPTY_BUFFER, none = GSS_C_EMPTY_BUFFER;
	OM_uint32 maj, min, ignored;

	maj = gss_init_sec_context(&min, initiator, &e->initiated, target_name, &krb5_oid, GSS_C_MUTUAL_FLAG | GSS_C_CONF_FLAG, 0,
				   GSS_C_NO_CHANNEL_BINDINGS, GSS_C_NO_BUFFER, NULL, &first, NULL, NULL);
	tell(maj, min);
	if (!GSS_ERROR(maj)) {
		maj = gss_accept_sec_context(&min, &e->accepted, acceptor, &first, GSS_C_NO_CHANNEL_BINDINGS, &e->source, NULL,
					     &reply, NULL, NULL, NULL);
		tell(maj, min);
	}
	if (!GSS_ERROR(maj)) {
		maj = gss_init_sec_context(&min, initiator, &e->initiated, target_name, &krb5_oid,
					   GSS_C_MUTUAL_FLAG | GSS_C_CONF_FLAG, 0, GSS_C_NO_CHANNEL_BINDINGS, &reply, NULL, &none,
					   NULL, NULL);
		tell(maj, min);
	}
	gss_release_buffer(&ignored, &first);
	gss_release_buffer(&ignored, &reply);
	gss_release_buffer(&ignored, &none);
}

/* use calls with a context, as another thread does at the same time. */
static void use(struct end *e)
{
	gss_buffer_desc message = { 5, "hello" }, wrapped = GSS_C_EMPTY_BUFFER, out = GSS_C_EMPTY_BUFFER, shown = GSS_C_EMPTY_BUFFER;
	gss_name_t name = GSS_C_NO_NAME, copy = GSS_C_NO_NAME;
	OM_uint32 maj, min, ignored;
	int equal = 0, open = 0;

	maj = gss_inquire_context(&min, e->initiated, NULL, NULL, NULL, NULL, NULL, NULL, &open);
	tell(maj, min);
	if (!open)
		say("not open ", GSS_S_FAILURE, 0);
	pthread_mutex_lock(&e->wrapping);
	maj = gss_wrap(&min, e->initiated, 1, GSS_C_QOP_DEFAULT, &message, NULL, &wrapped);
	tell(maj, min);
	if (!GSS_ERROR(maj)) {
		maj = gss_unwrap(&min, e->accepted, &wrapped, &out, NULL, NULL);
		tell(maj, min);
	}
	pthread_mutex_unlock(&e->wrapping);
	if (!GSS_ERROR(maj) && (out.length != message.length || memcmp(out.value, message.value, out.length) != 0))
		say("another message ", GSS_S_FAILURE, 0);
	maj = gss_inquire_context(&min, e->accepted, &name, NULL, NULL, NULL, NULL, NULL, NULL);
	tell(maj, min);
	maj = gss_compare_name(&min, name, e->source, &equal);
	tell(maj, min);
	if (!equal)
		say("another name ", GSS_S_FAILURE, 0);
	maj = gss_display_name(&min, e->source, &shown, NULL);
	tell(maj, min);
	gss_release_buffer(&ignored, &shown);
	maj = gss_canonicalize_name(&min, target_name, &krb5_oid, &copy);
	tell(maj, min);
	maj = gss_display_name(&min, copy, &shown, NULL);
	tell(maj, min);
	gss_release_buffer(&ignored, &shown);
	maj = gss_inquire_cred(&min, initiator, NULL, NULL, NULL, NULL);
	tell(maj, min);
	gss_release_name(&ignored, &name);
	gss_release_name(&ignored, &copy);
	gss_release_buffer(&ignored, &wrapped);
	gss_release_buffer(&ignored, &out);
}

/* fork_once makes a child that calls as its parent does. */
static void fork_once(void)
{
	int status = 1;
	pid_t child = fork();

	if (child == 0) {
		OM_uint32 min;

		alarm(60);
		_exit(GSS_ERROR(initiate(&min, initiator, target)) || GSS_ERROR(acquire_once(&min)));
	}
	waitpid(child, &status, 0);
	calls++;
	if (status != 0)
		say("the child has failed ", GSS_S_FAILURE, 0);
}

static void *sharing(void *unused)
{
	static atomic_int numbers;
	int i = numbers++, round;
	OM_uint32 maj, min, ignored;

	(void)unused;
	for (round = 0; round < rounds; round++) {
		gss_cred_id_t cred = GSS_C_NO_CREDENTIAL;

		establish(&ends[i]);
		pthread_barrier_wait(&barrier);
		use(&ends[i & ~1]);	/* both of a pair */
		use(&ends[i | 1]);
		if (forking && i == 0)
			fork_once();
		maj = acquire(&min, i % 2 ? GSS_C_INITIATE : GSS_C_ACCEPT, &cred);
		tell(maj, min);
		gss_release_cred(&ignored, &cred);
		pthread_barrier_wait(&barrier);
		gss_delete_sec_context(&ignored, &ends[i].initiated, NULL);
		gss_delete_sec_context(&ignored, &ends[i].accepted, NULL);
		gss_release_name(&ignored, &ends[i].source);
	}
	return NULL;
}

static void shared(int n)
{
	gss_buffer_desc text = { strlen(target), (void *)target };
	OM_uint32 min;
	int i;

	if (GSS_ERROR(acquire(&min, GSS_C_INITIATE, &initiator)) || GSS_ERROR(acquire(&min, GSS_C_ACCEPT, &acceptor)) ||
	    GSS_ERROR(gss_import_name(&min, &text, GSS_C_NT_HOSTBASED_SERVICE, &target_name)))
		die("cannot begin");
	ends = calloc(n, sizeof(*ends));
	for (i = 0; i < n; i++)
		pthread_mutex_init(&ends[i].wrapping, NULL);
	run_threads(n, sharing);
	printf("calls %d\n", calls);
	gss_release_cred(&min, &initiator);
	gss_release_cred(&min, &acceptor);
	gss_release_name(&min, &target_name);
	free(ends);
}

int main(int argc, char **argv)
{
	const char *command = argc > 1 ? argv[1] : "";
	OM_uint32 min;

	if (strcmp(command, "accept") == 0 && argc == 4) {
		token = unhex(argv[3]);
		run_threads(atoi(argv[2]), accepting);
	} else if (strcmp(command, "behind") == 0 && argc == 4) {
		target = argv[2];
		token = unhex(argv[3]);
		behind();
	} else if (strcmp(command, "fork") == 0 && argc == 4) {
		forks(atoi(argv[2]), atoi(argv[3]));
	} else if (strcmp(command, "exec") == 0 && argc > 2) {
		if (GSS_ERROR(acquire_once(&min)))
			die("cannot acquire");
		execv(argv[2], argv + 2);
		die(strerror(errno));
	} else if (strcmp(command, "steal") == 0 && argc == 2) {
		steal();
	} else if (strcmp(command, "twice") == 0 && argc == 2) {
		twice();
	} else if (strcmp(command, "busy") == 0 && argc == 4) {
		pthread_t counter;

		target = argv[3];
		if (pthread_create(&counter, NULL, counting, NULL) != 0)
			die("no thread");
		run_threads(atoi(argv[2]), being_busy);
	} else if (strcmp(command, "lifetime") == 0 && argc == 2) {
		lifetime();
	} else if (strcmp(command, "cold") == 0 && argc == 4) {
		target = argv[3];
		run_threads(atoi(argv[2]), starting_cold);
	} else if ((strcmp(command, "shared") == 0 || strcmp(command, "forked") == 0) && argc == 5) {
		forking = command[0] == 'f';
		rounds = atoi(argv[3]);
		target = argv[4];
		shared(atoi(argv[2]));
	} else {
		die("no such command");
	}
	return 0;
}
