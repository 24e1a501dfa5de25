#!/usr/bin/env bash
#
# testhosts.sh - boot several realistic Linux hosts on one machine, for tests.
#
# Every host is a system container with its own systemd as PID 1, journald,
# D-Bus, rootful Podman and Caddy.  The hosts share one read-only Debian tree
# and each has its own writable layer, its own network namespace and its own
# address on a bridge.  The bridge lives in a network namespace too, so nothing
# is added to the machine's own network, and no packet can leave the machine.
#
#   testhosts.sh check                      can there be hosts on this machine? why not?
#   testhosts.sh build                      make (or reuse) the Debian tree
#   testhosts.sh try                        boot a host, use it, end it: does all work here?
#   testhosts.sh built                      is it there? (exit status)
#   testhosts.sh up N [FILE...]             boot hosts h1..hN; FILEs -> /usr/local/bin
#   testhosts.sh exec HOST|all CMD...       run CMD inside HOST, with its exit status
#   testhosts.sh push HOST|all SRC DST      copy a file or folder into HOST
#   testhosts.sh pull HOST SRC DST          copy a file or folder out of HOST
#   testhosts.sh image HOST|all TAG FILE [ARG...]
#                                           a one-binary container image from FILE
#   testhosts.sh net CMD...                 run CMD on the bridge side (NET.1)
#   testhosts.sh addr HOST                  print HOST's address
#   testhosts.sh cut HOST                   unplug HOST's cable (it sees no carrier)
#   testhosts.sh cut HOST silent            drop all its packets, carrier stays up
#   testhosts.sh cut HOST PEER              drop packets between HOST and PEER only
#   testhosts.sh loss HOST PERCENT          drop PERCENT of the packets to and from HOST
#   testhosts.sh delay HOST MS [JITTER_MS]  delay HOST's packets, each way
#   testhosts.sh heal HOST|all              undo cut, loss and delay
#   testhosts.sh kill HOST                  power cut: no shutdown, no goodbye packets
#   testhosts.sh stop HOST                  orderly shutdown
#   testhosts.sh start HOST                 boot HOST again, on the disk it had
#   testhosts.sh wait HOST|all              until booted, e.g. after `exec HOST reboot`
#   testhosts.sh status                     one line a host
#   testhosts.sh logs HOST [ARG...]         HOST's journal, also when it is down
#   testhosts.sh collect DIR                journals and states of all hosts, for a CI run
#   testhosts.sh down                       end everything and remove it
#
# Environment:
#   TESTHOSTS_CACHE     where the Debian tree is kept   (~/.cache/testhosts)
#   TESTHOSTS_STATE     where the hosts' disks are kept (/var/tmp/LAB); not overlayfs
#   TESTHOSTS_LAB       name of this set of hosts       (testhosts)
#   TESTHOSTS_NET       first three octets              (10.77.0): h1 is NET.11
#   TESTHOSTS_SUITE     Debian release of the hosts     (trixie; not older: Podman)
#   TESTHOSTS_PACKAGES  further Debian packages, e.g. "nats-server strace"
#   TESTHOSTS_TIMEOUT   seconds a host may take to boot (600)
#
# Needs: root; Debian packages mmdebstrap, systemd-container, iproute2
# (`build` installs the missing ones); Linux 5.14 or later with cgroup v2,
# overlayfs, veth, bridge and nftables.  `delay` also needs python3 and the kernel's
# NFQUEUE target.

set -euo pipefail

SELF=$(readlink -f -- "${BASH_SOURCE[0]}")
LAB=${TESTHOSTS_LAB:-testhosts}
CACHE=${TESTHOSTS_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/testhosts}
STATE=${TESTHOSTS_STATE:-/var/tmp/$LAB}
NET=${TESTHOSTS_NET:-10.77.0}
SUITE=${TESTHOSTS_SUITE:-trixie}
TIMEOUT=${TESTHOSTS_TIMEOUT:-600}
MAXHOSTS=20      # each takes 6 of the 128 inotify instances that Linux gives a user

# What a host is made of.  systemd-resolved, udev and networkd are left out on
# purpose: addresses are set from outside.
PACKAGES=(systemd systemd-sysv dbus polkitd libpam-systemd
          podman netavark aardvark-dns crun conmon catatonit
          caddy nftables iptables iproute2 iputils-ping
          procps kmod curl ca-certificates jq python3-minimal)

export LC_ALL=C.UTF-8
PATH=$PATH:/usr/sbin:/sbin
umask 022

say()  { printf 'testhosts: %s\n' "$*" >&2; }
die()  { say "$*"; exit 1; }
now()  { date +%s%3N; }

# What a host must not do, because the kernel has it only once: set the clock,
# load modules, reach for the hardware.  This guards against accidents; a host
# is root on the machine's kernel and no security boundary.
KEEP_OUT=sys_time,sys_module,sys_rawio
caps() { local c=${KEEP_OUT^^}; printf 'CAP_%s\n' "${c//,/,CAP_}"; }

# ---------------------------------------------------------------- small parts

# Names that end up in paths which are removed or whose processes are ended.
[[ $LAB =~ ^[a-z][a-z0-9-]{0,19}$ ]] || die "TESTHOSTS_LAB: letters, digits and dashes only"
[[ $STATE == /?*/?* ]]               || die "TESTHOSTS_STATE: an absolute path, below some folder"
[[ $NET =~ ^[0-9]{1,3}(\.[0-9]{1,3}){2}$ ]] || die "TESTHOSTS_NET: three octets, such as 10.77.0"

need_root() { [ "$(id -u)" = 0 ] || die "must run as root"; }

# The machine's cgroup v2 mount, wherever it is.
cgroup_mount() {
  local m
  m=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/self/mounts)
  [ -n "$m" ] || die "no cgroup v2 mount found on this machine"
  printf '%s\n' "$m"
}

# The cgroup of a host (or of the whole lab, without an argument).  A host's
# cgroup has these children:
#   run/            the loop that starts the host again when it reboots
#   box/supervisor  systemd-nspawn
#   box/payload     the host itself, the root of its own cgroup namespace
cg() { printf '%s/%s%s\n' "$(cgroup_mount)" "$LAB" "${1:+/$1}"; }

