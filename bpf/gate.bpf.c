/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
 *
 * Holds tasks that access a placeholder: their system call unwinds and is restarted by the kernel until the gate of
 * the inode is open, so that a waiting task holds no kernel lock.
 *
 * Constants of the compiler: RANGES (0 or 1), FOLIO_BYTES. The loader gives TARGET_DEV, and the maps gate and events their sizes.
 */
#include <kernel.h>
#include <arch.h>
#include <events.h>
#include <loaded.h>
#include <presence.h>
#include <task.h>

#define MAX_WAITERS 16384
#define MAX_POLICIES 1024
#define MAX_SPARED 256
#define MAX_RANGED 32768
#define MAX_MAPPERS 65536

BPF_F_TABLE("hash", u64, struct gate_word, gate, 1, BPF_F_NO_PREALLOC);
#if RANGES
/* Each may be of another size, and lies in the agent's memory, too. */
BPF_F_TABLE("array", int, u64, page_words, 1, BPF_F_MMAPABLE | BPF_F_INNER_MAP);
BPF_F_TABLE("hash_of_maps$page_words", u64, int, presence, MAX_RANGED, BPF_F_NO_PREALLOC);
/* When the agent was last asked to fill a file for somebody who cannot be held. */
BPF_F_TABLE("lru_hash", u64, u64, asked, 1024, 0);
/* The address spaces that may have a mapping of a part of a file by range (and others, once such a one has ended). */
BPF_F_TABLE("hash", u64, u32, mappers, MAX_MAPPERS, BPF_F_NO_PREALLOC);
/* Written by the programs of agent/active_restore/ebpf/growing.py. */
BPF_F_TABLE("hash", u32, struct growing, growing, MAX_WAITERS, 0);
#endif
/* Preallocated: entering a wait must not depend on free memory. */
BPF_F_TABLE("hash", u32, struct wait, waiters, MAX_WAITERS, 0);
BPF_F_TABLE("hash", u32, struct order, orders, MAX_WAITERS, BPF_F_NO_PREALLOC);
struct command {
	char comm[16];
};
BPF_F_TABLE("hash", struct command, u32, commands, MAX_POLICIES, BPF_F_NO_PREALLOC);
BPF_F_TABLE("hash", u64, u32, cgroups, MAX_POLICIES, BPF_F_NO_PREALLOC);
/* Thread groups that are not held while no agent lives: the start of each, see agent/active_restore/ebpf/spared.py. */
BPF_F_TABLE("lru_hash", u32, u64, spared, MAX_SPARED, 0);
BPF_ARRAY(state, u64, STATE_SLOTS);
BPF_ARRAY(counts, u64, COUNT_SLOTS);
BPF_RINGBUF_OUTPUT(events, 1);

#define SIGCONT 18
#define SIGSTOP 19
#define SIGNAL_BIT(n) (1UL << ((n) - 1))
#define STOP_SIGNALS (SIGNAL_BIT(19) | SIGNAL_BIT(20) | SIGNAL_BIT(21) | SIGNAL_BIT(22))
#define SIG_IGN 1
#define EIO 5
#define EAGAIN 11
#define ENOMEM 12
#define EACCES 13
#define MREMAP_MAYMOVE 1
#define MREMAP_FIXED 2
#define VM_SHARED_WRITABLE 0x28 /* VM_SHARED | VM_MAYWRITE */
#define ADDRESS_MASK (~0ULL >> 8) /* without the tag of a pointer */
#define ENOSPC 28
#define ETIMEDOUT 110
#define ECANCELED 125
#define ERESTARTNOINTR 513
#define O_ACCMODE 3
#define O_TRUNC 01000
#define FMODE_CREATED 0x100000
#define FMODE_WRITE 0x2
/* FMODE_BACKING (6.5) and FMODE_NONOTIFY: opened by a file system above ours, which no guard sees. */
#define FMODE_BEHIND 0x6000000
#define MAP_KINDS 0x3
#define MAP_PRIVATE 0x2
#define MAY_WRITE 2
/* PF_KTHREAD, PF_USER_WORKER (6.4 and later; unused bit before), PF_IO_WORKER: io_uring's threads are user workers. */
#define PF_WORKERS (0x200000 | 0x4000 | 0x10)
#define HEARTBEAT_STALE_NS 3000000000ULL
#define CGROUP_LEVELS 8
#define MAX_MOVED 0x7ffff000ULL /* by one read or write: MAX_RW_COUNT */
#define MAX_IOVECS 64
#define ASK_AGAIN_NS 100000000ULL
#define UNKNOWN (~0ULL)
#define TO_THE_END (1ULL << 62)
#ifndef FOLIO_BYTES
#define FOLIO_BYTES (1ULL << 21)
#endif
#define MOUNT_ID_FROM_VFSMOUNT (__builtin_offsetof(struct mount, mnt_id) - __builtin_offsetof(struct mount, mnt_root))

