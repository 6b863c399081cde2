/*
 * calls: one GSS-API call a line, so that what one library or plugin answers can be compared with what another does.
 *
 * A line on stdin is a command and its words, separated by blanks; "-" is nothing. Names, credentials and contexts are
 * kept in registers, 0 to 31, that are released when something new is put there. Binary words are hex. An answer is one
 * line of fields separated by tabs: the major status, the text of the minor one, and what the call gave, as NAME=VALUE.
 * Values that are bytes are hex.
 *
 * A mechanism is krb5, old, wrong, iakerb, spnego or unknown; a set of them is separated by "+", "empty" or "-". A type of
 * names is none, host, user, uid, uidtext, principal, krb5principal (a pointer), anonymous, export, composite or unknown.
 * A store is KEY=VALUE,KEY=VALUE; a usage both, initiate or accept.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <gssapi/gssapi.h>
#include <gssapi/gssapi_ext.h>
#include <gssapi/gssapi_krb5.h>
#include <krb5/krb5.h>

#define REGISTERS 32

static gss_name_t names[REGISTERS];
static gss_cred_id_t creds[REGISTERS];
static gss_ctx_id_t contexts[REGISTERS];
static char *rest;	/* of the line */
static krb5_context krb5;
static krb5_principal principals[REGISTERS];	/* of names that are pointers to them */

static void die(const char *what)
{
	fprintf(stderr, "calls: %s\n", what);
	exit(2);
}

/* ---- words ---- */

static char *word(void)
{
	char *w = strsep(&rest, " ");

	if (!w || !*w)
		die("a word is missing");
	return w;
}

static int number(void)
{
	return (int)strtol(word(), NULL, 0);
}

static int is(const char *a, const char *b)
{
	return strcmp(a, b) == 0;
}

static int reg(const char *w)
{
	int i = atoi(w);

	if (i < 0 || i >= REGISTERS)
		die("no such register");
	return i;
}

static int register_of(void)
{
	return reg(word());
}

static gss_name_t name_or_none(void)
{
	char *w = word();

	return is(w, "-") ? GSS_C_NO_NAME : names[reg(w)];
}

static gss_cred_id_t cred_or_none(void)
{
	char *w = word();

	return is(w, "-") ? GSS_C_NO_CREDENTIAL : creds[reg(w)];
}

static gss_buffer_desc bytes(void)
{
	char *w = word();
	gss_buffer_desc b = { is(w, "-") ? 0 : strlen(w) / 2, NULL };
	unsigned int byte;

	b.value = malloc(b.length + 1);
	for (size_t i = 0; i < b.length; i++) {
		if (sscanf(w + 2 * i, "%2x", &byte) != 1)
			die("bad hex");
		((unsigned char *)b.value)[i] = byte;
	}
	((unsigned char *)b.value)[b.length] = 0;
	return b;
}

static gss_buffer_desc text(void)
{
	char *w = word();
	gss_buffer_desc b = { is(w, "-") ? 0 : strlen(w), w };

	return b;
}

static const struct {
	const char *name;
	gss_OID_desc oid;
} mechs[] = {
	{ "krb5", { 9, "\x2a\x86\x48\x86\xf7\x12\x01\x02\x02" } },
	{ "old", { 5, "\x2b\x05\x01\x05\x02" } },
	{ "wrong", { 9, "\x2a\x86\x48\x82\xf7\x12\x01\x02\x02" } },
	{ "iakerb", { 6, "\x2b\x06\x01\x05\x02\x05" } },
	{ "spnego", { 6, "\x2b\x06\x01\x05\x05\x02" } },
	{ "unknown", { 3, "\x2a\x03\x04" } },
}, types[] = {
	{ "host", { 10, "\x2a\x86\x48\x86\xf7\x12\x01\x02\x01\x04" } },
	{ "user", { 10, "\x2a\x86\x48\x86\xf7\x12\x01\x02\x01\x01" } },
	{ "uid", { 10, "\x2a\x86\x48\x86\xf7\x12\x01\x02\x01\x02" } },
	{ "uidtext", { 10, "\x2a\x86\x48\x86\xf7\x12\x01\x02\x01\x03" } },
	{ "principal", { 10, "\x2a\x86\x48\x86\xf7\x12\x01\x02\x02\x01" } },
	{ "krb5principal", { 10, "\x2a\x86\x48\x86\xf7\x12\x01\x02\x02\x02" } },
	{ "anonymous", { 6, "\x2b\x06\x01\x05\x06\x03" } },
	{ "export", { 6, "\x2b\x06\x01\x05\x06\x04" } },
	{ "composite", { 6, "\x2b\x06\x01\x05\x06\x06" } },
	{ "unknown", { 3, "\x2a\x03\x04" } },
};

#define COUNT(list) (sizeof(list) / sizeof(list[0]))

static gss_OID mech_of(const char *w)
{
	if (is(w, "-"))
		return GSS_C_NO_OID;
	for (size_t i = 0; i < COUNT(mechs); i++)
		if (is(w, mechs[i].name))
			return (gss_OID)&mechs[i].oid;
	die("no such mechanism");
	return NULL;
}

static gss_OID type_of(const char *w)
{
	if (is(w, "none"))
		return GSS_C_NO_OID;
	for (size_t i = 0; i < COUNT(types); i++)
		if (is(w, types[i].name))
			return (gss_OID)&types[i].oid;
	die("no such type");
	return NULL;
}

static gss_OID_set mechs_of(void)
{
	char *w = word(), *one;
	gss_OID_set set;
	OM_uint32 minor;

	if (is(w, "-"))
		return GSS_C_NO_OID_SET;
	gss_create_empty_oid_set(&minor, &set);
	if (is(w, "empty"))
		return set;
	while ((one = strsep(&w, "+")))
		gss_add_oid_set_member(&minor, mech_of(one), &set);
	return set;
}

