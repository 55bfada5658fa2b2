// SPDX-License-Identifier: Apache-2.0
// The peer of laying placeholders: the same calls for the same list, without anything else.
//   lay TARGET < list        one line each: "d NAME" begins a directory, "f NAME SIZE MTIME_NS" is a file in it
// Prints the nanoseconds that the calls took; the list is read before.
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

struct entry {
	char kind;
	char name[32];
	long long size, mtime_ns;
};

static long long now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void lay(const struct entry *e, int row)
{
	char marker[16];
	int length = snprintf(marker, sizeof marker, "%015d", row);
	struct timespec times[2] = {
		{ e->mtime_ns / 1000000000, e->mtime_ns % 1000000000 },
		{ e->mtime_ns / 1000000000, e->mtime_ns % 1000000000 },
	};
	if (mknod(e->name, S_IFREG | 0644, 0) || truncate(e->name, e->size) ||
	    lsetxattr(e->name, "trusted.active_restore", marker, length, XATTR_CREATE) ||
	    lchown(e->name, 0, 0) || utimensat(AT_FDCWD, e->name, times, AT_SYMLINK_NOFOLLOW))
		err(1, "%s", e->name);
}

int main(int argc, char **argv)
{
	size_t count = 0, room = 1 << 16;
	struct entry *list = malloc(room * sizeof *list);
	char line[128];
	if (argc != 2 || !list)
		errx(2, "lay TARGET < list");
	while (fgets(line, sizeof line, stdin)) {
		if (count == room && !(list = realloc(list, (room *= 2) * sizeof *list)))
			err(1, "memory");
		struct entry *e = &list[count++];
		if (sscanf(line, "%c %31s %lld %lld", &e->kind, e->name, &e->size, &e->mtime_ns) < 2)
			errx(2, "line %zu", count);
	}
	int root = open(argv[1], O_RDONLY | O_DIRECTORY);
	if (root < 0)
		err(1, "%s", argv[1]);
	umask(0);
	long long start = now_ns();
	for (size_t i = 0; i < count; i++) {
		if (list[i].kind == 'f') {
			lay(&list[i], (int)i);
			continue;
		}
		if (fchdir(root) || mkdir(list[i].name, 0700) || chdir(list[i].name))
			err(1, "%s", list[i].name);
	}
	printf("%lld\n", now_ns() - start);
	return 0;
}
