#!/bin/busybox sh
# The first process: load what the disk needs, mount it, and hand over to systemd. Mounting replays
# the journal. There is no repair here: damage is to be seen, by the tests.
/bin/busybox mount -t devtmpfs dev /dev
while read -r module; do
    /bin/busybox insmod "/modules/$module"
done </modules/order
/bin/busybox mount -t ext4 -o rw,errors=remount-ro /dev/vda /root
exec /bin/busybox switch_root /root /sbin/init
