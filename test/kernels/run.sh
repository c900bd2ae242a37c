#!/bin/sh
# Boots kernels of Debian and Ubuntu, one after the other, in an emulator, and runs pollux on each. docs/kernels.md says
# what for.
#
#	test/kernels/run.sh             all kernels; docs/kernels.md gets the tables when everything is as expected
#	test/kernels/run.sh 5.10 6.1    some kernels; the tables are only printed
#
# It needs a Debian or a system like it: apt brings the emulator and the kernels, whose signatures it checks. No kernel is
# installed; what is fetched and built lies in .cache/kernels.
set -eu

cd "$(dirname "$0")/../.."
cache=$PWD/.cache/kernels
image=$cache/image

# The kernels: a name, where they come from (an archive, its suites, a package), the backend that auto takes when it tries
# io_uring first, and whether io_uring works for who asks for it by name.
kernels='
5.4  ubuntu focal-updates              linux-image-generic epoll    refused
5.10 debian bullseye,bullseye-security linux-image-amd64   epoll    works
6.1  debian bookworm,bookworm-security linux-image-amd64   io_uring works
6.12 debian bookworm-backports         linux-image-amd64   io_uring works
'
debian_mirror=${DEBIAN_MIRROR:-http://deb.debian.org}
debian_key=/usr/share/keyrings/debian-archive-keyring.gpg
ubuntu_mirror=${UBUNTU_MIRROR:-http://archive.ubuntu.com}
# Debian has no package of Ubuntu's keys: the Ubuntu Archive Automatic Signing Key (2018),
# F6ECB3762474EDA9D21B7022871920D1991BC93C.
ubuntu_key=$PWD/test/kernels/ubuntu.asc
# A machine that hangs is ended after so many seconds.
boot_limit=2700

say() { echo "$*" >&2; }
die() { say "$*"; exit 1; }

install_tools() {
	missing=
	command -v qemu-system-x86_64 >/dev/null || missing="$missing qemu-system-x86"
	command -v cpio >/dev/null || missing="$missing cpio"
	[ -e $debian_key ] || missing="$missing debian-archive-keyring"
	[ -n "$missing" ] || return 0
	command -v apt-get >/dev/null || die "these packages of Debian are missing, and so is apt-get:$missing"
	root=
	[ "$(id -u)" = 0 ] || root=sudo
	say "install$missing"
	$root apt-get update -qq || say "apt-get update has failed: trying with what is known"
	$root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >&2
}

# private_apt runs an apt command on lists and caches of one kernel's own, which know nothing of what the host has installed.
private_apt() {
	dir=$1 command=$2
	shift 2
	"$command" -qq -o APT::Sandbox::User=root -o APT::Architecture=amd64 -o APT::Architectures=amd64 \
		-o Dir::Etc::sourcelist="$dir/apt/debian.sources" -o Dir::Etc::sourceparts=- \
		-o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts="$dir/apt/none" \
		-o Dir::State="$dir/apt/state" -o Dir::State::lists="$dir/apt/lists" -o Dir::State::status="$dir/apt/status" \
		-o Dir::Cache="$dir/apt/cache" "$@"
}

# fetch puts the newest kernel of a package into the cache, and leaves the path in $kernel.
fetch() {
	dir=$cache/$1 archive=$2 suites=$3 package=$4
	mkdir -p "$dir/apt/none" "$dir/apt/state" "$dir/apt/lists/partial" "$dir/apt/cache/archives/partial"
	: >"$dir/apt/status"
	: >"$dir/apt/debian.sources"
	for suite in $(echo "$suites" | tr , ' '); do
		case $archive,$suite in
		ubuntu,*) uri=$ubuntu_mirror/ubuntu key=$ubuntu_key ;;
		*-security) uri=$debian_mirror/debian-security key=$debian_key ;;
		*) uri=$debian_mirror/debian key=$debian_key ;;
		esac
		cat >>"$dir/apt/debian.sources" <<-END
			Types: deb
			URIs: $uri
			Suites: $suite
			Components: main
			Targets: Packages
			Signed-By: $key

		END
	done
	private_apt "$dir" apt-get update >&2 || say "the lists of $suites cannot be fetched: using those of an earlier time"
	# The package names the real one in its dependencies.
	real=$(private_apt "$dir" apt-cache show --no-all-versions "$package" 2>/dev/null |
		sed -n 's/^Depends: .*\(linux-image-[0-9][^ ,]*\).*/\1/p')
	if [ -z "$real" ]; then
		kernel=$(ls -t "$dir"/vmlinuz-* 2>/dev/null | head -n 1)
		[ -n "$kernel" ] || die "$suites: no $package was found"
		return
	fi
	kernel=$dir/vmlinuz-${real#linux-image-}
	[ -e "$kernel" ] && return
	say "fetch $real"
	rm -rf "$dir/deb" "$dir/boot"
	mkdir "$dir/deb"
	(cd "$dir/deb" && private_apt "$dir" apt-get download "$real" >&2)
	dpkg-deb --fsys-tarfile "$dir"/deb/*.deb | tar -x -C "$dir" ./boot
	# Everything that is needed must be part of the kernel: init loads no modules. Ubuntu has the configuration elsewhere.
	config=$(echo "$dir"/boot/config-*)
	[ -e "$config" ] && for option in UNIX INET IPV6 EPOLL EVENTFD IO_URING TMPFS DEVTMPFS BLK_DEV_INITRD SERIAL_8250_CONSOLE; do
		grep -q "^CONFIG_$option=y" "$config" || die "$real: CONFIG_$option is not built in"
	done
	mv "$dir"/boot/vmlinuz-* "$dir/"
	rm -rf "$dir/deb" "$dir/boot"
}

# build makes the image that every machine starts from: init, the test binaries and the list.
build() {
	say "build the tests"
	rm -rf "$image"
	mkdir -p "$image/bin"
	export CGO_ENABLED=0 GOOS=linux GOARCH=amd64
	${GO:-go} build -trimpath -o "$image/bin/pollux" ./cmd/pollux
	${GO:-go} test -trimpath -c -o "$image/bin/pollux.test" .
	${GO:-go} test -trimpath -c -o "$image/bin/uring.test" ./internal/uring
	(cd test && ${GO:-go} build -trimpath -o "$image/init" ./kernels)
	ln -s ../init "$image/bin/ls"
	cp test/kernels/tests.txt "$image/"
	(cd "$image" && find . | cpio --quiet -o -H newc) >"$cache/initramfs"
}

# boot runs one machine to its end. The first serial port is the kernel's and the second one init's.
boot() {
	name=$1 kernel=$2 auto=$3 by_name=$4
	say "boot $name: $(basename "$kernel")"
	start=$(date +%s)
	rm -f "$cache/$name.out"
	timeout "$boot_limit" qemu-system-x86_64 \
		-machine pc,accel=tcg -cpu max,la57=off -smp 2 -m 1024 -nodefaults -no-user-config -no-reboot -display none -nic none \
		-kernel "$kernel" -initrd "$cache/initramfs" \
		-append "console=ttyS0 panic=-1 nokaslr mitigations=off tsc=reliable POLLUX_TEST_EXPECT=$auto POLLUX_KERNEL_URING=$by_name" \
		-serial "file:$cache/$name.console" -serial "file:$cache/$name.out" </dev/null >&2 ||
		say "$name: the emulator has failed or was ended after $boot_limit s"
	[ -e "$cache/$name.out" ] || die "$name: nothing was printed"
	grep -q '^@@ done' "$cache/$name.out" || tail -n 20 "$cache/$name.console" >&2
	say "boot $name: $(($(date +%s) - start)) s; what it has printed is in .cache/kernels/$name.out"
}

[ "$(go env GOARCH)" = amd64 ] || say "the kernels are for amd64: the binaries are built for it"
mkdir -p "$cache"
install_tools
build

outputs=
all=yes
while read -r name archive suites package auto by_name; do
	[ -n "$name" ] || continue
	case " ${*:-$name} " in
	*" $name "*) ;;
	*)
		all=no
		continue
		;;
	esac
	fetch "$name" "$archive" "$suites" "$package"
	boot "$name" "$kernel" "$auto" "$by_name"
	outputs="$outputs $name,$auto,$by_name,$cache/$name.out"
done <<END
$kernels
END
[ -n "$outputs" ] || die "no kernel has such a name: $*"

status=0
"$image/init" test/kernels/tests.txt $outputs >"$cache/results.md" || status=$?
cat "$cache/results.md"
if [ $status != 0 ]; then
	die "not everything is as expected"
fi
if [ $all = yes ]; then
	# The tables lie between two lines of the page.
	sed -i -e '/^<!-- results -->$/,/^<!-- end of results -->$/{//!d}' -e "/^<!-- results -->\$/r $cache/results.md" docs/kernels.md
fi
