package bus_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server/ats"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/broker"
	"github.com/musterfleet/muster/internal/bus"
)

func TestMain(m *testing.M) {
	ats.Register() // outside of every bubble
	code := m.Run()
	ats.Unregister()
	os.Exit(code)
}

// inBubble runs f in virtual time. Two collections drain the client's pool of
// timers, which must not cross from one bubble to the next.
func inBubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	runtime.GC()
	runtime.GC()
	synctest.Test(t, f)
}

func start(t *testing.T) *broker.Broker {
	t.Helper()
	b, err := broker.Start(t.Context(), broker.Options{StoreDir: t.TempDir(), Unsynced: true})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A link is a wire to a broker that a test can cut.
type link struct {
	b     *broker.Broker
	mu    sync.Mutex // guards the fields below
	cut   bool
	conns []net.Conn
}

func (l *link) InProcessConn() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut {
		return nil, errors.New("link is cut")
	}
	c, err := l.b.InProcessConn()
	if err == nil {
		l.conns = append(l.conns, c)
	}
	return c, err
}

func (l *link) set(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
	if cut {
		for _, c := range l.conns {
			c.Close()
		}
		l.conns = nil
	}
}

func dial(t *testing.T, l *link) *bus.Conn {
	t.Helper()
	c, err := bus.Dial(t.Context(), bus.Options{InProcess: l})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var layout = bus.LayoutOptions{Fleet: "F", Shards: 1, LaneLimit: 50}

// with runs f on a broker with the layout, in virtual time.
func with(t *testing.T, f func(t *testing.T, l *link, c *bus.Conn)) {
	inBubble(t, func(t *testing.T) {
		b := start(t)
		defer b.Stop()
		l := &link{b: b}
		c := dial(t, l)
		defer c.Close()
		must(t, c.Setup(t.Context(), layout))
		f(t, l, c)
	})
}

func outgoing(c *bus.Conn, n muster.NodeName, i int) bus.Outgoing {
	return bus.Outgoing{Subject: c.Subjects().Command(n, muster.KindCommand, "m.m"), ID: fmt.Sprint(n, i), Data: fmt.Append(nil, i)}
}

func TestSetup(t *testing.T) {
	with(t, func(t *testing.T, l *link, c *bus.Conn) {
		must(t, c.Setup(t.Context(), layout))
		more := layout
		more.Shards = 9
		must(t, c.Setup(t.Context(), more))
		if got := c.Settings().Shards; got != 1 {
			t.Errorf("the number of shards became %d", got)
		}
		other := layout
		other.Fleet = "G"
		if err := c.Setup(t.Context(), other); muster.KindOf(err) != muster.Conflict {
			t.Errorf("another fleet: %v", err)
		}
		// What the server answers to somebody who names this subject for it.
		if err := c.Put(t.Context(), bus.Outgoing{Subject: c.Subjects().Settings(), Data: []byte(`{"stream":"X","seq":1}`)}); muster.KindOf(err) != muster.Full {
			t.Errorf("settings were replaced: %v", err)
		}
		// A message that is not the settings is no word of the broker, and is mended.
		must(t, c.Purge(t.Context(), bus.StreamSettings, c.Subjects().Settings()))
		must(t, c.Put(t.Context(), bus.Outgoing{Subject: c.Subjects().Settings(), Data: []byte("?")}))
		if _, err := c.Load(t.Context()); muster.KindOf(err) != muster.Corrupt {
			t.Errorf("damaged settings: %v", err)
		}
		must(t, c.Setup(t.Context(), layout))
		if s, err := c.Load(t.Context()); err != nil || s.Fleet != "F" {
			t.Errorf("mended settings: %+v, %v", s, err)
		}
		must(t, c.Purge(t.Context(), bus.StreamSettings, c.Subjects().Settings()))
		if _, err := c.Load(t.Context()); muster.KindOf(err) != muster.Unavailable {
			t.Errorf("settings that are being replaced: %v", err)
		}
	})
}

// TestNewerLayout: what a newer muster has made is left alone.
func TestNewerLayout(t *testing.T) {
	with(t, func(t *testing.T, l *link, c *bus.Conn) {
		nc, err := nats.Connect("", nats.InProcessServer(l))
		must(t, err)
		defer nc.Close()
		js, err := jetstream.New(nc)
		must(t, err)
		stream, err := js.Stream(t.Context(), bus.StreamSettings)
		must(t, err)
		newer := []byte(`{"version":99,"fleet":"F","shards":100000}`)
		config := stream.CachedInfo().Config
		config.Metadata = map[string]string{"muster-settings": string(newer)}
		_, err = js.UpdateStream(t.Context(), config)
		must(t, err)
		must(t, c.Purge(t.Context(), bus.StreamSettings, c.Subjects().Settings()))
		must(t, c.Put(t.Context(), bus.Outgoing{Subject: c.Subjects().Settings(), Data: newer}))
		_, load := c.Load(t.Context())
		for what, err := range map[string]error{
			"set up": c.Setup(t.Context(), layout), "reshard": c.Reshard(t.Context(), layout, 2), "load": load,
		} {
			if muster.KindOf(err) != muster.Unsupported {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
}

func TestPipeline(t *testing.T) {
	with(t, func(t *testing.T, l *link, c *bus.Conn) {
		p, err := c.Pipeline()
		must(t, err)
		var mu sync.Mutex
		var order []int
		kinds := map[muster.ErrorKind]int{}
		publish := func(i int, m bus.Outgoing) {
			p.Publish(m, func(err error) {
				mu.Lock()
				defer mu.Unlock()
				order = append(order, i)
				kinds[muster.KindOf(err)]++
			})
		}
		for i := range 60 { // 50 fit
			publish(i, outgoing(c, "a", i))
		}
		publish(60, outgoing(c, "a", 3)) // a duplicate
		publish(61, outgoing(c, "b", 0)) // another node has room
		huge := outgoing(c, "b", 1)
		huge.Data = make([]byte, 3<<19)
		publish(62, huge)
		synctest.Wait()
		mu.Lock()
		if !slices.IsSorted(order) || len(order) != 63 || kinds[muster.Full] != 10 || kinds[muster.Invalid] != 1 || kinds[""] != 52 {
			t.Errorf("order %v, kinds %v", order, kinds)
		}
		order, kinds = nil, map[muster.ErrorKind]int{}
		mu.Unlock()
		if n, err := queueLength(t, c, "a"); n != 50 || err != nil {
			t.Errorf("the queue holds %d, %v", n, err)
		}
		huge.Data = make([]byte, 3<<20) // more than the broker takes at all
		publish(0, huge)
		publish(1, outgoing(c, "b", 2))
		synctest.Wait()
		mu.Lock()
		if kinds[muster.Invalid] != 1 || kinds[""] != 1 {
			t.Errorf("kinds %v", kinds)
		}
		order, kinds = nil, map[muster.ErrorKind]int{}
		mu.Unlock()
		l.set(true)
		for i := range 20 {
			publish(i, outgoing(c, "b", 100+i))
		}
		<-c.Done()
		publish(20, outgoing(c, "b", 200))
		p.Wait()
		mu.Lock()
		defer mu.Unlock()
		if !slices.IsSorted(order) || len(order) != 21 || kinds[muster.Unavailable] != 21 {
			t.Errorf("after the loss: order %v, kinds %v", order, kinds)
		}
	})
}

// A slowDisk is a way to a broker from which nothing comes before a time, as from one
// that has to sync each message first.
type slowDisk struct {
	*link
	running sync.WaitGroup
	loses   bool       // then what comes before is lost, and not late
	mu      sync.Mutex // guards late
	late    time.Time
}

func (d *slowDisk) InProcessConn() (net.Conn, error) {
	server, err := d.link.InProcessConn()
	if err != nil {
		return nil, err
	}
	here, there := net.Pipe()
	parcels := make(chan []byte, 10_000) // the broker must not wait
	d.running.Go(func() {
		defer server.Close()
		_, _ = io.Copy(server, there) // ends with the connection
	})
	d.running.Go(func() {
		defer close(parcels)
		for {
			b := make([]byte, 32<<10)
			n, err := server.Read(b)
			if err != nil {
				return
			}
			parcels <- b[:n]
		}
	})
	d.running.Go(func() {
		defer there.Close()
		for p := range parcels {
			d.mu.Lock()
			late := d.late
			d.mu.Unlock()
			if d.loses && time.Now().Before(late) {
				continue
			}
			time.Sleep(time.Until(late))
			_, _ = there.Write(p) // what an ended connection was sent is lost
		}
	})
	return here, nil
}

func (d *slowDisk) dial(t *testing.T) *bus.Conn {
	t.Helper()
	c, err := bus.Dial(t.Context(), bus.Options{InProcess: d})
	must(t, err)
	_, err = c.Load(t.Context())
	must(t, err)
	return c
}

// TestPipelineWithASlowDisk: the broker may take its time for many messages. For one
// it may not: then the connection is at fault.
func TestPipelineWithASlowDisk(t *testing.T) {
	for count, want := range map[int]muster.ErrorKind{50: "", 1: muster.Unavailable} {
		with(t, func(t *testing.T, l *link, _ *bus.Conn) {
			disk := &slowDisk{link: l}
			defer disk.running.Wait()
			c := disk.dial(t)
			defer c.Close()
			p, err := c.Pipeline()
			must(t, err)
			synctest.Wait()
			disk.mu.Lock()
			disk.late = time.Now().Add(25 * time.Second)
			disk.mu.Unlock()
			results := make(chan error, count)
			for i := range count {
				p.Publish(outgoing(c, "a", i), func(err error) { results <- err })
			}
			for range count {
				if err := <-results; muster.KindOf(err) != want {
					t.Errorf("%d messages: got %v", count, err)
				}
			}
		})
	}
}

// TestLastIsAskedAgain: an answer that is lost holds nobody up for long.
func TestLastIsAskedAgain(t *testing.T) {
	with(t, func(t *testing.T, l *link, _ *bus.Conn) {
		disk := &slowDisk{link: l, loses: true}
		defer disk.running.Wait()
		c := disk.dial(t)
		defer c.Close()
		must(t, c.Put(t.Context(), bus.Outgoing{Subject: c.Subjects().Node("box", "a"), Data: []byte("x")}))
		synctest.Wait()
		began := time.Now()
		disk.mu.Lock()
		disk.late = began.Add(2 * time.Second)
		disk.mu.Unlock()
		m, err := c.Last(t.Context(), bus.StreamNodes, c.Subjects().Node("box", "a"))
		if took := time.Since(began); err != nil || string(m.Data) != "x" || took > 5*time.Second {
			t.Errorf("after %s: %q, %v", took, m.Data, err)
		}
	})
}

// take reads n commands and acknowledges those for which ack is true.
func take(t *testing.T, c *bus.Conn, node muster.NodeName, n int, ack func(i int) bool) []string {
	t.Helper()
	var got []string
	enough := errors.New("enough")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := c.Commands(ctx, node, func(m bus.Message) error {
		got = append(got, string(m.Data))
		if ack(len(got) - 1) {
			must(t, m.Ack())
		}
		if len(got) == n {
			return enough
		}
		return nil
	})
	if err != enough {
		t.Fatalf("got %v after %d commands: %v", err, len(got), got)
	}
	must(t, c.Flush(ctx))
	return got
}

func TestCommands(t *testing.T) {
	with(t, func(t *testing.T, l *link, c *bus.Conn) {
		for i := range 6 {
			must(t, c.Put(t.Context(), outgoing(c, "a.b", i)))
			must(t, c.Put(t.Context(), outgoing(c, "a", 100+i)))
		}
		got := take(t, c, "a.b", 5, func(i int) bool { return i == 0 || i == 2 })
		if !slices.Equal(got, []string{"0", "1", "2", "3", "4"}) {
			t.Errorf("got %v", got)
		}
		synctest.Wait()
		got = take(t, c, "a.b", 4, func(int) bool { return true })
		if !slices.Equal(got, []string{"1", "3", "4", "5"}) {
			t.Errorf("again: %v", got)
		}
		// The end of the connection ends the reading.
		ended := make(chan error)
		go func() {
			ended <- c.Commands(t.Context(), "a.b", func(bus.Message) error { return nil })
		}()
		synctest.Wait()
		l.set(true)
		if err := <-ended; muster.KindOf(err) != muster.Unavailable {
			t.Errorf("got %v", err)
		}
	})
}

func TestReadFollowLast(t *testing.T) {
	with(t, func(t *testing.T, l *link, c *bus.Conn) {
		s, ctx := c.Subjects(), t.Context()
		if _, err := c.Last(ctx, bus.StreamNodes, s.Node("box", "a")); muster.KindOf(err) != muster.NotFound {
			t.Errorf("got %v", err)
		}
		for i := range 3 {
			must(t, c.Put(ctx, bus.Outgoing{Subject: s.Event("up", "a"), Data: fmt.Append(nil, i)}))
		}
		var got []string
		collect := func(m bus.Stored) error { got = append(got, string(m.Data)); return nil }
		must(t, c.Read(ctx, bus.Query{Stream: bus.StreamHistory, Filters: []string{s.Event("up", "a")}}, collect))
		must(t, c.Read(ctx, bus.Query{Stream: bus.StreamHistory, Last: true}, collect))
		must(t, c.Read(ctx, bus.Query{Stream: bus.StreamHistory, From: 2}, collect))
		must(t, c.Read(ctx, bus.Query{Stream: bus.StreamHistory, Filters: []string{s.Event("down", "a")}}, collect))
		if want := []string{"0", "1", "2", "2", "1", "2"}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		enough, n := errors.New("enough"), 0
		err := c.Follow(ctx, bus.Query{Stream: bus.StreamHistory}, func(bus.Stored) error {
			if n++; n == 3 {
				return c.Put(ctx, bus.Outgoing{Subject: s.Event("up", "b")})
			} else if n == 4 {
				return enough
			}
			return nil
		})
		if err != enough {
			t.Errorf("got %v", err)
		}
		must(t, c.PutAfter(ctx, bus.Outgoing{Subject: s.Node("box", "a"), Data: []byte("x")}, 0))
		if err := c.PutAfter(ctx, bus.Outgoing{Subject: s.Node("box", "a")}, 0); muster.KindOf(err) != muster.Conflict {
			t.Errorf("got %v", err)
		}
		m, err := c.Last(ctx, bus.StreamNodes, s.Node("box", "a"))
		if err != nil || string(m.Data) != "x" || m.Seq != 1 {
			t.Errorf("got %+v, %v", m, err)
		}
	})
}

// TestOutage: a node is away for two days. What was sent meanwhile arrives in
// order, but for what the broker was told to remove.
func TestOutage(t *testing.T) {
	with(t, func(t *testing.T, l *link, operator *bus.Conn) {
		wire := &link{b: l.b}
		node := dial(t, wire)
		if _, err := node.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
		must(t, operator.Put(t.Context(), outgoing(operator, "a.b", 0)))
		take(t, node, "a.b", 1, func(int) bool { return true })
		wire.set(true)
		<-node.Done()
		node.Close()
		for i := 1; i < 20; i++ {
			m := outgoing(operator, "a.b", i)
			if i%5 == 0 {
				m.TTL = time.Hour
			}
			must(t, operator.Put(t.Context(), m))
		}
		time.Sleep(48 * time.Hour) // virtual
		wire.set(false)
		node = dial(t, wire)
		defer node.Close()
		if _, err := node.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
		got := take(t, node, "a.b", 16, func(int) bool { return true })
		var want []string
		for i := 1; i < 20; i++ {
			if i%5 != 0 {
				want = append(want, fmt.Sprint(i))
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}
