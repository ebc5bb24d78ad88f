#!/usr/bin/env bash
# A small VM for the tests that need another kernel than the machine's: Debian's cloud kernel (dm-crypt, loop devices), with a real Apptainer and
# cryptsetup, in a QEMU that needs no KVM. Four minutes to build as root, 500 MB while it builds, 350 MB then.
#
#   scripts/vm.sh path    prints the path of a program that starts it when it was built before; status 1 otherwise
#   scripts/vm.sh build   builds it if it is not there, and prints the path
#
# It lies in the cache folder, keyed by this script's hash. The program printed takes a folder. In the VM that folder is /given, read only, and
# its executable `run` is started as root; what that writes to standard output and standard error is printed. Nothing else comes out of the VM,
# no network and no disk of the machine goes in. The last line says `ended` and the status of `run`: a VM that was cut short has none.
set -euo pipefail
key=$(sha256sum "$0" | cut -c1-16)
cache="${XDG_CACHE_HOME:-$HOME/.cache}/countersign/vm/$key"
program="$cache/vm"

case "${1:-}" in
path)
	[ -x "$program" ] || exit 1
	echo "$program"
	exit
	;;
build) ;;
*)
	echo "usage: scripts/vm.sh path|build" >&2
	exit 2
	;;
esac

mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
if [ -x "$program" ]; then
	echo "$program"
	exit
fi
for tool in mmdebstrap bwrap mksquashfs; do
	command -v "$tool" >/dev/null || {
		echo "error: $tool is not installed" >&2
		echo "hint: apt-get install mmdebstrap bubblewrap squashfs-tools" >&2
		exit 1
	}
done

# The machine's own Debian mirror, as apt knows it.
mirror=$(apt-get indextargets --format '$(REPO_URI)' | grep -E '/debian/?$' | sort -u | head -n 1)
root="$cache/root"
rm -rf "$root"

# trixie, with sid for Apptainer alone. Sid's mirror may be a dated snapshot: its dates are not checked, its signatures are.
# The kernel is unpacked, not installed: it would make an initramfs, and this has one of its own.
mmdebstrap --variant=apt --mode=root --components=main \
	--include=apptainer,cryptsetup-bin,busybox-static,kmod,qemu-system-x86 \
	--aptopt='Acquire::Check-Valid-Until "false"' \
	--aptopt='APT::Install-Recommends "false"' \
	--setup-hook='mkdir -p "$1/etc/apt/preferences.d"
printf "Package: *\nPin: release n=sid\nPin-Priority: 100\n\nPackage: apptainer\nPin: release n=sid\nPin-Priority: 990\n" \
	> "$1/etc/apt/preferences.d/sid"' \
	--customize-hook='set -eu
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
cd "$1/boot"
apt-get -o APT::Sandbox::User=root download \
	"$(apt-cache depends --important linux-image-cloud-amd64/trixie | sed -n "s/^ *Depends: //p" | grep -m 1 ^linux-image)"
dpkg-deb -x linux-image-*.deb "$1"
rm linux-image-*.deb
chroot "$1" depmod "$(ls "$1/usr/lib/modules")"' \
	--customize-hook='rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/* "$1"/usr/share/doc "$1"/usr/share/man "$1"/usr/share/locale' \
	trixie "$root" "deb $mirror trixie main" "deb $mirror sid main" >&2

# What mounts the disk: the modules for that, and busybox. The rest the kernel loads from the disk.
early="$cache/early"
rm -rf "$early"
mkdir -p "$early"/{bin,modules,dev,proc,disk,above,root}
cp "$root/bin/busybox" "$early/bin/"
release=$(ls "$root/usr/lib/modules")
chroot "$root" modprobe --show-depends --set-version "$release" --all virtio_blk squashfs overlay |
	sed -n 's/^insmod //p' | awk '!seen[$1]++ { print $1 }' >"$cache/modules"
while read -r module; do
	name=$(basename "${module%%.ko*}").ko
	case "$module" in
	*.xz) xz -dc "$root$module" >"$early/modules/$name" ;;
	*) cp "$root$module" "$early/modules/$name" ;;
	esac
	echo "insmod /modules/$name" >>"$early/insert"
done <"$cache/modules"
cat >"$early/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
. /insert
until [ -b /dev/vdb ]; do sleep 0.1; done
mount -t squashfs -o ro /dev/vda /disk
mount -t tmpfs -o mode=0755 above /above
mkdir /above/upper /above/work
mount -t overlay -o lowerdir=/disk,upperdir=/above/upper,workdir=/above/work root /root
mkdir -p /root/given
mount -t squashfs -o ro /dev/vdb /root/given
mount -o move /dev /root/dev
mount -o move /proc /root/proc
exec switch_root /root /vm-main
INIT
# The disk's first process.
cat >"$root/vm-main" <<'MAIN'
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
busybox mount -t sysfs sys /sys
busybox mount -t tmpfs tmp /tmp
busybox mount -t tmpfs run /run
mkdir -p /dev/shm /dev/pts
busybox mount -t devpts pts /dev/pts
busybox mount -t tmpfs shm /dev/shm
modprobe -a loop dm-crypt
stty -F /dev/ttyS1 raw
cd /root
/given/run </dev/null >/dev/ttyS1 2>&1
echo "ended $?" >/dev/ttyS1
busybox poweroff -f
MAIN
chmod 0755 "$early/init" "$root/vm-main"
touch "$root/etc/hosts" "$root/etc/resolv.conf" "$root/etc/localtime" # Apptainer binds them
(cd "$early" && find . | "$root/bin/busybox" cpio -o -H newc 2>/dev/null) >"$cache/initramfs"
mksquashfs "$root" "$cache/disk" -comp lz4 -noappend -no-progress -quiet -wildcards \
	-e 'proc/*' 'sys/*' 'dev/*' boot 'usr/bin/qemu*' usr/share/qemu usr/share/seabios >&2
cp "$root"/boot/vmlinuz-* "$cache/kernel"
rm -rf "$early" "$cache/modules" "$root"/boot/* "$root/usr/lib/modules"

cat >"$program.new" <<'WRAPPER'
#!/bin/bash
# vm FOLDER [SECONDS]: at most so long, 600 if not told. What the kernel and the VM's own start said is on standard error.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
work=$(mktemp -d)
trap 'cat "$work/console" >&2; rm -rf "$work"' EXIT
: >"$work/console"
mksquashfs "$1" "$work/given" -comp lz4 -all-root -noappend -no-progress -quiet >/dev/null
# One processor of this kind under TCG, never KVM: others of QEMU's crash now and then.
timeout --kill-after=5 "${2:-600}" bwrap --unshare-user --unshare-net --unshare-pid --die-with-parent \
	--ro-bind "$here/root" / --dev /dev --proc /proc --tmpfs /tmp --ro-bind "$here" /mnt --bind "$work" /srv -- \
	qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot -machine q35 -accel tcg -cpu qemu64,-cx16 -smp 1 -m 1024 \
	-kernel /mnt/kernel -initrd /mnt/initramfs -append 'console=ttyS0 quiet panic=-1' \
	-serial file:/srv/console -serial stdio -monitor none -net none \
	-drive if=none,id=disk,format=raw,readonly=on,file=/mnt/disk -device virtio-blk-pci,drive=disk \
	-drive if=none,id=given,format=raw,readonly=on,file=/srv/given -device virtio-blk-pci,drive=given </dev/null
WRAPPER
chmod 0755 "$program.new"
mv "$program.new" "$program"
echo "$program"
