/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
 *
 * What differs between processors: system call numbers and where their arguments lie. struct pt_regs itself comes
 * from the kernel's BTF (kernel.h). Numbers: arch/x86/entry/syscalls/syscall_{64,32}.tbl, uapi/asm-generic/unistd.h.
 */
#ifndef ACTIVE_RESTORE_ARCH_H
#define ACTIVE_RESTORE_ARCH_H

#include <kernel.h>

/* Where the position and the length of an access are found. Arguments are counted from 0, which is the descriptor but for
 * sendfile (0: written to, 1: read from), splice and copy_file_range (0: read from, 2: written to), and mmap (4). */
enum range_kind {
	RANGE_UNKNOWN = 0, /* the whole file */
	RANGE_FPOS,        /* f_pos, length in argument 2 */
	RANGE_ARG3,        /* position in argument 3, length in argument 2 */
	RANGE_FPOS_IOV,    /* f_pos, vector in 1, count in 2 */
	RANGE_ARG3_IOV,    /* position in argument 3 (-1: f_pos), vector in 1, count in 2 */
	RANGE_SENDFILE,    /* read: *(argument 2) or f_pos; written: f_pos; length in argument 3 */
	RANGE_SPLICE,      /* read: *(argument 1) or f_pos; written: *(argument 3) or f_pos; length in argument 4 */
	RANGE_COPY,        /* the same, but what is written to may get holes */
	RANGE_MMAP,        /* position in argument 5, length in argument 1 */
};

/* What makes a mapping show more. Arguments of mremap: address, old length, new length, flags; of remap_file_pages: address,
 * length, protection, page of the file. ODD: a 32-bit call of either. */
enum growth { GROWTH_NONE = 0, GROWTH_MREMAP, GROWTH_REMAP, GROWTH_ODD };

#define FICLONE 0x40049409
#define FICLONERANGE 0x4020940d

#if defined(ARCH_X86_64)

#define CALL_NUMBER(r) ((u32)(r)->orig_ax)
#define CALL_ARG0(r) ((r)->di)
#define CALL_ARG1(r) ((r)->si)
#define CALL_ARG2(r) ((r)->dx)
#define CALL_ARG3(r) ((r)->r10)
#define CALL_ARG4(r) ((r)->r8)
#define CALL_ARG5(r) ((r)->r9)
#define FROM_USER_MODE(r) (((r)->cs & 3) == 3)
#define IS_COMPAT(r) (((r)->cs & 0xffff) == 0x23)
#define TIF_SIGPENDING 2

static __always_inline bool is_opening(u32 nr, bool compat)
{
	if (compat) /* open creat execve acct uselib swapon openat open_by_handle_at execveat openat2 */
		return nr == 5 || nr == 8 || nr == 11 || nr == 51 || nr == 86 || nr == 87 || nr == 295 || nr == 342 ||
		       nr == 358 || nr == 437;
	/* open execve creat acct swapon openat open_by_handle_at execveat openat2 */
	return nr == 2 || nr == 59 || nr == 85 || nr == 163 || nr == 167 || nr == 257 || nr == 304 || nr == 322 || nr == 437;
}

static __always_inline bool is_truncating(u32 nr, bool compat)
{
	if (compat) /* truncate ftruncate truncate64 ftruncate64 */
		return nr == 92 || nr == 93 || nr == 193 || nr == 194;
	return nr == 76 || nr == 77;
}

static __always_inline u32 range_kind(u32 nr)
{
	if (nr == 0 || nr == 1) /* read write */
		return RANGE_FPOS;
	if (nr == 17 || nr == 18) /* pread64 pwrite64 */
		return RANGE_ARG3;
	if (nr == 19 || nr == 20) /* readv writev */
		return RANGE_FPOS_IOV;
	if (nr == 295 || nr == 296 || nr == 327 || nr == 328) /* preadv pwritev preadv2 pwritev2 */
		return RANGE_ARG3_IOV;
	if (nr == 40)
		return RANGE_SENDFILE;
	if (nr == 275)
		return RANGE_SPLICE;
	if (nr == 326)
		return RANGE_COPY;
	if (nr == 9)
		return RANGE_MMAP;
	return RANGE_UNKNOWN;
}

