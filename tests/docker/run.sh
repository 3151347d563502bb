#!/usr/bin/env bash
# Runs the tests in this folder with the Docker engine that runs. Where none does, root on Debian gets one for as long as it takes.
set -euo pipefail
cd "$(dirname "$0")/../.."

engine_answers() { docker version &>/dev/null; }

if ! command -v docker >/dev/null || ! engine_answers; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "make test-docker needs a Docker engine that runs" >&2
    exit 1
  fi
  command -v dockerd >/dev/null && command -v debootstrap >/dev/null || {
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends docker.io debootstrap
  } >/dev/null
fi
# Installing it starts it where there is an init system.
if ! engine_answers; then
  own=$(mktemp -d)
  export DOCKER_HOST=unix://$own/docker.sock
  # The containers talk to this computer alone, so that its firewall is left as it is.
  dockerd --data-root "$PWD/.tools/docker" --exec-root "$own/exec" --pidfile "$own/pid" --host "$DOCKER_HOST" \
    --iptables=false --ip6tables=false --ip-masq=false &>"$own/log" &
  engine=$!
  trap 'kill "$engine"; wait "$engine" || true; umount "$own"/exec/netns/* 2>/dev/null || true; rm -rf "$own"' EXIT
  for _ in {1..60}; do
    engine_answers && break
    kill -0 "$engine" 2>/dev/null || break
    sleep 0.5
  done
  engine_answers || { cat "$own/log" >&2; exit 1; }
fi

echo "Lambda's image: $(scripts/lambda_image.sh)"
DOCKER=1 .venv/bin/python -m pytest tests/docker "$@"
