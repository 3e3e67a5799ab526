#!/usr/bin/env bash
# Pretend cluster hosts on one machine, to try `ray up` without a cloud.
#
#   hosts.sh start 3            laptop (10.77.0.10) and node1..3 (.11, .12, .13)
#   hosts.sh exec node1 CMD...  run CMD in that host
#   hosts.sh kill node2         cut its power
#   hosts.sh boot node2         boot it again, empty
#   hosts.sh stop               remove all of it
#   hosts.sh possible           fails where namespaces cannot be made
#
# Every host has network, process, mount, host-name and IPC namespaces of its own, an sshd, and an
# empty home, /tmp and /dev/shm; the bridge between them is in a namespace too. So `ray stop`, which
# ends every Ray process it sees, sees only its own host.
#
# KEEP: folders of the home or /tmp that stay visible in the hosts, read-only, separated by spaces.
# Needs root and: apt-get install openssh-server openssh-client iproute2 rsync
set -euo pipefail

PATH=$PATH:/usr/sbin:/sbin
HERE=$(cd "$(dirname "$0")" && pwd)
STATE=${STATE:-/run/nag-hosts}
HUB=nag-hub
NET=10.77.0
HOME=$(getent passwd "$(id -u)" | cut -d: -f6) # where sshd takes people

address() {
  case $1 in
    laptop) echo "$NET.10" ;;
    node*) echo "$NET.$((10 + ${1#node}))" ;;
  esac
}

plug_in() {
  ip netns list 2>/dev/null | grep -qw "nag-$1" && return
  ip netns add "nag-$1"
  ip link add "v-$1" netns $HUB type veth peer name eth0 netns "nag-$1"
  ip -n $HUB link set "v-$1" master br0 up
  ip -n "nag-$1" link set lo up
  ip -n "nag-$1" addr add "$(address "$1")/24" dev eth0
  ip -n "nag-$1" link set eth0 up
  ip -n "nag-$1" route add default via $NET.1 # leads nowhere, but Ray finds its address by it
}

boot() {
  plug_in "$1"
  mkdir -p "$STATE/$1"
  setsid ip netns exec "nag-$1" unshare --pid --mount --uts --ipc --fork --kill-child --mount-proc \
    "$HERE/hosts.sh" _init "$1" >"$STATE/$1.log" 2>&1 </dev/null &
  echo $! >"$STATE/$1.pid"
  for _ in $(seq 600); do
    ip netns exec "nag-$1" bash -c "echo >/dev/tcp/$(address "$1")/22" 2>/dev/null && return
    sleep 0.1
  done
  echo "the sshd of $1 did not start" >&2
  cat "$STATE/$1.log" >&2
  return 1
}

_init() { # in the new namespaces; becomes process 1
  local disk=$STATE/$1 folder target
  mount --make-rprivate /
  mount -t tmpfs -o size=4g tmpfs "$disk"
  mkdir -p "$disk/home/.ssh" "$disk/tmp" /run/sshd
  chmod 700 "$disk/home/.ssh"
  chmod 1777 "$disk/tmp"
  cp /etc/skel/.bashrc /etc/skel/.profile "$disk/home/" 2>/dev/null || true
  cp "$STATE/id" "$disk/home/.ssh/id_ed25519"
  cp "$STATE/id.pub" "$disk/home/.ssh/authorized_keys"
  for folder in ${KEEP:-}; do
    case $folder in
      "$HOME"/*) target=$disk/home${folder#"$HOME"} ;;
      *) target=$disk$folder ;; # /tmp/...
    esac
    mkdir -p "$target"
    mount --rbind "$folder" "$target"
    mount -o remount,bind,ro "$target"
  done
  mount --rbind "$disk/home" "$HOME"
  mount --rbind "$disk/tmp" /tmp
  mount -t tmpfs -o size=1g tmpfs /dev/shm
  hostname "$1"
  exec /usr/sbin/sshd -D -e -f "$STATE/sshd_config"
}

start() {
  stop # what is left of an earlier start
  mkdir -p "$STATE" /run/sshd
  for key in id hostkey; do
    [ -f "$STATE/$key" ] || ssh-keygen -q -t ed25519 -N '' -f "$STATE/$key"
  done
  cat >"$STATE/sshd_config" <<EOF
Port 22
HostKey $STATE/hostkey
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
StrictModes no
UseDNS no
MaxSessions 100
MaxStartups 100
Subsystem sftp internal-sftp
EOF
  if ! ip netns list 2>/dev/null | grep -qw $HUB; then
    ip netns add $HUB
    ip -n $HUB link add br0 type bridge
    ip -n $HUB link set br0 up
    ip -n $HUB link set lo up
  fi
  boot laptop
  for i in $(seq "$1"); do boot "node$i"; done
}

enter() { # the init of a host is the only child of its `unshare`
  local host=$1 init
  shift
  init=$(awk '{print $1}' "/proc/$(cat "$STATE/$host.pid")/task/"*/children)
  exec nsenter -t "$init" -a --wdns="$HOME" "$@"
}

cut_power() { # the cable first: what dies with the host must not say goodbye to the others
  ip -n $HUB link del "v-$1" 2>/dev/null || true # both its ends, however long the host takes to die
  kill -9 "$(cat "$STATE/$1.pid")" 2>/dev/null || true
  sleep 0.3
  ip netns del "nag-$1" 2>/dev/null || true
}

stop() {
  local file
  for file in "$STATE"/*.pid; do
    [ -e "$file" ] || continue
    cut_power "$(basename "$file" .pid)"
  done
  ip netns del $HUB 2>/dev/null || true
  rm -rf "$STATE"
}

possible() {
  ip netns add $HUB-$$ # a name of its own: others may ask at the same time
  trap "ip netns del $HUB-$$" EXIT
  ip netns exec $HUB-$$ unshare --pid --mount --uts --ipc --fork --mount-proc true
}

case ${1:-} in
  start) start "${2:-3}" ;;
  boot) boot "$2" ;;
  kill) cut_power "$2" ;;
  stop) stop ;;
  possible) possible ;;
  exec) shift && enter "$@" ;;
  _init) _init "$2" ;;
  *) sed -n '2,/^set/s/^# \?//p' "$0" && exit 2 ;;
esac
