/* SPDX-License-Identifier: Apache-2.0
 * uring_cat inline|async|sqpoll PATH: open and read a file by io_uring alone, write it to standard output.
 * Raw system calls: liburing's headers are not on every machine. Source: io_uring(7), io_uring_setup(2). */
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static int ring, sqpoll;
static unsigned *sq_head, *sq_tail, *sq_mask, *sq_array, *sq_flags, *cq_head, *cq_tail, *cq_mask;
static struct io_uring_sqe *sqes;
static struct io_uring_cqe *cqes;

static void *map(size_t size, unsigned long long where)
{
    return mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, where);
}

static int setup(void)
{
    struct io_uring_params p = {.flags = sqpoll ? IORING_SETUP_SQPOLL : 0, .sq_thread_idle = 2000};
    ring = syscall(__NR_io_uring_setup, 4, &p);
    if (ring < 0)
        return -1;
    char *sq = map(p.sq_off.array + p.sq_entries * sizeof(unsigned), IORING_OFF_SQ_RING);
    char *cq = map(p.cq_off.cqes + p.cq_entries * sizeof(*cqes), IORING_OFF_CQ_RING);
    sqes = map(p.sq_entries * sizeof(*sqes), IORING_OFF_SQES);
    sq_head = (unsigned *)(sq + p.sq_off.head);
    sq_tail = (unsigned *)(sq + p.sq_off.tail);
    sq_mask = (unsigned *)(sq + p.sq_off.ring_mask);
    sq_flags = (unsigned *)(sq + p.sq_off.flags);
    sq_array = (unsigned *)(sq + p.sq_off.array);
    cq_head = (unsigned *)(cq + p.cq_off.head);
    cq_tail = (unsigned *)(cq + p.cq_off.tail);
    cq_mask = (unsigned *)(cq + p.cq_off.ring_mask);
    cqes = (struct io_uring_cqe *)(cq + p.cq_off.cqes);
    return 0;
}

/* One request and its result. */
static int request(const struct io_uring_sqe *wanted)
{
    unsigned tail = *sq_tail, at = tail & *sq_mask;
    sqes[at] = *wanted;
    sq_array[at] = at;
    __atomic_store_n(sq_tail, tail + 1, __ATOMIC_RELEASE);
    if (sqpoll) {
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        if (__atomic_load_n(sq_flags, __ATOMIC_RELAXED) & IORING_SQ_NEED_WAKEUP)
            syscall(__NR_io_uring_enter, ring, 0, 0, IORING_ENTER_SQ_WAKEUP, 0, 0);
    }
    while (*cq_head == __atomic_load_n(cq_tail, __ATOMIC_ACQUIRE))
        if (syscall(__NR_io_uring_enter, ring, sqpoll ? 0 : 1, 1, IORING_ENTER_GETEVENTS, 0, 0) < 0 && errno != EINTR)
            return -errno;
    int result = cqes[*cq_head & *cq_mask].res;
    __atomic_store_n(cq_head, *cq_head + 1, __ATOMIC_RELEASE);
    return result;
}

int main(int argc, char **argv)
{
    static char data[65536];
    if (argc != 3)
        return 2;
    sqpoll = !strcmp(argv[1], "sqpoll");
    unsigned char flags = strcmp(argv[1], "async") ? 0 : IOSQE_ASYNC;
    if (setup())
        return perror("io_uring_setup"), 3;
    struct io_uring_sqe sqe = {.opcode = IORING_OP_OPENAT, .fd = AT_FDCWD, .addr = (unsigned long)argv[2], .flags = flags};
    int fd = request(&sqe), count;
    if (fd < 0)
        return fprintf(stderr, "open: %s\n", strerror(-fd)), 1;
    for (unsigned long long at = 0;; at += count) {
        struct io_uring_sqe read = {.opcode = IORING_OP_READ, .fd = fd, .addr = (unsigned long)data, .len = sizeof(data), .off = at, .flags = flags};
        count = request(&read);
        if (count < 0)
            return fprintf(stderr, "read: %s\n", strerror(-count)), 1;
        if (!count)
            return 0;
        if (write(1, data, count) != count)
            return 4;
    }
}
