/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
 *
 * Which pages of a file by range are there: the words of enum presence, as agent/active_restore/presence.py writes them.
 */
#ifndef ACTIVE_RESTORE_PRESENCE_H
#define ACTIVE_RESTORE_PRESENCE_H

#include <kernel.h>
#include <events.h>

#define PAGE_SHIFT 12
#define GROUP_SHIFT 8
#define GROUP_PAGES (1ULL << GROUP_SHIFT)
#define GROUP_WORDS (GROUP_PAGES / 64)
#define MAX_SUMMARY_WORDS 34 /* one read or write moves less than 2 GiB */
#define MAX_JUDGED_PAGES (32ULL * 64 * GROUP_PAGES)

/* Whether all bits from first to end are set, counted from the word ``base`` on; never where that are more than ``most`` words. */
static __always_inline bool all_set(void *words, u64 base, u64 first, u64 end, const int most)
{
	u64 word = first >> 6;

	if (first >= end)
		return true;
	for (int i = 0; i < most; i++) {
		int index = base + word;
		u64 wanted = ~0ULL, *bits;
		if (word == first >> 6)
			wanted &= ~0ULL << (first & 63);
		if (word == (end - 1) >> 6)
			wanted &= ~0ULL >> (63 - ((end - 1) & 63));
		bits = bpf_map_lookup_elem(words, &index);
		if (!bits || (*bits & wanted) != wanted)
			return false;
		if (word == (end - 1) >> 6)
			return true;
		word++;
	}
	return false;
}

static __always_inline u64 read_word(void *words, int index)
{
	u64 *word = bpf_map_lookup_elem(words, &index);
	return word ? *word : 0;
}

/* Whether all of these pages are there: single ones up to the first whole group, groups, single ones behind the last. */
static __always_inline bool is_present(void *words, u64 first, u64 last)
{
	u64 begin = (first + GROUP_PAGES - 1) & ~(GROUP_PAGES - 1), end = last & ~(GROUP_PAGES - 1);
	u64 summary = read_word(words, PRESENCE_SUMMARY);

	if (begin > end)
		return all_set(words, PRESENCE_BITS, first, last, GROUP_WORDS);
	return all_set(words, PRESENCE_BITS, first, begin, GROUP_WORDS) &&
	       all_set(words, summary, begin >> GROUP_SHIFT, end >> GROUP_SHIFT, MAX_SUMMARY_WORDS) &&
	       all_set(words, PRESENCE_BITS, end, last, GROUP_WORDS);
}

#endif
