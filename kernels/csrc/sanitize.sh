#!/bin/sh
# Builds the kernels and their C++ tests with the address and undefined-behaviour sanitizers and runs them.
# Generated code is not instrumented; all other code is. For another processor:
#   CXX=aarch64-linux-gnu-g++ SANITIZERS= RUN=qemu-aarch64 csrc/sanitize.sh OUT    Arm
#   SANITIZERS= RUN="qemu-x86_64 -cpu Haswell" csrc/sanitize.sh OUT                a CPU with AVX2 and without AVX-512
set -eu
cd "$(dirname "$0")"
out="${1:-../../build/sanitize}"
cxx="${CXX:-g++}"
sanitizers="${SANITIZERS-address,undefined}"
mkdir -p "$out"
common="-std=c++17 -fopenmp -I."
if [ -n "$sanitizers" ]; then
    common="$common -O1 -g -fno-omit-frame-pointer -fsanitize=$sanitizers -fno-sanitize-recover=all"
else
    common="$common -O3"
fi
avx512="-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma"
objects=""
for source in $(find . -name '*.cpp' | sort); do
    flags="$common"
    case "$("$cxx" -dumpmachine)$source" in
        x86_64*avx2*) flags="$common -mavx2 -mfma" ;;
        x86_64*avx512bf16*) flags="$common $avx512 -mavx512bf16" ;;
        x86_64*avx512*) flags="$common $avx512" ;;
    esac
    object="$out/$(echo "${source#./}" | tr / _).o"
    # shellcheck disable=SC2086
    "$cxx" $flags -c "$source" -o "$object"
    objects="$objects $object"
done
static=""
[ -z "${RUN:-}" ] || static="-static"  # an emulator does not find shared libraries of the other processor
# shellcheck disable=SC2086
"$cxx" $common $static $objects -o "$out/kernels_test" 2>"$out/link.log" || { cat "$out/link.log" >&2; exit 1; }
# shellcheck disable=SC2086
OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive ${RUN:-} "$out/kernels_test"
