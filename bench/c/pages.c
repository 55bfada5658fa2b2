// SPDX-License-Identifier: Apache-2.0
// pages PATH FIRST LAST COUNT sequential|random: reads COUNT pages of 4 KiB among those from FIRST up to LAST (not included),
// one after the other from FIRST on or wherever chance (the same in every run) leads. Prints the nanoseconds of one on average.
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096 };

int main(int argc, char **argv)
{
	static char page[PAGE];
	struct timespec begin, end;
	if (argc != 6)
		errx(2, "pages PATH FIRST LAST COUNT sequential|random");
	uint64_t first = strtoull(argv[2], 0, 10), last = strtoull(argv[3], 0, 10), count = strtoull(argv[4], 0, 10);
	uint64_t dice = 88172645463325252ULL;
	int random = !strcmp(argv[5], "random"), fd = open(argv[1], O_RDONLY);
	if (fd < 0)
		err(1, "%s", argv[1]);
	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (uint64_t i = 0; i < count; i++) {
		dice ^= dice << 13;
		dice ^= dice >> 7;
		dice ^= dice << 17;
		if (pread(fd, page, PAGE, (first + (random ? dice : i) % (last - first)) * PAGE) != PAGE)
			err(1, "%s", argv[1]);
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%.0f\n", ((end.tv_sec - begin.tv_sec) * 1e9 + end.tv_nsec - begin.tv_nsec) / count);
	return 0;
}
