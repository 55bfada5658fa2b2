"""The kernel side: what BTF says about this kernel, the headers made of it, and the programs loaded with them.

``btf`` reads the kernel's own description of its types; ``headers`` writes the few structs that our C names at this
kernel's offsets; ``compiler`` makes ``objects`` of ``bpf/*.bpf.c`` with bcc (and is the only module that imports it), which are
``kept``; ``program`` loads and pins them.
``maps`` and ``ring`` reach pinned objects with nothing but the bpf() system call, so that a new agent adopts them at once.

Not guaranteed: nothing here decides who waits (``intercept`` does), and nothing works without CAP_BPF and CAP_SYS_ADMIN.
"""
