/*
 * GSSPROXY_TRACE: a line for each decision. The file is opened anew for each line, so that no descriptor of ours is open
 * between two calls, where the program may close it and get its number for a file of its own.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "plugin.h"

/* The file's name; NULL before the first question, empty if there is none. It is never freed. */
static _Atomic(const char *) file;

static const char *find_file(void)
{
	const char *name = secure_getenv("GSSPROXY_TRACE");
	const char *first = NULL;
	char *mine = name && *name ? strdup(name) : NULL;

	name = mine ? mine : "";
	if (atomic_compare_exchange_strong(&file, &first, name))
		return name;
	free(mine);
	return first;
}

bool tracing(void)
{
	const char *name = atomic_load_explicit(&file, memory_order_acquire);

	return *(name ? name : find_file());
}

static void write_line(const char *line, size_t n)
{
	/* A fifo or a device is not to be waited for, and neither a link nor a file of somebody else is to be written to. */
	int fd = open(atomic_load(&file), O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0600);
	struct stat st;

	if (fd < 0)
		return;
	if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && (st.st_uid == geteuid() || st.st_uid == 0)) {
		ssize_t written = write(fd, line, n); /* a full disk loses the line: there is nobody to tell */

		(void)written;
	}
	close(fd);
}

void trace_line(const char *format, ...)
{
	int saved = errno;
	char line[2048];
	struct timespec now;
	va_list args;
	size_t n;
	int length;

	/* Seconds since 1970: what makes a date of them takes a lock that is not released in a forked child. */
	clock_gettime(CLOCK_REALTIME, &now);
	n = (size_t)snprintf(line, sizeof(line), "%lld.%03ld %d %d ", (long long)now.tv_sec, now.tv_nsec / 1000000,
		(int)getpid(), (int)gettid());
	errno = saved; /* for %m */
	va_start(args, format);
	length = vsnprintf(line + n, sizeof(line) - n, format, args);
	va_end(args);
	if (length >= 0) {
		size_t end = n + (size_t)length;

		if (end > sizeof(line) - 1)
			end = sizeof(line) - 1;
		for (size_t i = n; i < end; i++) {
			if ((unsigned char)line[i] < ' ' || line[i] == 0x7f)
				line[i] = '?';
		}
		line[end] = '\n';
		write_line(line, end + 1);
	}
	errno = saved;
}
