/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
 *
 * Latency, depth and share of each block device, the agent's own requests told apart. Feeds the throttle.
 * Requests that the kernel issues for others (write-back) count as foreign.
 *
 * Raw tracepoints, because their links can be pinned and need no tracefs.
 */
#include <kernel.h>
#include <events.h>

struct request_start {
	u64 issued_ns;
	u32 dev;
	u32 is_own;
	u64 bytes;
};

/* Keyed by the address of the request. */
BPF_F_TABLE("hash", u64, struct request_start, requests, 16384, 0);
BPF_F_TABLE("hash", u32, struct device_load, devices, 256, 0);
/* Thread group id -> its start in clock ticks since boot. */
BPF_F_TABLE("hash", u32, u64, own, 64, 0);

#define NS_PER_TICK 10000000ULL /* of /proc/PID/stat: USER_HZ is 100 */
#define NS_PER_US 1000
#define LATENCY_SLOTS 24

static __always_inline bool is_own(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct task_struct *leader = 0;
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	u64 *since = own.lookup(&tgid);
	u64 start = 0;

	if (!since)
		return false;
	bpf_probe_read_kernel(&leader, sizeof(leader), &task->group_leader);
	bpf_probe_read_kernel(&start, sizeof(start), &leader->start_boottime);
	return *since == start / NS_PER_TICK;
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

RAW_TRACEPOINT_PROBE(block_rq_issue)
{
	struct request *request = (struct request *)ctx->args[0];
	struct device_load none = {}, *load;
	struct request_start start = {};
	u64 key = (u64)request;
	u32 bytes = 0;

	start.dev = device_of(request);
	load = devices.lookup_or_try_init(&start.dev, &none);
	if (!load)
		return 0;
	bpf_probe_read_kernel(&bytes, sizeof(bytes), &request->__data_len);
	start.bytes = bytes;
	start.issued_ns = bpf_ktime_get_ns();
	start.is_own = is_own();
	/* A request that was put back and is issued again is one request. */
	if (requests.insert(&key, &start))
		return 0;
	lock_xadd(start.is_own ? &load->own_issued : &load->foreign_issued, 1);
	return 0;
}

RAW_TRACEPOINT_PROBE(block_rq_complete)
{
	u64 key = ctx->args[0], latency_ns;
	struct request_start *start = requests.lookup(&key);
	struct device_load *load;
	u32 dev, slot;

	if (!start)
		return 0;
	dev = start->dev;
	load = devices.lookup(&dev);
	latency_ns = bpf_ktime_get_ns() - start->issued_ns;
	if (load && start->is_own) {
		lock_xadd(&load->own_completed, 1);
		lock_xadd(&load->own_bytes, start->bytes);
		lock_xadd(&load->own_latency_ns, latency_ns);
	} else if (load) {
		lock_xadd(&load->foreign_completed, 1);
		lock_xadd(&load->foreign_bytes, start->bytes);
		lock_xadd(&load->foreign_latency_ns, latency_ns);
		slot = bpf_log2l(latency_ns / NS_PER_US);
		if (slot > 0)
			slot--;
		if (slot < LATENCY_SLOTS)
			lock_xadd(&load->foreign_latency_log2_us[slot], 1);
	}
	requests.delete(&key);
	return 0;
}
