/*
 * Calls to the daemon: ONC RPC (RFC 5531) over a Unix stream socket. A call takes a kept connection or makes one, sends
 * its record, waits for the answer's, and puts the connection back.
 *
 * A descriptor may be closed by the program at any time, and its number then be a file of the program's own. So before
 * each use and before each close it is compared with what it was; what is not ours any more is forgotten.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "plugin.h"

/* How long a GSS call waits for the daemon, in seconds: longer than the daemon waits for a KDC, but to accept. */
#ifndef ACCEPT_SECONDS
#define ACCEPT_SECONDS 5
#endif
#ifndef OTHER_SECONDS
#define OTHER_SECONDS 15
#endif

/* Where the kernel says which uid it shows of users whom our user namespace does not know. */
#ifndef OVERFLOW_UID
#define OVERFLOW_UID "/proc/sys/kernel/overflowuid"
#endif

enum {
	KEPT = 16,            /* idle connections */
	UNANSWERED = 3,       /* times in a row that a call is made without an answer, */
	REFUSED = 2,          /* and on a new connection each: a daemon that restarts ends one so, and one without a service all */
	FIRST_READ = 4 << 10, /* bytes of memory for an answer before there are more */
	HEADER = 4,           /* of a record: its length, and the last-fragment bit */
};

static const uint32_t last_fragment = 0x80000000;
static const int64_t second = 1000000000, millisecond = 1000000;
static const int64_t absence = 2 * second;      /* how long a daemon that was there is waited for */
static const int64_t longest_pause = 50 * millisecond;

/* Who a connection was made by, and to which path: the daemon knows us by who we were at connect(2). */
struct who {
	pid_t pid;
	uid_t uid;
	gid_t gid;
	uint64_t path; /* hashed */
};

struct conn {
	LIST_ENTRY(conn) link; /* of idle or busy */
	int fd;
	dev_t dev;             /* of the socket, for fstat */
	ino_t ino;
	int64_t patience;      /* seconds that a system call waits at most */
	struct who who;
};

static LIST_HEAD(conns, conn) idle = LIST_HEAD_INITIALIZER(idle), busy = LIST_HEAD_INITIALIZER(busy);
static size_t kept; /* the length of idle */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static _Atomic uint64_t reached; /* the hash of the path at which a daemon was last there; 0 before */

/* ---- the lock, and forks ---- */

static void close_conn(struct conn *c);

static void before_fork(void)
{
	pthread_mutex_lock(&mutex);
}

static void after_fork(void)
{
	pthread_mutex_unlock(&mutex);
}

/* The child has no part in its parent's connections: those that threads are using there would stay open here for ever. */
static void in_child(void)
{
	struct conns *lists[] = { &idle, &busy };

	for (size_t i = 0; i < 2; i++) {
		while (!LIST_EMPTY(lists[i])) {
			struct conn *c = LIST_FIRST(lists[i]);

			LIST_REMOVE(c, link);
			close_conn(c);
		}
	}
	kept = 0;
	pthread_mutex_unlock(&mutex);
}

static void watch_forks(void)
{
	/* pthread_once does it again in a child that was forked in the middle, and to lock twice is to wait for ever. */
	static atomic_flag done = ATOMIC_FLAG_INIT;

	if (!atomic_flag_test_and_set(&done))
		pthread_atfork(before_fork, after_fork, in_child);
}

void lock(void)
{
	pthread_once(&once, watch_forks);
	pthread_mutex_lock(&mutex);
}

void unlock(void)
{
	pthread_mutex_unlock(&mutex);
}

/* ---- time ---- */

static int64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * second + t.tv_nsec;
}

/* pause_for waits and lets the next wait be longer. It reports false, at once, if the time ends before. */
static bool pause_for(int64_t *pause, int64_t until)
{
	struct timespec t = { .tv_nsec = *pause };

	if (now() + *pause >= until)
		return false;
	nanosleep(&t, NULL); /* a signal may cut it short: then there is one try more */
	*pause *= 2;
	if (*pause > longest_pause)
		*pause = longest_pause;
	return true;
}

/*
 * patient has the next system calls wait until the deadline at most, in whole seconds more: it reports false when that is
 * past. Waiting in the call itself and not in poll(2), we go on with this socket, whatever becomes of its number.
 */