struct access {
	struct super_block *sb;
	u64 ino;
	u64 position;
	u64 length;
	struct vfsmount *mount;
	u32 generation;
	u32 intent;
	u32 hook;
};

static __always_inline void count(u32 slot)
{
	int index = slot;
	u64 *value = counts.lookup(&index);
	if (value)
		lock_xadd(value, 1);
}

static __always_inline u64 read_state(int slot)
{
	u64 *value = state.lookup(&slot);
	return value ? *value : 0;
}

static __always_inline bool is_held(u64 ino, u32 intent)
{
	u64 word = ino >> 6;
	struct gate_word *bits = gate.lookup(&word);
	if (!bits)
		return false;
	return ((intent == INTENT_READ ? bits->readers : bits->writers) >> (ino & 63)) & 1;
}

static __always_inline bool is_ranged(u64 ino)
{
	u64 word = ino >> 6;
	struct gate_word *bits = gate.lookup(&word);
	return bits && (bits->ranged >> (ino & 63)) & 1;
}

/* 6.12's verifier wants to see that a hook returns -4095..0: constants, not a number from a map. */
static __always_inline int refusal(u32 errno)
{
	if (errno == EAGAIN)
		return -EAGAIN;
	if (errno == ENOMEM)
		return -ENOMEM;
	if (errno == EACCES)
		return -EACCES;
	if (errno == ENOSPC)
		return -ENOSPC;
	if (errno == ETIMEDOUT)
		return -ETIMEDOUT;
	if (errno == ECANCELED)
		return -ECANCELED;
	return -EIO;
}

/* Whether it is the agent's private mount, through which it fills. A vfsmount lies in the middle of its struct mount. */
static __always_inline bool is_passage(struct vfsmount *within)
{
	u64 passage = read_state(STATE_PASSAGE);
	u32 id = 0;

	if (!passage || !within)
		return false;
	bpf_probe_read_kernel(&id, sizeof(id), (char *)within + MOUNT_ID_FROM_VFSMOUNT);
	return passage == id + 1ULL;
}

/* Numbers of devices are given again: another file system may have ours, while no agent lives who would see that. */
static __always_inline bool is_target(struct super_block *sb)
{
	u64 low = read_state(STATE_UUID_LOW), high = read_state(STATE_UUID_HIGH), uuid[2] = {};

	bpf_probe_read_kernel(uuid, sizeof(uuid), &sb->s_uuid);
	return !(low | high) || (uuid[0] == low && uuid[1] == high);
}

/* Whether it reads its own files in the state of a restore whose agent is dead: one may have the number of a placeholder that was
 * deleted, and only the next agent, which this may be, would find that out. */
static __always_inline bool is_spared(struct task_struct *task, u32 tgid)
{
	u64 *begun = spared.lookup(&tgid);

	return begun && !read_state(STATE_AGENT) && *begun == start_ticks(task);
}

/* A cgroup's policy covers its descendants; the innermost one that has a policy decides, then the command's name. */
static __always_inline u32 find_policy(void)
{
	struct command command = {};
	u32 found = POLICY_NONE;
	u32 *policy;

#pragma unroll
	for (int level = 0; level < CGROUP_LEVELS; level++) {
		u64 id = bpf_get_current_ancestor_cgroup_id(level);
		policy = id ? cgroups.lookup(&id) : 0;
		if (policy)
			found = *policy;
	}
	if (found)
		return found;
	bpf_get_current_comm(command.comm, sizeof(command.comm));
	policy = commands.lookup(&command);
	return policy ? *policy : POLICY_NONE;
}

static __always_inline bool blocks_sigcont(struct task_struct *task)
{
	return task->blocked_signals[0] & SIGNAL_BIT(SIGCONT);
}

static __always_inline bool handles_sigcont(struct task_struct *task)
{
	return (unsigned long)task->sighand->sigcont_handler > SIG_IGN;
}

/* Of a file that is open already. */
static __always_inline bool is_access(u32 hook)
{
	return hook == HOOK_PERMISSION || hook == HOOK_MMAP || hook == HOOK_GROW;
}

