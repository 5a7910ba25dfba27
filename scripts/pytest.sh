#!/usr/bin/env bash
# pytest with these arguments; what failed beside other tests runs once more, by itself. The output has both:
# a test that passes only then measures how busy the machine is, and is to be mended.
set -euo pipefail
pytest="$(dirname "$0")/../.venv/bin/pytest"

status=0
"$pytest" "$@" || status=$?
[ "$status" = 1 ] || exit "$status" # whatever else ended it is no test that failed
echo "pytest: what failed runs once more, by itself"
exec "$pytest" "$@" -n 0 --last-failed --last-failed-no-failures none --maxfail 1
