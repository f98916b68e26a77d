#!/bin/sh
# Install packages of the system, for what Python's packages do not bring along.
#
#     system.sh NAME NEEDS WITHOUT PACKAGE...
#
# NEEDS are what has to be there then: patterns of libraries, or bin:A,B for one of these commands.
# WITHOUT says what is done otherwise. service:PACKAGE is installed only where nothing would start it.
# Never prompts and never fails: what needs them goes on without, or says so itself.

name=$1 needs=$2 without=$3
shift 3
export PATH="$PATH:/usr/sbin:/sbin"

is_command() {
    for command in $(echo "$1" | tr , ' '); do
        command -v "$command" >/dev/null && return 0
    done
    return 1
}

they_are_there() {
    for need in $needs; do
        case $need in
        bin:*) is_command "${need#bin:}" || return 1 ;;
        *) ldconfig -p 2>/dev/null | grep -q "$need" || return 1 ;;
        esac
    done
}

go_on_without() {
    echo "$name: $1"
    echo "$name: $without, as root:"
    echo "$name:   apt-get install $packages"
    exit 0
}

packages=$(echo " $*" | sed 's/ service:/ /g; s/^ //')
if they_are_there; then
    echo "$name: is installed"
    exit 0
fi

case " $* " in
*" service:"*) [ ! -d /run/systemd/system ] ||
    go_on_without "not installed: the package would start a service on this machine" ;;
esac
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
# Where no archive can be reached it says so soon.
soon="-o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20"
apt="$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq $soon"
# A fresh container has no package lists.
if ! ls /var/lib/apt/lists/*_Packages* >/dev/null 2>&1; then
    $apt update </dev/null >"$log" 2>&1
fi
# shellcheck disable=SC2086 # the words of $apt and $packages are meant to be split
if $apt install -y --no-install-recommends $packages </dev/null >"$log" 2>&1 && they_are_there; then
    echo "$name: installed"
else
    tail -n 5 "$log"
    go_on_without "could not be installed"
fi
