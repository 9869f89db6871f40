# SPDX-License-Identifier: GPL-2.0
# The front door: "make help". The work is done in scripts/ and in the lab.

export BUILD ?= $(CURDIR)/build
export CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/balloon
export JOBS ?= $(shell nproc)
# Debian's Python, which has the modules that the trees' own scripts want.
export PATH := /usr/bin:$(PATH)

lab := tools/testing/selftests/balloon/qemu
lab-run = python3 $(lab)

.PHONY: help demo check check-arch check-all bench shell module deb deb-qemu artifacts tree export series mails steps \
	kunit kselftest kvm qtest fuzz soak coverage mutants sparse coccicheck checkpatch maintainers headers \
	htmldocs lint clean deps

help:
	@echo 'See it'
	@echo '  demo        Debian'"'"'s kernel with our module and its own: inflate, deflate, migrate   (cold 8 min, warm 2)'
	@echo '  shell       a shell in a booted guest, its balloon driven from the monitor of QEMU'
	@echo '  bench       the measurements: tables, JSON and plots in the build folder         (hours; ARGS=--quick ~80 min)'
	@echo 'Use it'
	@echo '  module      virtio_balloon.ko for an unpatched Linux 6.12; KDIR=HEADERS, by default the newest'
	@echo '              that are installed                                                    (cold ~1 min)'
	@echo '  deb         a Debian package of its source, which DKMS builds for each kernel of that version'
	@echo '  deb-qemu    Debian'"'"'s source package of QEMU with the series in it'
	@echo 'Test it'
	@echo '  check       every test                                                      (cold ~50 min, warm ~18)'
	@echo '  check-arch  s390x, arm64 with pages of 64 KiB, i386, User Mode Linux              (cold ~45 min, warm 18 min)'
	@echo '  check-all   both, all tests in the debug and the KCSAN guest, the module and its package, steps, coverage,'
	@echo '              mutants, an hour of soak                                             (~6 h)'
	@echo '              ARGS="main arch steps debug kcsan module coverage mutants soak" for some of these'
	@echo '  kselftest   the tests in and around booted guests; ARGS="NAME..." for some of them'
	@echo '  kvm         a guest without a kernel, which KVM can run where it runs no Linux: migration and the'
	@echo '              dirty log under KVM, and under TCG                                  (~2 min)'
	@echo '  kunit       the KUnit suites, in the plain and the debug guest'
	@echo '  qtest       the device by itself, without a guest'
	@echo '  fuzz        the device against random drivers, with sanitizers; ARGS="RUNS SEED"        (~45 s)'
	@echo '  soak        everything at random; BALLOON_LAB_SOAK=seconds BALLOON_LAB_SEED=number'
	@echo '  coverage    all tests, counting the lines of our files that run                  (~25 min)'
	@echo '  mutants     defects of the series of 2016, and of QEMU, planted one at a time: each must be found  (~45 min)'
	@echo '  sparse coccicheck checkpatch lint maintainers headers   the static checks of the kernel and of QEMU'
	@echo '  htmldocs    the kernel documentation, ours with warnings as errors'
	@echo 'Work on it'
	@echo '  tree        unpack both sources, apply the series, link our files into them'
	@echo '  artifacts   print the paths of the built kernel, modules and QEMU'
	@echo '  export      write the commits of the trees back to patches/ and qemu/patches/'
	@echo '  series      check both series: claims, git am, identical export; lines changed per file'
	@echo '  steps       build every step of both series by itself, boot those of mm          (~40 min)'
	@echo '  mails       both series as complete mails, in the build folder'
	@echo '  clean       remove the build folder; the cache of finished builds stays'
	@echo
	@echo 'BUILD=$(BUILD)'
	@echo 'CACHE=$(CACHE)'
	@echo 'JOBS=$(JOBS)'

deps:
	@scripts/deps.sh

demo: deps
	@$(lab-run)/demo.py $(ARGS)

bench: deps
	@$(lab-run)/bench.py $(ARGS)

shell: deps
	@$(lab-run)/shell.py $(ARGS)

check: deps
	@scripts/check.sh

check-arch: deps
	@scripts/check.sh arch

check-all: deps
	@scripts/check.sh $(or $(ARGS),all)

kselftest: deps
	@$(lab-run)/check.py $(ARGS)

kvm: deps
	@$(lab-run)/check.py bare $(ARGS)

kunit: deps
	@$(lab-run)/check.py kunit kasan_kunit

qtest: deps
	@scripts/qtest.sh $(ARGS)

soak: deps
	@$(lab-run)/check.py soak

coverage mutants: deps
	@scripts/$@.py $(ARGS)

fuzz: deps
	@scripts/fuzz.sh $(ARGS)

module deb-qemu: deps
	@scripts/build.sh $@

deb: deps
	@find "$$(scripts/build.sh deb)" -name '*.deb'

artifacts: deps
	@scripts/artifacts.sh

tree: deps
	@scripts/build.sh tree

export:
	@for k in linux qemu; do scripts/series.py --build $(BUILD) export $$k; done

series: tree
	@for k in linux qemu; do \
		scripts/series.py --build $(BUILD) stat $$k && \
		scripts/series.py --build $(BUILD) check $$k || exit 1; done

mails: tree
	@for k in linux qemu; do scripts/series.py --build $(BUILD) mails $$k || exit 1; done

sparse coccicheck checkpatch maintainers headers htmldocs lint: tree
	@scripts/static.sh $@

steps: tree
	@scripts/static.sh steps steps_qemu

clean:
	rm -rf $(BUILD)
