/* What MIT's library says of status codes: each input line is "major" or "minor" and
 * a number; the answer is all parts of the text, joined as the C daemon joins them. */
#include <gssapi/gssapi.h>
#include <krb5.h>
#include <stdio.h>
#include <string.h>

int main(void)
{
    static gss_OID_desc mech = { 9, "\x2a\x86\x48\x86\xf7\x12\x01\x02\x02" };
    gss_buffer_desc b = { 3, "a@b" };
    gss_name_t name, mn;
    gss_cred_id_t cred;
    krb5_context ctx;
    OM_uint32 min;
    char line[64], kind[8];
    unsigned int code;

    krb5_init_context(&ctx);
    /* the mechanism's error tables are there once it has been called */
    gss_import_name(&min, &b, GSS_C_NT_HOSTBASED_SERVICE, &name);
    if (gss_canonicalize_name(&min, name, &mech, &mn) == 0)
        gss_acquire_cred(&min, mn, 0, GSS_C_NO_OID_SET, GSS_C_ACCEPT, &cred, 0, 0);
    while (fgets(line, sizeof(line), stdin) && sscanf(line, "%7s %u", kind, &code) == 2) {
        if (kind[1] == 'i') {
            printf("%s", krb5_get_error_message(ctx, (krb5_error_code)code));
        } else {
            OM_uint32 more = 0;
            int first = 1;
            do {
                if (gss_display_status(&min, code, GSS_C_GSS_CODE, &mech, &more, &b))
                    break;
                printf("%s%.*s", first ? "" : ", ", (int)b.length, (char *)b.value);
                first = 0;
            } while (more);
        }
        putchar('\n');
        fflush(stdout);
    }
    return 0;
}