/* Why this thread cannot be held by a restarted call: 0 or the slot in counts. */
static __always_inline u32 find_oddity(struct task_struct *task, struct pt_regs *regs, u32 hook, bool is_waiter)
{
	u32 nr = CALL_NUMBER(regs);
	bool compat = IS_COMPAT(regs);

	/* Workers have no user mode to restart in; exec by the kernel itself (modprobe) has not entered it yet. */
	if (task->flags & PF_WORKERS || !FROM_USER_MODE(regs))
		return COUNT_ODD_KERNEL;
	if (hook == HOOK_OPEN && !is_opening(nr, compat))
		return COUNT_ODD_SYSCALL;
	if ((hook == HOOK_TRUNCATE || hook == HOOK_FILE_TRUNCATE) && !is_truncating(nr, compat) && !is_opening(nr, compat))
		return COUNT_ODD_SYSCALL;
	if (hook == HOOK_PERMISSION && (compat || range_kind(nr) == RANGE_UNKNOWN) &&
	    !is_restartable_access(nr, compat, CALL_ARG1(regs)))
		return COUNT_ODD_SYSCALL;
	if (hook == HOOK_MMAP && !is_mapping(nr, compat))
		return COUNT_ODD_SYSCALL;
	if (hook == HOOK_GROW && growth_of(nr, compat) == GROWTH_ODD)
		return COUNT_ODD_SYSCALL;
	/* The guard does not see who reads, writes or maps: see must_stop. */
	if (is_access(hook))
		return 0;
	/* The agent itself traces threads that it parks. */
	if (task->ptrace && !is_waiter)
		return COUNT_ODD_TRACED;
	/* Our SIGCONT would run their handler, or stay queued where it is blocked: the guard is better there, but sees opens only. */
	if (handles_sigcont(task) || (blocks_sigcont(task) && hook == HOOK_OPEN))
		return COUNT_ODD_SIGCONT;
	return 0;
}

/* Whether its process is stopped for this access, because its thread would not spin: its tracer would see every signal, its own
 * handler would run for every SIGCONT. One stop and one SIGCONT are what any process may see. */
static __always_inline bool must_stop(struct task_struct *task, u32 hook, bool is_waiter)
{
	if (!is_access(hook))
		return false;
	return handles_sigcont(task) || (task->ptrace && !is_waiter);
}

static __always_inline bool is_interrupted(struct task_struct *task)
{
	return task->thread_flags & (1UL << TIF_SIGPENDING);
}

/* The process stops at its return to user mode. */
static __always_inline long stop(struct task_struct *task)
{
	long failed = bpf_send_signal(SIGSTOP);

	/* Another thread was sent this very signal and has not obeyed yet: then nothing is added, and nobody interrupted. */
	return failed || is_interrupted(task) ? failed : bpf_send_signal_thread(SIGSTOP);
}

/* The thread only passes by the place where it would stop. */
static __always_inline long spin(struct task_struct *task)
{
	unsigned long stops = (task->signal->shared_pending[0] | task->pending_signals[0]) & STOP_SIGNALS;
	long failed = bpf_send_signal_thread(SIGSTOP);

	/* A user's stop is under way and our SIGCONT would swallow it: the process stops, as the user wishes. */
	if (failed || stops || task->signal->shared_pending[0] & STOP_SIGNALS)
		return failed;
	/* SIGCONT takes the queued SIGSTOP away, TIF_SIGPENDING stays: the thread restarts its call without stopping. Where the
	 * thread blocks it (as threads of pools block all signals), it stays with this thread and disturbs no other one. */
	if (blocks_sigcont(task))
		return bpf_send_signal_thread(SIGCONT);
	return bpf_send_signal(SIGCONT);
}

/* Make a signal pending, so that the kernel restarts the call: without one, the task would see errno 513. Returns 0 if so. */
static __always_inline long interrupt(struct task_struct *task, u32 hold)
{
	long failed;

	if (hold == HOLD_SPIN && is_interrupted(task))
		return 0;
	failed = hold == HOLD_SPIN ? spin(task) : stop(task);
	return failed || !is_interrupted(task);
}

/* STOP while nobody is there to let the thread spin for. */
static __always_inline u32 choose_hold(u64 now, struct order *order, u64 since_ns)
{
	u64 beat = read_state(STATE_HEARTBEAT);

	if (!beat || now > beat + HEARTBEAT_STALE_NS)
		return HOLD_STOP;
	if (order && order->since_ns == since_ns && order->hold == HOLD_STOP)
		return HOLD_STOP;
	return read_state(STATE_HOLD);
}

static __always_inline int serve_oddly(u32 oddity, u32 hook)
{
	count(oddity);
	/* The guard sees opens only; it lies behind this hook in the same open. */
	if (hook == HOOK_OPEN && read_state(STATE_GUARD)) {
		count(COUNT_TO_GUARD);
		return 0;
	}
	count(COUNT_TRY_AGAIN);
	return -EAGAIN;
}

