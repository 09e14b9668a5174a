#!/usr/bin/env bash
# A Ray cluster of four nodes on this one machine, with the labels of the cloud files: to try out placement without a
# cloud. CPUs and GPUs are declared, not real: keep roles.*.gpus at 0 where there is no GPU.
#
#   cluster/local.sh up            start it
#   eval "$(cluster/local.sh env)" let ray, dav-ray and ray job submit find it
#   cluster/local.sh status        its processes, and what Ray says
#   cluster/local.sh down          end what `up` started, and nothing else
set -euo pipefail

state=${DAV_RAY_LOCAL_DIR:-/tmp/dav-ray-$(id -u)} # short: socket paths below it may have 107 characters
port=${DAV_RAY_LOCAL_PORT:-23000}                 # and the nine after it; Ray's workers take 10002 to 19999
store=${DAV_RAY_LOCAL_STORE:-300000000}           # bytes of shared memory for each node
timeout_s=${DAV_RAY_LOCAL_TIMEOUT:-120}
nodes=(head a100 l4 reward) # the cloud files' node types, but for cpu
started='Ray runtime started'

options() { # what a node declares
  case $1 in
    head) echo "--head --port=$port --dashboard-host=127.0.0.1 --dashboard-port=$((port + 1))" \
      "--ray-client-server-port=$((port + 2)) --num-cpus=1 --num-gpus=0 --labels=role=head" ;;
    a100) echo '--num-cpus=2 --num-gpus=1 --labels=role=search,accelerator=a100,market=on-demand' ;;
    l4) echo '--num-cpus=2 --num-gpus=1 --labels=role=search,accelerator=l4,market=spot' ;;
    reward) echo '--num-cpus=2 --num-gpus=1 --labels=role=reward,accelerator=t4,market=on-demand' ;;
  esac
}

environment() {
  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$state/token
  export RAY_ADDRESS=127.0.0.1:$port RAY_API_SERVER_ADDRESS=http://127.0.0.1:$((port + 1))
}

start() { # NODE NUMBER: `ray start --block` stays, and takes its own processes down with it
  local words
  read -ra words <<<"$(options "$1")"
  [[ $1 = head ]] || words+=("--address=127.0.0.1:$port")
  env -u RAY_ADDRESS -u RAY_API_SERVER_ADDRESS RAY_JOB_STOP_WAIT_TIME_S=60 setsid ray start --block --disable-usage-stats \
    --temp-dir="$state/$1" --object-store-memory="$store" \
    --dashboard-agent-listen-port=$((port + 3 + $2)) "${words[@]}" \
    >"$state/$1.log" 2>&1 </dev/null &
  echo "$! $(born $!)" >"$state/$1.pid"
}

born() { ps -o lstart= -p "$1" || true; } # a number may come back as somebody else's process

alive() { # NODE: is the process that `up` started still there?
  local pid when
  [[ -f $state/$1.pid ]] && read -r pid when <"$state/$1.pid" && [[ -n $when && "$(born "$pid")" = "$when" ]]
}

await() { # NODE: until it has joined
  local deadline=$((SECONDS + timeout_s))
  until grep -q "$started" "$state/$1.log"; do
    if ! alive "$1" || ((SECONDS > deadline)); then
      tail -n 20 "$state/$1.log" >&2
      echo "local.sh: node $1 did not start in $timeout_s s, see $state/$1.log" >&2
      down
      exit 1
    fi
    sleep 0.1
  done
}

up() {
  local node number=0
  command -v ray >/dev/null || { echo "local.sh: no ray on PATH: activate its environment" >&2; exit 1; }
  for node in "${nodes[@]}"; do
    if alive "$node"; then
      echo "local.sh: already up ($state); down ends it" >&2
      exit 1
    fi
  done
  (umask 077 && mkdir -p "$state")
  [[ -O $state ]] || { echo "local.sh: $state belongs to somebody else; set DAV_RAY_LOCAL_DIR" >&2; exit 1; }
  (umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$state/token")
  environment
  for node in "${nodes[@]}"; do rm -rf "${state:?}/$node"; done # the last cluster's logs and sockets
  start head 0
  await head
  for node in "${nodes[@]:1}"; do start "$node" $((number += 1)); done
  for node in "${nodes[@]:1}"; do await "$node"; done
  echo "four nodes are up; next: eval \"\$($0 env)\""
}

down() {
  local node pid deadline=$((SECONDS + 20))
  for node in "${nodes[@]}"; do
    if alive "$node"; then
      read -r pid _ <"$state/$node.pid"
      kill "$pid"
    fi
  done
  for node in "${nodes[@]}"; do
    while alive "$node" && ((SECONDS < deadline)); do sleep 0.1; done
    if alive "$node"; then
      read -r pid _ <"$state/$node.pid"
      kill -KILL -- "-$pid" # its session: setsid made it the leader
    fi
    rm -f "$state/$node.pid"
  done
  rm -f "$state/token"
}

case ${1:-} in
  up) up ;;
  down) down ;;
  env)
    environment
    for name in RAY_AUTH_MODE RAY_AUTH_TOKEN_PATH RAY_ADDRESS RAY_API_SERVER_ADDRESS; do
      printf 'export %s=%q\n' "$name" "${!name}"
    done
    ;;
  status)
    environment
    for node in "${nodes[@]}"; do
      if alive "$node"; then echo "$node up"; else echo "$node down"; fi
    done
    ray status
    ;;
  *)
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
