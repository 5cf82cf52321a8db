#!/usr/bin/env bash
# Called by `make`: install.sh venv | serve | dev. Each step can be interrupted: the next run starts it anew.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${VENV:-.venv}
log=.r1/logs/install.log
torch_index=https://download.pytorch.org/whl/cpu
mkdir -p "$(dirname "$log")"
: >"$log"
exec 3>&2 # what a stage says aloud

fail() { echo "error: $*" >&2; exit 2; }

stage() { # stage WHAT COMMAND…: one line with the seconds it took; the command's own output goes to the log
  local what=$1 begin=$SECONDS
  shift
  printf '%s … ' "$what" >&2
  "$@" >>"$log" 2>&1 || { echo >&2; fail "$what failed: $(grep -i error "$log" | tail -1) (log: $log)"; }
  printf '%d s\n' $((SECONDS - begin)) >&2
}

pip() { "$venv/bin/python" -m pip --disable-pip-version-check install --no-input --no-deps --no-compile "$@"; }

python() { # the Python to make the environment with
  local found
  found=$(command -v "${PYTHON:-python3.11}" || command -v python3) ||
    fail "Python 3.11 is needed and none was found: install python3.11, or run make PYTHON=/path/to/python3.11"
  "$found" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "Python 3.11 or newer is needed, $found is $("$found" -V 2>&1): install python3.11, or run make PYTHON=/path/to/it"
  "$found" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$found has no venv module: install it (Debian and Ubuntu: python3-venv), or run make PYTHON=/path/to/another"
  echo "$found"
}

torch() { # PyTorch's CPU build: from the index pip is configured with, else from PyTorch's own
  local wanted
  wanted=$(grep '^torch==' requirements/cpu.lock)
  pip "$@" "$wanted" && return
  grep -q 'No matching distribution found for torch' "$log" || return 1
  printf '\n%s is not on the configured package index: taking it from %s … ' "$wanted" "$torch_index" >&3
  pip "$@" --index-url "$torch_index" "$wanted" && return
  echo "ERROR: $wanted is not to be had from $torch_index either: is it reachable from here?"
  return 1
}

unfinished() { [[ -e $venv/.$1-begun ]]; } # the last such step was cut off
begin() { mkdir -p "$venv" && touch "$venv/.$1-begun"; }
end() { rm "$venv/.$1-begun"; }

again=()
case ${1:-} in
  venv)
    [[ $(uname -s) == Linux ]] || fail "vLLM's CPU build is for Linux: on $(uname -s) use a Linux container or machine"
    from=$(python)
    if unfinished venv; then again=(--clear); fi
    begin venv
    stage "making $venv with $("$from" -V)" "$from" -m venv "${again[@]}" "$venv"
    end venv
    ;;
  serve)
    if unfinished serve; then again=(--ignore-installed); fi
    begin serve
    stage "installing PyTorch's CPU build" torch "${again[@]}"
    stage "installing $(grep -c == requirements/cpu.lock) packages (minutes, once)" pip "${again[@]}" -r requirements/cpu.lock
    stage "installing r1-serve itself" pip --no-build-isolation --editable .
    end serve
    ;;
  dev)
    if unfinished dev; then again=(--ignore-installed); fi
    begin dev
    stage "installing $(grep -c == requirements/dev.lock) test tools" pip "${again[@]}" -r requirements/dev.lock
    end dev
    ;;
  *) fail "usage: install.sh venv | serve | dev" ;;
esac
