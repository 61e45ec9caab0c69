#!/bin/sh
# Builds the kernels and their C++ tests with the address and undefined-behaviour sanitizers and runs them.
# Generated code itself is not instrumented; everything around it is.
set -eu
cd "$(dirname "$0")"
out="${1:-../../build/sanitize}"
cxx="${CXX:-g++}"
mkdir -p "$out"
common="-std=c++17 -O1 -g -fopenmp -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all -I."
avx512="-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma"
objects=""
for source in $(find . -name '*.cpp' | sort); do
    flags="$common"
    if [ "$(uname -m)" = x86_64 ]; then
        case "$source" in
            *avx2*) flags="$common -mavx2 -mfma" ;;
            *avx512bf16*) flags="$common $avx512 -mavx512bf16" ;;
            *avx512*) flags="$common $avx512" ;;
        esac
    fi
    object="$out/$(echo "$source" | tr / _).o"
    # shellcheck disable=SC2086
    "$cxx" $flags -c "$source" -o "$object"
    objects="$objects $object"
done
# shellcheck disable=SC2086
"$cxx" $common $objects -o "$out/kernels_test"
OMP_NUM_THREADS=2 "$out/kernels_test"
