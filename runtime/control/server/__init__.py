"""A policy over the network, in openpi's protocol: one client drives, others may look on."""
