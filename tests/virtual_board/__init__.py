"""A board that we have: Debian 12 under qemu, with real systemd, sshd and ext4.

`make virtual-board` makes it and boots it once; `board.VirtualBoard` is what tests use, and
`python -m tests.virtual_board up` what hands use. It stands in for a Jetson where flashing, health
checks, rollback and power cuts are tried. Its instruction set is x86, its GPU is simulated, and its
speed says nothing.
"""