/* An event for the agent about an access that nobody waits for. Returns whether there was room for it. */
static __always_inline bool tell(struct access *access, u64 now)
{
	u64 id = bpf_get_current_pid_tgid();
	struct wait wait = {};

	wait.ino = access->ino;
	wait.since_ns = now;
	wait.length = UNKNOWN;
	wait.generation = access->generation;
	wait.tid = id;
	wait.tgid = id >> 32;
	wait.intent = INTENT_WHOLE;
	wait.hook = access->hook;
	bpf_get_current_comm(wait.comm, sizeof(wait.comm));
	return !events.ringbuf_output(&wait, sizeof(wait), 0);
}

#if RANGES
/* Who was sent away from a range comes again: the agent shall finish that file. */
static __always_inline void ask(struct access *access)
{
	u64 now = bpf_ktime_get_ns(), *last = asked.lookup(&access->ino);

	if ((last && now < *last + ASK_AGAIN_NS) || !tell(access, now))
		return;
	count(COUNT_ASKED);
	asked.update(&access->ino, &now);
}
#endif

/* The first pass of a wait. Entered before it is signalled, signalled before it is reported: no SIGCONT of the agent
 * can overtake the SIGSTOP, and an agent that dies in between leaves the entry for the next one. */
static __always_inline int enter(struct task_struct *task, struct pt_regs *regs, struct access *access, u32 policy)
{
	u64 id = bpf_get_current_pid_tgid();
	struct wait wait = {};
	bool entered;
	u32 tid = id;

	wait.ino = access->ino;
	wait.since_ns = bpf_ktime_get_ns();
	wait.start_ns = task->start_boottime;
	wait.passes = 1;
	wait.position = access->position;
	wait.length = access->length;
	wait.generation = access->generation;
	wait.tid = tid;
	wait.tgid = id >> 32;
	wait.intent = access->intent;
	wait.hook = access->hook;
	wait.policy = policy;
	wait.syscall = CALL_NUMBER(regs);
	wait.hold = must_stop(task, access->hook, false) ? HOLD_ONLY_STOP : choose_hold(wait.since_ns, 0, 0);
	bpf_get_current_comm(wait.comm, sizeof(wait.comm));

	entered = waiters.update(&tid, &wait) == 0;
	if (!entered) {
		/* Never stop a process that no agent would find: it spins until there is room. */
		count(COUNT_WAITERS_FULL);
		wait.hold = HOLD_SPIN;
	}
	if (interrupt(task, wait.hold)) {
		waiters.delete(&tid);
		return serve_oddly(COUNT_ODD_UNSIGNALLED, access->hook);
	}
	if (!entered)
		return -ERESTARTNOINTR;
	count(COUNT_HELD);
	if (events.ringbuf_output(&wait, sizeof(wait), 0)) {
		count(COUNT_RING_FULL);
		/* A spinning thread comes back and reports again; a stopped one is found in the map. */
		if (wait.hold == HOLD_SPIN)
			waiters.delete(&tid);
	}
	return -ERESTARTNOINTR;
}

/* A later pass of the same wait. */
static __always_inline int wait_on(struct task_struct *task, struct wait *wait, struct order *order, u32 tid)
{
	u32 hold;

	if (order && order->since_ns == wait->since_ns && order->verdict) {
		u32 verdict = order->verdict;
		orders.delete(&tid);
		waiters.delete(&tid);
		return refusal(verdict);
	}
	hold = wait->hold == HOLD_ONLY_STOP || must_stop(task, wait->hook, true) ? HOLD_ONLY_STOP :
										   choose_hold(bpf_ktime_get_ns(), order, wait->since_ns);
	wait->passes++;
	wait->hold = hold;
	if (interrupt(task, hold)) {
		u32 hook = wait->hook;
		waiters.delete(&tid);
		return serve_oddly(COUNT_ODD_UNSIGNALLED, hook);
	}
	return -ERESTARTNOINTR;
}

