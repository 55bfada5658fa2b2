# What a fresh checkout needs is installed by `make setup`; every other target calls it and it is quick when nothing changed.

# The tests of the system's own Python.
SUITE := libpython$(or $(shell /usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null),3.11)-testsuite
PACKAGES := acl attr btrfs-progs busybox-static chromium debootstrap e2fsprogs fio fuse3 gcc gdb git kmod libbpf1 libc6-dev libcap2-bin $(SUITE) lvm2 make mosquitto perl-base postgresql python3-bpfcc python3-venv qemu-system-x86 qemu-utils restic rsync strace stress-ng systemd util-linux xfsprogs
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: setup kernels test test-vm test-vm-sample fuzz torture deb demo demo-vm bench bench-vm lint clean

setup: $(STAMP)

$(STAMP): pyproject.toml Makefile
	@missing=$$(for name in $(PACKAGES); do \
	    dpkg-query -W -f='$${db:Status-Status}\n' $$name 2>/dev/null | grep -qx installed || echo $$name; done); \
	if [ -n "$$missing" ]; then \
	    $(SUDO) apt-get update -q && \
	    DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -q --no-install-recommends $$missing; fi
	/usr/bin/python3 -m venv --system-site-packages $(VENV)
	$(BIN)/pip install -q -e '.[test]'
	@touch $@

# Kernels to test on: fetched once, unpacked, never installed.
kernels: setup
	tests/vm/setup build/vm/kernels "$(CURDIR)/$(BIN)/python"

# Four processes: one of them waits for a virtual machine, which is ended when it hangs.
test: kernels
	ACTIVE_RESTORE_VM_SECONDS=$${ACTIVE_RESTORE_VM_SECONDS:-1500} \
	    $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m "ci or not vm"

test-vm: kernels
	$(BIN)/python -m pytest tests/vm

# What `make test` runs of it: one boot of each kernel, each with another file system.
test-vm-sample: kernels
	$(BIN)/python -m pytest tests/vm -m ci

# Each target for FUZZ_SECONDS; what breaks a promise is printed with its bytes.
fuzz: setup
	FUZZ_SECONDS=$${FUZZ_SECONDS:-300} $(BIN)/python -m pytest -s -o timeout=0 tests/fuzz

# Kills, then power cuts, each for TORTURE_SECONDS; every life prints the TORTURE_SEED that repeats it.
torture: setup
	TORTURE_SECONDS=$${TORTURE_SECONDS:-3600} $(BIN)/python -m pytest -o timeout=0 tests/torture/test_kills.py tests/torture/test_power_cuts.py

deb: setup
	PIP_PYTHON="$(CURDIR)/$(BIN)/python" packaging/debian/build build/deb

demo: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" demo/run

# The same, small, with tasks held by BPF, in a virtual machine whose processor is emulated.
demo-vm: kernels
	$(BIN)/python -m tests.vm.command 6.12 demo/run --scratch /run/disk/ext4 --size-mb 40 --interceptor bpf

bench: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" bench/run

bench-vm: kernels
	$(BIN)/python -m tests.vm.command 6.12 python -m bench.lsm

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture

clean:
	rm -rf $(VENV) build dist agent/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