static bool patient(struct conn *c, int64_t deadline)
{
	int64_t left = (deadline - now() + second - 1) / second;
	struct timeval t = { .tv_sec = left };

	if (left <= 0)
		return false;
	if (left == c->patience)
		return true;
	c->patience = left;
	return setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t)) == 0 &&
	       setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof(t)) == 0;
}

/* ---- connections ---- */

static struct who who_now(const char *path)
{
	struct who w = { getpid(), geteuid(), getegid(), 0xcbf29ce484222325 };

	for (; *path; path++) /* FNV-1a */
		w.path = (w.path ^ (unsigned char)*path) * 0x100000001b3;
	return w;
}

static bool same(const struct who *a, const struct who *b)
{
	return a->pid == b->pid && a->uid == b->uid && a->gid == b->gid && a->path == b->path;
}

/* ours reports whether the descriptor is still the socket it was. */
static bool ours(const struct conn *c)
{
	struct stat st;

	return fstat(c->fd, &st) == 0 && st.st_dev == c->dev && st.st_ino == c->ino;
}

static void close_conn(struct conn *c)
{
	if (ours(c))
		close(c->fd);
	free(c);
}

/* A fork comes before or after: a child never has a descriptor that is in neither list. */
static void drop(struct conn *c)
{
	lock();
	LIST_REMOVE(c, link);
	close_conn(c);
	unlock();
}

/* take returns an idle connection, NULL if there is none. Those that others made, or we as somebody else, go. */
static struct conn *take(const struct who *who)
{
	for (;;) {
		struct conn *c;

		lock();
		c = LIST_FIRST(&idle);
		if (c) {
			LIST_REMOVE(c, link);
			LIST_INSERT_HEAD(&busy, c, link);
			kept--;
		}
		unlock();
		if (!c || (same(&c->who, who) && ours(c)))
			return c;
		drop(c);
	}
}

static void put(struct conn *c)
{
	bool full;

	lock();
	full = kept == KEPT;
	if (!full) {
		LIST_REMOVE(c, link);
		LIST_INSERT_HEAD(&idle, c, link);
		kept++;
	}
	unlock();
	if (full)
		drop(c);
}

/* Who is in our user namespace: whether there is a root, and whether there is everybody. */
struct inside {
	bool root, everybody;
};

/* look_inside reads that from /proc; false if it is not known. */
static bool look_inside(struct inside *in)
{
	FILE *f = fopen("/proc/self/uid_map", "re");
	unsigned long first, outside, count;
	int n;

	*in = (struct inside){ 0 };
	if (!f)
		return false;
	while ((n = fscanf(f, "%lu %lu %lu", &first, &outside, &count)) == 3) {
		in->root = in->root || (first == 0 && count > 0);
		in->everybody = in->everybody || (first == 0 && count == UINT32_MAX);
	}
	fclose(f);
	return n == EOF;
}

static uid_t overflow_uid(void)
{
	const uid_t usual = 65534;
	FILE *f = fopen(OVERFLOW_UID, "re");
	unsigned long uid;

	if (!f)
		return usual;
	if (fscanf(f, "%lu", &uid) != 1 || uid > UINT32_MAX)
		uid = usual;
	fclose(f);
	return (uid_t)uid;
}

/* A call that is being made. */
struct call {
	OM_uint32 *minor;
	int64_t deadline;
	bool explicit_path; /* GSSPROXY_SOCKET says which */
	struct sockaddr_un address;
};