static gss_cred_usage_t usage_of(void)
{
	char *w = word();

	return is(w, "initiate") ? GSS_C_INITIATE : is(w, "accept") ? GSS_C_ACCEPT : GSS_C_BOTH;
}

static gss_key_value_set_desc *store_of(void)
{
	static gss_key_value_element_desc elements[8];
	static gss_key_value_set_desc set = { 0, elements };
	char *w = word(), *one;

	set.count = 0;
	if (is(w, "-"))
		return NULL;
	while ((one = strsep(&w, ",")) && set.count < COUNT(elements)) {
		elements[set.count].key = strsep(&one, "=");
		elements[set.count++].value = one;
	}
	return &set;
}

/* ---- answers ---- */

static void put_text(const char *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		putchar(p[i] < ' ' ? ' ' : p[i]);
}

/* status begins an answer, and reports whether the call did what it was to do. */
static int status(OM_uint32 major, OM_uint32 minor)
{
	OM_uint32 more = 0, ignored;
	gss_buffer_desc b;

	printf("%#x\t", major);
	while (GSS_ERROR(major) && minor != 0 &&
	       !GSS_ERROR(gss_display_status(&ignored, minor, GSS_C_MECH_CODE, (gss_OID)&mechs[0].oid, &more, &b))) {
		put_text(b.value, b.length);
		gss_release_buffer(&ignored, &b);
		if (more == 0)
			break;
		putchar(' ');
	}
	return !GSS_ERROR(major);
}

static void field(const char *name)
{
	printf("\t%s=", name);
}

static void put_hex(const char *name, gss_buffer_t b)
{
	field(name);
	for (size_t i = 0; i < b->length; i++)
		printf("%02x", ((unsigned char *)b->value)[i]);
}

static void put_number(const char *name, uint32_t n)
{
	field(name);
	printf("%u", n);
}

static void put_oid(const char *name, gss_OID oid)
{
	gss_buffer_desc b = GSS_C_EMPTY_BUFFER;
	OM_uint32 minor;

	field(name);
	if (oid == GSS_C_NO_OID) {
		putchar('-');
		return;
	}
	gss_oid_to_str(&minor, oid, &b);
	put_text(b.value, b.length);
	gss_release_buffer(&minor, &b);
}