LABNS=$LAB-net
netns()  { printf '%s-%s\n' "$LAB" "$1"; }
labip()  { ip -n "$LABNS" "$@"; }
in_lab() { nsenter --net="/run/netns/$LABNS" -- "$@"; }

host_number() {
  local n=${1#h}
  if [[ $1 != h* || ! $n =~ ^[1-9][0-9]?$ ]] || [ "$n" -gt "$MAXHOSTS" ]; then
    die "no such host name: $1"
  fi
  printf '%s\n' "$n"
}
host_addr() { printf '%s.%d\n' "$NET" $((10 + $(host_number "$1"))); }
host_mac()  { printf '02:77:00:00:00:%02x\n' "$(host_number "$1")"; }
host_dir()  { printf '%s/hosts/%s\n' "$STATE" "$1"; }
known()     { [ -d "$(host_dir "$1")" ] || die "host $1 does not exist (see: status)"; }

hosts() { # all hosts that exist, in order
  [ -d "$STATE/hosts" ] || return 0
  find "$STATE/hosts" -mindepth 1 -maxdepth 1 -type d -printf '%f\n' | sort -V
}
expand() { # HOST or "all" -> host names
  if [ "$1" = all ]; then hosts; else host_number "$1" >/dev/null; known "$1"; echo "$1"; fi
}

# Process id, on the machine, of a host's PID 1; fails when the host is down.
leader() {
  local p procs
  procs=$(cg "$1")/box/payload/init.scope/cgroup.procs
  [ -r "$procs" ] || return 1
  while read -r p; do
    if awk '$1 == "NSpid:" { exit !(NF > 2 && $NF == 1) }' "/proc/$p/status" 2>/dev/null; then
      echo "$p"; return 0
    fi
  done 2>/dev/null <"$procs"
  return 1
}

cg_populated() { # is any process left in this cgroup?
  grep -q '^populated 1' "$1/cgroup.events" 2>/dev/null
}

cg_remove() { # end every process in a cgroup, then remove the cgroup
  local c=$1 i
  [ -d "$c" ] || return 0
  for ((i = 0; i < 2400; i++)); do
    cg_populated "$c" || break
    { echo 1 >"$c/cgroup.kill"; } 2>/dev/null || true
    sleep 0.05
  done
  cg_populated "$c" && { say "processes left in $c"; return 1; }
  for ((i = 0; i < 1200; i++)); do
    [ -d "$c" ] || return 0
    find "$c" -depth -type d -exec rmdir {} + 2>/dev/null || true
    [ -d "$c" ] || return 0
    sleep 0.05
  done
  say "could not remove $c"; return 1
}

# One command at a time may change the lab.
lock() {
  mkdir -p "$(dirname -- "$STATE")"
  while :; do
    exec 9>"$STATE.lock"
    flock -w 600 9 || die "another command holds $STATE.lock"
    # `down` removes the file: make sure that it is still this one.
    [ "$STATE.lock" -ef /dev/fd/9 ] && break
  done
}

# --------------------------------------------------------------------- build

# Tries what hosts need of the kernel and may be denied, as in a container: before
# anything is downloaded.
cmd_check() {
  local c d
  [ "$(uname -s)" = Linux ] || die "hosts need Linux"
  need_root
  command -v flock >/dev/null && command -v unshare >/dev/null || die "hosts need util-linux"
  command -v apt-get >/dev/null || command -v mmdebstrap >/dev/null || die "hosts need Debian's mmdebstrap, or apt-get to install it"
  c=$(cgroup_mount)/$LAB-check-$$
  mkdir "$c" 2>/dev/null || die "no cgroup can be made in $(cgroup_mount)"
  rmdir "$c"
  mkdir -p "$(dirname -- "$STATE")"
  d=$(mktemp -d "$(dirname -- "$STATE")/testhosts-check.XXXXXX")
  mkdir "$d"/{lower,upper,work,root}
  unshare --mount --propagation private -- mount -t overlay overlay \
    -o "lowerdir=$d/lower,upperdir=$d/upper,workdir=$d/work" "$d/root" 2>/dev/null || c=
  rm -rf --one-file-system "$d"
  [ -n "$c" ] || die "no overlay can be mounted over $(dirname -- "$STATE"); TESTHOSTS_STATE names another place"
  unshare --net -- true 2>/dev/null || die "no network namespace can be made"
  command -v ip >/dev/null || return 0     # build installs it
  unshare --net -- sh -c 'ip link add br0 type bridge && ip link add port type veth peer name eth0' 2>/dev/null ||
    die "the kernel has no bridge or no veth"
}

tools() { # install what the machine lacks
  local miss=()
  command -v mmdebstrap     >/dev/null || miss+=(mmdebstrap)
  command -v systemd-nspawn >/dev/null || miss+=(systemd-container)
  command -v ip             >/dev/null || miss+=(iproute2)
  command -v nsenter        >/dev/null || miss+=(util-linux)
  [ ${#miss[@]} = 0 ] && return 0
  command -v apt-get >/dev/null || die "missing: ${miss[*]}"
  say "installing ${miss[*]}"
  apt_get update -q
  DEBIAN_FRONTEND=noninteractive apt_get install -q -y --no-install-recommends "${miss[@]}"
}

# Another program may have apt for a while.  A network that swallows packets must
# not be waited for as long as apt would.
APT=(-o DPkg::Lock::Timeout=300 -o Acquire::Retries=2 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20)
apt_get() { apt-get "${APT[@]}" "$@" >&2; }

# Fails soon where the archive cannot be reached.
reach() { # SITE FILE
  local helper=/usr/lib/apt/apt-helper
  [ -x "$helper" ] || return 0
  timeout 120 "$helper" "${APT[@]}" -o APT::Sandbox::User=root download-file "$1/dists/$SUITE/InRelease" "$2" >&2 ||
    die "the archive cannot be reached: $1"
}

base_dir() {
  local key
  key=$(printf '%s\n' format-1 "$SUITE" "${PACKAGES[@]}" "${TESTHOSTS_PACKAGES:-}" | sha256sum | cut -c1-12)
  printf '%s/base-%s-%s\n' "$CACHE" "$SUITE" "$key"
}

# The archive that this machine's apt uses.
archive() {
  apt-get indextargets --format '$(SITE) $(ORIGIN) $(LABEL)' 'Created-By: Packages' 2>/dev/null |
    awk '$2 == "Debian" && $3 == "Debian" && !site { site = $1 } END { print site; exit !site }'
}

# Package sources of the hosts, from that archive.
sources() {
  local site sec opt
  site=$(archive) || return 1
  sec=$(apt-get indextargets --format '$(SITE) $(LABEL)' 'Created-By: Packages' 2>/dev/null |
        awk '$2 == "Debian-Security" && !site { site = $1 } END { print site }')
  opt=
  [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] &&
    opt="[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] "
  echo "deb ${opt}$site $SUITE main"
  if [ "$SUITE" = trixie ]; then
    echo "deb ${opt}$site $SUITE-updates main"
    echo "deb ${opt}$site $SUITE-backports main"
    [ -n "$sec" ] && echo "deb ${opt}$sec $SUITE-security main"
  fi
  return 0
}

cmd_build() {
  need_root
  local base tmp inc p try rc t0 list
  base=$(base_dir)
  if [ -e "$base/complete" ]; then
    say "base tree is there: $base"
    tools
    return 0
  fi
  mkdir -p "$CACHE"
  exec 8>"$CACHE/.lock"; flock 8
  [ -e "$base/complete" ] && { exec 8>&-; return 0; }
  t0=$(now)
  # What an interrupted build left.  Its processes may still be at work there, so
  # this one has a folder of its own.
  rm -rf --one-file-system "$base".tmp* 2>/dev/null || true
  tmp=$(mktemp -d "$base.tmpXXXXXX")
  chmod 755 "$tmp"
  list=$tmp/sources
  sources >"$list" || { timeout 300 apt-get "${APT[@]}" update -q >&2; sources >"$list"; } || die "apt knows no Debian archive"
  reach "$(archive)" "$tmp/InRelease"
  tools
  inc=
  for p in "${PACKAGES[@]}" ${TESTHOSTS_PACKAGES:-}; do
    # Debian 13 has Caddy 2.6; its backports have a current one.
    [ "$SUITE" = trixie ] && [ "$p" = caddy ] && p=caddy/trixie-backports
    inc+=${inc:+,}$p
  done
  # A download may fail: try again.  An archive seen through a cache may be older
  # than it says it should get: its signatures are checked, its age is not.
  for try in 1 2 3; do
    rm -rf --one-file-system "$tmp/rootfs"
    say "making the base tree (try $try)"
    rc=0
    mmdebstrap --mode=root --variant=minbase --include="$inc" \
      --aptopt='APT::Install-Recommends "false"' \
      --aptopt='Acquire::Retries "3"' \
      --aptopt='Acquire::Check-Valid-Until "false"' \
      --dpkgopt='path-exclude=/usr/share/man/*' \
      --dpkgopt='path-exclude=/usr/share/doc/*' \
      --dpkgopt='path-exclude=/usr/share/locale/*' \
      "$SUITE" "$tmp/rootfs" - <"$list" >"$CACHE/build.log" 2>&1 8>&- || rc=$?
    [ $rc = 0 ] && break
    tail -n 20 "$CACHE/build.log" >&2
    sleep 3
  done
  [ $rc = 0 ] || die "mmdebstrap failed; see $CACHE/build.log"
  # Nothing of this machine's identity belongs into the shared tree.
  rm -f "$tmp/rootfs/etc/hostname" "$tmp/rootfs/etc/resolv.conf"
  : >"$tmp/rootfs/etc/machine-id"
  rm -f "$tmp/rootfs/var/lib/dbus/machine-id"
  chroot "$tmp/rootfs" dpkg-query -W -f '${Package} ${Version}\n' >"$tmp/packages"
  date -u +%FT%TZ >"$tmp/complete"
  rm -rf --one-file-system "$base"
  mv "$tmp" "$base"
  exec 8>&-
  say "base tree made in $((($(now) - t0) / 1000)) s, $(du -sh "$base" | cut -f1): $base"
  grep -E '^(systemd|podman|caddy|crun|netavark|nats-server) ' "$base/packages" >&2 || true
}

# Boots a host and uses what tests use, so that they can tell what does not work on
# this machine from what they are to find.
cmd_try() {
  trap 'exec 9>&-; "$SELF" down' EXIT     # without our lock
  cmd_up 1
  cmd_loss h1 50; cmd_cut h1; cmd_heal h1
  host_exec h1 true || die "no command can be run on a host"
}

# --------------------------------------------------- configuration of a host

# Files that all hosts share, laid over the base tree: configuration and the
# binaries given to `up`.  Cheap to make, so made anew at each `up`.
make_layer() {
  local L=$STATE/layer u f
  rm -rf --one-file-system "$L"
  mkdir -p "$L"/etc/systemd/{system,system.conf.d,journald.conf.d} \
           "$L"/etc/containers/containers.conf.d \
           "$L"/usr/local/{bin,libexec} "$L"/var/log/journal
  # Units that make no sense here, reach for the machine's kernel or fetch things.
  for u in systemd-sysctl.service systemd-modules-load.service modprobe@.service \
           sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount \
           dev-hugepages.mount console-getty.service systemd-firstboot.service \
           systemd-timesyncd.service apt-daily.timer apt-daily-upgrade.timer \
           dpkg-db-backup.timer e2scrub_all.timer fstrim.timer man-db.timer \
           netavark-dhcp-proxy.socket netavark-dhcp-proxy.service; do
    ln -s /dev/null "$L/etc/systemd/system/$u"
  done
  cat >"$L/etc/systemd/system.conf.d/10-testhosts.conf" <<'X'
[Manager]
DefaultTimeoutStopSec=15s
X
  cat >"$L/etc/systemd/journald.conf.d/10-testhosts.conf" <<'X'
[Journal]
Storage=persistent
SystemMaxUse=200M
RateLimitIntervalSec=0
X
  # Podman asks for cgroup limits.  Where the kernel keeps a controller on the
  # old hierarchy it cannot be used here and crun would refuse to start, so a
  # wrapper hides exactly those limits from crun.  Podman still shows them.  The
  # same goes for `ulimit`s above what this machine lets even root set.
  cat >"$L/etc/containers/containers.conf.d/10-testhosts.conf" <<'X'
[engine]
runtime = "crun"
[engine.runtimes]
crun = ["/usr/local/libexec/crun-available-limits"]
X
  cat >"$L/usr/local/libexec/crun-available-limits" <<'X'
#!/bin/sh
# Runs crun, leaving out the cgroup limits whose controller this host does not
# have, and lowering resource limits that only CAP_SYS_RESOURCE could raise.
have=$(cat /sys/fs/cgroup/cgroup.controllers 2>/dev/null)
limits= ulimits=
for pair in memory:memory cpu:cpu cpuset:cpu pids:pids io:blockIO; do
  case " $have " in *" ${pair%%:*} "*) ;; *) limits="$limits | del(.linux.resources.${pair#*:}, .linux.resources.unified)" ;; esac
done
caps=0x$(sed -n 's/^CapEff:[[:space:]]*//p' /proc/self/status)
if [ $((caps >> 24 & 1)) = 0 ]; then
  max=$(sed -n 's/^Max open files  *[^ ]*  *\([0-9]*\) .*/"RLIMIT_NOFILE":\1,/p
                s/^Max processes  *[^ ]*  *\([0-9]*\) .*/"RLIMIT_NPROC":\1,/p
                s/^Max locked memory  *[^ ]*  *\([0-9]*\) .*/"RLIMIT_MEMLOCK":\1,/p' /proc/self/limits)
  ulimits="| if .rlimits then .rlimits |= map({${max%,}}[.type] as \$m |
    if \$m then .hard = ([.hard, \$m] | min) | .soft = ([.soft, \$m] | min) else . end) else . end"
fi
[ -n "$limits$ulimits" ] || exec /usr/bin/crun "$@"
bundle= process= prev=
for a; do
  case $prev in -b|--bundle) bundle=$a ;; -p|--process) process=$a ;; esac
  case $a in --bundle=*) bundle=${a#*=} ;; --process=*) process=${a#*=} ;; esac
  prev=$a
done
if [ -n "$bundle" ] && [ -f "$bundle/config.json" ]; then       # create, run
  jq -c ". $limits | .process |= (. $ulimits)" "$bundle/config.json" >"$bundle/config-available.json" || exit 1
  n=$#
  while [ "$n" -gt 0 ]; do
    a=$1; shift; n=$((n - 1))
    case $a in
      create|run) set -- "$@" "$a" --config="$bundle/config-available.json" ;;
      *) set -- "$@" "$a" ;;
    esac
  done
