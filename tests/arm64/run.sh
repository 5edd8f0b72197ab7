#!/usr/bin/env bash
# The noise vectors and `verify` on emulated aarch64: Debian's arm64 Python beside the aarch64 wheels of numpy and
# ONNX Runtime, run by qemu-user. Needs a Debian or Ubuntu on x86-64 with apt-get, dpkg, unzip and pip; no root.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p .venvs/arm64
work=$(cd .venvs/arm64 && pwd)
root=$work/root
if [ ! -e "$work/ready" ]; then
  (
    cd "$work"
    apt-get -q download qemu-user-static
    dpkg -x qemu-user-static_*.deb qemu
    apt=$work/apt
    mkdir -p "$root/proc" "$apt/lists/partial" "$apt/cache/archives/partial"
    : >"$apt/status"
    # the system's own package source, asked for arm64
    mirror=$({ grep -rhoE 'https?://[^ ]+/debian/?( |$)' /etc/apt/sources.list /etc/apt/sources.list.d 2>/dev/null || true; } | head -1)
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bookworm main" >"$apt/sources.list"
    options=(-qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o "Dir::State=$apt"
      -o "Dir::State::status=$apt/status" -o "Dir::Cache=$apt/cache" -o "Dir::Etc::sourcelist=$apt/sources.list"
      -o "Dir::Etc::sourceparts=$apt/none")
    apt-get "${options[@]}" update
    apt-get "${options[@]}" -y --no-install-recommends -d install python3.11-minimal libpython3.11-stdlib libstdc++6 >/dev/null
    for deb in "$apt"/cache/archives/*.deb; do dpkg -x "$deb" "$root"; done
    python3 -m pip -q download --no-deps --only-binary=:all: --platform manylinux_2_28_aarch64 \
      --platform manylinux_2_27_aarch64 --python-version 311 -d wheels numpy onnxruntime
    for wheel in wheels/*.whl; do unzip -qo "$wheel" -d site; done
    # onnxruntime reads /proc/cpuinfo at import and crashes on an x86 one; -L redirects it here
    for cpu in 0 1; do
      printf 'processor\t: %d\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n' $cpu
    done >"$root/proc/cpuinfo"
    touch ready
  )
fi
rm -rf "$work/native"
if ls dist/vae_runtime_native-*aarch64.whl >/dev/null 2>&1; then
  unzip -qo dist/vae_runtime_native-*aarch64.whl -d "$work/native"
else
  echo "skipped: the native core: make native makes its wheel"
fi
PYTHONPATH=$work/site:$work/native:$PWD/runtime exec "$work/qemu/usr/bin/qemu-aarch64-static" -cpu cortex-a72 -L "$root" \
  "$root/usr/bin/python3.11" tests/arm64/check.py
