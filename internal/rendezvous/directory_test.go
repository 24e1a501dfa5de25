package rendezvous

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/musterfleet/muster"
)

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// request is that of the n-th node.
func request(n int) Request {
	r := Request{Tag: Tag{1}, Peer: peer(1)}
	binary.BigEndian.PutUint32(r.ID[:], uint32(n))
	return r
}

func (p Peer) number() int { return int(binary.BigEndian.Uint32(p.ID[:])) }

func name(n int) string { return fmt.Sprintf("node%d.example.com", n) }

// ask has a node ask, which must be answered.
func ask(t *testing.T, d *Directory, now time.Time, n int) Answer {
	t.Helper()
	a, err := d.Ask(now, name(n), request(n))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// graph returns whom each of n agents was told of, when all had asked twice.
func graph(t *testing.T, n int) [][]int {
	t.Helper()
	d := NewDirectory(t0)
	links := make([][]int, n)
	for round := range 2 {
		for i := range n {
			a := ask(t, d, t0.Add(time.Duration(round)*Soon), i)
			links[i] = nil
			for _, p := range a.Peers {
				links[i] = append(links[i], p.number())
			}
		}
	}
	return links
}

// parts returns the sizes of what holds together, through the first links of each
// that is alive and leads to one that is, the largest first.
func parts(links [][]int, first int, alive func(int) bool) (largest, rest int) {
	root := make([]int, len(links))
	for i := range root {
		root[i] = i
	}
	var find func(int) int
	find = func(i int) int {
		if root[i] != i {
			root[i] = find(root[i])
		}
		return root[i]
	}
	for i, to := range links {
		used := 0
		for _, j := range to {
			if alive(i) && alive(j) && used < first {
				used++
				root[find(i)] = find(j)
			}
		}
	}
	size := map[int]int{}
	for i := range links {
		if alive(i) {
			size[find(i)]++
			rest++
		}
	}
	for _, s := range size {
		largest = max(largest, s)
	}
	return largest, rest - largest
}

// linksEach are as many links as an agent keeps.
const linksEach = 6

func TestDirectoryHoldsAllTogether(t *testing.T) {
	everybody := func(int) bool { return true }
	for _, n := range []int{1, 2, 3, 10, 17, 18, 100, 2000} {
		links := graph(t, n)
		in := make([]int, n)
		for i, to := range links {
			if want := min(n-1, MaxPeers); len(to) != want {
				t.Fatalf("of %d agents one is told of %d, want %d", n, len(to), want)
			}
			seen := map[int]bool{i: true}
			for k, j := range to {
				if seen[j] {
					t.Fatalf("of %d agents number %d is told of %v", n, i, to)
				}
				seen[j] = true
				if k < linksEach {
					in[j]++
				}
			}
		}
		if _, rest := parts(links, 1, everybody); n > 1 && rest > 0 {
			t.Errorf("of %d agents %d are apart, if each uses its first link", n, rest)
		}
		if most := slices.Max(in); most > 48 { // an agent takes 64 connections
			t.Errorf("of %d agents %d have the same one among their first %d", n, most, linksEach)
		}
	}
}

// Two of three agents are gone with the broker, and those that are left find each
// other through six links each.
func TestDirectoryAfterADisaster(t *testing.T) {
	const n = 2000
	links := graph(t, n)
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		gone := make([]bool, n)
		for i := range gone {
			gone[i] = rng.IntN(3) > 0
		}
		if largest, rest := parts(links, linksEach, func(i int) bool { return !gone[i] }); rest > 1 {
			t.Errorf("%d are together and %d are apart", largest, rest)
		}
	}
}

