package lan

import (
	"bufio"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/musterfleet/muster/internal/seal"
)

// A link is one TCP connection, or one that is being made.
type link struct {
	address Address
	remote  netip.AddrPort
	dialled bool
	begun   time.Time
	queue   chan []byte   // frames to be written
	up      chan struct{} // closed when the connection is there
	ended   chan struct{} // closed when it is over
	ctx     context.Context
	cancel  context.CancelFunc
	gossip  atomic.Bool
	trusted atomic.Bool  // something that came on it authenticated
	used    atomic.Int64 // when it was last used, in Unix nanoseconds

	conn net.Conn // guarded by Carrier.mu; nil while it is being made
}

// stop has the connection end. Carrier.mu is held.
func (l *link) stop() {
	l.cancel()
	if l.conn != nil {
		_ = l.conn.Close() // wakes those who read and write
	}
}

// addLink makes a link and runs f for it. Carrier.mu is held. It returns nil when
// the carrier does not run.
func (c *Carrier) addLink(remote netip.AddrPort, conn net.Conn, f func(*link)) *link {
	if c.running == nil {
		return nil
	}
	l := &link{
		address: connectionAddress(remote), remote: remote, dialled: conn == nil, conn: conn, begun: time.Now(),
		queue: make(chan []byte, c.bounds.queue), up: make(chan struct{}), ended: make(chan struct{}),
	}
	l.ctx, l.cancel = context.WithCancel(c.running)
	if !c.startLocked(func() { f(l) }) {
		l.cancel()
		return nil
	}
	c.links[l.address] = l
	return l
}

// end takes a link away, and returns the frames that wait on it.
func (c *Carrier) end(l *link) [][]byte {
	c.mu.Lock()
	if c.links[l.address] == l { // and not one that came after it
		delete(c.links, l.address)
	}
	l.stop()
	c.mu.Unlock()
	close(l.ended)
	var left [][]byte
	for {
		select {
		case frame := <-l.queue:
			c.counters.waiting.Add(-int64(len(frame)))
			left = append(left, frame)
		default:
			return left
		}
	}
}

// enqueue has a frame written to a link. Carrier.mu is held.
func (c *Carrier) enqueue(l *link, frame []byte) {
	size := int64(len(frame))
	if c.counters.waiting.Add(size) <= c.bounds.queued {
		select {
		case l.queue <- append([]byte(nil), frame...):
			return
		default:
		}
	}
	c.counters.waiting.Add(-size)
	c.counters.drop(QueueFull, 1)
}

// sendLink sends over the connection with the address.
func (c *Carrier) sendLink(to Address, frame []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.links[to]; l != nil {
		c.enqueue(l, frame)
		return
	}
	c.counters.drop(NoRoute, 1)
}

// sendLarge sends what does not fit into a datagram.
func (c *Carrier) sendLarge(to netip.AddrPort, frame []byte) {
	if !c.sendStream(plain(to), frame) {
		c.sendFragments(to, frame)
	}
}

// sendStream sends over a connection to the neighbour, which is made if need be.
// It returns false when there can be none now.
func (c *Carrier) sendStream(to netip.AddrPort, frame []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if failed, ok := c.unreachable[to]; ok && time.Since(failed) < c.bounds.unreachable {
		return false
	}
	l := c.links[connectionAddress(to)]
	if l == nil {
		dialled := 0
		for _, other := range c.links {
			if other.dialled && !other.gossip.Load() {
				dialled++
			}
		}
		if dialled >= c.bounds.dials {
			return false
		}
		l = c.addLink(to, nil, c.dial)
	}
	if l == nil {
		return false
	}
	c.enqueue(l, frame)
	return true
}

// dial makes the connection of a link, and runs it. What waits on a link that
// cannot be made goes in fragments.
func (c *Carrier) dial(l *link) {
	d := net.Dialer{Timeout: c.bounds.dial}
	conn, err := d.DialContext(l.ctx, "tcp", l.remote.String())
	if err == nil {
		c.mu.Lock()
		l.conn = conn
		c.mu.Unlock()
		c.serve(l) // which ends at once where the link was stopped
		return
	}
	if l.ctx.Err() == nil {
		c.noteUnreachable(l.remote)
	}
	stopped := l.ctx.Err() != nil
	for _, frame := range c.end(l) {
		if stopped || len(frame) <= MaxDatagram {
			c.counters.drop(SendFailed, 1)
		} else {
			c.sendFragments(l.remote, frame)
		}
	}
}

