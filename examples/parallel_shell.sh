#!/usr/bin/env bash
# Shell commands in parallel, as with GNU parallel, but on a store: killed in the middle, the same command goes on.
#
# It makes some files, compresses each by a command of its own (`{}` is the file), one of which fails because its file is not there;
# kills the whole run with -9 half way; runs the same command again, which does what is missing; and shows the log, whose columns
# are GNU parallel's. What failed is tried again by the same command, too: so it makes the missing file, and runs it a third time.
#
#     examples/parallel_shell.sh [DIRECTORY]     # default: a temporary one, removed at the end
set -euo pipefail

# Where taskpool is installed, else the environment that scripts/demo makes.
command -v taskpool >/dev/null || PATH="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin:$PATH"
place=${1:-$(mktemp -d)}
[ $# -gt 0 ] || trap 'rm -rf "$place"' EXIT
cd "$place"
export TASKPOOL_POOL=./gzip.db

echo "== making 24 files"
for n in $(seq -w 24); do seq 200000 | sed "s/^/$n /" >"lines-$n.txt"; done
ls lines-*.txt >files.txt
mv lines-13.txt hidden

run() { taskpool run --workers 2 --each-line files.txt --joblog log.tsv "$@" -- 'sleep 0.1; gzip -kf {} && echo {}.gz'; }

echo "== compressing them, and killing that with -9 half way"
run >/dev/null 2>&1 &
while [ "$(ls -- *.gz 2>/dev/null | wc -l)" -lt 8 ]; do sleep 0.05; done
kill -9 $! # the run itself; its workers are ended by the supervisor, which ends too
wait $! 2>/dev/null || true
echo "files compressed so far: $(ls -- *.gz | wc -l)"

echo "== the same command again"
run >/dev/null || echo "exit status $?: one file is not there"

echo "== its log, in part"
cut -f 1,4,7,9 log.tsv | grep -e Seq -e 'lines-0[12]' -e 'lines-13'

echo "== the missing file comes, and the same command once more"
mv hidden lines-13.txt
run --keep-order | tail -n 2
gzip -t -- *.gz
echo "all $(ls -- *.gz | wc -l) files are there"
