# Source this on a GPU machine that received the checkout and `carry/`: makes `echo_lm` and the carried packages importable.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "$root/carry/echo/echo_lm"
for folder in kernels models data_prep evals pipeline orchestration; do
    ln -sfn "$root/$folder" "$root/carry/echo/echo_lm/$folder"
done
export PYTHONPATH="$root/carry/echo:$root/carry/site${PYTHONPATH:+:$PYTHONPATH}"
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$root/carry/triton_cache}"
export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$root/carry/inductor_cache}"
