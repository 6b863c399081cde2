/*
 * libshift: LD_PRELOAD this to let a program live LAB_SHIFT seconds away from
 * now, or in the second LAB_STILL of the epoch for ever. With it the lab makes
 * tickets of yesterday and tokens of a slow clock.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static time_t shift(void)
{
	const char *s = getenv("LAB_SHIFT");

	return s ? atol(s) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *ts)
{
	static int (*real)(clockid_t, struct timespec *);
	int ret;

	if (real == NULL)
		real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
	ret = real(clock, ts);
	if (ret == 0 && clock == CLOCK_REALTIME) {
		const char *still = getenv("LAB_STILL");

		ts->tv_sec = still ? atol(still) : ts->tv_sec + shift();
	}
	return ret;
}

int gettimeofday(struct timeval *tv, void *tz)
{
	struct timespec ts;

	(void)tz;
	if (clock_gettime(CLOCK_REALTIME, &ts) != 0)
		return -1;
	tv->tv_sec = ts.tv_sec;
	tv->tv_usec = ts.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *t)
{
	struct timespec ts;

	if (clock_gettime(CLOCK_REALTIME, &ts) != 0)
		return -1;
	if (t != NULL)
		*t = ts.tv_sec;
	return ts.tv_sec;
}
