package lan

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/musterfleet/muster/internal/seal"
)

// A family is what differs between IPv4 and IPv6.
type family struct {
	network  string
	wildcard netip.Addr
	group    netip.Addr
	open     func(*net.UDPConn) (groups, sender, error)
}

// groups joins and leaves multicast groups.
type groups interface {
	JoinGroup(*net.Interface, net.Addr) error
	LeaveGroup(*net.Interface, net.Addr) error
}

// A sender sends to a group on the interface with the index.
type sender func(data []byte, index int, to net.Addr) error

var (
	ipv4Family = family{"udp4", netip.IPv4Unspecified(), group4, open4}
	ipv6Family = family{"udp6", netip.IPv6Unspecified(), group6, open6}
)

// open4 sets loop, which net.ListenMulticastUDP would turn off: without it,
// agents in other network namespaces and processes of one machine are deaf to
// each other.
func open4(conn *net.UDPConn) (groups, sender, error) {
	p := ipv4.NewPacketConn(conn)
	send := func(data []byte, index int, to net.Addr) error {
		_, err := p.WriteTo(data, &ipv4.ControlMessage{IfIndex: index}, to)
		return err
	}
	return p, send, errors.Join(p.SetMulticastLoopback(true), p.SetMulticastTTL(1))
}

func open6(conn *net.UDPConn) (groups, sender, error) {
	p := ipv6.NewPacketConn(conn)
	send := func(data []byte, index int, to net.Addr) error {
		_, err := p.WriteTo(data, &ipv6.ControlMessage{IfIndex: index}, to)
		return err
	}
	return p, send, errors.Join(p.SetMulticastLoopback(true), p.SetMulticastHopLimit(1))
}

// A socket is the UDP port of one family.
type socket struct {
	family family
	conn   *net.UDPConn
	groups groups
	send   sender
	// groupPort is the port of the group.
	groupPort int

	mu     sync.Mutex             // guards joined
	joined map[int]*net.Interface // by index
}

func openSocket(f family, host netip.Addr, port int) (*socket, error) {
	conn, err := net.ListenUDP(f.network, net.UDPAddrFromAddrPort(netip.AddrPortFrom(host, uint16(port))))
	if err != nil {
		return nil, err
	}
	s := &socket{family: f, conn: conn, joined: map[int]*net.Interface{}}
	if s.groups, s.send, err = f.open(conn); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return s, nil
}

// missing tells whether the error says that the machine does not have a family.
func missing(err error) bool {
	return errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)
}

func (s *socket) local() netip.AddrPort { return s.conn.LocalAddr().(*net.UDPAddr).AddrPort() }

// group is the address of the multicast group. It names no zone: package net
// remembers for a minute which interface a name belonged to, and would send to
// one that is gone after another took its name.
func (s *socket) group() *net.UDPAddr {
	return &net.UDPAddr{IP: s.family.group.AsSlice(), Port: s.groupPort}
}

// join makes the joined interfaces those of the list. One that cannot be joined
// is tried again the next time.
func (s *socket) join(list []net.Interface) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for index, old := range s.joined {
		if !slices.ContainsFunc(list, func(i net.Interface) bool { return i.Index == index && i.Name == old.Name }) {
			_ = s.groups.LeaveGroup(old, s.group()) // mostly the interface is gone
			delete(s.joined, index)
		}
	}
	for _, i := range list {
		if s.joined[i.Index] == nil && s.groups.JoinGroup(&i, s.group()) == nil {
			s.joined[i.Index] = &i
		}
	}
}

// interfaces returns the indexes of those that are joined.
func (s *socket) interfaces() map[int]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[int]bool, len(s.joined))
	for index := range s.joined {
		all[index] = true
	}
	return all
}

// multicast sends to the group on all joined interfaces but some, waiting so long
// for room at each, and returns on how many that succeeded and failed.
func (s *socket) multicast(envelope []byte, except map[int]bool, wait time.Duration) (sent, failed int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for index := range s.joined {
		if except[index] {
			continue
		}
		_ = s.conn.SetWriteDeadline(time.Now().Add(wait)) // a closed socket refuses the write
		if s.send(envelope, index, s.group()) == nil {
			sent++
		} else {
			failed++
		}
	}
	return sent, failed
}

