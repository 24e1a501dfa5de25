// The benchmarks: what muster's promises cost against bare JetStream, measured
// in the same run on the same machine with the same sync settings. The figures
// go to standard output as Markdown; 'make bench' keeps them in RESULTS.md.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/agent"
	"github.com/musterfleet/muster/internal/broker"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/delivery"
	"github.com/musterfleet/muster/internal/journal"
	"github.com/musterfleet/muster/internal/method"
	"github.com/musterfleet/muster/internal/methods"
	"github.com/musterfleet/muster/test/lab"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	defer cancel()
	if err := run(ctx, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, exe string) error {
	exe, err := filepath.Abs(exe)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "muster-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	fmt.Printf("# Results\n\n%s\n", machine())
	for _, part := range []func(context.Context, string, string) error{latency, throughput, catchUp, memory, many, orders, scale} {
		if err := part(ctx, exe, dir); err != nil {
			return err
		}
	}
	return nil
}

// machine describes where the figures come from.
func machine() string {
	model := "unknown processor"
	data, err := os.ReadFile("/proc/cpuinfo")
	if err == nil {
		for line := range strings.Lines(string(data)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				model = strings.TrimSpace(v)
				break
			}
		}
	}
	return fmt.Sprintf("%s, %d cores, %s/%s, %s, %s. All brokers sync each message to disk before its receipt.",
		model, runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version(), time.Now().UTC().Format(time.DateOnly))
}

// A bare fleet is JetStream without muster: a work queue for each node, in one
// stream, and a stream of results.
type bare struct {
	broker *broker.Broker
	js     jetstream.JetStream
	conns  []*nats.Conn
	got    chan struct{}
}

