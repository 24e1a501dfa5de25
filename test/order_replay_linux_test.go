package test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/musterfleet/muster/test/hosts"
)

// What was recorded on the wire does nothing when it is sent again, also to agents
// that were started again.
func (o *orders) tryReplay(t *testing.T) {
	tap := newTap(t, o.lab)
	if got := o.ran(operator, "--shell", "echo ran >>/root/recorded"); len(got) != orderHosts {
		t.Fatalf("%v answer", got)
	}
	tap.stop()
	var payloads [][]byte
	for _, f := range tap.frames {
		payloads = append(payloads, payload(f.data))
	}
	for _, again := range []string{"to the same agents", "to agents that were started again"} {
		before, broken := o.received()
		if err := tap.replay(); err != nil {
			t.Fatal(err)
		}
		// As if the recorder were an agent itself, over TCP.
		o.send("tcp", payloads...)
		o.await("the replay has arrived", func() bool {
			now, _ := o.received()
			return now-before >= len(tap.frames)
		})
		if _, now := o.received(); now != broken {
			t.Errorf("%d of the frames did not arrive whole", now-broken)
		}
		if again == "to the same agents" {
			o.wrote("recorded", 1, o.everybody()...)
			o.restartAgents()
		}
	}
	o.awaitAll("all answer after the replay")
	o.wrote("recorded", 1, o.everybody()...)
	t.Logf("%d frames recorded and sent again", len(tap.frames))
}

// Nobody becomes deaf from what somebody without the constellation sends.
func (o *orders) tryGarbage(t *testing.T) {
	before := o.processes()
	good := o.captured()
	random := rand.New(rand.NewPCG(1, 2))
	garbage := [][]byte{{0x01, 0xff}, {0x9f, 0x00}, {0x8b, 0x1b, 0xff}, append(slices.Clone(good), 0xff)}
	for i := range 60 {
		noise := make([]byte, 1+random.IntN(1400))
		for j := range noise {
			noise[j] = byte(random.Uint32())
		}
		garbage = append(garbage, noise, good[:i*len(good)/60])
	}
	o.send("udp", garbage...)
	o.send("tcp", garbage...)
	if got := o.ran(operator, "--shell", "echo ran >>/root/garbage"); len(got) != orderHosts {
		t.Errorf("after garbage %v answer", got)
	}
	o.wrote("garbage", 1, o.everybody()...)
	if after := o.processes(); after != before {
		t.Errorf("agents died of garbage:\n%s%s", before, after)
	}
}

// captured returns an envelope of the constellation.
func (o *orders) captured() []byte {
	o.t.Helper()
	tap := newTap(o.t, o.lab)
	o.ran(operator, "--", "true")
	tap.stop()
	return payload(tap.frames[len(tap.frames)-1].data)
}

// send sends messages from the bridge, which has no constellation, to a scout and an
// agent. Each has a connection of its own, which may be closed by the other side.
func (o *orders) send(network string, messages ...[]byte) {
	o.t.Helper()
	for _, host := range []string{"h2", "h7"} {
		address := net.JoinHostPort(o.lab.Address(host), "6776")
		err := inside(o.lab, func() error {
			for _, m := range messages {
				conn, err := net.DialTimeout(network, address, time.Minute)
				if err != nil {
					return err
				}
				_, err = conn.Write(m)
				if err = errors.Join(err, conn.Close()); err != nil && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
					return err
				}
			}
			return nil
		})
		if err != nil {
			o.t.Error(err)
		}
	}
}

// processes tells which processes the agents are.
func (o *orders) processes() string {
	o.t.Helper()
	return o.lab.Must("all", "systemctl", "show", "-p", "MainPID", "--value", "muster-scout", "muster-agent")
}

// received returns how many datagrams the hosts' kernels gave to their programs, and
// how many they found to be broken.
func (o *orders) received() (whole, broken int) {
	o.t.Helper()
	out := o.lab.Must("all", "sh", "-c", `awk '$1 == "Udp:" && $2 ~ /^[0-9]/ {print $2, $8}; $1 == "Udp6InDatagrams" {print $2, 0}; $1 == "Udp6InCsumErrors" {print 0, $2}' /proc/net/snmp /proc/net/snmp6`)
	for line := range strings.Lines(out) {
		var w, b int
		if _, err := fmt.Sscan(line, &w, &b); err != nil {
			o.t.Fatal(err)
		}
		whole, broken = whole+w, broken+b
	}
	return whole, broken
}

