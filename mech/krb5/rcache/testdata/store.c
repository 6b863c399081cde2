/* Stores tags in a replay cache through MIT's library: the cache's name as
 * argument, one tag in hexadecimal per line on the input; one error code per line
 * on the output. The two functions are exported without being declared. */
#include <krb5.h>
#include <stdio.h>
#include <string.h>

struct rcache;
krb5_error_code k5_rc_resolve(krb5_context, const char *, struct rcache **);
krb5_error_code k5_rc_store(krb5_context, struct rcache *, const krb5_enc_data *);

int main(int argc, char **argv)
{
    krb5_context ctx;
    struct rcache *rc;
    char line[256];

    if (argc != 2 || krb5_init_context(&ctx) || k5_rc_resolve(ctx, argv[1], &rc))
        return 1;
    while (fgets(line, sizeof(line), stdin)) {
        unsigned char tag[12] = { 0 };
        unsigned int i, b;
        for (i = 0; i < sizeof(tag) && sscanf(line + 2 * i, "%2x", &b) == 1; i++)
            tag[i] = b;
        krb5_enc_data d = { .enctype = 18, .ciphertext = { .length = sizeof(tag), .data = (char *)tag } };
        printf("%d\n", (int)k5_rc_store(ctx, rc, &d));
        fflush(stdout);
    }
    return 0;
}
