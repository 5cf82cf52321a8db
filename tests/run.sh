#!/usr/bin/env bash
# All tests but the slow ones, `tests/run.sh .venv/bin ARGS...`: those with whole fleets, which mostly wait for processes
# to start, beside the others. Their output comes last.
set -muo pipefail # -m: what runs in the background can be interrupted
bin=$1
shift
output=$(mktemp)
"$bin/pytest" -m "not slow and e2e" "$@" >"$output" 2>&1 &
fleets=$!
trap 'kill -INT "$fleets" 2>/dev/null; wait "$fleets"; rm -f "$output"' EXIT

"$bin/pytest" -m "not slow and not e2e" "$@"
first=$?
[ "$first" = 2 ] && exit 2 # interrupted
wait "$fleets"
second=$?
cat "$output"
[ "$first$second" = 55 ] && exit 5 # nothing was asked for
for status in "$first" "$second"; do
  case $status in 0 | 5) ;; *) exit "$status" ;; esac
done