// noteUnreachable has TCP to a neighbour not tried for a while.
func (c *Carrier) noteUnreachable(remote netip.AddrPort) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.unreachable) < maxSources {
		c.unreachable[remote] = time.Now()
	}
}

func (c *Carrier) forgetUnreachable(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for a, failed := range c.unreachable {
		if now.Sub(failed) >= c.bounds.unreachable {
			delete(c.unreachable, a)
		}
	}
}

// accept takes connections until the listener is closed.
func (c *Carrier) accept(ctx context.Context) {
	for {
		conn, err := c.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			pause(ctx, 50*time.Millisecond) // mostly: no more file descriptors
			continue
		}
		if !c.admit(conn) {
			c.counters.drop(Refused, 1)
			_ = conn.Close() // nobody is told why
		}
	}
}

// admit lets a connection in, if there is room or a stranger's has to make it.
func (c *Carrier) admit(conn net.Conn) bool {
	remote := plain(conn.RemoteAddr().(*net.TCPAddr).AddrPort())
	if !c.streams.allow(remote.Addr(), time.Now()) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	all, same := 0, 0
	var oldest, oldestSame *link // of those that did not authenticate
	for _, l := range c.links {
		if l.dialled || l.ctx.Err() != nil {
			continue
		}
		all++
		older := func(than *link) bool { return !l.trusted.Load() && (than == nil || l.begun.Before(than.begun)) }
		if older(oldest) {
			oldest = l
		}
		if l.remote.Addr() == remote.Addr() {
			same++
			if older(oldestSame) {
				oldestSame = l
			}
		}
	}
	victim := (*link)(nil)
	switch {
	case same >= c.bounds.perAddress:
		victim = oldestSame
	case all >= c.bounds.connections:
		victim = oldest
	default:
		return c.addLink(remote, conn, c.serve) != nil
	}
	if victim == nil {
		return false
	}
	victim.stop()
	c.counters.drop(Refused, 1)
	return c.addLink(remote, conn, c.serve) != nil
}

// serve reads and writes a connection until it ends.
func (c *Carrier) serve(l *link) {
	l.used.Store(time.Now().UnixNano())
	close(l.up)
	if l.ctx.Err() != nil {
		_ = l.conn.Close() // it was stopped before there was a connection to close
	}
	written := make(chan struct{})
	if c.start(func() { defer close(written); c.write(l) }) {
		c.read(l)
		l.cancel()
		<-written
	}
	c.counters.drop(SendFailed, len(c.end(l)))
}

// write writes the frames that wait.
func (c *Carrier) write(l *link) {
	for {
		select {
		case <-l.ctx.Done():
			return
		case frame := <-l.queue:
			c.counters.waiting.Add(-int64(len(frame)))
			if err := c.writeFrame(l, frame); err != nil {
				c.counters.drop(SendFailed, 1)
				_ = l.conn.Close() // wakes the reader, which ends the link
				return
			}
		}
	}
}

func (c *Carrier) writeFrame(l *link, frame []byte) error {
	buffer := takeBuffer()
	defer giveBuffer(buffer)
	envelope, err := c.o.Box.Seal((*buffer)[:0], frame)
	if err != nil {
		return err
	}
	if err := l.conn.SetWriteDeadline(time.Now().Add(c.bounds.frame)); err != nil {
		return err
	}
	if _, err := l.conn.Write(envelope); err != nil {
		return err
	}
	l.used.Store(time.Now().UnixNano())
	c.counters.sent(1, len(envelope))
	return nil
}

// read receives frames until the connection breaks, is idle for too long, or
// brings anything that does not authenticate.
func (c *Carrier) read(l *link) {
	r := bufio.NewReaderSize(l.conn, 2048)
	for c.await(l, r) {
		if l.conn.SetReadDeadline(c.frameDeadline(l)) != nil || !c.readFrame(l, r) {
			return
		}
		l.used.Store(time.Now().UnixNano())
	}
}

// frameDeadline is until when a frame that begins now has to be there whole. A
// stranger has one time for its first frame and all before it.
func (c *Carrier) frameDeadline(l *link) time.Time {
	if !l.dialled && !l.trusted.Load() {
		return l.begun.Add(c.bounds.first)
	}
	return time.Now().Add(c.bounds.frame)
}

