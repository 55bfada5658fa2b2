// SPDX-License-Identifier: Apache-2.0
// opens TIMES < paths: opens and closes all of them, TIMES times; prints nanoseconds for one open, on average of a pass,
// for each pass one line.
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static long long now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv)
{
	static char paths[1 << 16][128];
	size_t count = 0;
	if (argc != 2)
		errx(2, "opens TIMES < paths");
	while (count < sizeof paths / sizeof *paths && fgets(paths[count], sizeof *paths, stdin)) {
		paths[count][strcspn(paths[count], "\n")] = 0;
		count++;
	}
	for (int pass = 0; pass < atoi(argv[1]); pass++) {
		long long start = now_ns();
		for (size_t i = 0; i < count; i++) {
			int fd = open(paths[i], O_RDONLY);
			if (fd < 0)
				err(1, "%s", paths[i]);
			close(fd);
		}
		printf("%lld\n", (now_ns() - start) / (long long)count);
	}
	return 0;
}
