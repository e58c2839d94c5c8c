# Run recall sweeps on a bare GPU machine that received the checkout and `bundle/` (collect_bundle.py), and pack their results.
#
#     bash docker/offline/sweep_on_gpu.sh OUT TIME SWEEP [further arguments of `echo-lm sweep run`, such as --arm NAME --workers 3]
#
# OUT gets sweeps.tar.xz (NAME.json of each sweep, to be put into benchmarks/results/tables) and sweep.log. TIME is 9m or 500s.
[ $# -ge 3 ] || { echo "usage: sweep_on_gpu.sh OUT TIME SWEEP [arguments of echo-lm sweep run]" >&2; exit 2; }
out=$1 time=$2
shift 2
source "$(dirname "${BASH_SOURCE[0]}")/use_bundle.sh" || exit 1
nvidia-smi -L
sweeps=/tmp/echo-lm-sweeps # outside of the checkout, which the next call replaces: what this one finished stays
mkdir -p "$sweeps"
cp -n "$root"/benchmarks/results/tables/*.json "$sweeps"
python -c "from echo_lm.orchestration.cli.main import main; main()" sweep run "$@" --sweeps "$sweeps" --for "$time" \
    --archive "$out/sweeps.tar.xz" 2>&1 | tee "$out/sweep.log"
exit "${PIPESTATUS[0]}"
