#!/bin/sh
# A llama-server 0.5.0 with the real CUDA backend, without a CUDA toolkit: llama_server_cuda.sh FOLDER makes FOLDER/bin/llama-server.
# Source and libraries (CUDA 13; capabilities 7.5 and newer) are those of npm's node-llama-cpp 3.22.1; only the server itself is compiled, and
# linked to those libraries. Needed: npm, git, cmake, ninja, g++ 12 or newer; some minutes. TONNAGE_TEST_LLAMA_SERVER=FOLDER/bin/llama-server
# then runs the test of it: cargo test -p tonnage --test dry_engine
set -eu
mkdir -p "$1"
cd "$1"
V=3.22.1
npm pack --silent node-llama-cpp@$V @node-llama-cpp/linux-x64-cuda@$V >/dev/null
mkdir -p addon bin
tar xzf node-llama-cpp-$V.tgz -C addon package/llama/gitRelease.bundle
tar xzf node-llama-cpp-linux-x64-cuda-$V.tgz --strip-components=3 -C bin package/bins/linux-x64-cuda
rm -f ./*.tgz
[ -d source ] || git clone -q addon/package/llama/gitRelease.bundle source
cmake -S source -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE=-O1 -DBUILD_SHARED_LIBS=ON -DGGML_BACKEND_DL=ON \
    -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF >/dev/null
OBJECTS=$(ninja -C build -t targets all | grep -oE '^[^: ]*\.o' |
    grep -E '/(llama-server|llama-server-impl|server-context|mtmd|llama-ui|cpp-httplib|vendor-hash)\.dir/')
# shellcheck disable=SC2086
ninja -C build $OBJECTS
cd build
# shellcheck disable=SC2086
g++ -o ../bin/llama-server $OBJECTS -L../bin -l:libllama-common.so -l:libllama.cuda.v0.5.0.so -l:libggml.cuda.v0.5.0.so \
    -l:libggml-base.so -lpthread -ldl '-Wl,-rpath,$ORIGIN'
