/*
 * Which mechanisms are interposed, whether at all, and what the environment says.
 *
 * A mechanism has two OIDs. Its own is by which programs ask for it, and the mechglue then calls us. The special one, the
 * plugin's OID with the mechanism's own behind it, is by which we ask the mechglue for the real mechanism. It is not a
 * valid OID, and nobody outside of this process sees it.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/auxv.h>
#include <sys/stat.h>
#include <unistd.h>

#include "plugin.h"

#ifndef DEFAULT_SOCKET
#define DEFAULT_SOCKET "/var/lib/gssproxy/default.sock"
#endif
#ifndef DEFAULT_BEHAVIOR
#define DEFAULT_BEHAVIOR LOCAL_FIRST
#endif

/* 2.16.840.1.113730.3.8.15.1, which is also the C project's plugin: the interposer of this protocol. */
#define OURS 0x60, 0x86, 0x48, 0x01, 0x86, 0xf8, 0x42, 0x03, 0x08, 0x0f, 0x01
#define OURS_LENGTH 11

static const uint8_t krb5[] = { OURS, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x12, 0x01, 0x02, 0x02 };
static const uint8_t krb5_old[] = { OURS, 0x2b, 0x05, 0x01, 0x05, 0x02 };
static const uint8_t krb5_wrong[] = { OURS, 0x2a, 0x86, 0x48, 0x82, 0xf7, 0x12, 0x01, 0x02, 0x02 }; /* Microsoft's */
static const uint8_t iakerb[] = { OURS, 0x2b, 0x06, 0x01, 0x05, 0x02, 0x05 };

#define MECH(oid) { { sizeof(oid) - OURS_LENGTH, (void *)(oid + OURS_LENGTH) }, { sizeof(oid), (void *)oid } }

static const struct mech {
	gss_OID_desc own, special;
} mechs[] = { MECH(krb5), MECH(krb5_old), MECH(krb5_wrong), MECH(iakerb) };

#define MECHS (sizeof(mechs) / sizeof(mechs[0]))

static const struct mech *find(gss_const_OID oid)
{
	for (size_t i = 0; i < MECHS; i++)
		if (gss_oid_equal(&mechs[i].own, oid) || gss_oid_equal(&mechs[i].special, oid))
			return &mechs[i];
	return NULL;
}

gss_OID known_mech(gss_const_OID oid)
{
	const struct mech *m = find(oid);

	return m ? (gss_OID)&m->own : GSS_C_NO_OID;
}

gss_OID special_mech(gss_const_OID oid)
{
	const struct mech *m = oid == GSS_C_NO_OID ? &mechs[0] : find(oid);

	return m ? (gss_OID)&m->special : GSS_C_NO_OID;
}

OM_uint32 oid_set(OM_uint32 *minor, gss_const_OID oid, gss_OID_set *set)
{
	OM_uint32 ignored, major = gss_create_empty_oid_set(minor, set);

	if (major == GSS_S_COMPLETE)
		major = gss_add_oid_set_member(minor, (gss_OID)oid, set);
	if (major != GSS_S_COMPLETE)
		gss_release_oid_set(&ignored, set);
	return major;
}

OM_uint32 special_mechs(OM_uint32 *minor, gss_OID_set wanted, gss_OID_set *special)
{
	OM_uint32 ignored, major;

	if (wanted == GSS_C_NO_OID_SET || wanted->count == 0)
		return oid_set(minor, special_mech(GSS_C_NO_OID), special);
	major = gss_create_empty_oid_set(minor, special);
	for (size_t i = 0; major == GSS_S_COMPLETE && i < wanted->count; i++) {
		gss_OID oid = special_mech(&wanted->elements[i]);

		if (oid != GSS_C_NO_OID)
			major = gss_add_oid_set_member(minor, oid, special);
	}
	if (major == GSS_S_COMPLETE && (*special)->count == 0)
		major = GSS_S_BAD_MECH;
	if (major != GSS_S_COMPLETE)
		gss_release_oid_set(&ignored, special);
	return major;
}

struct xdr_bytes oid_bytes(gss_const_OID oid)
{
	if (oid == GSS_C_NO_OID)
		return (struct xdr_bytes){ NULL, 0 };
	return (struct xdr_bytes){ oid->elements, oid->length };
}

/* ---- the environment ---- */

bool secure(void)
{
	return getauxval(AT_SECURE) != 0;
}

/* variable reads an environment variable; NULL if it is not set, empty, or not to be believed. */
static const char *variable(const char *name)
{
	const char *value = secure_getenv(name);

	return value && *value ? value : NULL;
}

enum behavior behavior(void)
{
	static const char *const names[] = {
		[LOCAL_ONLY] = "LOCAL_ONLY", [LOCAL_FIRST] = "LOCAL_FIRST",
		[REMOTE_FIRST] = "REMOTE_FIRST", [REMOTE_ONLY] = "REMOTE_ONLY",
	};
	static atomic_int known; /* one more than the answer; of many threads that come first, one decides */
	const char *value;
	int answer = atomic_load(&known), none = 0;

	if (answer)
		return (enum behavior)(answer - 1);
	answer = DEFAULT_BEHAVIOR + 1;
	value = variable("GSSPROXY_BEHAVIOR");
	for (int i = LOCAL_ONLY; value && i <= REMOTE_ONLY; i++) {
		if (strcmp(value, names[i]) == 0) {
			answer = i + 1;
			value = NULL;
		}
	}
	if (!atomic_compare_exchange_strong(&known, &none, answer))
		answer = none;
	else if (value)
		trace("GSSPROXY_BEHAVIOR is %s, which means nothing: it is taken for %s", value, names[answer - 1]);
	return (enum behavior)(answer - 1);
}