/* The content is not there: what the hook returns. */
static __always_inline int hold(struct access *access)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs((void *)task);
	u64 id = bpf_get_current_pid_tgid();
	struct order *order;
	struct wait *wait;
	u32 tid = id, policy, oddity;
	bool same;

	if (is_passage(access->mount) || !is_target(access->sb) || is_spared(task, id >> 32))
		return 0;
	/* It would wait for itself, and refuses what it is told of. */
	if (id >> 32 == read_state(STATE_AGENT)) {
		count(COUNT_AGENT);
		tell(access, bpf_ktime_get_ns());
		return -EAGAIN;
	}
	policy = find_policy();
	if (policy == POLICY_REFUSE) {
		count(COUNT_POLICY_REFUSED);
		return -EAGAIN;
	}
	if (read_state(STATE_ABANDON))
		return refusal(read_state(STATE_ABANDON));

	wait = waiters.lookup(&tid);
	/* An entry may be left from an earlier wait of this thread, or of a dead thread with the same id. */
	same = wait && wait->ino == access->ino && wait->start_ns == task->start_boottime && wait->hook == access->hook &&
	       wait->position == access->position && wait->intent == access->intent;
	oddity = find_oddity(task, regs, access->hook, same);
#if RANGES
	if (oddity && is_access(access->hook))
		ask(access);
#endif
	if (oddity)
		return serve_oddly(oddity, access->hook);
	if (!same)
		return enter(task, regs, access, policy);
	order = orders.lookup(&tid);
	return wait_on(task, wait, order, tid);
}

static __always_inline u32 intent_of(u32 flags)
{
	if (flags & O_TRUNC)
		return INTENT_TRUNCATE;
	return flags & O_ACCMODE ? INTENT_WRITE : INTENT_READ;
}

LSM_PROBE(file_open, struct file *file, int ret)
{
	struct access access = {};

	if (ret)
		return ret;
	if (file->f_inode->i_sb->s_dev != TARGET_DEV)
		return 0;
	access.ino = file->f_inode->i_ino;
	access.intent = intent_of(file->f_flags);
#if RANGES
	/* The guard tells who may go on at once. Behind it nobody would hold a mapping that was made through a file system above. */
	if (is_ranged(access.ino) && (file->f_mode & FMODE_BEHIND || !read_state(STATE_GUARD))) {
		if (file->f_mode & FMODE_BEHIND)
			access.intent = INTENT_WHOLE;
	} else
#endif
	if (!is_held(access.ino, access.intent))
		return 0;
	/* Just created under the number of a deleted placeholder; a restarted O_EXCL would find its own file. */
	if (file->f_mode & FMODE_CREATED)
		return 0;
	access.generation = file->f_inode->i_generation;
	access.sb = file->f_inode->i_sb;
	access.mount = file->mnt;
	access.length = UNKNOWN;
	access.hook = HOOK_OPEN;
	return hold(&access);
}

/* The inode of a pointer that the verifier would trust although it may be null (a direct load oopsed 6.12). */
static __always_inline bool read_inode(struct access *access, struct inode *inode)
{
	u32 dev = 0;

	bpf_probe_read_kernel(&access->sb, sizeof(access->sb), &inode->i_sb);
	bpf_probe_read_kernel(&dev, sizeof(dev), &access->sb->s_dev);
	bpf_probe_read_kernel(&access->ino, sizeof(access->ino), &inode->i_ino);
	bpf_probe_read_kernel(&access->generation, sizeof(access->generation), &inode->i_generation);
	return dev == TARGET_DEV;
}

/* truncate(2) opens nothing. It keeps what lies before its length: only O_TRUNC wants none of the content. */
LSM_PROBE(path_truncate, struct path *path, int ret)
{
	struct access access = {};
	struct dentry *dentry = 0;
	struct inode *inode = 0;

	if (ret)
		return ret;
	bpf_probe_read_kernel(&access.mount, sizeof(access.mount), &path->mnt);
	bpf_probe_read_kernel(&dentry, sizeof(dentry), &path->dentry);
	bpf_probe_read_kernel(&inode, sizeof(inode), &dentry->d_inode);
	if (!read_inode(&access, inode) || !(is_held(access.ino, INTENT_WRITE) || is_ranged(access.ino)))
		return 0;
	access.intent = is_ranged(access.ino) ? INTENT_WHOLE : INTENT_WRITE;
	access.length = UNKNOWN;
	access.hook = HOOK_TRUNCATE;
	return hold(&access);
}

/* A thread that ends waits no more; the holder of the guard guards no more, and the agent needs no passage: their
 * descriptors close after this. */
RAW_TRACEPOINT_PROBE(sched_process_exit)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
	u64 id = bpf_get_current_pid_tgid();
	u32 tid = id;
	int slot = STATE_GUARD;
	u64 *guard, *agent, *passage;

	waiters.delete(&tid);
	orders.delete(&tid);
#if RANGES
	growing.delete(&tid);
