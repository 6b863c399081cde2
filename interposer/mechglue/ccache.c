/*
 * Handles of remote credentials in credential caches, read and written through libkrb5.
 *
 * A cache of a file is opened once, looked at, and read by way of its descriptor. It is never written where it is: a new
 * file is filled beside it and takes its place, so a reader has the old one or the new one. Beside it is in the directory
 * that was looked at, by way of that one's descriptor, whatever its path means by then.
 *
 * The other types have no such step: between initializing and storing, a cache is empty for a moment, and it is a moment
 * here too. That needs no lock, which could be held over a fork or while KCM keeps us waiting, and which would not keep
 * other processes out: whoever reads looks again at a cache that is empty (see look). The same serves for files that the
 * C project's plugin writes in two steps.
 */
#include <errno.h>
#include <fcntl.h>
#include <krb5.h>
#include <linux/keyctl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "plugin.h"

/* The longest gssx_cred that is believed to be one. */
#define HANDLE_MAX (512u << 10)

/* The name that handles are kept under. */
#define HANDLE_SERVER "Encrypted/Credentials/v1@X-GSSPROXY:"

/* How often, and after how long, an empty cache is looked at again. */
#ifndef LOOKS
#define LOOKS 20
#endif
#define LOOK_NSEC 5000000

/* A cache by its name: what libkrb5 resolves it to. */
struct cache {
	krb5_context k;
	krb5_ccache cc;
	const char *type; /* without the colon */
	const char *path; /* of a FILE, or a member of DIR; else NULL */
	char *name;       /* type and residual */
};

/* What is in a cache. */
struct contents {
	bool exists;  /* there is a cache, whatever is in it */
	bool foreign; /* it is neither the effective user's nor root's, nor in a directory that is */
	bool mine;    /* it, or the directory, is the effective user's */
	mode_t mode;  /* of a file */
	gid_t group;
	bool others;  /* there is something that is no handle */
	bool half;    /* nothing at all, or nothing legible: it may be being written */
	struct handle *handle;
	int dir;      /* of a file: the directory that was looked at, for look-ups only; -1 if there is none */
};

#define NOTHING ((struct contents){ .dir = -1 })

static void contents_free(struct contents *in)
{
	handle_drop(in->handle);
	if (in->dir >= 0)
		close(in->dir);
	*in = NOTHING;
}

static void cache_close(struct cache *c)
{
	if (c->name)
		krb5_free_string(c->k, c->name);
	if (c->cc)
		krb5_cc_close(c->k, c->cc);
	if (c->k)
		krb5_free_context(c->k);
}

/* cache_use makes c the cache cc, which it takes. */
static krb5_error_code cache_use(struct cache *c, krb5_ccache cc)
{
	char *name = NULL;
	krb5_error_code err = krb5_cc_get_full_name(c->k, cc, &name);

	if (err) {
		krb5_cc_close(c->k, cc);
		return err;
	}
	if (c->name)
		krb5_free_string(c->k, c->name);
	if (c->cc)
		krb5_cc_close(c->k, c->cc);
	c->cc = cc;
	c->name = name;
	c->type = krb5_cc_get_type(c->k, cc);
	c->path = NULL;
	if (strcmp(c->type, "FILE") == 0)
		c->path = krb5_cc_get_name(c->k, cc);
	else if (strcmp(c->type, "DIR") == 0)
		c->path = krb5_cc_get_name(c->k, cc) + 1; /* a colon comes first */
	return 0;
}

/* cache_open resolves a name; NULL is the default cache. It also becomes the default name of c->k. */
static krb5_error_code cache_open(struct cache *c, const char *name)
{
	krb5_error_code err;
	krb5_ccache cc;

	*c = (struct cache){ 0 };
	err = krb5_init_context(&c->k);
	if (!err && name)
		err = krb5_cc_set_default_name(c->k, name);
	if (!err)
		err = krb5_cc_default(c->k, &cc);
	if (!err)
		err = cache_use(c, cc);
	return err;
}