/* failed is fail for a call: the text begins with where, and has %m for the errno e. */
#define failed(call, e, text, ...) \
	(errno = (e), fail((call)->minor, 0, "gssproxyd at %s: " text, (call)->address.sun_path, ##__VA_ARGS__))

static bool believed(const struct call *call, const struct conn *c)
{
	struct ucred server;
	socklen_t n = sizeof(server);
	struct inside in;
	uid_t nobody;

	if (getsockopt(c->fd, SOL_SOCKET, SO_PEERCRED, &server, &n) != 0) {
		failed(call, errno, "who runs it is not known: %m");
		return false;
	}
	if (server.uid == 0)
		return true;
	nobody = overflow_uid();
	if (server.uid == geteuid() && server.uid != nobody)
		return true;
	/* This uid may be anybody's who is not in our user namespace, root's among them, though it be ours as well. */
	if (server.uid == nobody && look_inside(&in)) {
		if (in.everybody && server.uid == geteuid())
			return true;
		if (!in.root && call->explicit_path && !secure())
			return true;
	}
	failed(call, EPERM, "it runs as uid %u: %m; only root's and uid %u's is believed", (unsigned)server.uid,
		(unsigned)geteuid());
	return false;
}

/* open_socket returns a socket that is not one of standard input, output and error: a program may have closed those. */
static int open_socket(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd >= 0 && fd <= STDERR_FILENO) {
		int low = fd, saved;

		fd = fcntl(low, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
		saved = errno;
		close(low);
		errno = saved;
	}
	return fd;
}

/* new_conn returns a socket, among the busy ones, that is not connected yet; NULL and errno if there is none. */
static struct conn *new_conn(const char *path)
{
	struct conn *c = calloc(1, sizeof(*c));
	struct stat st;

	if (!c)
		return NULL;
	c->who = who_now(path);
	lock(); /* no fork comes between the socket and its place in a list */
	c->fd = open_socket();
	if (c->fd >= 0 && fstat(c->fd, &st) == 0) {
		c->dev = st.st_dev;
		c->ino = st.st_ino;
		LIST_INSERT_HEAD(&busy, c, link);
		unlock();
		return c;
	}
	unlock();
	if (c->fd >= 0)
		close(c->fd);
	free(c);
	return NULL;
}

/* dial returns a connection, or NULL when the call has failed. *waited says whether the daemon was away meanwhile. */
static struct conn *dial(const struct call *call, bool *waited)
{
	const char *path = call->address.sun_path;
	int64_t begun = now(), pause = millisecond;

	for (;;) {
		struct conn *c = new_conn(path);
		int64_t until = call->deadline;
		bool away;
		int e;

		if (!c) {
			failed(call, errno, "no socket to call it with: %m");
			return NULL;
		}
		if (!patient(c, call->deadline)) {
			drop(c);
			failed(call, ETIMEDOUT, "it did not take a connection in time: %m");
			return NULL;
		}
		e = connect(c->fd, (const struct sockaddr *)&call->address, sizeof(call->address)) == 0 ? 0 : errno;
		if (e == 0 && !believed(call, c)) {
			drop(c);
			return NULL;
		}
		if (e == 0) {
			struct who who = who_now(path);

			if (same(&c->who, &who)) {
				atomic_store(&reached, who.path);
				trace("connected to %s", path);
				return c;
			}
		}
		/* EACCES: a daemon that begins makes its socket before everybody may use it. */
		away = (e == ENOENT || e == ECONNREFUSED || e == EACCES) && atomic_load(&reached) == c->who.path;
		drop(c);
		*waited = *waited || away;
		if (away && begun + absence < until)
			until = begun + absence;
		/* EAGAIN: too many connections wait to be taken. 0: we became somebody else meanwhile. */
		if (away || e == EAGAIN || e == EINTR || e == 0) {
			if (pause == millisecond)
				trace("waiting for %s: %s", path, strerrordesc_np(e));
			if (pause_for(&pause, until))
				continue;
		}
		if (e == 0 || e == EINTR)
			failed(call, ETIMEDOUT, "no connection: %m");
		else if (e == EAGAIN)
			failed(call, e, "it takes no more connections: %m");
		else if (e == ENOENT || e == ECONNREFUSED)
			failed(call, e, "%m; is gssproxyd running, and is that its socket?");
		else if (e == EACCES)
			failed(call, e, "%m; may this user use that socket?");
		else
			failed(call, e, "%m");
		return NULL;
	}
}

/* ---- records ---- */

/* What became of one try of a call. Only FAILED has its text already. */
enum outcome { ANSWERED, UNSENT, ENDED, FAILED };

static uint32_t u32_at(const uint8_t *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static enum outcome late(const struct call *call, const char *what)
{
	failed(call, ETIMEDOUT, "it did not %s in time: %m; its log may say what it waits for", what);
	return FAILED;
}

static enum outcome send_record(const struct call *call, struct conn *c, const struct xdr_writer *w)
{
	size_t sent = 0;

	while (sent < w->n) {
		ssize_t n;

		if (sent > 0 && !ours(c))
			return UNSENT;
		if (!patient(c, call->deadline))
			return late(call, "take the call");
		n = send(c->fd, w->p + sent, w->n - sent, MSG_NOSIGNAL);
		if (n >= 0) {
			sent += (size_t)n;
		} else if (errno == EPIPE || errno == ECONNRESET) {
			return UNSENT;
		} else if (errno != EINTR && errno != EAGAIN) {
			failed(call, errno, "%m");
			return FAILED;
		}
	}
	return ANSWERED;
}

/* grow makes room for more of a record of n bytes, for twice what has come at most: its length may be a lie. */
static bool grow(struct answer *a, size_t *cap, size_t n)
{
	size_t more = *cap ? 2 * *cap : FIRST_READ;
	uint8_t *p;

	if (more > n)
		more = n;
	p = malloc(more);
	if (!p)
		return false;
	if (a->n > 0)
		memcpy(p, a->p, a->n);
	wipe(a->p, a->n);
	a->p = p;
	*cap = more;
	return true;
}

static enum outcome receive_record(const struct call *call, struct conn *c, struct answer *a)
{
	size_t cap = 0, whole = FIRST_READ; /* until its header is there */
	bool first = true;

	for (;; first = false) {
		ssize_t n;

		if (a->n == cap && !grow(a, &cap, whole)) {
			failed(call, ENOMEM, "its answer: %m");
			return FAILED;
		}
		if (!first && !ours(c))
			return ENDED;
		if (!patient(c, call->deadline))
			return late(call, "answer");
		n = recv(c->fd, a->p + a->n, cap - a->n, 0);
		if (n == 0)
			return ENDED;
		if (n < 0 && errno == ECONNRESET)
			return UNSENT; /* it was closed with bytes of the call unread */
		if (n < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (n < 0) {
			failed(call, errno, "%m");
			return FAILED;
		}
		a->n += (size_t)n;
		if (a->n < HEADER)
			continue;
		whole = HEADER + (u32_at(a->p) & ~last_fragment);
		if (!(u32_at(a->p) & last_fragment) || whole > HEADER + XDR_MAX) {
			failed(call, EMSGSIZE, "its answer is in pieces or longer than %u bytes: %m", XDR_MAX);
			return FAILED;
		}
		if (a->n == whole)
			return ANSWERED;
		if (a->n > whole) {
			failed(call, EPROTO, "more came than its answer: %m");
			return FAILED;
		}
	}
}

/* ---- RPC ---- */

enum { CALL, REPLY };
enum { MSG_ACCEPTED, MSG_DENIED };
enum { SUCCESS, PROG_UNAVAIL, PROG_MISMATCH, PROC_UNAVAIL, GARBAGE_ARGS, SYSTEM_ERR };

static const char *const accept_stats[] = {
	[PROG_UNAVAIL] = "it does not serve gssproxy's protocol",
	[PROG_MISMATCH] = "it serves another version of gssproxy's protocol",
	[PROC_UNAVAIL] = "it does not know this call",
	[GARBAGE_ARGS] = "it could not read the call",
	[SYSTEM_ERR] = "it is in trouble of its own; its log may say more",
};

void rpc_begin(struct xdr_writer *w, enum gssproxy_proc proc)
{
	static atomic_uint calls;

	*w = (struct xdr_writer){ 0 };
	xdr_put_u32(w, 0); /* the record's header, which rpc_call knows */
	xdr_put_u32(w, atomic_fetch_add(&calls, 1)); /* the xid: a connection has one call at a time */
	xdr_put_u32(w, CALL);
	xdr_put_u32(w, 2); /* the version of RPC */
	xdr_put_u32(w, GSSPROXY);
	xdr_put_u32(w, GSSPROXY_V1);
	xdr_put_u32(w, proc);
	xdr_put_u64(w, 0); /* a credential of AUTH_NONE */
	xdr_put_u64(w, 0); /* and its verifier */
}

/* read_reply goes through the RPC header and leaves the results to read. It returns what is wrong with it, or NULL. */
static const char *read_reply(struct answer *a, uint32_t xid)
{
	struct xdr_reader *r = &a->results;
	uint32_t reply_stat, stat;

	*r = xdr_reader_of((struct xdr_bytes){ a->p + HEADER, (uint32_t)(a->n - HEADER) });
	if (xdr_get_u32(r) != xid || r->bad)
		return "its answer is to another call";
	if (xdr_get_u32(r) != REPLY || r->bad)
		return "its answer is none";
	reply_stat = xdr_get_u32(r);
	if (r->bad || reply_stat > MSG_DENIED)
		return "its answer is none";
	if (reply_stat == MSG_DENIED)
		return xdr_get_u32(r) == 0 ? "it speaks another version of RPC" : "it asks for an RPC credential";
	xdr_get_u32(r); /* the verifier, which there is none of */
	xdr_get_opaque(r);
	stat = xdr_get_u32(r);
	if (r->bad || stat > SYSTEM_ERR)
		return "its answer is none";
	return accept_stats[stat];
}

static enum outcome attempt(const struct call *call, struct conn *c, const struct xdr_writer *w, struct answer *a)
{
	enum outcome o = send_record(call, c, w);
	const char *wrong;

	if (o == ANSWERED)
		o = receive_record(call, c, a);
	if (o != ANSWERED)
		return o;
	wrong = read_reply(a, u32_at(w->p + HEADER));
	if (!wrong)
		return ANSWERED;
	failed(call, EPROTO, "%s: %m", wrong);
	return FAILED;
}

/* exchange makes the call until it is answered or has failed. */
static OM_uint32 exchange(const struct call *call, const struct xdr_writer *w, bool once_only, struct answer *a)
{
	const char *path = call->address.sun_path;
	int64_t pause = millisecond;
	unsigned unanswered = 0, fresh = 0;

	for (;;) {
		struct who who = who_now(path);
		struct conn *c = take(&who);
		bool was_kept = c != NULL, waited = false;
		enum outcome o;

		if (!c)
			c = dial(call, &waited);
		if (!c)
			return GSS_S_FAILURE;
		if (waited)
			unanswered = fresh = 0;
		o = attempt(call, c, w, a);
		if (o == ANSWERED) {
			put(c);
			return GSS_S_COMPLETE;
		}
		drop(c);
		answer_free(a);
		if (o == FAILED)
			return GSS_S_FAILURE;
		trace("the connection to %s ended %s", path, o == UNSENT ? "before it had the call" : "without an answer");
		if (o == UNSENT && was_kept)
			continue; /* they come to an end */
		if (o == ENDED && once_only && was_kept)
			return failed(call, ECONNRESET, "it closed the connection: %m; a token counts once: was it restarted, or "
				"does its configuration have no service for this user and program?");
		unanswered++;
		fresh += !was_kept;
		if ((o == ENDED && once_only) || unanswered == UNANSWERED || fresh == REFUSED || !pause_for(&pause, call->deadline))
			return failed(call, ECONNRESET,
				"it closed the connection: %m; does its configuration have a service for this user and program?");
	}
}

OM_uint32 rpc_call(OM_uint32 *minor, struct xdr_writer *w, enum gssproxy_proc proc, struct deadline *deadline,
	struct answer *a)
{
	struct call call = { .minor = minor, .address.sun_family = AF_UNIX };
	bool accept = proc == GSSX_ACCEPT_SEC_CONTEXT;
	OM_uint32 major;
	int cancelling;

	/* A thread that was cancelled while it waits would leave its connection and its token behind. */
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancelling);
	*minor = 0;
	*a = (struct answer){ 0 };
	if (deadline->at == 0)
		deadline->at = now() + (accept ? ACCEPT_SECONDS : OTHER_SECONDS) * second;
	call.deadline = deadline->at;
	if (!socket_path(call.address.sun_path, sizeof(call.address.sun_path), &call.explicit_path)) {
		major = fail(minor, 0, "gssproxyd: its socket's path does not fit into %zu bytes: is GSSPROXY_SOCKET right?",
			sizeof(call.address.sun_path) - 1);
	} else if (w->failed) {
		major = failed(&call, EMSGSIZE, "a call of more than %u bytes, or no memory for it: %m", XDR_MAX);
	} else if (now() >= call.deadline) {
		major = failed(&call, ETIMEDOUT, "no time is left for another call: %m");
	} else {
		uint32_t header = last_fragment | (uint32_t)(w->n - HEADER);

		w->p[0] = (uint8_t)(header >> 24);
		w->p[1] = (uint8_t)(header >> 16);
		w->p[2] = (uint8_t)(header >> 8);
		w->p[3] = (uint8_t)header;
		major = exchange(&call, w, accept, a);
	}
	xdr_writer_free(w);
	pthread_setcancelstate(cancelling, NULL);
	return major;
}

void answer_free(struct answer *a)
{
	wipe(a->p, a->n);
	*a = (struct answer){ 0 };
}

OM_uint32 garbled(OM_uint32 *minor)
{
	struct call call = { .minor = minor };

	socket_path(call.address.sun_path, sizeof(call.address.sun_path), &call.explicit_path);
	return failed(&call, EPROTO, "its answer cannot be read: %m");
}
