#!/bin/sh
# What srun is on Slurm: runs its arguments once on each of FASTVIDEO_NNODES nodes, as the pods of nodes.yaml; prints
# what they print, and ends with the highest of their exit codes. One such job at a time (the config's `jobs`, 1).
set -eu
job=fastvideo-nodes
manifest=$(dirname "$0")/nodes.yaml

quote() { printf '"%s"' "$(printf '%s' "$1" | sed 's/\\/\\\\/g; s/"/\\"/g')"; }
arguments=
for word; do arguments="$arguments${arguments:+,}$(quote "$word")"; done
patch="[{\"op\": \"add\", \"path\": \"/spec/template/spec/containers/0/args\", \"value\": [$arguments]},
  {\"op\": \"replace\", \"path\": \"/spec/completions\", \"value\": $FASTVIDEO_NNODES},
  {\"op\": \"replace\", \"path\": \"/spec/parallelism\", \"value\": $FASTVIDEO_NNODES}]"

kubectl delete job "$job" --ignore-not-found --cascade=foreground >&2 # of a launcher that was killed
# Deleting a job sends its pods SIGTERM and leaves them their grace: whoever asked us to end has less patience.
trap 'kubectl delete job "$job" --ignore-not-found --wait=false >&2' EXIT
trap 'exit 143' TERM INT
kubectl patch --local --filename "$manifest" --type json --patch "$patch" --output yaml | kubectl create --filename - >&2

# In the background, and waited for: a shell hears of a signal only between commands.
kubectl wait pod --selector "job-name=$job" --for jsonpath='{.status.phase}'=Running --timeout 30m >&2 &
wait $! || true # some may have ended by now
kubectl logs --follow --selector "job-name=$job" --max-log-requests "$FASTVIDEO_NNODES" --tail -1 &
wait $!
kubectl wait pod --selector "job-name=$job" --for jsonpath='{.status.containerStatuses[0].state.terminated}' --timeout 5m >&2 &
wait $!
code='{range .items[*]}{.status.containerStatuses[0].state.terminated.exitCode}{"\n"}{end}'
exit "$(kubectl get pods --selector "job-name=$job" --output jsonpath="$code" | sort -rn | head -1)"
