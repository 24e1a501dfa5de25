package bus_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
)

// A sender sends to its lanes in turn over one connection, as a client does:
// when that ends, what has no receipt is sent again over a new one.
type sender struct {
	t     *testing.T
	l     *link
	lanes []lane
	sent  map[lane]int // commands of each lane so far
	gone  int          // connections that ended
	conn  *bus.Conn
	pipe  *bus.Pipeline
}

type lane struct {
	node   muster.NodeName
	method muster.Method
}

// batch sends a few commands to each lane and returns when all are stored.
func (s *sender) batch(ctx context.Context) {
	var waiting []command
	for range 5 {
		for _, l := range s.lanes {
			waiting = append(waiting, command{l, s.sent[l]})
			s.sent[l]++
		}
	}
	for len(waiting) > 0 {
		if s.conn == nil {
			s.connect(ctx)
		}
		if waiting = s.publish(waiting); len(waiting) > 0 {
			s.close()
			s.gone++
		}
	}
}

type command struct {
	lane lane
	n    int
}

// publish returns what was not stored.
func (s *sender) publish(commands []command) (left []command) {
	results := make(chan error, len(commands))
	var mu sync.Mutex // guards left
	for _, w := range commands {
		text := fmt.Sprintf("%s %s %d", w.lane.node, w.lane.method, w.n)
		subject := s.conn.Subjects().Command(w.lane.node, muster.KindCommand, w.lane.method)
		s.pipe.Publish(bus.Outgoing{Subject: subject, ID: text, Data: []byte(text)}, func(err error) {
			if err != nil {
				mu.Lock()
				left = append(left, w)
				mu.Unlock()
			}
			results <- err
		})
	}
	for range commands {
		if err := <-results; err != nil && muster.KindOf(err) != muster.Unavailable {
			s.t.Error(err)
		}
	}
	return left
}

func (s *sender) connect(ctx context.Context) {
	s.conn = dial(s.t, s.l)
	_, err := s.conn.Load(ctx)
	must(s.t, err)
	s.pipe, err = s.conn.Pipeline()
	must(s.t, err)
}

func (s *sender) close() {
	s.conn.Close()
	s.pipe.Wait()
	s.conn = nil
}

// A reader is a node with its journal: it acknowledges what it knows already.
type reader struct {
	node    muster.NodeName
	mu      sync.Mutex // guards the fields below
	got     map[lane][]string
	subject map[string]string // of each command
	total   int
	twice   []string // commands that were stored in two places
}

// work reads until ctx ends, over one connection after another.
func (r *reader) work(t *testing.T, ctx context.Context, l *link) {
	for ctx.Err() == nil {
		c, err := bus.Dial(ctx, bus.Options{InProcess: l})
		if err != nil {
			continue
		}
		if _, err = c.Load(ctx); err == nil {
			_ = c.Commands(ctx, r.node, r.take) // whatever ended it, it begins again
		}
		c.Close()
	}
}

func (r *reader) take(m bus.Message) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	text := string(m.Data)
	if was, known := r.subject[text]; !known {
		f := strings.Fields(text)
		at := lane{muster.NodeName(f[0]), muster.Method(f[1])}
		r.got[at] = append(r.got[at], f[2])
		r.subject[text] = m.Subject
		r.total++
	} else if was != m.Subject {
		r.twice = append(r.twice, text)
	}
	return m.Ack()
}

func (r *reader) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.total
}

// check compares with what was sent.
func (r *reader) check(t *testing.T, sent map[lane]int) {
	t.Helper()
	for at, n := range sent {
		if at.node != r.node {
			continue
		}
		var want []string
		for i := range n {
			want = append(want, fmt.Sprint(i))
		}
		if !slices.Equal(r.got[at], want) {
			t.Errorf("lane %v: got %v, want 0 to %d", at, r.got[at], n-1)
		}
	}
	if len(r.twice) > 0 {
		t.Errorf("stored in two streams: %v", r.twice)
	}
}

var errCrash = errors.New("crash")

// crashAt runs the change and ends its connection before step k. It reports
// whether the change came so far.
func crashAt(t *testing.T, l *link, k int, change func(ctx context.Context, c *bus.Conn) error) (crashed bool) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	c := dial(t, l)
	defer c.Close()
	n := 0
	c.BeforeStep(func() {
		if n++; n > k {
			cancel(errCrash)
		}
	})
	err := change(ctx, c)
	if crashed = context.Cause(ctx) == errCrash; !crashed {
		must(t, err)
	}
	return crashed
}