func newBare(ctx context.Context, dir string, nodes int) (*bare, error) {
	b, err := broker.Start(ctx, broker.Options{StoreDir: dir})
	if err != nil {
		return nil, err
	}
	f := &bare{broker: b, got: make(chan struct{}, 1<<20)}
	connect := func() (jetstream.JetStream, error) {
		nc, err := nats.Connect("", nats.InProcessServer(b))
		if err != nil {
			return nil, err
		}
		f.conns = append(f.conns, nc)
		return jetstream.New(nc)
	}
	if f.js, err = connect(); err != nil {
		return nil, err
	}
	for _, s := range []jetstream.StreamConfig{
		{Name: "COMMANDS", Subjects: []string{"command.>"}, Retention: jetstream.WorkQueuePolicy},
		{Name: "RESULTS", Subjects: []string{"result.>"}},
	} {
		if _, err := f.js.CreateStream(ctx, s); err != nil {
			return nil, err
		}
	}
	for i := range nodes {
		js, err := connect()
		if err != nil {
			return nil, err
		}
		if err := f.serve(ctx, js, i); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// serve answers each command with a result and counts the result's receipt.
func (f *bare) serve(ctx context.Context, js jetstream.JetStream, i int) error {
	c, err := js.CreateConsumer(ctx, "COMMANDS", jetstream.ConsumerConfig{
		FilterSubject: fmt.Sprintf("command.%d.>", i), AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 512, MemoryStorage: true,
	})
	if err != nil {
		return err
	}
	_, err = c.Consume(func(m jetstream.Msg) {
		if m.Ack() != nil {
			return
		}
		r, err := js.PublishAsync(fmt.Sprintf("result.%d", i), m.Data())
		if err != nil {
			return
		}
		go func() {
			select {
			case <-r.Ok():
				f.got <- struct{}{}
			case <-r.Err():
			}
		}()
	})
	return err
}

func (f *bare) close() {
	for _, c := range f.conns {
		c.Close()
	}
	f.broker.Stop()
}

// payload is as large as a signed command.
var payload = make([]byte, 1300)

// A fleet is muster itself over the same kind of broker.
type fleet struct {
	broker *broker.Broker
	client *client.Client
	follow *bus.Conn
	nodes  []muster.NodeName
	got    chan struct{} // a final report was stored
	stop   context.CancelFunc
	wg     sync.WaitGroup
}

const fleetID = "bench"

func newFleet(ctx context.Context, dir string, nodes int) (*fleet, error) {
	b, err := broker.Start(ctx, broker.Options{StoreDir: filepath.Join(dir, "jetstream")})
	if err != nil {
		return nil, err
	}
	f := &fleet{broker: b, got: make(chan struct{}, 1<<20)}
	if f.follow, err = bus.Dial(ctx, bus.Options{InProcess: b}); err != nil {
		return nil, err
	}
	if err := f.follow.Setup(ctx, bus.LayoutOptions{Fleet: fleetID}); err != nil {
		return nil, err
	}
	issuer, err := aaa.GenerateIssuer()
	if err != nil {
		return nil, err
	}
	id, err := identity(issuer)
	if err != nil {
		return nil, err
	}
	if f.client, err = client.Connect(ctx, client.Options{InProcess: b, Identity: id}); err != nil {
		return nil, err
	}
	ctx, f.stop = context.WithCancel(ctx)
	online := make(chan struct{}, nodes)
	for i := range nodes {
		name := muster.NodeName(fmt.Sprintf("node%d", i))
		f.nodes = append(f.nodes, name)
		if err := f.serve(ctx, dir, name, issuer.PublicKey(), online); err != nil {
			return nil, err
		}
	}
	for range nodes {
		<-online
	}
	f.wg.Go(func() { f.count(ctx) })
	return f, nil
}

func identity(issuer *aaa.Issuer) ([]byte, error) {
	seed, public, err := aaa.NewUserKey()
	if err != nil {
		return nil, err
	}
	token, err := issuer.Issue(aaa.CallerClaims{
		PublicKey: public, Name: "bench", Fleet: fleetID, Expires: time.Now().Add(30 * 24 * time.Hour),
		Rights: []aaa.Right{{Methods: []string{"*"}, Nodes: []string{"*"}}},
	}, time.Now())
	if err != nil {
		return nil, err
	}
	id, err := aaa.NewIdentity(token, seed)
	return id.Marshal(), err
}

func (f *fleet) serve(ctx context.Context, dir string, name muster.NodeName, issuer string, online chan struct{}) error {
	registry, err := method.NewRegistry(append(methods.Builtin(methods.Options{}), once{})...)
	if err != nil {
		return err
	}
	verifier, err := aaa.NewVerifier(fleetID, issuer)
	if err != nil {
		return err
	}
	policy, err := aaa.ParsePolicy("policy", []byte("rules: [{effect: allow, methods: ['*']}]"))
	if err != nil {
		return err
	}
	a, err := agent.New(agent.Options{
		Node: name, Fleet: fleetID, Registry: registry, Verifier: verifier, StateDir: filepath.Join(dir, string(name)),
		Policy: func() *aaa.Policy { return policy },
		Dial: func(ctx context.Context) (*bus.Conn, error) {
			return bus.Dial(ctx, bus.Options{InProcess: f.broker, Inbox: bus.NodeInbox(name)})
		},
		Online: func(on bool) {
			if on {
				online <- struct{}{}
			}
		},
	})
	if err != nil {
		return err
	}
	f.wg.Go(func() {
		if err := a.Run(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "bench: agent:", err)
		}
	})
	return nil
}

// count follows the reports as an operator would.
func (f *fleet) count(ctx context.Context) {
	q := bus.Query{Stream: bus.StreamHistory, Filters: []string{"muster.report.>"}}
	_ = f.follow.Follow(ctx, q, func(m bus.Stored) error { // ends with ctx
		var r muster.Report
		if json.Unmarshal(m.Data, &r) == nil && r.State().Final() {
			f.got <- struct{}{}
		}
		return nil
	})
}

func (f *fleet) close() {
	f.stop()
	f.wg.Wait()
	f.client.Close()
	f.follow.Close()
	f.broker.Stop()
}

// once is a method that does nothing and must not run twice.
type once struct{}

func (once) Spec() method.Spec {
	return method.Spec{Name: "bench.once", Description: "Does nothing.", Input: json.RawMessage(`{"type":"object"}`), Output: json.RawMessage(`true`)}
}

func (once) Invoke(context.Context, method.Invocation) (method.Outcome, error) {
	return method.Outcome{}, nil
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// latency measures one stored command to its stored result.
func latency(ctx context.Context, _, dir string) error {
	const n = 500
	b, err := newBare(ctx, filepath.Join(dir, "latency-bare"), 1)
	if err != nil {
		return err
	}
	var floor []time.Duration
	for range n {
		began := time.Now()
		if _, err := b.js.Publish(ctx, "command.0.x", payload); err != nil {
			return err
		}
		<-b.got
		floor = append(floor, time.Since(began))
	}
	b.close()
	f, err := newFleet(ctx, filepath.Join(dir, "latency"), 1)
	if err != nil {
		return err
	}
	defer f.close()
	base := median(floor)
	fmt.Printf("\n## Stored command to stored result, one node, median of %d\n\n| what | time | ratio |\n| --- | --- | --- |\n| bare JetStream | %s | 1 |\n", n, base.Round(time.Microsecond))
	for _, m := range []muster.Method{"echo", "bench.once"} {
		var times []time.Duration
		for range n {
			began := time.Now()
			if _, err := f.client.Send(ctx, client.Request{Method: m, Nodes: f.nodes, Input: json.RawMessage(`{"message":1}`)}); err != nil {
				return err
			}
			<-f.got
			times = append(times, time.Since(began))
		}
		fmt.Printf("| muster, %s | %s | %.2f |\n", m, median(times).Round(time.Microsecond), float64(median(times))/float64(base))
	}
	cost, err := journalCost(dir)
	if err != nil {
		return err
	}
	fmt.Printf("\nOne transaction of the journal costs %s here; an idempotent command needs two in a row, another one two as well, of which the first holds acceptance and start.\n", cost.Round(time.Microsecond))
	return nil
}

func journalCost(dir string) (time.Duration, error) {
	j, _, err := journal.Open(filepath.Join(dir, "journal.db"), time.Now())
	if err != nil {
		return 0, err
	}
	defer j.Close()
	var times []time.Duration
	for i := range 300 {
		began := time.Now()
		r := delivery.Record{Seq: uint64(i + 1), Command: muster.Command{ID: "x", Input: json.RawMessage(`{}`)}}
		if err := j.Apply([]delivery.Write{{Put: &r}}); err != nil {
			return 0, err
		}
		times = append(times, time.Since(began))
	}
	return median(times), nil
}

// throughput measures ordered commands to one node, and to a hundred.
func throughput(ctx context.Context, _, dir string) error {
	fmt.Printf("\n## Ordered throughput, commands a second\n\n| nodes | bare JetStream | echo | ratio | bench.once | ratio |\n| --- | --- | --- | --- | --- | --- |\n")
	for _, nodes := range []int{1, 100} {
		const n = 3000
		b, err := newBare(ctx, filepath.Join(dir, fmt.Sprintf("throughput-bare-%d", nodes)), nodes)
		if err != nil {
			return err
		}
		began := time.Now()
		for i := range n {
			if _, err := b.js.PublishAsync(fmt.Sprintf("command.%d.x", i%nodes), payload); err != nil {
				return err
			}
		}
		for range n {
			<-b.got
		}
		floor := n / time.Since(began).Seconds()
		b.close()
		f, err := newFleet(ctx, filepath.Join(dir, fmt.Sprintf("throughput-%d", nodes)), nodes)
		if err != nil {
			return err
		}
		echo, err := f.rate(ctx, "echo", n)
		if err != nil {
			return err
		}
		once, err := f.rate(ctx, "bench.once", n)
		if err != nil {
			return err
		}
		f.close()
		fmt.Printf("| %d | %.0f | %.0f | %.2f | %.0f | %.2f |\n", nodes, floor, echo, echo/floor, once, once/floor)
	}
	return nil
}

// rate sends n commands, spread over the nodes, without waiting for one before
// the next, and returns how many a second had their result stored.
func (f *fleet) rate(ctx context.Context, m muster.Method, n int) (float64, error) {
	began := time.Now()
	var wg sync.WaitGroup
	failed := make(chan error, n)
	if len(f.nodes) == 1 {
		window := make(chan struct{}, 256)
		for range n {
			window <- struct{}{}
			wg.Go(func() {
				defer func() { <-window }()
				if _, err := f.client.Send(ctx, client.Request{Method: m, Nodes: f.nodes, Input: json.RawMessage(`{"message":1}`)}); err != nil {
					failed <- err
				}
			})
		}
	} else {
		for range n / len(f.nodes) {
			if _, err := f.client.Send(ctx, client.Request{Method: m, Nodes: f.nodes, Input: json.RawMessage(`{"message":1}`)}); err != nil {
				failed <- err
			}
		}
	}
	wg.Wait()
	select {
	case err := <-failed:
		return 0, err
	default:
	}
	for range n {
		<-f.got
	}
	return float64(n) / time.Since(began).Seconds(), nil
}

// startLab runs a broker and one node as processes.
func startLab(ctx context.Context, exe, dir string) (*lab.Lab, *client.Client, error) {
	l, err := lab.New(exe, dir)
	if err != nil {
		return nil, nil, err
	}
	if err := l.Broker.Start(); err != nil {
		return nil, nil, err
	}
	c, err := dial(ctx, l)
	if err == nil {
		_, err = l.AddNode(ctx, "node1")
	}
	if err != nil {
		return nil, nil, errors.Join(err, l.Close())
	}
	return l, c, nil
}

// catchUp measures how long a node that was away needs for 1,000 commands.
func catchUp(ctx context.Context, exe, dir string) error {
	fmt.Printf("\n## A node comes back to 1,000 queued commands\n\n| round trip | time from healed link to last stored result |\n| --- | --- |\n")
	l, c, err := startLab(ctx, exe, filepath.Join(dir, "catchup"))
	if err != nil {
		return err
	}
	defer l.Close()
	defer c.Close()
	n := l.Nodes[0]
	for _, rtt := range []time.Duration{0, 300 * time.Millisecond} {
		n.Link.Cut()
		var last client.Receipt
		for range 1000 {
			last, err = c.Send(ctx, client.Request{Method: "echo", Nodes: []muster.NodeName{"node1"}, Input: json.RawMessage(`{"message":1}`)})
			if err != nil {
				return err
			}
		}
		n.Link.SetDelay(rtt / 2)
		began := time.Now()
		n.Link.Heal()
		if err := c.Follow(ctx, last.ID, func(client.Update) error { return nil }); err != nil {
			return err
		}
		fmt.Printf("| %s | %s |\n", rtt, time.Since(began).Round(time.Millisecond))
	}
	rss, err := residentKB(n.PID())
	if err != nil {
		return err
	}
	fmt.Printf("\nThe agent's memory after that: %.1f MB resident.\n", float64(rss)/1024)
	return nil
}

func dial(ctx context.Context, l *lab.Lab) (*client.Client, error) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := l.Client(ctx)
		if err == nil {
			return c, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, err
		}
	}
}