/* krb5_failed is fail with libkrb5's text. c->k may be NULL. */
static OM_uint32 krb5_failed(OM_uint32 *minor, struct cache *c, const char *name, krb5_error_code err)
{
	const char *text = krb5_get_error_message(c->k, err);

	fail(minor, (OM_uint32)err, "%s: %s", c->name ? c->name : name ? name : "the default credential cache", text);
	krb5_free_error_message(c->k, text);
	return GSS_S_FAILURE;
}

static OM_uint32 refuse(OM_uint32 *minor, OM_uint32 major, const struct cache *c, const char *why)
{
	fail(minor, 0, "%s %s", c->name, why);
	return major;
}

/* key_owner sets *uid to the owner of a key. */
static bool key_owner(int32_t key, uid_t *uid)
{
	char text[256];
	long n = syscall(SYS_keyctl, KEYCTL_DESCRIBE, key, text, sizeof(text) - 1);
	unsigned int owner;

	if (n <= 0)
		return false;
	text[(size_t)n < sizeof(text) ? (size_t)n : sizeof(text) - 1] = '\0';
	if (sscanf(text, "%*[^;];%u;", &owner) != 1)
		return false;
	*uid = owner;
	return true;
}

/*
 * keyring_owner finds the keyring that holds a cache as libkrb5 does, and sets *uid to its owner. A residual is
 * anchor:collection:member; the collection's keyring is called _krb_collection, but the one of persistent _krb. False
 * with errno ENOENT: there is none yet.
 */
static bool keyring_owner(const char *residual, uid_t *uid)
{
	static const struct {
		const char *anchor;
		int32_t key, possess;
	} anchors[] = {
		{ "process", KEY_SPEC_PROCESS_KEYRING, 0 },
		{ "thread", KEY_SPEC_THREAD_KEYRING, 0 },
		{ "session", KEY_SPEC_SESSION_KEYRING, 0 },
		{ "legacy", KEY_SPEC_SESSION_KEYRING, 0 },
		{ "user", KEY_SPEC_USER_KEYRING, KEY_SPEC_PROCESS_KEYRING },
	};
	const char *collection = strchr(residual, ':');
	const char *member = collection ? strchr(collection + 1, ':') : NULL;
	size_t length = collection ? (size_t)(collection - residual) : 0;
	char keyring[256];
	long key = 0;
	int n;

	errno = EINVAL;
	if (!member)
		return false;
	collection++;
	n = snprintf(keyring, sizeof(keyring), "_krb_%.*s", (int)(member - collection), collection);
	if (n < 0 || (size_t)n >= sizeof(keyring))
		return false;
	if (length == strlen("persistent") && strncmp(residual, "persistent", length) == 0) {
		char *end;
		unsigned long owner = strtoul(collection, &end, 10);

		/* Nobody but its user can write there: the uid is all that is to be looked at. */
		*uid = end == collection ? geteuid() : (uid_t)owner;
		return end == member;
	}
	for (size_t i = 0; i < sizeof(anchors) / sizeof(anchors[0]); i++) {
		if (strlen(anchors[i].anchor) == length && strncmp(residual, anchors[i].anchor, length) == 0)
			key = syscall(SYS_keyctl, KEYCTL_SEARCH, anchors[i].key, "keyring", keyring, anchors[i].possess);
	}
	if (key > 0)
		key = syscall(SYS_keyctl, KEYCTL_SEARCH, (int32_t)key, "keyring", member + 1, 0);
	if (key == -1 && errno == ENOKEY)
		errno = ENOENT;
	return key > 0 && key_owner((int32_t)key, uid);
}

/* starved reports whether an error is for want of memory or descriptors. */
static bool starved(krb5_error_code err)
{
	return err == ENOMEM || err == EMFILE || err == ENFILE || err == KRB5_CC_NOMEM;
}

/* of_ours reports whether a file or directory is the effective user's or root's. */
static bool of_ours(const struct stat *st)
{
	return st->st_uid == geteuid() || st->st_uid == 0;
}

