/*
 * spnegotool: gsstool whose contexts are negotiated by MIT's SPNEGO.
 *
 * gsstool's commands, of which "init", "step" and "accept" stay plain
 * Kerberos, and:
 *
 *   neginit MECHS TARGET FLAGS -> ok ID MAJOR TOKEN      (MECHS to offer: OIDs in hex, by comma; "-": the default)
 *   negstep ID TOKEN           -> ok MAJOR TOKEN FLAGS MECH
 *   negaccept ID|- TOKEN       -> ok ID MAJOR TOKEN FLAGS MECH CLIENT
 *
 * MECH is the mechanism's OID in hex, known when the context is complete.
 */
#define main gsstool_main
#include "gsstool.c"
#undef main

static gss_OID_desc spnego_oid = { 6, "\x2b\x06\x01\x05\x05\x02" };
static gss_OID_set_desc spnego_only = { 1, &spnego_oid };

static struct negotiation {
	gss_cred_id_t cred;
	gss_name_t target;
	OM_uint32 flags;
} *negotiations;
static int n_negotiations;

static struct negotiation *negotiation(int id)
{
	negotiations = need(realloc(negotiations, n_contexts * sizeof(*negotiations)));
	while (n_negotiations < n_contexts)
		negotiations[n_negotiations++] = (struct negotiation){ GSS_C_NO_CREDENTIAL, GSS_C_NO_NAME, 0 };
	return &negotiations[id];
}

static void put_oid(gss_OID oid)
{
	putchar(' ');
	put_hex(oid ? oid->elements : NULL, oid ? oid->length : 0);
}

static OM_uint32 offer(OM_uint32 *min, gss_cred_id_t cred, char *list)
{
	OM_uint32 maj;
	gss_OID_set set = GSS_C_NO_OID_SET;
	char *w;

	maj = gss_create_empty_oid_set(min, &set);
	while (!GSS_ERROR(maj) && (w = strsep(&list, ",")) != NULL) {
		gss_OID_desc oid;
		gss_buffer_desc b;

		rest = w;
		b = binary();
		oid.length = b.length;
		oid.elements = b.value;
		maj = gss_add_oid_set_member(min, &oid, &set);
		free(b.value);
	}
	if (!GSS_ERROR(maj))
		maj = gss_set_neg_mechs(min, cred, set);
	gss_release_oid_set(&(OM_uint32){ 0 }, &set);
	return maj;
}

static void cmd_neginit(void)
{
	OM_uint32 maj, min;
	char *mechs = word();
	struct negotiation n;
	gss_ctx_id_t ctx = GSS_C_NO_CONTEXT;
	gss_buffer_desc out = GSS_C_EMPTY_BUFFER;
	int id;

	n.target = hostbased(word());
	n.flags = number();
	maj = gss_acquire_cred(&min, GSS_C_NO_NAME, GSS_C_INDEFINITE, &spnego_only, GSS_C_INITIATE, &n.cred, NULL, NULL);
	if (!GSS_ERROR(maj) && strcmp(mechs, "-") != 0)
		maj = offer(&min, n.cred, mechs);
	if (!GSS_ERROR(maj))
		maj = gss_init_sec_context(&min, n.cred, &ctx, n.target, &spnego_oid, n.flags, 0,
					   GSS_C_NO_CHANNEL_BINDINGS, GSS_C_NO_BUFFER, NULL, &out, NULL, NULL);
	if (GSS_ERROR(maj)) {
		fail(maj, min, &out);
		return;
	}
	id = add_context(ctx);
	*negotiation(id) = n;
	printf("ok %d %u", id, maj);
	put(&out);
	printf("\n");
}

static void cmd_negstep(void)
{
	OM_uint32 maj, min, flags = 0;
	gss_ctx_id_t *ctx = context();
	struct negotiation *n = negotiation(ctx - contexts);
	gss_buffer_desc in = binary(), out = GSS_C_EMPTY_BUFFER;
	gss_OID mech = GSS_C_NO_OID;

	maj = gss_init_sec_context(&min, n->cred, ctx, n->target, &spnego_oid, n->flags, 0,
				   GSS_C_NO_CHANNEL_BINDINGS, &in, &mech, &out, &flags, NULL);
	free(in.value);
	if (GSS_ERROR(maj)) {
		fail(maj, min, &out);
		return;
	}
	printf("ok %u", maj);
	put(&out);
	printf(" %u", flags);
	put_oid(maj == GSS_S_COMPLETE ? mech : NULL);
	printf("\n");
}

static void cmd_negaccept(void)
{
	OM_uint32 maj, min, flags = 0;
	char *w = word();
	int id = strcmp(w, "-") == 0 ? add_context(GSS_C_NO_CONTEXT) : atoi(w);
	gss_buffer_desc in = binary(), out = GSS_C_EMPTY_BUFFER, name = GSS_C_EMPTY_BUFFER;
	gss_name_t client = GSS_C_NO_NAME;
	gss_OID mech = GSS_C_NO_OID;

	if (id < 0 || id >= n_contexts)
		die("no such context");
	if (in.value == NULL)
		in.value = need(calloc(1, 1));
	maj = gss_accept_sec_context(&min, &contexts[id], accept_cred, &in, GSS_C_NO_CHANNEL_BINDINGS,
				     &client, &mech, &out, &flags, NULL, NULL);
	free(in.value);
	if (GSS_ERROR(maj)) {
		fail(maj, min, &out);
		return;
	}
	printf("ok %d %u", id, maj);
	put(&out);
	printf(" %u", flags);
	put_oid(maj == GSS_S_COMPLETE ? mech : NULL);
	if (client != GSS_C_NO_NAME)
		gss_display_name(&min, client, &name, NULL);
	put(&name);
	printf("\n");
	gss_release_name(&min, &client);
}

int main(void)
{
	char *line = NULL, *w;
	size_t size = 0, i;
	ssize_t n;

	setvbuf(stdout, NULL, _IOFBF, 1 << 16);
	while ((n = getline(&line, &size, stdin)) > 0) {
		if (line[n - 1] == '\n')
			line[n - 1] = '\0';
		rest = line;
		w = word();
		for (i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
			if (strcmp(w, commands[i].name) == 0)
				break;
		if (strcmp(w, "neginit") == 0)
			cmd_neginit();
		else if (strcmp(w, "negstep") == 0)
			cmd_negstep();
		else if (strcmp(w, "negaccept") == 0)
			cmd_negaccept();
		else if (i < sizeof(commands) / sizeof(commands[0]))
			commands[i].run();
		else
			die("unknown command");
		fflush(stdout);
	}
	return 0;
}
