#!/usr/bin/env bash
# Build vae-runtime in C with each compiler, and test it in each way that this machine has: test.sh PYTHON. PYTHON has
# ONNX Runtime, whose shared library is opened. What is missing is skipped by name. Everything lies under out/c.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$1
[ "${python#*/}" = "$python" ] || python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
out=$PWD/out/c
fuzz_seconds=${FUZZ_SECONDS:-5}
skip() { echo "skipped: $1: $2"; }
has() { command -v "$1" >/dev/null; }
library() { "$python" - <<'END'
import importlib.util, pathlib
spec = importlib.util.find_spec("onnxruntime")
found = sorted((pathlib.Path(spec.origin).parent / "capi").glob("libonnxruntime.so.*")) if spec else []
print(found[0] if found else "")
END
}
native() { # NAME [ENVIRONMENT…]: build the wheel vae-runtime-native and lay it out in out/c/NAME
  local name=$1
  shift
  rm -rf "$out/$name"
  (cd runtime/native && env "$@" "$python" -m hatchling build -t wheel -d "$out/$name") >"$out/$name.log" 2>&1 || { cat "$out/$name.log"; return 1; }
  "$python" -m zipfile -e "$out/$name"/vae_runtime_native-*.whl "$out/$name"
}
build() { # NAME CMAKE-ARGUMENTS…: build in out/c/NAME
  local name=$1
  shift
  cmake -S runtime/c -B "$out/$name" -DVAE_ONNXRUNTIME="$onnxruntime" "$@" >"$out/$name.log" 2>&1 || { cat "$out/$name.log"; return 1; }
  cmake --build "$out/$name" --parallel 2 >"$out/$name.log" 2>&1 || { cat "$out/$name.log"; return 1; }
}
run() { # NAME [ENVIRONMENT…]: run the tests of out/c/NAME
  local name=$1
  shift
  env "$@" ctest --test-dir "$out/$name" --output-on-failure >"$out/$name.log" 2>&1 || { cat "$out/$name.log"; return 1; }
  echo "ok: $name"
}

mkdir -p "$out"
has cmake && has gcc && has g++ || { skip "all of C" "cmake, gcc or g++ is missing"; exit 0; }
onnxruntime=$(library)
[ -n "$onnxruntime" ] || { skip "all of C" "the wheel of this ONNX Runtime has no shared library; 1.19 and newer have"; exit 0; }

# A locale whose decimal point is a comma, for the tests that read numbers.
if has localedef && localedef -i de_DE -f UTF-8 "$out/de_DE.UTF-8" >/dev/null 2>&1; then
  export LOCPATH=$out
else
  skip "a decimal comma" "localedef makes no de_DE.UTF-8"
fi

# Each compiler; warnings are errors.
for compiler in gcc:g++ clang:clang++; do
  c=${compiler%:*}
  if has "$c"; then
    build "$c" -DVAE_TESTS=ON -DCMAKE_C_COMPILER="$c" -DCMAKE_CXX_COMPILER="${compiler#*:}"
    run "$c"
  else
    skip "$c" "it is not installed"
  fi
done

# The wheel with the noise; the conformance suite asks it.
native native
echo "ok: native"

# The oldest ONNX Runtime: its Python wheel has no shared library, the package for Node has.
oldest=$out/oldest/package/bin/napi-v3/linux/x64/libonnxruntime.so.1.18.0
if [ "$(uname -m)" != x86_64 ] || ! has npm; then
  skip "ONNX Runtime 1.18" "its library comes from npm, for x86-64"
else
  if [ ! -e "$oldest" ]; then
    mkdir -p "$out/oldest"
    (cd "$out/oldest" && npm pack --silent onnxruntime-node@1.18.0 >/dev/null && tar xf onnxruntime-node-1.18.0.tgz)
  fi
  for test in internal api threads cpp; do "$out/gcc/test_$test" "$oldest" conformance/bundles; done
  echo "ok: ONNX Runtime 1.18"
fi