elif [ -n "$process" ] && [ -f "$process" ]; then               # exec
  new=$(jq -c ". $ulimits" "$process") && printf '%s\n' "$new" >"$process"
fi
exec /usr/bin/crun "$@"
X
  chmod 755 "$L/usr/local/libexec/crun-available-limits"
  # Names.  The name server is the bridge, where none listens: a look-up of an
  # unknown name fails at once.
  printf 'nameserver %s.1\noptions timeout:1 attempts:1\n' "$NET" >"$L/etc/resolv.conf"
  for f in "$@"; do
    [ -f "$f" ] || die "no such file: $f"
    install -m 755 -- "$f" "$L/usr/local/bin/"
    if [ "$(basename -- "$f")" = caddy ]; then      # a Caddy of your own
      for u in caddy.service caddy-api.service; do
        mkdir -p "$L/etc/systemd/system/$u.d"
        { printf '[Service]\nExecStart=\n'
          grep -m1 '^ExecStart=' "$(base_dir)/rootfs/usr/lib/systemd/system/$u" | sed 's#/usr/bin/caddy#/usr/local/bin/caddy#'
        } >"$L/etc/systemd/system/$u.d/10-testhosts.conf"
      done
    fi
  done
  # The base tree is up to date: no need for ldconfig and the like at boot.
  touch -d '2030-01-01 00:00:00 UTC' "$L/etc/.updated" "$L/var/.updated"
  touch -d '2000-01-01 00:00:00 UTC' "$L/usr"
}

