#!/bin/sh
# Install the software OpenGL (Mesa over EGL) with which the simulator draws its camera frames.
# Never prompts and never fails: without Mesa the demo goes on with recorded episodes.

packages="libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0"
export PATH="$PATH:/usr/sbin:/sbin"

mesa_loads() {
    ldconfig -p 2>/dev/null | grep -q 'libEGL\.so\.1' &&
        ldconfig -p | grep -q 'libEGL_mesa\.so\.0'
}

go_on_without() {
    echo "mesa: $1"
    echo "mesa: the demo goes on with recorded episodes; for live simulation, as root:"
    echo "mesa:   apt-get install $packages"
    exit 0
}

if mesa_loads; then
    echo "mesa: EGL with Mesa is installed"
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

echo "mesa: installing $packages"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt="$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq"
# A fresh container has no package lists.
if ! ls /var/lib/apt/lists/*_Packages* >/dev/null 2>&1; then
    $apt update </dev/null >"$log" 2>&1
fi
# shellcheck disable=SC2086 # the words of $packages and $apt are meant to be split
if $apt install -y --no-install-recommends $packages </dev/null >"$log" 2>&1 && mesa_loads; then
    echo "mesa: installed"
else
    tail -n 5 "$log"
    go_on_without "could not be installed"
fi
