package app

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/config"
	"github.com/musterfleet/muster/internal/constellation"
	"github.com/musterfleet/muster/internal/order"
	"github.com/musterfleet/muster/internal/rendezvous"
)

// Peers that the broker tells of. As long as it is there, an agent says where it
// can be reached, learns where some others can, and keeps that in a file; nothing
// else is sent. When the broker has been away for a while, links to a few of them
// take its place, so that Orders reach beyond what multicast does. All of it are
// hints: on a link everybody has to authenticate.

// PeersFile is the name of the file, in an agent's folder.
const PeersFile = "order-peers.json"

// PeerTimes are the times of learning and linking.
type PeerTimes struct {
	First, Every, Soon time.Duration // before an agent asks in a new session, at most; and between
	Look               time.Duration // between looks at the addresses of this machine, and for a peer to link to
	Away               time.Duration // that the broker is away before links are made; a random time of as much comes on top
	Back               time.Duration // that the broker is there again before links are given up: more than an Order's longest lease
	Wait, MaxWait      time.Duration // between attempts to link, growing
}

// defaultPeerTimes: the broker may just be started again, and a fleet is not to
// build links for that. An operator notices later.
var defaultPeerTimes = PeerTimes{
	First: 10 * time.Second, Every: rendezvous.Every, Soon: rendezvous.Soon, Look: 15 * time.Second,
	Away: 10 * time.Second, Back: 20 * time.Minute, Wait: time.Second, MaxWait: 5 * time.Minute,
}

// peerLinks is how many links an agent makes. About as many others make one to it.
const peerLinks = 6

// A peerBook is what an agent knows of others through the broker.
type peerBook struct {
	times    PeerTimes
	node     muster.NodeName
	file     string
	tag      rendezvous.Tag
	self     rendezvous.ID
	port     uint16
	listen   netip.Addr // the only address; zero for all that the machine has
	only     []string   // interfaces; empty for all
	log      *slog.Logger
	changed  chan struct{} // has one when the broker came or went
	visit    func(context.Context, []netip.AddrPort) bool
	heard    func(context.Context) []order.Peer
	occupied func() bool // an Order holds this node

	mu     sync.Mutex // guards what follows
	known  []rendezvous.Peer
	online bool
	since  time.Time // when online changed
}

// openPeerBook reads the file. One that cannot be read is set aside: what it says
// is learnt again.
func openPeerBook(o AgentOptions, node string, c constellation.Constellation, id order.NodeID, port int, log *slog.Logger) *peerBook {
	b := &peerBook{
		times: o.Order.times(), node: muster.NodeName(node), file: filepath.Join(o.StateDir, PeersFile), tag: rendezvous.NewTag(c.Key, c.Secret.Reveal()), self: rendezvous.ID(id),
		port: uint16(port), only: o.Order.Interfaces, log: log, changed: make(chan struct{}, 1), known: []rendezvous.Peer{}, since: time.Now(),
	}
	if listen, err := netip.ParseAddr(o.Order.Listen); err == nil && !listen.IsUnspecified() {
		b.listen = listen.Unmap()
	}
	saved, err := readPeers(b.file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case muster.KindOf(err) == muster.Invalid:
		aside := b.file + ".unreadable"
		log.Warn("the file of peers cannot be read; it is set aside, and they are learnt again", "file", aside, "err", errors.Join(err, os.Rename(b.file, aside)))
	case err != nil:
		log.Warn("the file of peers cannot be read; they are learnt again", "file", b.file, "err", err)
	case saved.Tag == b.tag: // else the constellation is another one by now
		b.known = rendezvous.Merge(nil, rendezvous.Answer{Peers: saved.Peers}, b.self, b.loopback())
	}
	return b
}

// times are those of the options, which tests set.
func (o OrderOptions) times() PeerTimes {
	if o.PeerTimes == nil {
		return defaultPeerTimes
	}
	return *o.PeerTimes
}

