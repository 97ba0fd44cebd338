#!/bin/sh
# Make .venv and install the course into it; does nothing where that is done.
#   sh tools/setup.sh [learn|dev]      dev also installs what the tests need
# PYTHON=/path/to/python chooses the Python; COURSE_VENV=folder chooses another place.
set -u
cd "$(dirname "$0")/.." || exit 1
what=${1:-learn}
venv=${COURSE_VENV:-.venv}
stamp=$venv/.installed-$what
wanted=$(cat settings.ini setup.py pyproject.toml | cksum)

say() { printf '%s\n' "$*" >&2; }
fits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; }

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && fits "$venv/bin/python"; then exit 0; fi

if ! fits "$venv/bin/python"; then
    python=
    for p in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python3.10 python}; do
        if fits "$p"; then python=$p; break; fi
    done
    if [ -z "$python" ]; then
        say "The course needs Python 3.10 or newer, and ${PYTHON:-python3} is $(${PYTHON:-python3} -V 2>&1 || echo missing). Install a newer one, or name it: make $what PYTHON=/path/to/python3.12"
        exit 1
    fi
    if [ -e "$venv" ] && [ ! -f "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv" 2>/dev/null)" ]; then
        say "$venv is there and is no virtual environment: move it away, or choose another place with COURSE_VENV=folder."
        exit 1
    fi
    rm -rf "$venv"
    if ! "$python" -m venv "$venv" >"${TMPDIR:-/tmp}/venv.$$" 2>&1; then
        version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        say "$python can't make a virtual environment: its venv module is missing or broken. On Debian or Ubuntu: sudo apt-get install python$version-venv"
        say "It said: $(tail -n 3 "${TMPDIR:-/tmp}/venv.$$")"
        rm -rf "$venv" "${TMPDIR:-/tmp}/venv.$$"
        exit 1
    fi
    rm -f "${TMPDIR:-/tmp}/venv.$$"
fi

extras=
if [ "$what" = dev ]; then extras='[dev]'; fi
say "Installing into $venv: about 2 to 5 minutes the first time, 2 to 3 GB to fetch (log: $venv/install.log)"
(
    "$venv/bin/python" -m pip install --quiet --upgrade pip &&
    "$venv/bin/python" -m pip install --quiet -e ".$extras"
) >"$venv/install.log" 2>&1 &
pid=$!
trap 'kill $pid 2>/dev/null; exit 130' INT TERM
seconds=0
while kill -0 $pid 2>/dev/null; do
    sleep 1; seconds=$((seconds + 1))
    if [ $((seconds % 20)) = 0 ]; then say "  still installing, $seconds s"; fi
done
if ! wait $pid; then
    say "The installation failed. The end of $venv/install.log:"
    tail -n 15 "$venv/install.log" >&2
    say "Often this is a lack of network or disk space; what helps: ${PYTHON:-python3} transfer_course/backstage/doctor.py"
    exit 1
fi
if [ "$what" = dev ]; then printf '%s' "$wanted" >"$venv/.installed-learn"; fi
printf '%s' "$wanted" >"$stamp"
say "Installed in $seconds s."
