// SPDX-License-Identifier: Apache-2.0
// waiter < paths: opens and closes each path as it comes. Prints for each, at once: CLOCK_MONOTONIC before and after the
// open, and the processor time that it took, in nanoseconds.
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static long long now_ns(clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(void)
{
	static char path[4096];
	while (fgets(path, sizeof path, stdin)) {
		path[strcspn(path, "\n")] = 0;
		long long cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID), before = now_ns(CLOCK_MONOTONIC);
		int fd = open(path, O_RDONLY);
		long long after = now_ns(CLOCK_MONOTONIC);
		if (fd < 0)
			err(1, "%s", path);
		printf("%lld %lld %lld\n", before, after, now_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu);
		fflush(stdout);
		close(fd);
	}
	return 0;
}