func readPeers(path string) (rendezvous.Saved, error) {
	f, err := os.Open(path)
	if err != nil {
		return rendezvous.Saved{}, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, rendezvous.MaxMessage+1))
	if err != nil {
		return rendezvous.Saved{}, err
	}
	return rendezvous.Decode[rendezvous.Saved](data)
}

// loopback reports whether this agent is for this machine alone, as others are then.
func (b *peerBook) loopback() bool { return b.listen.IsLoopback() }

// addresses are where this agent can be reached, the one that the broker sees
// first. The broker only chooses among them.
func (b *peerBook) addresses(seen netip.Addr) []netip.AddrPort {
	all := []netip.Addr{b.listen}
	if !b.listen.IsValid() {
		all = interfaceAddresses(b.only)
	}
	slices.SortStableFunc(all, func(x, y netip.Addr) int {
		switch {
		case x == seen && y != seen:
			return -1
		case y == seen && x != seen:
			return 1
		}
		return 0
	})
	var at []netip.AddrPort
	for _, ip := range all {
		if a := netip.AddrPortFrom(ip, b.port); rendezvous.Dialable(a, b.loopback()) && !slices.Contains(at, a) {
			at = append(at, a)
		}
	}
	return at[:min(len(at), rendezvous.MaxAddresses)]
}

// interfaceAddresses are those of this machine's interfaces that are up, of all or
// of those that are named.
func interfaceAddresses(only []string) (all []netip.Addr) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil // asked again soon
	}
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 || len(only) > 0 && !slices.Contains(only, i.Name) {
			continue
		}
		list, err := i.Addrs()
		if err != nil {
			continue // it has just gone
		}
		for _, a := range list {
			if prefix, err := netip.ParsePrefix(a.String()); err == nil {
				all = append(all, prefix.Addr().Unmap())
			}
		}
	}
	return all
}

// during learns for one session with the broker, until the context ends.
func (b *peerBook) during(ctx context.Context, conn *bus.Conn) {
	b.keepAsking(ctx, func() []netip.AddrPort { return b.addresses(conn.ClientIP()) },
		func(at []netip.AddrPort) (settled bool, err error) { return b.ask(ctx, conn, at) })
}

// keepAsking asks at the beginning, from time to time, and when the addresses of
// this machine have changed.
func (b *peerBook) keepAsking(ctx context.Context, addresses func() []netip.AddrPort, ask func([]netip.AddrPort) (settled bool, err error)) {
	if !pause(ctx, rand.N(b.times.First)) { // or a fleet would ask all at once
		return
	}
	var said []netip.AddrPort
	var next time.Time
	again := b.times.Soon
	for {
		at := addresses()
		if len(at) > 0 && (!slices.Equal(at, said) || !time.Now().Before(next)) {
			settled, err := ask(at)
			switch {
			case err != nil: // an older broker never answers
				b.log.Debug("the broker tells of no peers", "err", err)
				again = min(2*again, b.times.Every)
			case settled:
				again = b.times.Every
			default:
				again = b.times.Soon
			}
			said, next = at, time.Now().Add(again/2+rand.N(again/2))
		}
		if !pause(ctx, b.times.Look) {
			return
		}
	}
}

// askTimeout is how long the broker has to answer.
const askTimeout = 10 * time.Second

// ask tells the broker where this agent is, and keeps what it tells.
func (b *peerBook) ask(ctx context.Context, conn *bus.Conn, at []netip.AddrPort) (settled bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	data, err := rendezvous.Encode(rendezvous.Request{Tag: b.tag, Peer: rendezvous.Peer{ID: b.self, At: at}})
	if err != nil {
		return false, err
	}
	reply, err := conn.Ask(ctx, conn.Subjects().Peers(conn.Mailbox(), b.node), data)
	if err != nil {
		return false, err
	}
	answer, err := rendezvous.Decode[rendezvous.Answer](reply)
	if err != nil {
		return false, err
	}
	b.learn(answer)
	return answer.Settled, nil
}

