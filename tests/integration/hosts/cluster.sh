#!/usr/bin/env bash
# Hosts that live as long as this program: cluster.sh FOLDER PYTHON NAME ADDRESS DELAY LOSS [NAME ADDRESS DELAY LOSS ...]
#
# Runs as process 1 of a process namespace of its own, with a network of its own in which a bridge stands for the switch
# (netns.py starts it so). Each host is a process with network, name, shared memory and mounts of its own, which answers
# the remote shell. When this program ends, by the end of its input or a kill, the kernel ends every process of every
# host, and devices and mounts go with them: nothing can be left over.

set -euo pipefail
folder=$1 python=$2
shift 2
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)

# wait_for WHAT COMMAND...: until the command succeeds, at most 10 s.
wait_for() {
    local what=$1 tries=0
    shift
    until "$@" >/dev/null 2>&1; do
        if ((++tries > 200)); then
            printf 'cluster.sh: %s did not happen within 10 s\n' "$what" >&2
            exit 1
        fi
        sleep 0.05
    done
}

elsewhere() { [[ $(readlink "/proc/$1/ns/net") != "$(readlink /proc/self/ns/net)" ]]; }

# Names of the hosts for this namespace only.
mount --bind "$folder/hosts" /etc/hosts
ip link set lo up
ip link add switch type bridge
ip link set switch up

number=0
while (($#)); do
    name=$1 address=$2 delay=$3 loss=$4
    shift 4
    number=$((number + 1))
    port=port$number
    # shellcheck disable=SC2016  # the inner shell expands these
    unshare --net --uts --ipc --mount bash -c '
        hostname "$1" && mount -t tmpfs none /dev/shm && exec "$2" "$3" --serve' \
        host "$name" "$python" "$here/remote.py" </dev/null >"$folder/$name.out" 2>&1 &
    host=$!
    wait_for "the network namespace of $name" elsewhere "$host"
    if [[ $delay == 0 && $loss == 0 ]]; then
        ip link add "$port" type veth peer name eth0 netns "$host"
    else
        "$python" "$here/slow_link.py" "$port" "$host" "$delay" "$loss" "$folder/$name.link" </dev/null \
            >"$folder/$name.cable" 2>&1 &
        wait_for "the slow link of $name" grep -q joined "$folder/$name.cable"
    fi
    ip link set "$port" master switch up
    nsenter -t "$host" --net ip link set lo up
    nsenter -t "$host" --net ip address add "$address/24" dev eth0
    nsenter -t "$host" --net ip link set eth0 up
    # Every machine with containers has this one, with the same address everywhere; a launcher must not fall for it.
    nsenter -t "$host" --net ip link add docker0 type bridge
    nsenter -t "$host" --net ip address add 172.17.0.1/16 dev docker0
    nsenter -t "$host" --net ip link set docker0 up
    wait_for "the remote shell of $name" grep -q serving "$folder/$name.out"
    printf 'host %s %s\n' "$name" "$host"
done
printf 'ready\n'
while read -r _; do :; done