// residentKB reads a process's resident memory.
func residentKB(pid int) (kb int, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			_, err = fmt.Sscan(rest, &kb)
		}
	}
	return kb, err
}

// memory measures an idle agent, the binary, and a broker with one node.
func memory(ctx context.Context, exe, dir string) error {
	fmt.Printf("\n## Size\n\n| what | figure |\n| --- | --- |\n")
	st, err := os.Stat(exe)
	if err != nil {
		return err
	}
	fmt.Printf("| binary, stripped | %.1f MB |\n", float64(st.Size())/1e6)
	l, c, err := startLab(ctx, exe, filepath.Join(dir, "memory"))
	if err != nil {
		return err
	}
	defer l.Close()
	c.Close()
	n := l.Nodes[0]
	settle := time.NewTimer(5 * time.Second)
	<-settle.C
	for name, p := range map[string]*lab.Process{"idle agent": n.Process, "broker with one node": l.Broker} {
		rss, err := residentKB(p.PID())
		if err != nil {
			return err
		}
		fmt.Printf("| %s, resident | %.1f MB |\n", name, float64(rss)/1024)
	}
	return nil
}

// many measures brokers with many nodes.
func many(ctx context.Context, exe, dir string) error {
	fmt.Printf("\n## A broker with many nodes, %d commands waiting for each\n\n", waiting)
	fmt.Printf("| nodes | commands stored in | queues created in | resident, stored | resident, with queues | killed and started, to the next command of a node |\n| --- | --- | --- | --- | --- | --- |\n")
	for _, nodes := range []int{1000, 10000} {
		if err := manyNodes(ctx, exe, filepath.Join(dir, fmt.Sprintf("many-%d", nodes)), nodes); err != nil {
			return err
		}
	}
	return nil
}

