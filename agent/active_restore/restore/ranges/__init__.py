"""Files by range: who opens one goes on at once, and each access waits for the pages that it wants, and for no others.

access -> the blobs around it are read, verified and written -> its pages are there -> the task goes on; then what a
sequential reader will want next, and in the background the rest; when all pages are there: durable, unmarked, done.

What is missing is remembered twice. Agent and keeper share a bit for each page (``presence``), which outlives the agent.
After a reboot, or when all keepers died, the file system itself tells: what was written is there, holes are missing (or were
zeros, which are read again and harm nobody). So a page is written as a whole or not at all, a page that somebody may
have written to is never written to by us, and whatever makes holes of data (punching, truncating, reflinks) or could do
things that nobody saw waits until the file is finished as a whole. A user's synced bytes are safe in every order of crashes.

A mapping can be made to show more without fanotify being asked (mremap(2)). Where BPF holds that call, or somebody is told
afterwards and stops the task when it shows more than there is (``intercept.windows``), it waits for what it shows; else for all
that it may ever show.

Not given: lseek(2) with SEEK_DATA shows missing pages as holes, and loop devices read past every hook. Files are by range
only where the user names them.
"""