hosts_file() {
  local h
  printf '127.0.0.1 localhost\n::1 localhost ip6-localhost\n'
  for h in $(hosts); do printf '%s %s\n' "$(host_addr "$h")" "$h"; done
}

# The parts of a host's own disk that must be there before its first boot.
make_disk() {
  local h=$1 d
  d=$(host_dir "$h")
  mkdir -p "$d"/{upper/etc,work,root,containers}
  echo "$h" >"$d/upper/etc/hostname"
  printf '%s-%s' "$LAB-$h" "$RANDOM$(now)" | md5sum | cut -c1-32 >"$d/upper/etc/machine-id"
  chmod 444 "$d/upper/etc/machine-id"
}

# ------------------------------------------------------------------- network

net_up() { # the bridge, in a network namespace of its own
  if [ ! -e "/run/netns/$LABNS" ]; then ip netns add "$LABNS"; fi
  if ! labip link show br0 >/dev/null 2>&1; then
    labip link set lo up
    labip link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0
    labip addr add "$NET.1/24" dev br0
    labip link set br0 up
  fi
}

# A new network namespace for a host, so that nothing of an earlier boot (pod
# bridges, firewall rules) is left in it.
net_host() {
  local h=$1 ns
  ns=$(netns "$h")
  labip link del "$h" 2>/dev/null || true
  ip netns del "$ns" 2>/dev/null || true
  ip netns add "$ns"
  labip link add "$h" type veth peer name eth0 address "$(host_mac "$h")" netns "$ns"
  ip -n "$ns" link set lo up
  ip -n "$ns" addr add "$(host_addr "$h")/24" brd + dev eth0
  ip -n "$ns" link set eth0 up
  ip -n "$ns" route add default via "$NET.1"
  labip link set "$h" master br0
  if [ -e "$STATE/faults/unplug-$h" ]; then labip link set "$h" down; else labip link set "$h" up; fi
}