// waiting is how many commands wait for each of many nodes.
const waiting = 10

func manyName(i int) muster.NodeName { return muster.NodeName(fmt.Sprintf("site%d.node%d", i%100, i)) }

// manyNodes gives a broker, which is a process of its own, the commands and
// queues of so many nodes, and kills and starts it.
func manyNodes(ctx context.Context, exe, dir string, nodes int) error {
	l, err := lab.New(exe, dir)
	if err != nil {
		return err
	}
	defer l.Close()
	if err := l.Broker.Start(); err != nil {
		return err
	}
	conn, err := connect(ctx, l)
	if err != nil {
		return err
	}
	defer conn.Close()
	began := time.Now()
	if err := store(ctx, conn, nodes); err != nil {
		return err
	}
	stored := time.Since(began)
	before, err := residentKB(l.Broker.PID())
	if err != nil {
		return err
	}
	began = time.Now()
	if err := queues(ctx, conn, nodes); err != nil {
		return err
	}
	created := time.Since(began)
	after, err := residentKB(l.Broker.PID())
	if err != nil {
		return err
	}
	if err := l.Broker.Kill(); err != nil {
		return err
	}
	began = time.Now()
	if err := l.Broker.Start(); err != nil {
		return err
	}
	if err := next(ctx, l, manyName(nodes/2)); err != nil {
		return err
	}
	fmt.Printf("| %d | %.1f s | %.1f s | %.0f MB | %.0f MB | %.2f s |\n",
		nodes, stored.Seconds(), created.Seconds(), float64(before)/1024, float64(after)/1024, time.Since(began).Seconds())
	return nil
}

