# Source this on a GPU machine that received the checkout and `bundle/`: makes `echo_lm` and the bundled packages importable.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
mkdir -p "$root/bundle/echo/echo_lm"
for folder in kernels models data_prep evals pipeline orchestration; do
    ln -sfn "$root/$folder" "$root/bundle/echo/echo_lm/$folder"
done
# Outside of `bundle`, which the next call may replace: what this one compiles stays.
[ -f "$root/bundle/site.tar.xz" ] || { echo "bundle/site.tar.xz is not here: run docker/offline/collect_bundle.py first" >&2; return 1; }
unpacked=$(mktemp -d) && python -W ignore -m tarfile -e "$root/bundle/site.tar.xz" "$unpacked" &&
    rm -rf /tmp/echo-lm-site && mv "$unpacked" /tmp/echo-lm-site || return 1
export ECHO_LM_COMMIT="$(cat /tmp/echo-lm-site/commit)"
export PYTHONPATH="$root/bundle/echo:/tmp/echo-lm-site${PYTHONPATH:+:$PYTHONPATH}"
if [ -n "${carried_triton:-}" ]; then # a release that came with this call or an earlier one, in place of the machine's
    release=/tmp/echo-lm-triton-$carried_triton
    archive=$root/bundle/triton-$carried_triton.tar.xz
    if [ ! -d "$release" ]; then
        [ -f "$archive" ] || { echo "$archive is not here: run docker/offline/collect_bundle.py --triton $carried_triton first" >&2; return 1; }
        mkdir -p "$release.partial" && python -W ignore -m tarfile -e "$archive" "$release.partial" && mv "$release.partial" "$release" || return 1
    fi
    export PYTHONPATH="$release:$PYTHONPATH"
fi
export TRITON_CACHE_DIR=/tmp/echo-lm-triton TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-/tmp/echo-lm-inductor}"
mkdir -p "$TRITON_CACHE_DIR"
[ -f "$root/bundle/triton_cache.tar.xz" ] && python -W ignore -m tarfile -e "$root/bundle/triton_cache.tar.xz" "$TRITON_CACHE_DIR"
export PYTHONUNBUFFERED=1
