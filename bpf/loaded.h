/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
 *
 * Numbers that are not known when the programs are compiled: an instruction of its own for each, which
 * agent/active_restore/ebpf/objects.py finds and changes. The verifier sees constants.
 */
#pragma once
#include <events.h>

#define LOADED(number)                                                      \
	({                                                                  \
		u64 _loaded;                                                \
		asm("%0 = %1 ll" : "=r"(_loaded) : "i"((u64)(number))); \
		_loaded;                                                    \
	})
#define TARGET_DEV LOADED(LOADED_TARGET)
#define WATCHER LOADED(LOADED_WATCHER)
