package app

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterfleet/muster/internal/constellation"
	"github.com/musterfleet/muster/internal/order"
	"github.com/musterfleet/muster/internal/rendezvous"
)

func aPeer(id byte) rendezvous.Peer {
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, id}), 6776)
	return rendezvous.Peer{ID: rendezvous.ID{id}, At: []netip.AddrPort{at}}
}

func aConstellation(t *testing.T, cluster string) constellation.Constellation {
	t.Helper()
	c, _, err := constellation.Generate(cluster, rand.NewChaCha8([32]byte{1}))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func openBook(t *testing.T, dir, cluster string) *peerBook {
	t.Helper()
	o := AgentOptions{StateDir: dir}
	return openPeerBook(o, "n", aConstellation(t, cluster), order.NodeID{1}, 6776, slog.New(slog.NewTextHandler(t.Output(), nil)))
}

// What was learnt is there after a restart, for the same constellation.
func TestPeersAreKept(t *testing.T) {
	dir := t.TempDir()
	b := openBook(t, dir, "lab")
	if len(b.known) != 0 {
		t.Fatalf("%v are known from the start", b.known)
	}
	b.learn(rendezvous.Answer{Settled: true, Peers: []rendezvous.Peer{aPeer(1), aPeer(2), aPeer(3)}})
	if got := openBook(t, dir, "lab").known; !reflect.DeepEqual(got, []rendezvous.Peer{aPeer(2), aPeer(3)}) {
		t.Errorf("%v are known after a restart", got)
	}
	if got := openBook(t, dir, "other").known; len(got) != 0 {
		t.Errorf("%v are known of another constellation", got)
	}
	info, err := os.Stat(filepath.Join(dir, PeersFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v", info, err)
	}
}

// A file that cannot be read is no reason not to start.
func TestPeersThatCannotBeReadAreSetAside(t *testing.T) {
	for name, text := range map[string]string{"garbage": "garbage", "empty": "", "large": string(make([]byte, 1<<20))} {
		dir := t.TempDir()
		file := filepath.Join(dir, PeersFile)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		b := openBook(t, dir, "lab")
		if aside, err := os.ReadFile(file + ".unreadable"); err != nil || string(aside) != text || len(b.known) != 0 {
			t.Errorf("%s: %d bytes set aside, %v, %v are known", name, len(aside), err, b.known)
		}
		b.learn(rendezvous.Answer{Peers: []rendezvous.Peer{aPeer(2)}})
		if got := openBook(t, dir, "lab").known; len(got) != 1 {
			t.Errorf("%s: %v are learnt afterwards", name, got)
		}
	}
}

// The addresses that are told are this machine's, that which the broker sees first,
// and no other that it claims to see.
func TestOwnAddresses(t *testing.T) {
	b := openBook(t, t.TempDir(), "lab")
	b.listen = netip.MustParseAddr("127.0.0.1")
	if got := b.addresses(netip.MustParseAddr("192.0.2.1")); !slices.Equal(got, []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:6776")}) {
		t.Errorf("on loopback: %v", got)
	}
	b.listen = netip.Addr{}
	all := b.addresses(netip.Addr{})
	if slices.ContainsFunc(all, func(a netip.AddrPort) bool { return a.Addr().IsLoopback() }) || len(all) > rendezvous.MaxAddresses {
		t.Errorf("of all interfaces: %v", all)
	}
	for _, a := range all {
		if got := b.addresses(a.Addr()); got[0] != a || len(got) != len(all) {
			t.Errorf("with %s as the broker sees it: %v", a.Addr(), got)
		}
	}
	if b.only = []string{"none"}; len(b.addresses(netip.Addr{})) != 0 {
		t.Error("an interface that is not there has addresses")
	}
}

// An agent asks when its session begins, soon again while the service is new, then
// seldom, and at once when it has another address.
func TestWhenAgentsAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBook(t, t.TempDir(), "lab")
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		var asked []netip.AddrPort
		var failing error
		at, settled := aPeer(2).At, false
		var asking sync.WaitGroup
		asking.Go(func() {
			b.keepAsking(ctx, func() []netip.AddrPort { mu.Lock(); defer mu.Unlock(); return at }, func(at []netip.AddrPort) (bool, error) {
				mu.Lock()
				defer mu.Unlock()
				asked = append(asked, at...)
				return settled, failing
			})
		})
		defer asking.Wait()
		defer cancel()
		during := func(d time.Duration, change func()) (times int, last netip.AddrPort) {
			mu.Lock()
			change()
			asked = nil
			mu.Unlock()
			time.Sleep(d)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if len(asked) > 0 {
				last = asked[len(asked)-1]
			}
			return len(asked), last
		}
		between := func(what string, n, least, most int) {
			t.Helper()
			if n < least || n > most {
				t.Errorf("%s it asks %d times, want %d to %d", what, n, least, most)
			}
		}
		n, _ := during(b.times.First+b.times.Look, func() {})
		between("at the beginning", n, 1, 1)
		n, _ = during(time.Hour, func() {})
		between("in an hour of a new service", n, 10, 24)
		during(b.times.Soon, func() { settled = true })
		n, _ = during(10*time.Hour, func() {})
		between("in ten hours", n, 19, 40)
		n, last := during(b.times.Look+time.Second, func() { at = aPeer(3).At })
		between("after a change of its address", n, 1, 1)
		if last != at[0] {
			t.Errorf("it says %v, want %v", last, at)
		}
		during(time.Hour, func() { failing = errors.New("nobody answers") })
		n, _ = during(10*time.Hour, func() {})
		between("in ten hours of an older service", n, 19, 40)
		n, _ = during(time.Hour, func() { at = nil })
		between("without an address", n, 0, 0)
	})
}

