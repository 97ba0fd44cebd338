#!/bin/bash
# Prove that the lessons need no network: run them in a network namespace that has no interface but a loopback that is down.
#   tools/prove_offline.sh            after `make learn` has installed
set -euo pipefail
cd "$(dirname "$0")/.."
sh tools/setup.sh learn
unshare --map-root-user --net bash -c '
    if .venv/bin/python -c "import socket; socket.create_connection((\"1.1.1.1\", 53), 3)" 2>/dev/null; then echo "there is a network here"; exit 1; fi
    make learn'
