/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
 *
 * What tells a process from a later one with its number.
 */
#ifndef ACTIVE_RESTORE_TASK_H
#define ACTIVE_RESTORE_TASK_H

#include <kernel.h>

#define NS_PER_TICK 10000000ULL /* of /proc/PID/stat: USER_HZ is 100 */

/* When the process of this thread began, as proc(5) tells it. */
static __always_inline u64 start_ticks(struct task_struct *task)
{
	struct task_struct *leader = 0;
	u64 start = 0;

	bpf_probe_read_kernel(&leader, sizeof(leader), &task->group_leader);
	bpf_probe_read_kernel(&start, sizeof(start), &leader->start_boottime);
	return start / NS_PER_TICK;
}

#endif