// TestReshard changes the number of command streams while commands are sent
// and taken, and while a node is away, and ends the change before each of its
// steps in turn. All commands arrive once, each lane in order.
func TestReshard(t *testing.T) {
	few := layout
	few.Shards, few.LaneLimit = 2, 10_000
	for _, shards := range []int{3, 1} {
		reshard := func(ctx context.Context, c *bus.Conn) error { return c.Reshard(ctx, few, shards) }
		crashed := true
		for k := 0; crashed; k++ {
			ok := t.Run(fmt.Sprintf("to %d, crash at %d", shards, k), func(t *testing.T) {
				inBubble(t, func(t *testing.T) { crashed = reshardUnderLoad(t, few, k, reshard) })
			})
			if !ok {
				return
			}
		}
	}
}

func reshardUnderLoad(t *testing.T, o bus.LayoutOptions, k int, change func(context.Context, *bus.Conn) error) (crashed bool) {
	b := start(t)
	defer b.Stop()
	l := &link{b: b}
	c := dial(t, l)
	must(t, c.Setup(t.Context(), o))
	c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := &sender{t: t, l: l, sent: map[lane]int{}}
	var readers []*reader
	var wg sync.WaitGroup
	for _, n := range []muster.NodeName{"a", "b.x", "c", "late"} {
		s.lanes = append(s.lanes, lane{n, "m.m"}, lane{n, "n"})
		readers = append(readers, &reader{node: n, got: map[lane][]string{}, subject: map[string]string{}})
	}
	work := func(r *reader) { wg.Go(func() { r.work(t, ctx, l) }) }
	for _, r := range readers[:3] {
		work(r)
	}
	s.batch(ctx)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			s.batch(ctx)
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	crashed = crashAt(t, l, k, change)
	c = dial(t, l)
	defer c.Close()
	must(t, c.Setup(ctx, o)) // the next start of the service
	close(stop)
	<-stopped
	s.batch(ctx)
	s.close()
	if moved := c.Settings().Generation > 0; moved != (s.gone > 0) {
		t.Errorf("commands have moved: %v; the sender's connection ended %d times", moved, s.gone)
	}
	work(readers[3])
	for _, r := range readers {
		want := 2 * s.sent[s.lanes[0]]
		for range 600 {
			if r.count() < want {
				time.Sleep(time.Second) // virtual
			}
		}
	}
	cancel()
	wg.Wait()
	for _, r := range readers {
		r.check(t, s.sent)
	}
	checkRetired(t, c, o)
	return crashed
}

// checkRetired sees to it that nothing is left of older sets when all is done.
func checkRetired(t *testing.T, c *bus.Conn, o bus.LayoutOptions) {
	t.Helper()
	must(t, c.Setup(t.Context(), o))
	states, err := c.StreamStates(t.Context())
	must(t, err)
	streams := 0
	for _, s := range states {
		if strings.HasPrefix(s.Name, "MUSTER_COMMAND_") {
			streams++
			if s.Messages > 0 {
				t.Errorf("stream %s holds %d messages", s.Name, s.Messages)
			}
		}
	}
	if s := c.Settings(); streams != s.Shards || len(s.Older) > 0 || s.Next != nil {
		t.Errorf("%d command streams, settings %+v", streams, s)
	}
}

