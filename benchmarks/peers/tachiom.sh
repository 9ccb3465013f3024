#!/bin/sh
# Unpacks tachiom 0.4.0 into a folder. pip would reject the wheel, which is tagged for glibc 2.39 but needs none of its symbols.
set -eu
out=${1:?usage: tachiom.sh FOLDER}
mkdir -p "$out"
python -m pip download --no-deps --only-binary=:all: --platform manylinux_2_39_x86_64 --python-version 3.11 \
    -d "$out/wheel" tachiom==0.4.0
python -m zipfile -e "$out"/wheel/tachiom-0.4.0-*.whl "$out"
