# Run a queue of recall sweeps on a bare GPU machine that received the checkout and `bundle/` (collect_bundle.py), and pack what it found.
#
#     bash docker/offline/sweep_on_gpu.sh OUT JOBS SECONDS WORKERS [tests that need a GPU, and other arguments of pytest]
#
# OUT gets tables.tar.xz (NAME.json of each sweep, to be put into benchmarks/results/tables, and each job's folder), and pytest.log. Tests want
# `collect_bundle.py --tests`; they run beside the tables, as compiling their kernels takes the CPU, not the GPU.
[ $# -ge 4 ] || { echo "usage: sweep_on_gpu.sh OUT JOBS SECONDS WORKERS [arguments of pytest]" >&2; exit 2; }
out=$1 jobs=$2 seconds=$3 workers=$4
shift 4
source "$(dirname "${BASH_SOURCE[0]}")/use_bundle.sh" || exit 1
nvidia-smi -L
if [ $# -gt 0 ]; then
    pytest=(python -W ignore -m pytest -m gpu --noconftest -p no:cacheprovider -p no:benchmark)
    (OMP_NUM_THREADS=1 timeout "$seconds" "${pytest[@]}" "$@" >"$out/pytest.log" 2>&1; tail -n 25 "$out/pytest.log" | cut -c1-300) &
fi
python -m echo_lm.orchestration.jobs.sweep_queue "$jobs" --seconds "$seconds" --workers "$workers" --results "$root/benchmarks/results/tables" \
    --out "$out/tables"
code=$?
[ -d "$out/tables" ] && tar cJf "$out/tables.tar.xz" -C "$out" tables && rm -rf "$out/tables"
wait
exit $code
