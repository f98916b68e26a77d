"""What flash runs on a board: one archive for the system's own Python, without anything installed.

Only the standard library, `runtime.storage.files` and `runtime.storage.signature` are there
(`export.release.archive` packs them), for it works before there is a runtime, and starts the one
that is there. Every verb can be repeated; what it has done already it leaves alone.
"""
