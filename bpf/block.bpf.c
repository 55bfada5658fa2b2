/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
 *
 * Latency, depth and share of each block device, the agent's own requests told apart. Feeds the throttle.
 * A request belongs to the task that queued it; a scheduler may issue it in the name of anybody.
 *
 * Raw tracepoints, because their links can be pinned and need no tracefs.
 */
#include <kernel.h>
#include <events.h>
#include <task.h>

struct request_start {
	u64 queued_ns;
	u32 dev;
	u32 owner;
	u64 bytes;
	u32 is_issued;
	u32 is_in_the_way; /* of others; of a request of others: something was in its way when it began */
};

/* Requests that are in the way of others: ours, and what the kernel writes, which may be ours. Of all disks together, as who uses
 * a loop device waits for the disk below it. */
struct traffic {
	u64 issued;
	u64 completed;
};

/* Keyed by the address of the request. */
BPF_F_TABLE("hash", u64, struct request_start, requests, 16384, 0);
BPF_F_TABLE("hash", u32, struct device_load, devices, 256, 0);
BPF_F_TABLE("array", u32, struct traffic, traffic, 1, 0);
/* Zeros: a load is larger than the stack. */
BPF_F_TABLE("array", u32, struct device_load, nothing, 1, 0);
/* Thread group id -> its start in clock ticks since boot. */
BPF_F_TABLE("hash", u32, u64, own, 64, 0);

#define NS_PER_US 1000
#define LATENCY_SLOTS 96
#define WORK_QUEUE 0x00000020 /* task->flags: PF_WQ_WORKER */
#define KERNEL_THREAD 0x00200000 /* PF_KTHREAD */
#define OPERATION 0xff /* request->cmd_flags: REQ_OP_MASK; 0 is a read */

enum owner { OWNER_FOREIGN = 0, OWNER_OWN = 1, OWNER_KERNEL = 2 };

static __always_inline bool is_own(void)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	u64 *since = own.lookup(&tgid);

	return since && *since == start_ticks((struct task_struct *)bpf_get_current_task());
}

/* Work queues carry what others caused, us among them: loop devices, write-back. Reads of other kernel threads are served
 * to somebody (nfsd). */
static __always_inline u32 owner_of(struct request *request)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	u32 flags = 0, operation = 0;

	if (is_own())
		return OWNER_OWN;
	bpf_probe_read_kernel(&flags, sizeof(flags), &task->flags);
	bpf_probe_read_kernel(&operation, sizeof(operation), &request->cmd_flags);
	if ((flags & WORK_QUEUE) || ((flags & KERNEL_THREAD) && (operation & OPERATION)))
		return OWNER_KERNEL;
	return OWNER_FOREIGN;
}

static __always_inline bool is_in_the_way(struct request *request, u32 owner)
{
	u32 operation = 0;

	if (owner != OWNER_KERNEL)
		return owner == OWNER_OWN;
	bpf_probe_read_kernel(&operation, sizeof(operation), &request->cmd_flags);
	return operation & OPERATION;
}

static __always_inline bool something_is_in_the_way(void)
{
	u32 zero = 0;
	struct traffic *now = traffic.lookup(&zero);

	return now && now->issued != now->completed;
}

static __always_inline u32 device_of(struct request *request)
{
	struct request_queue *queue = 0;
	struct gendisk *disk = 0;
	struct block_device *whole = 0;
	u32 dev = 0;

	bpf_probe_read_kernel(&queue, sizeof(queue), &request->q);
	bpf_probe_read_kernel(&disk, sizeof(disk), &queue->disk);
	bpf_probe_read_kernel(&whole, sizeof(whole), &disk->part0);
	bpf_probe_read_kernel(&dev, sizeof(dev), &whole->bd_dev);
	return dev;
}

static __always_inline void begin(struct request *request, struct request_start *start)
{
	u32 bytes = 0;

	bpf_probe_read_kernel(&bytes, sizeof(bytes), &request->__data_len);
	start->dev = device_of(request);
	start->bytes = bytes;
	start->queued_ns = bpf_ktime_get_ns();
	start->owner = owner_of(request);
}

