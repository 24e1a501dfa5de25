#!/usr/bin/env bash
# Tries every feature of testhosts.sh on three hosts.  Its argument is a static
# binary that serves HTTP: `make hosts-selftest` builds testdata/app for it.
set -u
T=$(dirname -- "$(readlink -f -- "$0")")/testhosts.sh
APP=$(readlink -f -- "$1"); B=$(basename -- "$APP")
N=${TESTHOSTS_NET:-10.77.0}
D=$(mktemp -d); trap 'rm -rf "$D"' EXIT
pass=0 fail=0
ok() { # NAME EXPECTED-REGEX CMD...
  local name=$1 want=$2 out t; shift 2; t=$(date +%s%3N)
  out=$("$@" 2>&1); local rc=$?
  t=$(($(date +%s%3N) - t))
  if grep -qE -- "$want" <<<"$out rc=$rc"; then pass=$((pass+1)); printf 'ok   %-44s %6d ms\n' "$name" "$t"
  else fail=$((fail+1)); printf 'FAIL %-44s %6d ms\n     want %s\n     got  %s\n' "$name" "$t" "$want" "$out rc=$rc"; fi
}
ping1() { "$T" exec "$1" ping -c 1 -W 1 -q "$2"; }
sh_in() { local h=$1; shift; "$T" exec "$h" sh -c "$*"; }

ok "down before"                'rc=0'  "$T" down
ok "up 3"                       '3 hosts up' "$T" up 3 "$APP"
ok "up 3 again changes nothing" '3 hosts up' "$T" up 3 "$APP"
for h in h1 h2 h3; do ok "$h runs, no failed unit" '^running' "$T" exec $h systemctl is-system-running; done
ok "own host names"             'h1.h2.h3' bash -c "$T exec all hostname | tr '\n' '.'"
ok "own machine ids"            '^3 rc' bash -c "$T exec all cat /etc/machine-id | sort -u | wc -l"
ok "exit status comes through"  'rc=42$' "$T" exec h1 sh -c 'exit 42'
ok "input comes through"        'hello' bash -c "echo hello | $T exec h1 cat"
ok "unknown host is refused"    'does not exist.*rc=1' "$T" push h9 "$APP" /tmp/
ok "PID 1 is systemd"           'systemd' "$T" exec h1 cat /proc/1/comm
ok "D-Bus interface"            'unit/caddy_2eservice' "$T" exec h1 busctl call org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager GetUnit s caddy.service
ok "transient unit"             'system.slice/t1.service' "$T" exec h1 systemd-run -q --unit=t1 --wait --collect --pipe cat /proc/self/cgroup
ok "Restart=always"             'NRestarts=1' sh_in h1 'systemd-run -q --unit=t2 -p Restart=always sleep 1000; systemctl kill -s KILL t2; sleep 0.6; systemctl show t2 -p NRestarts; systemctl stop t2'
ok "sandboxing options"         '^lo' sh_in h1 'systemd-run -q --wait --pipe -p DynamicUser=yes -p PrivateNetwork=yes -p ProtectSystem=strict -p PrivateTmp=yes -p NoNewPrivileges=yes ip -br link'
ok "socket unit, Accept=yes"    '^hi' sh_in h1 'printf "[Socket]\nListenStream=7777\nAccept=yes\n" >/etc/systemd/system/e.socket; printf "[Service]\nExecStart=/bin/cat\nStandardInput=socket\n" >/etc/systemd/system/e@.service; systemctl daemon-reload; systemctl start e.socket; bash -c "exec 3<>/dev/tcp/127.0.0.1/7777; echo hi >&3; read -r -t 2 l <&3; echo \$l"'
ok "timer"                      'fired' sh_in h1 'systemd-run -q --on-active=1 --timer-property=AccuracySec=100ms touch /run/fired; sleep 2; ls /run/fired'
ok "journal"                    'e@0' sh_in h1 'journalctl -u "e@*" --no-pager -o cat; systemctl list-units --all "e@*" --no-legend; echo e@0'
ok "IPAddressDeny"              'rc=28' "$T" exec h1 systemd-run -q --wait --pipe -p IPAddressDeny=any curl -sS -m 1 http://127.0.0.1:2019/
# These look whether a host could change the machine; none of them tries to.
ok "machine's sysctls are read-only" 'rc=1' sh_in h1 'test -w /proc/sys/kernel/panic'
ok "host's own net sysctls are not"  'rc=0' sh_in h1 'test -w /proc/sys/net/ipv4/ip_forward'
CAPS='c=0x$(sed -n "s/^CapBnd:.//p" /proc/self/status); echo "time=$((c >> 25 & 1)) module=$((c >> 16 & 1)) rawio=$((c >> 17 & 1)) admin=$((c >> 21 & 1))"'
ok "no clock, modules, hardware: exec"  'time=0 module=0 rawio=0 admin=1' "$T" exec h1 bash -c "$CAPS"
ok "no clock, modules, hardware: units" 'time=0 module=0 rawio=0 admin=1' "$T" exec h1 systemd-run -q --wait --pipe --collect bash -c "${CAPS//\$/\$\$}"

