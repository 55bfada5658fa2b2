/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
 *
 * The ABI between the programs and the agent: map keys, map values and events. Declared here and nowhere else:
 * agent/active_restore/ebpf/abi.py reads this file. Only fixed-width members and char arrays, no implicit padding.
 */
#ifndef ACTIVE_RESTORE_EVENTS_H
#define ACTIVE_RESTORE_EVENTS_H

/* What a task wants; values of model.Intent. */
enum intent {
	INTENT_READ = 0,
	INTENT_WRITE = 1,
	INTENT_TRUNCATE = 2,
	INTENT_CHANGE = 3,
	INTENT_MAP = 4,
	INTENT_WHOLE = 7,
};

enum hook { HOOK_OPEN = 1, HOOK_TRUNCATE = 2, HOOK_PERMISSION = 3, HOOK_MMAP = 4, HOOK_FILE_TRUNCATE = 5, HOOK_GROW = 6 };

/* How a waiting thread is held: its call restarts again and again, or its process is stopped; ONLY_STOP: to the end of the wait. */
enum hold { HOLD_SPIN = 0, HOLD_STOP = 1, HOLD_ONLY_STOP = 2 };

enum policy { POLICY_NONE = 0, POLICY_BACKGROUND = 2, POLICY_REFUSE = 3 };

/* Numbers that the loader writes into the compiled programs, which are kept and serve every target (loaded.h).
 * TARGET: device of the file system (kernel encoding). WATCHER: thread group that is not told of. */
enum loaded {
	LOADED_TARGET = 0x6172000000000001,
	LOADED_WATCHER = 0x6172000000000002,
};

/* Slots of the array "state", written by the agent.
 * HEARTBEAT: CLOCK_MONOTONIC ns of the last sign of life. GUARD: thread group that holds the fanotify guard, or 0.
 * ABANDON: errno for every access to a placeholder, or 0. HOLD: enum hold while the agent lives.
 * AGENT: thread group of the agent, or 0. PASSAGE: 1 + id of the mount through which nobody is held, or 0; it ends with
 * the agent, as the mount may do, and its id be given to another. DEVICE, UUID_LOW, UUID_HIGH: of the target's file system
 * when the programs were loaded; two zeros as its UUID: not known. WINDOWS: whether a mapping waits for what it shows, because the
 * programs that see it grow are there. EVERYBODY: whether there was no room for one more address space in "mappers". */
enum state {
	STATE_HEARTBEAT = 0,
	STATE_GUARD = 1,
	STATE_ABANDON = 2,
	STATE_HOLD = 3,
	STATE_AGENT = 4,
	STATE_PASSAGE = 5,
	STATE_DEVICE = 6,
	STATE_UUID_LOW = 7,
	STATE_UUID_HIGH = 8,
	STATE_WINDOWS = 9,
	STATE_EVERYBODY = 10,
	STATE_SLOTS = 11,
};

/* Slots of the array "counts": everything that was lost, refused or passed on, by reason. */
enum count {
	COUNT_HELD = 0,
	COUNT_RING_FULL = 1,
	COUNT_WAITERS_FULL = 2,
	COUNT_ODD_KERNEL = 3,
	COUNT_ODD_SYSCALL = 4,
	COUNT_ODD_TRACED = 5,
	COUNT_ODD_SIGCONT = 6,
	COUNT_ODD_UNSIGNALLED = 7,
	COUNT_TO_GUARD = 8,
	COUNT_TRY_AGAIN = 9,
	COUNT_POLICY_REFUSED = 10,
	COUNT_AGENT = 11,
	COUNT_ASKED = 12,
	COUNT_SLOTS = 13,
};

/* Value of "gate", keyed by inode number / 64: one bit for each inode.
 * readers: who only reads waits; writers: who may write waits; ranged: the guard judges opens, each access waits for its pages. */
struct gate_word {
	u64 readers;
	u64 writers;
	u64 ranged;
};

/* Words of 64 bits in a map of "presence", which has one for each ranged inode (agent/active_restore/presence.py). TOUCHED:
 * whether a writer was let go on. PAGES: how many the file of the backup has; 0 as long as nothing is known. SUMMARY: the word
 * in which the bits of groups begin. From BITS on a bit for each page that is there, then one for each group of 256 that are. */
enum presence { PRESENCE_TOUCHED = 0, PRESENCE_PAGES = 1, PRESENCE_SUMMARY = 2, PRESENCE_BITS = 3 };

/* A waiting thread: value of "waiters" (keyed by thread id, written by the kernel side) and event in the ring.
 * Times are CLOCK_MONOTONIC, start_ns is the start of the thread (CLOCK_BOOTTIME). length is ~0 where unknown. */
struct wait {
	u64 ino;
	u64 since_ns;
	u64 start_ns;
	u64 passes;
	u64 position;
	u64 length;
	u32 generation;
	u32 tid;
	u32 tgid;
	u32 intent;
	u32 hook;
	u32 hold;
	u32 policy;
	u32 syscall;
	char comm[16];
};

/* What is being made to show more: value of "growing", keyed by thread id; found when the call begins
 * (agent/active_restore/ebpf/mappings.py). The mapping shows length bytes from offset on, at address. ino is 0 where it has no file. */
struct growing {
	u64 ino;
	u32 generation;
	u32 device;
	u64 offset;
	u64 length;
	u64 flags;
	u64 address;
	u64 superblock;
};

/* What the agent orders for one wait: value of "orders", keyed by thread id. Written by the agent only.
 * verdict: errno that ends the wait, or 0. hold: enum hold for this thread. */
struct order {
	u64 since_ns;
	u32 verdict;
	u32 hold;
};

/* The first open of a file, in the ring "touches": the entry "name" of a directory, opened by a thread group. */
struct touch {
	u64 directory;
	u32 generation;
	u32 tgid;
	char name[256];
};

/* Value of "devices", keyed by device number (kernel encoding: major << 20 | minor). Counts only grow.
 * Own: of the agent and its workers. Kernel: of work queues and write-back, whoever caused it. Foreign: of all others.
 * depth = issued - completed. Latency is from the queue to the end. Slots 0-3 of the histogram count 0-3 microseconds;
 * then each power of two has four: slot 4 * (e - 1) + f counts from (4 + f) << (e - 2) microseconds. */
struct device_load {
	u64 own_issued;
	u64 own_completed;
	u64 own_bytes;
	u64 own_latency_ns;
	u64 kernel_issued;
	u64 kernel_completed;
	u64 kernel_bytes;
	u64 foreign_issued;
	u64 foreign_completed;
	u64 foreign_bytes;
	u64 foreign_latency_ns;
	u64 foreign_met;
	u64 foreign_latency_us[96];
};

#endif