static __always_inline u32 slot_of(u64 us)
{
	u32 power;

	if (us < 4)
		return us;
	power = bpf_log2l(us) - 1;
	return 4 * (power - 1) + ((us >> (power - 2)) & 3);
}

RAW_TRACEPOINT_PROBE(block_rq_insert)
{
	struct request *request = (struct request *)ctx->args[0];
	struct request_start start = {}, *before;
	u64 key = (u64)request;

	/* Put back by its driver: still the same. */
	before = requests.lookup(&key);
	if (before && before->is_issued)
		return 0;
	begin(request, &start);
	requests.update(&key, &start);
	return 0;
}

/* This one became part of another before it was issued. */
RAW_TRACEPOINT_PROBE(block_rq_merge)
{
	u64 key = ctx->args[0];

	requests.delete(&key);
	return 0;
}

RAW_TRACEPOINT_PROBE(block_rq_issue)
{
	struct request *request = (struct request *)ctx->args[0];
	struct request_start fresh = {}, *start;
	struct device_load *none, *load = 0;
	u64 key = (u64)request;
	u32 zero = 0;

	start = requests.lookup(&key);
	if (!start) {
		begin(request, &fresh);
		requests.update(&key, &fresh);
		start = requests.lookup(&key);
	}
	/* A request that was put back and is issued again is one request. */
	if (!start || start->is_issued)
		return 0;
	none = nothing.lookup(&zero);
	if (none)
		load = devices.lookup_or_try_init(&start->dev, none);
	if (!load) {
		requests.delete(&key);
		return 0;
	}
	start->is_issued = 1;
	if (start->owner == OWNER_FOREIGN) {
		start->is_in_the_way = something_is_in_the_way();
	} else if (is_in_the_way(request, start->owner)) {
		struct traffic *now = traffic.lookup(&zero);

		start->is_in_the_way = 1;
		if (now)
			lock_xadd(&now->issued, 1);
	}
	if (start->owner == OWNER_OWN)
		lock_xadd(&load->own_issued, 1);
	else if (start->owner == OWNER_KERNEL)
		lock_xadd(&load->kernel_issued, 1);
	else
		lock_xadd(&load->foreign_issued, 1);
	return 0;
}

RAW_TRACEPOINT_PROBE(block_rq_complete)
{
	u64 key = ctx->args[0], latency_ns, slot;
	struct request_start *start = requests.lookup(&key);
	struct device_load *load;
	struct traffic *now;
	u32 dev, zero = 0;

	if (!start)
		return 0;
	dev = start->dev;
	load = devices.lookup(&dev);
	latency_ns = bpf_ktime_get_ns() - start->queued_ns;
	if (start->owner != OWNER_FOREIGN && start->is_in_the_way) {
		now = traffic.lookup(&zero);
		if (now)
			lock_xadd(&now->completed, 1);
	}
	if (load && start->owner == OWNER_OWN) {
		lock_xadd(&load->own_completed, 1);
		lock_xadd(&load->own_bytes, start->bytes);
		lock_xadd(&load->own_latency_ns, latency_ns);
	} else if (load && start->owner == OWNER_KERNEL) {
		lock_xadd(&load->kernel_completed, 1);
		lock_xadd(&load->kernel_bytes, start->bytes);
	} else if (load) {
		lock_xadd(&load->foreign_completed, 1);
		lock_xadd(&load->foreign_bytes, start->bytes);
		lock_xadd(&load->foreign_latency_ns, latency_ns);
		if (start->is_in_the_way || something_is_in_the_way())
			lock_xadd(&load->foreign_met, 1);
		slot = slot_of(latency_ns / NS_PER_US);
		/* Else the compiler checks the time instead of the slot, which the verifier does not follow. */
		asm volatile("" : "+r"(slot));
		if (slot < LATENCY_SLOTS)
			lock_xadd(&load->foreign_latency_us[slot], 1);
	}
	requests.delete(&key);
	return 0;
}