ok "image on all hosts"         'rc=0' "$T" image all localhost/app:1 "$APP"
ok "same image id on all"       '^1 rc' bash -c "$T exec all podman images -q localhost/app:1 | sort -u | wc -l"
cat >"$D/pod.yaml" <<'X'
apiVersion: v1
kind: ConfigMap
metadata: {name: cfg}
data: {greeting: from-configmap}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers:
  - name: app
    image: localhost/app:1
    imagePullPolicy: Never
    env: [{name: GREETING, valueFrom: {configMapKeyRef: {name: cfg, key: greeting}}}]
    volumeMounts: [{name: c, mountPath: /cfg}]
    ports: [{containerPort: 8080, hostPort: 28080}]
    resources: {limits: {memory: 64Mi, cpu: 500m}}
  volumes: [{name: c, configMap: {name: cfg}}]
X
ok "push to all"                'rc=0' "$T" push all "$D/pod.yaml" /root/
ok "kube play"                  'Container:' "$T" exec h1 podman kube play /root/pod.yaml
sleep 0.5
ok "no image pulled for the pod" 'localhost/podman-pause' "$T" exec h1 podman images
ok "pod by port of the host"    'from-configmap' "$T" exec h2 curl -sS -m 3 http://h1:28080/
PIP=$("$T" exec h1 sh -c 'podman inspect $(podman pod inspect web -f "{{.InfraContainerID}}") -f "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"')
ok "pod by its address $PIP"    'from-configmap' "$T" exec h1 curl -sS -m 3 "http://$PIP:8080/"
ok "caddy: load"                'code=200' "$T" exec h1 curl -sS -m 5 -H 'Content-Type: application/json' localhost:2019/load -w 'code=%{http_code}' -d '{"apps":{"http":{"servers":{"edge":{"listen":[":80"],"automatic_https":{"disable":true},"routes":[]}}}}}'
ok "caddy: add a route with @id" 'code=200' "$T" exec h1 curl -sS -m 5 -H 'Content-Type: application/json' localhost:2019/config/apps/http/servers/edge/routes -w 'code=%{http_code}' -d '{"@id":"r1","match":[{"host":["web.test"]}],"handle":[{"handler":"reverse_proxy","upstreams":[{"dial":"'"$PIP"':8080"}]}]}'
ok "caddy: through it, other host" 'from-configmap' "$T" exec h3 curl -sS -m 3 -H 'Host: web.test' http://h1/
ok "caddy: through it, bridge side" 'from-configmap' "$T" net curl -sS -m 3 -H 'Host: web.test' "http://$N.11/"
ok "caddy: delete by id"        'code=200' "$T" exec h1 curl -sS -m 5 -X DELETE localhost:2019/id/r1 -w 'code=%{http_code}'
ok "caddy: route is gone"       'size=0' "$T" exec h3 curl -sS -m 3 -H 'Host: web.test' http://h1/ -w 'size=%{size_download}'
ok "kube down"                  'Pods removed' "$T" exec h1 podman kube down /root/pod.yaml
printf '[Kube]\nYaml=/root/pod.yaml\n[Install]\nWantedBy=multi-user.target\n' >"$D/web.kube"
printf '[Container]\nImage=localhost/app:1\nPull=never\nPublishPort=19090:8080\n[Service]\nRestart=always\nRestartSec=0\n[Install]\nWantedBy=multi-user.target\n' >"$D/one.container"
ok "push Quadlet units"         'rc=0' bash -c "$T push h1 $D/web.kube /etc/containers/systemd/ && $T push h1 $D/one.container /etc/containers/systemd/"
ok "Quadlet units start"        'rc=0' sh_in h1 'systemctl daemon-reload && systemctl start web one'
ok "Quadlet .kube answers"      'from-configmap' "$T" exec h2 curl -sS -m 3 --retry 3 --retry-connrefused http://h1:28080/
ok "Quadlet .container answers" 'host=' "$T" exec h2 curl -sS -m 3 --retry 3 --retry-connrefused http://h1:19090/
ok "container restarts"         'NRestarts=1' sh_in h1 'podman kill systemd-one >/dev/null; sleep 1.5; systemctl show one -p NRestarts'
ok "podman API socket"          '"Version":"' sh_in h1 'systemctl start podman.socket; curl -sS --unix-socket /run/podman/podman.sock http://d/v5.0.0/libpod/version'
ok "limits beyond the machine's are lowered" 'rc=0' "$T" exec h1 podman run --rm -d --name lim --ulimit nofile=1048576:1048576 --pids-limit 50 --memory 64m --cpus 0.5 --memory-swap 128m --cpu-shares 100 --cpuset-cpus 0 localhost/app:1
ok "exec in a container"        'rc=0' "$T" exec h1 podman exec -d lim "/$B" :9999
ok "remove it"                  'rc=0' "$T" exec h1 podman rm -f -t 0 lim
ok "limits are shown"           '67108864' sh_in h1 'podman inspect web-app -f "{{.HostConfig.Memory}}"'