// learn keeps an answer, in the file if it is news.
func (b *peerBook) learn(answer rendezvous.Answer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	before, err := rendezvous.Encode(rendezvous.Saved{Tag: b.tag, Peers: b.known})
	if err == nil {
		b.known = rendezvous.Merge(b.known, answer, b.self, b.loopback())
		var now []byte
		if now, err = rendezvous.Encode(rendezvous.Saved{Tag: b.tag, Peers: b.known}); err == nil && string(now) != string(before) {
			err = config.WriteFile(b.file, now)
		}
	}
	if err != nil {
		b.log.Warn("the peers that the broker told of are not kept over a restart", "file", b.file, "err", err)
	}
}

// set notes that the broker has come or gone.
func (b *peerBook) set(online bool) {
	b.mu.Lock()
	b.online, b.since = online, time.Now()
	b.mu.Unlock()
	nudge(b.changed)
}

// run links to peers whenever the broker has been away for long enough, until the
// context ends.
func (b *peerBook) run(ctx context.Context) {
	for b.until(ctx, false, b.times.Away+rand.N(b.times.Away)) {
		links, cancel := context.WithCancel(ctx)
		var all sync.WaitGroup
		taken := &taken{book: b, now: map[rendezvous.ID]bool{}, failures: map[rendezvous.ID]int{}}
		for range peerLinks {
			all.Go(func() { taken.keepOne(links) })
		}
		b.until(ctx, true, b.times.Back)
		cancel()
		all.Wait()
	}
}

// until waits until the broker has been there, or away, for so long without a break,
// and if it is there, until no Order holds this node. It reports false when the
// context ended.
func (b *peerBook) until(ctx context.Context, online bool, long time.Duration) bool {
	for ctx.Err() == nil {
		b.mu.Lock()
		wait := long - time.Since(b.since)
		is := b.online
		b.mu.Unlock()
		switch {
		case is != online:
			wait = time.Hour // for a change
		case wait > 0:
		case online && b.occupied():
			wait = b.times.Look
		default:
			return true
		}
		pauseOr(ctx, wait, b.changed)
	}
	return false
}

// taken are the peers that links are made to now.
type taken struct {
	book *peerBook

	mu       sync.Mutex // guards what follows
	now      map[rendezvous.ID]bool
	failures map[rendezvous.ID]int
}

// keepOne keeps a link to one peer after the other, until the context ends.
func (t *taken) keepOne(ctx context.Context) {
	times := t.book.times
	for wait := times.Wait; ctx.Err() == nil; {
		p, ok := t.take(ctx)
		if !ok {
			pause(ctx, times.Look)
			continue
		}
		met := t.book.visit(ctx, p.At)
		t.give(p, met)
		if met {
			wait = times.Wait
		}
		pause(ctx, wait/2+rand.N(wait))
		wait = min(2*wait, times.MaxWait)
	}
}

// take chooses who is to be linked to: of those that are not, and are not heard
// either, the first that has failed least. An address of this machine is nobody
// else's.
func (t *taken) take(ctx context.Context) (rendezvous.Peer, bool) {
	heard := t.book.heard(ctx)
	own := interfaceAddresses(nil)
	t.book.mu.Lock()
	known := slices.Clone(t.book.known)
	t.book.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	var best rendezvous.Peer
	for _, p := range known {
		if !t.book.loopback() {
			p.At = slices.DeleteFunc(slices.Clone(p.At), func(a netip.AddrPort) bool { return slices.Contains(own, a.Addr()) })
		}
		audible := slices.ContainsFunc(heard, func(h order.Peer) bool { return h.ID == order.NodeID(p.ID) && h.Address != "" })
		if t.now[p.ID] || audible || len(p.At) == 0 {
			continue
		}
		if best.At == nil || t.failures[p.ID] < t.failures[best.ID] {
			best = p
		}
	}
	if best.At == nil {
		return best, false
	}
	t.now[best.ID] = true
	return best, true
}

func (t *taken) give(p rendezvous.Peer, met bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.now, p.ID)
	t.failures[p.ID]++
	if met {
		delete(t.failures, p.ID)
	}
}