#endif
	guard = state.lookup(&slot);
	if (guard && *guard == id >> 32 && task->signal->live == 0)
		*guard = 0;
	slot = STATE_AGENT;
	agent = state.lookup(&slot);
	if (agent && *agent == id >> 32 && task->signal->live == 0) {
		*agent = 0;
		slot = STATE_PASSAGE;
		passage = state.lookup(&slot);
		if (passage)
			*passage = 0;
	}
	return 0;
}

#if RANGES

/* Whether nothing stands in the way of this access. A mapping of more than can be looked at is one of the whole file. */
static __always_inline bool passes(struct access *access)
{
	void *words = presence.lookup(&access->ino);
	u64 pages, first, last;

	if (!words || access->intent == INTENT_WHOLE || access->intent == INTENT_TRUNCATE)
		return false;
	pages = read_word(words, PRESENCE_PAGES);
	if (!pages || (access->intent != INTENT_READ && !read_word(words, PRESENCE_TOUCHED)))
		return false;
	first = access->position >> PAGE_SHIFT;
	last = access->length == UNKNOWN ? pages : (access->position + access->length + (1 << PAGE_SHIFT) - 1) >> PAGE_SHIFT;
	if (last > pages)
		last = pages;
	if (first < last && last - first > MAX_JUDGED_PAGES) {
		access->length = UNKNOWN;
		return false;
	}
	return first >= last || is_present(words, first, last);
}

static __always_inline u64 sum_iovecs(u64 vector, u64 vectors)
{
	u64 sum = 0;

	if (vectors > MAX_IOVECS)
		return UNKNOWN;
#pragma unroll
	for (int i = 0; i < MAX_IOVECS; i++) {
		u64 bytes = 0;
		if (i < vectors && !bpf_probe_read_user(&bytes, sizeof(bytes), (void *)(vector + i * 16 + 8)))
			sum += bytes;
	}
	return sum;
}

static __always_inline u64 user_position(u64 pointer, u64 f_pos)
{
	u64 position = UNKNOWN;

	if (!pointer)
		return f_pos;
	bpf_probe_read_user(&position, sizeof(position), (void *)pointer);
	return position;
}

/* Whether a descriptor of this task is this very file. It is not where a file system above reads or writes ours (overlayfs, FUSE). */
static __always_inline bool is_file_of(struct task_struct *task, struct file *file, u64 fd)
{
	struct files_struct *files = 0;
	struct fdtable *table = 0;
	struct file **array = 0, *found = 0;
	u32 most = 0;

	bpf_probe_read_kernel(&files, sizeof(files), &task->files);
	bpf_probe_read_kernel(&table, sizeof(table), &files->fdt);
	bpf_probe_read_kernel(&most, sizeof(most), &table->max_fds);
	fd &= 0xffffffff;
	if (fd >= most)
		return false;
	bpf_probe_read_kernel(&array, sizeof(array), &table->fd);
	bpf_probe_read_kernel(&found, sizeof(found), &array[fd]);
	return found == file;
}

/* The descriptor by which a call reads or writes. */
static __always_inline u64 descriptor(struct pt_regs *regs, u32 kind, bool writes)
{
	if (kind == RANGE_MMAP)
		return CALL_ARG4(regs);
	if (kind == RANGE_SENDFILE && !writes)
		return CALL_ARG1(regs);
	if ((kind == RANGE_SPLICE || kind == RANGE_COPY) && writes)
		return CALL_ARG2(regs);
	return CALL_ARG0(regs);
}

/* Position and length from the registers of the system call. Returns whether they are known; else it is about the whole file.
 * Not recognised: a vector or a position that another thread of the task changes while its call is under way. */
static __always_inline bool decode_range(struct access *access, struct file *file, bool writes)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs((void *)task);
	u32 kind = IS_COMPAT(regs) ? RANGE_UNKNOWN : range_kind(CALL_NUMBER(regs));
	u64 position = UNKNOWN, length = UNKNOWN, f_pos = 0;

	access->position = 0;
	access->length = UNKNOWN;
	/* Kernel threads have the registers of whoever made them. */
	if (task->flags & PF_WORKERS || !FROM_USER_MODE(regs) || kind == RANGE_UNKNOWN)
		return false;
	if ((kind == RANGE_COPY && writes) || !is_file_of(task, file, descriptor(regs, kind, writes)))
		return false;
	bpf_probe_read_kernel(&f_pos, sizeof(f_pos), &file->f_pos);
	if (kind == RANGE_FPOS) {
		position = f_pos;
		length = CALL_ARG2(regs);
	} else if (kind == RANGE_ARG3) {
		position = CALL_ARG3(regs);
		length = CALL_ARG2(regs);
	} else if (kind == RANGE_FPOS_IOV || kind == RANGE_ARG3_IOV) {
		position = kind == RANGE_FPOS_IOV ? UNKNOWN : CALL_ARG3(regs);
		if (position == UNKNOWN)
			position = f_pos;
		length = sum_iovecs(CALL_ARG1(regs), CALL_ARG2(regs));
	} else if (kind == RANGE_SENDFILE) {
		position = writes ? f_pos : user_position(CALL_ARG2(regs), f_pos);
		length = CALL_ARG3(regs);
	} else if (kind == RANGE_SPLICE || kind == RANGE_COPY) {
		position = user_position(writes ? CALL_ARG3(regs) : CALL_ARG1(regs), f_pos);
		length = CALL_ARG4(regs);
	} else if (kind == RANGE_MMAP) {
		position = CALL_ARG5(regs);
		length = CALL_ARG1(regs);
	}
	if (kind != RANGE_MMAP && length != UNKNOWN && length > MAX_MOVED)
		length = MAX_MOVED;
	if (position == UNKNOWN || length == UNKNOWN || position + length < position)
		return false;
	access->position = position;
	access->length = length;
	return true;
}