net_gone() { # take a host off the network without it having a last word
  labip link set "$1" down 2>/dev/null || true
}

# Matches so many of 10,000 packets.  The packet filter takes no number that all
# are below.
share() { if [ "$1" -lt 10000 ]; then echo "numgen random mod 10000 < $1"; fi; }

# Faults are files in STATE/faults; the packet filter is made from them anew
# after each change.
faults_apply() {
  local f a b c
  mkdir -p "$STATE/faults"
  {
    echo 'table bridge testhosts'; echo 'delete table bridge testhosts'
    echo 'table bridge testhosts {'
    echo ' chain from { type filter hook prerouting priority 0; policy accept;'
    for f in "$STATE"/faults/silent-*; do [ -e "$f" ] && echo "  iifname \"${f##*-}\" counter drop"; done
    for f in "$STATE"/faults/loss-*; do
      [ -e "$f" ] && { read -r c <"$f"; echo "  iifname \"${f##*-}\" $(share "$c") counter drop"; }
    done
    echo ' }'
    echo ' chain between { type filter hook forward priority 0; policy accept;'
    for f in "$STATE"/faults/pair-*; do
      [ -e "$f" ] || continue
      IFS=- read -r a b <<<"${f##*/pair-}"
      echo "  iifname \"$a\" oifname \"$b\" counter drop"
      echo "  iifname \"$b\" oifname \"$a\" counter drop"
    done
    echo ' }'
    echo ' chain to { type filter hook postrouting priority 0; policy accept;'
    for f in "$STATE"/faults/silent-*; do [ -e "$f" ] && echo "  oifname \"${f##*-}\" counter drop"; done
    for f in "$STATE"/faults/loss-*; do
      [ -e "$f" ] && { read -r c <"$f"; echo "  oifname \"${f##*-}\" $(share "$c") counter drop"; }
    done
    echo ' }'; echo '}'
  } | in_lab chroot "$(base_dir)/rootfs" nft -f -
}

# iptables of the base tree, on the bridge; only `delay` uses it.
lab_iptables() { in_lab chroot "$(base_dir)/rootfs" iptables -w "$@"; }

delay_off() {
  local h=$1 n c
  n=$(host_number "$h")
  c=$(cg)/delay-$h
  [ -d "$c" ] || return 0
  lab_iptables -t mangle -D FORWARD -m physdev --physdev-in  "$h" -j NFQUEUE --queue-num $((n * 2))     --queue-bypass 2>/dev/null || true
  lab_iptables -t filter -D FORWARD -m physdev --physdev-out "$h" -j NFQUEUE --queue-num $((n * 2 + 1)) --queue-bypass 2>/dev/null || true
  cg_remove "$c"
}

# Hold every IP packet that crosses the bridge from or to HOST for a while.
# The kernel hands the packets' numbers to a small helper, which answers late.
cmd_delay() {
  local h=$1 ms=$2 jitter=${3:-0} n c q
  need_root; lock; known "$h"
  [[ $ms =~ ^[0-9]+$ && $jitter =~ ^[0-9]+$ ]] || die "usage: delay HOST MS [JITTER_MS]"
  delay_off "$h"
  [ "$ms" = 0 ] && [ "$jitter" = 0 ] && return 0
  command -v python3 >/dev/null || die "delay needs python3"
  n=$(host_number "$h")
  c=$(cg)/delay-$h; mkdir -p "$c"
  for q in $((n * 2)) $((n * 2 + 1)); do
    ( echo "$BASHPID" >"$c/cgroup.procs"; exec 9>&-
      exec setsid nsenter --net="/run/netns/$LABNS" -- python3 -c "$DELAY_PY" "$q" "$ms" "$jitter"
    ) </dev/null >>"$STATE/delay.log" 2>&1 &
  done
  for ((q = 0; q < 1200; q++)); do     # both queues must have their reader
    [ "$(in_lab sh -c 'cat /proc/thread-self/net/netfilter/nfnetlink_queue' |
         awk -v a=$((n * 2)) '$1 == a || $1 == a + 1' | wc -l)" = 2 ] && break
    cg_populated "$c" || break
    sleep 0.05
  done
  lab_iptables -t mangle -A FORWARD -m physdev --physdev-in  "$h" -j NFQUEUE --queue-num $((n * 2))     --queue-bypass
  lab_iptables -t filter -A FORWARD -m physdev --physdev-out "$h" -j NFQUEUE --queue-num $((n * 2 + 1)) --queue-bypass
}

DELAY_PY='
import collections, random, select, socket, struct, sys, time
queue, ms, jitter = (int(a) for a in sys.argv[1:4])
QUEUE, PACKET, VERDICT, CONFIG = 3 << 8, 0, 1, 2        # NFNL_SUBSYS_QUEUE and its messages
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)   # NETLINK_NETFILTER
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
s.setsockopt(270, 5, 1)                                     # NETLINK_NO_ENOBUFS
s.bind((0, 0))
def attr(kind, data):
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)
def send(kind, attrs):
    body = struct.pack("=BBH", 0, 0, socket.htons(queue)) + attrs
    s.send(struct.pack("=IHHII", 16 + len(body), QUEUE | kind, 1, 0, 0) + body)
send(CONFIG, attr(1, struct.pack(">BBH", 1, 0, socket.AF_INET)))   # bind
send(CONFIG, attr(2, struct.pack(">IB", 0, 1)))                    # numbers only, no data
send(CONFIG, attr(3, struct.pack(">I", 100000)))                   # queue length
send(CONFIG, attr(4, struct.pack(">I", 5)) + attr(5, struct.pack(">I", 5)))  # fail open, keep large packets whole
held, last = collections.deque(), 0.0
while True:
    wait = None if not held else max(0.0, held[0][0] - time.monotonic())
    if select.select([s], [], [], wait)[0]:
        data, now, off = s.recv(1 << 20), time.monotonic(), 0
        while off + 16 <= len(data):
            size, kind = struct.unpack_from("=IH", data, off)
            if size < 16: break
            if kind == QUEUE | PACKET:
                pos, end = off + 20, off + size
                while pos + 4 <= end:
                    alen, akind = struct.unpack_from("=HH", data, pos)
                    if alen < 4: break
                    if akind & 0x7fff == 1:
                        due = now + max(0.0, ms + random.uniform(-jitter, jitter)) / 1000.0
                        last = max(last, due)               # order is kept
                        held.append((last, data[pos + 4:pos + 8]))
                    pos += (alen + 3) & ~3
            off += (size + 3) & ~3
    now = time.monotonic()
    while held and held[0][0] <= now:
        send(VERDICT, attr(2, struct.pack(">I", 1) + held.popleft()[1]))   # accept