ok "two hosts talk"             '1 received' ping1 h1 h2
ok "cut"                        'rc=0' "$T" cut h2
ok "cut: no answer"             '0 received|rc=[12]' ping1 h1 h2
ok "cut: host sees no carrier"  'NO-CARRIER' "$T" exec h2 ip link show eth0
ok "heal"                       'rc=0' "$T" heal h2
ok "healed"                     '1 received' ping1 h1 h2
ok "cut silent"                 'rc=0' "$T" cut h2 silent
ok "cut silent: no answer"      ' 0 received' ping1 h1 h2
ok "cut silent: carrier is up"  'LOWER_UP' "$T" exec h2 ip link show eth0
ok "heal"                       'rc=0' "$T" heal h2
ok "cut a pair"                 'rc=0' "$T" cut h1 h2
ok "pair: no answer"            ' 0 received' ping1 h2 h1
ok "pair: third host still seen" ' 1 received' ping1 h1 h3
ok "heal all"                   'rc=0' "$T" heal all
ok "loss 50"                    'rc=0' "$T" loss h2 50
ok "loss: three of four lost"   ' (5[5-9]|[6-8][0-9]|9[0-5])(\.[0-9]*)?% packet loss' "$T" exec h1 ping -c 100 -i 0.01 -q h2
ok "heal"                       'rc=0' "$T" heal h2
ok "delay 40"                   'rc=0' "$T" delay h2 40
ok "delay: at least 80 ms there and back" 'min/avg/max/mdev = (8[0-9])\.' "$T" exec h1 ping -c 5 -i 0.1 -q h2
ok "heal"                       'rc=0' "$T" heal h2
ok "no delay"                   'min/avg/max/mdev = [0-9.]+/0\.' "$T" exec h1 ping -c 5 -i 0.1 -q h2
cat >"$D/mc.py" <<'X'
import socket,struct,sys,time
g,p=sys.argv[2],7777; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)
if sys.argv[1]=='recv':
    s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1); s.bind(('',p))
    s.setsockopt(socket.IPPROTO_IP,socket.IP_ADD_MEMBERSHIP,struct.pack('4s4s',socket.inet_aton(g),socket.inet_aton('0.0.0.0')))
    s.settimeout(4); print('got',s.recvfrom(100))
else:
    for i in range(6): s.sendto(b'x',(g,p)); time.sleep(0.2)
X
"$T" push all "$D/mc.py" /root/
for g in 239.77.7.7 224.0.0.251; do
  "$T" exec h2 python3 /root/mc.py recv $g >"$D/m2" 2>&1 & a=$!
  "$T" exec h3 python3 /root/mc.py recv $g >"$D/m3" 2>&1 & b=$!
  sleep 0.4; "$T" exec h1 python3 /root/mc.py send $g; wait $a $b
  ok "multicast $g"             "got.*$N.11.*got.*$N.11" bash -c "cat $D/m2 $D/m3 | tr '\n' ' '"
done
ok "kill"                       'rc=0' "$T" kill h1
ok "killed host is down"        'h1 .* down' "$T" status
ok "killed host is silent"      ' 0 received' ping1 h2 h1
ok "journal of a killed host"   'Started' "$T" logs h1 -n 200
ok "start"                      'h1 is up' "$T" start h1
ok "its units came back"        'from-configmap' "$T" exec h2 curl -sS -m 3 --retry 8 --retry-delay 1 --retry-connrefused http://h1:28080/
ok "reboot from inside"         'h1 is up' bash -c "$T exec h1 systemctl reboot; sleep 2; $T wait h1"
ok "three boots in its journal" '^3 rc' bash -c "$T exec h1 journalctl --list-boots --no-pager -q | grep -c :"
ok "stop"                       'rc=0' "$T" stop h3
ok "start"                      'h3 is up' "$T" start h3
ok "power off from inside"      'h3 .* down' bash -c "$T exec h3 systemctl poweroff; sleep 3; $T status"
ok "up boots what is down"      'h3 is up' "$T" up 3
ok "up 4 adds a host"           'h4 is up' "$T" up 4 "$APP"
ok "old hosts know the new one" '1 received' ping1 h1 h4
ok "binary replaced while it runs" 'rc=0' bash -c "$T exec h1 systemd-run -q --unit=srv /usr/local/bin/$B :9999 && $T push h1 $APP /usr/local/bin/$B"
ok "pull"                       'rc=0' bash -c "$T pull h1 /usr/local/bin/$B $D/back && cmp $D/back $APP"
ok "collect"                    'h1.journal.txt' bash -c "$T collect $D/c && ls $D/c"
"$T" status
ok "down"                       'rc=0' "$T" down
ok "nothing left: namespaces"   '^0 rc' bash -c "ls /run/netns | grep -c '^${TESTHOSTS_LAB:-testhosts}-'"
ok "nothing left: cgroup"       '^0 rc' bash -c "find /sys/fs/cgroup -maxdepth 2 -name '${TESTHOSTS_LAB:-testhosts}' | wc -l"
ok "nothing left: files"        '^0 rc' bash -c "ls -d ${TESTHOSTS_STATE:-/var/tmp/${TESTHOSTS_LAB:-testhosts}}* 2>/dev/null | wc -l"
echo "$pass passed, $fail failed"
[ $fail = 0 ]
