/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
 *
 * Tells which files of one file system are opened for the first time since their inode came into memory, and by whom.
 * Nobody waits; a file that was told of costs one look at its inode from then on.
 *
 * The loader gives TARGET_DEV, WATCHER, and the map touches its size.
 */
#include <kernel.h>
#include <events.h>
#include <loaded.h>

/* It goes with the inode, so that a reused number is told of again. */
BPF_INODE_STORAGE(told, u32);
BPF_RINGBUF_OUTPUT(touches, 1);

#define S_IFMT 0170000
#define S_IFREG 0100000

LSM_PROBE(file_open, struct file *file, int ret)
{
	struct inode *inode = file->f_inode;
	struct dentry *dentry = 0, *parent = 0;
	struct inode *directory = 0;
	struct touch touch = {};
	void *name = 0;
	u32 *mark;

	if (ret)
		return ret;
	if (inode->i_sb->s_dev != TARGET_DEV || (inode->i_mode & S_IFMT) != S_IFREG)
		return 0;
	touch.tgid = bpf_get_current_pid_tgid() >> 32;
	if (touch.tgid == WATCHER)
		return 0;
	mark = told.inode_storage_get((void *)inode, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!mark || *mark)
		return 0;
	*mark = 1;
	bpf_probe_read_kernel(&dentry, sizeof(dentry), &file->dentry);
	bpf_probe_read_kernel(&parent, sizeof(parent), &dentry->d_parent);
	bpf_probe_read_kernel(&directory, sizeof(directory), &parent->d_inode);
	bpf_probe_read_kernel(&touch.directory, sizeof(touch.directory), &directory->i_ino);
	bpf_probe_read_kernel(&touch.generation, sizeof(touch.generation), &directory->i_generation);
	bpf_probe_read_kernel(&name, sizeof(name), &dentry->name);
	bpf_probe_read_kernel_str(touch.name, sizeof(touch.name), name);
	/* The ring is full: the next open is told of. */
	if (touches.ringbuf_output(&touch, sizeof(touch), 0))
		*mark = 0;
	return 0;
}