# Sanitizers and valgrind. ONNX Runtime itself is not built for them.
if has clang; then
  build asan -DVAE_TESTS=ON -DCMAKE_BUILD_TYPE=Debug -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ -DVAE_SANITIZE=address,undefined
  run asan ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1 LSAN_OPTIONS=suppressions="$PWD/runtime/c/tests/leaks.supp"
  build tsan -DVAE_TESTS=ON -DCMAKE_BUILD_TYPE=Debug -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ -DVAE_SANITIZE=thread
  # A call of ONNX Runtime that ends in an unlock looks like ours.
  TSAN_OPTIONS=report_mutex_bugs=0:suppressions="$PWD/runtime/c/tests/threads.supp" "$out/tsan/test_threads" "$onnxruntime" conformance/bundles
  echo "ok: tsan"
else
  skip "sanitizers" "clang is not installed"
fi
if has valgrind; then
  for test in internal api; do
    valgrind -q --error-exitcode=1 --leak-check=full --errors-for-leak-kinds=definite --suppressions=runtime/c/tests/valgrind.supp \
      "$out/gcc/test_$test" "$onnxruntime" conformance/bundles 2>"$out/valgrind.log" || { tail -50 "$out/valgrind.log"; exit 1; }
  done
  echo "ok: valgrind"
else
  skip "valgrind" "it is not installed"
fi

# Fuzz what reads bundles; the corpora stay.
if has clang && build fuzz -DVAE_FUZZ=ON -DCMAKE_C_COMPILER=clang; then
  "$python" runtime/c/tests/corpus.py "$out/corpus"
  for target in manifest archive golden graph sums; do
    mkdir -p "$out/corpus/$target/found"
    "$out/fuzz/fuzz_$target" -max_total_time="$fuzz_seconds" -timeout=5 -rss_limit_mb=1024 -max_len=65536 -artifact_prefix="$out/corpus/$target-" \
      "$out/corpus/$target/found" "$out/corpus/$target" >"$out/fuzz_$target.log" 2>&1 || { tail -30 "$out/fuzz_$target.log"; exit 1; }
    echo "ok: fuzz $target, $(grep -oE '^Done [0-9]+' "$out/fuzz_$target.log" | cut -d' ' -f2) inputs"
  done
else
  skip "fuzzing" "clang is not installed"
fi

# What is installed serves programs by pkg-config.
if has pkg-config; then
  cmake --install "$out/gcc" --prefix "$out/prefix" >"$out/install.log"
  export PKG_CONFIG_PATH=$out/prefix/lib/pkgconfig:$out/prefix/lib/$(gcc -print-multiarch 2>/dev/null || true)/pkgconfig
  libraries=$(pkg-config --variable=libdir vae_runtime)
  # shellcheck disable=SC2046
  cc -std=c99 runtime/c/examples/sample.c $(pkg-config --cflags --libs vae_runtime) -Wl,-rpath,"$libraries" -o "$out/sample"
  [ "$("$out/sample" models/digits "$onnxruntime" | wc -c)" = 4096 ]
  echo "ok: pkg-config"
else
  skip "pkg-config" "it is not installed"
fi

# aarch64, emulated: the environment is that of make test-arm64.
work=$PWD/.venvs/arm64
if ! has aarch64-linux-gnu-gcc || ! has aarch64-linux-gnu-g++; then
  skip "aarch64" "aarch64-linux-gnu-gcc and -g++ are not installed"
elif [ ! -e "$work/ready" ]; then
  skip "aarch64" "make test-arm64 makes its environment"
else
  build aarch64 -DVAE_TESTS=ON -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
  for test in internal api threads; do
    "$work/qemu/usr/bin/qemu-aarch64-static" -cpu cortex-a72 -L "$work/root" -E LD_LIBRARY_PATH="$out/aarch64" \
      "$out/aarch64/test_$test" "$(ls "$work"/site/onnxruntime/capi/libonnxruntime.so.*)" conformance/bundles
  done
  native native-aarch64 CC=aarch64-linux-gnu-gcc VAE_NATIVE_PLATFORM=linux_aarch64
  echo "ok: aarch64"
fi