// await waits for the first byte of a frame.
func (c *Carrier) await(l *link, r *bufio.Reader) bool {
	for {
		deadline := c.idleDeadline(l)
		if !time.Now().Before(deadline) || l.conn.SetReadDeadline(deadline) != nil {
			return false
		}
		_, err := r.Peek(1)
		if err == nil {
			return true
		}
		if timeout, ok := errors.AsType[net.Error](err); !ok || !timeout.Timeout() {
			return false
		}
	}
}

// idleDeadline is when a connection on which nothing happens is closed. The side
// that dialled closes first, so that it does not write to one just closed.
func (c *Carrier) idleDeadline(l *link) time.Time {
	used := time.Unix(0, l.used.Load())
	switch {
	case !l.dialled && !l.trusted.Load():
		return l.begun.Add(c.bounds.first)
	case l.gossip.Load():
		return used.Add(c.bounds.gossipIdle)
	case l.dialled:
		return used.Add(c.bounds.idle)
	}
	return used.Add(2 * c.bounds.idle)
}

// readFrame reads one envelope and delivers what is in it. After anything else
// than a good envelope there is no telling where the next one begins.
func (c *Carrier) readFrame(l *link, r *bufio.Reader) bool {
	in, out := takeBuffer(), takeBuffer()
	defer giveBuffer(in)
	defer giveBuffer(out)
	envelope, err := readEnvelope(r, *in)
	if err != nil {
		if errors.Is(err, seal.ErrMalformed) || errors.Is(err, seal.ErrVersion) || errors.Is(err, seal.ErrTooLarge) {
			c.counters.drop(Malformed, 1)
		}
		return false
	}
	frame, ok := c.unseal((*out)[:0], envelope, l.remote.Addr(), c.streams)
	if ok {
		l.trusted.Store(true)
		c.datagrams.passed(l.remote.Addr(), time.Now())
		c.opened(l.address, l.remote, frame, len(envelope))
	}
	return ok
}

// readEnvelope reads one envelope into the buffer, which has room for the largest,
// and nothing beyond it.
func readEnvelope(r *bufio.Reader, buffer []byte) ([]byte, error) {
	start, err := r.Peek(2)
	if err != nil {
		return nil, err
	}
	if _, err := seal.Size(start); err != nil {
		return nil, err // another version: no use to wait for more
	}
	if start, err = r.Peek(min(2+int(start[1]), seal.MaxHeader)); err != nil {
		return nil, err
	}
	size, err := seal.Size(start)
	if err != nil {
		return nil, err
	}
	_, err = io.ReadFull(r, buffer[:size])
	return buffer[:size], err
}

// keepPeer keeps a connection to a peer, with growing pauses between attempts.
func (c *Carrier) keepPeer(ctx context.Context, peer string) {
	wait := c.bounds.backOff
	for attempt := 0; ctx.Err() == nil; attempt++ {
		if l := c.linkPeer(ctx, peer, attempt); l != nil {
			c.attend(l)
			if l.trusted.Load() { // else it may be somebody else who listens there
				wait = c.bounds.backOff
			}
		}
		pause(ctx, wait/2+rand.N(wait))
		wait = min(2*wait, c.bounds.maxBackOff)
	}
}

// attend tells of a link to a peer when it is up, and waits for its end.
func (c *Carrier) attend(l *link) {
	select {
	case <-l.ended:
		return
	case <-l.up:
	}
	if c.o.Linked != nil {
		c.delivery.Lock()
		c.o.Linked(l.address)
		c.delivery.Unlock()
	}
	<-l.ended
}

// linkPeer returns a link to one of the peer's addresses, another at each attempt.
func (c *Carrier) linkPeer(ctx context.Context, peer string, attempt int) *link {
	host, service, err := net.SplitHostPort(peer)
	if err != nil {
		return nil // Open has looked
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return nil
	}
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil || len(found) == 0 {
		return nil
	}
	l, _ := c.gossipWith(plain(netip.AddrPortFrom(found[attempt%len(found)], uint16(port))))
	return l
}

// gossipWith returns a gossip link to an address, made if there is none; nil when
// the carrier does not run.
func (c *Carrier) gossipWith(remote netip.AddrPort) (l *link, made bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l = c.links[connectionAddress(remote)]
	if l == nil {
		l, made = c.addLink(remote, nil, c.dial), true
	}
	if l != nil {
		l.gossip.Store(true)
	}
	return l, made
}