/* What the hook returns for an access to a range. */
static __always_inline int hold_range(struct access *access)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct wait *wait;

	if (!passes(access)) {
		if (access->length == UNKNOWN)
			access->intent = INTENT_WHOLE;
		return hold(access);
	}
	/* The agent may be about to park it for a wait that is over. */
	wait = waiters.lookup(&tid);
	if (wait && wait->ino == access->ino && wait->hook == access->hook)
		waiters.delete(&tid);
	return 0;
}

LSM_PROBE(file_permission, struct file *file, int mask, int ret)
{
	struct access access = {};

	if (ret)
		return ret;
	if (file->f_inode->i_sb->s_dev != TARGET_DEV)
		return 0;
	access.ino = file->f_inode->i_ino;
	if (!is_ranged(access.ino))
		return 0;
	access.generation = file->f_inode->i_generation;
	access.sb = file->f_inode->i_sb;
	access.mount = file->mnt;
	access.hook = HOOK_PERMISSION;
	access.intent = mask & MAY_WRITE ? INTENT_CHANGE : INTENT_READ;
	/* What else writes may make holes. */
	if (!decode_range(&access, file, mask & MAY_WRITE) && mask & MAY_WRITE)
		access.intent = INTENT_WHOLE;
	return hold_range(&access);
}

static __always_inline u64 address_space(struct task_struct *task)
{
	u64 mm = 0;

	bpf_probe_read_kernel(&mm, sizeof(mm), &task->mm);
	return mm;
}

/* Whether this address space is watched when its mappings are made to show more. */
static __always_inline bool note_mapper(u64 mm)
{
	u32 one = 1;

	return mm && !mappers.update(&mm, &one);
}

/* A child has its parent's mappings. These were noted before they were made, so a fork meanwhile is no gap. */
RAW_TRACEPOINT_PROBE(sched_process_fork)
{
	u64 parent = address_space((struct task_struct *)ctx->args[0]);
	int slot = STATE_EVERYBODY;
	u64 *everybody;

	if (!mappers.lookup(&parent) || note_mapper(address_space((struct task_struct *)ctx->args[1])))
		return 0;
	everybody = state.lookup(&slot);
	if (everybody)
		*everybody = 1;
	return 0;
}

/* A store dirties its folio as a whole, with the zeros of pages in it that are missing: they would pass for content. As
 * whole_folios of agent/active_restore/model.py. */
static __always_inline void widen(struct access *access)
{
	u64 end = access->position + access->length;

	if (access->intent != INTENT_MAP || access->length == UNKNOWN || end < access->position || end > TO_THE_END)
		return;
	access->position -= access->position % FOLIO_BYTES;
	access->length = (end + FOLIO_BYTES - 1) / FOLIO_BYTES * FOLIO_BYTES - access->position;
}