// A tap records what the bridge sends to the hosts for agents.
type tap struct {
	t      testing.TB
	fd     int
	ports  []int // of the bridge, as interfaces
	end    chan struct{}
	ended  chan error
	frames []ethernet
}

// An ethernet frame as it went out through a port of the bridge.
type ethernet struct {
	port int
	data []byte
}

func newTap(t testing.TB, lab *hosts.Lab) *tap {
	t.Helper()
	p := &tap{t: t, end: make(chan struct{}), ended: make(chan error, 1)}
	err := inside(lab, func() (err error) {
		all, err := net.Interfaces()
		if err != nil {
			return err
		}
		for _, i := range all {
			if strings.HasPrefix(i.Name, "h") {
				p.ports = append(p.ports, i.Index)
			}
		}
		p.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(bigEndian(unix.ETH_P_ALL)))
		return err
	})
	if err != nil {
		t.Fatalf("record what is sent: %v", err)
	}
	t.Cleanup(func() { unix.Close(p.fd) })
	// So that the end of recording is noticed.
	if err := unix.SetsockoptTimeval(p.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}); err != nil {
		t.Fatal(err)
	}
	go func() { p.ended <- p.record() }()
	return p
}

func bigEndian(v uint16) uint16 { return v<<8 | v>>8 }

// record records datagrams for port 6776.
func (p *tap) record() error {
	buffer := make([]byte, 65536)
	for {
		n, from, err := unix.Recvfrom(p.fd, buffer, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			select {
			case <-p.end:
				return nil
			default:
			}
			continue
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if ok && link.Pkttype == unix.PACKET_OUTGOING && slices.Contains(p.ports, link.Ifindex) && payload(buffer[:n]) != nil {
			p.frames = append(p.frames, ethernet{link.Ifindex, bytes.Clone(buffer[:n])})
		}
	}
}

// stop ends the recording. There must be something in it.
func (p *tap) stop() {
	p.t.Helper()
	close(p.end)
	if err := <-p.ended; err != nil || len(p.frames) == 0 {
		p.t.Fatalf("%d frames recorded: %v", len(p.frames), err)
	}
}

// replay sends what was recorded where it was sent before, from whom it came.
func (p *tap) replay() error {
	for _, f := range p.frames {
		data := bytes.Clone(f.data)
		sum(data)
		if err := unix.Sendto(p.fd, data, 0, &unix.SockaddrLinklayer{Ifindex: f.port}); err != nil {
			return fmt.Errorf("send again: %w", err)
		}
	}
	return nil
}

// datagram returns the addresses and the UDP part of an ethernet frame, nil if it
// is none for an agent.
func datagram(frame []byte) (addresses, udp []byte) {
	if len(frame) < 14+40+8 {
		return nil, nil
	}
	packet := frame[14:]
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_IP:
		if packet[9] != unix.IPPROTO_UDP {
			return nil, nil
		}
		addresses, udp = packet[12:20], packet[int(packet[0]&15)*4:]
	case unix.ETH_P_IPV6:
		if packet[6] != unix.IPPROTO_UDP {
			return nil, nil
		}
		addresses, udp = packet[8:40], packet[40:]
	default:
		return nil, nil
	}
	if len(udp) < 9 || binary.BigEndian.Uint16(udp[2:]) != 6776 {
		return nil, nil
	}
	return addresses, udp[:min(len(udp), int(binary.BigEndian.Uint16(udp[4:])))]
}

// payload returns what a frame has for an agent, nil if nothing.
func payload(frame []byte) []byte {
	if _, udp := datagram(frame); udp != nil {
		return udp[8:]
	}
	return nil
}

// sum writes the checksum, which the kernel leaves to the device that sends.
func sum(frame []byte) {
	addresses, udp := datagram(frame)
	udp[6], udp[7] = 0, 0
	total := uint32(unix.IPPROTO_UDP) + uint32(len(udp))
	for _, part := range [][]byte{addresses, udp} {
		for i, b := range part {
			total += uint32(b) << (8 * (1 - i%2))
		}
	}
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	if total != 0xffff {
		total ^= 0xffff
	}
	binary.BigEndian.PutUint16(udp[6:], uint16(total))
}

// inside calls f in the network namespace of the bridge.
func inside(lab *hosts.Lab, f func() error) error {
	result := make(chan error, 1)
	go func() {
		// Not unlocked: a thread of another namespace must not serve anybody else.
		runtime.LockOSThread()
		ns, err := os.Open(lab.Namespace())
		if err == nil {
			defer ns.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = f()
		}
		result <- err
	}()
	return <-result
}
