#!/bin/sh
# Builds the stand-ins for parts of Windows into a folder, for tests:
#
#   e2e/wine/standin/build.sh OUTDIR
#
# It needs x86_64-w64-mingw32-gcc (Debian: gcc-mingw-w64-x86-64-win32).
set -eu
[ $# -eq 1 ] || { echo "usage: build.sh OUTDIR" >&2; exit 2; }
src=$(dirname "$0")
mkdir -p "$1"
x86_64-w64-mingw32-gcc -std=c11 -O1 -Wall -Wextra -Werror -Wno-stringop-truncation -shared -s \
	-o "$1/netapi32.dll" "$src/netapi32.c" -ladvapi32