LSM_PROBE(mmap_file, struct file *file, unsigned long reqprot, unsigned long prot, unsigned long flags, int ret)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs((void *)task);
	u64 windows = read_state(STATE_WINDOWS);
	struct access access = {};
	struct inode *inode = 0;
	u32 mode = 0;

	if (ret)
		return ret;
	/* An anonymous mapping has no file, and the verifier would drop a test for that. */
	bpf_probe_read_kernel(&inode, sizeof(inode), &file->f_inode);
	if (!inode || !read_inode(&access, inode) || !is_ranged(access.ino))
		return 0;
	bpf_probe_read_kernel(&access.mount, sizeof(access.mount), &file->mnt);
	bpf_probe_read_kernel(&mode, sizeof(mode), &file->f_mode);
	/* mprotect(2) asks nobody: who may write at all may do so later. */
	access.intent = (flags & MAP_KINDS) != MAP_PRIVATE && mode & FMODE_WRITE ? INTENT_MAP : INTENT_READ;
	access.hook = HOOK_MMAP;
	/* Of remap_file_pages(2) only newer kernels ask here, all at mmap_addr. */
	if (windows && growth_of(CALL_NUMBER(regs), IS_COMPAT(regs)) == GROWTH_REMAP)
		return 0;
	if (decode_range(&access, file, false) && windows && note_mapper(address_space(task))) {
		widen(&access);
		return hold_range(&access);
	}
	/* All that it may ever show: nobody sees mremap(2), which makes it longer, and remap_file_pages(2), which moves one that is
	 * shared and writable to any place of the file. */
	if (access.length != UNKNOWN)
		access.length = TO_THE_END;
	if (access.intent == INTENT_MAP)
		access.position = 0;
	return hold_range(&access);
}

/* What this call makes a mapping show; of 32-bit calls that is not known. */
static __always_inline void decode_growth(struct access *access, struct growing *growing, struct pt_regs *regs, u32 growth)
{
	access->length = UNKNOWN;
	if (growth == GROWTH_REMAP) {
		access->position = CALL_ARG3(regs) << PAGE_SHIFT;
		access->length = CALL_ARG1(regs);
	} else if (growth == GROWTH_MREMAP) {
		access->position = growing->offset + ((CALL_ARG0(regs) & ADDRESS_MASK) - growing->address);
		access->length = CALL_ARG2(regs);
	}
}

/* Asked for the address of whatever is mapped or grows, with the lock of the address space held: the call has changed nothing yet,
 * but what MREMAP_FIXED was to replace is gone. Not recognised: a mapping that another thread replaces while the call begins. */
LSM_PROBE(mmap_addr, unsigned long addr, int ret)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs((void *)task);
	u64 mm = address_space(task);
	u32 tid = bpf_get_current_pid_tgid(), growth;
	struct access access = {};
	struct growing *found;
	bool may_wait = true;

	if (ret)
		return ret;
	if (!read_state(STATE_WINDOWS) || task->flags & PF_WORKERS || !(mappers.lookup(&mm) || read_state(STATE_EVERYBODY)))
		return 0;
	growth = growth_of(CALL_NUMBER(regs), IS_COMPAT(regs));
	if (!growth)
		return 0;
	if (growth == GROWTH_MREMAP) {
		/* Made shorter or just moved it shows nothing new; the old length is 0 where it is doubled. */
		if (CALL_ARG1(regs) && CALL_ARG2(regs) <= CALL_ARG1(regs))
			return 0;
		/* Where it may not move the kernel takes any error for one address less. */
		may_wait = CALL_ARG3(regs) & MREMAP_MAYMOVE && !(CALL_ARG3(regs) & MREMAP_FIXED);
	}
	found = growing.lookup(&tid);
	if (!found)
		/* Somebody else held the lock when the call began. */
		return interrupt(task, HOLD_SPIN) ? -EAGAIN : -ERESTARTNOINTR;
	if (!found->ino || found->device != TARGET_DEV || !is_ranged(found->ino))
		return 0;
	access.ino = found->ino;
	access.generation = found->generation;
	access.sb = (struct super_block *)found->superblock;
	access.intent = (found->flags & VM_SHARED_WRITABLE) == VM_SHARED_WRITABLE ? INTENT_MAP : INTENT_READ;
	access.hook = HOOK_GROW;
	decode_growth(&access, found, regs, growth);
	widen(&access);
	if (!may_wait && is_target(access.sb) && !passes(&access)) {
		count(COUNT_TRY_AGAIN);
		ask(&access);
		return CALL_ARG3(regs) & MREMAP_FIXED ? -EAGAIN : -ENOMEM;
	}
	return hold_range(&access);
}

#ifdef HAVE_FILE_TRUNCATE
LSM_PROBE(file_truncate, struct file *file, int ret)
{
	struct access access = {};

	if (ret)
		return ret;
	if (file->f_inode->i_sb->s_dev != TARGET_DEV)
		return 0;
	access.ino = file->f_inode->i_ino;
	if (!is_ranged(access.ino))
		return 0;
	access.generation = file->f_inode->i_generation;
	access.sb = file->f_inode->i_sb;
	access.mount = file->mnt;
	access.intent = INTENT_WHOLE;
	access.length = UNKNOWN;
	access.hook = HOOK_FILE_TRUNCATE;
	return hold(&access);
}
#endif

#endif
