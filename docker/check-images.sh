#!/usr/bin/env bash
# Builds the CPU image and starts everything that this folder has for one host with containers; `make images`. A quarter of an hour.
#
#   docker/check-images.sh
#
# Needs docker with its compose, or podman with podman-compose. Where no registry can be reached the base image is made with debootstrap
# (as root). Settings, all optional:
#   ECHO_LM_ENGINE         the engine's command; docker where it is, else podman
#   ECHO_LM_COMPOSE        compose's command; "docker compose", or podman-compose
#   ECHO_LM_IMAGE          an image that is there already: none is built
#   ECHO_LM_BUILD_OPTIONS  more options of the build, such as --network host or --build-arg ECHO_LM_TORCH_WHEELS=...
set -euo pipefail
cd "$(dirname "$0")/.."
engine=${ECHO_LM_ENGINE:-$(command -v docker || command -v podman || true)}
[ -n "$engine" ] || { echo "neither docker nor podman is here: install one, or name it in ECHO_LM_ENGINE" >&2; exit 2; }
[[ $engine == *podman* ]] && compose=podman-compose || compose="$engine compose"
compose="${ECHO_LM_COMPOSE:-$compose} -f docker/compose.yaml"
base=docker.io/library/debian:12.11-slim
image=${ECHO_LM_IMAGE:-echo-lm:cpu}
volume=echo-lm-check
log=$(mktemp -d)

check() { # check WHAT COMMAND...: run it; a line with its seconds, or its output and the end
    local what=$1 began=$SECONDS
    shift
    if "$@" >"$log/output" 2>&1; then
        echo "ok    $what ($((SECONDS - began)) s)"
    else
        echo "FAIL  $what ($((SECONDS - began)) s)"
        tail -n 40 "$log/output"
        exit 1
    fi
}
clean_up() {
    $compose down --volumes >/dev/null 2>&1 || true
    "$engine" rm --force echo-lm-check-stop >/dev/null 2>&1 || true
    "$engine" volume rm --force "$volume" >/dev/null 2>&1 || true
    [ -z "${made_token:-}" ] || rm -f docker/ray_token
    rm -rf "$log"
}
trap clean_up EXIT

make_base() {
    "$engine" image inspect "$base" >/dev/null 2>&1 || "$engine" pull "$base" && return
    debootstrap --variant=minbase bookworm "$log/root"
    tar -C "$log/root" -c . | "$engine" import - "$base"
}
build() {
    # shellcheck disable=SC2086 # several options
    "$engine" build ${ECHO_LM_BUILD_OPTIONS:-} -f docker/Dockerfile.cpu -t "$image" .
}
locked_down() { # a read-only root and no HOME, as an unprivileged user
    "$engine" run --rm --network none --read-only --tmpfs /tmp:size=4g,mode=1777 --cap-drop ALL --security-opt no-new-privileges \
        --env HOME= --volume "$volume:/srv/echo-lm" "$image" "$@"
}
container_of() { "$engine" ps --quiet --filter "label=com.docker.compose.service=$1" | head -n 1; }
healthy() { # by the service's own health check
    local id
    id=$(container_of "$1")
    for _ in $(seq 100); do
        if [[ $engine == *podman* ]]; then # its timers need systemd, so each check is asked for
            "$engine" healthcheck run "$id" && return
        else
            [ "$("$engine" inspect --format '{{.State.Health.Status}}' "$id")" = healthy ] && return
        fi
        sleep 3
    done
    "$engine" logs "$id"
    return 1
}
never_restarted() { # a container that dies in a loop has been started again
    for id in $("$engine" ps --all --quiet --filter label=com.docker.compose.project=echo-lm); do
        [ "$("$engine" inspect --format '{{.RestartCount}}' "$id")" = 0 ] || { "$engine" logs "$id"; return 1; }
    done
}
page() { python3 -c "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=20).read().decode())" "$1"; }
page_has() { page "$1" | grep -q "$2"; }
stop_a_run() { # `docker stop` is SIGTERM to the first process: the run leaves a checkpoint
    "$engine" run --detach --name echo-lm-check-stop --init --network none --read-only --tmpfs /tmp:size=4g,mode=1777 --env HOME=/tmp \
        --volume "$volume:/srv/echo-lm" "$image" run smoke name=stopped train.steps=100000 run.checkpoint_every=100000 'evaluation.suites=[]'
    until locked_down status runs/stopped | grep -Eq ' [1-9][0-9]*/100000'; do sleep 2; done
    "$engine" stop --time 30 echo-lm-check-stop
    "$engine" logs echo-lm-check-stop | tail -n 3
    locked_down status runs/stopped
    [ "$("$engine" inspect --format '{{.State.ExitCode}}' echo-lm-check-stop)" = 0 ]
    locked_down generate runs/stopped --prompt def --tokens 4 # needs a checkpoint
}

echo "$($engine --version); $(uname -sr); $(nproc) cores"
if [ -z "${ECHO_LM_IMAGE:-}" ]; then
    check "base image $base" make_base
    check "build of docker/Dockerfile.cpu" build
fi
check "the command answers" "$engine" run --rm "$image" models echo-1m
check "train smoke: read-only root, no HOME, no network" locked_down train smoke
check "run smoke: read-only root, no HOME, no network" locked_down run smoke name=on-ray
check "stop of a run: a checkpoint within 30 s" stop_a_run

if [ ! -f docker/ray_token ]; then
    made_token=yes
    (umask 077 && head -c 32 /dev/urandom | base64 >docker/ray_token)
    [ "$(id -u)" != 0 ] || chown 1000 docker/ray_token
fi
check "compose up, on a new volume" $compose up --detach
for service in head worker mlflow dashboard; do
    check "$service is healthy" healthy "$service"
done
check "the dashboard answers without any run" page http://127.0.0.1:8484/
check "compose run run smoke" $compose --profile run run --rm run smoke
check "the dashboard shows the run" page_has http://127.0.0.1:8484/ smoke
check "no service was restarted" never_restarted
check "compose down" $compose down
echo "all checks passed"
