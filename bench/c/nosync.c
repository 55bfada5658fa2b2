// SPDX-License-Identifier: Apache-2.0
// LD_PRELOAD: nothing is made durable. The peer for what durability costs.
int fsync(int fd) { return fd < 0 ? -1 : 0; }
int fdatasync(int fd) { return fd < 0 ? -1 : 0; }
int syncfs(int fd) { return fd < 0 ? -1 : 0; }
