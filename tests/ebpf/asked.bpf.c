/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
 *
 * Answers one question of a test at each system call of one process: are these pages there?
 */
#include <kernel.h>
#include <events.h>
#include <loaded.h>
#include <presence.h>

struct question {
	u64 ino;
	u64 first;
	u64 last;
	u64 answer; /* 1 + whether */
};

BPF_F_TABLE("array", int, u64, page_words, 1, BPF_F_MMAPABLE | BPF_F_INNER_MAP);
BPF_F_TABLE("hash_of_maps$page_words", u64, int, presence, 16, BPF_F_NO_PREALLOC);
BPF_ARRAY(questions, struct question, 1);

RAW_TRACEPOINT_PROBE(sys_enter)
{
	int zero = 0;
	struct question *question;
	void *words;

	if (bpf_get_current_pid_tgid() >> 32 != WATCHER)
		return 0;
	question = questions.lookup(&zero);
	if (!question || question->answer)
		return 0;
	words = presence.lookup(&question->ino);
	if (words)
		question->answer = 1 + is_present(words, question->first, question->last);
	return 0;
}