/* directory opens that of a path, for look-ups only. The rest of the path is at *name. */
static int directory(const char *path, const char **name)
{
	const char *slash = strrchr(path, '/');
	char *dir;
	int fd;

	*name = slash ? slash + 1 : path;
	dir = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
	fd = dir ? open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
	free(dir);
	return fd;
}

/*
 * owned_file looks at a file and at the directory that it is in. What others have made counts too where not everybody may:
 * FreeIPA's web server leaves the credentials of users in a directory of its API's.
 */
static bool owned_file(const char *path, struct contents *in, int *fd)
{
	struct stat st, dir_st;
	const char *name;
	int dir = directory(path, &name);
	bool shared, absent;

	in->dir = dir;
	*fd = dir < 0 ? -1 : openat(dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	absent = *fd < 0 && errno == ENOENT;
	shared = dir >= 0 && fstat(dir, &dir_st) == 0 && of_ours(&dir_st) && !(dir_st.st_mode & S_IWOTH);
	if (absent)
		return false;
	in->foreign = *fd < 0 || fstat(*fd, &st) != 0 || !S_ISREG(st.st_mode) || !(of_ours(&st) || shared);
	if (in->foreign)
		return true;
	in->mode = st.st_mode & 0777;
	in->group = st.st_gid;
	in->mine = st.st_uid == geteuid() || (shared && dir_st.st_uid == geteuid());
	return true;
}

/*
 * owned looks at whose a cache is. Of a file, *fd is a descriptor of it. False if there is none. What libkrb5 knows no owner
 * of is foreign, but for MEMORY, which is the process's own, and KCM, whose daemon goes by the uid that asks.
 */
static bool owned(const struct cache *c, struct contents *in, int *fd)
{
	uid_t uid = geteuid();

	if (c->path)
		return owned_file(c->path, in, fd);
	if (strcmp(c->type, "KEYRING") == 0) {
		in->foreign = !keyring_owner(krb5_cc_get_name(c->k, c->cc), &uid);
		if (in->foreign && errno == ENOENT) {
			in->foreign = false;
			return false;
		}
	} else {
		in->foreign = strcmp(c->type, "KCM") != 0 && strcmp(c->type, "MEMORY") != 0;
	}
	in->mine = !in->foreign && uid == geteuid();
	in->foreign = in->foreign || (!in->mine && uid != 0);
	return true;
}

/* entry adds what one credential of a cache is to *in. */
static krb5_error_code entry(const krb5_creds *cred, bool is_handle, struct contents *in)
{
	struct handle *h = NULL;

	in->half = false;
	errno = 0;
	if (is_handle && cred->ticket.length <= HANDLE_MAX)
		h = handle_of((struct xdr_bytes){ (const uint8_t *)cred->ticket.data, cred->ticket.length });
	if (!h) {
		in->others = true;
		return errno; /* ENOMEM, or 0 for what is no handle */
	}
	if (cred->times.starttime)
		h->received = (uint32_t)cred->times.starttime;
	handle_drop(in->handle);
	in->handle = h; /* the last one is the newest */
	return 0;
}

/* entries goes through a cache. */
static krb5_error_code entries(krb5_context k, krb5_ccache cc, struct contents *in)
{
	krb5_principal server = NULL, client = NULL;
	krb5_cc_cursor cursor;
	krb5_creds cred;
	krb5_error_code err;

	err = krb5_parse_name(k, HANDLE_SERVER, &server);
	if (err)
		return err;
	err = krb5_cc_get_principal(k, cc, &client);
	if (err)
		goto out;
	in->exists = true;
	in->half = true;
	err = krb5_cc_start_seq_get(k, cc, &cursor);
	if (err)
		goto out;
	while (!err && (err = krb5_cc_next_cred(k, cc, &cursor, &cred)) == 0) {
		err = entry(&cred, krb5_principal_compare(k, cred.server, server), in);
		krb5_free_cred_contents(k, &cred);
	}
	if (err == KRB5_CC_END)
		err = 0;
	krb5_cc_end_seq_get(k, cc, &cursor);
out:
	krb5_free_principal(k, client);
	krb5_free_principal(k, server);
	return err;
}

/* look_once fills *in anew; nothing is read of a foreign cache. */
static krb5_error_code look_once(const struct cache *c, struct contents *in)
{
	krb5_ccache cc = c->cc;
	krb5_error_code err = 0;
	char name[40];
	int fd = -1;

	contents_free(in);
	errno = 0;
	if (!owned(c, in, &fd))
		return 0;
	in->exists = c->path || in->foreign;
	if (in->foreign) {
		err = fd < 0 && starved(errno) ? errno : 0;
		goto out;
	}
	if (c->path) {
		snprintf(name, sizeof(name), "FILE:/proc/self/fd/%d", fd);
		err = krb5_cc_resolve(c->k, name, &cc);
		if (err)
			goto out;
		in->half = true;
	}
	err = entries(c->k, cc, in);
	if (cc != c->cc)
		krb5_cc_close(c->k, cc);
	if (err == KRB5_FCC_NOFILE && !c->path)
		err = 0; /* it has never been initialized */
	if (err) {
		in->exists = in->others = true;
		/* Without /proc a file is not found by its descriptor, however often it is looked for. */
		in->half = err != KRB5_FCC_NOFILE && (c->path || strcmp(c->type, "KEYRING") == 0);
		handle_drop(in->handle);
		in->handle = NULL;
	}
out:
	if (fd >= 0)
		close(fd);
	return err;
}

/* look fills *in, which the caller frees. A cache that seems half written is given a tenth of a second. */
static krb5_error_code look(struct cache *c, struct contents *in)
{
	const struct timespec pause = { .tv_nsec = LOOK_NSEC };
	krb5_error_code err = 0;
	krb5_ccache cc;

	for (int i = 0;; i++) {
		if (!err)
			err = look_once(c, in);
		if (!in->half || i == LOOKS)
			return err;
		nanosleep(&pause, NULL);
		/* A keyring is bound when it is resolved, and whoever writes may have made another one. */
		err = krb5_cc_resolve(c->k, c->name, &cc);
		if (!err)
			err = cache_use(c, cc);
	}
}

OM_uint32 ccache_handle(OM_uint32 *minor, const char *ccache, struct handle **h)
{
	struct contents in = NOTHING;
	struct cache c;
	OM_uint32 major = GSS_S_COMPLETE;
	krb5_error_code err = cache_open(&c, ccache);

	*minor = 0;
	if (!err)
		err = look(&c, &in);
	*h = in.handle;
	in.handle = NULL;
	if (starved(err)) {
		major = krb5_failed(minor, &c, ccache, err);
	} else if (err) {
		const char *text = krb5_get_error_message(c.k, err);

		trace("no handle from %s: %s", c.name ? c.name : ccache ? ccache : "the default credential cache", text);
		krb5_free_error_message(c.k, text);
	} else if (in.foreign) {
		trace("no handle from %s: it is not certain to be this user's or root's", c.name);
	} else if (!*h) {
		trace("no handle from %s: %s", c.name, in.exists ? "it has none" : "there is no such cache");
	} else {
		trace("a handle from %s", c.name);
	}
	contents_free(&in);
	cache_close(&c);
	return major;
}

/* client_of parses the name that a credential has in a cache. */
static krb5_error_code client_of(krb5_context k, const struct handle *h, krb5_principal *client)
{
	struct xdr_reader r = xdr_reader_of(handle_bytes(h));
	struct gssx_cred cred;
	struct xdr_bytes name;
	krb5_error_code err;
	char *text;

	view_gssx_cred(&r, &cred);
	name = cred.desired_name.display_name;
	if (name.n == 0 && cred.elements.count > 0) {
		struct gssx_cred_element element;

		r = xdr_reader_of(cred.elements.raw);
		view_gssx_cred_element(&r, &element);
		name = element.MN.display_name;
	}
	if (name.n == 0)
		return KRB5_PRINC_NOMATCH;
	text = copy(name);
	if (!text)
		return ENOMEM;
	err = krb5_parse_name(k, text, client);
	free(text);
	return err;
}

/* fill makes cc a cache of one handle. */
static krb5_error_code fill(krb5_context k, krb5_ccache cc, krb5_principal client, const struct handle *h, bool initialize)
{
	struct xdr_bytes b = handle_bytes(h);
	krb5_creds cred = { .client = client };
	krb5_error_code err;

	err = krb5_parse_name(k, HANDLE_SERVER, &cred.server);
	if (err)
		return err;
	/* The time is when it was received. The others are 0: with an authtime, libkrb5 takes an entry for a deleted one. */
	cred.times.starttime = (krb5_timestamp)h->received;
	cred.ticket.length = b.n;
	cred.ticket.data = (char *)(uintptr_t)b.p; /* which is only read */
	if (initialize)
		err = krb5_cc_initialize(k, cc, client);
	if (!err)
		err = krb5_cc_store_cred(k, cc, &cred);
	krb5_free_principal(k, cred.server);
	return err;
}

/*
 * keep_mode gives a file the mode and group of the one whose place it takes, as far as this user may. It is for nobody
 * else: somebody may have left a file for everybody to read.
 */
static int keep_mode(int dir, const char *name, const struct contents *in)
{
	int err = 0, fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);

	if (fd < 0)
		return errno;
	if (fchown(fd, (uid_t)-1, in->group) == 0 && fchmod(fd, in->mode & 0660) != 0)
		err = errno;
	close(fd);
	return err;
}