'

cmd_cut() {
  local h=$1 how=${2:-}
  need_root; lock; known "$h"; mkdir -p "$STATE/faults"
  case $how in
    '')     : >"$STATE/faults/unplug-$h"; labip link set "$h" down ;;
    silent) : >"$STATE/faults/silent-$h"; faults_apply ;;
    *)      known "$how"; : >"$STATE/faults/pair-$h-$how"; faults_apply ;;
  esac
}

cmd_loss() {
  local h=$1 pct=$2
  need_root; lock; known "$h"; mkdir -p "$STATE/faults"
  awk -v p="$pct" 'BEGIN { exit !(p ~ /^[0-9]+(\.[0-9]+)?$/ && p <= 100) }' || die "usage: loss HOST PERCENT"
  awk -v p="$pct" 'BEGIN { printf "%d\n", p * 100 }' >"$STATE/faults/loss-$h"
  [ "$(<"$STATE/faults/loss-$h")" != 0 ] || rm -f "$STATE/faults/loss-$h"
  faults_apply
}

cmd_heal() {
  local h list
  need_root; lock
  list=$(expand "$1")
  for h in $list; do
    rm -f "$STATE/faults/"{unplug,silent,loss}-"$h" "$STATE"/faults/pair-"$h"-* "$STATE"/faults/pair-*-"$h"
    labip link set "$h" up 2>/dev/null || true
    delay_off "$h"
  done
  faults_apply
}

# ----------------------------------------------------------- starting a host

# Runs for as long as the host is on: boots it, and again when it reboots.
host_loop() {
  local h=$1 c rc
  c=$(cg "$h")
  echo "$BASHPID" >"$c/run/cgroup.procs"
  while :; do
    rc=0
    unshare --mount --propagation private -- "$SELF" __boot "$h" || rc=$?
    [ "$rc" = 133 ] || break             # 133: the host asked for a reboot
    find "$c/box" -mindepth 1 -depth -type d -exec rmdir {} + 2>/dev/null || true
    now >"$(host_dir "$h")/started"
    net_host "$h"
  done
  net_gone "$h"
  exit "$rc"
}

# In a mount namespace of its own, which ends with the host: mount the host's
# disk and a plain cgroup v2 tree, and become systemd-nspawn.
host_boot() {
  local h=$1 d c
  d=$(host_dir "$h") c=$(cg "$h")
  mkdir -p "$c/box"
  echo "$$" >"$c/box/cgroup.procs"
  mount -t overlay overlay -o "lowerdir=$STATE/layer:$(base_dir)/rootfs,upperdir=$d/upper,workdir=$d/work" "$d/root"
  mkdir -p /run/systemd/nspawn
  mount -t tmpfs -o mode=755 tmpfs /run/systemd/nspawn
  umount -R -l /sys/fs/cgroup 2>/dev/null || true
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
  # /proc/sys/net is the host's own and may be written, the rest of /proc/sys is
  # the machine's and may not.
  export SYSTEMD_NSPAWN_API_VFS_WRITABLE=network SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
  exec systemd-nspawn --quiet --boot --directory="$d/root" \
    --machine="$h" --hostname="$h" --register=no --keep-unit \
    --network-namespace-path="/run/netns/$(netns "$h")" \
    --capability=all --drop-capability="$(caps)" \
    --system-call-filter='@keyring bpf perf_event_open' \
    --bind="$d/containers:/var/lib/containers" \
    --link-journal=no --resolv-conf=off --timezone=off --console=pipe
}

host_start() { # begin to boot; does not wait
  local h=$1 c k
  c=$(cg "$h")
  cg_remove "$c"
  mkdir -p "$c"/{run,box}
  for k in cpu cpuset io memory pids; do   # where the machine has them to give
    { echo "+$k" >"$(cg)/cgroup.subtree_control"; } 2>/dev/null || true
    { echo "+$k" >"$c/cgroup.subtree_control"; } 2>/dev/null || true
  done
  net_host "$h"
  now >"$(host_dir "$h")/started"
  rm -f "$(host_dir "$h")/ready"
  ( exec 9>&-; exec setsid "$SELF" __loop "$h" ) </dev/null >>"$(host_dir "$h")/console.log" 2>&1 &
  echo $! >"$(host_dir "$h")/pid"
  disown                               # its end is no news
}

host_wait() { # until the host has booted
  local h=$1 end s t p
  end=$(($(date +%s) + TIMEOUT)) p=$(<"$(host_dir "$h")/pid")
  while :; do
    if leader "$h" >/dev/null; then
      s=$(host_exec "$h" timeout 30 systemctl is-system-running --wait 2>/dev/null) || true
      case $s in running|degraded) break ;; esac
    fi
    if [ "$(date +%s)" -ge "$end" ] || ! kill -0 "$p" 2>/dev/null; then
      say "$h did not boot (limit: $TIMEOUT s); its console:"
      tail -n 30 "$(host_dir "$h")/console.log" >&2
      return 1
    fi
    sleep 0.1
  done
  t=$(<"$(host_dir "$h")/started"); t=$(($(now) - t)); echo "$t" >"$(host_dir "$h")/ready"
  say "$h is up ($s) after $((t / 1000)).$(printf %03d $((t % 1000))) s at $(host_addr "$h")"
  if [ "$s" = degraded ]; then host_exec "$h" systemctl --failed --no-legend --plain >&2 || true; fi
}

