package rendezvous

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"time"

	"github.com/musterfleet/muster"
)

// Times of a Directory.
const (
	// Every is how often an agent asks, and Soon how often as long as the
	// directory is not settled.
	Every = 30 * time.Minute
	Soon  = 5 * time.Minute
	// SettledAfter is how long a directory needs to hear of all agents that are
	// connected: they may know of a new one only when they ask the next time.
	SettledAfter = Every + 2*Soon
	life         = 4*Every + Soon // without being asked by the agent
	askPause     = time.Second    // between two answers to one agent
	sweepEvery   = time.Minute
)

// maxAgents bounds a directory.
const maxAgents = 50_000

// An agent's peers are the next successors on the ring, and those that follow
// fixed points of its own, the chords.
const (
	successors = 4
	chords     = MaxPeers - successors
)

// A Directory knows the agents that have asked of late, and chooses for each one
// whom it is told of.
//
// The agents of a constellation are on a ring, at the hash of their node's name.
// Each is told of those that follow it, so that all links together are one ring
// with a few neighbours to spare, and no set of agents is without a link to the
// others; and of those that follow points anywhere on the ring, so that what is
// left holds together when many are gone at once: links are chosen regardless of
// where machines stand, and each subnet has links into all others. A node
// cannot choose its place, and so not how many are told of it.
//
// It is a value of its caller's: no goroutine, no clock. It may not be used from
// several goroutines at once.
type Directory struct {
	began  time.Time
	swept  time.Time
	agents map[string]*agent // by node
	rings  map[Tag][]*agent  // by place
}

type agent struct {
	node  string
	tag   Tag
	peer  Peer
	place uint64
	asked time.Time
}

// NewDirectory returns an empty one.
func NewDirectory(now time.Time) *Directory {
	return &Directory{began: now, swept: now, agents: map[string]*agent{}, rings: map[Tag][]*agent{}}
}

// Ask takes what a node says of its agent in the place of what it said before,
// and names others. Whoever asks too often, or when there is no room, gets an
// error.
func (d *Directory) Ask(now time.Time, node string, r Request) (Answer, error) {
	d.sweep(now)
	a := d.agents[node]
	switch {
	case a == nil && len(d.agents) >= maxAgents:
		return Answer{}, muster.Errorf(muster.Full, "%d agents are known; there is room for no more", maxAgents)
	case a != nil && now.Sub(a.asked) < askPause:
		return Answer{}, muster.Errorf(muster.Full, "%s asks too often", node)
	case a != nil && a.tag != r.Tag:
		d.remove(a)
		a = nil
	}
	if a == nil {
		a = &agent{node: node, tag: r.Tag, place: place(node, 0)}
		d.agents[node] = a
		i, _ := at(d.rings[r.Tag], a.place)
		d.rings[r.Tag] = slices.Insert(d.rings[r.Tag], i, a)
	}
	a.peer, a.asked = r.Peer, now
	return Answer{Settled: now.Sub(d.began) >= SettledAfter, Peers: choose(d.rings[r.Tag], a)}, nil
}

// Forget removes the agent of a node.
func (d *Directory) Forget(node string) {
	if a := d.agents[node]; a != nil {
		d.remove(a)
	}
}

func (d *Directory) remove(a *agent) {
	delete(d.agents, a.node)
	ring := slices.DeleteFunc(d.rings[a.tag], func(o *agent) bool { return o == a })
	if d.rings[a.tag] = ring; len(ring) == 0 {
		delete(d.rings, a.tag)
	}
}

// sweep forgets who has not asked for long.
func (d *Directory) sweep(now time.Time) {
	if now.Sub(d.swept) < sweepEvery {
		return
	}
	d.swept = now
	for _, a := range d.agents {
		if now.Sub(a.asked) > life {
			d.remove(a)
		}
	}
}

// choose returns whom an agent of the ring is told of. A successor and a chord
// take turns, so that the first few hold the ring together and reach far, too.
func choose(ring []*agent, of *agent) []Peer {
	var chosen []*agent
	pick := func(from uint64) {
		i, _ := at(ring, from)
		for range ring {
			a := ring[i%len(ring)]
			if a != of && !slices.Contains(chosen, a) {
				chosen = append(chosen, a)
				return
			}
			i++
		}
	}
	for i := range chords {
		if i < successors {
			pick(of.place)
		}
		pick(place(of.node, i+1))
	}
	peers := make([]Peer, len(chosen))
	for i, a := range chosen {
		peers[i] = a.peer
	}
	return peers
}

// at returns the index in a ring of a place, or of what follows it.
func at(ring []*agent, place uint64) (int, bool) {
	return slices.BinarySearchFunc(ring, place, func(a *agent, p uint64) int { return cmp.Compare(a.place, p) })
}

// place returns the place of a node, or with a salt that of one of its chords.
func place(node string, salt int) uint64 {
	sum := sha256.Sum256(append([]byte{byte(salt)}, node...))
	return binary.BigEndian.Uint64(sum[:])
}