/* program returns the last component of the executable's path, which lies in path; NULL if it is not known. */
static const char *program(char *path, size_t size)
{
	static const char deleted[] = " (deleted)"; /* the kernel's mark for a file that was replaced since, as upgrades do */
	ssize_t n = readlink("/proc/self/exe", path, size);
	const char *slash;

	if (n <= 0 || (size_t)n >= size)
		return NULL;
	path[n] = '\0';
	if ((size_t)n >= sizeof(deleted) && strcmp(path + n - (sizeof(deleted) - 1), deleted) == 0)
		path[n - (sizeof(deleted) - 1)] = '\0';
	slash = strrchr(path, '/');
	return slash && slash[1] ? slash + 1 : NULL;
}

bool socket_path(char *path, size_t size, bool *explicit_path)
{
	const char *value = variable("GSSPROXY_SOCKET"), *name;
	char exe[PATH_MAX];
	size_t n;

	*explicit_path = value != NULL;
	if (!value && secure()) {
		name = program(exe, sizeof(exe));
		return name && (size_t)snprintf(path, size, "%s.%s", DEFAULT_SOCKET, name) < size;
	}
	if (!value)
		value = DEFAULT_SOCKET;
	n = strlen(value);
	if (n >= size)
		return false;
	memcpy(path, value, n + 1);
	return true;
}

/*
 * active reports whether programs are served at all: when GSS_USE_PROXY says so or, of a program that has no environment,
 * when it has a socket of its own.
 */
static bool active(void)
{
	static const char *const yes[] = { "1", "on", "true", "yes" };
	const char *value = variable("GSS_USE_PROXY");
	char path[PATH_MAX];
	struct stat st;
	bool explicit_path;

	if (secure())
		return socket_path(path, sizeof(path), &explicit_path) && stat(path, &st) == 0 && S_ISSOCK(st.st_mode);
	for (size_t i = 0; value && i < sizeof(yes) / sizeof(yes[0]); i++)
		if (strcasecmp(value, yes[i]) == 0)
			return true;
	return false;
}

/* ---- what the mechglue asks ---- */

/*
 * The mechglue asks which mechanisms are interposed, and holds the lock of its list of mechanisms while it does. Only its
 * functions for sets of OIDs do not take that lock.
 */
EXPORT gss_OID_set gss_mech_interposer(gss_OID mech)
{
	static const uint8_t ours[] = { OURS };
	const gss_OID_desc oid = { sizeof(ours), (void *)ours };
	gss_OID_set set;
	OM_uint32 minor;

	if (!gss_oid_equal(mech, &oid) || !active())
		return GSS_C_NO_OID_SET;
	if (gss_create_empty_oid_set(&minor, &set) != GSS_S_COMPLETE)
		return GSS_C_NO_OID_SET;
	for (size_t i = 0; i < MECHS; i++) {
		if (gss_add_oid_set_member(&minor, (gss_OID)&mechs[i].own, &set) != GSS_S_COMPLETE) {
			gss_release_oid_set(&minor, &set);
			return GSS_C_NO_OID_SET;
		}
	}
	return set;
}

/*
 * gss_release_oid asks every mechanism whether an OID is one of its own, which is not to be freed. It holds the lock of the
 * list of mechanisms as well.
 */
EXPORT OM_uint32 gssi_internal_release_oid(OM_uint32 *minor, gss_OID *oid)
{
	*minor = 0;
	for (size_t i = 0; i < MECHS; i++) {
		if (*oid == &mechs[i].own || *oid == &mechs[i].special) {
			*oid = GSS_C_NO_OID;
			return GSS_S_COMPLETE;
		}
	}
	return GSS_S_CONTINUE_NEEDED; /* this is how a mechanism says that it does not know it */
}

/* ---- memory ---- */

OM_uint32 no_memory(OM_uint32 *minor)
{
	*minor = ENOMEM;
	return GSS_S_FAILURE;
}

void *copy(struct xdr_bytes b)
{
	uint8_t *p = malloc((size_t)b.n + 1);

	if (!p)
		return NULL;
	if (b.n > 0)
		memcpy(p, b.p, b.n);
	p[b.n] = '\0';
	return p;
}

OM_uint32 buffer_of(OM_uint32 *minor, struct xdr_bytes b, gss_buffer_t buffer)
{
	*minor = 0;
	if (!buffer)
		return GSS_S_COMPLETE;
	*buffer = (gss_buffer_desc)GSS_C_EMPTY_BUFFER;
	if (b.n == 0)
		return GSS_S_COMPLETE; /* gss_release_buffer does not free a buffer of no length */
	buffer->value = copy(b); /* it frees with free() */
	if (!buffer->value)
		return no_memory(minor);
	buffer->length = b.n;
	return GSS_S_COMPLETE;
}

struct xdr_bytes bytes_of(const gss_buffer_desc *b)
{
	if (!b || !b->value)
		return (struct xdr_bytes){ NULL, 0 };
	return (struct xdr_bytes){ b->value, b->length < XDR_MAX ? (uint32_t)b->length : XDR_MAX };
}

void wipe(void *p, size_t n)
{
	if (!p)
		return;
	explicit_bzero(p, n);
	free(p);
}