static int by_text(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* put_oids writes a set in an order of its own. */
static void put_oids(const char *name, gss_OID_set set)
{
	char *list[64];
	size_t n = 0;

	field(name);
	for (size_t i = 0; set && i < set->count && n < COUNT(list); i++) {
		gss_buffer_desc b;
		OM_uint32 minor;

		gss_oid_to_str(&minor, &set->elements[i], &b);
		list[n++] = strndup(b.value, b.length);
		gss_release_buffer(&minor, &b);
	}
	qsort(list, n, sizeof(list[0]), by_text);
	for (size_t i = 0; i < n; i++) {
		printf("%s%s", i ? "," : "", list[i]);
		free(list[i]);
	}
}

static void put_name(const char *label, gss_name_t name)
{
	gss_buffer_desc b;
	gss_OID type;
	OM_uint32 minor;

	field(label);
	if (name == GSS_C_NO_NAME) {
		putchar('-');
	} else if (gss_display_name(&minor, name, &b, &type) != GSS_S_COMPLETE) {
		putchar('?');
	} else {
		put_text(b.value, b.length);
		gss_release_buffer(&minor, &b);
	}
}

static void keep_name(int i, gss_name_t name)
{
	OM_uint32 minor;

	gss_release_name(&minor, &names[i]);
	names[i] = name;
}

static void keep_cred(int i, gss_cred_id_t cred)
{
	OM_uint32 minor;

	gss_release_cred(&minor, &creds[i]);
	creds[i] = cred;
}

static void forget_oids(gss_OID_set *set)
{
	OM_uint32 minor;

	if (*set)
		gss_release_oid_set(&minor, set);
}

static void forget(gss_buffer_t b)
{
	OM_uint32 minor;

	gss_release_buffer(&minor, b);
}

/* put_out writes a buffer that a call gave, and releases it. */
static void put_out(const char *name, gss_buffer_t b)
{
	put_hex(name, b);
	forget(b);
}

/* ---- names ---- */

static void cmd_import_name(void)	/* N TYPE TEXT */
{
	int n = register_of();
	char *w = word();
	gss_OID type = type_of(w);
	gss_buffer_desc b;
	gss_name_t name = GSS_C_NO_NAME;
	uint32_t uid;
	OM_uint32 major, minor;

	gss_buffer_desc binary = GSS_C_EMPTY_BUFFER;

	if (is(w, "export") || is(w, "composite"))
		b = binary = bytes();
	else
		b = text();
	if (is(w, "uid")) {
		uid = (uint32_t)atoi(b.value);
		b = (gss_buffer_desc){ sizeof(uid), &uid };
	} else if (is(w, "krb5principal")) {
		if (krb5_parse_name(krb5, b.value, &principals[n]) != 0)
			die("no principal");
		b = (gss_buffer_desc){ sizeof(principals[n]), &principals[n] };
	}
	major = gss_import_name(&minor, &b, type, &name);
	free(binary.value);
	keep_name(n, name);
	status(major, minor);
}

static void cmd_canonicalize(void)	/* N RESULT MECH */
{
	gss_name_t from = names[register_of()], name = GSS_C_NO_NAME;
	int n = register_of();
	OM_uint32 minor, major = gss_canonicalize_name(&minor, from, mech_of(word()), &name);

	keep_name(n, name);
	status(major, minor);
}

static void cmd_duplicate(void)	/* N RESULT */
{
	gss_name_t from = names[register_of()], name = GSS_C_NO_NAME;
	int n = register_of();
	OM_uint32 minor, major = gss_duplicate_name(&minor, from, &name);

	keep_name(n, name);
	status(major, minor);
}

static void cmd_display(void)	/* N */
{
	gss_buffer_desc b = GSS_C_EMPTY_BUFFER;
	gss_OID type = GSS_C_NO_OID;
	OM_uint32 minor, major = gss_display_name(&minor, names[register_of()], &b, &type);

	if (status(major, minor)) {
		field("name");
		put_text(b.value, b.length);
		put_oid("type", type);
	}
	forget(&b);
}

static void cmd_display_ext(void)	/* N TYPE */
{
	gss_name_t name = names[register_of()];
	gss_buffer_desc b = GSS_C_EMPTY_BUFFER;
	OM_uint32 minor, major = gss_display_name_ext(&minor, name, type_of(word()), &b);

	if (status(major, minor)) {
		field("name");
		put_text(b.value, b.length);
	}
	forget(&b);
}

static void cmd_export_name(void)	/* N */
{
	gss_buffer_desc b = GSS_C_EMPTY_BUFFER;
	OM_uint32 minor, major = gss_export_name(&minor, names[register_of()], &b);

	if (status(major, minor))
		put_hex("exported", &b);
	forget(&b);
}

static void cmd_export_composite(void)	/* N */
{
	gss_buffer_desc b = GSS_C_EMPTY_BUFFER;
	OM_uint32 minor, major = gss_export_name_composite(&minor, names[register_of()], &b);

	if (status(major, minor))
		put_hex("exported", &b);
	forget(&b);
}

static void cmd_compare(void)	/* N N */
{
	gss_name_t a = names[register_of()], b = names[register_of()];
	int equal = 0;
	OM_uint32 minor, major = gss_compare_name(&minor, a, b, &equal);

	if (status(major, minor))
		put_number("equal", equal != 0);
}

static void cmd_inquire_name(void)	/* N */
{
	int is_mn = 0;
	gss_OID mech = GSS_C_NO_OID;
	gss_buffer_set_t attrs = GSS_C_NO_BUFFER_SET;
	OM_uint32 minor, major = gss_inquire_name(&minor, names[register_of()], &is_mn, &mech, &attrs);

	if (status(major, minor)) {
		put_number("mn", is_mn != 0);
		put_oid("mech", mech);
		field("attributes");
		for (size_t i = 0; attrs && i < attrs->count; i++) {
			printf("%s", i ? "," : "");
			put_text(attrs->elements[i].value, attrs->elements[i].length);
		}
	}
	gss_release_buffer_set(&minor, &attrs);
	gss_release_oid(&minor, &mech);
}

static void cmd_get_attribute(void)	/* N ATTRIBUTE */
{
	gss_name_t name = names[register_of()];
	gss_buffer_desc attr = text(), value = GSS_C_EMPTY_BUFFER, shown = GSS_C_EMPTY_BUFFER;
	int authenticated = 0, complete = 0, more = -1;
	OM_uint32 minor, major = gss_get_name_attribute(&minor, name, &attr, &authenticated, &complete, &value, &shown, &more);

	if (status(major, minor)) {
		put_number("authenticated", authenticated != 0);
		put_number("complete", complete != 0);
		put_number("more", more != 0);
		put_hex("value", &value);
	}
	forget(&value);
	forget(&shown);
}

static void cmd_set_attribute(void)	/* N ATTRIBUTE VALUE */
{
	gss_name_t name = names[register_of()];
	gss_buffer_desc attr = text(), value = text();
	OM_uint32 minor, major = gss_set_name_attribute(&minor, name, 1, &attr, &value);

	status(major, minor);
}

static void cmd_delete_attribute(void)	/* N ATTRIBUTE */
{
	gss_name_t name = names[register_of()];
	gss_buffer_desc attr = text();
	OM_uint32 minor, major = gss_delete_name_attribute(&minor, name, &attr);

	status(major, minor);
}

static void cmd_map_name(void)	/* N MODULE */
{
	gss_name_t name = names[register_of()];
	gss_buffer_desc module = text();
	gss_any_t any = NULL;
	OM_uint32 minor, ignored, major = gss_map_name_to_any(&minor, name, 1, &module, &any);

	status(major, minor);
	if (!GSS_ERROR(major))
		gss_release_any_name_mapping(&ignored, name, &module, &any);
}

static void cmd_localname(void)	/* N MECH */
{
	gss_name_t name = names[register_of()];
	gss_buffer_desc b = GSS_C_EMPTY_BUFFER;
	OM_uint32 minor, major = gss_localname(&minor, name, mech_of(word()), &b);

	if (status(major, minor)) {
		field("user");
		put_text(b.value, b.length);
	}
	forget(&b);
}

static void cmd_authorize(void)	/* N USER */
{
	gss_name_t name = names[register_of()], user = GSS_C_NO_NAME;
	gss_buffer_desc b = text();
	OM_uint32 minor, ignored, major;

	gss_import_name(&ignored, &b, GSS_C_NT_USER_NAME, &user);
	major = gss_authorize_localname(&minor, name, user);
	status(major, minor);
	gss_release_name(&ignored, &user);
}

/* ---- credentials ---- */

static void acquired(OM_uint32 major, OM_uint32 minor, int c, gss_cred_id_t cred, gss_OID_set actual, OM_uint32 time)
{
	keep_cred(c, cred);
	if (status(major, minor)) {
		put_oids("mechs", actual);
		put_number("life", time);
	}
	forget_oids(&actual);
}

static void cmd_acquire(void)	/* C NAME MECHS USAGE STORE */
{
	int c = register_of();
	gss_name_t name = name_or_none();
	gss_OID_set wanted = mechs_of(), actual = GSS_C_NO_OID_SET;
	gss_cred_usage_t usage = usage_of();
	gss_key_value_set_desc *store = store_of();
	gss_cred_id_t cred = GSS_C_NO_CREDENTIAL;
	OM_uint32 minor, major, time = 0;

	if (store)
		major = gss_acquire_cred_from(&minor, name, GSS_C_INDEFINITE, wanted, usage, store, &cred, &actual, &time);
	else
		major = gss_acquire_cred(&minor, name, GSS_C_INDEFINITE, wanted, usage, &cred, &actual, &time);
	forget_oids(&wanted);
	acquired(major, minor, c, cred, actual, time);
}

static void cmd_with_password(void)	/* C NAME PASSWORD */
{
	int c = register_of();
	gss_name_t name = name_or_none();
	gss_buffer_desc password = text();
	gss_OID_set actual = GSS_C_NO_OID_SET;
	gss_OID_set_desc wanted = { 1, (gss_OID)&mechs[0].oid };
	gss_cred_id_t cred = GSS_C_NO_CREDENTIAL;
	OM_uint32 minor, time = 0, major = gss_acquire_cred_with_password(&minor, name, &password, GSS_C_INDEFINITE, &wanted,
									  GSS_C_INITIATE, &cred, &actual, &time);

	acquired(major, minor, c, cred, actual, time);
}

static void cmd_impersonate(void)	/* C BY NAME */
{
	int c = register_of();
	gss_cred_id_t by = cred_or_none(), cred = GSS_C_NO_CREDENTIAL;
	gss_name_t name = name_or_none();
	gss_OID_set actual = GSS_C_NO_OID_SET;
	gss_OID_set_desc wanted = { 1, (gss_OID)&mechs[0].oid };
	OM_uint32 minor, time = 0, major = gss_acquire_cred_impersonate_name(&minor, by, name, GSS_C_INDEFINITE, &wanted,
									     GSS_C_INITIATE, &cred, &actual, &time);

	acquired(major, minor, c, cred, actual, time);
}

static void cmd_add(void)	/* C INPUT NAME MECH USAGE: of an input it makes a copy with one more element */
{
	int c = register_of();
	gss_cred_id_t input = cred_or_none(), cred = GSS_C_NO_CREDENTIAL;
	gss_name_t name = name_or_none();
	gss_OID mech = mech_of(word());
	gss_OID_set actual = GSS_C_NO_OID_SET;
	OM_uint32 minor, initiator = 0, acceptor = 0;
	OM_uint32 major = gss_add_cred(&minor, input, name, mech, usage_of(), GSS_C_INDEFINITE, GSS_C_INDEFINITE, &cred, &actual,
				       &initiator, &acceptor);

	keep_cred(c, cred);
	if (status(major, minor)) {
		put_oids("mechs", actual);
		put_number("life", initiator);
		put_number("life_accept", acceptor);
	}
	forget_oids(&actual);
}

static void cmd_inquire_cred(void)	/* C */
{
	gss_name_t name = GSS_C_NO_NAME;
	gss_cred_usage_t usage = 99;
	gss_OID_set set = GSS_C_NO_OID_SET;
	OM_uint32 minor, time = 0, major = gss_inquire_cred(&minor, cred_or_none(), &name, &time, &usage, &set);

	if (status(major, minor)) {
		put_name("name", name);
		put_number("life", time);
		put_number("usage", usage);
		put_oids("mechs", set);
	}
	gss_release_name(&minor, &name);
	forget_oids(&set);
}

static void cmd_inquire_cred_by_mech(void)	/* C MECH */
{
	gss_cred_id_t cred = cred_or_none();
	gss_name_t name = GSS_C_NO_NAME;
	gss_cred_usage_t usage = 99;
	OM_uint32 minor, initiator = 0, acceptor = 0;
	OM_uint32 major = gss_inquire_cred_by_mech(&minor, cred, mech_of(word()), &name, &initiator, &acceptor, &usage);

	if (status(major, minor)) {
		put_name("name", name);
		put_number("life", initiator);
		put_number("life_accept", acceptor);
		put_number("usage", usage);
	}
	gss_release_name(&minor, &name);
}

static void cmd_inquire_cred_by_oid(void)	/* C: who impersonates */
{
	gss_buffer_set_t set = GSS_C_NO_BUFFER_SET;
	OM_uint32 minor, major = gss_inquire_cred_by_oid(&minor, cred_or_none(), (gss_OID)GSS_KRB5_GET_CRED_IMPERSONATOR, &set);

	if (status(major, minor))
		put_number("count", set ? (uint32_t)set->count : 0);
	gss_release_buffer_set(&minor, &set);
}

static void cmd_enctypes(void)	/* C NUMBER */
{
	gss_cred_id_t cred = cred_or_none();
	krb5_enctype list[] = { number(), 0 };
	OM_uint32 minor = 0, major = GSS_S_NO_CRED;

	if (cred != GSS_C_NO_CREDENTIAL)	/* without one libgssapi crashes */
		major = gss_krb5_set_allowable_enctypes(&minor, cred, 1, list);
	status(major, minor);
}

static void cmd_no_ci_flags(void)	/* C */
{
	int c = register_of();
	gss_buffer_desc none = GSS_C_EMPTY_BUFFER;
	OM_uint32 minor = 0, major = GSS_S_NO_CRED;

	if (creds[c] != GSS_C_NO_CREDENTIAL)
		major = gss_set_cred_option(&minor, &creds[c], (gss_OID)GSS_KRB5_CRED_NO_CI_FLAGS_X, &none);

	status(major, minor);
}

static void cmd_unknown_option(void)	/* C */
{
	int c = register_of();
	gss_buffer_desc none = GSS_C_EMPTY_BUFFER;
	OM_uint32 minor = 0, major = GSS_S_NO_CRED;

	if (creds[c] != GSS_C_NO_CREDENTIAL)
		major = gss_set_cred_option(&minor, &creds[c], mech_of("unknown"), &none);

	status(major, minor);
}

static void cmd_export_cred(void)	/* C */
{
	gss_buffer_desc b = GSS_C_EMPTY_BUFFER;
	OM_uint32 minor, major = gss_export_cred(&minor, cred_or_none(), &b);

	if (status(major, minor))
		put_hex("token", &b);
	forget(&b);
}

static void cmd_import_cred(void)	/* C TOKEN */
{
	int c = register_of();
	gss_buffer_desc b = bytes();
	gss_cred_id_t cred = GSS_C_NO_CREDENTIAL;
	OM_uint32 minor, major = gss_import_cred(&minor, &b, &cred);

	keep_cred(c, cred);
	status(major, minor);
	free(b.value);
}

static void cmd_store(void)	/* C USAGE OVERWRITE DEFAULT STORE */
{
	gss_cred_id_t cred = cred_or_none();
	gss_cred_usage_t usage = usage_of(), stored_usage = 99;
	int overwrite = number(), make_default = number();
	gss_key_value_set_desc *store = store_of();
	gss_OID_set stored = GSS_C_NO_OID_SET;
	OM_uint32 minor, major;

	if (store)
		major = gss_store_cred_into(&minor, cred, usage, (gss_OID)&mechs[0].oid, overwrite, make_default, store, &stored,
					    &stored_usage);
	else
		major = gss_store_cred(&minor, cred, usage, (gss_OID)&mechs[0].oid, overwrite, make_default, &stored,
				       &stored_usage);
	if (status(major, minor)) {
		put_oids("mechs", stored);
		put_number("usage", stored_usage);
	}
	forget_oids(&stored);
}

static void cmd_release_cred(void)	/* C */
{
	int c = register_of();
	OM_uint32 minor, major = gss_release_cred(&minor, &creds[c]);

	status(major, minor);
}

/* ---- contexts ---- */

static void cmd_init(void)	/* X C NAME MECH FLAGS TOKEN */
{
	int x = register_of();
	gss_cred_id_t cred = cred_or_none();
	gss_name_t name = name_or_none();
	gss_OID mech = mech_of(word()), actual = GSS_C_NO_OID;
	OM_uint32 wanted = (OM_uint32)number(), flags = 0, time = 0, minor, major;
	gss_buffer_desc in = bytes(), out = GSS_C_EMPTY_BUFFER;

	major = gss_init_sec_context(&minor, cred, &contexts[x], name, mech, wanted, 0, GSS_C_NO_CHANNEL_BINDINGS,
				     in.length ? &in : GSS_C_NO_BUFFER, &actual, &out, &flags, &time);
	if (status(major, minor)) {
		put_oid("mech", actual);
		if (major == GSS_S_COMPLETE) {	/* before, what they are differs from mechanism to mechanism */
			put_number("flags", flags);
			put_number("life", time);
		}
	}
	put_out("token", &out);
	free(in.value);
}

static void cmd_accept(void)	/* X C TOKEN SOURCE DELEGATED: a name and a credential that it gives, or - */
{
	int x = register_of();
	gss_cred_id_t cred = cred_or_none(), delegated = GSS_C_NO_CREDENTIAL;
	gss_buffer_desc in = bytes(), out = GSS_C_EMPTY_BUFFER;
	char *source = word(), *d = word();
	gss_name_t name = GSS_C_NO_NAME;
	gss_OID mech = GSS_C_NO_OID;
	OM_uint32 flags = 0, time = 0, minor, major;

	major = gss_accept_sec_context(&minor, &contexts[x], cred, &in, GSS_C_NO_CHANNEL_BINDINGS, is(source, "-") ? NULL : &name,
				       &mech, &out, &flags, &time, is(d, "-") ? NULL : &delegated);
	if (status(major, minor)) {
		put_oid("mech", mech);
		if (major == GSS_S_COMPLETE) {
			put_name("source", name);
			put_number("flags", flags);
			put_number("life", time);
			put_number("delegated", delegated != GSS_C_NO_CREDENTIAL);
		}
	}
	put_out("token", &out);
	free(in.value);
	if (!is(source, "-"))
		keep_name(reg(source), name);
	if (!is(d, "-"))
		keep_cred(reg(d), delegated);
}

static void cmd_inquire(void)	/* X */
{
	gss_name_t source = GSS_C_NO_NAME, target = GSS_C_NO_NAME;
	gss_OID mech = GSS_C_NO_OID;
	OM_uint32 minor, time = 0, flags = 0;
	int local = -1, open = -1;
	OM_uint32 major = gss_inquire_context(&minor, contexts[register_of()], &source, &target, &time, &mech, &flags, &local,
					      &open);

	if (status(major, minor)) {
		put_number("open", open != 0);
		put_number("local", local != 0);
		put_oid("mech", mech);
		if (open) {
			put_name("source", source);
			put_name("target", target);
			put_number("life", time);
			put_number("flags", flags);
		}
	}
	gss_release_name(&minor, &source);
	gss_release_name(&minor, &target);
}

static void cmd_time(void)	/* X */
{
	OM_uint32 minor, time = 0, major = gss_context_time(&minor, contexts[register_of()], &time);

	if (status(major, minor))
		put_number("life", time);
}

static void cmd_export(void)	/* X */
{
	gss_buffer_desc b = GSS_C_EMPTY_BUFFER;
	OM_uint32 minor, major = gss_export_sec_context(&minor, &contexts[register_of()], &b);

	if (status(major, minor))
		put_hex("token", &b);
	forget(&b);
}

static void cmd_import(void)	/* X TOKEN */
{
	int x = register_of();
	gss_buffer_desc b = bytes();
	OM_uint32 minor, major;

	gss_delete_sec_context(&minor, &contexts[x], NULL);
	major = gss_import_sec_context(&minor, &b, &contexts[x]);
	status(major, minor);
	free(b.value);
}

static void cmd_delete(void)	/* X */
{
	OM_uint32 minor, major = gss_delete_sec_context(&minor, &contexts[register_of()], GSS_C_NO_BUFFER);

	status(major, minor);
}

static void cmd_wrap(void)	/* X CONF MESSAGE */
{
	gss_ctx_id_t x = contexts[register_of()];
	int conf = number(), state = -1;
	gss_buffer_desc in = text(), out = GSS_C_EMPTY_BUFFER;
	OM_uint32 minor, major = gss_wrap(&minor, x, conf, GSS_C_QOP_DEFAULT, &in, &state, &out);

	if (status(major, minor)) {
		put_number("conf", state != 0);
		put_hex("token", &out);
	}
	forget(&out);
}

static void cmd_unwrap(void)	/* X TOKEN */
{
	gss_ctx_id_t x = contexts[register_of()];
	gss_buffer_desc in = bytes(), out = GSS_C_EMPTY_BUFFER;
	int state = -1;
	OM_uint32 minor, major = gss_unwrap(&minor, x, &in, &out, &state, NULL);

	if (status(major, minor)) {
		put_number("conf", state != 0);
		field("message");
		put_text(out.value, out.length);
	}
	forget(&out);
	free(in.value);
}

static void cmd_mic(void)	/* X MESSAGE */
{
	gss_ctx_id_t x = contexts[register_of()];
	gss_buffer_desc in = text(), out = GSS_C_EMPTY_BUFFER;
	OM_uint32 minor, major = gss_get_mic(&minor, x, GSS_C_QOP_DEFAULT, &in, &out);

	if (status(major, minor))
		put_hex("token", &out);
	forget(&out);
}

static void cmd_verify(void)	/* X MESSAGE MIC */
{
	gss_ctx_id_t x = contexts[register_of()];
	gss_buffer_desc in = text(), mic = bytes();
	OM_uint32 minor, major = gss_verify_mic(&minor, x, &in, &mic, NULL);

	status(major, minor);
	free(mic.value);
}

static void cmd_limit(void)	/* X CONF SIZE */
{
	gss_ctx_id_t x = contexts[register_of()];
	int conf = number();
	OM_uint32 minor, max = 0, major = gss_wrap_size_limit(&minor, x, conf, GSS_C_QOP_DEFAULT, (OM_uint32)number(), &max);

	if (status(major, minor))
		put_number("max", max);
}

static void cmd_prf(void)	/* X INPUT */
{
	gss_ctx_id_t x = contexts[register_of()];
	gss_buffer_desc in = text(), out = GSS_C_EMPTY_BUFFER;
	OM_uint32 minor, major = gss_pseudo_random(&minor, x, GSS_C_PRF_KEY_FULL, &in, 24, &out);

	if (status(major, minor))
		put_hex("bytes", &out);
	forget(&out);
}

static gss_iov_buffer_desc iov_of(OM_uint32 type, void *p, size_t n)
{
	gss_iov_buffer_desc v = { type, { n, p } };

	return v;
}

/* put_iov writes the buffers of an iov one behind the other. */
static void put_iov(const char *name, gss_iov_buffer_desc *iov, int n)
{
	field(name);
	for (int i = 0; i < n; i++)
		for (size_t k = 0; k < iov[i].buffer.length && GSS_IOV_BUFFER_TYPE(iov[i].type) != GSS_IOV_BUFFER_TYPE_SIGN_ONLY; k++)
			printf("%02x", ((unsigned char *)iov[i].buffer.value)[k]);
}

static void cmd_wrap_iov(void)	/* X MESSAGE ASSOCIATED */
{
	gss_ctx_id_t x = contexts[register_of()];
	gss_buffer_desc in = text(), assoc = text();
	char *data = strndup(in.value, in.length);
	int state = -1;
	gss_iov_buffer_desc iov[] = {
		iov_of(GSS_IOV_BUFFER_TYPE_HEADER | GSS_IOV_BUFFER_FLAG_ALLOCATE, NULL, 0),
		iov_of(GSS_IOV_BUFFER_TYPE_SIGN_ONLY, assoc.value, assoc.length),
		iov_of(GSS_IOV_BUFFER_TYPE_DATA, data, in.length),
		iov_of(GSS_IOV_BUFFER_TYPE_PADDING | GSS_IOV_BUFFER_FLAG_ALLOCATE, NULL, 0),
		iov_of(GSS_IOV_BUFFER_TYPE_TRAILER | GSS_IOV_BUFFER_FLAG_ALLOCATE, NULL, 0),
	};
	OM_uint32 minor, major = gss_wrap_iov(&minor, x, 1, GSS_C_QOP_DEFAULT, &state, iov, COUNT(iov));

	if (status(major, minor)) {
		put_number("conf", state != 0);
		put_iov("token", iov, COUNT(iov));
	}
	gss_release_iov_buffer(&minor, iov, COUNT(iov));
	free(data);
}

static void cmd_wrap_iov_length(void)	/* X SIZE */
{
	gss_ctx_id_t x = contexts[register_of()];
	size_t n = (size_t)number();
	int state = -1;
	gss_iov_buffer_desc iov[] = {
		iov_of(GSS_IOV_BUFFER_TYPE_HEADER, NULL, 0),
		iov_of(GSS_IOV_BUFFER_TYPE_DATA, NULL, n),
		iov_of(GSS_IOV_BUFFER_TYPE_PADDING, NULL, 0),
		iov_of(GSS_IOV_BUFFER_TYPE_TRAILER, NULL, 0),
	};
	OM_uint32 minor, major = gss_wrap_iov_length(&minor, x, 1, GSS_C_QOP_DEFAULT, &state, iov, COUNT(iov));

	if (status(major, minor)) {
		put_number("header", (uint32_t)iov[0].buffer.length);
		put_number("padding", (uint32_t)iov[2].buffer.length);
		put_number("trailer", (uint32_t)iov[3].buffer.length);
	}
}

static void cmd_unwrap_iov(void)	/* X TOKEN ASSOCIATED */
{
	gss_ctx_id_t x = contexts[register_of()];
	gss_buffer_desc in = bytes(), assoc = text();
	int state = -1;
	gss_iov_buffer_desc iov[] = {
		iov_of(GSS_IOV_BUFFER_TYPE_STREAM, in.value, in.length),
		iov_of(GSS_IOV_BUFFER_TYPE_SIGN_ONLY, assoc.value, assoc.length),
		iov_of(GSS_IOV_BUFFER_TYPE_DATA, NULL, 0),
	};
	OM_uint32 minor, major = gss_unwrap_iov(&minor, x, &state, NULL, iov, COUNT(iov));

	if (status(major, minor)) {
		put_number("conf", state != 0);
		field("message");
		put_text(iov[2].buffer.value, iov[2].buffer.length);
	}
	free(in.value);
}

static void cmd_wrap_aead(void)	/* X MESSAGE ASSOCIATED */
{
	gss_ctx_id_t x = contexts[register_of()];
	gss_buffer_desc in = text(), assoc = text(), out = GSS_C_EMPTY_BUFFER;
	int state = -1;
	OM_uint32 minor, major = gss_wrap_aead(&minor, x, 1, GSS_C_QOP_DEFAULT, &assoc, &in, &state, &out);

	if (status(major, minor)) {
		put_number("conf", state != 0);
		put_hex("token", &out);
	}
	forget(&out);
}

static void cmd_unwrap_aead(void)	/* X TOKEN ASSOCIATED */
{
	gss_ctx_id_t x = contexts[register_of()];
	gss_buffer_desc in = bytes(), assoc = text(), out = GSS_C_EMPTY_BUFFER;
	int state = -1;
	OM_uint32 minor, major = gss_unwrap_aead(&minor, x, &in, &assoc, &out, &state, NULL);

	if (status(major, minor)) {
		put_number("conf", state != 0);
		field("message");
		put_text(out.value, out.length);
	}
	forget(&out);
	free(in.value);
}

static void cmd_mic_iov(void)	/* X MESSAGE */
{
	gss_ctx_id_t x = contexts[register_of()];
	gss_buffer_desc in = text();
	gss_iov_buffer_desc iov[] = {
		iov_of(GSS_IOV_BUFFER_TYPE_DATA, in.value, in.length),
		iov_of(GSS_IOV_BUFFER_TYPE_MIC_TOKEN, NULL, 0),
	};
	OM_uint32 minor, major = gss_get_mic_iov_length(&minor, x, GSS_C_QOP_DEFAULT, iov, COUNT(iov));

	if (!GSS_ERROR(major)) {
		iov[1].buffer.value = malloc(iov[1].buffer.length);
		major = gss_get_mic_iov(&minor, x, GSS_C_QOP_DEFAULT, iov, COUNT(iov));
	}
	if (status(major, minor))
		put_hex("token", &iov[1].buffer);
	free(iov[1].buffer.value);
}

static void cmd_verify_iov(void)	/* X MESSAGE MIC */
{
	gss_ctx_id_t x = contexts[register_of()];
	gss_buffer_desc in = text(), mic = bytes();
	gss_iov_buffer_desc iov[] = {
		iov_of(GSS_IOV_BUFFER_TYPE_DATA, in.value, in.length),
		iov_of(GSS_IOV_BUFFER_TYPE_MIC_TOKEN, mic.value, mic.length),
	};
	OM_uint32 minor, major = gss_verify_mic_iov(&minor, x, NULL, iov, COUNT(iov));

	status(major, minor);
	free(mic.value);
}

static void cmd_session_key(void)	/* X */
{
	static gss_OID_desc oid = { 11, "\x2a\x86\x48\x86\xf7\x12\x01\x02\x02\x05\x05" };	/* GSS_C_INQ_SSPI_SESSION_KEY */
	gss_buffer_set_t set = GSS_C_NO_BUFFER_SET;
	OM_uint32 minor, major = gss_inquire_sec_context_by_oid(&minor, contexts[register_of()], &oid, &set);

	if (status(major, minor))
		put_number("count", set ? (uint32_t)set->count : 0);
	gss_release_buffer_set(&minor, &set);
}

static void cmd_context_option(void)	/* X */
{
	gss_buffer_desc none = GSS_C_EMPTY_BUFFER;
	OM_uint32 minor, major = gss_set_sec_context_option(&minor, &contexts[register_of()], mech_of("unknown"), &none);

	status(major, minor);
}

static void cmd_process_token(void)	/* X TOKEN */
{
	gss_ctx_id_t x = contexts[register_of()];
	gss_buffer_desc in = bytes();
	OM_uint32 minor, major = gss_process_context_token(&minor, x, &in);

	status(major, minor);
	free(in.value);
}

/* ---- mechanisms ---- */

static void put_set(const char *name, OM_uint32 major, OM_uint32 minor, gss_OID_set *set)
{
	if (status(major, minor))
		put_oids(name, *set);
	forget_oids(set);
}

static void cmd_indicate(void)
{
	gss_OID_set set = GSS_C_NO_OID_SET;
	OM_uint32 minor, major = gss_indicate_mechs(&minor, &set);

	put_set("mechs", major, minor, &set);
}

static void cmd_types(void)	/* MECH */
{
	gss_OID_set set = GSS_C_NO_OID_SET;
	OM_uint32 minor, major = gss_inquire_names_for_mech(&minor, mech_of(word()), &set);

	put_set("types", major, minor, &set);
}

static void cmd_mech_attributes(void)	/* MECH */
{
	gss_OID_set set = GSS_C_NO_OID_SET, known = GSS_C_NO_OID_SET;
	OM_uint32 minor, major = gss_inquire_attrs_for_mech(&minor, mech_of(word()), &set, &known);

	put_set("attributes", major, minor, &set);
	forget_oids(&known);
}

static void cmd_saslname(void)	/* MECH */
{
	gss_buffer_desc sasl = GSS_C_EMPTY_BUFFER, name = GSS_C_EMPTY_BUFFER, what = GSS_C_EMPTY_BUFFER;
	OM_uint32 minor, major = gss_inquire_saslname_for_mech(&minor, mech_of(word()), &sasl, &name, &what);

	if (status(major, minor)) {
		field("sasl");
		put_text(sasl.value, sasl.length);
		field("name");
		put_text(name.value, name.length);
	}
	forget(&sasl);
	forget(&name);
	forget(&what);
}

static void cmd_mech_for_sasl(void)	/* NAME */
{
	gss_buffer_desc sasl = text();
	gss_OID mech = GSS_C_NO_OID;
	OM_uint32 minor, major = gss_inquire_mech_for_saslname(&minor, &sasl, &mech);

	if (status(major, minor))
		put_oid("mech", mech);
}

static void cmd_invoke(void)	/* MECH */
{
	gss_buffer_desc none = GSS_C_EMPTY_BUFFER;
	OM_uint32 minor, major = gssspi_mech_invoke(&minor, mech_of(word()), mech_of("unknown"), &none);

	status(major, minor);
}

static const struct {
	const char *name;
	void (*run)(void);
} commands[] = {
	{ "import_name", cmd_import_name }, { "canonicalize", cmd_canonicalize }, { "duplicate", cmd_duplicate },
	{ "display", cmd_display }, { "display_ext", cmd_display_ext }, { "export_name", cmd_export_name },
	{ "export_composite", cmd_export_composite }, { "compare", cmd_compare }, { "inquire_name", cmd_inquire_name },
	{ "get_attribute", cmd_get_attribute }, { "set_attribute", cmd_set_attribute },
	{ "delete_attribute", cmd_delete_attribute }, { "map_name", cmd_map_name }, { "localname", cmd_localname },
	{ "authorize", cmd_authorize },
	{ "acquire", cmd_acquire }, { "with_password", cmd_with_password }, { "impersonate", cmd_impersonate },
	{ "add", cmd_add }, { "inquire_cred", cmd_inquire_cred }, { "inquire_cred_by_mech", cmd_inquire_cred_by_mech },
	{ "inquire_cred_by_oid", cmd_inquire_cred_by_oid }, { "enctypes", cmd_enctypes }, { "no_ci_flags", cmd_no_ci_flags },
	{ "unknown_option", cmd_unknown_option }, { "export_cred", cmd_export_cred }, { "import_cred", cmd_import_cred },
	{ "store", cmd_store }, { "release_cred", cmd_release_cred },
	{ "init", cmd_init }, { "accept", cmd_accept }, { "inquire", cmd_inquire }, { "time", cmd_time },
	{ "export", cmd_export }, { "import", cmd_import }, { "delete", cmd_delete }, { "wrap", cmd_wrap },
	{ "unwrap", cmd_unwrap }, { "mic", cmd_mic }, { "verify", cmd_verify }, { "limit", cmd_limit }, { "prf", cmd_prf },
	{ "wrap_iov", cmd_wrap_iov }, { "wrap_iov_length", cmd_wrap_iov_length }, { "unwrap_iov", cmd_unwrap_iov },
	{ "wrap_aead", cmd_wrap_aead }, { "unwrap_aead", cmd_unwrap_aead }, { "mic_iov", cmd_mic_iov },
	{ "verify_iov", cmd_verify_iov }, { "session_key", cmd_session_key }, { "context_option", cmd_context_option },
	{ "process_token", cmd_process_token },
	{ "indicate", cmd_indicate }, { "types", cmd_types }, { "mech_attributes", cmd_mech_attributes },
	{ "saslname", cmd_saslname }, { "mech_for_sasl", cmd_mech_for_sasl }, { "invoke", cmd_invoke },
};

int main(void)
{
	char *line = NULL, *w;
	size_t size = 0, i;
	OM_uint32 minor;
	ssize_t n;

	signal(SIGPIPE, SIG_IGN);
	if (krb5_init_context(&krb5) != 0)
		die("no context of libkrb5");
	setvbuf(stdout, NULL, _IOFBF, 1 << 16);
	while ((n = getline(&line, &size, stdin)) > 0) {
		if (line[n - 1] == '\n')
			line[n - 1] = '\0';
		rest = line;
		w = word();
		for (i = 0; i < COUNT(commands); i++)
			if (is(w, commands[i].name))
				break;
		if (i == COUNT(commands))
			die("no such command");
		commands[i].run();
		putchar('\n');
		fflush(stdout);
	}
	/* Everything is released, for those who look for what leaks. */
	for (i = 0; i < REGISTERS; i++) {
		gss_release_name(&minor, &names[i]);
		gss_release_cred(&minor, &creds[i]);
		gss_delete_sec_context(&minor, &contexts[i], GSS_C_NO_BUFFER);
		krb5_free_principal(krb5, principals[i]);
	}
	krb5_free_context(krb5);
	free(line);
	return 0;
}
