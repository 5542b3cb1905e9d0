#!/usr/bin/env bash
# CMake as Horovod's build calls it (HOROVOD_CMAKE): builds the library for TensorFlow alone and without debug symbols.
# Horovod builds everything: Gloo three times, once for each C++ ABI, of which TensorFlow's library uses one.

if [[ ${1:-} == --build ]]; then
    exec cmake --build "$2" --target tensorflow "${@:3}"
fi
exec cmake "$@" "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O2 -DNDEBUG"
