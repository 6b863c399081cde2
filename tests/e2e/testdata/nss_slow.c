/* A module of the name service that takes a minute to say that it does not know a user whose name begins with "slow". It
 * goes by the name of a module that every system with glibc has, so that it can be put in that one's place. */
#include <errno.h>
#include <nss.h>
#include <pwd.h>
#include <string.h>
#include <unistd.h>

enum nss_status _nss_hesiod_getpwnam_r(const char *name, struct passwd *pw, char *buf, size_t len, int *err)
{
	(void)pw, (void)buf, (void)len;
	if (!strncmp(name, "slow", 4))
		sleep(60);
	*err = ENOENT;
	return NSS_STATUS_NOTFOUND;
}
