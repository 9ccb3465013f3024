#!/bin/sh
# tachiom 0.4.0 into the folder given. Its wheel asks for glibc 2.39, but needs no symbol of it: unpacked by hand.
set -eu
out=${1:?usage: tachiom.sh FOLDER}
mkdir -p "$out"
python -m pip download --no-deps --only-binary=:all: --platform manylinux_2_39_x86_64 --python-version 3.11 \
    -d "$out/wheel" tachiom==0.4.0
python -m zipfile -e "$out"/wheel/tachiom-0.4.0-*.whl "$out"
