#!/bin/sh
# What is done inside the new system, as its root, without a network.
set -eu
export LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin

groupadd --force --system video
useradd --create-home --shell /bin/bash --groups video robot
useradd --system --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin \
    --groups video anchorvla
for home in ~root ~robot; do
    install -d -m 700 "$home/.ssh"
    install -m 600 /authorized_keys "$home/.ssh/authorized_keys"
done
chown -R robot:robot ~robot
rm /authorized_keys
chmod 440 /etc/sudoers.d/robot
chmod 600 /etc/ssh/ssh_host_ed25519_key
rm -f /etc/ssh/ssh_host_rsa_key* /etc/ssh/ssh_host_ecdsa_key*

# JetPack's packages, by name and version only.
mkdir -p /packages/DEBIAN
while read -r name version; do
    printf 'Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: nobody\nDescription: stand-in\n' \
        "$name" "$version" >/packages/DEBIAN/control
    dpkg-deb --build /packages /package.deb >/dev/null
    dpkg --install /package.deb >/dev/null
done </packages.txt
rm -r /packages /package.deb /packages.txt

# Nothing here changes after the first boot, and nobody sits before it.
systemctl enable --quiet board-network.service
systemctl set-default --quiet multi-user.target
systemctl mask --quiet \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
    e2scrub_reap.service getty@tty1.service getty.target systemd-logind.service \
    modprobe@configfs.service modprobe@dm_mod.service modprobe@drm.service \
    modprobe@efi_pstore.service modprobe@fuse.service modprobe@loop.service \
    sys-fs-fuse-connections.mount sys-kernel-config.mount sys-kernel-debug.mount \
    sys-kernel-tracing.mount dev-hugepages.mount proc-sys-fs-binfmt_misc.automount \
    systemd-binfmt.service systemd-journal-flush.service systemd-modules-load.service \
    systemd-random-seed.service systemd-remount-fs.service systemd-sysusers.service \
    systemd-update-utmp.service systemd-update-utmp-runlevel.service kmod-static-nodes.service
mkdir -p /etc/systemd/system-generators
for generator in /lib/systemd/system-generators/*; do
    ln -s /dev/null "/etc/systemd/system-generators/${generator##*/}"
done
rm -f /etc/fstab
echo b0a2dc0de00000000000000000000001 >/etc/machine-id
rm -rf /usr/share/doc /usr/share/man /usr/share/locale /var/lib/apt/lists/* \
    /var/cache/apt/* /boot/initrd.img-*
