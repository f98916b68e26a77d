#!/bin/sh
# Install the headless browser in which the tests look at the live page.
# Never prompts and never fails: without it those tests are skipped, and say so.

package="chromium-headless-shell"
export PATH="$PATH:/usr/sbin:/sbin"

go_on_without() {
    echo "chromium: $1; tests of the live page are skipped. As root: apt-get install $package"
    exit 0
}

for name in chromium-headless-shell chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null; then
        echo "chromium: $name is installed"
        exit 0
    fi
done
if [ "$(id -u)" -eq 0 ]; then
    as_root=""
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root="sudo -n"
else
    go_on_without "not installed, and neither root nor sudo without a password"
fi
command -v apt-get >/dev/null || go_on_without "not installed, and there is no apt-get here"

echo "chromium: installing $package"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt="$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq"
# A fresh container has no package lists.
if ! ls /var/lib/apt/lists/*_Packages* >/dev/null 2>&1; then
    $apt update </dev/null >"$log" 2>&1
fi
# shellcheck disable=SC2086 # the words of $apt are meant to be split
if $apt install -y --no-install-recommends "$package" </dev/null >"$log" 2>&1; then
    echo "chromium: installed"
else
    tail -n 5 "$log"
    go_on_without "could not be installed"
fi