/* write_into makes a file in a directory and gives it a name there. It is write_file with the directory open. */
static krb5_error_code write_into(krb5_context k, int dir, const char *name, krb5_principal client, const struct handle *h,
				  bool anew, const struct contents *in)
{
	krb5_ccache cc = NULL;
	krb5_error_code err = 0;
	char *path, *temp;
	int fd;

	/* Its name does not begin as those of DIR's members do. */
	if (asprintf(&path, "FILE:/proc/self/fd/%d/.gssproxyd.XXXXXX", dir) < 0)
		return ENOMEM;
	fd = mkostemp(path + 5, O_CLOEXEC);
	if (fd < 0) {
		err = errno;
		free(path);
		return err;
	}
	close(fd); /* libkrb5 makes the file again, and fails if another one is there */
	temp = strrchr(path, '/') + 1;
	err = krb5_cc_resolve(k, path, &cc);
	if (!err) {
		err = fill(k, cc, client, h, true);
		krb5_cc_close(k, cc);
	}
	if (!err && in->mode)
		err = keep_mode(dir, temp, in);
	if (!err && (anew ? linkat(dir, temp, dir, name, 0) : renameat(dir, temp, dir, name)) != 0)
		err = errno;
	if (err || anew)
		unlinkat(dir, temp, 0);
	free(path);
	return err;
}