// version1 is the layout as the first version made it, with two shards and one
// of each other kind of stream. It does not change with the code.
func version1(t *testing.T, l *link) {
	t.Helper()
	nc, err := nats.Connect("", nats.InProcessServer(l), nats.Timeout(time.Minute))
	must(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	must(t, err)
	base := func(name string, subjects ...string) jetstream.StreamConfig {
		return jetstream.StreamConfig{
			Name: name, Subjects: subjects, Replicas: 1, Duplicates: 10 * time.Minute, MaxConsumers: 50_000, AllowDirect: true,
		}
	}
	last := func(name string, subjects ...string) jetstream.StreamConfig {
		c := base(name, subjects...)
		c.MaxMsgsPerSubject = 1
		return c
	}
	var all []jetstream.StreamConfig
	for i := range 2 {
		c := base(fmt.Sprintf("MUSTER_COMMAND_%d", i), fmt.Sprintf("muster.command.%d.>", i))
		c.Retention, c.Discard, c.DiscardNewPerSubject, c.MaxMsgsPerSubject = jetstream.WorkQueuePolicy, jetstream.DiscardNew, true, 10_000
		c.AllowMsgTTL, c.MaxMsgSize = true, 1<<20
		all = append(all, c)
	}
	history := base("MUSTER_HISTORY", "muster.sent.*", "muster.report.*.>", "muster.event.*.>")
	history.MaxAge = 30 * 24 * time.Hour
	output := base("MUSTER_OUTPUT", "muster.output.>")
	output.MaxAge, output.MaxBytes = 7*24*time.Hour, 4<<30
	dead := base("MUSTER_DEAD", "muster.dead.>")
	dead.MaxAge, dead.MaxMsgsPerSubject = 90*24*time.Hour, 1000
	alive := last("MUSTER_ALIVE", "muster.alive.>")
	alive.Storage, alive.MaxAge = jetstream.MemoryStorage, 24*time.Hour
	settings := last("MUSTER_SETTINGS", "muster.settings")
	settings.Discard, settings.DiscardNewPerSubject = jetstream.DiscardNew, true
	all = append(all, history, output, dead, alive, settings, last("MUSTER_CONTROL", "muster.control.>"), last("MUSTER_NODES", "muster.node.>"))
	records := base("MUSTER_FLEET", "muster.fleet.SECRET.>")
	records.MaxMsgsPerSubject = 8
	for _, s := range append(all, records) {
		_, err := js.CreateStream(t.Context(), s)
		must(t, err)
	}
	for _, m := range version1Messages {
		_, err := js.Publish(t.Context(), m.subject, []byte(m.data))
		must(t, err)
	}
}

// version1Messages are one of each kind. FNV-1a puts node a into shard 0 of
// two, node b into shard 1.
var version1Messages = []struct{ stream, subject, data string }{
	{"MUSTER_COMMAND_0", "muster.command.0.a.command.shell:run", "a 1"},
	{"MUSTER_COMMAND_0", "muster.command.0.a.command.shell:run", "a 2"},
	{"MUSTER_COMMAND_1", "muster.command.1.b.command.echo", "b 1"},
	{"MUSTER_HISTORY", "muster.sent.01J", "sent"},
	{"MUSTER_HISTORY", "muster.report.01J.a", "report"},
	{"MUSTER_HISTORY", "muster.event.up.a", "event"},
	{"MUSTER_OUTPUT", "muster.output.01J.stdout.a", "output"},
	{"MUSTER_DEAD", "muster.dead.BOX.a", "dead"},
	{"MUSTER_ALIVE", "muster.alive.BOX.a", "alive"},
	{"MUSTER_CONTROL", "muster.control.BOX.a", "control"},
	{"MUSTER_NODES", "muster.node.BOX.a", "node"},
	{"MUSTER_FLEET", "muster.fleet.SECRET.node.a", "labels"},
	{"MUSTER_SETTINGS", "muster.settings", `{"version":1,"fleet":"F","shards":2,"replicas":1}`},
}

// TestUpgrade brings a layout of version 1 up to date, with a crash before
// each step, and then gives it more shards. All of its messages are kept. (Not
// in virtual time: the server compares ages with the real one.)
func TestUpgrade(t *testing.T) {
	crashed := true
	for k := 0; crashed; k++ {
		t.Run(fmt.Sprint("crash at ", k), func(t *testing.T) { crashed = upgrade(t, k) })
	}
}

func upgrade(t *testing.T, k int) (crashed bool) {
	b := start(t)
	defer b.Stop()
	l := &link{b: b}
	version1(t, l)
	o := bus.LayoutOptions{Fleet: "F", Shards: 7}
	crashed = crashAt(t, l, k, func(ctx context.Context, c *bus.Conn) error { return c.Setup(ctx, o) })
	c := dial(t, l)
	defer c.Close()
	must(t, c.Setup(t.Context(), o))
	if s := c.Settings(); s.Version != bus.LayoutVersion || s.Shards != 2 || s.Generation != 0 {
		t.Errorf("settings %+v", s)
	}
	checkKept(t, c)
	must(t, c.Reshard(t.Context(), o, 5))
	must(t, c.Put(t.Context(), bus.Outgoing{Subject: c.Subjects().Command("a", muster.KindCommand, "shell.run"), Data: []byte("a 3")}))
	all := func(int) bool { return true }
	if got := take(t, c, "a", 3, all); !slices.Equal(got, []string{"a 1", "a 2", "a 3"}) {
		t.Errorf("node a got %q", got)
	}
	if got := take(t, c, "b", 1, all); !slices.Equal(got, []string{"b 1"}) {
		t.Errorf("node b got %q", got)
	}
	checkRetired(t, c, o)
	return crashed
}

func checkKept(t *testing.T, c *bus.Conn) {
	t.Helper()
	for _, m := range version1Messages {
		if m.stream == "MUSTER_SETTINGS" || strings.HasPrefix(m.stream, "MUSTER_COMMAND") {
			continue // commands are taken below
		}
		found := false
		must(t, c.Read(t.Context(), bus.Query{Stream: m.stream, Filters: []string{m.subject}}, func(s bus.Stored) error {
			found = found || string(s.Data) == m.data
			return nil
		}))
		if !found {
			t.Errorf("%s is lost", m.subject)
		}
	}
	if m, err := c.Record(t.Context(), "node.a"); err != nil || string(m.Data) != "labels" {
		t.Errorf("labels: %v", err)
	}
}

func TestReshardRefuses(t *testing.T) {
	with(t, func(t *testing.T, l *link, c *bus.Conn) {
		for _, n := range []int{0, -1, 257} {
			if err := c.Reshard(t.Context(), layout, n); muster.KindOf(err) != muster.Invalid {
				t.Errorf("%d: %v", n, err)
			}
		}
		must(t, c.Reshard(t.Context(), layout, 1))
		if s := c.Settings(); s.Generation != 0 {
			t.Errorf("the same number made %+v", s)
		}
		other := layout
		other.Fleet = "G"
		if err := c.Reshard(t.Context(), other, 2); muster.KindOf(err) != muster.Conflict {
			t.Errorf("another fleet: %v", err)
		}
	})
}

// TestStaleConnection: whoever does not know of a change yet can neither send
// to a wrong stream nor wait at one.
func TestStaleConnection(t *testing.T) {
	with(t, func(t *testing.T, l *link, c *bus.Conn) {
		open := func() *bus.Conn {
			c := dial(t, l)
			t.Cleanup(c.Close)
			_, err := c.Load(t.Context())
			must(t, err)
			return c
		}
		sender, asker, reader := open(), open(), open()
		must(t, c.Put(t.Context(), outgoing(c, "a", 0)))
		must(t, c.Reshard(t.Context(), layout, 2))
		if err := sender.Put(t.Context(), outgoing(sender, "a", 1)); muster.KindOf(err) != muster.Unavailable {
			t.Errorf("send: %v", err)
		}
		<-sender.Done()
		if _, err := queueLength(t, asker, "a"); muster.KindOf(err) != muster.Unavailable {
			t.Errorf("queue: %v", err)
		}
		<-asker.Done()
		err := reader.Commands(t.Context(), "a", func(bus.Message) error { return nil })
		if muster.KindOf(err) != muster.Unavailable {
			t.Errorf("read: %v", err)
		}
		<-reader.Done()
		reader = open()
		must(t, c.PurgeQueue(t.Context(), "a"))
		must(t, c.Reshard(t.Context(), layout, 1))
		must(t, c.Setup(t.Context(), layout)) // the reader's stream is gone now
		err = reader.Commands(t.Context(), "a", func(bus.Message) error { return nil })
		if muster.KindOf(err) != muster.Unavailable {
			t.Errorf("read from a stream that is gone: %v", err)
		}
		<-reader.Done()
		must(t, c.Put(t.Context(), outgoing(c, "a", 0)))
		must(t, c.Reshard(t.Context(), layout, 2))
		must(t, c.Put(t.Context(), outgoing(c, "a", 1)))
		if n, err := queueLength(t, c, "a"); n != 2 || err != nil {
			t.Errorf("the queues hold %d, %v", n, err)
		}
		must(t, c.PurgeQueue(t.Context(), "a"))
		if n, err := queueLength(t, c, "a"); n != 0 || err != nil {
			t.Errorf("purged, the queues hold %d, %v", n, err)
		}
	})
}

// TestReshardAgain: a node that was away during several changes empties the
// older sets of streams in their order.
func TestReshardAgain(t *testing.T) {
	with(t, func(t *testing.T, l *link, c *bus.Conn) {
		var want []string
		for i, shards := range []int{3, 1, 3} {
			must(t, c.Put(t.Context(), outgoing(c, "a", i)))
			must(t, c.Reshard(t.Context(), layout, shards))
			want = append(want, fmt.Sprint(i))
		}
		must(t, c.Put(t.Context(), outgoing(c, "a", 3)))
		if s := c.Settings(); s.Generation != 3 || len(s.Older) != 3 {
			t.Errorf("settings %+v", s)
		}
		if got := take(t, c, "a", 4, func(int) bool { return true }); !slices.Equal(got, append(want, "3")) {
			t.Errorf("got %v", got)
		}
		checkRetired(t, c, layout)
	})
}

// TestDrainExpired: what an older queue holds may expire while a node reads it.
func TestDrainExpired(t *testing.T) {
	with(t, func(t *testing.T, l *link, c *bus.Conn) {
		for i := range 4 {
			m := outgoing(c, "a", i)
			if i > 1 {
				m.TTL = time.Minute
			}
			must(t, c.Put(t.Context(), m))
		}
		must(t, c.Reshard(t.Context(), layout, 2))
		must(t, c.Put(t.Context(), outgoing(c, "a", 4)))
		var got []string
		enough := errors.New("enough")
		err := c.Commands(t.Context(), "a", func(m bus.Message) error {
			if got = append(got, string(m.Data)); len(got) == 1 {
				time.Sleep(2 * time.Minute) // virtual
			}
			if string(m.Data) == "4" {
				return enough
			}
			return nil
		})
		if err != enough || len(got) < 3 || got[1] != "1" || got[len(got)-1] != "4" {
			t.Errorf("got %v, %v", got, err)
		}
	})
}
