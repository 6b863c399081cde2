/* What MIT's profile library reads. Each input line is hexadecimal words: the list
 * of files, as in KRB5_CONFIG, and the parts of a path; the answer is the values
 * there, or "!" and an error code. */
#include <krb5.h>
#include <profile.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *unhex(const char *s)
{
    char *b = calloc(1, strlen(s) + 1), *p = b;
    unsigned int c;
    for (; sscanf(s, "%2x", &c) == 1; s += 2)
        *p++ = c;
    return b;
}

int main(void)
{
    static char line[65536];
    krb5_context ctx;
    krb5_init_context(&ctx); /* for the error tables */
    while (fgets(line, sizeof(line), stdin)) {
        const char *path[16] = { 0 };
        char *word = strtok(line, " \n"), *files = unhex(word), **values;
        profile_t profile;
        long ret;
        int n = 0;
        while ((word = strtok(NULL, " \n")) && n < 15)
            path[n++] = unhex(word);
        ret = profile_init_path(files, &profile);
        if (ret) {
            printf("!%ld\n", ret);
        } else {
            ret = profile_get_values(profile, path, &values);
            for (int i = 0; !ret && values[i]; i++) {
                printf("%s=", i ? " " : "");
                for (char *p = values[i]; *p; p++)
                    printf("%02x", (unsigned char)*p);
            }
            putchar('\n');
            profile_release(profile);
        }
        fflush(stdout);
    }
    return 0;
}
