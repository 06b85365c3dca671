#!/usr/bin/env bash
# Two network namespaces on one machine as two nodes, 10.77.0.1 and 10.77.0.2, joined by a pair of virtual cables.
#   two_nodes.sh up NAME          NAME tells several pairs apart
#   two_nodes.sh run NAME 1 CMD   CMD on node 1 (or 2)
#   two_nodes.sh cut NAME         pull the plug: packets vanish, nobody is told
#   two_nodes.sh down NAME
# Needs root and iproute2.
set -euo pipefail
cmd=${1:?up|run|cut|down}; name=${2:?name}
case $cmd in
up)
  for i in 1 2; do ip netns add "$name$i"; ip -n "$name$i" link set lo up; done
  ip link add "v$name"1 netns "$name"1 type veth peer name "v$name"2 netns "$name"2
  for i in 1 2; do ip -n "$name$i" addr add 10.77.0.$i/24 dev "v$name$i"; ip -n "$name$i" link set "v$name$i" up; done ;;
run)
  node=$3; shift 3
  exec ip netns exec "$name$node" env GLOO_SOCKET_IFNAME="v$name$node" "$@" ;;
cut)
  # Not "link down", of which the kernel tells both ends: packets go to an address of the wire that nobody has.
  for i in 1 2; do
    ip -n "$name$i" neigh replace 10.77.0.$((3 - i)) lladdr 02:00:00:00:00:0$i dev "v$name$i" nud permanent
  done ;;
down)
  for i in 1 2; do
    ip netns pids "$name$i" 2>/dev/null | xargs -r kill -9 || true  # torchrun's workers outlive it
    ip netns del "$name$i" 2>/dev/null || true
  done ;;
esac