/* Calls without a known range that may be restarted. */
static __always_inline bool is_restartable_access(u32 nr, bool compat, u64 request)
{
	if (compat) /* read write readv writev pread64 pwrite64 sendfile sendfile64 splice fallocate preadv pwritev copy_file_range
		     * preadv2 pwritev2 */
		return nr == 3 || nr == 4 || nr == 145 || nr == 146 || nr == 180 || nr == 181 || nr == 187 || nr == 239 || nr == 313 ||
		       nr == 324 || nr == 333 || nr == 334 || nr == 377 || nr == 378 || nr == 379;
	if (nr == 16) /* ioctl */
		return request == FICLONE || request == FICLONERANGE;
	/* madvise execve io_submit fallocate execveat */
	return nr == 28 || nr == 59 || nr == 209 || nr == 285 || nr == 322;
}

static __always_inline bool is_mapping(u32 nr, bool compat)
{
	return compat ? nr == 90 || nr == 192 : nr == 9;
}

static __always_inline u32 growth_of(u32 nr, bool compat)
{
	/* A 64-bit program may make 32-bit calls (int 0x80), which its registers do not tell; acct and openat map nothing. */
	if (nr == 163 || nr == 257)
		return GROWTH_ODD;
	nr &= 0x3fffffff; /* without the bit of x32 */
	if (compat || (nr != 25 && nr != 216))
		return GROWTH_NONE;
	return nr == 25 ? GROWTH_MREMAP : GROWTH_REMAP;
}

#elif defined(ARCH_AARCH64)

#define CALL_NUMBER(r) ((u32)(r)->syscallno)
#define CALL_ARG0(r) ((r)->regs[0])
#define CALL_ARG1(r) ((r)->regs[1])
#define CALL_ARG2(r) ((r)->regs[2])
#define CALL_ARG3(r) ((r)->regs[3])
#define CALL_ARG4(r) ((r)->regs[4])
#define CALL_ARG5(r) ((r)->regs[5])
#define FROM_USER_MODE(r) (((r)->pstate & 0xf) == 0)
#define IS_COMPAT(r) (((r)->pstate & 0x10) != 0)
#define TIF_SIGPENDING 0

static __always_inline bool is_opening(u32 nr, bool compat)
{
	if (compat)
		return nr == 5 || nr == 8 || nr == 11 || nr == 51 || nr == 87 || nr == 322 || nr == 371 || nr == 387 || nr == 437;
	/* openat acct execve swapon open_by_handle_at execveat openat2 */
	return nr == 56 || nr == 89 || nr == 221 || nr == 224 || nr == 265 || nr == 281 || nr == 437;
}

static __always_inline bool is_truncating(u32 nr, bool compat)
{
	if (compat)
		return nr == 92 || nr == 93 || nr == 193 || nr == 194;
	return nr == 45 || nr == 46;
}

static __always_inline u32 range_kind(u32 nr)
{
	if (nr == 63 || nr == 64) /* read write */
		return RANGE_FPOS;
	if (nr == 67 || nr == 68) /* pread64 pwrite64 */
		return RANGE_ARG3;
	if (nr == 65 || nr == 66) /* readv writev */
		return RANGE_FPOS_IOV;
	if (nr == 69 || nr == 70 || nr == 286 || nr == 287) /* preadv pwritev preadv2 pwritev2 */
		return RANGE_ARG3_IOV;
	if (nr == 71)
		return RANGE_SENDFILE;
	if (nr == 76)
		return RANGE_SPLICE;
	if (nr == 285)
		return RANGE_COPY;
	if (nr == 222)
		return RANGE_MMAP;
	return RANGE_UNKNOWN;
}

/* Calls without a known range that may be restarted. */
static __always_inline bool is_restartable_access(u32 nr, bool compat, u64 request)
{
	if (compat) /* read write readv writev pread64 pwrite64 sendfile sendfile64 splice fallocate preadv pwritev copy_file_range
		     * preadv2 pwritev2 */
		return nr == 3 || nr == 4 || nr == 145 || nr == 146 || nr == 180 || nr == 181 || nr == 187 || nr == 239 || nr == 340 ||
		       nr == 352 || nr == 361 || nr == 362 || nr == 391 || nr == 392 || nr == 393;
	if (nr == 29) /* ioctl */
		return request == FICLONE || request == FICLONERANGE;
	/* io_submit fallocate execve madvise execveat */
	return nr == 2 || nr == 47 || nr == 221 || nr == 233 || nr == 281;
}

static __always_inline bool is_mapping(u32 nr, bool compat)
{
	return compat ? nr == 192 : nr == 222;
}

static __always_inline u32 growth_of(u32 nr, bool compat)
{
	if (compat)
		return nr == 163 || nr == 257 ? GROWTH_ODD : GROWTH_NONE;
	if (nr != 216 && nr != 234)
		return GROWTH_NONE;
	return nr == 216 ? GROWTH_MREMAP : GROWTH_REMAP;
}

#else
#error "no register layout for this processor"
#endif

#endif
