#!/bin/sh
# Install packages of the system, for libraries that Python's packages do not bring along.
#
#     system.sh NAME LIBRARIES WITHOUT PACKAGE...
#
# LIBRARIES are patterns of what has to be there then, WITHOUT says what is done otherwise.
# Never prompts and never fails: what needs the libraries goes on without, or says so itself.

name=$1 libraries=$2 without=$3
shift 3
export PATH="$PATH:/usr/sbin:/sbin"

they_load() {
    for library in $libraries; do
        ldconfig -p 2>/dev/null | grep -q "$library" || return 1
    done
}

go_on_without() {
    echo "$name: $1"
    echo "$name: $without, as root:"
    echo "$name:   apt-get install $packages"
    exit 0
}

packages="$*"
if they_load; then
    echo "$name: is installed"
    exit 0
fi

if [ "$(id -u)" -eq 0 ]; then
    as_root=""
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root="sudo -n"
else
    go_on_without "not installed, and neither root nor sudo without a password"
fi
command -v apt-get >/dev/null || go_on_without "not installed, and there is no apt-get here"

echo "$name: installing $packages"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt="$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq"
# A fresh container has no package lists.
if ! ls /var/lib/apt/lists/*_Packages* >/dev/null 2>&1; then
    $apt update </dev/null >"$log" 2>&1
fi
# shellcheck disable=SC2086 # the words of $apt are meant to be split
if $apt install -y --no-install-recommends "$@" </dev/null >"$log" 2>&1 && they_load; then
    echo "$name: installed"
else
    tail -n 5 "$log"
    go_on_without "could not be installed"
fi