/*
 * write_file makes a file beside path and puts it in its place. anew is for a path that nothing is at: should there be
 * something by then, that one stays, and the error is EEXIST. It is beside what was looked at, if something was.
 */
static krb5_error_code write_file(krb5_context k, const char *path, krb5_principal client, const struct handle *h, bool anew,
				  const struct contents *in)
{
	const char *slash = strrchr(path, '/');
	krb5_error_code err;
	int dir;

	if (in->dir >= 0)
		return write_into(k, in->dir, slash ? slash + 1 : path, client, h, anew, in);
	dir = directory(path, &path);
	if (dir < 0)
		return errno;
	err = write_into(k, dir, path, client, h, anew, in);
	close(dir);
	return err;
}

/* choose turns a cache that stands for a collection into the member that client's credential belongs into. */
static krb5_error_code choose(struct cache *c, const char *asked, krb5_principal client, bool *reserved)
{
	krb5_principal primary = NULL;
	krb5_error_code err;
	krb5_ccache cc;

	if (!krb5_cc_support_switch(c->k, c->type) || (asked && strcmp(asked, c->name) == 0))
		return 0;
	err = krb5_cc_cache_match(c->k, client, &cc);
	if (!err)
		return cache_use(c, cc);
	if (krb5_cc_get_principal(c->k, c->cc, &primary) != 0)
		return 0; /* the first of the collection */
	krb5_free_principal(c->k, primary);
	err = krb5_cc_new_unique(c->k, c->type, NULL, &cc);
	if (err)
		return err;
	*reserved = true;
	return cache_use(c, cc);
}