// connect tries until the broker is there.
func connect(ctx context.Context, l *lab.Lab) (*bus.Conn, error) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := l.Conn(ctx)
		if err == nil {
			return conn, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, err
		}
	}
}

// store sends the commands.
func store(ctx context.Context, conn *bus.Conn, nodes int) error {
	p, err := conn.Pipeline()
	if err != nil {
		return err
	}
	results := make(chan error, nodes*waiting)
	for i := range nodes * waiting {
		subject := conn.Subjects().Command(manyName(i%nodes), muster.KindCommand, "echo")
		p.Publish(bus.Outgoing{Subject: subject, Data: payload, TTL: time.Hour}, func(err error) { results <- err })
	}
	for range nodes * waiting {
		select {
		case err := <-results:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// queues makes the nodes' consumers.
func queues(ctx context.Context, conn *bus.Conn, nodes int) error {
	ready := make(chan error, nodes)
	gate := make(chan struct{}, 64)
	for i := range nodes {
		gate <- struct{}{}
		go func() {
			defer func() { <-gate }()
			ready <- conn.EnsureQueue(ctx, manyName(i))
		}()
	}
	for range nodes {
		if err := <-ready; err != nil {
			return err
		}
	}
	return nil
}

// next returns when the node has its next command.
func next(ctx context.Context, l *lab.Lab, node muster.NodeName) error {
	got := errors.New("got it")
	for {
		conn, err := connect(ctx, l)
		if err != nil {
			return err
		}
		err = conn.Commands(ctx, node, func(bus.Message) error { return got })
		conn.Close()
		if err == got {
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
	}
}
