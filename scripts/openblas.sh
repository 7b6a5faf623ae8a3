# See to OpenBLAS on Linux, which agp/blas.py loads: install it where we may, say how otherwise. Never fails the set-up.
python=$1
[ "$(uname)" = Linux ] || exit 0
have() { "$python" -c 'import ctypes; ctypes.CDLL("libopenblas.so.0")' 2>/dev/null; }
have && exit 0
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq -o Acquire::Retries=3
    apt-get install -y -qq -o Acquire::Retries=3 --no-install-recommends libopenblas0-pthread
fi
have || echo "MLX will be 20 to 40 times slower at float32 without OpenBLAS: sudo apt-get install libopenblas0-pthread"
