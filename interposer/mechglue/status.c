/*
 * Texts of minor statuses. A minor status is all that the mechglue hands back to us when a program asks what it means,
 * so each thread remembers what it last failed with.
 */
#include <errno.h>
#include <krb5.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin.h"

/* What a thread's key holds is freed by free_texts, which the analyzer does not see. */
#pragma GCC diagnostic ignored "-Wanalyzer-malloc-leak"

enum { REMEMBERED = 8, TEXT_MAX = 4096 };

/*
 * Codes of our own: 64 of them, used in turn by each thread, since the mechglue keeps every code it has seen. They are
 * too large for an errno, and of no com_err table: the upper 24 bits of a table's codes are the letters of its name, six bits
 * each and none of them 0, and the last two of ours are 0.
 */
enum { OWN_BASE = 0x47500000, OWN_MASK = 0x3f };

struct texts {
	struct {
		OM_uint32 code;
		char *text;
	} recent[REMEMBERED]; /* the newest first */
	OM_uint32 own;        /* how many codes of our own were used */
	bool asking;          /* the local mechanism is being asked */
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t key;
static bool keyed;

static void free_texts(void *p)
{
	struct texts *t = p;

	for (size_t i = 0; i < REMEMBERED; i++)
		free(t->recent[i].text);
	free(t);
}

static void make_key(void)
{
	keyed = pthread_key_create(&key, free_texts) == 0;
}

/* mine returns the thread's texts, NULL if there is no memory. */
static struct texts *mine(void)
{
	struct texts *t;

