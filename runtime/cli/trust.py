"""anchorvla trust add KEY.pub | list | remove NAME: whose releases this machine runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..storage.trust import add, remove, store, trusted_keys


def add_arguments(verb: argparse.ArgumentParser) -> None:
    what = verb.add_subparsers(required=True, metavar="add|list|remove")
    adding = what.add_parser("add", help="run what this key signs")
    adding.add_argument("key", type=Path, metavar="KEY.pub", help="a public key, of make keys")
    adding.set_defaults(verb=_add)
    listing = what.add_parser("list", help="the keys, one a line")
    listing.set_defaults(verb=_list)
    removing = what.add_parser("remove", help="no longer run what this key signed")
    removing.add_argument("name", metavar="NAME", help="how the key's name begins")
    removing.set_defaults(verb=_remove)


def _add(options: argparse.Namespace) -> int:
    print(f"trusted: {add(options.key)}")
    return _list(options)


def _list(_: argparse.Namespace) -> int:
    keys = trusted_keys()
    for key in keys.values():
        print(f"{key}: {key.path}")
    if not keys:
        print(f"no key in {store()}: this machine runs every bundle, signed or not")
    return 0


def _remove(options: argparse.Namespace) -> int:
    print(f"trusted no more: {remove(options.name)}")
    return _list(options)