/* of_client reports whether a handle is of client's credential. */
static bool of_client(krb5_context k, const struct handle *h, krb5_const_principal client)
{
	krb5_principal p = NULL;
	bool is = client_of(k, h, &p) == 0 && krb5_principal_compare(k, p, client);

	krb5_free_principal(k, p);
	return is;
}

/* may reports whether client's handle may be written over what is there, and says why not. */
static OM_uint32 may(OM_uint32 *minor, const struct cache *c, const struct contents *in, krb5_const_principal client,
		     enum ccache_when when)
{
	/* Over a file the program may write what it likes, if it may: it takes the name, and leaves the file alone. */
	if (when == CCACHE_REPLACE && c->path)
		return GSS_S_COMPLETE;
	if (in->foreign || (in->exists && !in->mine))
		return refuse(minor, GSS_S_UNAVAILABLE, c, "is not certain to be this user's own, and is left alone");
	switch (when) {
	case CCACHE_NEW:
		if (in->exists)
			return refuse(minor, GSS_S_DUPLICATE_ELEMENT, c, "exists already");
		break;
	case CCACHE_SYNC:
		if (!in->handle || in->others || !of_client(c->k, in->handle, client))
			return refuse(minor, GSS_S_DUPLICATE_ELEMENT, c, "does not hold this user's handle and nothing else");
		break;
	case CCACHE_ADD:
		if (in->exists && (!in->handle || in->others))
			return refuse(minor, GSS_S_DUPLICATE_ELEMENT, c, "holds other tickets");
		break;
	case CCACHE_REPLACE:
		break;
	}
	return GSS_S_COMPLETE;
}

OM_uint32 ccache_store(OM_uint32 *minor, const char *ccache, struct handle *h, enum ccache_when when, bool make_default)
{
	struct contents in = NOTHING;
	krb5_principal client = NULL, present = NULL;
	struct cache c;
	bool reserved = false, anew, same;
	OM_uint32 major = GSS_S_COMPLETE;
	krb5_error_code err = cache_open(&c, ccache);

	if (!err)
		err = client_of(c.k, h, &client);
	if (!err && (when == CCACHE_ADD || when == CCACHE_REPLACE))
		err = choose(&c, ccache, client, &reserved);
	if (err) {
		major = krb5_failed(minor, &c, ccache, err);
		goto out;
	}
	if (!reserved) {
		look(&c, &in); /* what cannot be read is something else than a handle */
		major = may(minor, &c, &in, client, when);
		if (major != GSS_S_COMPLETE)
			goto out;
	}
	anew = !in.exists && !reserved && when != CCACHE_REPLACE;
	if (c.path) {
		err = write_file(c.k, c.path, client, h, anew, &in);
		if (err == EEXIST && when == CCACHE_NEW) {
			trace("%s has been written by somebody else meanwhile", c.name);
			*minor = 0;
			goto out;
		} else if (err == EEXIST && when == CCACHE_ADD) {
			major = refuse(minor, GSS_S_DUPLICATE_ELEMENT, &c, "exists already");
			goto out;
		}
	} else {
		/* A key is replaced in one step by another of its name: a keyring of a handle stays as it is around it. */
		same = strcmp(c.type, "KEYRING") == 0 && in.handle && !in.others &&
		       krb5_cc_get_principal(c.k, c.cc, &present) == 0 && krb5_principal_compare(c.k, present, client);
		err = fill(c.k, c.cc, client, h, !same);
	}
	if (!err && make_default && krb5_cc_support_switch(c.k, c.type))
		err = krb5_cc_switch(c.k, c.cc);
	if (err) {
		major = krb5_failed(minor, &c, ccache, err);
		goto out;
	}
	trace("a handle into %s", c.name);
	*minor = 0;
out:
	contents_free(&in);
	if (c.k) {
		krb5_free_principal(c.k, present);
		krb5_free_principal(c.k, client);
	}
	cache_close(&c);
	return major;
}
