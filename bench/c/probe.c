// SPDX-License-Identifier: Apache-2.0
// A task like any other: opens files and tells how long it took.
//   probe open    < paths     opens and closes each
//   probe read    < paths     opens and reads each to its end
//   probe write   < paths     opens and closes each, and appends a byte between
//   probe missing < paths     as read, but only those that are placeholders just before (others print nothing)
// Prints the nanoseconds of each, one a line, in the end.
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

static char buffer[1 << 20];

static long long now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static long long visit(const char *path, int reads, int writes)
{
	long long start = now_ns();
	int fd = open(path, writes ? O_WRONLY | O_APPEND : O_RDONLY);
	ssize_t got = 0;
	if (fd < 0)
		err(1, "%s", path);
	while (reads && (got = read(fd, buffer, sizeof buffer)) > 0)
		;
	if (writes)
		got = write(fd, "x", 1);
	if (got < 0)
		err(1, "%s", path);
	close(fd);
	return now_ns() - start;
}

int main(int argc, char **argv)
{
	size_t count = 0, room = 1 << 10;
	char **paths = malloc(room * sizeof *paths);
	char *line = NULL;
	size_t size = 0;
	ssize_t length;
	if (argc != 2 || !paths)
		errx(2, "probe open|read|write|missing < paths");
	int writes = !strcmp(argv[1], "write"), reads = strcmp(argv[1], "open") && !writes, missing = !strcmp(argv[1], "missing");
	while ((length = getline(&line, &size, stdin)) > 0) {
		line[length - 1] = 0;
		if (count == room && !(paths = realloc(paths, (room *= 2) * sizeof *paths)))
			err(1, "memory");
		if (!(paths[count++] = strdup(line)))
			err(1, "memory");
	}
	long long *took = calloc(count + 1, sizeof *took);
	if (!took)
		err(1, "memory");
	for (size_t i = 0; i < count; i++)
		if (!missing || lgetxattr(paths[i], "trusted.active_restore", NULL, 0) >= 0)
			took[i] = visit(paths[i], reads, writes);
	for (size_t i = 0; i < count; i++)
		if (took[i])
			printf("%lld\n", took[i]);
	return 0;
}
