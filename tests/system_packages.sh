#!/bin/sh
# Installs, where it may, what two groups of tests need from the system; says what is missing where it may not.
missing=""
command -v chromium >/dev/null 2>&1 || command -v chromium-browser >/dev/null 2>&1 || command -v google-chrome >/dev/null 2>&1 || missing="chromium"
[ -n "$HARDBIT_DATA" ] || [ -e /usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz ] || missing="$missing dataset-fashion-mnist"
[ -n "$missing" ] || exit 0
if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing >/dev/null || echo "could not install:$missing (tests that need them will skip)"
else
    echo "not installed:$missing (tests that need them will skip; 'apt-get install $missing' brings them)"
fi
exit 0
