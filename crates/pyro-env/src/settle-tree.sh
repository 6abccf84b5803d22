#!/bin/sh
# Called by mmdebstrap with the finished tree as its argument, before package lists are removed.
set -eu
tree=$1

# What the image holds. The host's query tool reads the tree's database.
dpkg-query --admindir="$tree/var/lib/dpkg" -W -f '${Package} ${Version}\n' >"$PYRO_WORK/packages"

# The guest kernel: apt verifies it against the signed index, but it is not installed into the image.
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
cd "$PYRO_WORK/kernel"
kernel=$(apt-cache show --no-all-versions "$PYRO_KERNEL_PACKAGE" |
	sed -n 's/^Depends:.*\(linux-image-[^ ,|()]*\) *(= *\([^ )]*\)).*/\1=\2/p' | head -n 1)
if [ -z "$kernel" ]; then
	echo "E: $PYRO_KERNEL_PACKAGE names no kernel" >&2
	exit 1
fi
apt-get -q -o APT::Sandbox::User=root download "$kernel" >&2
echo "${kernel%%=*} ${kernel#*=}" >>"$PYRO_WORK/packages"

# Names and addresses belong to the running machine; the agent fills them in.
echo pyro >"$tree/etc/hostname"
rm -f "$tree/etc/resolv.conf" "$tree/etc/machine-id" "$tree/var/lib/dbus/machine-id"
: >"$tree/etc/resolv.conf"
: >"$tree/etc/machine-id"
printf '127.0.0.1\tlocalhost pyro\n::1\tlocalhost ip6-localhost ip6-loopback\n' >"$tree/etc/hosts"
rm -f "$tree"/etc/ssh/ssh_host_*
mkdir -p -m 0755 "$tree/workspace"

# Backup copies and caches that are rebuilt when needed.
rm -f "$tree"/var/lib/dpkg/*-old "$tree"/var/cache/debconf/*-old "$tree"/var/log/*.log
rm -rf "$tree"/var/cache/ldconfig/*
