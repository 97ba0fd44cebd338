#!/bin/bash
# Prove the Binder files: a fresh environment made from them, JupyterLab started from it, a lesson run in it.
# PyTorch's own index is left out with `--without-index`, for machines that can't reach it.
#   tools/prove_binder.sh [--without-index] [python3.12]
set -euo pipefail
cd "$(dirname "$0")/.."
drop='^$'
if [ "${1:-}" = --without-index ]; then drop='^--index-url'; shift; fi
python=${1:-python3}
work=$(mktemp -d)
server=
cleanup() { if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; fi; rm -rf "$work"; }
trap cleanup EXIT

mkdir "$work/repo"
git ls-files -z --cached --others --exclude-standard | tar --null --files-from=- -c | tar -x -C "$work/repo"
"$python" -m venv "$work/env"
export PATH="$work/env/bin:$PATH"
cd "$work/repo"
grep -v -e "$drop" binder/requirements.txt >"$work/requirements.txt"
start=$SECONDS
quietly() { if ! "$@" >"$work/log" 2>&1; then tail -n 20 "$work/log"; exit 1; fi; }
quietly python -m pip install --no-cache-dir -r "$work/requirements.txt"
quietly bash binder/postBuild
echo "environment: $((SECONDS - start)) s"

python - <<'P'
import torch, torchvision
torchvision.ops.nms(torch.zeros(1, 4), torch.ones(1), .5)
print('torch', torch.__version__, 'torchvision', torchvision.__version__)
P
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
root=; if [ "$(id -u)" = 0 ]; then root=--allow-root; fi
jupyter lab --no-browser $root --port="$port" --IdentityProvider.token=proof >"$work/lab.log" 2>&1 &
server=$!
python - "$port" <<'P'
import json, sys, time, urllib.request
base = f'http://127.0.0.1:{sys.argv[1]}'
def get(path, data=None):
    request = urllib.request.Request(base + path, data, headers={'Authorization': 'token proof', 'Content-Type': 'application/json'})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer: return answer.status, answer.read()
for _ in range(120):
    try: status, page = get('/lab'); break
    except OSError: time.sleep(.5)
print('GET /lab:', status); assert status == 200 and b'JupyterLab' in page
lessons = [x['name'] for x in json.loads(get('/api/contents/nbs')[1])['content'] if x['name'][:1].isdigit()]
print('lessons:', *lessons); assert lessons
print('kernel:', get('/api/kernels', b'{}')[0])
P
transfer-course doctor || true
transfer-course learn --lesson "$(ls nbs | grep -o '^[0-9]*' | head -n 1)" --out "$work/learn"
echo "Binder files: all is well, $((SECONDS - start)) s."