cmd_up() {
  local n=${1:-} h i fresh=() old=() t0 bins=()
  [[ $n =~ ^[1-9][0-9]*$ ]] && [ "$n" -le "$MAXHOSTS" ] || die "usage: up N [FILE...]   (N up to $MAXHOSTS)"
  shift; bins=("$@")
  cmd_build
  lock
  t0=$(now)
  if [ -d "$STATE" ] && [ ! -e "$STATE/.testhosts" ] && [ -n "$(ls -A "$STATE")" ]; then
    die "$STATE holds other things; set TESTHOSTS_STATE to a new folder"
  fi
  mkdir -p "$STATE/hosts"; : >"$STATE/.testhosts"
  [ "$(stat -f -c %T "$STATE")" != overlayfs ] || die "$STATE is on overlayfs; set TESTHOSTS_STATE to a folder on ext4, xfs or tmpfs"
  mkdir -p "$(cg)"
  net_up
  for ((i = 1; i <= n; i++)); do
    if leader "h$i" >/dev/null; then old+=("h$i"); else fresh+=("h$i"); fi
  done
  # The shared layer must not change under a running host.
  if [ ${#old[@]} = 0 ]; then
    make_layer ${bins[@]+"${bins[@]}"}
  fi
  for h in ${fresh[@]+"${fresh[@]}"}; do [ -d "$(host_dir "$h")" ] || make_disk "$h"; done
  for h in ${fresh[@]+"${fresh[@]}"}; do hosts_file >"$(host_dir "$h")/upper/etc/hosts"; done
  for h in ${fresh[@]+"${fresh[@]}"}; do host_start "$h"; done
  for h in ${old[@]+"${old[@]}"}; do
    hosts_file | host_exec "$h" sh -c 'cat >/etc/hosts'
    for i in ${bins[@]+"${bins[@]}"}; do push_one "$h" "$i" /usr/local/bin/; done
  done
  for h in ${fresh[@]+"${fresh[@]}"}; do host_wait "$h"; done
  if [ ${#old[@]} != 0 ] && [ ${#bins[@]} != 0 ]; then
    for h in ${fresh[@]+"${fresh[@]}"}; do
      for i in "${bins[@]}"; do push_one "$h" "$i" /usr/local/bin/; done
    done
  fi
  say "$n hosts up in $(($(now) - t0)) ms"
}

cmd_start() {
  local h=$1
  need_root; lock; known "$h"
  if leader "$h" >/dev/null; then say "$h runs already"; return 0; fi
  host_start "$h"; host_wait "$h"
}

cmd_wait() {
  local h list
  need_root
  list=$(expand "$1")
  for h in $list; do host_wait "$h"; done
}

# ------------------------------------------------------- using a host that is up

# Runs a command in all of the host's namespaces and in its cgroup tree, without
# the capabilities that a host does not have either (see KEEP_OUT).
host_exec() {
  local h=$1 l c; shift
  l=$(leader "$h") || { say "$h is down"; return 125; }
  c=$(cg "$h")/box/payload/exec
  mkdir -p "$c" 2>/dev/null || true
  ( { echo "$BASHPID" >"$c/cgroup.procs"; } 2>/dev/null || true
    exec 9>&-
    exec nsenter --target "$l" --mount --uts --ipc --net --pid --cgroup --root --wd -- \
      /usr/bin/setpriv --bounding-set="-${KEEP_OUT//,/,-}" -- /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
      HOME=/root USER=root LANG=C.UTF-8 TERM="${TERM:-dumb}" "$@" )
}

cmd_exec() {
  local h rc=0 r
  need_root
  [ $# -ge 2 ] || die "usage: exec HOST|all CMD..."
  if [ "$1" != all ]; then
    h=$1; shift; known "$h"; host_exec "$h" "$@"; return
  fi
  shift
  for h in $(hosts); do
    leader "$h" >/dev/null || continue
    r=0; host_exec "$h" "$@" </dev/null || r=$?
    [ $r = 0 ] || rc=$r
  done
  return $rc
}

push_one() {
  local h=$1 src=$2 dst=$3
  if [ -d "$src" ]; then
    tar -C "$src" -cf - . | host_exec "$h" sh -c 'mkdir -p "$1" && tar -C "$1" --no-same-owner -xf -' sh "$dst"
  else
    [ -f "$src" ] || die "no such file: $src"
    # Written beside its target and moved over it: a running program can be replaced.
    host_exec "$h" sh -c '
      t=$1; case $t in */) t=$t$2 ;; *) [ -d "$t" ] && t=$t/$2 ;; esac
      mkdir -p "$(dirname "$t")" && cat >"$t.new$$" && chmod "$3" "$t.new$$" && mv -f "$t.new$$" "$t"' \
      sh "$dst" "$(basename -- "$src")" "$(stat -c %a -- "$src")" <"$src"
  fi
}

cmd_push() {
  local h list
  need_root
  [ $# = 3 ] || die "usage: push HOST|all SRC DST"
  list=$(expand "$1")
  for h in $list; do push_one "$h" "$2" "$3"; done
}

cmd_pull() {
  need_root
  [ $# = 3 ] || die "usage: pull HOST SRC DST"
  known "$1"
  if host_exec "$1" test -d "$2"; then
    mkdir -p "$3"; host_exec "$1" tar -C "$2" -cf - . | tar -C "$3" --no-same-owner -xf -
  else
    host_exec "$1" cat -- "$2" >"$3"
  fi
}

# A container image that holds one static binary and nothing else.  It is made on
# the first host and copied to the others, so that its id is the same on all.
cmd_image() {
  local who=$1 tag=$2 file=$3 name ep h list first='' a; shift 3
  need_root
  [ -f "$file" ] || die "no such file: $file"
  list=$(expand "$who")
  name=$(basename -- "$file"); ep="\"/$name\""
  for a in "$@"; do ep+=",\"$a\""; done
  for h in $list; do
    leader "$h" >/dev/null || continue
    if [ -z "$first" ]; then
      first=$h
      tar -C "$(dirname -- "$(readlink -f -- "$file")")" --owner=0 --group=0 -cf - "$name" |
        host_exec "$h" podman import --quiet --change "ENTRYPOINT [$ep]" - "$tag"
    else
      host_exec "$first" podman save --quiet --format oci-archive "$tag" |
        host_exec "$h" podman load --quiet >/dev/null
    fi
  done
}

# ------------------------------------------------------------------ ending it

cmd_kill() {
  local h=$1
  need_root; lock; known "$h"
  net_gone "$h"                            # first the cable: peers hear nothing
  cg_remove "$(cg "$h")"
  ip netns del "$(netns "$h")" 2>/dev/null || true
}

cmd_stop() {
  local h=$1 i c l
  need_root; lock; known "$h"
  c=$(cg "$h")
  if l=$(leader "$h"); then
    kill -s RTMIN+4 "$l"                   # systemd: power off
    for ((i = 0; i < TIMEOUT * 10; i++)); do cg_populated "$c" || break; sleep 0.1; done
  fi
  net_gone "$h"
  cg_remove "$c"
  ip netns del "$(netns "$h")" 2>/dev/null || true
}

cmd_down() {
  local h c bad=0
  need_root; lock
  for h in $(hosts); do net_gone "$h"; done
  c=$(cg)
  if [ -d "$c" ]; then
    { echo 1 >"$c/cgroup.kill"; } 2>/dev/null || true
    cg_remove "$c" || bad=1
  fi
  ip netns list 2>/dev/null | awk '{ print $1 }' | while read -r h; do
    [[ $h =~ ^"$LAB"-(h[0-9]+|net)$ ]] && ip netns del "$h" || true
  done
  if [ -e "$STATE/.testhosts" ]; then rm -rf --one-file-system "$STATE" || bad=1; fi
  rm -f "$STATE.lock"
  [ $bad = 0 ] || die "could not remove everything"
}

cmd_logs() {
  local h=$1; shift
  need_root; known "$h"
  if leader "$h" >/dev/null; then host_exec "$h" journalctl --no-pager "$@"
  else journalctl --no-pager --directory "$(host_dir "$h")/upper/var/log/journal" "$@"; fi
}

cmd_collect() {
  local dir=$1 h
  need_root
  mkdir -p "$dir"
  cmd_status >"$dir/status.txt" 2>&1 || true
  for h in $(hosts); do
    cmd_logs "$h" -o short-precise >"$dir/$h.journal.txt" 2>&1 || true
    cp "$(host_dir "$h")/console.log" "$dir/$h.console.txt" 2>/dev/null || true
    leader "$h" >/dev/null || continue
    host_exec "$h" sh -c '
      systemctl list-units --all --no-pager --plain; echo; systemctl --failed --no-pager --plain; echo
      podman pod ps; podman ps --all --pod; podman images; echo
      curl -sS -m 2 localhost:2019/config/; echo; ip -br addr; ip route' </dev/null >"$dir/$h.state.txt" 2>&1 || true
  done
}

cmd_status() {
  local h l p mem n f s t
  need_root
  [ -n "$(hosts)" ] || { echo "no hosts"; return 0; }
  printf '%-5s %-12s %-9s %-8s %-8s %-6s %-9s %s\n' HOST ADDRESS STATE PID BOOT_MS PROCS MEM_KiB FAULTS
  for h in $(hosts); do
    s=down l=- n=0 mem=0
    t=$(cat "$(host_dir "$h")/ready" 2>/dev/null || echo -)
    if l=$(leader "$h"); then
      s=$(host_exec "$h" systemctl is-system-running 2>/dev/null </dev/null) || true
      while read -r p; do
        n=$((n + 1))
        mem=$((mem + $(awk '$1 == "Pss:" { print $2 }' "/proc/$p/smaps_rollup" 2>/dev/null || true) + 0))
      done < <(find "$(cg "$h")" -name cgroup.procs -exec cat {} + 2>/dev/null)
    else l=-; fi
    f=$(find "$STATE/faults" -type f -printf '%f\n' 2>/dev/null | grep -E -- "-$h(-|\$)" | tr '\n' ' ' || true)
    [ -d "$(cg)/delay-$h" ] && f+="delay-$h"
    printf '%-5s %-12s %-9s %-8s %-8s %-6s %-9s %s\n' "$h" "$(host_addr "$h")" "${s:-?}" "$l" "$t" "$n" "$mem" "$f"
  done
}

usage() { sed -n '/^#   testhosts/,/^# Needs/p' "$SELF" | sed 's/^# \{0,1\}//'; }

# ----------------------------------------------------------------------- main

[ $# -ge 1 ] || { usage; exit 2; }
cmd=$1; shift
args() { [ "$2" -ge "$1" ] || { usage >&2; exit 2; }; }
case $cmd in
  check)  cmd_check ;;
  build)  cmd_build ;;
  try)    cmd_try ;;
  built)  [ -e "$(base_dir)/complete" ] ;;
  up)     need_root; cmd_up "$@" ;;
  exec)   cmd_exec "$@" ;;
  push)   cmd_push "$@" ;;
  pull)   cmd_pull "$@" ;;
  image)  args 3 $#; cmd_image "$@" ;;
  net)    args 1 $#; need_root; in_lab "$@" ;;
  addr)   args 1 $#; host_addr "$1" ;;
  cut)    args 1 $#; cmd_cut "$@" ;;
  loss)   args 2 $#; cmd_loss "$@" ;;
  delay)  args 2 $#; cmd_delay "$@" ;;
  heal)   args 1 $#; cmd_heal "$@" ;;
  kill)   args 1 $#; cmd_kill "$@" ;;
  stop)   args 1 $#; cmd_stop "$@" ;;
  start)  args 1 $#; cmd_start "$@" ;;
  wait)   args 1 $#; cmd_wait "$@" ;;
  logs)   args 1 $#; cmd_logs "$@" ;;
  collect) args 1 $#; cmd_collect "$@" ;;
  status) cmd_status ;;
  down)   cmd_down ;;
  __loop) host_loop "$1" ;;
  __boot) host_boot "$1" ;;
  help|-h|--help) usage ;;
  *)      usage >&2; exit 2 ;;
esac
