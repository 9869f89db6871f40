# shellcheck shell=bash disable=SC2154,SC2164 # variables and set -e are those of build.sh
# SPDX-License-Identifier: GPL-2.0
# Downloads and source trees; read by build.sh. All of it comes from Debian's archive, by
# lists of our own for each suite, so that the system's stay as they are.

# Where the archive is: the system's mirrors, if it has some.
mirror() {
	local kind=$1 uri
	# deb822 files and old lists
	uri=$(sed -nE 's,^(URIs: *|deb (\[[^]]*\] )?)((http|https|mirror\+file|file)[^ ]*).*,\3,p' \
		/etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null |
		grep -E "$([ "$kind" = security ] && echo security || echo '/debian/?$')" | head -n 1)
	[ "$kind" = security ] && echo "${uri:-http://deb.debian.org/debian-security}" ||
		echo "${uri:-http://deb.debian.org/debian}"
}

# Options that make apt look at one suite only, in the array "apt": in_suite SUITE [ARCH]
in_suite() {
	local suite=$1 arch=${2:-$(dpkg --print-architecture)} dir
	dir=$dl/apt/$suite-$arch
	apt=(-qq -o APT::Architecture="$arch" -o APT::Architectures::="$arch" -o APT::Sandbox::User=root
		-o Dir::Etc::sourceparts=/dev/null -o Dir::Etc::sourcelist="$dir/suite.sources"
		-o Dir::State::lists="$dir/lists" -o Dir::State::status="$dir/status"
		-o Dir::Cache="$dir/cache")
	[ ! -e "$dir/updated" ] || return 0
	mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
	: >"$dir/status"
	printf 'Types: deb deb-src\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n\n' \
		"$(mirror main)" "$suite $suite-updates" /usr/share/keyrings/debian-archive-keyring.gpg \
		"$(mirror security)" "$suite-security" /usr/share/keyrings/debian-archive-keyring.gpg \
		>"$dir/suite.sources"
	if ! apt-get "${apt[@]}" update >"$dir/log" 2>&1 || grep -q '^[WE]: Failed to fetch' "$dir/log"; then
		say "Debian's archive at $(mirror main) has no suite $suite that can be had: $(tail -n 1 "$dir/log")"
		exit 1
	fi
	touch "$dir/updated"
}

# Another checkout may download the same: with_downloads COMMAND...
with_downloads() {
	(
		flock 9
		"$@"
	) 9>"$dl/lock"
}

newest() { find "$dl" -maxdepth 1 -name "$1" -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d ' ' -f 2-; }

# Download a binary package, the version of BASE if it can be had, else the newest of that
# name: deb SUITE PACKAGE [VERSION [ARCH]]
deb() { with_downloads download_deb "$@"; }

download_deb() {
	local suite=$1 pkg=$2 version=${3:-} arch=${4:-} file again apt
	# A colon in a version is %3a in a file's name.
	file=$(newest "${pkg}_${version//:/%3a}_*.deb")
	[ -n "$version" ] || file=$(newest "${pkg}_*_${arch:-*}.deb")
	for again in "" "$dl/apt/$suite-${arch:-$(dpkg --print-architecture)}/updated"; do
		[ -z "$file" ] || break
		# The suite has others than when it was looked up.
		rm -f "$again"
		in_suite "$suite" "$arch"
		(cd "$dl" && { [ -n "$version" ] && apt-get "${apt[@]}" download "$pkg=$version" ||
			apt-get "${apt[@]}" download "$pkg"; } >"$dl/apt/log" 2>&1) || true
		file=$(newest "${pkg}_*_${arch:-*}.deb")
	done
	[ -n "$file" ] || { say "cannot download $pkg from $suite: $(tail -n 1 "$dl/apt/log")"; exit 1; }
	echo "$file"
}

fetch_linux() { deb "$(base linux suite)" "$(base linux package)" "$(base linux version)"; }

# Debian's default kernel of a suite, its binary
fetch_debian_kernel() { with_downloads download_debian_kernel "$@"; }

download_debian_kernel() {
	local suite=$1 pkg apt
	pkg=$(newest "linux-image-*-cloud-amd64_*.deb.$suite")
	if [ -z "$pkg" ]; then
		in_suite "$suite"
		pkg=$(apt-cache "${apt[@]}" depends linux-image-cloud-amd64 |
			awk '/Depends: linux-image/ { print $2; exit }')
		[ -n "$pkg" ] || { say "$suite has no linux-image-cloud-amd64"; exit 1; }
		pkg=$(download_deb "$suite" "$pkg")
		# What the suite's default was when it was looked up
		ln -f "$pkg" "$pkg.$suite"
		pkg+=.$suite
	fi
	echo "$pkg"
}

