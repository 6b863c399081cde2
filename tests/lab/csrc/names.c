/* What MIT's library makes of names. Each input line is a command and arguments in
 * hexadecimal, "-" for an empty one:
 *   import TYPE NAME   gss_import_name, and of the result and of what
 *                      gss_canonicalize_name makes of it for Kerberos: display
 *                      name, type, exported name, composite name; of the latter
 *                      also the local name
 *   local PRINCIPAL    krb5_aname_to_localname
 *   parse PRINCIPAL    krb5_parse_name and krb5_unparse_name, with the name type
 *   conf FILE          reads that configuration from now on */
#include <gssapi/gssapi.h>
#include <gssapi/gssapi_ext.h>
#include <krb5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static gss_OID_desc krb5mech = { 9, "\x2a\x86\x48\x86\xf7\x12\x01\x02\x02" };

static gss_buffer_desc unhex(const char *s)
{
    gss_buffer_desc b = { 0, calloc(1, strlen(s) + 1) };
    unsigned int c;
    if (s[0] != '-')
        for (; sscanf(s, "%2x", &c) == 1; s += 2)
            ((unsigned char *)b.value)[b.length++] = c;
    return b;
}

static void hex(const void *p, size_t n)
{
    putchar(' ');
    if (n == 0)
        putchar('-');
    for (size_t i = 0; i < n; i++)
        printf("%02x", ((const unsigned char *)p)[i]);
}

static void result(OM_uint32 maj, OM_uint32 min, gss_buffer_t b)
{
    if (maj)
        printf(" !%u:%u", maj, min);
    else
        hex(b->value, b->length);
}

static void show(gss_name_t name)
{
    OM_uint32 maj, min;
    gss_buffer_desc b = { 0, 0 };
    gss_OID type = NULL;
    maj = gss_display_name(&min, name, &b, &type);
    result(maj, min, &b);
    hex(type ? type->elements : 0, type ? type->length : 0);
    b.length = 0;
    maj = gss_export_name(&min, name, &b);
    result(maj, min, &b);
    b.length = 0;
    maj = gss_export_name_composite(&min, name, &b);
    result(maj, min, &b);
}

static void local(gss_name_t name)
{
    OM_uint32 maj, min;
    gss_buffer_desc b = { 0, 0 };
    maj = gss_localname(&min, name, &krb5mech, &b);
    result(maj, min, &b);
}

int main(void)
{
    static char line[65536], cmd[16], a1[32768], a2[32768];
    while (fgets(line, sizeof(line), stdin)) {
        OM_uint32 maj, min = 0;
        krb5_context ctx;
        krb5_principal p;
        krb5_error_code ret;
        strcpy(a2, "-");
        sscanf(line, "%15s %32767s %32767s", cmd, a1, a2);
        if (!strcmp(cmd, "conf")) {
            setenv("KRB5_CONFIG", unhex(a1).value, 1);
        } else if (!strcmp(cmd, "import")) {
            gss_buffer_desc t = unhex(a1), n = unhex(a2);
            gss_OID_desc oid = { t.length, t.value };
            gss_name_t name = 0, mn = 0;
            maj = gss_import_name(&min, &n, t.length ? &oid : GSS_C_NO_OID, &name);
            printf("%u:%u", maj, maj ? min : 0);
            if (!maj) {
                show(name);
                maj = gss_canonicalize_name(&min, name, &krb5mech, &mn);
                printf(" %u:%u", maj, maj ? min : 0);
                if (!maj) {
                    show(mn);
                    local(mn);
                }
            }
        } else if (krb5_init_context(&ctx)) {
            printf("no context");
        } else if ((ret = krb5_parse_name(ctx, unhex(a1).value, &p))) {
            printf("!%d", (int)ret);
        } else if (!strcmp(cmd, "local")) {
            char buf[1024];
            ret = krb5_aname_to_localname(ctx, p, sizeof(buf), buf);
            if (ret)
                printf("!%d", (int)ret);
            else
                hex(buf, strlen(buf));
        } else {
            char *s;
            if ((ret = krb5_unparse_name(ctx, p, &s)))
                printf("!%d", (int)ret);
            else
                hex(s, strlen(s));
            printf(" %d", (int)p->type);
        }
        putchar('\n');
        fflush(stdout);
    }
    return 0;
}