func TestDirectoryOfSeveralConstellations(t *testing.T) {
	d := NewDirectory(t0)
	for i := range 4 {
		r := request(i)
		r.Tag = Tag{byte(i % 2)}
		if _, err := d.Ask(t0, name(i), r); err != nil {
			t.Fatal(err)
		}
	}
	r := request(0)
	r.Tag = Tag{0}
	a, err := d.Ask(t0.Add(time.Minute), name(0), r)
	if err != nil || len(a.Peers) != 1 || a.Peers[0].number() != 2 {
		t.Errorf("the first constellation's first agent is told %+v, %v", a, err)
	}
	// It changes over to the other one.
	r.Tag = Tag{1}
	if a, err = d.Ask(t0.Add(2*time.Minute), name(0), r); err != nil || len(a.Peers) != 2 {
		t.Errorf("in its new constellation it is told %+v, %v", a, err)
	}
	r = request(2)
	r.Tag = Tag{0}
	if a, err = d.Ask(t0.Add(2*time.Minute), name(2), r); err != nil || len(a.Peers) != 0 {
		t.Errorf("who is left alone is told %+v, %v", a, err)
	}
}

func TestDirectoryForgets(t *testing.T) {
	d := NewDirectory(t0)
	for i := range 3 {
		ask(t, d, t0, i)
	}
	d.Forget(name(1))
	d.Forget("nobody")
	if a := ask(t, d, t0.Add(time.Minute), 0); len(a.Peers) != 1 || a.Peers[0].number() != 2 {
		t.Errorf("after one was removed: %+v", a)
	}
	now := t0.Add(life)
	if a := ask(t, d, now, 0); len(a.Peers) != 1 {
		t.Errorf("too early one is forgotten: %+v", a)
	}
	now = t0.Add(life + 2*sweepEvery)
	if a := ask(t, d, now, 0); len(a.Peers) != 0 || len(d.agents) != 1 {
		t.Errorf("who did not ask for long is known: %+v", a)
	}
	d.Forget(name(0))
	if len(d.agents) != 0 || len(d.rings) != 0 {
		t.Errorf("%d agents and %d rings are left", len(d.agents), len(d.rings))
	}
}

// A node has one record, and new addresses take the place of the old ones.
func TestDirectoryTakesChanges(t *testing.T) {
	d := NewDirectory(t0)
	ask(t, d, t0, 0)
	r := request(1)
	for i := range 3 {
		r.Peer = peer(byte(i + 1))
		if _, err := d.Ask(t0.Add(time.Duration(i)*time.Minute), name(1), r); err != nil {
			t.Fatal(err)
		}
	}
	if a := ask(t, d, t0.Add(time.Hour), 0); len(a.Peers) != 1 || a.Peers[0].ID != (ID{3}) {
		t.Errorf("%+v", a)
	}
}

func TestDirectorySettles(t *testing.T) {
	d := NewDirectory(t0)
	if a := ask(t, d, t0.Add(SettledAfter-time.Second), 0); a.Settled {
		t.Error("it is settled from the start")
	}
	if a := ask(t, d, t0.Add(SettledAfter), 0); !a.Settled {
		t.Error("it never settles")
	}
}

func TestDirectoryIsBounded(t *testing.T) {
	d := NewDirectory(t0)
	ask(t, d, t0, 0)
	if _, err := d.Ask(t0.Add(askPause-1), name(0), request(0)); muster.KindOf(err) != muster.Full {
		t.Errorf("who asks too often gets %v", err)
	}
	ask(t, d, t0.Add(askPause), 0)
	for i := 1; i < maxAgents; i++ {
		d.agents[name(i)] = &agent{node: name(i), asked: t0}
	}
	if _, err := d.Ask(t0.Add(2*time.Second), "one more", request(1)); muster.KindOf(err) != muster.Full {
		t.Errorf("one too many gets %v", err)
	}
	ask(t, d, t0.Add(2*time.Second), 0)
}

// BenchmarkAsk is one question in a constellation of 10,000.
func BenchmarkAsk(b *testing.B) {
	d := NewDirectory(t0)
	for i := range 10_000 {
		if _, err := d.Ask(t0, name(i), request(i)); err != nil {
			b.Fatal(err)
		}
	}
	now := t0
	for i := 0; b.Loop(); i++ {
		if i%10_000 == 0 {
			now = now.Add(askPause)
		}
		a, err := d.Ask(now, name(i%10_000), request(i%10_000))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := Encode(a); err != nil {
			b.Fatal(err)
		}
	}
}
