#!/usr/bin/env bash
# Try examples/cluster-local.yaml on three pretend hosts (hosts.sh): up, a run, a run during which a
# host loses its power, a job through the dashboard, down. About five minutes.
#
#   tests/cluster/try.sh ENV     ENV: Python environment with Ray and this project's dependencies
#
# The hosts have no internet, so that instead of `pip install` they use ENV and the copied project.
# KEEP: further folders under /root or /tmp that ENV needs, e.g. that of its Python.
set -euo pipefail

VENV=$(realpath -s "$1")
cd "$(dirname "$0")/../.."
PROJECT=$PWD
HOSTS=tests/cluster/hosts.sh
export STATE=/run/nag-hosts
for folder in "$VENV" "$PROJECT"; do
  case $folder in /root/* | /tmp/*) KEEP="${KEEP:-} $folder" ;; esac
done
export KEEP=${KEEP:-}

say() { echo "=== $(date +%T) $*"; }

laptop() { # a command on the machine of the person who uses the cluster
  "$HOSTS" exec laptop env -i HOME=/root TERM=dumb LANG=C.UTF-8 RAY_USAGE_STATS_ENABLED=0 \
    RAY_AUTH_MODE=token PATH="$VENV/bin:/usr/bin:/bin:/usr/sbin:/sbin" \
    bash -c "cd '$PROJECT' && $*"
}

on_head() { laptop "ray exec /root/cluster.yaml '$*' 2>&1"; }

wait_for_nodes() {
  for _ in $(seq 30); do
    case $(on_head "ray list nodes --filter state=ALIVE") in *"Total: $1"*) return ;; esac
    sleep 2
  done
  on_head "ray status; tail -20 /tmp/ray/session_latest/logs/monitor.log"
  return 1
}

trap '"$HOSTS" stop' EXIT
say "three hosts"
"$HOSTS" stop
"$HOSTS" start 3
sed -e 's/192\.168\.1\./10.77.0./; s/192\.168\.1\./10.77.0./g; s/0\.12\]/0.13]/; s/0\.11,/0.12,/' \
  -e 's/head_ip: .*/head_ip: 10.77.0.11/; s/ssh_user: ubuntu/ssh_user: root/' \
  -e "s#- test -d ~/nag-env .*#- ln -sfn $VENV ~/nag-env#; /pip install/d" \
  -e 's#RAY_AUTH_MODE=token#PYTHONPATH=~/nag &#; s/"evaluator":2/"evaluator":1/' \
  examples/cluster-local.yaml | laptop "cat >/root/cluster.yaml && cat /root/cluster.yaml" |
  grep -vE '^ *#|^$'

say "ray up"
laptop "ray get-auth-token --generate >/dev/null && ray up -y /root/cluster.yaml 2>&1" | tail -12
wait_for_nodes 3
say "three nodes are there"
on_head "ray status" | sed -n '/Usage/,$p'

say "a run"
on_head "cd ~/nag && time python -m orchestrator.run_bo --address auto --acq ei --budget 14" \
  "--score exact --out ~/runs/first"

say "a run in which node3 loses its power"
log=$STATE.log
on_head "cd ~/nag && set -o pipefail; python -m orchestrator.run_bo --address auto --acq ei" \
  "--budget 200 --batch-size 4 --workers 2 --score exact --out ~/runs/second | cat; echo exit \$?" \
  >"$log" &
until grep -qs "^.[12][0-9]/200" "$log"; do sleep 0.3; done
"$HOSTS" kill node3
say "node3 is dead after: $(grep '^\[' "$log" | tail -1)"
wait $!
grep -E "^\[[1-4][0-9]?/|^\[200/|^best|^exit" "$log"
say "the run is complete"
rm "$log"
on_head "python -c \"import pandas; print(pandas.read_parquet(\\\"~/runs/second/trials.parquet\\\")" \
  ".groupby([\\\"status\\\", \\\"attempts\\\"]).size())\""

laptop "ray rsync-down /root/cluster.yaml '~/runs/' /root/runs/ >/dev/null 2>&1 && ls /root/runs"

say "metrics of the head, dashboard and a job"
laptop "ray dashboard /root/cluster.yaml >/dev/null 2>&1 & sleep 8
  curl -s -o /dev/null -w 'page %{http_code}\n' http://127.0.0.1:8265
  curl -s -o /dev/null -w 'API without token %{http_code}\n' http://127.0.0.1:8265/api/version
  export RAY_ADDRESS=http://127.0.0.1:8265
  ray job submit --working-dir . -- python -m orchestrator.run_bo --score exact --workers 1 \
    --budget 40 --out /root/runs/third 2>&1 | tail -12; kill %1" &
for _ in $(seq 30); do
  found=$(laptop "curl -s http://10.77.0.11:8080/metrics" | grep '^ray_nag' || true)
  case $found in *ray_nag_best_value*) break ;; esac
  sleep 2
done
wait $!
echo "$found" | sed 's/{.*}//' | sort -u

say "ray down"
laptop "ray down -y /root/cluster.yaml 2>&1" | tail -4
for _ in $(seq 24); do
  left=$("$HOSTS" exec node2 ps -ef | grep -c '[r]ay::\|[r]aylet' || true)
  [ "$left" = 0 ] && break
  sleep 5
done
say "Ray processes left on node2: $left"
say "done"
