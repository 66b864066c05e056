#!/bin/sh
# Compiles the accelerator: the same bytes from any folder, by the clang of Debian 12 (14.0.6). With a folder as its argument
# the object goes there, to be compared with the committed one.
set -eu
cd "$(dirname "$0")"
clang -O2 -Wall -Wextra -Werror -target bpf -mcpu=v2 -I"/usr/include/$(uname -m)-linux-gnu" \
	-c accelerator.bpf.c -o "${1:-.}/accelerator.bpf.o"