// A linker is a peerBook whose visits are watched.
type linker struct {
	*peerBook
	mu      sync.Mutex
	now     map[netip.AddrPort]bool
	tries   int
	absent  map[netip.AddrPort]bool // nobody answers there
	audible []order.Peer
	held    bool
}

// newLinker knows the peers 2 and so on. start has to follow.
func newLinker(t *testing.T, peers int) *linker {
	l := &linker{peerBook: openBook(t, t.TempDir(), "lab"), now: map[netip.AddrPort]bool{}, absent: map[netip.AddrPort]bool{}}
	for id := range peers {
		l.known = append(l.known, aPeer(byte(id+2)))
	}
	l.visit = func(ctx context.Context, at []netip.AddrPort) bool {
		l.mu.Lock()
		l.tries++
		absent := l.absent[at[0]]
		if !absent {
			l.now[at[0]] = true
		}
		l.mu.Unlock()
		if absent {
			time.Sleep(time.Second)
			return false
		}
		<-ctx.Done()
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.now, at[0])
		return true
	}
	l.heard = func(context.Context) []order.Peer { l.mu.Lock(); defer l.mu.Unlock(); return l.audible }
	l.occupied = func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.held }
	return l
}

func (l *linker) start(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { l.run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
}

// links returns to how many there is a link after a while.
func (l *linker) links(after time.Duration) int {
	time.Sleep(after)
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.now)
}

// attempts returns how many there were after a while.
func (l *linker) attempts(after time.Duration) int {
	l.links(after)
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tries
}

func (l *linker) hold(is bool) { l.mu.Lock(); defer l.mu.Unlock(); l.held = is }

// Links are there while the broker is away: not for a moment's absence, and for so
// much longer that no Order breaks when it comes back.
func TestLinksAreForWhenTheBrokerIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLinker(t, 2)
		l.start(t)
		l.set(true)
		if n := l.links(24 * time.Hour); n != 0 {
			t.Fatalf("%d links while the broker is there", n)
		}
		for range 10 {
			l.set(false)
			if n := l.links(l.times.Away - time.Second); n != 0 {
				t.Fatalf("%d links after a moment's absence", n)
			}
			l.set(true)
			l.links(time.Minute)
		}
		l.set(false)
		if n := l.links(3 * l.times.Away); n != 2 {
			t.Fatalf("%d links while the broker is away", n)
		}
		l.set(true)
		if n := l.links(l.times.Back - time.Minute); n != 2 {
			t.Fatalf("%d links soon after the broker is back", n)
		}
		l.hold(true)
		if n := l.links(time.Hour); n != 2 {
			t.Fatalf("%d links while an Order holds the node", n)
		}
		l.hold(false)
		if n := l.links(time.Hour); n != 0 {
			t.Fatalf("%d links long after the broker is back", n)
		}
		l.set(false)
		if n := l.links(time.Minute); n != 2 {
			t.Fatalf("%d links when it is away again", n)
		}
	})
}

// There are some links, to those that answer and are not heard anyway.
func TestWhomLinksAreMadeTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLinker(t, rendezvous.MaxPeers)
		for id := byte(2); id < 8; id++ {
			l.absent[aPeer(id).At[0]] = true
		}
		l.audible = []order.Peer{{ID: order.NodeID{8}, Address: "198.51.100.8:6776"}, {ID: order.NodeID{9}, Hub: "nats/x"}}
		l.start(t)
		if n := l.links(5 * time.Minute); n != peerLinks {
			t.Errorf("%d links, want %d", n, peerLinks)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.now[aPeer(8).At[0]] || !l.now[aPeer(9).At[0]] {
			t.Errorf("one that is heard is linked to, or one that is heard over the broker alone is not: %v", l.now)
		}
	})
}

// Where nobody answers, few attempts are made: who names addresses of others gains
// nothing.
func TestFewAttemptsAreMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLinker(t, rendezvous.MaxPeers)
		for _, p := range l.known {
			l.absent[p.At[0]] = true
		}
		l.start(t)
		first := l.attempts(time.Hour)
		more := l.attempts(24*time.Hour) - first
		if most := 24 * 60 / 5 * 2 * peerLinks; more > most || first > 200 {
			t.Errorf("%d attempts in an hour, %d more in a day; want %d at most", first, more, most)
		}
		if more == 0 {
			t.Error("it gives up")
		}
	})
}

// An address of this machine is nobody else's.
func TestNobodyLinksToItself(t *testing.T) {
	own := interfaceAddresses(nil)
	b := openBook(t, t.TempDir(), "lab")
	b.heard = func(context.Context) []order.Peer { return nil }
	for i, ip := range own {
		b.known = append(b.known, rendezvous.Peer{ID: rendezvous.ID{byte(i + 2)}, At: []netip.AddrPort{netip.AddrPortFrom(ip, 6776)}})
	}
	all := &taken{book: b, now: map[rendezvous.ID]bool{}, failures: map[rendezvous.ID]int{}}
	if p, ok := all.take(t.Context()); ok {
		t.Errorf("it links to %v", p)
	}
}