	pthread_once(&once, make_key);
	if (!keyed)
		return NULL;
	t = pthread_getspecific(key);
	if (t)
		return t;
	t = calloc(1, sizeof(*t));
	if (t && pthread_setspecific(key, t) != 0) {
		free(t);
		t = NULL;
	}
	return t;
}

static const char *recorded(const struct texts *t, OM_uint32 code)
{
	for (size_t i = 0; t && i < REMEMBERED; i++) {
		if (t->recent[i].text && t->recent[i].code == code)
			return t->recent[i].text;
	}
	return NULL;
}

/* record takes text, which may be NULL where there was no memory for it, and returns its code. */
static OM_uint32 record(OM_uint32 code, char *text)
{
	struct texts *t = text ? mine() : NULL;

	if (!t) {
		free(text);
		return code ? code : ENOMEM;
	}
	if (code == 0)
		code = OWN_BASE | (t->own++ & OWN_MASK);
	free(t->recent[REMEMBERED - 1].text);
	memmove(t->recent + 1, t->recent, sizeof(t->recent) - sizeof(t->recent[0]));
	t->recent[0].code = code;
	t->recent[0].text = text;
	return code;
}

/* noted is what a trace line says of a code that was just recorded, if there was memory for that. */
static const char *noted(OM_uint32 code)
{
	const char *text = recorded(mine(), code);

	return text ? text : "no memory";
}

static bool known_locally(OM_uint32 code)
{
	return (code & ~(OM_uint32)OWN_MASK) != OWN_BASE;
}

/*
 * local_text asks the local mechanism for the text of one of its codes. The mechglue finds the mechanism by the code, and
 * may find us: a code that was never the local mechanism's comes back, once, and then gets libkrb5's text.
 */
static OM_uint32 local_text(OM_uint32 *minor, OM_uint32 code, OM_uint32 *context, gss_buffer_t text)
{
	struct texts *t = mine();
	OM_uint32 major = GSS_S_BAD_STATUS;
	const char *s = "what failed is only known to the thread it failed in";

	if (t && t->asking) {
		*minor = EINVAL;
		return GSS_S_BAD_STATUS;
	}
	if (t && known_locally(code)) {
		t->asking = true;
		major = gss_display_status(minor, code, GSS_C_MECH_CODE, GSS_C_NO_OID, context, text);
		t->asking = false;
	}
	if (!GSS_ERROR(major))
		return major;
	*context = 0;
	if (known_locally(code))
		s = krb5_get_error_message(NULL, (krb5_error_code)code); /* without a context it is nobody's to free */
	if (!s)
		s = "out of memory";
	return buffer_of(minor, (struct xdr_bytes){ (const uint8_t *)s, (uint32_t)strlen(s) }, text);
}

OM_uint32 fail(OM_uint32 *minor, OM_uint32 code, const char *format, ...)
{
	char *text = NULL;
	va_list args;

	va_start(args, format);
	if (vasprintf(&text, format, args) < 0)
		text = NULL;
	va_end(args);
	*minor = record(code, text);
	trace("failed: %s (%u)", noted(*minor), *minor);
	return GSS_S_FAILURE;
}

/* printable is a copy of what the daemon says, fit for a log: without the NUL at its end, cut, and in one line. */
static char *printable(struct xdr_bytes b)
{
	char *text;

	while (b.n > 0 && b.p[b.n - 1] == 0)
		b.n--;
	if (b.n > TEXT_MAX)
		b.n = TEXT_MAX;
	text = copy(b);
	for (uint32_t i = 0; text && i < b.n; i++) {
		if (b.p[i] < ' ' || b.p[i] == 0x7f)
			text[i] = '?';
	}
	return text;
}

OM_uint32 refused(OM_uint32 *minor, const struct gssx_status *status)
{
	OM_uint32 major = (OM_uint32)status->major_status;
	struct xdr_bytes said = status->minor_status_string.n > 1 ? status->minor_status_string : status->major_status_string;
	char *text;

	*minor = (OM_uint32)status->minor_status;
	if (major != status->major_status)
		return fail(minor, 0, "gssproxyd answered with a major status of more than 32 bits");
	if (major == GSS_S_COMPLETE || major == GSS_S_CONTINUE_NEEDED)
		return major;
	if (!GSS_ERROR(major))
		major |= GSS_S_FAILURE; /* who only looks for errors would go on with nothing, which stands for the default */
	text = printable(said);
	trace("refused: major %#x, minor %u: %s", major, *minor, text ? text : "no memory");
	if (said.n > 1)
		*minor = record(*minor, text);
	else
		free(text);
	return major;
}

/* text_of is what display_status says of a minor status. */
static OM_uint32 text_of(OM_uint32 *minor, OM_uint32 code, OM_uint32 *context, gss_buffer_t text)
{
	const char *s = recorded(mine(), code);

	if (!s)
		return local_text(minor, code, context, text);
	*context = 0;
	return buffer_of(minor, (struct xdr_bytes){ (const uint8_t *)s, (uint32_t)strlen(s) }, text);
}

void both_failed(OM_uint32 *minor, OM_uint32 first, OM_uint32 second)
{
	gss_buffer_desc a = GSS_C_EMPTY_BUFFER, b = GSS_C_EMPTY_BUFFER;
	OM_uint32 ignored, context = 0;
	char *text = NULL;

	*minor = first;
	if (GSS_ERROR(text_of(&ignored, first, &context, &a)))
		goto out;
	context = 0;
	/* The same code of both: what is recorded is the remote way's text, and the local way's is the mechanism's. */
	if (GSS_ERROR(first == second ? local_text(&ignored, second, &context, &b) : text_of(&ignored, second, &context, &b)))
		goto out;
	if (asprintf(&text, "%.*s; %.*s", (int)a.length, (char *)a.value, (int)b.length, (char *)b.value) < 0)
		goto out;
	/* Not under the first way's code: it is what a later failure of that way alone, or of both, may have too. */
	*minor = record(0, text);
	trace("both ways failed: %s", noted(*minor));
out:
	gss_release_buffer(&ignored, &a);
	gss_release_buffer(&ignored, &b);
}

void minor_text(OM_uint32 code, char *buf, size_t size)
{
	gss_buffer_desc text = GSS_C_EMPTY_BUFFER;
	OM_uint32 minor, context = 0;
	size_t n = strlen(buf);

	if (n < size && !GSS_ERROR(text_of(&minor, code, &context, &text)))
		snprintf(buf + n, size - n, "%.*s", (int)text.length, (char *)text.value);
	gss_release_buffer(&minor, &text);
}

/* The mechglue says itself what a major status means; it asks for minor ones, whatever mech is. */
EXPORT OM_uint32 gssi_display_status(OM_uint32 *minor, OM_uint32 value, int type, gss_OID mech,
	OM_uint32 *message_context, gss_buffer_t status)
{
	if (type == GSS_C_GSS_CODE)
		return gss_display_status(minor, value, type, mech, message_context, status);
	*minor = 0;
	if (type != GSS_C_MECH_CODE)
		return GSS_S_BAD_STATUS;
	if (*message_context != 0) { /* every text is told at once */
		*minor = EINVAL;
		return GSS_S_FAILURE;
	}
	return text_of(minor, value, message_context, status);
}
