"""Power cuts without a device mapper: a disk that notes every write and every flush, and the images that a cut may leave.

A file system lies on a loop device whose file is served by ``server`` (FUSE, direct I/O). The loop driver turns a flush into
fsync(2) and has no FUA of its own, so the kernel sends write and flush: what arrives, in the order in which it arrives, is
what dm-log-writes would note. After a flush, everything before it is on the disk; of what comes later a disk may keep any part.

Not guaranteed: that a write which was under way while a flush came is ever missing after it, as it might on a real disk.
"""