# QEMU's source, the version of BASE if it can be had, else the newest of its branch
fetch_qemu() { with_downloads download_qemu; }

download_qemu() {
	local version apt dsc branch
	version=$(base qemu version)
	branch=$(sed -E 's/^[0-9]+://; s/^([0-9]+\.[0-9]+).*/\1/' <<<"$version")
	dsc=$(newest "qemu_${version#*:}.dsc")
	if [ -z "$dsc" ]; then
		in_suite "$(base qemu suite)"
		(cd "$dl" && { apt-get "${apt[@]}" --download-only source "qemu=$version" ||
			apt-get "${apt[@]}" --download-only source qemu; } >"$dl/apt/log" 2>&1) || true
		dsc=$(newest "qemu_$branch*.dsc")
	fi
	[ -n "$dsc" ] || { say "$(base qemu suite) has no source of QEMU $branch: $(tail -n 1 "$dl/apt/log")"; exit 1; }
	echo "$dsc"
}

# Debian's binary of QEMU, and all that it needs
fetch_debian_qemu() { with_downloads download_debian_qemu; }

download_debian_qemu() {
	local apt
	in_suite "$(base qemu suite)"
	if ! apt-get "${apt[@]}" -y --no-install-recommends --download-only install qemu-system-x86 \
		>"$dl/apt/log" 2>&1; then
		say "cannot download qemu-system-x86 from $(base qemu suite): $(tail -n 1 "$dl/apt/log")"
		exit 1
	fi
	find "$dl/apt/$(base qemu suite)-$(dpkg --print-architecture)/cache/archives" -name '*.deb'
}

# Meson as new as QEMU wants it: the system's, or unpacked from the suite of QEMU
meson_environment() {
	local dir=$dl/meson
	! dpkg --compare-versions "$(meson --version 2>/dev/null || echo 0)" ge 1.5 || return 0
	with_downloads unpack_meson "$dir"
	export PATH=$dir/usr/bin:$PATH PYTHONPATH=$dir/usr/lib/python3/dist-packages
}

unpack_meson() {
	local dir=$1 pkg
	[ ! -e "$dir" ] || return 0
	rm -rf "$dir.tmp"
	for pkg in meson python3-distlib; do
		dpkg-deb -x "$(download_deb "$(base qemu suite)" $pkg)" "$dir.tmp"
	done
	mv "$dir.tmp" "$dir"
}

# A git repository of the pristine source in $BUILD/$1
unpack() {
	(
		flock 6
		unpack_source "$1"
	) 6>"$BUILD/unpack.lock"
}

# Of Linux two thirds, by size, are what no guest of ours has. Makefiles and Kconfig have to be there.
unused=('drivers/gpu/*.[ch]' 'drivers/net/*.[ch]' 'drivers/media/*.[ch]' 'drivers/infiniband/*.[ch]'
	'drivers/scsi/*.[ch]' 'drivers/staging/*.[ch]' 'sound/*.[ch]' 'arch/*/boot/dts/*.dts*'
	'Documentation/devicetree/bindings/*.yaml' 'tools/perf/*.json')

unpack_source() {
	local what=$1 tree=$BUILD/$1 from
	case $what in
	linux) from=$(fetch_linux) ;;
	qemu) from=$(fetch_qemu) ;;
	esac
	[ "$(cat "$tree/.git/pristine-done" 2>/dev/null)" != "$(basename "$from")" ] || return 0
	say "unpacking $(basename "$from")"
	rm -rf "$tree" "$tree".* "$tree"-* "$BUILD/stock" "$BUILD/steps"
	mkdir -p "$tree.tmp"
	case $what in
	linux)
		dpkg-deb --fsys-tarfile "$from" | tar -xO --wildcards './usr/src/linux-source-*.tar.xz' |
			tar -xJ -C "$tree.tmp" --strip-components=1 --wildcards-match-slash \
				"${unused[@]/#/--exclude=*/}" ;;
	qemu)
		dpkg-source --no-check -x "$from" "$tree.tmp/src" >/dev/null 2>&1
		mv "$tree.tmp/src" "$tree"
		rm -r "$tree.tmp"
		mv "$tree" "$tree.tmp" ;;
	esac
	cd "$tree.tmp"
	git init -q -b base
	git config gc.auto 0
	git config core.looseCompression 1
	git config user.name "$(git config user.name || echo balloon)"
	git config user.email "$(git config user.email || echo balloon@localhost)"
	git add -Af .
	git commit -qm "$(basename "$from")"
	git tag pristine
	basename "$from" >.git/pristine-done
	cd "$top"
	mv "$tree.tmp" "$tree"
}

# The same with our series in it
tree() {
	(
		flock 7
		unpack "$1"
		python3 "$top/scripts/series.py" --build "$BUILD" tree "$1" >&2
	) 7>"$BUILD/tree.lock"
}