// look finds the interfaces to join: those of the options, or all that are up and
// able to multicast.
func (c *Carrier) look() {
	if c.o.Unicast || c.o.Host != "" {
		return
	}
	all, err := net.Interfaces()
	if err != nil {
		return // those that are joined stay so
	}
	usable := slices.DeleteFunc(all, func(i net.Interface) bool {
		if i.Flags&net.FlagUp == 0 {
			return true
		}
		if len(c.o.Interfaces) > 0 {
			return !slices.Contains(c.o.Interfaces, i.Name)
		}
		return i.Flags&net.FlagMulticast == 0 || i.Flags&net.FlagLoopback != 0
	})
	for _, s := range c.sockets {
		s.join(usable)
	}
}

// readDatagrams receives until the socket is closed.
func (c *Carrier) readDatagrams(ctx context.Context, s *socket) {
	envelope := make([]byte, 2048) // what is longer is cut off, and then malformed
	content := make([]byte, 0, len(envelope))
	for {
		n, from, err := s.conn.ReadFromUDPAddrPort(envelope)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			pause(ctx, 10*time.Millisecond) // no error of a socket lasts, but none may spin
			continue
		}
		from = plain(from)
		if frame, ok := c.unseal(content, envelope[:n], from.Addr(), c.datagrams); ok {
			c.opened(Address(from.String()), from, frame, n)
		}
	}
}

// plain makes addresses that mean the same equal.
func plain(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// unseal opens an envelope into the content's room, if its source may try.
func (c *Carrier) unseal(content, envelope []byte, from netip.Addr, g *guard) ([]byte, bool) {
	now := time.Now()
	if !g.allow(from, now) {
		c.counters.drop(Rationed, 1)
		return nil, false
	}
	frame, err := c.o.Box.Open(content, envelope)
	switch err {
	case nil:
		g.passed(from, now)
		return frame, true
	case seal.ErrForged:
		c.counters.drop(Forged, 1)
		g.failed(from, now) // the only refusal that costs more than a glance
	case seal.ErrCluster:
		c.counters.drop(Stranger, 1)
	default:
		c.counters.drop(Malformed, 1)
	}
	return nil, false
}

func (c *Carrier) sendDatagram(to netip.AddrPort, frame []byte) {
	i := slices.IndexFunc(c.sockets, func(s *socket) bool { return s.family.wildcard.Is4() == to.Addr().Unmap().Is4() })
	if i < 0 {
		c.counters.drop(NoRoute, 1)
		return
	}
	conn := c.sockets[i].conn
	envelope, err := c.o.Box.Seal(make([]byte, 0, len(frame)+sealRoom), frame)
	if err == nil {
		_ = conn.SetWriteDeadline(time.Now().Add(c.bounds.datagram)) // a closed socket refuses the write
		_, err = conn.WriteToUDPAddrPort(envelope, plain(to))
	}
	if err != nil {
		c.counters.drop(SendFailed, 1)
		return
	}
	c.counters.sent(1, len(envelope))
}

func (c *Carrier) sendFragments(to netip.AddrPort, frame []byte) {
	if err := split(frame, c.messages.Add(1), func(f []byte) { c.sendDatagram(to, f) }); err != nil {
		c.counters.drop(TooLarge, 1) // or not a frame at all
	}
}

// Datagrams are short, and buffers for the largest envelopes would cost a small
// agent more memory than all else that it has.
const (
	sealRoom     = 128 // more than an envelope adds
	bothFamilies = 3
)

// buffers are of the size of the largest envelope.
var buffers = sync.Pool{New: func() any { b := make([]byte, seal.MaxEnvelope); return &b }}

func takeBuffer() *[]byte  { return buffers.Get().(*[]byte) }
func giveBuffer(b *[]byte) { buffers.Put(b) }

// pause waits, unless the context ends before.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
